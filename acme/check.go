package acme

import (
	"cmp"
	"context"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log"
	"log/slog"
	"maps"
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
	"syscall"
	"time"

	xacme "golang.org/x/crypto/acme"
	"golang.org/x/crypto/acme/autocert"
)

const (
	checkTimeout = 10 * time.Second // for each step that uses the network: one CA, one name's lookups, one probe
	maxSites     = 16               // how many domains are checked at once
	fairSkew     = 30 * time.Second // a clock that is further off is not being kept right
)

// Level is how bad a [Finding] is.
type Level int

const (
	LevelOK      Level = iota
	LevelWarning       // works, but has a risk; or cannot be told from here
	LevelProblem       // certificates would not be obtained, or would be lost
)

func (l Level) String() string {
	switch l {
	case LevelOK:
		return "ok"
	case LevelWarning:
		return "warning"
	case LevelProblem:
		return "problem"
	}
	return fmt.Sprintf("Level(%d)", int(l))
}

// A Finding is one thing that [Check] found out.
type Finding struct {
	Domain  string // empty if it concerns all of them
	Subject string // what was looked at: a few words, such as "port 80"
	Level   Level
	Text    string // one line; what is so and, unless it is well, what to do
}

// Port says who answers the CA on one of the two ports that it asks: Check itself, or a server that
// runs already. The zero value is nobody, so that the port's challenge is not to be had.
type Port struct {
	// Listeners are open ones on which Check answers. It closes them.
	Listeners []net.Listener

	// Running is used when Listeners is empty: a host:port that reaches, from this machine, whoever
	// has the port. A server of ours that runs on the same data folder answers in Check's place.
	Running string
}

func (p Port) off() bool { return len(p.Listeners) == 0 && p.Running == "" }

// CheckConfig says what to check.
type CheckConfig struct {
	// Config is the server's. Without Domains only Dir is looked at. An empty Dir is not looked at, and
	// allowed with no Domains or with CertFile. Logger is not used.
	Config

	// HTTP is asked for http-01 answers, TLS for tls-alpn-01. The CA always asks on ports 80 and 443,
	// so these have to lead to the two.
	HTTP, TLS Port

	// Dial makes each connection, the DNS queries ("udp" and "tcp", to port 53) included. Nil is
	// [net.Dialer.DialContext].
	Dial func(ctx context.Context, network, address string) (net.Conn, error)

	// Test hooks. Empty is the real thing.
	mountinfo  string // a file in place of /proc/self/mountinfo
	resolvConf string // a file in place of /etc/resolv.conf
}

// Check finds out what would keep a server with this configuration from getting its certificates, and
// hands each finding to report as soon as it is known: first what concerns all domains, and then domain
// by domain, in order. report is called from the goroutine that called Check.
//
// It asks the CA for its directory and, if there is an account key, whether it knows the account; it
// makes no account and places no order, so that none of the CA's limits are touched. It makes no files
// that stay, except an empty lock for each domain where a server has run before. A server may run on
// the same data folder meanwhile: what it is doing is not disturbed.
//
// It takes at most about half a minute, and some seconds if all is well; with more than 16 domains, as
// much again for each further 16. The error is about a configuration that [New] would refuse, or
// ctx's: Check returns soon after that is done. Problems that it finds are no error.
func Check(ctx context.Context, cfg CheckConfig, report func(Finding)) error {
	defer func() {
		for _, ln := range slices.Concat(cfg.HTTP.Listeners, cfg.TLS.Listeners) {
			ln.Close()
		}
	}()
	if cfg.DirectoryURL == "" {
		cfg.DirectoryURL = LetsEncrypt
	}
	if cfg.now == nil {
		cfg.now = time.Now
	}
	if cfg.Dial == nil {
		cfg.Dial = new(net.Dialer).DialContext
	}
	cfg.Logger = slog.New(slog.DiscardHandler)
	if len(cfg.Domains) > 0 {
		v := cfg.Config
		if v.CertFile != "" {
			v.Dir = cmp.Or(v.Dir, ".")
		}
		if err := v.validate(); err != nil {
			return err
		}
	}
	c := &checker{
		cfg:    cfg,
		report: report,
		dns:    newResolver(cmp.Or(cfg.resolvConf, "/etc/resolv.conf"), cfg.Dial),
	}
	if cfg.Dir != "" {
		dir, err := filepath.Abs(cfg.Dir)
		if err != nil {
			return fmt.Errorf("acme: data folder: %w", err)
		}
		c.cfg.Dir = dir
		c.checkFolder()
	}
	if len(cfg.Domains) > 0 {
		c.checkDomains(ctx)
	}
	return ctx.Err()
}

