package acme

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	xacme "golang.org/x/crypto/acme"
	"golang.org/x/crypto/acme/autocert"
)

// Directory URLs of Let's Encrypt. What the staging one issues is trusted by no browser, and its
// limits are so high that they are not in the way of trying things out.
const (
	LetsEncrypt        = xacme.LetsEncryptURL
	LetsEncryptStaging = "https://acme-staging-v02.api.letsencrypt.org/directory"
)

// Where a domain's certificate comes from, as [Status] tells it.
const (
	sourceACME  = "acme"
	sourceLocal = "local"
	sourceFiles = "files"
)

// A Domain is one name to serve.
type Domain struct {
	// Name is a host name in ASCII (A-labels), lower case, without trailing dot and port, or an IP
	// address in canonical text form. Wildcards are refused: neither challenge that we answer can
	// prove them.
	Name string

	// Local asks for a certificate from our local CA in place of one from the ACME CA. It is allowed
	// for names of which [IsLocal] is true, and implied for IP addresses.
	Local bool
}

// IsLocal reports whether no public CA certifies name: localhost, names under localhost, test and
// internal, and IP addresses. name is normalised as in [Domain].
//
// "test" and "localhost" are reserved by RFC 6761, "internal" by ICANN in 2024.
func IsLocal(name string) bool {
	if isIP(name) || name == "localhost" {
		return true
	}
	for _, zone := range localZones() {
		if strings.HasSuffix(name, "."+zone) {
			return true
		}
	}
	return false
}

func isIP(name string) bool {
	_, err := netip.ParseAddr(name)
	return err == nil
}

// Config says what to serve and where certificates come from. Domains and Dir are needed; every
// other zero value works.
type Config struct {
	// Domains are the names to serve, each once. A client that names none gets the first one's
	// certificate, unless the address that it connected to is itself one of the domains.
	Domains []Domain

	// Dir is the data folder, made with mode 0700 if missing. Losing it costs a new account, new
	// certificates (Let's Encrypt gives 5 a week for one set of names), and a new local root that
	// people have to trust again.
	Dir string

	// CertFile and KeyFile are PEM files: the chain, leaf first, and its private key. Set both or
	// neither. When set they serve every domain, and nothing is ordered.
	CertFile, KeyFile string

	// DirectoryURL is the https URL of the CA's ACME directory; empty is [LetsEncrypt]. Accounts and
	// certificates of different directories are kept apart.
	DirectoryURL string

	// RootCAs is whom to trust when talking to the CA; nil is the system's roots. It has no say in
	// what visitors trust.
	RootCAs *x509.CertPool

	// Email is the account's contact address, without "mailto:". Empty is none. It is used when the
	// account is made and has no effect on one that exists.
	Email string

	// EABKeyID and EABKey (the raw key, not base64) bind the account to one that the CA knows by
	// other means (RFC 8555 section 7.3.4). Set both or neither.
	EABKeyID string
	EABKey   []byte

	// Profile is the certificate profile to order (draft-ietf-acme-profiles), such as "shortlived".
	// Empty lets the CA choose. A CA that knows profiles but not this one refuses every order.
	Profile string

	// Logger gets what an operator should know; nil discards it.
	Logger *slog.Logger

	// Test hooks. Nil is the real thing.
	now         func() time.Time
	random      func() float64 // in [0, 1)
	systemRoots *x509.CertPool // in place of the system's, for PubliclyTrusted
}

// A Provider obtains, renews and serves the certificates of some domains.
// Its methods are safe for concurrent use; Run is to be called once.
type Provider struct {
	// Immutable after New.
	cfg       Config
	log       *slog.Logger
	sites     []*site          // in the order of Config.Domains
	byName    map[string]*site // the same
	responder *autocert.Manager
	issuer    *issuer  // nil without ACME domains
	local     *localCA // nil without local domains
	files     *files   // nil without CertFile
}

// A site is one domain with what is served and known for it.
type site struct {
	// Immutable after New.
	name   string
	source string
	obtain func(context.Context) (*tls.Certificate, error) // gets a new certificate; nil for files

	// Safe from any goroutine.
	current atomic.Pointer[certificate] // nil until there is one

	mu sync.Mutex
	// Guarded by mu.
	next      time.Time  // when the next attempt is due; zero if none is planned
	lastError *LastError // nil after success
}

// A certificate is what is served for a domain. It does not change once it is installed.
type certificate struct {
	tls.Certificate
	public bool // verifies against the system's roots
}

