package acme

import (
	"cmp"
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
	"slices"
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

var (
	// ErrUnknownDomain is returned for a name that is not one of the domains.
	ErrUnknownDomain = errors.New("not one of the domains")

	// ErrFromFiles is returned when a certificate is to be renewed that somebody else looks after.
	ErrFromFiles = errors.New("the certificate comes from files: replace them, and they are read again")
)

// openTimeout bounds how long New waits for another replica that is making the account key.
const openTimeout = 10 * time.Second

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
	// Empty lets the CA choose. If the CA has no such profile, or drops it, its default is ordered, with
	// a warning.
	Profile string

	// ReuseKey has each renewal certify the key of the certificate before, for those who pin it (DANE,
	// apps). Otherwise each certificate has a new key.
	ReuseKey bool

	// FallbackURL is the directory of a second CA, which is asked when the first one has failed for
	// hours: at least three, or half of what the certificate that is served has left. Empty is none.
	// Its account and certificates are kept apart. FallbackEABKeyID and FallbackEABKey are for it what
	// EABKeyID and EABKey are for the first. Profile is ordered from it, too, if it has it.
	FallbackURL      string
	FallbackEABKeyID string
	FallbackEABKey   []byte

	// Shared is what replicas on several machines share in place of Dir: certificates, account keys,
	// plans, answers to challenges, and locks. All of it but the locks' names is sealed with SealKeys. Dir keeps
	// copies of certificates and account keys, and the local CA. Nil shares no more than Dir.
	Shared Shared

	// SealKeys are of [SealKeySize] bytes each. The first one seals; all open, so that a key can be
	// replaced: add the new one behind the old one everywhere, then put it first, then drop the old one
	// once all certificates have been renewed. See [ParseSealKeys].
	SealKeys [][]byte

	// Logger gets what an operator should know; nil discards it.
	Logger *slog.Logger

	// Test hooks. Nil is the real thing.
	now            func() time.Time
	random         func() float64 // in [0, 1)
	lookInterval   time.Duration
	requestTimeout time.Duration
	systemRoots    *x509.CertPool // in place of the system's, for PubliclyTrusted
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
	tokens    *tokens   // what responder answers with
	locks     store     // one for each domain; nil without ACME domains
	issuers   []*issuer // the CA and, if there is one, the fallback; none without ACME domains
	local     *localCA  // nil without local domains
	files     *files    // nil without CertFile

	// Safe from any goroutine.
	slots     chan struct{} // holds one element for each attempt under way, up to maxAttempts; never closed
	tlsALPN01 atomic.Bool   // TLSConfig was called: somebody answers on 443
	http01    atomic.Bool   // HTTPHandler was called: somebody answers on 80
}

// maxAttempts is how many orders may be under way at once. Let's Encrypt allows an account 300 in three
// hours; four are quick enough for any start and polite to a small CA.
const maxAttempts = 4

// A site is one domain with what is served and known for it.
type site struct {
	// Immutable after New.
	name        string
	source      string
	authorities []*authority // in the order in which they are asked; none unless the source is a CA

	requests chan *request // Renew -> keep; without buffer: keep takes one when it is not busy; never closed
	wake     chan struct{} // Reload -> keep; buffer 1, since one look is as good as two; never closed

	// Owned by keep.
	running    bool       // keep runs, so that what changes now is news
	valid      bool       // what is served was valid when keep looked last
	unreadable bool       // files could not be read then
	looked     time.Time  // when that was
	lookedMono time.Time  // the same by a clock that nobody sets
	busyUntil  time.Time  // another replica held the lock
	busySince  time.Time  // the same, without a break
	hung       *LastError // for so long that it must hang
	away       *LastError // what is shared could not be used when it was needed last

	// Safe from any goroutine.
	current atomic.Pointer[certificate] // nil until there is one

	mu sync.Mutex
	// Guarded by mu. What keep publishes.
	next      time.Time         // when the next attempt is due; zero if none is planned
	lastError *LastError        // nil after success
	known     []AuthorityStatus // of authorities
	window    *RenewalWindow    // nil if the CA has not said
}

