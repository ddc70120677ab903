package check

import (
	"bytes"
	"cmp"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/asn1"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	xacme "golang.org/x/crypto/acme"

	"plusminus/acme"
	"plusminus/acme/internal/cahttp"
	"plusminus/acme/internal/certs"
	"plusminus/acme/internal/challenge"
	"plusminus/acme/internal/store"
)

const (
	// lockPatience is how long a probe of port 443 waits for the domain's lock. A server holds the lock during an
	// order, and for about a second when it fetches renewal information.
	lockPatience = 3 * time.Second

	// maxRedirects is how many redirects a probe follows to an http-01 answer. Boulder follows as many.
	// https://letsencrypt.org/docs/challenge-types/#http-01-challenge
	maxRedirects = 10
)

// portNumber returns the port to which a CA connects: "this connection MUST use TCP port 443" (RFC 8737 section 3),
// and port 80 (RFC 8555 section 8.3).
func portNumber(typ string) string {
	if typ == challenge.HTTP01 {
		return "80"
	}
	return "443"
}

// An outcome is the result of a probe.
type outcome int

const (
	answered    outcome = iota // the answer is the one that the CA wants
	foreign                    // another program answered
	stranger                   // another plusminus answered: it does not serve the name, or has another data folder
	refused                    // connection refused
	timedOut                   // no answer within timeout
	unreachable                // this machine has no route
	dropped                    // the connection was closed without an answer
)

// A probe is an outcome, with text for the finding.
type probe struct {
	outcome outcome
	text    string
}

// failedProbe returns the probe that ended with err, without an answer.
func failedProbe(ctx context.Context, err error) probe {
	var netErr net.Error
	switch {
	case isAny(err, errsRefused):
		return probe{refused, "connection refused"}
	case isAny(err, errsUnreachable):
		return probe{unreachable, "this machine has no route there"}
	case ctx.Err() != nil, errors.As(err, &netErr) && netErr.Timeout():
		return probe{timedOut, fmt.Sprintf("no answer within %v", timeout)}
	case isAny(err, errsDropped), errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF),
		strings.Contains(err.Error(), "server closed idle connection"): // net/http's error for a connection that closes before the request
		return probe{dropped, "the connection was closed without an answer"}
	}
	var urlErr *url.Error
	if errors.As(err, &urlErr) {
		err = urlErr.Err // the finding names the URL already
	}
	return probe{foreign, "another server answers: " + cahttp.OneLine(err.Error())}
}

func isAny(err error, targets []error) bool {
	return slices.ContainsFunc(targets, func(target error) bool { return errors.Is(err, target) })
}

// probeHTTP requests the answer to an http-01 challenge as a CA does, but from a given address. at has that address for
// the ports "80" and "443". https://www.rfc-editor.org/rfc/rfc8555#section-8.3
func (s *domainCheck) probeHTTP(at map[string]string, token, want string) probe {
	ctx, cancel := context.WithTimeout(s.ctx, timeout)
	defer cancel()
	transport := &http.Transport{
		DialContext: func(ctx context.Context, network, address string) (net.Conn, error) {
			host, port, err := net.SplitHostPort(address)
			if err != nil {
				return nil, err
			}
			if strings.EqualFold(host, s.name) {
				return s.cfg.Dial(ctx, network, at[port])
			}
			return s.dialName(ctx, network, host, port)
		},
		// Boulder follows a redirect to https and ignores the certificate there.
		TLSClientConfig:   &tls.Config{InsecureSkipVerify: true},
		DisableKeepAlives: true,
	}
	client := &http.Client{
		Transport: transport,
		CheckRedirect: func(req *http.Request, via []*http.Request) error {
			if len(via) > maxRedirects {
				return fmt.Errorf("more than %d redirects", maxRedirects)
			}
			port := cmp.Or(req.URL.Port(), map[string]string{"http": "80", "https": "443"}[req.URL.Scheme])
			if port != "80" && port != "443" {
				return fmt.Errorf("a redirect to %s, which a CA does not follow", req.URL)
			}
			return nil
		},
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+s.host()+"/.well-known/acme-challenge/"+token, nil)
	if err != nil {
		return probe{foreign, err.Error()}
	}
	req.Header.Set("User-Agent", cahttp.UserAgent+" check")
	res, err := client.Do(req)
	if err != nil {
		return failedProbe(ctx, err)
	}
	defer res.Body.Close()
	body, err := io.ReadAll(io.LimitReader(res.Body, 4<<10))
	if err != nil {
		return failedProbe(ctx, err)
	}
	text := strings.TrimSpace(string(body))
	switch {
	case res.StatusCode == http.StatusOK && text == want:
		return probe{answered, "answers as the CA wants it"}
	case res.StatusCode == http.StatusForbidden && strings.Contains(text, challenge.NotOurs):
		return probe{stranger, "a plusminus answers that does not serve this name: add it to that one's -domain"}
	case res.StatusCode == http.StatusNotFound && strings.Contains(text, "acme/autocert"):
		return probe{stranger, "a plusminus answers that runs on another data folder"}
	}
	text = "another server answers: HTTP " + res.Status
	if server := res.Header.Get("Server"); server != "" {
		text += ", Server: " + cahttp.OneLine(server)
	}
	if len(res.Request.URL.Host) > 0 && res.Request.URL.String() != req.URL.String() {
		text += ", after a redirect to " + res.Request.URL.Redacted()
	}
	return probe{foreign, text}
}

