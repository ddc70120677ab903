package acme

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"log"
	"log/slog"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"plusminus/acme/internal/acmetest"
	"plusminus/acme/pebbletest"
)

// A recorder is a [slog.Handler] that keeps all entries.
type recorder struct {
	t  testing.TB
	mu sync.Mutex
	// Guarded by mu.
	entries []entry
}

type entry struct {
	level slog.Level
	msg   string
	attrs map[string]string
}

func (e entry) String() string { return fmt.Sprint(e.level, " ", e.msg, " ", e.attrs) }

func (r *recorder) Enabled(context.Context, slog.Level) bool { return true }
func (r *recorder) WithAttrs([]slog.Attr) slog.Handler       { return r }
func (r *recorder) WithGroup(string) slog.Handler            { return r }
func (r *recorder) Handle(_ context.Context, rec slog.Record) error {
	e := entry{rec.Level, rec.Message, make(map[string]string)}
	rec.Attrs(func(a slog.Attr) bool {
		e.attrs[a.Key] = a.Value.String()
		return true
	})
	r.mu.Lock()
	defer r.mu.Unlock()
	r.entries = append(r.entries, e)
	return nil
}

func newLogger(r *recorder) *slog.Logger { return slog.New(r) }

// logged returns the entries whose message contains msg.
func (r *recorder) logged(msg string) []entry {
	r.mu.Lock()
	defer r.mu.Unlock()
	var found []entry
	for _, e := range r.entries {
		if strings.Contains(e.msg, msg) {
			found = append(found, e)
		}
	}
	return found
}

// one returns the only entry whose message contains msg.
func (r *recorder) one(msg string) entry {
	r.t.Helper()
	found := r.logged(msg)
	if len(found) != 1 {
		r.t.Fatalf("logged %q %d times, want once; the log is %v", msg, len(found), r.logged(""))
	}
	return found[0]
}

// A server is a Provider with listeners that accept before Run is called, as in the program.
type server struct {
	*Provider
	log   *recorder
	tls   net.Listener
	plain net.Listener
	run   func() // starts Run
	stop  func() // ends Run and waits for it; the listeners stay
}

// startCA starts a Pebble, and returns it with a Config for a server that uses it.
func startCA(t testing.TB, cfg pebbletest.Config, domains ...string) (*pebbletest.CA, Config) {
	t.Helper()
	ca := pebbletest.Start(t, cfg)
	return ca, configFor(t, ca, t.TempDir(), domains...)
}

// pacePolls makes each poll of an authorization or order take some real time. Pebble validates and issues in real time, and
// fake time stands still while a poll waits. It must be called outside of the bubble.
func pacePolls(t testing.TB, ca *pebbletest.CA) {
	pace := time.NewTicker(5 * time.Millisecond)
	t.Cleanup(pace.Stop)
	for _, path := range []string{pebbletest.OrderPath, pebbletest.AuthorizationPath} {
		ca.Intercept(path, func(w http.ResponseWriter, r *http.Request) {
			<-pace.C
			pebbletest.Forward(w, r)
		})
	}
}

// runInBubble runs a Provider in a synctest bubble, with its data in dir and ca as its CA, without a network. stop ends it.
// Pebble cannot be stopped, so ca must come from outside of the bubble.
func runInBubble(t testing.TB, cfg Config, dir string, ca *pebbletest.CA) (p *Provider, stop func()) {
	t.Helper()
	cfg.Dir = dir
	p, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	p.issuers[0].base.Base, p.locks = ca, memoryLocks{p.locks}
	p.TLSConfig()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() { defer close(done); p.Run(ctx) }()
	return p, func() { cancel(); <-done }
}

func configFor(t testing.TB, ca *pebbletest.CA, dir string, domains ...string) Config {
	cfg := Config{
		Dir:          dir,
		DirectoryURL: ca.DirectoryURL,
		RootCAs:      ca.DirectoryRoots,
		systemRoots:  ca.IssuingRoots,
		random:       func() float64 { return 0 },

		orderInterval: time.Nanosecond,
	}
	for _, d := range domains {
		cfg.Domains = append(cfg.Domains, Domain{Name: d, Local: IsLocal(d) && !isAddress(d)})
	}
	return cfg
}