// A certificate is what is served for a domain. It does not change once it is installed.
type certificate struct {
	tls.Certificate
	public  bool       // verifies against the system's roots
	from    *authority // nil if no CA that speaks ACME made it
	id      string     // in renewal information; empty if it has none
	renewal time.Time  // when to renew it, going by its lifetime
	since   time.Time  // when we began to serve it
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
	cfg.lookInterval = cmp.Or(cfg.lookInterval, lookInterval)
	cfg.requestTimeout = cmp.Or(cfg.requestTimeout, requestTimeout)
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

	p := &Provider{cfg: cfg, log: cfg.Logger, byName: make(map[string]*site), tokens: new(tokens),
		slots: make(chan struct{}, maxAttempts)}
	for _, d := range cfg.Domains {
		s := &site{name: d.Name, source: sourceACME, requests: make(chan *request), wake: make(chan struct{}, 1)}
		switch {
		case cfg.CertFile != "":
			s.source = sourceFiles
		case d.Local || isIP(d.Name):
			s.source = sourceLocal
		}
		p.sites = append(p.sites, s)
		p.byName[s.name] = s
	}
	if err := p.open(dir); err != nil {
		return nil, err
	}
	p.responder = &autocert.Manager{Prompt: autocert.AcceptTOS, HostPolicy: p.hostPolicy, Cache: p.tokens}
	return p, nil
}