// A checker is one call of Check.
type checker struct {
	// Immutable after checkDomains has begun with the domains.
	cfg    CheckConfig
	dns    *resolver
	tokens *tokens      // what the answers to our probes are put into
	shared bool         // tokens are in a folder or shared otherwise, and a server that looks there answers, too
	seal   *sealer      // nil without Config.Shared, or if that is not to be had
	cas    []*checkedCA // the CA and, if there is one, the fallback; none without ACME domains
	inside bool         // the CA has a private address: it reaches those of its network
	own    []netip.Addr // the addresses of this machine's interfaces
	noDir  bool         // the data folder is not to be written to, or cannot be

	report func(Finding) // for the goroutine that called Check
}

func (c *checker) say(level Level, subject, format string, args ...any) {
	c.report(Finding{Subject: subject, Level: level, Text: fmt.Sprintf(format, args...)})
}

// checkDomains checks what is needed for the domains, and then each.
func (c *checker) checkDomains(ctx context.Context) {
	if c.cfg.CertFile != "" {
		c.checkFiles()
		return
	}
	isLocal := func(d Domain) bool { return d.Local || isIP(d.Name) }
	if slices.ContainsFunc(c.cfg.Domains, func(d Domain) bool { return !isLocal(d) }) {
		if c.cfg.Shared != nil {
			c.checkShared(ctx)
		}
		c.checkCAs(ctx)
		if ctx.Err() != nil {
			return
		}
		c.openTokens()
		c.own = ownAddresses()
		defer c.answer()()
	}

	// Domains are checked together, and told one after the other: whoever is not being told about yet
	// waits when it has said as much as fits.
	slots := make(chan struct{}, maxSites)
	told := make([]chan Finding, len(c.cfg.Domains))
	var wg sync.WaitGroup
	defer wg.Wait()
	for i := range c.cfg.Domains {
		told[i] = make(chan Finding, 64)
	}
	wg.Go(func() {
		for i, d := range c.cfg.Domains {
			slots <- struct{}{}
			wg.Go(func() {
				defer func() { <-slots }()
				defer close(told[i])
				s := &checkedSite{checker: c, name: d.Name, ctx: ctx, out: told[i]}
				if isLocal(d) {
					s.checkLocal()
				} else {
					s.check()
				}
			})
		}
	})
	for _, findings := range told {
		for f := range findings {
			if ctx.Err() == nil { // what was cut off would be told as what failed
				c.report(f)
			}
		}
	}
}

// store returns what the server has under the given name. It makes nothing.
func (c *checker) store(name string) store {
	if c.seal != nil {
		return &sharedStore{shared: c.cfg.Shared, seal: c.seal, prefix: "acme/" + name + "/", now: c.cfg.now, log: c.cfg.Logger}
	}
	return &folder{dir: filepath.Join(c.cfg.Dir, "acme", name), now: c.cfg.now, log: c.cfg.Logger}
}

