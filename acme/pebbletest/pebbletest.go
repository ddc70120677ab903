// Package pebbletest runs a real ACME CA, Let's Encrypt's Pebble, inside a test. A test can make each of its
// answers fail.
//
// All tests of this module use it, those of the whole program included, so it is not under acme/internal.
//
// # Where Pebble is not Let's Encrypt
//
//   - It ignores CAA records. An error of type "caa" comes only from an injected [Problem].
//   - The Retry-After of its renewal info is always 6 hours.
//   - It answers every finalize with a processing order, and issues within a millisecond. [Processing]
//     makes an order take longer.
//   - A closed TLS port is an error of type "unauthorized", not "connection".
//   - It has no rate limits. Two calls of [CA.Inject] make one: [Forward] for n requests, then a [Problem]
//     with status 429 for all others.
//   - It cannot be closed: each CA leaves one idle goroutine behind, va.VAImpl.processTasks. A validation
//     that is in progress when the CA stops continues for at most 15 seconds.
package pebbletest

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/letsencrypt/pebble/v2/ca"
	"github.com/letsencrypt/pebble/v2/db"
	"github.com/letsencrypt/pebble/v2/va"
	"github.com/letsencrypt/pebble/v2/wfe"
)

// Paths of Pebble's resources, for [CA.Inject], [CA.Intercept] and [CA.Count]. Pebble chose paths other than
// Boulder's, so that a client must read the directory. A path that ends in a slash matches all paths below it.
const (
	AnyPath           = "/"
	DirectoryPath     = wfe.DirectoryPath
	NewNoncePath      = "/nonce-plz"
	NewAccountPath    = "/sign-me-up"
	AccountPath       = "/my-account/"
	NewOrderPath      = "/order-plz"
	OrderPath         = "/my-order/"
	AuthorizationPath = "/authZ/"
	ChallengePath     = "/chalZ/"
	FinalizePath      = "/finalize-order/"
	CertificatePath   = "/certZ/"
	RevokePath        = "/revoke-cert"
	RenewalInfoPath   = "/draft-ietf-acme-ari-03/renewalInfo/"
)

// Config describes the CA to start. The zero value works, but no validation succeeds. Durations must be whole
// seconds, Pebble's unit.
type Config struct {
	// HTTPPort and TLSPort are the ports on which the CA validates http-01 and tls-alpn-01, in place of 80
	// and 443. 0 is a closed port.
	HTTPPort, TLSPort int

	// Profiles are the certificate profiles and their lifetimes. Nil is one profile, "default", of 90 days.
	// With several, Pebble chooses at random for an order that names none.
	Profiles map[string]time.Duration

	// EABKeys are key ids with keys in base64url for external account binding. If set, the CA requires one.
	EABKeys map[string]string

	// Strict is Pebble's -strict: it refuses what a later version of ACME may forbid. x/crypto's client sends
	// such a request when it deactivates an authorization.
	Strict bool

	// NonceReject is the percentage of good nonces that are refused as badNonce.
	NonceReject int

	// AuthorizationReuse is the percentage of orders that reuse a valid authorization of the account. Pebble
	// cannot do less than 1 %. At 0 that happens only until the certificate of the authorization's own order
	// has been downloaded.
	AuthorizationReuse int

	// AlwaysValid makes every validation succeed without a connection to the server.
	AlwaysValid bool

	// ValidationSleep bounds the wait before a validation. Pebble validates three times at once, and each one
	// waits for a random number of seconds from 0 to this. 0 is no wait.
	ValidationSleep time.Duration

	// BlockedDomains and the names below them are refused as rejectedIdentifier. An order for a parent of one
	// (example.com where www.example.com is blocked) makes Pebble panic, which cuts the connection.
	BlockedDomains []string

	// RetryAfterAuthorization is sent as Retry-After with an authorization that is being validated,
	// RetryAfterOrder with an order that is processing, so with every answer to finalize. Pebble sends seconds
	// or a date, at random. 0 is no header.
	RetryAfterAuthorization, RetryAfterOrder time.Duration

	// Intermediates is the number of certificates between a leaf and its root. 0 means 1.
	Intermediates int

	// DNS has the records of names that are not at 127.0.0.1; see [CA.SetDNS].
	DNS map[string]DNSRecords
}

