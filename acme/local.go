package acme

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"sync"
	"time"
)

const (
	rootYears   = 10
	rootRenewal = 180 * day // how much life a root has left when it is replaced: time to tell everyone
	leafLife    = 30 * day
	backdating  = time.Hour // for clients whose clock is behind
)

// localZones returns the top-level names under which the local CA certifies. They stand in its root
// as name constraints, so that whoever steals its key can pretend to be no other host.
func localZones() []string { return []string{"localhost", "test", "internal"} }

// A localCA certifies names that no public CA does. Its root is made on first use and kept; leaves
// are made anew at each start and are nowhere stored.
type localCA struct {
	// Immutable after openLocalCA.
	dir string
	now func() time.Time
	log *slog.Logger

	mu sync.Mutex
	// Guarded by mu.
	root *x509.Certificate
	key  *ecdsa.PrivateKey
}

// openLocalCA loads the CA in dir, or makes one.
func openLocalCA(dir string, now func() time.Time, log *slog.Logger) (*localCA, error) {
	if err := makeFolder(dir); err != nil {
		return nil, err
	}
	ca := &localCA{dir: dir, now: now, log: log}
	err := ca.load()
	if err == nil {
		return ca, nil
	}
	var unread *fs.PathError
	if errors.As(err, &unread) && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("acme: local CA: %w", err) // it is there, and may be trusted by many
	}
	if !errors.Is(err, fs.ErrNotExist) {
		for _, path := range []string{ca.rootPath(), ca.keyPath()} {
			setAside(path, err, now(), log)
		}
		log.Warn("local CA made anew: its root has to be trusted again", "file", ca.rootPath())
	}
	if err := ca.createLocked(); err != nil { // nobody else has ca yet
		return nil, fmt.Errorf("acme: local CA: %w", err)
	}
	return ca, nil
}

func (ca *localCA) rootPath() string { return filepath.Join(ca.dir, "root.pem") }
func (ca *localCA) keyPath() string  { return filepath.Join(ca.dir, "root-key.pem") }

// load reads the root and its key. The error is [fs.ErrNotExist] only if both are missing.
func (ca *localCA) load() error {
	rootPEM, rootErr := os.ReadFile(ca.rootPath())
	keyPEM, keyErr := os.ReadFile(ca.keyPath())
	if errors.Is(rootErr, fs.ErrNotExist) && errors.Is(keyErr, fs.ErrNotExist) {
		return fs.ErrNotExist
	}
	for _, err := range []error{rootErr, keyErr} {
		if errors.Is(err, fs.ErrNotExist) {
			return errors.New(err.Error()) // one without the other is damage, not absence
		}
		if err != nil {
			return err
		}
	}
	pair, err := tls.X509KeyPair(rootPEM, keyPEM)
	if err != nil {
		return err
	}
	key, ok := pair.PrivateKey.(*ecdsa.PrivateKey)
	if !ok || !pair.Leaf.IsCA {
		return errors.New("not a root of ours")
	}
	if err := pair.Leaf.CheckSignatureFrom(pair.Leaf); err != nil {
		return err
	}
	ca.root, ca.key = pair.Leaf, key
	return nil
}

// createLocked makes a new root with a new key. The key is written first: should we crash in between,
// the two do not match, and since nobody can have been told about the new root, another is made.
func (ca *localCA) createLocked() error {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	now := ca.now()
	host, _ := os.Hostname()
	host = host[:min(len(host), 34)] // keeps the common name within the 64 characters of RFC 5280
	template := &x509.Certificate{
		// The date tells one root from its successor in a list of trusted ones.
		Subject: pkix.Name{
			Organization: []string{"plusminus"},
			CommonName:   fmt.Sprintf("plusminus local CA %s %s", host, now.UTC().Format(time.DateOnly)),
		},
		NotBefore:                   now.Add(-backdating),
		NotAfter:                    now.AddDate(rootYears, 0, 0),
		KeyUsage:                    x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
		BasicConstraintsValid:       true,
		IsCA:                        true,
		MaxPathLenZero:              true,
		PermittedDNSDomainsCritical: true,
		PermittedDNSDomains:         localZones(), // says nothing about IP addresses, which stay permitted
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return err
	}
	root, err := x509.ParseCertificate(der)
	if err != nil {
		return err
	}
	keyPEM, err := encodeKey(key)
	if err != nil {
		return err
	}
	if err := writeFile(ca.keyPath(), keyPEM); err != nil {
		return err
	}
	rootPEM := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	if err := writeFile(ca.rootPath(), rootPEM); err != nil {
		return err
	}
	ca.root, ca.key = root, key
	return nil
}

// issue returns a new certificate with a new key for name, a host name or an IP address.
func (ca *localCA) issue(name string) (*tls.Certificate, error) {
	ca.mu.Lock()
	defer ca.mu.Unlock()
	cert, err := ca.issueLocked(name)
	if err != nil {
		return nil, fmt.Errorf("acme: local certificate for %s: %w", name, err)
	}
	return cert, nil
}

func (ca *localCA) issueLocked(name string) (*tls.Certificate, error) {
	now := ca.now()
	// A root of the future was made by a clock that was ahead; clients would wait years for it.
	if ca.root.NotAfter.Sub(now) < rootRenewal || now.Before(ca.root.NotBefore) {
		old := ca.root.NotAfter
		if err := ca.createLocked(); err != nil {
			return nil, err
		}
		ca.log.Warn("local CA replaced: its new root has to be trusted in place of the old one",
			"file", ca.rootPath(), "trust", ca.trustCommand(), "old_not_after", old)
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	template := &x509.Certificate{
		Subject:     pkix.Name{Organization: []string{"plusminus"}},
		NotBefore:   now.Add(-backdating),
		NotAfter:    now.Add(leafLife),
		KeyUsage:    x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	if ip := net.ParseIP(name); ip != nil {
		template.IPAddresses = []net.IP{ip}
	} else {
		template.DNSNames = []string{name}
	}
	der, err := x509.CreateCertificate(rand.Reader, template, ca.root, key.Public(), ca.key)
	if err != nil {
		return nil, err
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, err
	}
	return &tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key, Leaf: leaf}, nil
}

// announce tells how to make clients accept what the CA issues.
func (ca *localCA) announce() {
	args := []any{"root", ca.rootPath(), "curl", fmt.Sprintf("curl --cacert '%s'", ca.rootPath())}
	if cmd := ca.trustCommand(); cmd != "" {
		args = append(args, "trust", cmd)
	}
	ca.log.Info("local certificates: clients have to trust the root of our own CA", args...)
}

// trustCommand returns the command that makes this system trust the root, or "" if we know none.
func (ca *localCA) trustCommand() string {
	switch runtime.GOOS {
	case "linux":
		return fmt.Sprintf("sudo cp '%s' /usr/local/share/ca-certificates/plusminus.crt && sudo update-ca-certificates", ca.rootPath())
	case "darwin":
		return fmt.Sprintf("sudo security add-trusted-cert -d -r trustRoot -k /Library/Keychains/System.keychain '%s'", ca.rootPath())
	}
	return ""
}