// serve starts a server on the two listeners and, once they accept, Run.
func serve(t testing.TB, cfg Config, tlsLn, plainLn net.Listener) *server {
	t.Helper()
	s := prepare(t, cfg, tlsLn, plainLn)
	s.run()
	return s
}

// serveLater is serve on new listeners, which no CA knows. The caller calls run.
func serveLater(t testing.TB, cfg Config) *server {
	return prepare(t, cfg, acmetest.Listen(t), acmetest.Listen(t))
}

func prepare(t testing.TB, cfg Config, tlsLn, plainLn net.Listener) *server {
	t.Helper()
	s := &server{log: &recorder{t: t}, tls: tlsLn, plain: plainLn, stop: func() {}}
	cfg.Logger = newLogger(s.log)
	p, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	s.Provider = p

	quiet := log.New(io.Discard, "", 0)
	secure := &http.Server{ErrorLog: quiet, TLSConfig: p.TLSConfig(), Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		io.WriteString(w, "hello")
	})}
	open := &http.Server{ErrorLog: quiet, Handler: p.HTTPHandler(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		io.WriteString(w, "fallback")
	}))}
	var wg sync.WaitGroup
	wg.Go(func() { secure.ServeTLS(tlsLn, "", "") })
	wg.Go(func() { open.Serve(plainLn) })
	t.Cleanup(func() {
		s.stop()
		secure.Close()
		open.Close()
		wg.Wait()
		if t.Failed() {
			for _, e := range s.log.logged("") {
				t.Log(e)
			}
		}
	})
	s.run = func() {
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- p.Run(ctx) }()
		s.stop = sync.OnceFunc(func() {
			cancel()
			select {
			case err := <-done:
				if err != nil {
					t.Errorf("Run = %v, want nil", err)
				}
			case <-time.After(acmetest.Patience):
				t.Errorf("Run did not return within %v after its context was done", acmetest.Patience)
			}
		})
	}
	return s
}

// waitReady waits until every domain has its certificate.
func (s *server) waitReady(t testing.TB) {
	t.Helper()
	defer func() {
		if t.Failed() {
			t.Logf("Complete = %v", s.Complete())
		}
	}()
	acmetest.WaitFor(t, "readiness", func() bool { return s.Complete() == nil })
}

// waitFailure waits until an attempt has failed and its failure is published, which is the last step.
func (s *server) waitFailure(t testing.TB) {
	t.Helper()
	acmetest.WaitFor(t, "failure", func() bool {
		return slices.ContainsFunc(s.Status(), func(st Status) bool { return st.LastError != nil })
	})
}

// dial does a handshake with s.
func (s *server) dial(t testing.TB, cfg *tls.Config) (*tls.Conn, error) {
	t.Helper()
	conn, err := net.Dial("tcp", s.tls.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	conn.SetDeadline(time.Now().Add(acmetest.Patience))
	c := tls.Client(conn, cfg)
	return c, c.Handshake()
}

// leaf returns the certificate that a visitor gets for name. The visitor trusts only roots.
func (s *server) leaf(t testing.TB, name string, roots *x509.CertPool) *x509.Certificate {
	t.Helper()
	c, err := s.dial(t, &tls.Config{ServerName: name, RootCAs: roots})
	if err != nil {
		t.Fatalf("handshake for %s: %v", name, err)
	}
	defer c.Close()
	return c.ConnectionState().PeerCertificates[0]
}

// status returns the status of the domain.
func (s *server) status(t testing.TB, domain string) Status {
	t.Helper()
	all := s.Status()
	i := slices.IndexFunc(all, func(st Status) bool { return st.Domain == domain })
	if i < 0 {
		t.Fatalf("Status has no %s: %v", domain, all)
	}
	return all[i]
}