// dialName connects to another host, the target of a redirect.
func (s *domainCheck) dialName(ctx context.Context, network, host, port string) (net.Conn, error) {
	addrs := []netip.Addr{}
	if addr, err := netip.ParseAddr(host); err == nil {
		addrs = append(addrs, addr)
	} else {
		l, err := s.dns.lookup(ctx, host)
		if len(l.addrs) == 0 {
			return nil, cmp.Or(err, error(&net.DNSError{Err: "no addresses", Name: host}))
		}
		addrs = l.addrs
	}
	return s.cfg.Dial(ctx, network, net.JoinHostPort(addrs[0].String(), port))
}

// acmeIdentifier is id-pe-acmeIdentifier. https://www.rfc-editor.org/rfc/rfc8737#section-6.1
var acmeIdentifier = asn1.ObjectIdentifier{1, 3, 6, 1, 5, 5, 7, 1, 31}

// probeTLS does the handshake of a tls-alpn-01 validation with addr. want is the certificate that contains the answer.
// https://www.rfc-editor.org/rfc/rfc8737#section-3
func (s *domainCheck) probeTLS(addr string, want *tls.Certificate) probe {
	ctx, cancel := context.WithTimeout(s.ctx, timeout)
	defer cancel()
	conn, err := s.cfg.Dial(ctx, "tcp", addr)
	if err != nil {
		return failedProbe(ctx, err)
	}
	defer conn.Close()
	c := tls.Client(conn, &tls.Config{ServerName: challenge.ServerName(s.name), NextProtos: []string{xacme.ALPNProto}, InsecureSkipVerify: true})
	if err := c.HandshakeContext(ctx); err != nil {
		switch {
		case errors.As(err, new(tls.RecordHeaderError)):
			return probe{foreign, "a server answers that does not speak TLS"}
		case strings.Contains(err.Error(), "no application protocol"):
			return probe{foreign, "another server ends TLS there: it does not know the protocol acme-tls/1"}
		case strings.Contains(err.Error(), "remote error"):
			return probe{foreign, "a server answers that refuses the handshake (" + cahttp.OneLine(err.Error()) + "): another one, or a plusminus on another data folder"}
		}
		return failedProbe(ctx, err)
	}
	state := c.ConnectionState()
	leaf := state.PeerCertificates[0]
	if state.NegotiatedProtocol != xacme.ALPNProto {
		return probe{foreign, fmt.Sprintf("another server ends TLS there, with a certificate for %s from %s: it does not know the protocol acme-tls/1",
			list(certs.Names(leaf)), cmp.Or(leaf.Issuer.String(), "nobody"))}
	}
	if value := identifierOf(leaf.Raw); value == nil || !bytes.Equal(value, identifierOf(want.Certificate[0])) {
		return probe{foreign, "the wrong certificate: the server there answers a challenge that is not ours"}
	}
	return probe{answered, "answers as the CA wants it"}
}