// New reads what is stored and returns a Provider that can serve it. It makes the folders, the
// account key and, for local domains, the local CA and first certificates. It does not use the network.
//
// Errors are those that an operator has to mend: domains that cannot be served as asked, a folder that
// cannot be made or written, and CertFile or KeyFile missing or not belonging together.
func New(cfg Config) (*Provider, error) {
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	if cfg.DirectoryURL == "" {
		cfg.DirectoryURL = LetsEncrypt
	}
	if cfg.now == nil {
		cfg.now = time.Now
	}
	if cfg.random == nil {
		cfg.random = rand.Float64
	}
	if err := cfg.validate(); err != nil {
		return nil, err
	}
	dir, err := filepath.Abs(cfg.Dir) // what we log has to make sense elsewhere
	if err != nil {
		return nil, fmt.Errorf("acme: data folder: %w", err)
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("acme: data folder: %w", err)
	}

	tokens := new(tokens)
	p := &Provider{cfg: cfg, log: cfg.Logger, byName: make(map[string]*site)}
	p.responder = &autocert.Manager{Prompt: autocert.AcceptTOS, HostPolicy: p.hostPolicy, Cache: tokens}
	for _, d := range cfg.Domains {
		s := &site{name: d.Name, source: sourceACME}
		switch {
		case cfg.CertFile != "":
			s.source = sourceFiles
		case d.Local || isIP(d.Name):
			s.source = sourceLocal
		}
		p.sites = append(p.sites, s)
		p.byName[s.name] = s
	}

	if cfg.CertFile != "" {
		p.files = newFiles(p)
		if err := p.files.load(); err != nil {
			return nil, err
		}
		return p, nil
	}
	for _, s := range p.sites {
		var err error
		switch s.source {
		case sourceACME:
			err = p.addACME(s, filepath.Join(dir, "acme", directoryName(cfg.DirectoryURL)), tokens)
		case sourceLocal:
			err = p.addLocal(s, filepath.Join(dir, "local-ca"))
		}
		if err != nil {
			return nil, err
		}
	}
	return p, nil
}

func (cfg *Config) validate() error {
	var errs []error
	add := func(format string, a ...any) { errs = append(errs, fmt.Errorf("acme: "+format, a...)) }

	if len(cfg.Domains) == 0 {
		add("no domains")
	}
	if cfg.Dir == "" {
		add("no data folder")
	}
	if (cfg.CertFile == "") != (cfg.KeyFile == "") {
		add("a certificate file and a key file need each other")
	}
	if (cfg.EABKeyID == "") != (len(cfg.EABKey) == 0) {
		add("external account binding needs both a key id and a key")
	}
	if u, err := url.Parse(cfg.DirectoryURL); err != nil || u.Scheme != "https" || u.Host == "" {
		add("directory %q is not an https URL", cfg.DirectoryURL)
	}
	seen := make(map[string]bool)
	for _, d := range cfg.Domains {
		switch {
		case seen[d.Name]:
			add("domain %q is given twice", d.Name)
		case strings.HasPrefix(d.Name, "*."):
			add("domain %q: wildcards cannot be certified here", d.Name)
		case !validName(d.Name):
			add("domain %q is not a normalised host name or IP address", d.Name)
		case d.Local && !IsLocal(d.Name):
			add("domain %q is public: the local CA must not certify it", d.Name)
		}
		seen[d.Name] = true
	}
	return errors.Join(errs...)
}

// validName reports whether name is normalised as [Domain] says. It is strict, because the name
// becomes a file name.
func validName(name string) bool {
	if ip, err := netip.ParseAddr(name); err == nil {
		return ip.String() == name && ip.Zone() == ""
	}
	if len(name) > 253 { // RFC 1035 section 2.3.4, without the outer length and root bytes
		return false
	}
	for label := range strings.SplitSeq(name, ".") {
		if label == "" || len(label) > 63 || strings.Trim(label, "abcdefghijklmnopqrstuvwxyz0123456789-_") != "" {
			return false
		}
	}
	return true
}

// addACME makes s be served from the ACME CA, whose state is in dir.
func (p *Provider) addACME(s *site, dir string, tokens *tokens) error {
	if p.issuer == nil {
		is, err := newIssuer(&p.cfg, dir, tokens)
		if err != nil {
			return err
		}
		p.issuer = is
	}
	s.obtain = func(ctx context.Context) (*tls.Certificate, error) { return p.issuer.obtain(ctx, s.name) }
	if cert := p.issuer.stored(s.name); cert != nil {
		p.install(s, cert)
	}
	return nil
}

// addLocal makes s be served from the local CA in dir, and gives it a certificate: it takes a
// millisecond, and the first visitor need not meet a server without one.
func (p *Provider) addLocal(s *site, dir string) error {
	if p.local == nil {
		ca, err := openLocalCA(dir, p.cfg.now, p.log)
		if err != nil {
			return err
		}
		p.local = ca
	}
	s.obtain = func(context.Context) (*tls.Certificate, error) { return p.local.issue(s.name) }
	cert, err := p.local.issue(s.name)
	if err != nil {
		return err
	}
	p.install(s, cert)
	return nil
}

