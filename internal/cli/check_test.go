package cli

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"

	"github.com/miekg/dns"

	"plusminus/acme/pebbletest"
	"plusminus/internal/config"
	"plusminus/internal/ingress"
	"plusminus/internal/server"
)

// fakeNetwork is the network that a check sees: a DNS server, routes for names at 127.0.0.1, and a CA. A check can reach
// no other address.
type fakeNetwork struct {
	t    *testing.T
	ca   *pebbletest.CA
	root string // file with the root certificate of ca

	mu sync.Mutex
	// Guarded by mu while a check runs.
	records []string          // of the DNS server
	routes  map[string]string // the dialed address -> the true address
}

// newFakeNetwork starts the DNS server and the CA. They end with the test.
func newFakeNetwork(t *testing.T) *fakeNetwork {
	t.Helper()
	w := &fakeNetwork{t: t, ca: pebbletest.Start(t, pebbletest.Config{}), root: filepath.Join(t.TempDir(), "root.pem")}
	if err := os.WriteFile(w.root, w.ca.DirectoryRootPEM, 0o600); err != nil {
		t.Fatal(err)
	}
	pc, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	started := make(chan struct{})
	server := &dns.Server{PacketConn: pc, NotifyStartedFunc: func() { close(started) }, Handler: dns.HandlerFunc(func(rw dns.ResponseWriter, q *dns.Msg) {
		m := new(dns.Msg).SetReply(q)
		m.Rcode = dns.RcodeNameError
		w.mu.Lock()
		defer w.mu.Unlock()
		for _, text := range w.records {
			if rr, err := dns.NewRR(text); err == nil && rr.Header().Name == q.Question[0].Name {
				m.Rcode = dns.RcodeSuccess
				if rr.Header().Rrtype == q.Question[0].Qtype {
					m.Answer = append(m.Answer, rr)
				}
			}
		}
		rw.WriteMsg(m)
	})}
	var wg sync.WaitGroup
	wg.Go(func() { server.ActivateAndServe() })
	<-started
	t.Cleanup(func() { server.ShutdownContext(context.Background()); wg.Wait() })
	address := strings.TrimSuffix(strings.TrimPrefix(w.ca.DirectoryURL, "https://"), pebbletest.DirectoryPath)
	w.routes = map[string]string{"dns": pc.LocalAddr().String(), address: address}
	w.records = []string{"counter.example. A 127.0.0.1"}
	return w
}

// dial connects by the routes.
func (w *fakeNetwork) dial(ctx context.Context, network, address string) (net.Conn, error) {
	if network == "udp" {
		address = "dns"
	}
	w.mu.Lock()
	to, ok := w.routes[address]
	w.mu.Unlock()
	if !ok {
		return nil, fmt.Errorf("no route to %s", address)
	}
	return new(net.Dialer).DialContext(ctx, network, to)
}

// check runs plusminus check and returns its output.
func (w *fakeNetwork) check(args ...string) (string, error) {
	w.t.Helper()
	args = append([]string{"-domain", "counter.example", "-acme-directory", w.ca.DirectoryURL, "-acme-ca-root", w.root, "-admin", "off"}, args...)
	cfg, err := config.Parse(args, noEnvironment, io.Discard)
	if err != nil {
		w.t.Fatal(err)
	}
	var out bytes.Buffer
	err = checkAll(w.t.Context(), cfg, &out, goodMachine, w.dial)
	w.t.Logf("plusminus check %q:\n%s", args, out.String())
	if n := w.ca.Orders(); n != 0 {
		w.t.Errorf("orders = %d, want 0", n)
	}
	return out.String(), err
}

// noEnvironment is an environment without variables.
func noEnvironment(string) (string, bool) { return "", false }

// freeAddr returns a loopback address with a free port.
func freeAddr(t *testing.T) string {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	return ln.Addr().String()
}

