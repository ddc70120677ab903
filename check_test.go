package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"

	"github.com/miekg/dns"

	"plusminus/acme/pebbletest"
)

// A checkWorld is what a check sees of the world: names at 127.0.0.1, whose ports 80 and 443 lead to
// a server of the test, and a CA. Nothing else is reached.
type checkWorld struct {
	t    *testing.T
	ca   *pebbletest.CA
	root string // file that trusts ca

	mu sync.Mutex
	// Guarded by mu while a check runs.
	records []string          // of the DNS
	routes  map[string]string // address -> address
}

func newCheckWorld(t *testing.T) *checkWorld {
	t.Helper()
	w := &checkWorld{t: t, ca: pebbletest.Start(t, pebbletest.Config{}), root: filepath.Join(t.TempDir(), "root.pem")}
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

func (w *checkWorld) dial(ctx context.Context, network, address string) (net.Conn, error) {
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

// check runs the command and returns what it printed.
func (w *checkWorld) check(args ...string) (string, error) {
	w.t.Helper()
	noEnv := func(string) (string, bool) { return "", false }
	args = append([]string{"-domain", "counter.example", "-acme-directory", w.ca.DirectoryURL, "-acme-ca-root", w.root, "-admin", "off"}, args...)
	cfg, err := parseConfig(args, noEnv, io.Discard)
	if err != nil {
		w.t.Fatal(err)
	}
	var out bytes.Buffer
	err = check(w.t.Context(), cfg, &out, goodMachine, w.dial)
	w.t.Logf("plusminus check %q:\n%s", args, out.String())
	if n := w.ca.Orders(); n != 0 {
		w.t.Errorf("%d orders were placed", n)
	}
	return out.String(), err
}

// Without a server the check answers itself.
func TestCheckAlone(t *testing.T) {
	w := newCheckWorld(t)
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
		t.Errorf("unexpected form of the output")
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
	if !errors.Is(err, errProblems) {
		t.Errorf("check = %v without an address, want errProblems", err)
	}
	if !strings.Contains(out, "  problem  address: ") || !strings.Contains(out, "\n1 problem, ") {
		t.Errorf("the problem is not told")
	}
	if entries, err := os.ReadDir(data); err != nil || len(entries) > 0 {
		t.Errorf("left behind: %v, %v", entries, err)
	}
}

// A server that runs on the same data folder has the ports, and answers.
func TestCheckBesideServer(t *testing.T) {
	w := newCheckWorld(t)
	data := t.TempDir()
	// It has nowhere to order from, so that it orders nothing.
	s := start(t, "-data", data, "-domain", "counter.example", "-acme-directory", "https://127.0.0.1:1/", "-acme-ca-root", w.root)
	w.routes["127.0.0.1:80"], w.routes["127.0.0.1:443"] = s.addrs.HTTP, s.addrs.HTTPS[0]
	w.routes[s.addrs.HTTP], w.routes[s.addrs.HTTPS[0]] = s.addrs.HTTP, s.addrs.HTTPS[0]
	args := []string{"-data", data, "-http", s.addrs.HTTP, "-https", s.addrs.HTTPS[0]}
	out, err := w.check(append(args, "-admin", s.addrs.Admin)...)
	if err != nil {
		t.Errorf("check = %v", err)
	}
	for _, want := range []string{
		"ok       listener: -http " + s.addrs.HTTP + " is in use, and a plusminus runs here",
		"ok       port 80: the plusminus that runs here answers",
		"ok       port 443: the plusminus that runs here answers",
		"ok       challenges: the CA would get its answer by http-01 and by tls-alpn-01",
	} {
		if !strings.Contains(out, want) {
			t.Errorf("no %q in the output", want)
		}
	}
	out, _ = w.check(args...)
	if want := "warning  listener: -http " + s.addrs.HTTP + " is in use: if that is not a plusminus"; !strings.Contains(out, want) {
		t.Errorf("no %q in the output", want)
	}

	other := t.TempDir()
	out, err = w.check("-data", other, "-http", s.addrs.HTTP, "-https", s.addrs.HTTPS[0])
	if want := "problem  port 80: another program has " + s.addrs.HTTP; !strings.Contains(out, want) || !errors.Is(err, errProblems) {
		t.Errorf("no %q in the output, or check = %v", want, err)
	}
}

// What needs no network.
func TestCheckWithoutACME(t *testing.T) {
	noEnv := func(string) (string, bool) { return "", false }
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
	}
	for _, test := range tests {
		cfg, err := parseConfig(append(test.args, "-data", data, "-admin", "off"), noEnv, io.Discard)
		if err != nil {
			t.Fatal(err)
		}
		var out bytes.Buffer
		if err := check(t.Context(), cfg, &out, goodMachine, noDial); errors.Is(err, errProblems) != test.problems || !test.problems && err != nil {
			t.Errorf("check %q = %v", test.args, err)
		}
		for _, want := range test.want {
			if !strings.Contains(out.String(), want) {
				t.Errorf("check %q printed no %q:\n%s", test.args, want, out.String())
			}
		}
	}
	if _, err := os.Stat(data); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the data folder was made: %v", err)
	}
}

func TestCheckInterrupted(t *testing.T) {
	w := newCheckWorld(t)
	ctx, cancel := context.WithCancel(t.Context())
	noEnv := func(string) (string, bool) { return "", false }
	cfg, err := parseConfig([]string{"-domain", "counter.example", "-data", t.TempDir(), "-http", "127.0.0.1:0", "-https", "127.0.0.1:0", "-admin", "off",
		"-acme-directory", w.ca.DirectoryURL, "-acme-ca-root", w.root}, noEnv, io.Discard)
	if err != nil {
		t.Fatal(err)
	}
	err = check(ctx, cfg, io.Discard, goodMachine, func(ctx context.Context, _, _ string) (net.Conn, error) {
		cancel()
		<-ctx.Done()
		return nil, ctx.Err()
	})
	if err == nil || errors.Is(err, errProblems) || !strings.Contains(err.Error(), "stopped before its end") {
		t.Errorf("check = %v after an interruption", err)
	}
}

// The exit status, as a shell sees it.
func TestCheckExitStatus(t *testing.T) {
	local := []string{"-data", "d", "-http", "127.0.0.1:0", "-https", "127.0.0.1:0", "-admin", "off"}
	for _, test := range []struct {
		args   []string
		status int
		stdout string
		stderr string
	}{
		{local, 0, "no problems, ", ""},
		{append(local, "-cert", "a.pem", "-key", "b.pem"), 1, "\n1 problem, ", ""},
		{[]string{"-domian", "x"}, 2, "", "flag provided but not defined"},
		{[]string{"extra"}, 2, "", "unexpected argument"},
		{[]string{"-h"}, 0, "plusminus check [flags]", ""},
	} {
		cmd := command(t, append([]string{"check"}, test.args...)...)
		var stdout, stderr bytes.Buffer
		cmd.Stdout, cmd.Stderr = &stdout, &stderr
		err := cmd.Run()
		if got := exitStatus(err); got != test.status {
			t.Errorf("plusminus check %q: exit status %d, want %d", test.args, got, test.status)
		}
		if !strings.Contains(stdout.String(), test.stdout) || !strings.Contains(stderr.String(), test.stderr) || test.stderr == "" && stderr.Len() > 0 {
			t.Errorf("plusminus check %q printed %q and, as errors, %q", test.args, stdout.String(), stderr.String())
		}
	}
}