// install serves cert for s from now on. Connections that are open keep what they have.
func (p *Provider) install(s *site, cert *tls.Certificate) {
	c := &certificate{Certificate: *cert}
	c.public = s.source != sourceLocal && p.verifies(&c.Certificate, s.name)
	s.current.Store(c)
}

// verifies reports whether a visitor with the system's roots accepts cert for name today.
func (p *Provider) verifies(cert *tls.Certificate, name string) bool {
	intermediates := x509.NewCertPool()
	for _, der := range cert.Certificate[1:] {
		if c, err := x509.ParseCertificate(der); err == nil {
			intermediates.AddCert(c)
		}
	}
	_, err := cert.Leaf.Verify(x509.VerifyOptions{
		DNSName:       name,
		Roots:         p.cfg.systemRoots,
		Intermediates: intermediates,
		CurrentTime:   p.cfg.now(),
	})
	return err == nil
}

// TLSConfig returns a configuration for the TLS listeners. It speaks TLS 1.2 and newer.
//
// The protocols are "http/1.1", which WebSockets need, and "acme-tls/1", without which the CA's
// tls-alpn-01 hello is turned away before anyone sees it. The first in this list that the client
// offers is taken, so a caller who adds "h2" decides by its place whom it serves.
//
// A client that names a host that is not one of the domains gets the alert unrecognized_name.
func (p *Provider) TLSConfig() *tls.Config {
	return &tls.Config{
		MinVersion:     tls.VersionTLS12,
		NextProtos:     []string{"http/1.1", xacme.ALPNProto},
		GetCertificate: p.getCertificate,
	}
}

// getCertificate is [tls.Config.GetCertificate]. It is the hot path: it locks nothing.
func (p *Provider) getCertificate(hello *tls.ClientHelloInfo) (*tls.Certificate, error) {
	// "The ACME server MUST provide an ALPN extension with the single protocol name "acme-tls/1""
	// https://www.rfc-editor.org/rfc/rfc8737#section-3
	if len(hello.SupportedProtos) == 1 && hello.SupportedProtos[0] == xacme.ALPNProto {
		return p.responder.GetCertificate(hello)
	}
	s := p.siteFor(hello)
	if s == nil {
		return nil, nil // crypto/tls answers unrecognized_name
	}
	c := s.current.Load()
	if c == nil {
		return nil, fmt.Errorf("acme: no certificate for %s yet", s.name)
	}
	// A certificate that has expired is served all the same. A refused handshake would tell a person
	// nothing; this one names the day, which also shows whose clock is wrong. Clients that check
	// refuse it either way, and those that cannot be turned away (a clock reset to 1970, a monitor that
	// asks for the date) are better off. Ready says what is the matter.
	return &c.Certificate, nil
}

// siteFor returns the site that hello asks for, or nil if it names a host that is not ours.
func (p *Provider) siteFor(hello *tls.ClientHelloInfo) *site {
	if hello.ServerName != "" {
		return p.byName[strings.ToLower(hello.ServerName)]
	}
	// RFC 6066 section 3 does not permit addresses as server names, so a client that connects to an
	// address says nothing, and the address is all there is to go by.
	if hello.Conn != nil {
		if addr, err := netip.ParseAddrPort(hello.Conn.LocalAddr().String()); err == nil {
			if s := p.byName[addr.Addr().Unmap().WithZone("").String()]; s != nil {
				return s
			}
		}
	}
	return p.sites[0]
}

// HTTPHandler returns a handler for the plain listener, on which http-01 challenges arrive. The CA
// asks on port 80 only. Requests under /.well-known/acme-challenge/ are answered here, with 403 for a
// host that is not one of the domains and 404 for an unknown token; fallback, which must not be nil,
// gets all the others.
func (p *Provider) HTTPHandler(fallback http.Handler) http.Handler {
	return p.responder.HTTPHandler(fallback)
}

// hostPolicy is the responder's [autocert.HostPolicy]. autocert hands it r.Host as it came, with the
// port if there is one.
func (p *Provider) hostPolicy(_ context.Context, host string) error {
	if h, _, err := net.SplitHostPort(host); err == nil {
		host = h
	}
	if p.byName[strings.ToLower(host)] == nil {
		return errors.New("acme: not one of the domains")
	}
	return nil
}