// identifierOf returns the value of the acmeIdentifier extension of a certificate, or nil.
func identifierOf(der []byte) []byte {
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return nil
	}
	for _, e := range cert.Extensions {
		if e.Id.Equal(acmeIdentifier) {
			return e.Value
		}
	}
	return nil
}

// A portState says whether a CA would get its answer on a port.
type portState int

const (
	inDoubt portState = iota // this machine cannot tell
	works
	fails
)

// probeAll probes both ports at the addresses, reports the findings, and returns the state for each challenge type.
func (s *domainCheck) probeAll(addrs []netip.Addr) map[string]portState {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		s.say(Problem, "challenges", "no key could be made: %v", err)
		return nil
	}
	client := &xacme.Client{Key: key} // only makes answers, with a key that no account has
	states := make(map[string]portState)
	var mu sync.Mutex // guards states
	var wg sync.WaitGroup
	for _, typ := range challengeTypes() {
		wg.Go(func() {
			state := s.probePort(client, typ, addrs)
			mu.Lock()
			defer mu.Unlock()
			states[typ] = state
		})
	}
	wg.Wait()
	return states
}

// probePort probes the port of challenge type typ at the addresses.
func (s *domainCheck) probePort(client *xacme.Client, typ string, addrs []netip.Addr) portState {
	port, subject := s.cfg.HTTP, "port "+portNumber(typ)
	if typ == challenge.TLSALPN01 {
		port = s.cfg.TLS
	}
	if port.none() {
		s.say(OK, subject, "not probed, since nothing listens for it here")
		return fails
	}
	switch {
	case len(port.Listeners) > 0 || s.shared:
	case s.noDir || s.cfg.Shared != nil:
		s.say(Warning, subject, "could not be probed: %s is in use, and nothing can be put where a plusminus looks for answers", port.Running)
		return inDoubt
	default:
		s.say(Problem, subject, "another program has %s, or a plusminus on another data folder: the server cannot start", port.Running)
		return fails
	}

	token := rand.Text()
	name, answer, err := challenge.Answer(client, typ, s.name, token)
	if err != nil {
		s.say(Problem, subject, "no answer could be made: %v", err)
		return inDoubt
	}
	if typ == challenge.TLSALPN01 {
		release, err := s.lock()
		if err != nil {
			if errors.Is(err, store.ErrLocked) {
				s.say(Warning, subject, "not probed: a server is ordering a certificate for this name right now, and its answer is in use")
			} else if s.ctx.Err() == nil {
				s.say(Warning, subject, "not probed: the lock that shows whether an order is in progress cannot be taken: %v", err)
			}
			return inDoubt
		}
		defer release()
	}
	if err := s.tokens.Put(s.ctx, name, answer); err != nil {
		s.say(Problem, "data folder", "the answer could not be stored: %v", err)
		return inDoubt
	}
	defer s.tokens.Delete(context.WithoutCancel(s.ctx), name)

	ask := func(at map[string]string) probe { return s.probeHTTP(at, token, string(answer)) }
	if typ == challenge.TLSALPN01 {
		cert, err := tls.X509KeyPair(answer, answer)
		if err != nil {
			s.say(Problem, subject, "no answer could be made: %v", err)
			return inDoubt
		}
		ask = func(at map[string]string) probe { return s.probeTLS(at["443"], &cert) }
	}

	var wg sync.WaitGroup
	probes := make([]probe, len(addrs))
	for i, addr := range addrs {
		wg.Go(func() {
			probes[i] = ask(map[string]string{
				"80":  netip.AddrPortFrom(addr, 80).String(),
				"443": netip.AddrPortFrom(addr, 443).String(),
			})
			s.tellProbe(subject, addr, probes[i])
		})
	}
	// The program that has the port on this machine is probed directly, too, without a router in between.
	local := answered
	if len(port.Listeners) == 0 {
		p := ask(map[string]string{"80": s.cfg.HTTP.Running, "443": s.cfg.TLS.Running})
		local = p.outcome
		switch local {
		case answered:
			s.say(OK, subject, "the plusminus that runs here answers")
		case foreign:
			s.say(Problem, subject, "another program has %s on this machine, so that plusminus cannot start: %s", port.Running, p.text)
		case stranger:
			s.say(Warning, subject, "at %s on this machine, %s", port.Running, p.text)
		}
	}
	wg.Wait()

	state := s.conclusion(addrs, probes)
	if state != works && (local == foreign || local == stranger) {
		state = fails
	}
	return state
}