// A CA is a running Pebble. Its methods are safe for concurrent use.
type CA struct {
	// DirectoryURL is the URL of the ACME directory.
	DirectoryURL string

	// DirectoryRoots has the root of the directory's own TLS certificate.
	DirectoryRoots *x509.CertPool

	// DirectoryRootPEM is the same root in PEM.
	DirectoryRootPEM []byte

	// IssuingRoots has the root of the certificates that the CA issues.
	IssuingRoots *x509.CertPool

	// Immutable after Start.
	t          testing.TB
	cancel     context.CancelFunc // of the context of all requests
	server     *httptest.Server
	dns        *nameServer
	store      *db.MemoryStore
	pebble     http.Handler
	management http.Handler
	reuse      bool

	// renewal guards Pebble's renewal info, which Pebble reads without a lock.
	renewal sync.RWMutex

	orders sync.Mutex // held by remember

	mu sync.Mutex
	// Guarded by mu.
	requests    []Request
	injected    []*injection // in the order in which they came
	intercepted map[string]http.HandlerFunc
	dateShift   time.Duration
}

// Start starts a CA and stops it when the test ends. The CA finds every name at 127.0.0.1 unless cfg.DNS says
// otherwise. Parallel tests may each start CAs.
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
	for _, name := range cfg.BlockedDomains {
		if err := store.AddBlockedDomain(name); err != nil {
			t.Fatal(err)
		}
	}
	names := startNameServer(t)
	ctx, cancel := context.WithCancel(context.Background())
	c := &CA{
		DirectoryRoots: x509.NewCertPool(),
		IssuingRoots:   x509.NewCertPool(),
		t:              t,
		cancel:         cancel,
		dns:            names,
		store:          store,
		reuse:          cfg.AuthorizationReuse > 0,
		intercepted:    make(map[string]http.HandlerFunc),
	}
	t.Cleanup(c.Stop)
	for name, records := range cfg.DNS {
		c.SetDNS(name, records)
	}

	issuer := ca.New(logger, store, "", "ecdsa", 0, max(cfg.Intermediates, 1), profiles)
	var frontend wfe.WebFrontEndImpl
	withEnvironment(cfg.environment(t), func() {
		validator := va.New(logger, port(cfg.HTTPPort), port(cfg.TLSPort), cfg.Strict, names.addr, store)
		frontend = wfe.New(logger, store, validator, issuer, []string{"pebble"}, cfg.Strict, len(cfg.EABKeys) > 0,
			seconds(t, cfg.RetryAfterAuthorization), seconds(t, cfg.RetryAfterOrder))
	})
	c.pebble, c.management = frontend.Handler(), frontend.ManagementHandler()

	c.server = httptest.NewUnstartedServer(http.HandlerFunc(c.serve))
	c.server.Config.ErrorLog = logger
	c.server.Config.BaseContext = func(net.Listener) context.Context { return ctx }
	c.server.StartTLS() // Pebble insists on https URLs in signed requests

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

// Stop ends the CA before the test ends. From then on, connections to it and to its name server are refused. Stop
// may be called more than once.
func (c *CA) Stop() {
	c.cancel() // ends hanging requests, for which Close would wait
	if c.server != nil {
		c.server.CloseClientConnections()
		c.server.Close()
	}
	c.dns.stop()
}

// ShiftDate adds d to the Date header of all later answers, as if the CA's clock were wrong. 0 ends that.
// Certificates keep the true time.
func (c *CA) ShiftDate(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.dateShift = d
}

// serve records each request and answers it.
func (c *CA) serve(w http.ResponseWriter, r *http.Request) {
	// net/http notices that the client has gone only after the body was read.
	body, err := io.ReadAll(r.Body)
	if r.URL.Path == NewOrderPath {
		c.remember(body)
	}
	f, shift := c.arrived(r, body)
	if err != nil {
		panic(http.ErrAbortHandler)
	}
	if shift != 0 {
		w.Header().Set("Date", time.Now().Add(shift).UTC().Format(http.TimeFormat))
	}
	r = r.WithContext(context.WithValue(r.Context(), caKey{}, c))
	r.Body = io.NopCloser(bytes.NewReader(body))
	f(w, r)
}