// checkShared checks that what replicas share can be read and written, and is sealed with a key that we
// have. If not, the check goes on as if nothing were shared.
func (c *checker) checkShared(ctx context.Context) {
	const subject = "shared store"
	seal, err := newSealer(c.cfg.SealKeys)
	if err == nil {
		err = c.tryShared(ctx, seal)
	}
	switch {
	case errors.Is(err, errOtherKey):
		c.say(LevelProblem, subject, "%v: all replicas need the same key", err)
	case err != nil:
		c.say(LevelProblem, subject, "%v", err)
	default:
		c.seal = seal
		c.say(LevelOK, subject, "%s can be written: certificates are shared through it, sealed", c.cfg.Shared)
	}
}

// tryShared writes, reads and takes away what nobody else looks at, and then reads what others wrote.
func (c *checker) tryShared(ctx context.Context, seal *sealer) error {
	name := "acme/check/" + rand.Text()
	sealed, err := seal.seal(name, make([]byte, 8<<10))
	if err != nil {
		return err
	}
	if err := c.cfg.Shared.Put(ctx, name, "", sealed, time.Minute); err != nil {
		return err
	}
	if sealed, _, err = c.cfg.Shared.Get(ctx, name); err == nil {
		_, err = seal.open(name, sealed)
	}
	if err := errors.Join(err, c.cfg.Shared.Delete(ctx, name)); err != nil {
		return err
	}
	account := "acme/" + directoryName(c.cfg.DirectoryURL) + "/" + accountKeyName
	if sealed, _, err = c.cfg.Shared.Get(ctx, account); err == nil {
		_, err = seal.open(account, sealed)
	}
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, errDamaged) { // as at first; the server copes
		return nil
	}
	return err
}

// A checkedCA is one CA as Check sees it.
type checkedCA struct {
	url       string
	fallback  bool
	eab       bool // we have an external account binding for it
	store     store
	base      *http.Transport
	remote    atomic.Pointer[string] // the address that was connected to last
	directory xacme.Directory
	skew      time.Duration
	err       error // the directory is not to be had

	account    string // URL; empty if there is none, or it is not known
	accountErr error  // why it is not known
}

func (c *checker) checkCAs(ctx context.Context) {
	add := func(url string, fallback, eab bool) {
		ca := &checkedCA{url: url, fallback: fallback, eab: eab, base: newTransport(c.cfg.RootCAs)}
		ca.base.DialContext = func(ctx context.Context, network, address string) (net.Conn, error) {
			conn, err := c.cfg.Dial(ctx, network, address)
			if err == nil {
				remote := conn.RemoteAddr().String()
				ca.remote.Store(&remote)
			}
			return conn, err
		}
		ca.store = c.store(directoryName(url))
		c.cas = append(c.cas, ca)
	}
	add(c.cfg.DirectoryURL, false, c.cfg.EABKeyID != "")
	if c.cfg.FallbackURL != "" {
		add(c.cfg.FallbackURL, true, c.cfg.FallbackEABKeyID != "")
	}
	var wg sync.WaitGroup
	for _, ca := range c.cas {
		wg.Go(func() { c.ask(ctx, ca) })
	}
	wg.Wait()
	if ctx.Err() != nil {
		return
	}
	c.inside = c.cas[0].insideNetwork()
	for _, ca := range c.cas {
		c.tell(ca)
	}
}

// ask asks ca for its directory and, if that matters, about our account.
func (c *checker) ask(ctx context.Context, ca *checkedCA) {
	defer ca.base.CloseIdleConnections()
	ctx, cancel := context.WithTimeoutCause(ctx, checkTimeout, fmt.Errorf("no answer within %v", checkTimeout))
	defer cancel()
	t := &transport{base: &bounded{ca.base, checkTimeout}, now: c.cfg.now}
	client := &xacme.Client{DirectoryURL: ca.url, HTTPClient: &http.Client{Transport: t}, UserAgent: "plusminus", RetryBackoff: retryBackoff}
	if ca.directory, ca.err = client.Discover(ctx); ca.err != nil {
		if ctx.Err() != nil {
			ca.err = context.Cause(ctx)
		}
		return
	}
	ca.skew = t.skew

	// The key may be there without an account. Asking makes none (onlyReturnExisting).
	// https://www.rfc-editor.org/rfc/rfc8555#section-7.3.1
	data, err := ca.store.read(accountKeyName)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ENOTDIR) {
		return
	}
	if err == nil {
		if client.Key, err = parseKey(data); err == nil {
			var account *xacme.Account
			if account, err = client.GetReg(ctx, ""); err == nil {
				ca.account = account.URI
			}
		}
	}
	if err != nil && !errors.Is(err, xacme.ErrNoAccount) {
		ca.accountErr = err
	}
}

