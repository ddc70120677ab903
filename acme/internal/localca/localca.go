// Package localca is a small CA in the data folder. It certifies names that no public CA certifies:
// localhost, names under localhost, test and internal, and IP addresses that are not public.
package localca

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

	"plusminus/acme/internal/certs"
	"plusminus/acme/internal/store"
)

const (
	day = 24 * time.Hour

	// Folder is the name of the CA's folder in the data folder.
	Folder = "local-ca"

	// RootYears is the life of a root in years.
	RootYears = 10

	// RootRenewal is how much life a root has left when it is replaced. Clients need this time to get the
	// new one.
	RootRenewal = 180 * day

	leafLife   = 30 * day
	backdating = time.Hour // for clients whose clock is behind
)

// Zones returns the top-level names under which the CA certifies. They are name constraints of its root, so
// a thief of its key cannot certify other names.
func Zones() []string { return []string{"localhost", "test", "internal"} }

// A CA makes its root on first use and keeps it. It makes leaf certificates at each start and stores none.
// Its methods are safe for concurrent use.
type CA struct {
	// Immutable after Open.
	dir string
	now func() time.Time
	log *slog.Logger

	mu sync.Mutex
	// Guarded by mu.
	root *x509.Certificate
	key  *ecdsa.PrivateKey
}

// Open loads the CA in dir, or makes one. A damaged CA is set aside and replaced; one that cannot be read
// now is an error, since many clients may trust it.
func Open(dir string, now func() time.Time, log *slog.Logger) (*CA, error) {
	if err := store.MakeFolder(dir); err != nil {
		return nil, err
	}
	ca := &CA{dir: dir, now: now, log: log}
	var err error
	if ca.root, ca.key, err = load(dir); err == nil {
		return ca, nil
	}
	var unread *fs.PathError
	if errors.As(err, &unread) && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("acme: local CA: %w", err)
	}
	if !errors.Is(err, fs.ErrNotExist) {
		for _, path := range []string{RootPath(dir), keyPath(dir)} {
			store.SetAside(path, err, now(), log)
		}
		log.Warn("local CA made anew: its root has to be trusted again", "file", RootPath(dir))
	}
	if err := ca.createLocked(); err != nil { // no other goroutine has ca yet
		return nil, fmt.Errorf("acme: local CA: %w", err)
	}
	return ca, nil
}

// RootPath returns the file with the root of the CA in dir.
func RootPath(dir string) string { return filepath.Join(dir, "root.pem") }

func keyPath(dir string) string { return filepath.Join(dir, "root-key.pem") }

// ReadRoot returns the root of the CA in dir, and changes nothing. The error is [fs.ErrNotExist] if there is
// no CA; other errors say that it is damaged, or that it cannot be read.
func ReadRoot(dir string) (*x509.Certificate, error) {
	root, _, err := load(dir)
	return root, err
}

// load reads the root and its key. The error is [fs.ErrNotExist] only if both files are missing: one without
// the other is damage.
func load(dir string) (*x509.Certificate, *ecdsa.PrivateKey, error) {
	rootPEM, rootErr := os.ReadFile(RootPath(dir))
	keyPEM, keyErr := os.ReadFile(keyPath(dir))
	if errors.Is(rootErr, fs.ErrNotExist) && errors.Is(keyErr, fs.ErrNotExist) {
		return nil, nil, fs.ErrNotExist
	}
	for _, err := range []error{rootErr, keyErr} {
		if errors.Is(err, fs.ErrNotExist) {
			return nil, nil, errors.New(err.Error())
		}
		if err != nil {
			return nil, nil, err
		}
	}
	pair, err := tls.X509KeyPair(rootPEM, keyPEM)
	if err != nil {
		return nil, nil, err
	}
	key, ok := pair.PrivateKey.(*ecdsa.PrivateKey)
	if !ok || !pair.Leaf.IsCA {
		return nil, nil, errors.New("not a root that plusminus made")
	}
	if err := pair.Leaf.CheckSignatureFrom(pair.Leaf); err != nil {
		return nil, nil, err
	}
	return pair.Leaf, key, nil
}

