// Package check finds out what would keep a server from getting its certificates, before it spends an order
// on finding out.
//
// It looks at the data folder and the shared store, the CA and this machine's clock, and then at each domain:
// what earlier runs stored, its addresses and CAA records in the DNS unless it is an address itself, and whether a challenge's answer arrives
// on ports 80 and 443 of each address. [Run] answers its own probes, or has a server that runs on the same
// data folder answer them, through the tokens that both share. While it probes port 443, it holds the domain's
// lock: an order's answer there has the same name as the probe's.
//
// Run starts a goroutine for each CA, domain and probe, and waits for all of them before it returns.
package check

import (
	"cmp"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"log"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	xacme "golang.org/x/crypto/acme"

	"plusminus/acme"
	"plusminus/acme/internal/challenge"
	"plusminus/acme/internal/store"
)

const (
	timeout    = 10 * time.Second // for each step that uses the network: one CA, one domain's lookups, one probe
	maxDomains = 16               // checked at once
)

// Level is how bad a [Finding] is.
type Level int

const (
	OK      Level = iota
	Warning       // works, but has a risk; or this machine cannot tell
	Problem       // certificates would not be obtained, or would be lost
)

// String returns "ok", "warning" or "problem".
func (l Level) String() string {
	switch l {
	case OK:
		return "ok"
	case Warning:
		return "warning"
	case Problem:
		return "problem"
	}
	return fmt.Sprintf("Level(%d)", int(l))
}

// A Finding is one result of a check.
type Finding struct {
	Domain  string // empty if it concerns all domains
	Subject string // what was checked, in a few words: "port 80"
	Level   Level
	Text    string // one line: what was found and, unless Level is OK, what to do
}

// Port says how to answer the CA on one of its two ports. With the zero value nothing answers, so the port's
// challenge is not available.
type Port struct {
	// Listeners are open listeners on which Run answers. Run closes them.
	Listeners []net.Listener

	// Running is used when Listeners is empty: a host:port that leads, from this machine, to the program that
	// has the port. A plusminus that runs on the same data folder answers in place of Run.
	Running string
}

func (p Port) none() bool { return len(p.Listeners) == 0 && p.Running == "" }

// Config says what to check.
type Config struct {
	// Config is the server's. Without Domains, Run checks only Dir. An empty Dir is not checked; it is allowed
	// without Domains or with CertFile. Logger is not used.
	acme.Config

	// HTTP answers http-01 probes, TLS answers tls-alpn-01 probes. The CA always connects to ports 80 and 443,
	// so those ports must lead to these.
	HTTP, TLS Port

	// Dial makes each connection, including those to name servers ("udp" and "tcp", port 53). Nil is
	// [net.Dialer.DialContext].
	Dial func(ctx context.Context, network, address string) (net.Conn, error)

	// Test hooks. Run replaces zero values.
	now         func() time.Time
	systemRoots *x509.CertPool // nil is the system's
	mountinfo   string         // a file in place of /proc/self/mountinfo
	resolvConf  string         // a file in place of /etc/resolv.conf
}

// Run checks what cfg describes. It calls report with each finding as soon as that is known: first the
// findings about all domains, then domain by domain, in order. It calls report only from the goroutine that
// called Run.
//
// Run asks the CA for its directory and, if there is an account key, for the account. It makes no account and
// places no order, so it uses up none of the CA's limits. It leaves no files, but for an empty lock for each
// domain if a server has run before. A server may run on the same data folder meanwhile.
//
// Run takes some seconds, and at most about half a minute for 16 domains. The error is one of
// [acme.Config.Validate], or that of ctx: Run returns soon after ctx is done. What it finds is no error.
func Run(ctx context.Context, cfg Config, report func(Finding)) error {
	defer func() {
		for _, ln := range slices.Concat(cfg.HTTP.Listeners, cfg.TLS.Listeners) {
			ln.Close()
		}
	}()
	cfg.DirectoryURL = cmp.Or(cfg.DirectoryURL, acme.LetsEncrypt)
	cfg.mountinfo = cmp.Or(cfg.mountinfo, "/proc/self/mountinfo")
	cfg.resolvConf = cmp.Or(cfg.resolvConf, "/etc/resolv.conf")
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
		if err := v.Validate(); err != nil {
			return err
		}
	}
	c := &checker{cfg: cfg, report: report, dns: newResolver(cfg.resolvConf, cfg.Dial)}
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

// A checker is one call of Run.
type checker struct {
	// Immutable once the first domainCheck has begun.
	cfg    Config
	dns    *resolver
	tokens *challenge.Tokens // the answers to the probes
	shared bool              // a server on the same data folder or shared store reads tokens, too
	seal   *store.Sealer     // nil without Config.Shared, or if the shared store cannot be used
	cas    []*caCheck        // the CA and, if there is one, the fallback; none without ACME domains
	inside bool              // the CA has a private address, so it reaches the addresses of its network
	own    []netip.Addr      // the addresses of this machine's interfaces
	noDir  bool              // the data folder must not be written to, or cannot be

	report func(Finding) // only for the goroutine that called Run
}

