package acme

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"plusminus/acme/internal/challenge"
	"plusminus/acme/internal/localca"
	"plusminus/acme/internal/store"
)

const (
	// openTimeout bounds how long New waits for another replica that is making the account key.
	openTimeout = 10 * time.Second

	// maxAttempts bounds the attempts in progress at once. Let's Encrypt allows an account 300 orders in three
	// hours. Four at once are quick enough for any start, and small enough for a small CA.
	maxAttempts = 4
)

// A Provider obtains, renews and serves the certificates of some domains. Its methods are safe for
// concurrent use. Run must be called once.
type Provider struct {
	// Immutable after New.
	cfg       Config
	log       *slog.Logger
	sites     []*site          // in the order of Config.Domains
	byName    map[string]*site // the same sites
	responder *challenge.Responder
	tokens    *challenge.Tokens // the responder's answers
	locks     store.Store       // one lock for each domain; nil without ACME domains
	issuers   []*issuer         // the CA and, if there is one, the fallback; none without ACME domains
	local     *localca.CA       // nil without local domains
	files     *files            // nil without CertFile

	// Safe from any goroutine.
	slots     chan struct{} // one element for each attempt in progress; buffer maxAttempts; never closed
	changed   chan struct{} // serve -> the receiver of Changed; buffer 1, since two changes count as one; never closed
	tlsALPN01 atomic.Bool   // TLSConfig was called, so tls-alpn-01 can be answered
	http01    atomic.Bool   // HTTPHandler was called, so http-01 can be answered
}

// A site is one domain of the configuration, with its certificate and its state.
type site struct {
	// Immutable after New.
	name        string
	source      string
	authorities []*authority // in the order in which they are asked; none unless source is a CA

	// Safe from any goroutine.
	requests chan *request               // Renew -> keep; without buffer, so keep takes one when it is idle; never closed
	wake     chan struct{}               // Reload -> keep; buffer 1, since one look is as good as two; never closed
	current  atomic.Pointer[certificate] // nil until there is one

	// Owned by keep.
	running    bool       // keep has started, so a new certificate in the store is news
	valid      bool       // the served certificate was valid at the last look
	unreadable bool       // files could not be read at the last look
	looked     time.Time  // when the last look was, on the wall clock
	lookedMono time.Time  // the same, on the monotonic clock
	busyUntil  time.Time  // do not try the lock before: another replica held it
	busySince  time.Time  // since when another replica has held it at each try; zero if it does not
	hung       *LastError // why a replica that holds the lock must be stuck; nil if none does
	away       *LastError // why the shared store could not be used; nil if it could

	mu sync.Mutex
	// Guarded by mu. publish and the owners of other sources write it for Status and Ready.
	next       time.Time         // when the next attempt is due; zero if none is planned
	attempting time.Time         // since when an attempt has been in progress; zero if none is
	lastError  *LastError        // nil after success
	known      []AuthorityStatus // of authorities
	window     *RenewalWindow    // nil if the CA has not given one
}

// New reads stored certificates and returns a Provider that can serve them. It makes the folders, the
// account key and, for local domains, the local CA and first certificates. It sends nothing to a CA.
//
// Errors are those that an operator must correct: domains that cannot be served as configured, a data folder
// that cannot be made or written, and a CertFile and KeyFile that are missing or do not fit together.
func New(cfg Config) (*Provider, error) {
	cfg = cfg.withDefaults()
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	dir, err := filepath.Abs(cfg.Dir) // log lines name its files
	if err != nil {
		return nil, fmt.Errorf("acme: data folder: %w", err)
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("acme: data folder: %w", err)
	}

	p := &Provider{cfg: cfg, log: cfg.Logger, byName: make(map[string]*site), tokens: new(challenge.Tokens),
		slots: make(chan struct{}, maxAttempts), changed: make(chan struct{}, 1)}
	for _, d := range cfg.Domains {
		s := newSite(d.Name, sourceACME)
		switch {
		case cfg.CertFile != "":
			s.source = sourceFiles
		case d.Local:
			s.source = sourceLocal
		}
		p.sites = append(p.sites, s)
		p.byName[s.name] = s
	}
	if err := p.open(dir); err != nil {
		return nil, err
	}
	p.responder = challenge.NewResponder(p.tokens, func(host string) bool { return p.byName[host] != nil })
	return p, nil
}