// insideNetwork reports whether the CA has a private address. Through a proxy it cannot be told.
func (ca *checkedCA) insideNetwork() bool {
	req, err := http.NewRequest(http.MethodGet, ca.url, nil)
	if err != nil {
		return false
	}
	if proxy, err := ca.base.Proxy(req); proxy != nil || err != nil {
		return false
	}
	remote := ca.remote.Load()
	if remote == nil {
		return false
	}
	addr, err := netip.ParseAddrPort(*remote)
	return err == nil && notPublic(addr.Addr()) != ""
}

// tell reports what was learnt of ca. What is a problem with the CA is a warning with the fallback,
// which is not needed as long as all is well.
func (c *checker) tell(ca *checkedCA) {
	subject, bad := "CA", LevelProblem
	if ca.fallback {
		subject, bad = "fallback CA", LevelWarning
	}
	if ca.err != nil {
		err := ca.err
		if urlErr := (*url.Error)(nil); errors.As(err, &urlErr) {
			err = urlErr.Err // without the URL, which is told
		}
		f := newFailure(nil, "directory", err, c.cfg.now())
		c.say(bad, subject, "%s does not give its directory: %s; %s", ca.url, strings.TrimPrefix(f.reason, "directory: "),
			cmp.Or(f.hint, "is this the URL of an ACME directory, and may this machine reach it?"))
		return
	}
	c.say(LevelOK, subject, "%s answers, and its own certificate is trusted here", ca.url)

	clock := &clockError{ca.skew}
	switch {
	case ca.skew.Abs() > maxSkew:
		c.say(bad, "clock", "%s: nothing would be ordered; %s", clock.off(), transportHint(clock))
	case ca.skew.Abs() > fairSkew:
		c.say(LevelWarning, "clock", "%s; %s", clock.off(), transportHint(clock))
	default:
		c.say(LevelOK, "clock", "right, going by the CA's")
	}
	switch {
	case ca.account != "":
		c.say(LevelOK, "account", "the CA knows our account, %s", ca.account)
	case ca.accountErr != nil:
		c.say(LevelWarning, "account", "there is an account key, but whether the CA knows it could not be learnt: %s", newProblem("", ca.accountErr))
	case ca.directory.ExternalAccountRequired && !ca.eab:
		c.say(bad, "account", "the CA requires an external account binding: get a key id and a key from its website, and give both")
	case ca.directory.Terms != "":
		c.say(LevelOK, "account", "one will be made, which agrees to the CA's terms of service: %s", ca.directory.Terms)
	default:
		c.say(LevelOK, "account", "one will be made")
	}
	if c.cfg.Profile != "" {
		if _, ok := ca.directory.Profiles[xacme.ProfileName(c.cfg.Profile)]; ok {
			c.say(LevelOK, "profile", "the CA has %q", c.cfg.Profile)
		} else {
			offered := slices.Sorted(maps.Keys(ca.directory.Profiles))
			c.say(LevelWarning, "profile", "the CA has no %q, and its default would be ordered; it has: %s", c.cfg.Profile, list(offered))
		}
	}
}

// list joins items, and has a word for no item.
func list[S ~string](items []S) string {
	var all []string
	for _, s := range items {
		all = append(all, string(s))
	}
	return cmp.Or(strings.Join(all, ", "), "none")
}

