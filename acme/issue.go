package acme

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/url"
	"strings"
	"time"

	xacme "golang.org/x/crypto/acme"
	"golang.org/x/crypto/acme/autocert"
)

// maxOrders is how many orders may be under way at once. Let's Encrypt allows an account 300 in three
// hours; four are quick enough for any start and polite to a small CA.
const maxOrders = 4

// accountKeyName is the file of the account key; autocert's caches call it so too.
const accountKeyName = "acme_account+key"

// An issuer places orders with one CA directory, for one account.
type issuer struct {
	// Immutable after newIssuer.
	directory string
	profile   string
	email     string
	eab       *xacme.ExternalAccountBinding // nil if the CA needs none
	key       *ecdsa.PrivateKey             // the account's
	store     *store
	tokens    *tokens
	base      *http.Transport
	now       func() time.Time
	log       *slog.Logger

	// Safe from any goroutine.
	slots    chan struct{} // holds one element for each order under way, up to maxOrders; never closed
	accounts chan struct{} // holds one while a newAccount request is under way; never closed
}

// newIssuer opens dir, the folder of cfg's directory, and loads the account key or makes one.
func newIssuer(cfg *Config, dir string, tokens *tokens) (*issuer, error) {
	store, err := openStore(dir, cfg.now, cfg.Logger)
	if err != nil {
		return nil, err
	}
	key, ok := load(store, accountKeyName, parseAccountKey)
	if !ok {
		if key, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader); err != nil {
			return nil, fmt.Errorf("acme: account key: %w", err)
		}
		b, err := encodeKey(key)
		if err == nil {
			err = store.write(accountKeyName, b)
		}
		if err != nil {
			return nil, fmt.Errorf("acme: storing the account key: %w", err)
		}
	}
	base := http.DefaultTransport.(*http.Transport).Clone()
	base.TLSClientConfig = &tls.Config{RootCAs: cfg.RootCAs}
	is := &issuer{
		directory: cfg.DirectoryURL,
		profile:   cfg.Profile,
		email:     cfg.Email,
		key:       key,
		store:     store,
		tokens:    tokens,
		base:      base,
		now:       cfg.now,
		log:       cfg.Logger,
		slots:     make(chan struct{}, maxOrders),
		accounts:  make(chan struct{}, 1),
	}
	if cfg.EABKeyID != "" {
		is.eab = &xacme.ExternalAccountBinding{KID: cfg.EABKeyID, Key: cfg.EABKey}
	}
	return is, nil
}

// parseAccountKey returns the key in the PEM block in data. It has to be one that we can sign with
// again (see transport), so only P-256 will do.
func parseAccountKey(data []byte) (*ecdsa.PrivateKey, error) {
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

// directoryName returns the name of the folder in which a CA directory's state is kept: its host, to
// be read by people, and a part of the URL's hash, since one host can have several directories.
func directoryName(directoryURL string) string {
	sum := sha256.Sum256([]byte(directoryURL))
	host := "ca"
	if u, err := url.Parse(directoryURL); err == nil {
		host = strings.NewReplacer(":", "_", "[", "", "]", "", "/", "_").Replace(u.Host)
	}
	return host + "-" + hex.EncodeToString(sum[:4])
}

// stored returns the certificate that is stored for name, or nil if there is none of use. It may have
// expired.
func (is *issuer) stored(name string) *tls.Certificate {
	cert, _ := load(is.store, name, func(data []byte) (*tls.Certificate, error) {
		cert, err := tls.X509KeyPair(data, data)
		if err != nil {
			return nil, err
		}
		return &cert, cert.Leaf.VerifyHostname(name)
	})
	return cert
}

// obtain orders a certificate for name, with a new key, and stores it. A name must not be ordered twice
// at the same time. The error is a *failure unless ctx is done, which ends the order under way.
func (is *issuer) obtain(ctx context.Context, name string) (*tls.Certificate, error) {
	select {
	case is.slots <- struct{}{}:
		defer func() { <-is.slots }()
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	// A certificate that cannot be kept is ordered again at each restart, until the CA has had enough.
	if err := is.store.probe(name); err != nil {
		return nil, &failure{
			reason: "nothing was ordered, since it could not be stored: " + err.Error(),
			hint:   "check the data folder's owner, mode and free space",
			free:   true,
		}
	}

	t := newTransport(ctx, is)
	c := &orderCache{tokens: is.tokens, name: name}
	m := &autocert.Manager{
		Prompt: autocert.AcceptTOS,
		Cache:  c,
		// Its timer then fires when the certificate is about to expire, long after we renewed it. Less
		// than 10 ns makes autocert panic; more than a short-lived certificate's life, order in a loop.
		RenewBefore:            time.Second,
		Email:                  is.email,
		ExternalAccountBinding: is.eab,
		Client: &xacme.Client{
			Key:          is.key, // set, as is UserAgent, or autocert would make one
			DirectoryURL: is.directory,
			HTTPClient:   &http.Client{Transport: t},
			UserAgent:    "plusminus",
			RetryBackoff: retryBackoff,
		},
	}
	m.HTTPHandler(nil) // has the Manager try http-01 as well; the responder answers

	cert, err := m.GetCertificate(ecdsaHello(name))
	c.retire(ctx)
	problems, retryAfter := t.retire()
	switch {
	case ctx.Err() != nil && err != nil:
		return nil, ctx.Err()
	case err != nil:
		f := newFailure(err, problems, retryAfter)
		f.free = t.costNothing()
		return nil, f
	}
	if err := is.keepStored(name, cert); err != nil {
		is.log.Error("certificate not stored: a restart will order another", "domain", name, "err", err)
	}
	return cert, nil
}

func (is *issuer) keepStored(name string, cert *tls.Certificate) error {
	key, ok := cert.PrivateKey.(*ecdsa.PrivateKey)
	if !ok {
		return fmt.Errorf("key is a %T", cert.PrivateKey)
	}
	data, err := encodePair(key, cert.Certificate)
	if err != nil {
		return err
	}
	return is.store.write(name, data)
}

// ecdsaHello returns the hello of a visitor to whom autocert gives an ECDSA certificate. It looks for
// this cipher suite; signature schemes or curves, if given, can only talk it out of it. With a real
// visitor's hello it would order an RSA certificate for each client that speaks TLS 1.3 alone.
func ecdsaHello(name string) *tls.ClientHelloInfo {
	return &tls.ClientHelloInfo{
		ServerName:   name,
		CipherSuites: []uint16{tls.TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256},
	}
}
