package acme

import (
	"cmp"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"math/big"
	"net/http"
	"strings"
	"time"

	xacme "golang.org/x/crypto/acme"
	"golang.org/x/crypto/acme/autocert"

	"plusminus/acme/internal/cahttp"
	"plusminus/acme/internal/certs"
)

// attemptTimeout bounds an attempt from the first request to the certificate. It is autocert's own bound. The next
// attempt continues an order that is still open then.
const attemptTimeout = 5 * time.Minute

// stopGrace is how long an attempt goes on after finalize when Run is to return. Otherwise its certificate would be
// lost. It is less than the ten seconds that a stop of the server takes by default.
const stopGrace = 5 * time.Second

// obtain implements [certifier]. Two attempts for one name at the same time would overwrite each other's
// challenge answers.
func (is *issuer) obtain(ctx context.Context, a *attempt) (*tls.Certificate, error) {
	key, err := is.accountKey(ctx)
	if err != nil {
		return nil, newFailure(nil, "store", &cahttp.StoreError{Err: err}, is.now())
	}
	within, cancel := context.WithTimeout(context.WithoutCancel(ctx), attemptTimeout)
	defer cancel()
	t := newTransport(within, is, a, key)
	defer context.AfterFunc(ctx, func() {
		if t.finalizing.Load() {
			cahttp.Pause(within, stopGrace)
		}
		cancel()
	})()
	cert, err := t.fetch()
	late := within.Err() != nil
	t.close()
	switch {
	case err == nil:
		return cert, nil
	case ctx.Err() != nil:
		return nil, ctx.Err()
	case late:
		err = fmt.Errorf("the CA was not done within %v", attemptTimeout)
	default:
		err = cmp.Or(t.err, err) // the CA's reason, which autocert may have dropped
	}
	f := newFailure(a.problems, t.step, err, is.now())
	f.validations = a.validations
	f.free = (!a.ordered || a.ignored) && a.validations == 0
	return nil, f
}

// fetch has a new autocert.Manager get the certificate. A Manager that has one would not get another for as long as
// that is valid.
func (t *transport) fetch() (*tls.Certificate, error) {
	client := &xacme.Client{
		Key:          t.key,
		DirectoryURL: t.is.directory,
		HTTPClient:   &http.Client{Transport: t},
		UserAgent:    cahttp.UserAgent,
		RetryBackoff: t.backoff,
	}
	var err error
	if t.directory, err = client.Discover(t.ctx); err != nil {
		return nil, err
	}
	if limit := cmp.Or(t.plan.SkewLimit, cahttp.MaxSkew); t.skew > limit || t.skew < -cahttp.MaxSkew {
		return nil, t.end("clock", &cahttp.ClockError{Skew: t.skew})
	}
	m := &autocert.Manager{
		Prompt:                 autocert.AcceptTOS,
		Client:                 client,
		Cache:                  &cache{t: t, name: t.name},
		Email:                  t.is.email,
		ExternalAccountBinding: t.is.eab,
		// The Manager cannot be stopped: it looks at the Cache again this long before the certificate expires, and finds
		// the tombstone. Below 10 ns it panics; above the certificate's life it orders without end.
		RenewBefore: time.Second,
	}
	m.HTTPHandler(nil) // without this call, autocert does not try http-01; the transport hides it if it is not to be tried
	// Without a cipher suite for ECDSA in TLS 1.2, autocert orders a certificate for an RSA key.
	return m.GetCertificate(&tls.ClientHelloInfo{ServerName: t.name, CipherSuites: []uint16{tls.TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256}})
}

// A cache is the [autocert.Cache] of one attempt. It gives no certificate at first, so the Manager orders one, with a
// new key. Afterwards it gives a tombstone: a certificate that is valid for a century. The Manager adopts it shortly
// before its own one expires, and never orders again.
type cache struct {
	t     *transport
	name  string // of the certificate
	asked bool   // guarded by t.mu
}

// Get implements [autocert.Cache].
func (c *cache) Get(_ context.Context, name string) ([]byte, error) {
	c.t.mu.Lock()
	defer c.t.mu.Unlock()
	if name != c.name || !c.asked {
		c.asked = c.asked || name == c.name
		return nil, autocert.ErrCacheMiss
	}
	return tombstone(name)
}

// Put implements [autocert.Cache]. It stores the answers to challenges for the responder. autocert drops its error. The
// certificate is stored when the attempt has ended.
func (c *cache) Put(_ context.Context, name string, data []byte) error {
	c.t.mu.Lock()
	defer c.t.mu.Unlock()
	if !strings.Contains(name, "+") {
		return nil
	}
	c.t.answer = name
	c.t.storeErr = c.t.is.tokens.Put(c.t.ctx, name, data)
	return c.t.storeErr
}

// Delete implements [autocert.Cache]. It does nothing: autocert calls it from goroutines of its own, when the next
// attempt may have stored its answer under the same name. The transport deletes the answer.
func (c *cache) Delete(context.Context, string) error { return nil }

// tombstone returns a certificate for name, with its key, in PEM.
func tombstone(name string) ([]byte, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	now := time.Now()
	template := &x509.Certificate{SerialNumber: big.NewInt(1), DNSNames: []string{name}, NotBefore: now.AddDate(0, 0, -1), NotAfter: now.AddDate(100, 0, 0)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		return nil, err
	}
	return certs.EncodePair(key, [][]byte{der})
}
