package acme

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"log/slog"
	"time"

	"plusminus/acme/internal/certs"
)

// pollInterval is how often the files are read. Polling notices every kind of change: a symlink that is swapped one
// level up, a network file system, a bind mount. A change is served after two looks.
const pollInterval = 2 * time.Second

// files serves a certificate and key that another program renews, and watches for the renewal.
//
// The other program may write in steps: certbot swaps two symlinks one after the other, scp writes piece by piece. So
// files adopts a new pair only when two looks in a row found the same bytes, and key and chain fit. Until then it
// serves the old pair.
type files struct {
	// Immutable after newFiles.
	p                 *Provider
	certFile, keyFile string
	log               *slog.Logger
	now               func() time.Time
	wake              chan struct{} // Reload -> watch; buffer 1; never closed

	// Owned by watch, and by New before.
	serving  *tls.Certificate
	adopted  content         // the files from which serving was read
	previous content         // the files at the look before
	warned   map[string]bool // what was logged since the last adoption
}

// content is the hash of both files.
type content [sha256.Size]byte

func newFiles(p *Provider) *files {
	return &files{p: p, certFile: p.cfg.CertFile, keyFile: p.cfg.KeyFile, log: p.log, now: p.cfg.now,
		wake: make(chan struct{}, 1), warned: make(map[string]bool)}
}

// load reads the files for the first time. There is no old pair to fall back on, so every fault is an error.
func (f *files) load() error {
	certPEM, keyPEM, err := certs.ReadFiles(f.certFile, f.keyFile)
	if err != nil {
		return fmt.Errorf("acme: %w", err)
	}
	cert, err := certs.ParseFiles(f.certFile, f.keyFile, certPEM, keyPEM)
	if err != nil {
		return fmt.Errorf("acme: %w", err)
	}
	f.adopt(cert, hash(certPEM, keyPEM))
	return nil
}

// watch looks at the files until ctx is done.
func (f *files) watch(ctx context.Context) {
	ticker := time.NewTicker(pollInterval)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
			f.look()
		case <-f.wake: // the operator says that the files are complete
			f.look()
			f.look()
		}
	}
}

// look reads the files once, and adopts them if they are new, whole, and the same as at the look before.
func (f *files) look() {
	f.warnOfExpiry()
	certPEM, keyPEM, err := certs.ReadFiles(f.certFile, f.keyFile)
	if err != nil {
		f.previous = content{}
		f.reject("certificate files cannot be read: still serving the old ones", err)
		return
	}
	found := hash(certPEM, keyPEM)
	atRest := found == f.previous
	f.previous = found
	if !atRest {
		return
	}
	if found == f.adopted {
		f.report(nil) // the old files are back
		return
	}
	cert, err := certs.ParseFiles(f.certFile, f.keyFile, certPEM, keyPEM)
	if err == nil && f.cutShort(cert) {
		err = fmt.Errorf("%s: the chain is cut short: the issuer's certificate is missing", f.certFile)
	}
	if why := f.worse(cert); err == nil && why != "" {
		err = fmt.Errorf("%s: %s", f.certFile, why)
	}
	if err != nil {
		f.reject("new certificate files are no good: still serving the old ones", err)
		return
	}
	f.adopt(cert, found)
	f.log.Info("certificate files adopted", "file", f.certFile, "not_after", cert.Leaf.NotAfter,
		"issuer", cert.Leaf.Issuer.String())
}

// worse says why cert, which may be nil, would make things worse: it is not valid now, and the served certificate is.
func (f *files) worse(cert *tls.Certificate) string {
	now := f.now()
	if cert == nil || certs.Outdated(f.serving.Leaf, now) != "" {
		return ""
	}
	return certs.Outdated(cert.Leaf, now)
}

func hash(certPEM, keyPEM []byte) content {
	c, k := sha256.Sum256(certPEM), sha256.Sum256(keyPEM)
	return sha256.Sum256(append(c[:], k[:]...))
}

// cutShort reports whether cert lacks its issuer's certificate although the served pair has one. Only a file that was
// read between two blocks looks like this.
func (f *files) cutShort(cert *tls.Certificate) bool {
	return !hasSubject(cert, cert.Leaf.RawIssuer) && hasSubject(f.serving, cert.Leaf.RawIssuer)
}

func hasSubject(cert *tls.Certificate, subject []byte) bool {
	for _, der := range cert.Certificate {
		if c, err := x509.ParseCertificate(der); err == nil && bytes.Equal(c.RawSubject, subject) {
			return true
		}
	}
	return false
}

// adopt serves cert, which was read from found, for every domain.
func (f *files) adopt(cert *tls.Certificate, found content) {
	f.serving, f.adopted, f.previous = cert, found, found
	clear(f.warned)
	f.report(nil)
	for _, s := range f.p.sites {
		f.p.serve(s, cert, nil, true)
		if err := cert.Leaf.VerifyHostname(s.name); err != nil {
			f.log.Warn("certificate file does not cover a domain", "file", f.certFile, "domain", s.name, "err", err)
		}
	}
	f.warnOfExpiry()
}

// warnOfExpiry logs once when a sixth of the life of the certificate, or of its chain, is left (15 of 90 days), and once when
// it has expired: the program that renews it has not done so.
func (f *files) warnOfExpiry() {
	ends := certs.Ends(f.serving, f.now())
	left := ends.Sub(f.now())
	switch {
	case left < 0:
		f.warnOnce("certificate file has expired", fmt.Errorf("%s: expired at %s", f.certFile, rfc3339(ends)))
	case left < ends.Sub(f.serving.Leaf.NotBefore)/6:
		f.warnOnce("certificate file is about to expire", fmt.Errorf("%s: expires at %s", f.certFile, rfc3339(ends)))
	}
}

// reject logs why the files are not adopted, and shows that in Status while it lasts.
func (f *files) reject(msg string, err error) {
	f.report(&LastError{When: f.now(), Reason: err.Error()})
	f.warnOnce(msg, err)
}

// report sets the last error of every domain; nil is none.
func (f *files) report(last *LastError) {
	for _, s := range f.p.sites {
		s.mu.Lock()
		s.lastError = last
		s.mu.Unlock()
	}
}

// warnOnce logs a problem unless it was logged since the last adoption.
func (f *files) warnOnce(msg string, err error) {
	if f.warned[err.Error()] {
		return
	}
	f.warned[err.Error()] = true
	f.log.Warn(msg, "err", err)
}
