package e2e

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
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
	"time"

	"github.com/coder/websocket"
)

// TestSecondSignal checks that a second SIGTERM ends a process that is stopping at once.
func TestSecondSignal(t *testing.T) {
	t.Parallel()
	s := newFakeSystemd(t, []string{"https", "admin"}, "-http", "off", "-drain", "1m", "-log-format", "text")
	s.start()
	if _, body := s.get("http://"+s.addrs.Admin+"/readyz", ""); body != "ready\n" {
		t.Fatalf("GET /readyz = %q", body)
	}
	silent, err := net.Dial("tcp", s.addrs.HTTPS[0]) // sends nothing, so the stop waits for it
	if err != nil {
		t.Fatal(err)
	}
	defer silent.Close()
	waitUntil(t, "plusminus_arrivals to be 1", func() bool { return s.metric("plusminus_arrivals") == "1" })
	if err := s.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(time.Millisecond) {
		resp, body := s.get("http://"+s.addrs.Admin+"/readyz", "")
		if resp.StatusCode == http.StatusServiceUnavailable && body == "not ready: stopping\n" {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("GET /readyz after SIGTERM = %s %q, want 503 and stopping", resp.Status, body)
		}
	}
	if err := s.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if err := s.cmd.Wait(); err == nil || err.Error() != "signal: terminated" {
		t.Errorf("after a second signal: %v, want signal: terminated", err)
	}
	if strings.Contains(s.output.String(), "msg=stopped") {
		t.Error("the log says that the process stopped in order, want an end at once")
	}
}

// TestRestart checks that the next process has the value, and that two processes cannot use one data folder.
func TestRestart(t *testing.T) {
	t.Parallel()
	data := t.TempDir()
	s := start(t, "-data", data)
	ws := s.join("wss://localhost/")
	wantRead(t, ws, `{"count":1,"type":"users"}`, `{"type":"state","value":0}`)
	send(t, ws, plus)
	send(t, ws, plus)
	wantRead(t, ws, `{"type":"state","value":1}`, `{"type":"state","value":2}`)

	out, err := command(t, "-data", data, "-https", "127.0.0.1:0", "-http", "off", "-admin", "off").CombinedOutput()
	if exitStatus(err) != 1 || !strings.Contains(string(out), "in use by another process") {
		t.Errorf("second process on the data folder: %v, %q, want exit status 1 and the reason", err, out)
	}

	ws.CloseNow()
	if err := s.stop(); err != nil {
		t.Fatal(err)
	}
	ws = start(t, "-data", data).join("wss://localhost/")
	wantRead(t, ws, `{"count":1,"type":"users"}`, `{"type":"state","value":2}`)
}

// exitStatus returns the exit status of a command, or -1 if it did not exit by itself.
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

// TestProcess checks the stop of a process: SIGTERM, 1012 to clients, exit status 0.
func TestProcess(t *testing.T) {
	t.Parallel()
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
		t.Errorf("Read = %v, want status code 1012", err)
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

// TestExitStatus compares exit status and output of command lines that end by themselves.
func TestExitStatus(t *testing.T) {
	t.Parallel()
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

// TestHangup checks that SIGHUP makes the process read its certificate files again, and does not end it.
func TestHangup(t *testing.T) {
	t.Parallel()
	dir, roots := t.TempDir(), x509.NewCertPool()
	cert, key := filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem")
	roots.AddCert(writePair(t, cert, key))
	s := newFakeSystemd(t, []string{"https", "admin"}, "-http", "off", "-domain", "counter.test", "-cert", cert, "-key", key)
	s.start()
	s.roots = roots
	before := s.serial("counter.test")
	if resp, body := s.post("http://"+s.addrs.Admin+"/renew", nil); resp.StatusCode != 409 || !strings.Contains(body, "comes from files") {
		t.Errorf("POST /renew with -cert = %s %q, want 409 and why", resp.Status, body)
	}
	roots.AddCert(writePair(t, cert, key))
	if err := s.cmd.Process.Signal(syscall.SIGHUP); err != nil {
		t.Fatal(err)
	}
	waitUntil(t, "the server to serve the new certificate", func() bool { return s.serial("counter.test") != before })
}

// writePair writes a new self-signed certificate for counter.test and its key to two files, and returns the certificate.
func writePair(t *testing.T, certFile, keyFile string) *x509.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{DNSNames: []string{"counter.test"}, NotBefore: time.Now(), NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	keyDER, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	for file, block := range map[string]*pem.Block{
		certFile: {Type: "CERTIFICATE", Bytes: der},
		keyFile:  {Type: "EC PRIVATE KEY", Bytes: keyDER},
	} {
		if err := os.WriteFile(file, pem.EncodeToMemory(block), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return leaf
}
