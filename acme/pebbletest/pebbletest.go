// Package pebbletest runs a real ACME CA, Let's Encrypt's Pebble, inside a test.
//
// It is for tests of this module, those of the whole program included, which is why it is not under
// internal.
package pebbletest

import (
	"context"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/letsencrypt/pebble/v2/ca"
	"github.com/letsencrypt/pebble/v2/db"
	"github.com/letsencrypt/pebble/v2/va"
	"github.com/letsencrypt/pebble/v2/wfe"
	"github.com/miekg/dns"
)

// Paths of Pebble's resources, for [CA.Intercept]. They differ from Boulder's on purpose, so that a
// client cannot do without the directory.
const (
	DirectoryPath  = wfe.DirectoryPath
	NewNoncePath   = "/nonce-plz"
	NewAccountPath = "/sign-me-up"
	NewOrderPath   = "/order-plz"
	ChallengePath  = "/chalZ/"          // and more
	FinalizePath   = "/finalize-order/" // and more
)

// Config says what CA to start. The zero value works, but finds no server to validate.
type Config struct {
	// HTTPPort and TLSPort are where the CA looks for http-01 and tls-alpn-01 answers, in place of 80
	// and 443. 0 is a port at which nobody answers.
	HTTPPort, TLSPort int

	// Profiles are the certificate profiles and their lifetimes, which may be seconds. Nil is one
	// profile, "default", of 90 days. With several, an order that names none gets any of them.
	Profiles map[string]time.Duration

	// EABKeys are key ids and base64url keys for external account binding, which is then required.
	EABKeys map[string]string
}

// A CA is a running Pebble. Its methods are safe for concurrent use.
type CA struct {
	// DirectoryURL is the URL of the ACME directory.
	DirectoryURL string

	// DirectoryRoots trusts the TLS certificate of the directory itself.
	DirectoryRoots *x509.CertPool

	// DirectoryRootPEM is the same, as a file would hold it.
	DirectoryRootPEM []byte

	// IssuingRoots trusts what the CA issues, as a browser's store would.
	IssuingRoots *x509.CertPool

	server      *httptest.Server
	orders      atomic.Int64
	mu          sync.Mutex
	intercepted map[string]http.HandlerFunc
}

func init() {
	// Pebble takes these from the environment when it is made. Set here, they leave tests free to run
	// in parallel, which [testing.T.Setenv] would not.
	os.Setenv("PEBBLE_VA_NOSLEEP", "1")      // else a validation takes up to 5 s
	os.Setenv("PEBBLE_AUTHZREUSE", "0")      // else half of the orders need no validation; 1 in 100 still does not
	os.Setenv("PEBBLE_WFE_NONCEREJECT", "0") // else 1 in 20 requests is sent twice, orders included
}

// Start starts a CA that finds every name at 127.0.0.1, and stops it when the test ends.
func Start(t testing.TB, cfg Config) *CA {
	t.Helper()
	if cfg.Profiles == nil {
		cfg.Profiles = map[string]time.Duration{"default": 90 * 24 * time.Hour}
	}
	profiles := make(map[string]ca.Profile)
	for name, life := range cfg.Profiles {
		profiles[name] = ca.Profile{Description: name, ValidityPeriod: uint64(life / time.Second)}
	}
	logger := log.New(io.Discard, "", 0)
	store := db.NewMemoryStore()
	for id, key := range cfg.EABKeys {
		if err := store.AddExternalAccountKeyByID(id, key); err != nil {
			t.Fatal(err)
		}
	}
	issuer := ca.New(logger, store, "", "ecdsa", 0, 1, profiles)
	validator := va.New(logger, port(cfg.HTTPPort), port(cfg.TLSPort), false, startDNS(t), store)
	frontend := wfe.New(logger, store, validator, issuer, []string{"pebble"}, false, len(cfg.EABKeys) > 0, 0, 0)

	c := &CA{
		DirectoryRoots: x509.NewCertPool(),
		IssuingRoots:   x509.NewCertPool(),
		intercepted:    make(map[string]http.HandlerFunc),
	}
	handler := frontend.Handler()
	c.server = httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == NewOrderPath {
			c.orders.Add(1)
		}
		if f := c.interceptor(r.URL.Path); f != nil {
			f(w, r)
			return
		}
		handler.ServeHTTP(w, r)
	}))
	c.server.Config.ErrorLog = logger
	c.server.StartTLS() // Pebble insists on https URLs in signed requests
	t.Cleanup(c.Stop)

	c.DirectoryURL = c.server.URL + DirectoryPath
	c.DirectoryRoots.AddCert(c.server.Certificate())
	c.DirectoryRootPEM = pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.server.Certificate().Raw})
	block, _ := pem.Decode(issuer.GetRootCert(0).PEM())
	root, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	c.IssuingRoots.AddCert(root)
	return c
}

// Stop ends the CA before the test does: from then on connections to it are refused. It may be called
// more than once.
func (c *CA) Stop() {
	c.server.CloseClientConnections()
	c.server.Close()
}

// Orders returns how many newOrder requests came in so far, those that were intercepted included.
func (c *CA) Orders() int { return int(c.orders.Load()) }

// Intercept has f answer requests to path from now on, in place of Pebble; nil hands them back. A path
// that ends in a slash stands for all that begin with it.
func (c *CA) Intercept(path string, f http.HandlerFunc) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.intercepted[path] = f
}

func (c *CA) interceptor(path string) http.HandlerFunc {
	c.mu.Lock()
	defer c.mu.Unlock()
	if f := c.intercepted[path]; f != nil {
		return f
	}
	return c.intercepted[path[:strings.LastIndexByte(path, '/')+1]]
}

// Problem returns a handler that refuses every request with a problem document. kind is the error type
// without its prefix; retryAfter is the header's value, which an empty string leaves out.
func Problem(status int, kind, detail, retryAfter string) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/problem+json")
		if retryAfter != "" {
			w.Header().Set("Retry-After", retryAfter)
		}
		w.WriteHeader(status)
		json.NewEncoder(w).Encode(map[string]any{
			"type": "urn:ietf:params:acme:error:" + kind, "detail": detail, "status": status,
		})
	}
}

// port returns p, or port 1 if p is 0: nobody listens there, and nobody without privileges can.
func port(p int) int {
	if p == 0 {
		return 1
	}
	return p
}

// startDNS starts a name server that says 127.0.0.1 whatever the name, and returns its address. Pebble
// asks over TCP.
func startDNS(t testing.TB) string {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	server := &dns.Server{Listener: ln, Handler: dns.HandlerFunc(func(w dns.ResponseWriter, q *dns.Msg) {
		m := new(dns.Msg).SetReply(q)
		if len(q.Question) == 1 && q.Question[0].Qtype == dns.TypeA {
			m.Answer = []dns.RR{&dns.A{
				Hdr: dns.RR_Header{Name: q.Question[0].Name, Rrtype: dns.TypeA, Class: dns.ClassINET},
				A:   net.IPv4(127, 0, 0, 1),
			}}
		}
		w.WriteMsg(m)
	})}
	done := make(chan struct{})
	go func() {
		defer close(done)
		server.ActivateAndServe()
	}()
	t.Cleanup(func() {
		ln.Close()
		server.ShutdownContext(context.Background())
		<-done
	})
	return ln.Addr().String()
}
