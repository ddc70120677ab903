package e2e

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/coder/websocket"
)

func TestPublicListener(t *testing.T) {
	s := start(t, "-domain", "localhost,counter.test", "-domain", "127.0.0.1")
	for _, tt := range []struct {
		url, host string
		status    int
		header    string // "Name: value" that must be there
	}{
		{"https://localhost/", "", 200, "Content-Type: text/html; charset=utf-8"},
		{"https://counter.test/", "", 200, ""},
		{"https://127.0.0.1/", "", 200, ""},
		{"https://localhost/", "LOCALHOST.:8443", 200, ""},
		{"https://localhost/", "counter.test:1", 200, ""},
		{"https://localhost/nowhere", "", 404, ""},
		{"https://localhost/", "evil.example", 421, ""},
		{"https://localhost/", "evil.example:443", 421, ""},
		{"https://localhost/state", "evil.example:443", 421, ""},
		{"https://localhost/state", "", 200, "Content-Type: application/json"},
		{"http://localhost/", "", 308, "Location: https://localhost" + portOf(t, s.addrs.HTTPS[0]) + "/"},
		{"http://localhost/a?b=c", "counter.test:80", 308, "Location: https://counter.test" + portOf(t, s.addrs.HTTPS[0]) + "/a?b=c"},
		{"http://localhost/", "evil.example:80", 421, ""},
		{"http://localhost/.well-known/acme-challenge/unknown", "", 404, ""},
	} {
		resp, body := s.get(tt.url, tt.host)
		if resp.StatusCode != tt.status {
			t.Errorf("GET %s, Host %q: %s %q, want %d", tt.url, tt.host, resp.Status, body, tt.status)
		}
		if name, value, _ := strings.Cut(tt.header, ": "); resp.Header.Get(name) != value {
			t.Errorf("GET %s, Host %q: %s is %q, want %q", tt.url, tt.host, name, resp.Header.Get(name), value)
		}
		if hsts := resp.Header.Get("Strict-Transport-Security"); hsts != "" {
			t.Errorf("GET %s: HSTS %q with a certificate that only this machine trusts", tt.url, hsts)
		}
	}

	ws := s.join("wss://localhost/any/path")
	wantRead(t, ws, `{"count":1,"type":"users"}`, `{"type":"state","value":0}`)
	send(t, ws, minus)
	wantRead(t, ws, `{"type":"state","value":-1}`)
	if _, body := s.get("https://localhost/state", ""); body != `{"value":-1,"users":1}`+"\n" {
		t.Errorf("GET /state = %q", body)
	}
}

func TestIPv6(t *testing.T) {
	probe, err := net.Listen("tcp", "[::1]:0")
	if err != nil {
		t.Skip("IPv6 is not configured on this machine: ", err)
	}
	probe.Close()
	s := start(t, "-domain", "::1,localhost", "-https", "[::1]:0,127.0.0.1:0")
	for i, name := range []string{"[::1]", "localhost"} {
		port := portOf(t, s.addrs.HTTPS[i])
		if resp, body := s.get("https://"+name+port+"/state", ""); resp.StatusCode != 200 {
			t.Errorf("GET https://%s/state = %s %s", name, resp.Status, body)
		}
		ws := s.join("wss://" + name + port + "/")
		wantRead(t, ws, `{"count":1,"type":"users"}`, `{"type":"state","value":0}`)
		ws.Close(websocket.StatusNormalClosure, "")
	}
}

func portOf(t *testing.T, addr string) string {
	t.Helper()
	_, port, err := net.SplitHostPort(addr)
	if err != nil {
		t.Fatal(err)
	}
	return ":" + port
}

func TestOrigin(t *testing.T) {
	s := start(t, "-domain", "counter.test", "-origin", "https://friend.example")
	for _, tt := range []struct {
		origin string
		ok     bool
	}{
		{"", true},
		{"https://counter.test", true},
		{"https://counter.test:8443", true},
		{"https://friend.example", true},
		{"http://counter.test", false},
		{"https://friend.example:444", false},
		{"https://evil.example", false},
		{"null", false},
	} {
		header := http.Header{}
		if tt.origin != "" {
			header.Set("Origin", tt.origin)
		}
		ws, resp, err := s.dial("wss://counter.test/", websocket.DialOptions{HTTPHeader: header})
		if err == nil {
			ws.CloseNow()
		}
		if (err == nil) != tt.ok {
			t.Errorf("Origin %q: %v, want ok %v", tt.origin, err, tt.ok)
		}
		if err != nil && (resp == nil || resp.StatusCode != http.StatusForbidden) {
			t.Errorf("Origin %q: %v, want 403", tt.origin, err)
		}
	}
	if _, resp, err := s.dial("wss://counter.test/", websocket.DialOptions{Host: "evil.example:443"}); err == nil || resp.StatusCode != http.StatusMisdirectedRequest {
		t.Errorf("upgrade for another host: %v, %v, want 421", resp, err)
	}
}

func TestPlain(t *testing.T) {
	s := start(t, "-plain", "-domain", "counter.example.com")
	if resp, _ := s.get("http://counter.example.com/", ""); resp.StatusCode != 200 {
		t.Errorf("GET / = %s, want 200", resp.Status)
	}
	if resp, _ := s.get("http://counter.example.com/", "upstream:8080"); resp.StatusCode != 421 {
		t.Errorf("GET / for another host = %s, want 421", resp.Status)
	}
	ws := s.join("ws://counter.example.com/")
	wantRead(t, ws, `{"count":1,"type":"users"}`, `{"type":"state","value":0}`)
	if len(s.addrs.HTTPS) != 0 {
		t.Errorf("listens on %q with -plain", s.addrs.HTTPS)
	}
}

