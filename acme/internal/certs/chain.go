package certs

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"time"
)

// chainOf returns the certificates that follow the leaf of c. It leaves out what cannot be parsed.
func chainOf(c *tls.Certificate) []*x509.Certificate {
	var chain []*x509.Certificate
	for _, der := range c.Certificate[1:] {
		if issuer, err := x509.ParseCertificate(der); err == nil {
			chain = append(chain, issuer)
		}
	}
	return chain
}

// Ends returns when c ends, or the first certificate of its chain if that is earlier: visitors refuse c from then on. What has
// ended at the time now does not count. CAs have sent a certificate of an old root on purpose.
func Ends(c *tls.Certificate, now time.Time) time.Time {
	end := c.Leaf.NotAfter
	for _, issuer := range chainOf(c) {
		if issuer.NotAfter.Before(end) && issuer.NotAfter.After(now) {
			end = issuer.NotAfter
		}
	}
	return end
}

// ChainProblem returns a fault of the chain of c, or "". The fault is one of three: the chain has only the leaf, a certificate is
// not signed by the next one, or a certificate has expired. A missing certificate at the end is not found, since a chain need
// not contain its root.
func ChainProblem(c *tls.Certificate, now time.Time) string {
	chain := chainOf(c)
	if len(chain) == 0 && !bytes.Equal(c.Leaf.RawIssuer, c.Leaf.RawSubject) {
		return "it has no certificate of the issuer, " + c.Leaf.Issuer.String() + ": clients without that one refuse the server"
	}
	below := c.Leaf
	for _, issuer := range chain {
		if now.After(issuer.NotAfter) {
			return "the certificate of " + issuer.Subject.String() + " expired at " + issuer.NotAfter.UTC().Format(time.RFC3339)
		}
		if below.CheckSignatureFrom(issuer) != nil {
			return "the certificate of " + below.Subject.String() + " is not signed by the next one, " + issuer.Subject.String()
		}
		below = issuer
	}
	return ""
}
