package challenge

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"net/http"
	"net/http/httptest"
	"testing"

	"github.com/miekg/dns"
	xacme "golang.org/x/crypto/acme"
)

// https://www.rfc-editor.org/rfc/rfc8738#section-6
func TestServerName(t *testing.T) {
	t.Parallel()
	for domain, want := range map[string]string{
		"counter.example.com": "counter.example.com",
		"192.0.2.10":          "10.2.0.192.in-addr.arpa",
		"2001:db8::567:89ab":  "b.a.9.8.7.6.5.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.8.b.d.0.1.0.0.2.ip6.arpa", // the example of RFC 3596
	} {
		if got := ServerName(domain); got != want {
			t.Errorf("ServerName(%s) = %s, want %s", domain, got, want)
		}
		if reverse, err := dns.ReverseAddr(domain); err == nil && reverse != want+"." {
			t.Errorf("the DNS library says %s for %s, want %s", reverse, domain, want)
		}
	}
}

// A Responder gives the answers to both challenges, for names and addresses.
func TestResponder(t *testing.T) {
	t.Parallel()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	client, tokens := &xacme.Client{Key: key}, new(Tokens)
	hosts := map[string]string{"counter.example.com": "Counter.Example.com:80", "192.0.2.1": "192.0.2.1", "2001:db8::1": "[2001:DB8:0::1]", "2001:db8::2": "[2001:db8::2]:5002"}
	r := NewResponder(tokens, func(host string) bool { return hosts[host] != "" })
	h := r.HTTPHandler(http.NotFoundHandler())
	for domain, host := range hosts {
		for _, typ := range []string{TLSALPN01, HTTP01} {
			name, answer, err := Answer(client, typ, domain, "token")
			if err == nil {
				err = tokens.Put(context.Background(), name, answer)
			}
			if err != nil {
				t.Fatal(err)
			}
			if typ == HTTP01 {
				rec := httptest.NewRecorder()
				req := httptest.NewRequest(http.MethodGet, "/.well-known/acme-challenge/token", nil)
				req.Host = host
				if h.ServeHTTP(rec, req); rec.Code != 200 || rec.Body.String() != string(answer) {
					t.Errorf("%s: %d %q, want the answer", host, rec.Code, rec.Body)
				}
				continue
			}
			cert, err := r.GetCertificate(&tls.ClientHelloInfo{ServerName: ServerName(domain), SupportedProtos: []string{xacme.ALPNProto}})
			if err != nil {
				t.Errorf("%s: %v", domain, err)
				continue
			}
			if want, err := tls.X509KeyPair(answer, answer); err != nil || !cert.Leaf.Equal(want.Leaf) || cert.Leaf.VerifyHostname(domain) != nil {
				t.Errorf("%s: another certificate than the answer, %v", domain, err)
			}
		}
	}
	for _, host := range []string{"other.example.com", "192.0.2.9", "[2001:db8::9]", ""} {
		rec := httptest.NewRecorder()
		req := httptest.NewRequest(http.MethodGet, "/.well-known/acme-challenge/token", nil)
		req.Host = host
		if h.ServeHTTP(rec, req); rec.Code != http.StatusForbidden {
			t.Errorf("host %q: %d, want 403", host, rec.Code)
		}
	}
	for _, name := range []string{"9.2.0.192.in-addr.arpa", "x.ip6.arpa", "other.example.com"} {
		if _, err := r.GetCertificate(&tls.ClientHelloInfo{ServerName: name, SupportedProtos: []string{xacme.ALPNProto}}); err == nil {
			t.Errorf("an answer for %s, which has none", name)
		}
	}
}