// open loads what there is to serve from the data folder dir, or from the files.
func (p *Provider) open(dir string) error {
	if p.cfg.CertFile != "" {
		p.files = newFiles(p)
		return p.files.load()
	}
	for _, s := range p.sites {
		var err error
		switch s.source {
		case sourceACME:
			err = p.addACME(s, filepath.Join(dir, "acme"))
		case sourceLocal:
			err = p.addLocal(s, filepath.Join(dir, "local-ca"))
		}
		if err != nil {
			return err
		}
	}
	return nil
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
	if (cfg.EABKeyID == "") != (len(cfg.EABKey) == 0) || (cfg.FallbackEABKeyID == "") != (len(cfg.FallbackEABKey) == 0) {
		add("external account binding needs both a key id and a key")
	}
	for _, address := range []string{cfg.DirectoryURL, cfg.FallbackURL} {
		if u, err := url.Parse(address); address != "" && (err != nil || u.Scheme != "https" || u.Host == "") {
			add("directory %q is not an https URL", address)
		}
	}
	if cfg.FallbackURL == cfg.DirectoryURL {
		add("the fallback is the CA itself: %s", cfg.FallbackURL)
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

// addACME makes s be served from the CAs, whose state is in folders below dir.
func (p *Provider) addACME(s *site, dir string) error {
	if p.issuers == nil {
		if err := p.openIssuers(dir); err != nil {
			return err
		}
	}
	for _, is := range p.issuers {
		s.authorities = append(s.authorities, &authority{
			directory:   is.directory,
			store:       is.store,
			stored:      func() (*tls.Certificate, error) { return is.stored(s.name) },
			keep:        func(cert *tls.Certificate) error { return is.keep(s.name, cert) },
			obtain:      is.obtain,
			renewalInfo: is.renewalInfo,
			plan:        new(plan),
			attempts:    make(map[string]int),
		})
		if is.copies != nil {
			a := s.authorities[len(s.authorities)-1]
			a.restore, a.copies = is.restore, is.copies
		}
	}
	if err := p.look(s); err != nil && !errors.Is(err, errAway) {
		return fmt.Errorf("acme: %w", err) // not to order what is there
	}
	for _, a := range s.authorities {
		p.useCopy(s, a)
	}
	for _, a := range s.authorities {
		a.plan.restarted()
	}
	return nil
}

// openIssuers opens the state of the CAs, and the folder of the tokens that they share.
func (p *Provider) openIssuers(dir string) error {
	ctx, cancel := context.WithTimeout(context.Background(), openTimeout)
	defer cancel()
	var seal *sealer
	var err error
	cfg := p.cfg
	if cfg.Shared == nil {
		if p.tokens, err = openTokens(filepath.Join(dir, "tokens"), p.now()); err != nil {
			return fmt.Errorf("acme: tokens: %w", err)
		}
	} else {
		if seal, err = newSealer(cfg.SealKeys); err != nil {
			return err
		}
		p.tokens = &tokens{shared: cfg.Shared, seal: seal}
	}
	if p.locks, _, err = openStore(&cfg, seal, dir, "locks"); err != nil {
		return err
	}
	urls := []string{cfg.DirectoryURL}
	if cfg.FallbackURL != "" {
		urls = append(urls, cfg.FallbackURL)
	}
	for _, u := range urls {
		is, err := newIssuer(ctx, &cfg, seal, u, dir, directoryName(u), p.tokens)
		if err != nil {
			return err
		}
		p.issuers = append(p.issuers, is)
		cfg.EABKeyID, cfg.EABKey = cfg.FallbackEABKeyID, cfg.FallbackEABKey
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
	cert, err := p.local.issue(s.name)
	if err != nil {
		return err
	}
	p.install(s, cert, nil)
	return nil
}

// install serves cert, which is from a unless that is nil, for s from now on. Connections that are open
// keep what they have.
func (p *Provider) install(s *site, cert *tls.Certificate, a *authority) {
	c := &certificate{Certificate: *cert, from: a, since: p.now()}
	if a != nil {
		c.id, _ = certID(cert.Leaf)
	}
	c.renewal = renewalTime(cert.Leaf.NotBefore, cert.Leaf.NotAfter, p.cfg.random())
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

// TLSConfig returns a configuration for the TLS listeners. It speaks TLS 1.2 and newer, and of the
// former's cipher suites those that are both forward secret and authenticated encryption. Sessions are
// resumed with tickets, whose keys crypto/tls makes anew each day and keeps in memory alone.
//
// The protocols are "http/1.1", which WebSockets need, and "acme-tls/1", without which the CA's
// tls-alpn-01 hello is turned away before anyone sees it. The first in this list that the client
// offers is taken, so a caller who adds "h2" decides by its place whom it serves.
//
// A client that names a host that is not one of the domains gets the alert unrecognized_name.
//
// It has to be called before Run, if at all: tls-alpn-01 is not tried unless somebody answers.
func (p *Provider) TLSConfig() *tls.Config {
	p.tlsALPN01.Store(true)
	return &tls.Config{
		MinVersion:     tls.VersionTLS12,
		CipherSuites:   cipherSuites(),
		NextProtos:     []string{"http/1.1", xacme.ALPNProto},
		GetCertificate: p.getCertificate,
	}
}

// cipherSuites returns crypto/tls's own suites for TLS 1.2 but those in CBC mode, which are MAC-then-encrypt
// (Lucky Thirteen), and which no client needs any more that is secure otherwise. What is left is what Mozilla
// calls intermediate: https://wiki.mozilla.org/Security/Server_Side_TLS
func cipherSuites() []uint16 {
	var ids []uint16
	for _, suite := range tls.CipherSuites() {
		if slices.Contains(suite.SupportedVersions, tls.VersionTLS12) && !strings.Contains(suite.Name, "_CBC_") {
			ids = append(ids, suite.ID)
		}
	}
	return ids
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
//
// It has to be called before Run, if at all: http-01 is not tried unless somebody answers.
func (p *Provider) HTTPHandler(fallback http.Handler) http.Handler {
	p.http01.Store(true)
	return p.responder.HTTPHandler(fallback)
}

// challengeTypes returns the challenges that we can answer, in the order in which they are tried.
func (p *Provider) challengeTypes() []string {
	switch {
	case p.tlsALPN01.Load() && !p.http01.Load():
		return []string{tlsALPN01}
	case p.http01.Load() && !p.tlsALPN01.Load():
		return []string{http01}
	}
	return []string{tlsALPN01, http01}
}

// now is the time on the wall, whatever happens to the clock between two calls.
func (p *Provider) now() time.Time { return p.cfg.now().Round(0) }

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
		switch s.source {
		case sourceACME:
			s.running = true
			wg.Go(func() { p.keep(ctx, s) })
		case sourceLocal:
			wg.Go(func() { p.keepLocal(ctx, s) })
		}
	}
	if p.files != nil {
		wg.Go(func() { p.files.watch(ctx) })
	}
	wg.Wait()
	for _, is := range p.issuers {
		is.conns.CloseIdleConnections()
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
	Domain      string            `json:"domain"`
	Source      string            `json:"source"`                // "acme", "local" or "files"
	Directory   string            `json:"directory,omitempty"`   // of the CA whose certificate is served
	NotBefore   time.Time         `json:"not_before,omitzero"`   // of the certificate that is served
	NotAfter    time.Time         `json:"not_after,omitzero"`    // the same
	Serial      string            `json:"serial,omitempty"`      // in hexadecimal, as crt.sh and openssl show it
	Issuer      string            `json:"issuer,omitempty"`      // the issuer's distinguished name
	Problem     string            `json:"problem,omitempty"`     // why visitors cannot be served; empty if they can
	NextAction  string            `json:"next_action,omitempty"` // "obtain", "renew" or "retry"
	NextAttempt time.Time         `json:"next_attempt,omitzero"` // when that is planned
	Renewal     *RenewalWindow    `json:"renewal,omitempty"`     // when the CA wants it to be renewed (RFC 9773)
	LastError   *LastError        `json:"last_error,omitempty"`  // why there is no newer one; nil after success
	CAs         []AuthorityStatus `json:"cas,omitempty"`         // for source "acme": the CA, and the fallback
}

// RenewalWindow is when a CA wants a certificate to be renewed.
type RenewalWindow struct {
	Start          time.Time `json:"start"`
	End            time.Time `json:"end"`
	Chosen         time.Time `json:"chosen"`                    // a random moment between the two: ours
	ExplanationURL string    `json:"explanation_url,omitempty"` // a page that tells why
}

// AuthorityStatus is how it stands between a domain and one CA.
type AuthorityStatus struct {
	Directory        string         `json:"directory"`               // URL
	Failures         int            `json:"failures"`                // attempts in a row without a certificate
	FailingSince     time.Time      `json:"failing_since,omitzero"`  // the first of these
	BackoffUntil     time.Time      `json:"backoff_until,omitzero"`  // no order before
	RetryAfter       time.Time      `json:"retry_after,omitzero"`    // what the CA asked for last
	ValidationsLeft  int            `json:"failed_validations_left"` // how many may fail within the hour
	CertificatesLeft int            `json:"certificates_left"`       // how many may be obtained within the week
	Unsaved          bool           `json:"unsaved,omitempty"`       // its certificate could not be stored yet
	ClockSkew        float64        `json:"clock_skew_seconds"`      // its clock less ours, when it was asked last
	LastError        *LastError     `json:"last_error,omitempty"`    // nil after success
	Attempts         map[string]int `json:"attempts"`                // since the start, by outcome: "ok", or the step that failed
}

// LastError is why the last attempt failed.
type LastError struct {
	When   time.Time `json:"when"`
	Step   string    `json:"step,omitempty"` // a resource of RFC 8555 section 7.1, a challenge type, "clock" or "store"
	Type   string    `json:"type,omitempty"` // the CA's error type (RFC 8555 section 6.7), without its prefix
	Reason string    `json:"reason"`         // in the CA's own words where it gave any
	Hint   string    `json:"hint,omitempty"` // what to look at
}

// Status returns what is known of each domain, in the order of Config.Domains.
func (p *Provider) Status() []Status {
	all := make([]Status, 0, len(p.sites))
	for _, s := range p.sites {
		c := s.current.Load()
		st := Status{Domain: s.name, Source: s.source, Problem: invalidity(c, s.name, p.cfg.now())}
		if c != nil {
			if c.from != nil {
				st.Directory = c.from.directory
			}
			st.NotBefore, st.NotAfter = c.Leaf.NotBefore, c.Leaf.NotAfter
			st.Serial = fmt.Sprintf("%x", c.Leaf.SerialNumber.Bytes())
			st.Issuer = c.Leaf.Issuer.String()
		}
		s.mu.Lock()
		st.NextAttempt, st.LastError, st.CAs, st.Renewal = s.next, s.lastError, s.known, s.window
		s.mu.Unlock()
		switch {
		case st.NextAttempt.IsZero():
		case st.LastError != nil:
			st.NextAction = "retry"
		case c == nil:
			st.NextAction = "obtain"
		default:
			st.NextAction = "renew"
		}
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