// conclusion returns what the probes mean for a CA. A CA that can connect to an IPv6 address uses that, and need not
// try another address. https://letsencrypt.org/docs/ipv6-support/
func (s *domainCheck) conclusion(addrs []netip.Addr, probes []probe) portState {
	of := func(family func(netip.Addr) bool) portState {
		state := inDoubt
		for i, p := range probes {
			switch {
			case !family(addrs[i]):
			case s.certain(addrs[i], p.outcome):
				return fails
			case p.outcome == answered:
				state = works
			}
		}
		return state
	}
	if state := of(netip.Addr.Is6); state != inDoubt {
		return state
	}
	return of(netip.Addr.Is4)
}

// certain reports whether the CA would see the same failure at addr.
func (s *domainCheck) certain(addr netip.Addr, o outcome) bool {
	switch o {
	case foreign, stranger:
		return true
	case refused, dropped:
		return slices.Contains(s.own, addr) || o == refused && s.inNetwork(addr) // without a router in between
	}
	return false
}

// inNetwork reports whether addr belongs to the private network in which the CA is, too.
func (s *domainCheck) inNetwork(addr netip.Addr) bool {
	return s.inside && acme.WhyNotPublic(addr) != ""
}

// tellProbe reports the result of a probe. It reports no problem: conclude decides whether the result matters, since
// one challenge is enough.
func (s *domainCheck) tellProbe(subject string, addr netip.Addr, p probe) {
	leads := "does the record name this machine"
	if s.address.IsValid() {
		leads = "does this machine have the address"
	}
	switch {
	case p.outcome == answered:
		s.say(OK, subject, "at %v, this server %s", addr, p.text)
	case p.outcome == stranger:
		s.say(Warning, subject, "at %v, %s", addr, p.text)
	case p.outcome == foreign:
		s.say(Warning, subject, "at %v, %s; %s, and is there a proxy in front?", addr, p.text, leads)
	case s.certain(addr, p.outcome) && !slices.Contains(s.own, addr):
		s.say(Warning, subject, "at %v, %s: %s, and is the port published?", addr, p.text, leads)
	case s.certain(addr, p.outcome):
		s.say(Warning, subject, "at %v, %s, although that is an address of this machine: is the port among those that are listened on?", addr, p.text)
	case p.outcome == unreachable && addr.Is6() && !s.address.IsValid():
		s.say(Warning, subject, "at %v, cannot be told from inside: this machine or container has no IPv6 of its own; CAs prefer the AAAA record, so that it has to be right", addr)
	default:
		s.say(Warning, subject, "at %v, %s; many routers do not lead their own public address back in, so that it may be well from outside: is the port open, and forwarded to this machine?", addr, p.text)
	}
}

// lock keeps servers from ordering for the domain until release is called, since an order's answer on port 443 has
// the same name as the probe's. The error is [store.ErrLocked] if a server does not release the lock in time.
func (s *domainCheck) lock() (release func(), err error) {
	if !s.shared {
		return func() {}, nil
	}
	locks := s.store(store.Locks)
	if f, ok := locks.(*store.Folder); ok {
		if _, err := os.Stat(f.Dir()); errors.Is(err, fs.ErrNotExist) {
			return func() {}, nil
		}
	}
	ctx, cancel := context.WithTimeout(s.ctx, lockPatience)
	defer cancel()
	release, err = store.WaitLock(ctx, locks, s.name)
	if err != nil && ctx.Err() != nil && s.ctx.Err() == nil {
		err = store.ErrLocked
	}
	return release, err
}
