package check

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	xacme "golang.org/x/crypto/acme"

	"plusminus/acme"
	"plusminus/acme/internal/cahttp"
	"plusminus/acme/internal/certs"
	"plusminus/acme/internal/store"
)

// A caCheck is the check of one CA.
type caCheck struct {
	url       string
	fallback  bool
	eab       bool // the configuration has an external account binding for it
	store     store.Store
	base      *http.Transport
	remote    atomic.Pointer[string] // the address of the last connection
	directory xacme.Directory
	skew      time.Duration
	err       error // why there is no directory

	account    string // URL; empty if there is none, or if it is not known
	accountErr error  // why it is not known

	deactivated bool // the CA has deactivated the account of our key
}

// checkCAs checks the CA and the fallback at the same time, and reports one after the other.
func (c *checker) checkCAs(ctx context.Context) {
	add := func(directoryURL string, fallback, eab bool) {
		ca := &caCheck{url: directoryURL, fallback: fallback, eab: eab, base: cahttp.NewTransport(c.cfg.RootCAs)}
		ca.base.DialContext = func(ctx context.Context, network, address string) (net.Conn, error) {
			conn, err := c.cfg.Dial(ctx, network, address)
			if err == nil {
				remote := conn.RemoteAddr().String()
				ca.remote.Store(&remote)
			}
			return conn, err
		}
		ca.store = c.store(store.DirectoryName(directoryURL))
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

// ask asks ca for its directory and, if there is an account key, for the account.
func (c *checker) ask(ctx context.Context, ca *caCheck) {
	defer ca.base.CloseIdleConnections()
	ctx, cancel := context.WithTimeoutCause(ctx, timeout, fmt.Errorf("no answer within %v", timeout))
	defer cancel()
	t := &skewMeter{base: &cahttp.Bounded{Base: ca.base, Timeout: timeout}, now: c.cfg.now}
	client := &xacme.Client{DirectoryURL: ca.url, HTTPClient: &http.Client{Transport: t}, UserAgent: cahttp.UserAgent, RetryBackoff: cahttp.RetryBackoff}
	if ca.directory, ca.err = client.Discover(ctx); ca.err != nil {
		if ctx.Err() != nil {
			ca.err = context.Cause(ctx)
		}
		return
	}
	ca.skew = t.skew

	// The key may exist without an account. GetReg makes none (onlyReturnExisting).
	// https://www.rfc-editor.org/rfc/rfc8555#section-7.3.1
	data, err := ca.store.Read(store.AccountKey)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ENOTDIR) {
		return
	}
	if err == nil {
		if client.Key, err = certs.ParseKey(data); err == nil {
			var account *xacme.Account
			if account, err = client.GetReg(ctx, ""); err == nil {
				ca.account = account.URI
			}
		}
	}
	switch {
	case cahttp.Deactivated(err): // the server would make another
		ca.deactivated = true
	case err != nil && !errors.Is(err, xacme.ErrNoAccount):
		ca.accountErr = err
	}
}

// insideNetwork reports whether the CA has a private address. With a proxy in between it returns false, since the
// address is then not known.
func (ca *caCheck) insideNetwork() bool {
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
	return err == nil && acme.WhyNotPublic(addr.Addr()) != ""
}

// tell reports the findings about ca. A problem with the fallback is only a warning: it is not needed while the CA
// works.
func (c *checker) tell(ca *caCheck) {
	subject, bad := "CA", Problem
	if ca.fallback {
		subject, bad = "fallback CA", Warning
	}
	if ca.err != nil {
		err := ca.err
		if urlErr := (*url.Error)(nil); errors.As(err, &urlErr) {
			err = urlErr.Err // the finding names the URL already
		}
		p := cahttp.NewProblem("directory", err)
		c.say(bad, subject, "%s does not give its directory: %s; %s", ca.url, p.Detail,
			cmp.Or(p.Hint(), cahttp.Hint(err), "is this the URL of an ACME directory, and may this machine reach it?"))
		return
	}
	c.say(OK, subject, "%s answers, and its own certificate is trusted here", ca.url)

	off, hint := cahttp.Off(ca.skew), cahttp.Hint(new(cahttp.ClockError))
	switch {
	case ca.skew.Abs() > cahttp.MaxSkew:
		c.say(bad, "clock", "%s: nothing would be ordered; %s", off, hint)
	case ca.skew.Abs() > cahttp.FairSkew:
		c.say(Warning, "clock", "%s; %s", off, hint)
	default:
		c.say(OK, "clock", "right, going by the CA's")
	}
	switch {
	case ca.account != "":
		c.say(OK, "account", "the CA knows our account, %s", ca.account)
	case ca.deactivated:
		c.say(bad, "account", "the CA has deactivated our account: with its next order the server sets the account key aside and makes a new account; "+
			"if a CAA record or an external account binding names the old one, change that")
	case ca.accountErr != nil:
		c.say(Warning, "account", "there is an account key, but the CA did not say whether it knows the account: %s", cahttp.NewProblem("", ca.accountErr))
	case ca.directory.ExternalAccountRequired && !ca.eab:
		c.say(bad, "account", "the CA requires an external account binding: get a key id and a key from its website, and give both")
	case ca.directory.Terms != "":
		c.say(OK, "account", "one will be made, which agrees to the CA's terms of service: %s", ca.directory.Terms)
	default:
		c.say(OK, "account", "one will be made")
	}
	offered := slices.Sorted(maps.Keys(ca.directory.Profiles))
	if _, ok := ca.directory.Profiles[acme.AddressProfile]; len(offered) > 0 && !ok && slices.ContainsFunc(c.cfg.Domains, acme.Domain.OrderedAddress) {
		c.say(bad, "profile", "the CA has no %q, which an IP address needs; it has: %s", acme.AddressProfile, list(offered))
	}
	if c.cfg.Profile != "" {
		if _, ok := ca.directory.Profiles[xacme.ProfileName(c.cfg.Profile)]; ok {
			c.say(OK, "profile", "the CA has %q", c.cfg.Profile)
		} else {
			c.say(Warning, "profile", "the CA has no %q, and its default would be ordered; it has: %s", c.cfg.Profile, list(offered))
		}
	}
}

// A skewMeter is an [http.RoundTripper] that measures how far the CA's clock is from ours.
type skewMeter struct {
	base http.RoundTripper
	now  func() time.Time
	skew time.Duration // the CA's clock minus ours, by the last answer with a Date
}

func (m *skewMeter) RoundTrip(req *http.Request) (*http.Response, error) {
	res, err := m.base.RoundTrip(req)
	if err != nil {
		return nil, err
	}
	if skew, ok := cahttp.Skew(res.Header, m.now()); ok {
		m.skew = skew
	}
	return res, nil
}