// openTokens finds a place for the answers to our probes: where a server that runs on the data folder
// looks for them if one has ever run, or else in memory.
func (c *checker) openTokens() {
	c.tokens = new(tokens)
	if c.cfg.Shared != nil {
		if c.seal != nil {
			c.tokens, c.shared = &tokens{shared: c.cfg.Shared, seal: c.seal}, true
		}
		return
	}
	dir := filepath.Join(c.cfg.Dir, "acme", "tokens")
	if info, err := os.Stat(dir); c.noDir || err != nil || !info.IsDir() {
		return
	}
	t, err := openTokens(dir, c.cfg.now())
	if err != nil {
		c.say(LevelProblem, "data folder", "%v", err)
		return
	}
	c.tokens, c.shared = t, true
}

// answer answers challenges on our listeners until what it returns is called.
func (c *checker) answer() (stop func()) {
	p := &Provider{cfg: c.cfg.Config, log: c.cfg.Logger, byName: make(map[string]*site), tokens: c.tokens}
	for _, d := range c.cfg.Domains {
		s := &site{name: d.Name}
		p.sites = append(p.sites, s)
		p.byName[s.name] = s
	}
	p.responder = &autocert.Manager{Prompt: autocert.AcceptTOS, HostPolicy: p.hostPolicy, Cache: p.tokens}
	server := &http.Server{
		Handler:           p.HTTPHandler(http.NotFoundHandler()),
		ReadHeaderTimeout: checkTimeout,
		ErrorLog:          log.New(io.Discard, "", 0), // strangers come, too
	}
	var wg sync.WaitGroup
	for _, ln := range c.cfg.HTTP.Listeners {
		wg.Go(func() { server.Serve(ln) })
	}
	for _, ln := range c.cfg.TLS.Listeners {
		wg.Go(func() { server.Serve(tls.NewListener(ln, p.TLSConfig())) })
	}
	return func() {
		server.Close()
		wg.Wait()
	}
}

// checkFiles checks the certificate and key that somebody else renews.
func (c *checker) checkFiles() {
	const subject = "certificate file"
	f := &files{certFile: c.cfg.CertFile, keyFile: c.cfg.KeyFile}
	certPEM, keyPEM, err := f.read()
	var cert *tls.Certificate
	if err == nil {
		cert, err = f.parse(certPEM, keyPEM)
	}
	if err != nil {
		c.say(LevelProblem, subject, "%v", err)
		return
	}
	leaf, now := cert.Leaf, c.cfg.now()
	left := leaf.NotAfter.Sub(now)
	switch until := leaf.NotAfter.UTC().Format(time.RFC3339); {
	case left < 0:
		c.say(LevelProblem, subject, "%s expired at %s: whoever renews it did not", f.certFile, until)
	case now.Before(leaf.NotBefore):
		c.say(LevelProblem, subject, "%s is valid only from %s: is this machine's clock right?", f.certFile, leaf.NotBefore.UTC().Format(time.RFC3339))
	case left < leaf.NotAfter.Sub(leaf.NotBefore)/6:
		c.say(LevelWarning, subject, "%s expires at %s, and should have been renewed by now", f.certFile, until)
	default:
		c.say(LevelOK, subject, "%s and its key fit, and are valid until %s", f.certFile, until)
	}
	p := &Provider{cfg: c.cfg.Config}
	for _, d := range c.cfg.Domains {
		finding := Finding{Domain: d.Name, Subject: subject, Level: LevelOK, Text: "covers the name"}
		switch {
		case leaf.VerifyHostname(d.Name) != nil:
			finding.Level, finding.Text = LevelProblem, "is for other names: "+list(names(leaf))
		case left > 0 && !p.verifies(cert, d.Name):
			finding.Level = LevelWarning
			finding.Text = "covers the name, but is not trusted by this system's roots: visitors need its root, or the file lacks the issuer's certificate"
		}
		c.report(finding)
	}
}

// A checkedSite is one domain that is being checked. Its methods may be called from several goroutines.
type checkedSite struct {
	*checker
	name string
	ctx  context.Context
	out  chan<- Finding // to the goroutine that called Check; closed by who started this one
}