// The value outlives the process, and a second process does not take it.
func TestRestart(t *testing.T) {
	data := t.TempDir()
	s := start(t, "-data", data)
	ws := s.join("wss://localhost/")
	wantRead(t, ws, `{"count":1,"type":"users"}`, `{"type":"state","value":0}`)
	send(t, ws, plus)
	send(t, ws, plus)
	wantRead(t, ws, `{"type":"state","value":1}`, `{"type":"state","value":2}`)

	out, err := command(t, "-data", data, "-https", "127.0.0.1:0", "-http", "off", "-admin", "off").CombinedOutput()
	if exitStatus(err) != 1 || !strings.Contains(string(out), "in use by another process") {
		t.Errorf("a second process on the data folder: %v, %q, want exit status 1 and the reason", err, out)
	}

	ws.CloseNow()
	if err := s.stop(); err != nil {
		t.Fatal(err)
	}
	ws = start(t, "-data", data).join("wss://localhost/")
	wantRead(t, ws, `{"count":1,"type":"users"}`, `{"type":"state","value":2}`)
}

func exitStatus(err error) int {
	var exit *exec.ExitError
	switch {
	case err == nil:
		return 0
	case errors.As(err, &exit):
		return exit.ExitCode()
	}
	return -1
}

// A certificate that is not there yet is why the server is not ready, and the reason
// says so.
func TestNotReady(t *testing.T) {
	s := start(t, "-domain", "counter.test", "-acme-directory", "https://127.0.0.1:1/dir")
	resp, body := s.get("http://"+s.addrs.Admin+"/readyz", "")
	if resp.StatusCode != 503 || !strings.Contains(body, "counter.test") {
		t.Errorf("GET /readyz = %s %q, want 503 and the domain", resp.Status, body)
	}
	if conn, err := tls.Dial("tcp", s.addrs.HTTPS[0], &tls.Config{ServerName: "counter.test"}); err == nil {
		conn.Close()
		t.Error("a TLS handshake succeeds without a certificate")
	}
}

// The process as its supervisor sees it: SIGTERM, 1012 to clients, exit status 0.
func TestProcess(t *testing.T) {
	cmd := command(t, "-https", "127.0.0.1:0", "-http", "off", "-admin", "off", "-log-format", "json")
	stderr, err := cmd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	log := json.NewDecoder(stderr)
	s := &plusminus{t: t, roots: x509.NewCertPool()}
	for len(s.addrs.HTTPS) == 0 {
		var line struct {
			Msg   string
			HTTPS []string
		}
		if err := log.Decode(&line); err != nil {
			t.Fatalf("reading the log: %v", err)
		}
		if line.Msg == "listening" {
			s.addrs.HTTPS = line.HTTPS
		}
	}
	pem, err := os.ReadFile(filepath.Join(cmd.Dir, "data", "local-ca", "root.pem"))
	if err != nil {
		t.Fatal(err)
	}
	s.roots.AppendCertsFromPEM(pem)
	ws := s.join("wss://localhost/")
	wantRead(t, ws, `{"count":1,"type":"users"}`, `{"type":"state","value":0}`)
	if err := cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	_, _, err = ws.Read(t.Context())
	if got := websocket.CloseStatus(err); got != websocket.StatusServiceRestart {
		t.Errorf("the connection ended with %v, want status code 1012", err)
	}
	rest, err := io.ReadAll(io.MultiReader(log.Buffered(), stderr))
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Wait(); err != nil {
		t.Errorf("after SIGTERM: %v, want exit status 0", err)
	}
	if !strings.Contains(string(rest), "terminated") {
		t.Errorf("the log does not name the signal:\n%s", rest)
	}
}

func TestExitStatus(t *testing.T) {
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	for _, tt := range []struct {
		args   string
		env    string
		status int
		want   string // in the output
	}{
		{"version", "", 0, "plusminus "},
		{"-h", "", 0, "PLUSMINUS_ACME_EMAIL"},
		{"-domian x", "", 2, "-domian"},
		{"-drain soon", "", 2, "-drain"},
		{"", "PLUSMINUS_DRAIN=soon", 2, "PLUSMINUS_DRAIN"},
		{"serve", "", 2, `unknown command "serve"`},
		{"-plain extra", "", 2, `unexpected argument "extra"`},
		{"-https " + taken.Addr().String() + " -http off -admin off", "", 1, "is another server"},
		{"-data /proc/nowhere -http off -admin off", "", 1, "data folder"},
		{"-cert nowhere.pem -key nowhere.pem -http off -admin off", "", 1, "nowhere.pem"},
	} {
		cmd := command(t, strings.Fields(tt.args)...)
		cmd.Env = append(cmd.Env, tt.env)
		out, err := cmd.CombinedOutput()
		if exitStatus(err) != tt.status || !strings.Contains(string(out), tt.want) {
			t.Errorf("plusminus %s (%s): %v and\n%swant exit status %d and %q", tt.args, tt.env, err, out, tt.status, tt.want)
		}
	}
}