// Run obtains what is missing at once, and renews, until ctx is done. Then it ends what is under way,
// an order in the middle included, and returns nil; nothing that it started is still running. The
// listeners that use [Provider.TLSConfig] and [Provider.HTTPHandler] must be accepting before Run is
// called: the CA comes asking within milliseconds.
//
// Failures are logged, one line each, shown by [Provider.Ready] and [Provider.Status], and tried again.
func (p *Provider) Run(ctx context.Context) error {
	if p.local != nil {
		p.local.announce()
	}
	var wg sync.WaitGroup
	for _, s := range p.sites {
		if s.obtain != nil {
			wg.Go(func() { p.keep(ctx, s) })
		}
	}
	if p.files != nil {
		wg.Go(func() { p.files.watch(ctx) })
	}
	wg.Wait()
	if p.issuer != nil {
		p.issuer.base.CloseIdleConnections()
	}
	return nil
}

// Ready returns nil when every domain has a certificate that is valid for it now. Otherwise the error
// names the first domain that has none, why the last attempt failed, and when the next one is made.
func (p *Provider) Ready() error {
	for _, s := range p.sites {
		if err := p.siteReady(s); err != nil {
			return fmt.Errorf("acme: %s: %w", s.name, err)
		}
	}
	return nil
}

func (p *Provider) siteReady(s *site) error {
	problem := invalidity(s.current.Load(), s.name, p.cfg.now())
	if problem == "" {
		return nil
	}
	s.mu.Lock()
	next, last := s.next, s.lastError
	s.mu.Unlock()
	if last != nil {
		problem += ": " + last.Reason
		if last.Hint != "" {
			problem += " (" + last.Hint + ")"
		}
	}
	if !next.IsZero() {
		problem += "; next attempt at " + next.UTC().Format(time.RFC3339)
	}
	return errors.New(problem)
}

// invalidity says why c is no certificate for name at the time now, or "" if it is one.
func invalidity(c *certificate, name string, now time.Time) string {
	switch {
	case c == nil:
		return "no certificate yet"
	case now.Before(c.Leaf.NotBefore):
		return "the certificate is valid only from " + c.Leaf.NotBefore.UTC().Format(time.RFC3339)
	case now.After(c.Leaf.NotAfter):
		return "the certificate expired at " + c.Leaf.NotAfter.UTC().Format(time.RFC3339)
	case c.Leaf.VerifyHostname(name) != nil:
		return "the certificate is for other names: " + strings.Join(names(c.Leaf), ", ")
	}
	return ""
}

// names returns the names and addresses that leaf is for.
func names(leaf *x509.Certificate) []string {
	all := append([]string(nil), leaf.DNSNames...)
	for _, ip := range leaf.IPAddresses {
		all = append(all, ip.String())
	}
	return all
}

// Status is what is known of one domain's certificate. Times are zero, and left out of the JSON, when
// there is nothing to say.
type Status struct {
	Domain      string     `json:"domain"`
	Source      string     `json:"source"`                // "acme", "local" or "files"
	Directory   string     `json:"directory,omitempty"`   // the CA's directory URL, for source "acme"
	NotBefore   time.Time  `json:"not_before,omitzero"`   // of the certificate that is served
	NotAfter    time.Time  `json:"not_after,omitzero"`    // the same
	Serial      string     `json:"serial,omitempty"`      // in hexadecimal, as crt.sh and openssl show it
	Issuer      string     `json:"issuer,omitempty"`      // the issuer's distinguished name
	NextAttempt time.Time  `json:"next_attempt,omitzero"` // when the next order is planned
	LastError   *LastError `json:"last_error,omitempty"`  // the last attempt's failure; nil after success
}

// LastError is why the last attempt failed.
type LastError struct {
	When   time.Time `json:"when"`
	Reason string    `json:"reason"`         // in the CA's own words where it gave any
	Hint   string    `json:"hint,omitempty"` // what to look at
}

// Status returns what is known of each domain, in the order of Config.Domains.
func (p *Provider) Status() []Status {
	all := make([]Status, 0, len(p.sites))
	for _, s := range p.sites {
		st := Status{Domain: s.name, Source: s.source}
		if s.source == sourceACME {
			st.Directory = p.cfg.DirectoryURL
		}
		if c := s.current.Load(); c != nil {
			st.NotBefore, st.NotAfter = c.Leaf.NotBefore, c.Leaf.NotAfter
			st.Serial = fmt.Sprintf("%x", c.Leaf.SerialNumber)
			st.Issuer = c.Leaf.Issuer.String()
		}
		s.mu.Lock()
		st.NextAttempt, st.LastError = s.next, s.lastError
		s.mu.Unlock()
		all = append(all, st)
	}
	return all
}

// PubliclyTrusted reports whether the certificate that is served for domain verifies for that name
// against the system's roots, so that any visitor can be expected to accept it. It is worked out when
// a certificate is installed, and is false for unknown domains and for those of the local CA, whoever
// trusts that.
func (p *Provider) PubliclyTrusted(domain string) bool {
	s := p.byName[domain]
	if s == nil {
		return false
	}
	c := s.current.Load()
	return c != nil && c.public
}