// serve runs a server with args until the test ends, and returns its addresses.
func (w *fakeNetwork) serve(args ...string) ingress.Addresses {
	w.t.Helper()
	args = append(args, "-http", "127.0.0.1:0", "-https", "127.0.0.1:0", "-admin", "127.0.0.1:0")
	cfg, err := config.Parse(args, noEnvironment, io.Discard)
	if err != nil {
		w.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	srv, err := server.New(ctx, cfg, server.Options{Version: "test", Log: slog.New(slog.NewTextHandler(w.t.Output(), nil))})
	if err != nil {
		w.t.Fatal(err)
	}
	var running sync.WaitGroup
	running.Go(func() { srv.Run(ctx) })
	w.t.Cleanup(func() { cancel(); running.Wait() })
	return srv.Addresses()
}

// TestCheckAlone runs the check without a server: the check itself answers on the ports.
func TestCheckAlone(t *testing.T) {
	w := newFakeNetwork(t)
	http, https := freeAddr(t), freeAddr(t)
	w.routes["127.0.0.1:80"], w.routes["127.0.0.1:443"] = http, https
	data := t.TempDir()
	if err := os.Chmod(data, 0o700); err != nil {
		t.Fatal(err)
	}
	args := []string{"-data", data, "-http", http, "-https", https}
	out, err := w.check(args...)
	if err != nil {
		t.Errorf("check = %v", err)
	}
	lines := regexp.MustCompile(`(?s)^this machine and the CA\n(  (ok|warning) +[^\n]+\n)+counter\.example\n(  ok +[^\n]+\n)+\nno problems, (no warnings: plusminus can be|1 warning: read the warnings before plusminus is) started\.\n$`)
	if !lines.MatchString(out) {
		t.Errorf("the output does not match %s", lines)
	}
	for _, want := range []string{"ok       address: 127.0.0.1", "ok       port 80: ", "ok       port 443: ", "ok       challenges: "} {
		if !strings.Contains(out, want) {
			t.Errorf("no %q in the output", want)
		}
	}
	w.mu.Lock()
	w.records = nil
	w.mu.Unlock()
	out, err = w.check(args...)
	if !errors.Is(err, ErrProblems) {
		t.Errorf("check = %v without an address, want ErrProblems", err)
	}
	if !strings.Contains(out, "  problem  address: ") || !strings.Contains(out, "\n1 problem, ") {
		t.Errorf("the output names no problem of the address, want one")
	}
	if entries, err := os.ReadDir(data); err != nil || len(entries) > 0 {
		t.Errorf("files in the data folder after the check: %v, %v, want none", entries, err)
	}
}

// TestCheckBesideServer runs the check while a server uses the same data folder and the ports: the server answers.
func TestCheckBesideServer(t *testing.T) {
	w := newFakeNetwork(t)
	data := t.TempDir()
	// The CA of the server does not exist, so the server orders nothing.
	addrs := w.serve("-data", data, "-domain", "counter.example", "-acme-directory", "https://127.0.0.1:1/", "-acme-ca-root", w.root)
	w.routes["127.0.0.1:80"], w.routes["127.0.0.1:443"] = addrs.HTTP, addrs.HTTPS[0]
	w.routes[addrs.HTTP], w.routes[addrs.HTTPS[0]] = addrs.HTTP, addrs.HTTPS[0]
	args := []string{"-data", data, "-http", addrs.HTTP, "-https", addrs.HTTPS[0]}
	out, err := w.check(append(args, "-admin", addrs.Admin)...)
	if err != nil {
		t.Errorf("check = %v", err)
	}
	for _, want := range []string{
		"ok       listener: -http " + addrs.HTTP + " is in use, and a plusminus runs here",
		"ok       port 80: the plusminus that runs here answers",
		"ok       port 443: the plusminus that runs here answers",
		"ok       challenges: the CA would get its answer by http-01 and by tls-alpn-01",
	} {
		if !strings.Contains(out, want) {
			t.Errorf("no %q in the output", want)
		}
	}
	out, _ = w.check(args...)
	if want := "warning  listener: -http " + addrs.HTTP + " is in use: if that is not a plusminus"; !strings.Contains(out, want) {
		t.Errorf("no %q in the output", want)
	}

	other := t.TempDir()
	out, err = w.check("-data", other, "-http", addrs.HTTP, "-https", addrs.HTTPS[0])
	if want := "problem  port 80: another program has " + addrs.HTTP; !strings.Contains(out, want) || !errors.Is(err, ErrProblems) {
		t.Errorf("no %q in the output, or check = %v", want, err)
	}
}

// TestCheckWithoutACME checks settings without a domain for a CA: the check makes no connection.
func TestCheckWithoutACME(t *testing.T) {
	noDial := func(_ context.Context, network, address string) (net.Conn, error) {
		t.Errorf("connection to %s", address)
		return nil, errors.New("not in this test")
	}
	data := filepath.Join(t.TempDir(), "data")
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	tests := []struct {
		args     []string
		want     []string
		problems bool
	}{
		{[]string{"-http", "127.0.0.1:0", "-https", "127.0.0.1:0"}, []string{"ok       data folder: ", "localhost\n  ok       certificate: "}, false},
		{[]string{"-plain", "-http", "127.0.0.1:0"}, []string{"ok       certificates: none with -plain", "ok       data folder: "}, false},
		{[]string{"-plain", "-http", taken.Addr().String(), "-store", "memory"}, []string{"warning  listener: -http " + taken.Addr().String() + " is in use"}, false},
		{[]string{"-http", "192.0.2.1:8080", "-https", "127.0.0.1:0"}, []string{"problem  listener: -http: listen tcp 192.0.2.1:8080"}, true},
		{[]string{"-cert", "/nowhere/cert.pem", "-key", "/nowhere/key.pem", "-http", "127.0.0.1:0", "-https", "127.0.0.1:0"},
			[]string{"problem  certificate file: reading certificate: open /nowhere/cert.pem"}, true},
		{[]string{"-export", data, "-export-group", "no-such-group", "-http", "127.0.0.1:0", "-https", "127.0.0.1:0"}, []string{`problem  export: there is no group "no-such-group" here`}, true},
	}
	for _, test := range tests {
		cfg, err := config.Parse(append(test.args, "-data", data, "-admin", "off"), noEnvironment, io.Discard)
		if err != nil {
			t.Fatal(err)
		}
		var out bytes.Buffer
		if err := checkAll(t.Context(), cfg, &out, goodMachine, noDial); errors.Is(err, ErrProblems) != test.problems || !test.problems && err != nil {
			t.Errorf("check %q = %v", test.args, err)
		}
		for _, want := range test.want {
			if !strings.Contains(out.String(), want) {
				t.Errorf("check %q printed no %q:\n%s", test.args, want, out.String())
			}
		}
	}
	if _, err := os.Stat(data); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("Stat of the data folder = %v, want that it does not exist", err)
	}
}

// TestCheckInterrupted cancels a check. It returns an error other than ErrProblems.
func TestCheckInterrupted(t *testing.T) {
	w := newFakeNetwork(t)
	ctx, cancel := context.WithCancel(t.Context())
	cfg, err := config.Parse([]string{"-domain", "counter.example", "-data", t.TempDir(), "-http", "127.0.0.1:0", "-https", "127.0.0.1:0", "-admin", "off",
		"-acme-directory", w.ca.DirectoryURL, "-acme-ca-root", w.root}, noEnvironment, io.Discard)
	if err != nil {
		t.Fatal(err)
	}
	err = checkAll(ctx, cfg, io.Discard, goodMachine, func(ctx context.Context, _, _ string) (net.Conn, error) {
		cancel()
		<-ctx.Done()
		return nil, ctx.Err()
	})
	if err == nil || errors.Is(err, ErrProblems) || !strings.Contains(err.Error(), "stopped before its end") {
		t.Errorf("check = %v after an interruption, want stopped before its end", err)
	}
}
