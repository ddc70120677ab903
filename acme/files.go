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

// pollInterval is how often the files are looked at. Polling sees every way in which a file can
// change (symlinks swapped one level up, network file systems, bind mounts); a change is served
// after two looks.
const pollInterval = 2 * time.Second

// files serves a certificate and key that somebody else renews, and watches for the renewal.
//
// Whoever writes them does so in his own time: certbot swaps two symlinks one after the other, scp
// writes piece by piece. So a new pair is adopted only when two looks in a row found the same bytes,
// and key and chain fit; until then, and for as long as the files make no sense, the old pair serves.
type files struct {
	// Immutable after newFiles.
	p                 *Provider
	certFile, keyFile string
	log               *slog.Logger
	now               func() time.Time
	wake              chan struct{} // Reload -> watch; buffer 1; never closed

	// Owned by watch, and by New before.
	serving  *tls.Certificate
	adopted  content         // what serving was read from
	previous content         // what the look before found
	warned   map[string]bool // what was complained about since the last adoption
}

// content is the hash of both files.
type content [sha256.Size]byte

func newFiles(p *Provider) *files {
	return &files{p: p, certFile: p.cfg.CertFile, keyFile: p.cfg.KeyFile, log: p.log, now: p.cfg.now,
		wake: make(chan struct{}, 1), warned: make(map[string]bool)}
}

// load reads the files for the first time, when there is no old pair to fall back to.
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
		case <-f.wake: // somebody says that they are at rest
			f.look()
			f.look()
		}
	}
}

// look reads the files once, and adopts them if they are new, whole, and at rest.
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
		f.report(nil) // back to what it was
		return
	}
	cert, err := certs.ParseFiles(f.certFile, f.keyFile, certPEM, keyPEM)
	if err == nil && f.cutShort(cert) {
		err = fmt.Errorf("%s: the chain is cut short: the issuer's certificate is missing", f.certFile)
	}
	if err != nil {
		f.reject("new certificate files are no good: still serving the old ones", err)
		return
	}
	f.adopt(cert, found)
	f.log.Info("certificate files adopted", "file", f.certFile, "not_after", cert.Leaf.NotAfter,
		"issuer", cert.Leaf.Issuer.String())
}

func hash(certPEM, keyPEM []byte) content {
	c, k := sha256.Sum256(certPEM), sha256.Sum256(keyPEM)
	return sha256.Sum256(append(c[:], k[:]...))
}

// cutShort reports whether cert lacks the certificate of its issuer although the pair that is being
// served has it: a file that was caught between two blocks looks like this, and nothing else does.
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

// adopt serves cert, read from found, for every domain.
func (f *files) adopt(cert *tls.Certificate, found content) {
	f.serving, f.adopted, f.previous = cert, found, found
	clear(f.warned)
	f.report(nil)
	for _, s := range f.p.sites {
		f.p.install(s, cert, nil)
		if err := cert.Leaf.VerifyHostname(s.name); err != nil {
			f.log.Warn("certificate file does not cover a domain", "file", f.certFile, "domain", s.name, "err", err)
		}
	}
	f.warnOfExpiry()
}

// warnOfExpiry complains once when a sixth of the certificate's life is left (15 of 90 days), and once
// when it is over: then whoever should renew it did not.
func (f *files) warnOfExpiry() {
	leaf := f.serving.Leaf
	left := leaf.NotAfter.Sub(f.now())
	switch {
	case left < 0:
		f.warnOnce("certificate file has expired", fmt.Errorf("%s: expired at %s", f.certFile, leaf.NotAfter.UTC().Format(time.RFC3339)))
	case left < leaf.NotAfter.Sub(leaf.NotBefore)/6:
		f.warnOnce("certificate file is about to expire", fmt.Errorf("%s: expires at %s", f.certFile, leaf.NotAfter.UTC().Format(time.RFC3339)))
	}
}

// reject tells why the files are not adopted, in Status for as long as it is so.
func (f *files) reject(msg string, err error) {
	f.report(&LastError{When: f.now(), Reason: err.Error()})
	f.warnOnce(msg, err)
}

// report records for every domain what is the matter with the files; nil is nothing.
func (f *files) report(last *LastError) {
	for _, s := range f.p.sites {
		s.mu.Lock()
		s.lastError = last
		s.mu.Unlock()
	}
}

// warnOnce logs a problem that was not logged since the last adoption.
func (f *files) warnOnce(msg string, err error) {
	if f.warned[err.Error()] {
		return
	}
	f.warned[err.Error()] = true
	f.log.Warn(msg, "err", err)
}
