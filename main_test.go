package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/coder/websocket"
)

// TestMain makes the test binary behave as plusminus itself when asked to, so that
// tests can start it as a process of its own.
func TestMain(m *testing.M) {
	if os.Getenv("PLUSMINUS_TEST_RUN_MAIN") != "" {
		main()
	}
	os.Exit(m.Run())
}

// command returns a command that runs plusminus with args in an empty folder.
func command(t *testing.T, args ...string) *exec.Cmd {
	t.Helper()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), exe, args...)
	cmd.Env = append(os.Environ(), "PLUSMINUS_TEST_RUN_MAIN=1")
	cmd.Dir = t.TempDir()
	return cmd
}

// server is a plusminus in this process.
type server struct {
	t     *testing.T
	addrs addresses
	roots *x509.CertPool // whom its visitors trust
	stop  func() error   // ends it and returns what serve returned; more calls do nothing

	// How its visitors connect; nil is directly.
	connect func(ctx context.Context, network, addr string) (net.Conn, error)
}

// start runs plusminus with args on free ports of loopback until the test ends.
func start(t *testing.T, args ...string) *server {
	t.Helper()
	data := t.TempDir()
	args = append([]string{"-data", data, "-admin", "127.0.0.1:0", "-http", "127.0.0.1:0", "-max-clients-per-ip", "0"}, args...)
	noEnv := func(string) (string, bool) { return "", false }
	o := new(options)
	if err := o.flags().Parse(args); err != nil {
		t.Fatal(err)
	}
	if !o.plain && len(o.https) == 0 {
		args = append(args, "-https", "127.0.0.1:0")
	}
	cfg, err := parseConfig(args, noEnv, io.Discard)
	if err != nil {
		t.Fatal(err)
	}
	s := &server{t: t, roots: x509.NewCertPool()}
	ctx, cancel := context.WithCancelCause(context.Background())
	listening := make(chan addresses, 1)
	served := make(chan error, 1)
	log := slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelDebug}))
	go func() { served <- serve(ctx, cfg, log, func(a addresses) { listening <- a }) }()
	select {
	case s.addrs = <-listening:
	case err := <-served:
		t.Fatalf("serve = %v", err)
	}
	stopped := false
	s.stop = func() error {
		if stopped {
			return nil
		}
		stopped = true
		cancel(errors.New("the test is over"))
		return <-served
	}
	t.Cleanup(func() {
		if err := s.stop(); err != nil {
			t.Errorf("serve = %v, want nil after a stop", err)
		}
	})
	if pem, err := os.ReadFile(filepath.Join(cfg.data, "local-ca", "root.pem")); err == nil {
		s.roots.AppendCertsFromPEM(pem)
	}
	return s
}

// client returns an HTTP client that reaches s under any name, trusts its root alone,
// and does not follow redirects.
func (s *server) client() *http.Client {
	return &http.Client{
		Transport: &http.Transport{
			DialContext: func(ctx context.Context, network, addr string) (net.Conn, error) {
				_, port, err := net.SplitHostPort(addr)
				if err != nil {
					return nil, err
				}
				switch {
				case port == "443" && len(s.addrs.HTTPS) > 0:
					addr = s.addrs.HTTPS[0]
				case port == "80":
					addr = s.addrs.HTTP
				}
				if s.connect != nil {
					return s.connect(ctx, network, addr)
				}
				return new(net.Dialer).DialContext(ctx, network, addr)
			},
			TLSClientConfig: &tls.Config{RootCAs: s.roots},
		},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
}

// get returns the response to a GET and its body. host is the Host header, or "" for
// the URL's.
func (s *server) get(url, host string) (*http.Response, string) {
	s.t.Helper()
	req, err := http.NewRequestWithContext(s.t.Context(), http.MethodGet, url, nil)
	if err != nil {
		s.t.Fatal(err)
	}
	req.Host = host
	return s.do(req)
}

// do sends req and returns the response and its body.
func (s *server) do(req *http.Request) (*http.Response, string) {
	s.t.Helper()
	client := s.client()
	defer client.CloseIdleConnections()
	resp, err := client.Do(req)
	if err != nil {
		s.t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		s.t.Fatal(err)
	}
	return resp, string(body)
}

func (s *server) dial(url string, opts websocket.DialOptions) (*websocket.Conn, *http.Response, error) {
	ctx, cancel := context.WithTimeout(s.t.Context(), time.Minute)
	defer cancel()
	opts.HTTPClient = s.client()
	return websocket.Dial(ctx, url, &opts)
}

// join returns a client of the hub.
func (s *server) join(url string) *websocket.Conn {
	s.t.Helper()
	ws, _, err := s.dial(url, websocket.DialOptions{})
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() { ws.CloseNow() })
	return ws
}

// read returns the next message in a form that can be compared.
func read(t *testing.T, ws *websocket.Conn) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	_, data, err := ws.Read(ctx)
	if err != nil {
		t.Fatalf("reading: %v", err)
	}
	return canonical(t, data)
}

func canonical(t *testing.T, data []byte) string {
	t.Helper()
	var m map[string]any
	if err := json.Unmarshal(data, &m); err != nil {
		t.Fatalf("%q: %v", data, err)
	}
	delete(m, "message") // free text
	out, err := json.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	return string(out)
}

func send(t *testing.T, ws *websocket.Conn, text string) {
	t.Helper()
	if err := ws.Write(t.Context(), websocket.MessageText, []byte(text)); err != nil {
		t.Fatal(err)
	}
}

func wantRead(t *testing.T, ws *websocket.Conn, want ...string) {
	t.Helper()
	for _, w := range want {
		if got := read(t, ws); got != w {
			t.Fatalf("received %s, want %s", got, w)
		}
	}
}

const (
	plus  = `{"action":"plus"}`
	minus = `{"action":"minus"}`
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
	s := &server{t: t, roots: x509.NewCertPool()}
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
