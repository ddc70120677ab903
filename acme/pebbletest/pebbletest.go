// Package pebbletest runs a real ACME CA, Let's Encrypt's Pebble, inside a test, and lets the test cut
// any step of it.
//
// It is for tests of this module, those of the whole program included, which is why it is not under
// internal.
//
// # Where Pebble is not Let's Encrypt
//
//   - It ignores CAA: no record keeps it from issuing, and "caa" comes only from an injected [Problem].
//   - The Retry-After of its renewal info is always 6 hours.
//   - It answers every finalize with an order that is processing, and has issued within a millisecond; for
//     one that takes time see [Processing].
//   - A TLS port where nobody answers is "unauthorized" to it, not "connection".
//   - It has no rate limits. Some are two calls of [CA.Inject]: n requests for [Forward], then all for
//     a [Problem] with status 429.
//   - It cannot be closed: each CA leaves one idle goroutine behind, va.VAImpl.processTasks. A validation
//     that is under way when the CA stops goes on for at most 15 seconds.
package pebbletest

import (
	"bytes"
	"context"
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

// Paths of Pebble's resources, for [CA.Inject], [CA.Intercept] and [CA.Count]. They differ from Boulder's
// on purpose, so that a client cannot do without the directory. One that ends in a slash stands for all
// that begin with it.
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

// Config says what CA to start. The zero value works, but finds no server to validate. Durations are
// whole seconds, for Pebble counts in them.
type Config struct {
	// HTTPPort and TLSPort are where the CA looks for http-01 and tls-alpn-01 answers, in place of 80
	// and 443. 0 is a port at which nobody answers.
	HTTPPort, TLSPort int

	// Profiles are the certificate profiles and their lifetimes, which may be seconds. Nil is one
	// profile, "default", of 90 days. With several, an order that names none gets any of them.
	Profiles map[string]time.Duration

	// EABKeys are key ids and base64url keys for external account binding, which is then required.
	EABKeys map[string]string

	// Strict is Pebble's -strict: what a later ACME may forbid is refused. x/crypto's client sends such
	// a thing when it deactivates an authorization.
	Strict bool

	// NonceReject is how many of 100 good nonces are refused as badNonce, from 0 to 100.
	NonceReject int

	// AuthorizationReuse is of how many of 100 orders a name gets a valid authorization that the account
	// has, from 0 to 100. At 0 an authorization is used again only if the certificate of the order
	// that it was made for has not been downloaded, and then for 1 order in 100: Pebble cannot do less.
	AuthorizationReuse int

	// AlwaysValid has every validation succeed without a look at the server.
	AlwaysValid bool

	// ValidationSleep is the most that a validation waits before it begins: each of three at once waits
	// for a random number of seconds, from 0 to this. 0 is no wait.
	ValidationSleep time.Duration

	// BlockedDomains are refused as rejectedIdentifier, with all below them. An order for a parent of one
	// (example.com where www.example.com is blocked) makes Pebble panic, which cuts the connection.
	BlockedDomains []string

	// RetryAfterAuthorization and RetryAfterOrder are sent as Retry-After, as seconds or as a date at
	// random: with an authorization while it is being validated, and with an order while it is
	// processing, which is in every answer to finalize. 0 is no header.
	RetryAfterAuthorization, RetryAfterOrder time.Duration

	// Intermediates is how many there are between a certificate and its root. 0 is 1.
	Intermediates int

	// DNS is what the CA finds at names, in place of 127.0.0.1; see [CA.SetDNS].
	DNS map[string]DNSRecords
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

	// Immutable after Start.
	t          testing.TB
	cancel     context.CancelFunc // of the context of all requests
	server     *httptest.Server
	dns        *nameServer
	store      *db.MemoryStore
	pebble     http.Handler
	management http.Handler
	reuse      bool

	// renewal is held to change a renewal info and, for reading, to answer with one: Pebble does the
	// latter without a lock.
	renewal sync.RWMutex

	orders sync.Mutex // held by remember

	mu sync.Mutex
	// Guarded by mu.
	requests    []Request
	injected    []*injection // in the order in which they came
	intercepted map[string]http.HandlerFunc
	dateShift   time.Duration
}

// Start starts a CA that finds every name at 127.0.0.1, if cfg does not say otherwise, and stops it when
// the test ends. It is safe for parallel tests, whatever their Configs.
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

// Stop ends the CA before the test does: from then on connections to it, and to its name server, are
// refused. It may be called more than once.
func (c *CA) Stop() {
	c.cancel() // what hangs would keep Close waiting
	if c.server != nil {
		c.server.CloseClientConnections()
		c.server.Close()
	}
	c.dns.stop()
}

// ShiftDate has the CA's clock be wrong by d, as far as the Date header of its answers goes, from now on.
// 0 sets it right. What it issues is dated by the true clock.
func (c *CA) ShiftDate(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.dateShift = d
}

// serve answers all requests.
func (c *CA) serve(w http.ResponseWriter, r *http.Request) {
	// Until the body is read, net/http does not notice that the client has gone.
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

// forward has Pebble answer.
func (c *CA) forward(w http.ResponseWriter, r *http.Request) {
	if match(RenewalInfoPath, r.URL.Path) {
		c.renewal.RLock()
		defer c.renewal.RUnlock()
	}
	if r.URL.Path == NewOrderPath && !c.reuse {
		c.expireAuthorizations()
	}
	c.pebble.ServeHTTP(w, r)
}

// expireAuthorizations ends those whose orders' certificates have been asked for, which makes the orders
// invalid, too, but nobody looks at them any more. Even at 0 % Pebble would use 1 in 100 again, and a test
// that waits for a validation would wait in vain.
func (c *CA) expireAuthorizations() {
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

// environment returns the variables from which Pebble takes what its constructors have no parameter for.
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
		// Pebble uses again if a number from 0 to 99 is at most this.
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

// environment is held while the process's environment is that of one CA.
var environment sync.Mutex

// withEnvironment calls f with vars in the environment, which Pebble reads only when it is made.
// [testing.T.Setenv] would not leave tests free to run in parallel.
func withEnvironment(vars map[string]string, f func()) {
	environment.Lock()
	defer environment.Unlock()
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

// port returns p, or port 1 if p is 0: nobody listens there, and nobody without privileges can.
func port(p int) int {
	if p == 0 {
		return 1
	}
	return p
}

// match reports whether pattern, one of the constants, stands for path.
func match(pattern, path string) bool {
	return pattern == path || strings.HasSuffix(pattern, "/") && strings.HasPrefix(path, pattern)
}
