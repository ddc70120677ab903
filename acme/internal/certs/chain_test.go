package certs_test

import (
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"strings"
	"testing"
	"time"

	"plusminus/acme/internal/acmetest"
	"plusminus/acme/internal/certs"
)

const day = 24 * time.Hour

// sign returns a certificate for name that ends after the given time, signed by parent, or by itself.
func sign(t *testing.T, name string, ends time.Duration, parent *tls.Certificate) *tls.Certificate {
	t.Helper()
	now := time.Now()
	cert := acmetest.Sign(t, &x509.Certificate{Subject: pkix.Name{CommonName: name}, NotBefore: now.Add(-400 * day),
		NotAfter: now.Add(ends), IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign, DNSNames: []string{name}}, parent)
	return &cert
}

func TestChain(t *testing.T) {
	t.Parallel()
	root := sign(t, "root", 1000*day, nil)
	other := sign(t, "other root", 1000*day, nil)
	intermediate := sign(t, "intermediate", 300*day, root)
	soon := sign(t, "intermediate that ends soon", 10*day, root)
	expired := sign(t, "old intermediate", -day, root)
	now := time.Now()
	for _, test := range []struct {
		name    string
		parent  *tls.Certificate
		chain   []*tls.Certificate
		ends    time.Duration
		problem string
	}{
		{"one intermediate", intermediate, []*tls.Certificate{intermediate}, 90 * day, ""},
		{"with the root", intermediate, []*tls.Certificate{intermediate, root}, 90 * day, ""},
		{"self-signed", nil, nil, 90 * day, ""},
		{"no intermediate", intermediate, nil, 90 * day, "it has no certificate of the issuer, CN=intermediate: clients"},
		{"gap", intermediate, []*tls.Certificate{root}, 90 * day, "the certificate of CN=a.example is not signed by the next one, CN=root"},
		{"wrong root", intermediate, []*tls.Certificate{intermediate, other}, 90 * day, "the certificate of CN=intermediate is not signed by the next one, CN=other root"},
		{"ends soon", soon, []*tls.Certificate{soon, root}, 10 * day, ""},
		{"expired", expired, []*tls.Certificate{expired, root}, 90 * day, "the certificate of CN=old intermediate expired at "},
	} {
		leaf := sign(t, "a.example", 90*day, test.parent)
		for _, c := range test.chain {
			leaf.Certificate = append(leaf.Certificate, c.Certificate[0])
		}
		if got := certs.Ends(leaf, now).Sub(now).Round(time.Hour); got != test.ends {
			t.Errorf("%s: ends in %v, want %v", test.name, got, test.ends)
		}
		if got := certs.ChainProblem(leaf, now); !strings.HasPrefix(got, test.problem) || (got == "") != (test.problem == "") {
			t.Errorf("%s: problem %q, want %q", test.name, got, test.problem)
		}
	}
}