func (s *checkedSite) say(level Level, subject, format string, args ...any) {
	s.out <- Finding{Domain: s.name, Subject: subject, Level: level, Text: fmt.Sprintf(format, args...)}
}

// checkLocal checks a name that our own CA certifies. It only looks: [openLocalCA] makes what is missing.
func (s *checkedSite) checkLocal() {
	const subject = "certificate"
	ca := &localCA{dir: filepath.Join(s.cfg.Dir, "local-ca"), now: s.cfg.now, log: s.cfg.Logger}
	switch err := ca.load(); {
	case errors.Is(err, fs.ErrNotExist):
		s.say(LevelOK, subject, "comes from a small CA of our own, which is made at the first start; clients have to trust its root then, %s", ca.rootPath())
	case errors.Is(err, fs.ErrPermission):
		s.say(LevelProblem, subject, "the CA of our own cannot be read: %v", err)
	case err != nil:
		s.say(LevelWarning, subject, "the CA of our own in %s is damaged (%v): another is made at the start, and has to be trusted anew", ca.dir, err)
	case ca.root.NotAfter.Sub(s.cfg.now()) < rootRenewal:
		s.say(LevelWarning, subject, "the root of our own CA, %s, expires at %s: another is made at the start, and has to be trusted anew",
			ca.rootPath(), ca.root.NotAfter.UTC().Format(time.RFC3339))
	default:
		if _, err := ca.root.Verify(x509.VerifyOptions{Roots: s.cfg.systemRoots, CurrentTime: s.cfg.now()}); err == nil {
			s.say(LevelOK, subject, "comes from a CA of our own, which this system trusts")
			return
		}
		s.say(LevelOK, subject, "comes from a CA of our own, whose root clients have to trust: %s", ca.rootPath())
	}
}

// check checks a name that a CA certifies.
func (s *checkedSite) check() {
	s.checkStored()

	var caa []caaVerdict
	var wg sync.WaitGroup
	wg.Go(func() { caa = s.checkCAA() })
	addrs, looked := s.checkAddresses()
	var states map[string]portState
	if len(addrs) > 0 {
		states = s.probeAll(addrs)
	}
	wg.Wait()
	if len(addrs) == 0 {
		if looked {
			return // that is what is wrong
		}
		s.say(LevelWarning, "challenges", "could not be tried, since the name could not be looked up")
		return
	}
	allowed := challengeNames()
	if len(caa) > 0 && caa[0].methods != nil {
		allowed = caa[0].methods
	}
	s.conclude(states, allowed)
}

// checkStored tells what is left from earlier runs of the server.
func (s *checkedSite) checkStored() {
	ca, now := s.cas[0], s.cfg.now()
	if data, err := ca.store.read(s.name); err == nil {
		cert, err := tls.X509KeyPair(data, data)
		if err == nil && invalidity(&certificate{Certificate: cert}, s.name, now) == "" {
			s.say(LevelOK, "certificate", "there is one, valid until %s: no order is placed before it is to be renewed", cert.Leaf.NotAfter.UTC().Format(time.RFC3339))
		}
	} else if errors.Is(err, errDamaged) {
		s.say(LevelWarning, "certificate", "%s is damaged, and will be set aside", ca.store.path(s.name))
	}
	data, err := ca.store.read(s.name + planSuffix)
	if err != nil {
		return
	}
	plan, err := parsePlan(data, now)
	if err != nil || plan.LastError == nil {
		return
	}
	plan.restarted()
	text := fmt.Sprintf("the last attempt failed, at %s: %s", plan.LastError.When.UTC().Format(time.RFC3339), oneLine(plan.LastError.Reason))
	if plan.LastError.Hint != "" {
		text += " (" + plan.LastError.Hint + ")"
	}
	if at := plan.attemptTime(now, 0, false); at.After(now) {
		text += "; the next one is not made before " + at.UTC().Format(time.RFC3339)
	}
	s.say(LevelWarning, "certificate", "%s", text)
}
