// Package certs encodes, parses and judges certificates for package acme. All of its functions are pure but
// for [ReadFiles].
package certs

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"strings"
	"time"
)

// EncodePair returns key, then chain, in PEM. A key other than ECDSA is one that another program made.
func EncodePair(key crypto.PrivateKey, chain [][]byte) ([]byte, error) {
	var b []byte
	var err error
	if k, ok := key.(*ecdsa.PrivateKey); ok {
		b, err = EncodeKey(k)
	} else {
		b, err = x509.MarshalPKCS8PrivateKey(key)
		b = pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: b})
	}
	if err != nil {
		return nil, err
	}
	return append(b, EncodeChain(chain)...), nil
}

// EncodeChain returns the certificates of chain in PEM.
func EncodeChain(chain [][]byte) []byte {
	var b []byte
	for _, der := range chain {
		b = append(b, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})...)
	}
	return b
}

// EncodeKey returns key in PEM.
func EncodeKey(key *ecdsa.PrivateKey) ([]byte, error) {
	der, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		return nil, err
	}
	return pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: der}), nil
}

// ParseKey returns the key in the first PEM block of data. It accepts only P-256: acme signs some requests
// again by itself, and does so with ES256.
func ParseKey(data []byte) (*ecdsa.PrivateKey, error) {
	block, _ := pem.Decode(data)
	if block == nil {
		return nil, errors.New("no PEM block")
	}
	key, err := x509.ParseECPrivateKey(block.Bytes)
	if err != nil {
		return nil, err
	}
	if key.Curve != elliptic.P256() {
		return nil, errors.New("not a P-256 key")
	}
	return key, nil
}

// ParseChain returns the certificates in data, of which there is at least one. Blocks of other types are an error.
func ParseChain(data []byte) ([]*x509.Certificate, error) {
	var chain []*x509.Certificate
	for {
		var block *pem.Block
		if block, data = pem.Decode(data); block == nil {
			break
		}
		if block.Type != "CERTIFICATE" {
			return nil, fmt.Errorf("a block of type %q in a chain", block.Type)
		}
		c, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, fmt.Errorf("certificate %d: %w", len(chain)+1, err)
		}
		chain = append(chain, c)
	}
	if len(chain) == 0 {
		return nil, errors.New("no certificate")
	}
	return chain, nil
}

// NewPair returns chain with the key of its first certificate.
func NewPair(chain []*x509.Certificate, key crypto.PrivateKey) *tls.Certificate {
	cert := &tls.Certificate{PrivateKey: key, Leaf: chain[0]}
	for _, c := range chain {
		cert.Certificate = append(cert.Certificate, c.Raw)
	}
	return cert
}

// ParsePair returns what EncodePair encoded. It refuses a certificate that is not for name.
func ParsePair(name string, data []byte) (*tls.Certificate, error) {
	c, err := tls.X509KeyPair(data, data)
	if err != nil {
		return nil, err
	}
	return &c, c.Leaf.VerifyHostname(name)
}

// Names returns the host names and addresses that leaf is for.
func Names(leaf *x509.Certificate) []string {
	all := append([]string(nil), leaf.DNSNames...)
	for _, ip := range leaf.IPAddresses {
		all = append(all, ip.String())
	}
	return all
}

// Invalidity says why leaf is not valid for name at the time now. It returns "" if leaf is valid. It does
// not look at signatures.
func Invalidity(leaf *x509.Certificate, name string, now time.Time) string {
	if why := Outdated(leaf, now); why != "" {
		return why
	}
	if leaf.VerifyHostname(name) != nil {
		return "the certificate is for other names: " + strings.Join(Names(leaf), ", ")
	}
	return ""
}

// Outdated says why leaf is not valid at the time now by its dates. It returns "" if leaf is valid.
func Outdated(leaf *x509.Certificate, now time.Time) string {
	switch {
	case now.Before(leaf.NotBefore):
		return "the certificate is valid only from " + leaf.NotBefore.UTC().Format(time.RFC3339)
	case now.After(leaf.NotAfter):
		return "the certificate expired at " + leaf.NotAfter.UTC().Format(time.RFC3339)
	}
	return ""
}

// Trusted reports whether a visitor who trusts roots accepts c for name at the time now. Nil roots are the
// system's.
func Trusted(c *tls.Certificate, name string, roots *x509.CertPool, now time.Time) bool {
	intermediates := x509.NewCertPool()
	for _, issuer := range chainOf(c) {
		intermediates.AddCert(issuer)
	}
	_, err := c.Leaf.Verify(x509.VerifyOptions{DNSName: name, Roots: roots, Intermediates: intermediates, CurrentTime: now})
	return err == nil
}