func newSite(name, source string) *site {
	return &site{name: name, source: source, requests: make(chan *request), wake: make(chan struct{}, 1)}
}

// open loads certificates from the data folder dir, or from the certificate files.
func (p *Provider) open(dir string) error {
	if p.cfg.CertFile != "" {
		p.files = newFiles(p)
		return p.files.load()
	}
	for _, s := range p.sites {
		var err error
		switch s.source {
		case sourceACME:
			err = p.addACME(s, filepath.Join(dir, store.ACME))
		case sourceLocal:
			err = p.addLocal(s, filepath.Join(dir, localca.Folder))
		}
		if err != nil {
			return err
		}
	}
	p.importCertificates()
	return nil
}

// addACME gives s its authorities, whose state is in folders below dir, and its stored certificate.
func (p *Provider) addACME(s *site, dir string) error {
	if p.issuers == nil {
		if err := p.openIssuers(dir); err != nil {
			return err
		}
	}
	for _, is := range p.issuers {
		s.authorities = append(s.authorities, newAuthority(is, is.directory, is.store, is.copies))
	}
	// Without what is stored, the first attempt would order what is there already.
	if err := p.look(s); err != nil && !errors.Is(err, store.ErrAway) {
		return fmt.Errorf("acme: %w", err)
	}
	for _, a := range s.authorities {
		p.useCopy(s, a)
	}
	for _, a := range s.authorities {
		a.plan.restarted()
	}
	return nil
}

// openIssuers opens the locks, the tokens, and the state of each CA.
func (p *Provider) openIssuers(dir string) error {
	ctx, cancel := context.WithTimeout(context.Background(), openTimeout)
	defer cancel()
	var seal *store.Sealer
	var err error
	cfg := p.cfg
	if cfg.Shared == nil {
		if p.tokens, err = challenge.InFolder(filepath.Join(dir, store.Tokens), p.now()); err != nil {
			return fmt.Errorf("acme: tokens: %w", err)
		}
	} else {
		if seal, err = store.NewSealer(cfg.SealKeys); err != nil {
			return err
		}
		p.tokens = challenge.InShared(cfg.Shared, seal)
	}
	if p.locks, _, err = store.Open(cfg.Shared, seal, dir, store.Locks, cfg.now, p.log); err != nil {
		return err
	}
	urls := []string{cfg.DirectoryURL}
	if cfg.FallbackURL != "" {
		urls = append(urls, cfg.FallbackURL)
	}
	for _, u := range urls {
		is, err := newIssuer(ctx, &cfg, seal, u, dir, p.tokens)
		if err != nil {
			return err
		}
		p.issuers = append(p.issuers, is)
		cfg.EABKeyID, cfg.EABKey = cfg.FallbackEABKeyID, cfg.FallbackEABKey
	}
	return nil
}

// addLocal issues a certificate of the local CA in dir for s. That takes a millisecond, so the first visitor
// is served.
func (p *Provider) addLocal(s *site, dir string) error {
	if p.local == nil {
		ca, err := localca.Open(dir, p.cfg.now, p.log)
		if err != nil {
			return err
		}
		p.local = ca
	}
	cert, err := p.local.Issue(s.name)
	if err != nil {
		return err
	}
	p.serve(s, cert, nil, true)
	return nil
}

// now returns the wall clock's time, without a monotonic reading: a clock that was set must be noticed.
func (p *Provider) now() time.Time { return p.cfg.now().Round(0) }

// Run obtains missing certificates at once and renews all of them until ctx is done. Then it ends any attempt
// in progress and returns nil; no goroutine of it is left. The listeners that use [Provider.TLSConfig] and
// [Provider.HTTPHandler] must accept before Run is called, since the CA connects within milliseconds.
//
// A failure is logged in one line, shown by [Provider.Ready] and [Provider.Status], and tried again.
func (p *Provider) Run(ctx context.Context) error {
	if p.local != nil {
		p.local.Announce()
	}
	for _, s := range p.sites {
		if s.source == sourceLocal && isAddress(s.name) {
			p.log.Info("local certificate: no public CA certifies this address", "domain", s.name, "reason", WhyLocal(s.name))
		}
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
