package acme

import (
	"cmp"
	"context"
	"crypto/ecdsa"
	"crypto/tls"
	"errors"
	"fmt"
	"net/http"
	"slices"
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
	cert, err := is.ask(ctx, a, key)
	if f := (*failure)(nil); errors.As(err, &f) && f.deactivated {
		if key, err = is.replaceKey(ctx, key, f); err != nil {
			return nil, newFailure(nil, "store", &cahttp.StoreError{Err: err}, is.now())
		}
		return is.ask(ctx, a, key)
	}
	return cert, err
}

// ask is obtain for the account with the given key.
func (is *issuer) ask(ctx context.Context, a *attempt, key *ecdsa.PrivateKey) (*tls.Certificate, error) {
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
	late, chain := within.Err() != nil, t.chain
	t.close()
	switch {
	case err == nil:
		return certs.NewPair(chain, cert.PrivateKey), nil
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
	f.deactivated = t.step == "newAccount" && cahttp.Deactivated(err)
	return nil, f
}

// fetch has a new autocert.Manager get the certificate. A Manager that has one would not get another for as long as
// that is valid. The result has the stand-in in place of the chain.
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
	if t.skew.Abs() > cahttp.SkewLimit(t.plan.Life) {
		return nil, t.end("clock", &cahttp.ClockError{Skew: t.skew})
	}
	if t.is.email != "" && !t.is.contacted.Load() {
		t.updateContact(client)
	}
	if t.address.IsValid() {
		return t.fetchAddress(client)
	}
	m := &autocert.Manager{
		Prompt:                 autocert.AcceptTOS,
		Client:                 client,
		Cache:                  cache{t},
		Email:                  t.is.email,
		ExternalAccountBinding: t.is.eab,
	}
	m.HTTPHandler(nil) // without this call, autocert does not try http-01; the transport hides it if it is not to be tried
	// Without a cipher suite for ECDSA in TLS 1.2, autocert orders a certificate for an RSA key.
	return m.GetCertificate(&tls.ClientHelloInfo{ServerName: t.name, CipherSuites: []uint16{tls.TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256}})
}

// updateContact tells the CA the contact address, if there is an account without it. autocert does that only when it makes
// the account. An error is no reason to go without a certificate.
func (t *transport) updateContact(client *xacme.Client) {
	contact := "mailto:" + t.is.email
	account, err := client.GetReg(t.ctx, "")
	if errors.Is(err, xacme.ErrNoAccount) || t.ctx.Err() != nil {
		return
	}
	if err == nil && !slices.Contains(account.Contact, contact) {
		if _, err = client.UpdateReg(t.ctx, &xacme.Account{Contact: []string{contact}}); err == nil {
			t.is.log.Info("contact address sent to the CA", "ca", t.is.directory)
		}
	}
	if err != nil {
		t.is.log.Warn("contact address not sent to the CA: trying again with the next order", "ca", t.is.directory, "err", err)
		return
	}
	t.is.contacted.Store(true)
}

// A cache is the [autocert.Cache] of one attempt. It has no certificate, so the Manager orders one, with a new key.
type cache struct{ t *transport }

// Get implements [autocert.Cache].
func (c cache) Get(context.Context, string) ([]byte, error) { return nil, autocert.ErrCacheMiss }

// Put implements [autocert.Cache]. It stores the answers to challenges for the responder. autocert drops its error. The
// certificate is stored when the attempt has ended.
func (c cache) Put(_ context.Context, name string, data []byte) error {
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
func (c cache) Delete(context.Context, string) error { return nil }
