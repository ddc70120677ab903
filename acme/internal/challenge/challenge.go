// Package challenge answers the challenges by which a CA validates that this server has a domain:
// tls-alpn-01 (RFC 8737) on the TLS listener, http-01 (RFC 8555 section 8.3) on the plain one.
//
// [Answer] makes an answer. [Tokens] holds answers, for all replicas. [Responder] gives them to the CA. The package
// starts no goroutine.
package challenge

import (
	"context"
	"crypto/ecdsa"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	xacme "golang.org/x/crypto/acme"
	"golang.org/x/crypto/acme/autocert"

	"plusminus/acme/internal/certs"
)

// The challenge types that this server can answer.
const (
	TLSALPN01 = "tls-alpn-01" // RFC 8737
	HTTP01    = "http-01"     // RFC 8555 section 8.3
)

// autocert's names for answers: these follow the domain's [ServerName] and the challenge's token.
const (
	tlsSuffix  = "+token"
	httpSuffix = "+http-01"
)

// NotOurs is the text of the 403 that [Responder.HTTPHandler] gives for a host that is not one of the
// domains. Package check looks for it.
const NotOurs = "acme: not one of the domains"

// A Responder answers challenges from [Tokens] and does nothing else. An autocert.Manager does that for names; it is never
// asked for a certificate. Its methods are safe for concurrent use.
type Responder struct {
	manager *autocert.Manager
	tokens  *Tokens
}

// NewResponder returns a Responder. ours reports whether a host is one of the domains. It is called with a name in lower
// case, or with an IP address in canonical text form.
func NewResponder(tokens *Tokens, ours func(host string) bool) *Responder {
	return &Responder{tokens: tokens, manager: &autocert.Manager{
		Prompt: autocert.AcceptTOS,
		Cache:  tokens,
		HostPolicy: func(_ context.Context, host string) error {
			if !ours(hostOf(host)) {
				return errors.New(NotOurs)
			}
			return nil
		},
	}}
}

// hostOf returns the host of a Host header as ours takes it. autocert passes the header unchanged, with the port if there
// is one, and with the brackets of an IPv6 address.
func hostOf(header string) string {
	host := header
	if h, _, err := net.SplitHostPort(header); err == nil {
		host = h
	}
	if addr, err := netip.ParseAddr(strings.Trim(host, "[]")); err == nil {
		return addr.Unmap().String()
	}
	return strings.ToLower(host)
}

// HTTPHandler answers requests of http-01 validations, and passes all others to fallback.
func (r *Responder) HTTPHandler(fallback http.Handler) http.Handler {
	return r.manager.HTTPHandler(fallback)
}

// GetCertificate returns the answer to the handshake of a tls-alpn-01 validation; see [IsValidation].
func (r *Responder) GetCertificate(hello *tls.ClientHelloInfo) (*tls.Certificate, error) {
	name := strings.ToLower(hello.ServerName)
	if !strings.HasSuffix(name, addressZone4) && !strings.HasSuffix(name, addressZone6) {
		return r.manager.GetCertificate(hello)
	}
	// autocert refuses the answer for an address, since its certificate is not for the server name.
	data, err := r.tokens.Get(hello.Context(), name+tlsSuffix)
	if err != nil {
		return nil, fmt.Errorf("acme: no answer for %s: %w", name, err)
	}
	cert, err := tls.X509KeyPair(data, data)
	return &cert, err
}

// The zones of the names that stand for addresses.
const (
	addressZone4 = ".in-addr.arpa"
	addressZone6 = ".ip6.arpa"
)

// ServerName returns the server name with which a CA asks for the answer to tls-alpn-01: the domain itself, and for an IP
// address "the IN-ADDR.ARPA [RFC1034] or IP6.ARPA [RFC3596] reverse mapping of the IP address".
// https://www.rfc-editor.org/rfc/rfc8738#section-6
func ServerName(domain string) string {
	addr, err := netip.ParseAddr(domain)
	if err != nil {
		return domain
	}
	var labels []string
	for _, b := range slices.Backward(addr.AsSlice()) {
		if addr.Is4() {
			labels = append(labels, strconv.Itoa(int(b)))
		} else {
			labels = append(labels, strconv.FormatInt(int64(b&0xf), 16), strconv.FormatInt(int64(b>>4), 16))
		}
	}
	zone := addressZone6
	if addr.Is4() {
		zone = addressZone4
	}
	return strings.Join(labels, ".") + zone
}

// IsValidation reports whether hello is the handshake of a tls-alpn-01 validation: "The ACME server MUST
// provide an ALPN extension with the single protocol name "acme-tls/1"".
// https://www.rfc-editor.org/rfc/rfc8737#section-3
func IsValidation(hello *tls.ClientHelloInfo) bool {
	return len(hello.SupportedProtos) == 1 && hello.SupportedProtos[0] == xacme.ALPNProto
}

// Answer returns the answer to a challenge of type typ with the given token, and the name under which [Responder] looks
// for the answer in [Tokens]. domain is a name or an IP address. client has the account key.
func Answer(client *xacme.Client, typ, domain, token string) (name string, answer []byte, err error) {
	if typ == HTTP01 {
		body, err := client.HTTP01ChallengeResponse(token)
		return token + httpSuffix, []byte(body), err
	}
	c, err := client.TLSALPN01ChallengeCert(token, domain)
	if err != nil {
		return "", nil, err
	}
	key, ok := c.PrivateKey.(*ecdsa.PrivateKey)
	if !ok {
		return "", nil, fmt.Errorf("key of the challenge certificate is a %T", c.PrivateKey)
	}
	answer, err = certs.EncodePair(key, c.Certificate)
	return ServerName(domain) + tlsSuffix, answer, err
}
