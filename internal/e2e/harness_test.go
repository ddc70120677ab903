// Package e2e tests the whole program, in the ways in which clients, browsers, proxies, CAs and operators use it.
// It has tests only.
//
// The tests run in parallel, with the top of the repository as their working folder. Each test makes its own server:
//
//   - start runs a server in this process, on free ports of loopback. Most tests use it.
//   - command runs the program, which the tests build once. process and fakeSystemd use it for a server that a test
//     kills, restarts, limits or signals.
//
// The peers are real where they can be: Chromium (page_test.go and others, one process for all tests), Firefox, curl,
// Node, Python, nginx, Caddy, HAProxy, Prometheus, Redis and OpenSSL. A test skips, and names the program, where a
// peer is not installed. The CA is Pebble, in this process (acme/pebbletest).
// forwarder and blackHole are proxies that a test controls; serveTo is a server that misbehaves as a test wants.
//
// Long trials have a short form by default. The flag -long runs them in full, as CI does:
//
//	go test ./internal/e2e -args -long
package e2e

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"sync"
	"testing"
	"time"

	"plusminus/internal/config"
	"plusminus/internal/ingress"
	"plusminus/internal/server"

	"github.com/coder/websocket"
)

// TestMain makes a folder for the program and changes to the top of the repository, where the tests run.
func TestMain(m *testing.M) {
	flag.Parse()
	allowParallel()
	os.Exit(func() int {
		dir, err := os.MkdirTemp("", "plusminus-e2e-*")
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		defer os.RemoveAll(dir)
		program = filepath.Join(dir, "plusminus")
		if err := os.Chdir(root); err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		defer func() { stopChromium() }()
		return m.Run()
	}())
}

// allowParallel sets how many tests run at once, unless -parallel says so: two for each processor, because the
// tests mostly wait for other processes.
func allowParallel() {
	given := false
	flag.Visit(func(f *flag.Flag) { given = given || f.Name == "test.parallel" })
	if !given {
		flag.Set("test.parallel", strconv.Itoa(2*runtime.GOMAXPROCS(0)))
	}
}

// root is the top of the repository. Tests read README, docs and deploy there.
const root = "../.."

var (
	// long is the flag -long.
	long = flag.Bool("long", false, "run the full form of each long trial, as CI does")

	// program is the path of the built program. It exists when build has returned nil.
	program string

	// build builds the program once, with the race detector if the tests have it.
	build = sync.OnceValue(func() error {
		args := []string{"build", "-ldflags=-w", "-o", program} // -w: no debug information, which links faster
		if raceEnabled {
			args = append(args, "-race")
		}
		if out, err := exec.Command("go", append(args, ".")...).CombinedOutput(); err != nil {
			return fmt.Errorf("go build: %w\n%s", err, out)
		}
		return nil
	})
)

// command returns a command that runs the program with args in an empty folder. The process ends with the test.
func command(t *testing.T, args ...string) *exec.Cmd {
	t.Helper()
	if err := build(); err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), program, args...)
	cmd.Env = os.Environ()
	cmd.Dir = t.TempDir()
	return cmd
}

// plusminus is a server and what its peers need to reach it.
type plusminus struct {
	t     *testing.T
	addrs ingress.Addresses // where the server listens
	roots *x509.CertPool    // CAs that the peers trust
	stop  func() error      // stops the server and returns the error of Run; later calls do nothing

	// connect opens the connections of the peers. nil means a [net.Dialer].
	connect func(ctx context.Context, network, addr string) (net.Conn, error)
}

// noEnvironment is an environment without variables.
func noEnvironment(string) (string, bool) { return "", false }

