// Package acmetest has what the tests of acme and of its packages share.
package acmetest

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"

	"plusminus/acme/internal/certs"
	"plusminus/acme/internal/store"
)

// Patience is how long a test waits for something that must happen. Only a test that fails spends it.
const Patience = 30 * time.Second

// WaitFor waits until ok returns true. what completes "no … within 30s".
func WaitFor(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(Patience); !ok(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("no %s within %v", what, Patience)
		}
	}
}

// Listen opens a listener on loopback, which is closed when the test ends.
func Listen(t testing.TB) net.Listener {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ln.Close() })
	return ln
}

// Port returns the port of ln.
func Port(ln net.Listener) int { return ln.Addr().(*net.TCPAddr).Port }

// An Issuer is an intermediate CA below a root. It issues chains like those of public CAs.
type Issuer struct {
	root, intermediate tls.Certificate
}

// NewIssuer makes a root and an intermediate.
func NewIssuer(t testing.TB) *Issuer {
	t.Helper()
	i := new(Issuer)
	ca := func(name string) *x509.Certificate {
		// From 1999, so that it is valid on synctest's clock, too.
		return &x509.Certificate{Subject: pkix.Name{CommonName: name}, NotBefore: time.Date(1999, 1, 1, 0, 0, 0, 0, time.UTC),
			NotAfter: time.Now().AddDate(1, 0, 0), IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign}
	}
	i.root = Sign(t, ca("test root"), nil)
	i.intermediate = Sign(t, ca("test intermediate"), &i.root)
	return i
}

// Roots returns a pool with the root.
func (i *Issuer) Roots() *x509.CertPool {
	pool := x509.NewCertPool()
	pool.AddCert(i.root.Leaf)
	return pool
}

// Issue returns a chain of a leaf for names and the intermediate. The leaf is valid for life from now.
func (i *Issuer) Issue(t testing.TB, life time.Duration, names ...string) tls.Certificate {
	t.Helper()
	now := time.Now()
	cert := Sign(t, &x509.Certificate{DNSNames: names, NotBefore: now, NotAfter: now.Add(life)}, &i.intermediate)
	cert.Certificate = append(cert.Certificate, i.intermediate.Certificate[0])
	return cert
}

// IssueRSA is Issue for a new RSA key.
func (i *Issuer) IssueRSA(t testing.TB, life time.Duration, names ...string) tls.Certificate {
	t.Helper()
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	now := time.Now()
	cert := signKey(t, &x509.Certificate{DNSNames: names, NotBefore: now, NotAfter: now.Add(life)}, &i.intermediate, key)
	cert.Certificate = append(cert.Certificate, i.intermediate.Certificate[0])
	return cert
}

// SelfSigned returns a certificate for name.
func SelfSigned(t testing.TB, name string, notBefore, notAfter time.Time) tls.Certificate {
	t.Helper()
	return Sign(t, &x509.Certificate{DNSNames: []string{name}, NotBefore: notBefore, NotAfter: notAfter}, nil)
}

// Sign returns template with a new key, signed by parent. A nil parent means self-signed.
func Sign(t testing.TB, template *x509.Certificate, parent *tls.Certificate) tls.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return signKey(t, template, parent, key)
}

// signKey is Sign for a given key.
func signKey(t testing.TB, template *x509.Certificate, parent *tls.Certificate, key crypto.Signer) tls.Certificate {
	t.Helper()
	issuer, issuerKey := template, any(key)
	if parent != nil {
		issuer, issuerKey = parent.Leaf, parent.PrivateKey
	}
	der, err := x509.CreateCertificate(rand.Reader, template, issuer, key.Public(), issuerKey)
	if err != nil {
		t.Fatal(err)
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key, Leaf: leaf}
}

// PEM returns the chain of cert and its key in PEM.
func PEM(t testing.TB, cert tls.Certificate) (chain, key []byte) {
	t.Helper()
	key, err := certs.EncodeKey(cert.PrivateKey.(*ecdsa.PrivateKey))
	if err != nil {
		t.Fatal(err)
	}
	return certs.EncodeChain(cert.Certificate), key
}

// Lineage writes cert to dir as certbot does: links in live to files in archive, with the key in PKCS#8. It returns the folder in
// live. A lineage that exists gets a successor.
func Lineage(t testing.TB, dir, name string, cert tls.Certificate) string {
	t.Helper()
	key, err := x509.MarshalPKCS8PrivateKey(cert.PrivateKey)
	if err != nil {
		t.Fatal(err)
	}
	archive, live := filepath.Join(dir, "archive", name), filepath.Join(dir, "live", name)
	if err := errors.Join(os.MkdirAll(archive, 0o700), os.MkdirAll(live, 0o700)); err != nil {
		t.Fatal(err)
	}
	before, err := filepath.Glob(filepath.Join(archive, "cert*.pem"))
	if err != nil {
		t.Fatal(err)
	}
	for file, data := range map[string][]byte{
		"cert":      certs.EncodeChain(cert.Certificate[:1]),
		"chain":     certs.EncodeChain(cert.Certificate[1:]),
		"fullchain": certs.EncodeChain(cert.Certificate),
		"privkey":   pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: key}),
	} {
		numbered, link := fmt.Sprintf("%s%d.pem", file, len(before)+1), filepath.Join(live, file+".pem")
		os.Remove(link)
		if err := errors.Join(os.WriteFile(filepath.Join(archive, numbered), data, 0o600), os.Symlink(filepath.Join("..", "..", "archive", name, numbered), link)); err != nil {
			t.Fatal(err)
		}
	}
	return live
}

// SealKey returns a sealing key that differs for each n.
func SealKey(n byte) []byte { return bytes.Repeat([]byte{n}, store.SealKeySize) }
