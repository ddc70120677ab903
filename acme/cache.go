package acme

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"sync"
	"time"

	"golang.org/x/crypto/acme/autocert"
)

// tokens is what the responder can answer challenges with: an [autocert.Cache] in memory, in which
// the Managers that place orders put their tokens and from which the responder takes them.
type tokens struct {
	m sync.Map // string -> []byte. Safe from any goroutine.
}

func (t *tokens) Get(_ context.Context, key string) ([]byte, error) {
	if v, ok := t.m.Load(key); ok {
		return v.([]byte), nil
	}
	return nil, autocert.ErrCacheMiss
}

func (t *tokens) Put(_ context.Context, key string, data []byte) error {
	t.m.Store(key, bytes.Clone(data))
	return nil
}

func (t *tokens) Delete(_ context.Context, key string) error {
	t.m.Delete(key)
	return nil
}

// An orderCache is the [autocert.Cache] of a Manager that places one order, for name.
//
// While the order is under way it has no certificate, so that the Manager makes a key and orders. Once
// retired it has a tombstone. The Manager's renewal timer cannot be stopped; when it fires, the
// Manager finds the tombstone, adopts it, and sleeps for the hundred years that it is valid. Given
// anything else, a year's worth of retired Managers would wake up together at the expiry of the
// certificate and all order a new one.
type orderCache struct {
	// Immutable.
	tokens *tokens
	name   string

	mu sync.Mutex
	// Guarded by mu.
	put     []string // the keys of the order's tokens
	retired bool
}

func (c *orderCache) Get(ctx context.Context, key string) ([]byte, error) {
	if key != c.name {
		return c.tokens.Get(ctx, key)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.retired {
		return nil, autocert.ErrCacheMiss
	}
	return tombstone(c.name)
}

// Put takes tokens. The certificate it drops: the issuer stores what it is handed, and minds when that
// fails, which autocert does not.
func (c *orderCache) Put(ctx context.Context, key string, data []byte) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if key == c.name || c.retired {
		return nil
	}
	c.put = append(c.put, key)
	return c.tokens.Put(ctx, key, data)
}

// Delete does nothing. autocert calls it from a goroutine of its own, whenever that runs; a name has
// one tls-alpn-01 token, and by then it may be the next order's. retire deletes in time.
func (c *orderCache) Delete(context.Context, string) error { return nil }

// retire ends the order: its tokens are gone, and its Manager finds the tombstone from now on.
func (c *orderCache) retire(ctx context.Context) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.retired = true
	for _, key := range c.put {
		c.tokens.Delete(ctx, key)
	}
}

// tombstone returns a certificate for name, with its key, that is good enough for autocert's own
// checks and for nothing else.
func tombstone(name string) ([]byte, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	now := time.Now()
	leaf := &x509.Certificate{
		DNSNames:  []string{name},
		NotBefore: now.Add(-day),
		NotAfter:  now.AddDate(100, 0, 0),
	}
	der, err := x509.CreateCertificate(rand.Reader, leaf, leaf, key.Public(), key)
	if err != nil {
		return nil, err
	}
	return encodePair(key, [][]byte{der})
}

// encodePair returns key and then chain, in PEM.
func encodePair(key *ecdsa.PrivateKey, chain [][]byte) ([]byte, error) {
	b, err := encodeKey(key)
	if err != nil {
		return nil, err
	}
	for _, der := range chain {
		b = append(b, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})...)
	}
	return b, nil
}

func encodeKey(key *ecdsa.PrivateKey) ([]byte, error) {
	der, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		return nil, err
	}
	return pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: der}), nil
}