// start runs plusminus in this process, with args, on free ports of loopback until the test ends.
func start(t *testing.T, args ...string) *plusminus {
	t.Helper()
	args = append([]string{"-data", t.TempDir(), "-admin", "127.0.0.1:0", "-http", "127.0.0.1:0", "-max-clients-per-ip", "0"}, args...)
	if !slices.Contains(args, "-plain") && !slices.Contains(args, "-https") {
		args = append(args, "-https", "127.0.0.1:0")
	}
	cfg, err := config.Parse(args, noEnvironment, io.Discard)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancelCause(context.Background())
	log := slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelDebug}))
	srv, err := server.New(ctx, cfg, server.Options{Version: "e2e", Log: log})
	if err != nil {
		t.Fatalf("New = %v", err)
	}
	served := make(chan error, 1)
	go func() { served <- srv.Run(ctx) }()
	s := &plusminus{t: t, addrs: srv.Addresses(), roots: x509.NewCertPool()}
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
			t.Errorf("Run = %v, want nil after a stop", err)
		}
	})
	if pem, err := os.ReadFile(filepath.Join(cfg.Data, "local-ca", "root.pem")); err == nil {
		s.roots.AppendCertsFromPEM(pem)
	}
	return s
}

// client returns an HTTP client that reaches s under any name, trusts s.roots only, and follows no redirects.
func (s *plusminus) client() *http.Client {
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

// get returns the response to a GET, and its body. If host is not empty it replaces the URL's host in the header.
func (s *plusminus) get(url, host string) (*http.Response, string) {
	s.t.Helper()
	req, err := http.NewRequestWithContext(s.t.Context(), http.MethodGet, url, nil)
	if err != nil {
		s.t.Fatal(err)
	}
	req.Host = host
	return s.do(req)
}

// do sends req and returns the response and its body.
func (s *plusminus) do(req *http.Request) (*http.Response, string) {
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

// dial opens a WebSocket. The response tells why the server refused one.
func (s *plusminus) dial(url string, opts websocket.DialOptions) (*websocket.Conn, *http.Response, error) {
	ctx, cancel := context.WithTimeout(s.t.Context(), time.Minute)
	defer cancel()
	opts.HTTPClient = s.client()
	return websocket.Dial(ctx, url, &opts)
}

// join connects a client to the hub. The client leaves when the test ends.
func (s *plusminus) join(url string) *websocket.Conn {
	s.t.Helper()
	ws, _, err := s.dial(url, websocket.DialOptions{})
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() { ws.CloseNow() })
	return ws
}

// waitUntil waits until ok reports true, at most for two minutes.
func waitUntil(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(2 * time.Minute); !ok(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("waited two minutes for %s", what)
		}
	}
}

// read returns the next message in its canonical form.
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

// canonical returns a message with sorted keys and without the text for people, so that tests can compare it.
func canonical(t *testing.T, data []byte) string {
	t.Helper()
	var m map[string]any
	if err := json.Unmarshal(data, &m); err != nil {
		t.Fatalf("%q: %v", data, err)
	}
	delete(m, "message")
	out, err := json.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	return string(out)
}

// send sends a text message.
func send(t *testing.T, ws *websocket.Conn, text string) {
	t.Helper()
	if err := ws.Write(t.Context(), websocket.MessageText, []byte(text)); err != nil {
		t.Fatal(err)
	}
}

// wantRead reads one message for each of want, and compares them in their canonical form.
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

// waitReady waits until /readyz answers 200.
func (s *plusminus) waitReady() {
	s.t.Helper()
	waitUntil(s.t, "GET /readyz = 200", func() bool {
		resp, _ := s.get("http://"+s.addrs.Admin+"/readyz", "")
		return resp.StatusCode == http.StatusOK
	})
}

// trustLocalCA makes the peers trust the local CA of a data folder, and no other CA.
func (s *plusminus) trustLocalCA(data string) {
	s.t.Helper()
	pem, err := os.ReadFile(filepath.Join(data, "local-ca", "root.pem"))
	if err != nil {
		s.t.Fatal(err)
	}
	s.roots = x509.NewCertPool()
	s.roots.AppendCertsFromPEM(pem)
}