func (c *checker) say(level Level, subject, format string, args ...any) {
	c.report(Finding{Subject: subject, Level: level, Text: fmt.Sprintf(format, args...)})
}

// checkDomains checks what all domains need, and then each domain.
func (c *checker) checkDomains(ctx context.Context) {
	if c.cfg.CertFile != "" {
		c.checkFiles()
		return
	}
	if slices.ContainsFunc(c.cfg.Domains, func(d acme.Domain) bool { return !d.Local }) {
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

	// Domains are checked at the same time and reported one after the other. The check of a later domain waits
	// when its channel is full.
	slots := make(chan struct{}, maxDomains)
	found := make([]chan Finding, len(c.cfg.Domains))
	var wg sync.WaitGroup
	defer wg.Wait()
	for i := range c.cfg.Domains {
		found[i] = make(chan Finding, 64)
	}
	wg.Go(func() {
		for i, d := range c.cfg.Domains {
			slots <- struct{}{}
			wg.Go(func() {
				defer func() { <-slots }()
				defer close(found[i])
				s := &domainCheck{checker: c, name: d.Name, ctx: ctx, out: found[i]}
				s.address, _ = netip.ParseAddr(d.Name)
				if d.Local {
					s.checkLocal()
				} else {
					s.check()
				}
			})
		}
	})
	for _, findings := range found {
		for f := range findings {
			if ctx.Err() == nil { // later findings may be failures that ctx caused
				c.report(f)
			}
		}
	}
}

// store returns the server's store called name. It makes nothing.
func (c *checker) store(name string) store.Store {
	if c.seal != nil {
		return store.NewShared(c.cfg.Shared, c.seal, name, nil, c.cfg.now, c.cfg.Logger)
	}
	return store.NewFolder(filepath.Join(c.cfg.Dir, store.ACME, name), c.cfg.now, c.cfg.Logger)
}

// checkShared checks that the shared store can be read and written, and that its entries open with one of our
// keys. Otherwise the check continues without the shared store.
func (c *checker) checkShared(ctx context.Context) {
	const subject = "shared store"
	seal, err := store.NewSealer(c.cfg.SealKeys)
	if err == nil {
		err = store.TryShared(ctx, c.cfg.Shared, seal, c.cfg.DirectoryURL)
	}
	switch {
	case errors.Is(err, store.ErrOtherKey):
		c.say(Problem, subject, "%v: all replicas need the same key", err)
	case err != nil:
		c.say(Problem, subject, "%v", err)
	default:
		c.seal = seal
		c.say(OK, subject, "%s can be written: certificates are shared through it, sealed", c.cfg.Shared)
	}
}

// openTokens sets tokens to the storage that a server reads, if one has run on this data folder or uses the
// shared store. Otherwise tokens are in memory.
func (c *checker) openTokens() {
	c.tokens = new(challenge.Tokens)
	if c.cfg.Shared != nil {
		if c.seal != nil {
			c.tokens, c.shared = challenge.InShared(c.cfg.Shared, c.seal), true
		}
		return
	}
	dir := filepath.Join(c.cfg.Dir, store.ACME, store.Tokens)
	if info, err := os.Stat(dir); c.noDir || err != nil || !info.IsDir() {
		return
	}
	t, err := challenge.InFolder(dir, c.cfg.now())
	if err != nil {
		c.say(Problem, "data folder", "%v", err)
		return
	}
	c.tokens, c.shared = t, true
}

// answer answers challenges on our listeners until stop is called.
func (c *checker) answer() (stop func()) {
	responder := challenge.NewResponder(c.tokens, func(host string) bool {
		return slices.ContainsFunc(c.cfg.Domains, func(d acme.Domain) bool { return d.Name == host })
	})
	tlsConfig := &tls.Config{
		NextProtos: []string{"http/1.1", xacme.ALPNProto},
		GetCertificate: func(hello *tls.ClientHelloInfo) (*tls.Certificate, error) {
			if !challenge.IsValidation(hello) {
				return nil, errors.New("acme: a check answers only challenges")
			}
			return responder.GetCertificate(hello)
		},
	}
	server := &http.Server{
		Handler:           responder.HTTPHandler(http.NotFoundHandler()),
		ReadHeaderTimeout: timeout,
		ErrorLog:          log.New(io.Discard, "", 0), // strangers connect, too
	}
	var wg sync.WaitGroup
	for _, ln := range c.cfg.HTTP.Listeners {
		wg.Go(func() { server.Serve(ln) })
	}
	for _, ln := range c.cfg.TLS.Listeners {
		wg.Go(func() { server.Serve(tls.NewListener(ln, tlsConfig)) })
	}
	return func() {
		server.Close()
		wg.Wait()
	}
}

// list joins items with commas. It returns "none" for no items.
func list[S ~string](items []S) string {
	var all []string
	for _, s := range items {
		all = append(all, string(s))
	}
	return cmp.Or(strings.Join(all, ", "), "none")
}