// createLocked makes a new root with a new key. It writes the key first. After a crash between the two
// writes, key and root do not match, and the next start makes another root: no client has this one yet.
func (ca *CA) createLocked() error {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	now := ca.now()
	host, _ := os.Hostname()
	host = host[:min(len(host), 34)] // keeps the common name within the 64 characters of RFC 5280
	template := &x509.Certificate{
		// The date tells a root from its successor in a list of trusted roots.
		Subject: pkix.Name{
			Organization: []string{"plusminus"},
			CommonName:   fmt.Sprintf("plusminus local CA %s %s", host, now.UTC().Format(time.DateOnly)),
		},
		NotBefore:                   now.Add(-backdating),
		NotAfter:                    now.AddDate(RootYears, 0, 0),
		KeyUsage:                    x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
		BasicConstraintsValid:       true,
		IsCA:                        true,
		MaxPathLenZero:              true,
		PermittedDNSDomainsCritical: true,
		PermittedDNSDomains:         Zones(), // does not constrain IP addresses
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return err
	}
	root, err := x509.ParseCertificate(der)
	if err != nil {
		return err
	}
	keyPEM, err := certs.EncodeKey(key)
	if err != nil {
		return err
	}
	if err := store.WriteFile(keyPath(ca.dir), keyPEM); err != nil {
		return err
	}
	rootPEM := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	if err := store.WriteFile(RootPath(ca.dir), rootPEM); err != nil {
		return err
	}
	ca.root, ca.key = root, key
	return nil
}

// Root returns the current root.
func (ca *CA) Root() *x509.Certificate {
	ca.mu.Lock()
	defer ca.mu.Unlock()
	return ca.root
}

// Issue returns a certificate with a new key for name, a host name or an IP address. It replaces the root
// first if the root has less than [RootRenewal] left.
func (ca *CA) Issue(name string) (*tls.Certificate, error) {
	ca.mu.Lock()
	defer ca.mu.Unlock()
	c, err := ca.issueLocked(name)
	if err != nil {
		return nil, fmt.Errorf("acme: local certificate for %s: %w", name, err)
	}
	return c, nil
}

func (ca *CA) issueLocked(name string) (*tls.Certificate, error) {
	now := ca.now()
	// A root that is not valid yet was made while the clock was ahead. Clients might reject it for years.
	if ca.root.NotAfter.Sub(now) < RootRenewal || now.Before(ca.root.NotBefore) {
		old := ca.root.NotAfter
		if err := ca.createLocked(); err != nil {
			return nil, err
		}
		ca.log.Warn("local CA replaced: its new root has to be trusted in place of the old one",
			"file", RootPath(ca.dir), "trust", ca.trustCommand(), "old_not_after", old)
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

// Announce logs how to make clients trust the root.
func (ca *CA) Announce() {
	root := RootPath(ca.dir)
	args := []any{"root", root, "curl", fmt.Sprintf("curl --cacert '%s'", root)}
	if cmd := ca.trustCommand(); cmd != "" {
		args = append(args, "trust", cmd)
	}
	ca.log.Info("local certificates: clients have to trust the root of our own CA", args...)
}

// trustCommand returns a command that makes this system trust the root, or "" for an unknown system.
func (ca *CA) trustCommand() string {
	switch runtime.GOOS {
	case "linux":
		return fmt.Sprintf("sudo cp '%s' /usr/local/share/ca-certificates/plusminus.crt && sudo update-ca-certificates", RootPath(ca.dir))
	case "darwin":
		return fmt.Sprintf("sudo security add-trusted-cert -d -r trustRoot -k /Library/Keychains/System.keychain '%s'", RootPath(ca.dir))
	}
	return ""
}