// forward lets Pebble answer.
func (c *CA) forward(w http.ResponseWriter, r *http.Request) {
	if match(RenewalInfoPath, r.URL.Path) {
		c.renewal.RLock()
		defer c.renewal.RUnlock()
	}
	if r.URL.Path == NewOrderPath && !c.reuse {
		c.ExpireAuthorizations()
	}
	c.pebble.ServeHTTP(w, r)
}

// RoundTrip implements [http.RoundTripper] without a network, for tests on fake time. Of the faults, those that end a
// connection cannot be used with it.
func (c *CA) RoundTrip(req *http.Request) (*http.Response, error) {
	r := req.Clone(req.Context())
	r.Host, r.RequestURI, r.TLS = r.URL.Host, r.URL.RequestURI(), new(tls.ConnectionState) // Pebble insists on https URLs
	if r.Body == nil {
		r.Body = http.NoBody
	}
	rec := httptest.NewRecorder()
	c.serve(rec, r)
	return rec.Result(), nil
}

// ExpireAuthorizations expires the authorizations of orders whose certificates have been downloaded, so that no later
// order reuses them. The orders become invalid, too, which no client notices. Pebble itself would reuse 1 in 100 even
// at 0 %, and a test that waits for a validation would fail.
func (c *CA) ExpireAuthorizations() {
	for chal := range c.challenges() {
		order := chal.Authz.Order
		order.RLock()
		cert := order.CertificateObject
		order.RUnlock()
		if cert != nil && c.Count(CertificatePath+cert.ID) > 0 {
			chal.Authz.Lock()
			chal.Authz.ExpiresDate = time.Time{}
			chal.Authz.Unlock()
		}
	}
}

// environment returns the environment variables for settings that Pebble's constructors have no parameter for.
func (cfg *Config) environment(t testing.TB) map[string]string {
	t.Helper()
	percent := func(field string, n int) string {
		t.Helper()
		if n < 0 || n > 100 {
			t.Fatalf("%s is %d, want 0 to 100", field, n)
		}
		return strconv.Itoa(n)
	}
	percent("AuthorizationReuse", cfg.AuthorizationReuse)
	env := map[string]string{
		"PEBBLE_WFE_NONCEREJECT": percent("NonceReject", cfg.NonceReject),
		// Pebble reuses if a random number from 0 to 99 is at most this.
		"PEBBLE_AUTHZREUSE":      strconv.Itoa(max(cfg.AuthorizationReuse-1, 0)),
		"PEBBLE_VA_ALWAYS_VALID": "",
		"PEBBLE_VA_NOSLEEP":      "",
		// Pebble sleeps for less than this.
		"PEBBLE_VA_SLEEPTIME": strconv.Itoa(seconds(t, cfg.ValidationSleep) + 1),
	}
	if cfg.AlwaysValid {
		env["PEBBLE_VA_ALWAYS_VALID"] = "1"
	}
	if cfg.ValidationSleep == 0 {
		env["PEBBLE_VA_NOSLEEP"] = "1"
	}
	return env
}

// environmentMu guards the process's environment while one CA reads it.
var environmentMu sync.Mutex

// withEnvironment calls f with vars in the process's environment. Pebble reads them only in its constructors.
// [testing.T.Setenv] does not allow parallel tests.
func withEnvironment(vars map[string]string, f func()) {
	environmentMu.Lock()
	defer environmentMu.Unlock()
	for name, value := range vars {
		before, ok := os.LookupEnv(name)
		os.Setenv(name, value)
		defer func() {
			if ok {
				os.Setenv(name, before)
			} else {
				os.Unsetenv(name)
			}
		}()
	}
	f()
}

func seconds(t testing.TB, d time.Duration) int {
	t.Helper()
	if d < 0 || d%time.Second != 0 {
		t.Fatalf("%v is not a whole number of seconds", d)
	}
	return int(d / time.Second)
}

// port returns p, or 1 if p is 0. Nothing listens on port 1, and only root could.
func port(p int) int {
	if p == 0 {
		return 1
	}
	return p
}

// match reports whether pattern, one of the constants, matches path.
func match(pattern, path string) bool {
	return pattern == path || strings.HasSuffix(pattern, "/") && strings.HasPrefix(path, pattern)
}
