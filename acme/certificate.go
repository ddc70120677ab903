package acme

import (
	"crypto/tls"
	"time"

	"plusminus/acme/internal/cahttp"
	"plusminus/acme/internal/certs"
)

// A certificate is a certificate that a site serves. It does not change.
type certificate struct {
	tls.Certificate
	public  bool       // verifies against the system's roots
	from    *authority // nil if it does not come from an ACME CA
	id      string     // its name in renewal information; empty if it has none
	ends    time.Time  // when it ends, or the first certificate of its chain
	chain   string     // what is wrong with its chain; empty if nothing is
	renewal time.Time  // when to renew it by its lifetime
}

// serve makes s serve cert if that is better than what it serves, and reports whether it is. Nothing else installs a
// certificate. from is the CA that issued it, or nil. newest says that cert was obtained after all others.
// Open connections keep the old certificate.
func (p *Provider) serve(s *site, cert *tls.Certificate, from *authority, newest bool) bool {
	if !p.better(s, cert, from, newest) {
		return false
	}
	now := p.now()
	c := &certificate{Certificate: *cert, from: from, ends: certs.Ends(cert, now)}
	if from != nil {
		c.id, _ = certID(cert.Leaf)
	}
	c.renewal = renewalTime(cert.Leaf.NotBefore, c.ends, p.cfg.random())
	if s.source != sourceLocal {
		c.public = certs.Trusted(cert, s.name, p.cfg.systemRoots, now)
		if !c.public && !(p.cfg.RootCAs != nil && certs.Trusted(cert, s.name, p.cfg.RootCAs, now)) {
			c.chain = certs.ChainProblem(cert, now)
		}
	}
	s.current.Store(c)
	p.tellChanged()
	if c.chain != "" {
		p.log.Warn("certificate chain has a fault", "domain", s.name, "problem", c.chain, "issuer", cert.Leaf.Issuer.String())
	}
	return true
}

// better reports whether cert is better than the certificate that s serves. This is the rule for all certificates,
// wherever they come from:
//
//   - A certificate that is valid for the name now is better than one that is not.
//   - Otherwise the one that was obtained last is better. From one source that is the new one, whatever its dates say.
//     Of two from different CAs it is the one that became valid later, unless newest says more.
func (p *Provider) better(s *site, cert *tls.Certificate, from *authority, newest bool) bool {
	current := s.current.Load()
	if current == nil {
		return true
	}
	if cert.Leaf.Equal(current.Leaf) {
		return false
	}
	valid := certs.Invalidity(cert.Leaf, s.name, p.now()) == ""
	if currentValid := invalidity(current, s.name, p.now()) == ""; valid != currentValid {
		return valid
	}
	if newest || current.from == from && (from == nil || from.unsaved == nil) {
		return true
	}
	return cert.Leaf.NotBefore.After(current.Leaf.NotBefore)
}

// flaw says why cert, which has just been obtained for s, is no success. Without this check, the next order would follow
// at once. skew is the CA's clock minus ours.
func (p *Provider) flaw(s *site, cert *tls.Certificate, skew time.Duration) *cahttp.CertificateError {
	leaf, now := cert.Leaf, p.now()
	ends := certs.Ends(cert, now)
	e := &cahttp.CertificateError{Skew: skew}
	switch {
	case now.Before(leaf.NotBefore):
		e.Flaw = "it is valid only from " + rfc3339(leaf.NotBefore) + ", and served from then on"
	case now.After(leaf.NotAfter):
		e.Flaw = "it expired at " + rfc3339(leaf.NotAfter) + ", before it came"
	case leaf.VerifyHostname(s.name) != nil:
		e.Flaw = certs.Invalidity(leaf, s.name, now)
	case !now.Before(renewalTime(leaf.NotBefore, ends, 0)):
		e.Flaw = "it is valid from " + rfc3339(leaf.NotBefore) + " to " + rfc3339(leaf.NotAfter) + ", so it is due for renewal already"
		if ends.Before(leaf.NotAfter) {
			e.Flaw = "its chain ends at " + rfc3339(ends) + ", so it is due for renewal already"
		}
	default:
		return nil
	}
	return e
}

func rfc3339(t time.Time) string { return t.UTC().Format(time.RFC3339) }
