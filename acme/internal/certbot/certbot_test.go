package certbot_test

import (
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"plusminus/acme/internal/acmetest"
	"plusminus/acme/internal/certbot"
)

// Of the lineages for a name the one that ends last is taken, whatever it is called. All others are named with a reason, and
// those that have a fault are told from those that are for other names.
func TestScan(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	issuer := acmetest.NewIssuer(t)
	day := 24 * time.Hour
	now := time.Now()
	write := func(name string, cert tls.Certificate) { t.Helper(); acmetest.Lineage(t, dir, name, cert) }
	write("a.example", issuer.Issue(t, 10*day, "a.example"))
	san := issuer.IssueRSA(t, 50*day, "www.a.example", "a.example", "b.example")
	write("a.example-0001", san)
	write("b.example", issuer.Issue(t, 60*day, "b.example"))
	wildcard := issuer.Issue(t, 70*day, "*.c.example")
	write("c.example", wildcard)
	write("other.example", issuer.Issue(t, 80*day, "other.example"))
	write("expired.example", acmetest.SelfSigned(t, "a.example", now.Add(-20*day), now.Add(-10*day)))
	write("early.example", acmetest.SelfSigned(t, "a.example", now.Add(day), now.Add(100*day)))
	for _, name := range []string{"(STAGING) Wannabe Watercress R11", "Fake LE Intermediate X1"} {
		ca := acmetest.Sign(t, &x509.Certificate{Subject: pkix.Name{CommonName: name}, NotBefore: now.Add(-day), NotAfter: now.Add(200 * day),
			IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign}, nil)
		cert := acmetest.Sign(t, &x509.Certificate{DNSNames: []string{"a.example"}, NotBefore: now, NotAfter: now.Add(90 * day)}, &ca)
		cert.Certificate = append(cert.Certificate, ca.Certificate[0])
		write("staging-"+name[:4]+".example", cert)
	}
	mixed := issuer.Issue(t, 90*day, "a.example")
	mixed.PrivateKey = issuer.Issue(t, time.Hour, "a.example").PrivateKey
	write("mixed.example", mixed)
	write("half.example", issuer.Issue(t, 90*day, "a.example"))
	write("broken.example", issuer.Issue(t, 90*day, "a.example"))
	write("keyless.example", issuer.Issue(t, 90*day, "a.example"))
	if err := errors.Join(
		os.WriteFile(filepath.Join(dir, "live", "README"), []byte("This directory contains your keys and certificates."), 0o600),
		os.WriteFile(filepath.Join(dir, "archive", "half.example", "fullchain1.pem"), []byte("-----BEGIN CERTIFICATE-----\nMIIB"), 0o600),
		os.RemoveAll(filepath.Join(dir, "archive", "broken.example")),
		os.Remove(filepath.Join(dir, "live", "keyless.example", "privkey.pem"))); err != nil {
		t.Fatal(err)
	}

	found, skipped := certbot.Scan(dir, []string{"a.example", "b.example", "x.c.example", "missing.example"}, false, now)
	for name, want := range map[string]string{"a.example": "a.example-0001", "b.example": "b.example", "x.c.example": "c.example"} {
		if l := found[name]; l == nil || l.Path != filepath.Join(dir, "live", want) {
			t.Errorf("for %s the result is %v, want the lineage %s", name, l, want)
		}
	}
	if len(found) != 3 || !found["a.example"].Certificate.Leaf.Equal(san.Leaf) {
		t.Errorf("found %v", found)
	}
	want := map[string]struct {
		reason string
		good   bool
	}{
		"a.example":            {"another certificate for the same names is valid for longer", true},
		"other.example":        {"the certificate is for other names: other.example", true},
		"expired.example":      {"the certificate expired at ", false},
		"early.example":        {"the certificate is valid only from ", false},
		"staging-(STA.example": {"staging CA", false},
		"staging-Fake.example": {"staging CA", false},
		"mixed.example":        {"private key does not match public key", false},
		"half.example":         {"fullchain.pem: no PEM block", false},
		"broken.example":       {"is a link to ../../archive/broken.example/fullchain1.pem, and ", false},
		"keyless.example":      {"reading key: open ", false},
	}
	for _, sk := range skipped {
		w, ok := want[filepath.Base(sk.Path)]
		if !ok || !strings.Contains(sk.Reason, w.reason) || sk.Good != w.good {
			t.Errorf("skipped %+v, want %+v", sk, w)
		}
		delete(want, filepath.Base(sk.Path))
	}
	for name := range want {
		t.Errorf("%s was neither taken nor skipped", name)
	}

	if found, _ := certbot.Scan(dir, []string{"a.example"}, true, now); !strings.Contains(found["a.example"].Path, "staging-") {
		t.Errorf("with -staging, %s is taken, want one of the staging CA, which ends last", found["a.example"].Path)
	}
}

// A lineage that was renewed has its newest files behind the links.
func TestRenewed(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	issuer := acmetest.NewIssuer(t)
	acmetest.Lineage(t, dir, "a.example", issuer.Issue(t, time.Hour, "a.example"))
	newest := issuer.Issue(t, 2*time.Hour, "a.example")
	acmetest.Lineage(t, dir, "a.example", newest)
	found, skipped := certbot.Scan(dir, []string{"a.example"}, false, time.Now())
	if len(skipped) > 0 || !found["a.example"].Certificate.Leaf.Equal(newest.Leaf) {
		t.Errorf("found %v, skipped %v, want the newest", found, skipped)
	}
}

// A folder that is not certbot's is said with what to name instead.
func TestNoFolder(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	found, skipped := certbot.Scan(dir, []string{"a.example"}, false, time.Now())
	if len(found) > 0 || len(skipped) != 1 || skipped[0].Path != filepath.Join(dir, "live") || !strings.Contains(skipped[0].Hint, "name the folder that has certbot's folders live and archive in it") {
		t.Errorf("found %v, skipped %+v", found, skipped)
	}
}
