package acme

import (
	"crypto/tls"
	"errors"
	"testing"
	"time"

	xacme "golang.org/x/crypto/acme"
	"golang.org/x/crypto/acme/autocert"
)

func TestOrderCache(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	shared := new(tokens)
	c := &orderCache{tokens: shared, name: domain}
	for key, data := range map[string]string{domain + "+token": "t", "x+http-01": "h", domain: "certificate"} {
		if err := c.Put(ctx, key, []byte(data)); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := c.Get(ctx, domain); !errors.Is(err, autocert.ErrCacheMiss) {
		t.Errorf("Get(%s) during the order = %v, want a miss", domain, err)
	}
	if err := c.Delete(ctx, domain+"+token"); err != nil {
		t.Fatal(err)
	}
	for _, key := range []string{domain + "+token", "x+http-01"} {
		if _, err := shared.Get(ctx, key); err != nil {
			t.Errorf("token %s is not there for the responder: %v", key, err)
		}
	}

	c.retire(ctx)
	if err := shared.Put(ctx, domain+"+token", []byte("the next order's")); err != nil {
		t.Fatal(err)
	}
	c.Delete(ctx, domain+"+token") // autocert is late
	if data, err := shared.Get(ctx, domain+"+token"); err != nil || string(data) != "the next order's" {
		t.Errorf("the next order's token = %q, %v", data, err)
	}
	if _, err := shared.Get(ctx, "x+http-01"); !errors.Is(err, autocert.ErrCacheMiss) {
		t.Errorf("token of a retired order: %v, want a miss", err)
	}
	data, err := c.Get(ctx, domain)
	if err != nil {
		t.Fatalf("Get(%s) of a retired order = %v, want the tombstone", domain, err)
	}

	// What autocert does with it: a second Manager over a cache that holds it adopts it without a CA.
	cache := new(tokens)
	if err := cache.Put(ctx, domain, data); err != nil {
		t.Fatal(err)
	}
	m := &autocert.Manager{Prompt: autocert.AcceptTOS, Cache: cache, RenewBefore: time.Second,
		HostPolicy: autocert.HostWhitelist(domain), Client: &xacme.Client{DirectoryURL: "https://127.0.0.1:1/"}}
	var cert *tls.Certificate
	if cert, err = m.GetCertificate(ecdsaHello(domain)); err != nil {
		t.Fatalf("autocert refuses the tombstone: %v", err)
	}
	if left := time.Until(cert.Leaf.NotAfter); left < 99*365*day {
		t.Errorf("the tombstone is good for %v, want a hundred years", left)
	}
}
