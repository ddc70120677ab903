// Package challenge answers the challenges by which a CA validates that this server has a domain:
// tls-alpn-01 (RFC 8737) on the TLS listener, http-01 (RFC 8555 section 8.3) on the plain one.
//
// [Answer] makes an answer. [Tokens] holds answers, for all replicas. [Responder] is an autocert.Manager that
// gives them to the CA. The package starts no goroutine.
package challenge

import (
	"context"
	"crypto/ecdsa"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
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

// NotOurs is the text of the 403 that Responder's HTTPHandler gives for a host that is not one of the
// domains. Package check looks for it.
const NotOurs = "acme: not one of the domains"

// Responder returns an autocert.Manager that answers challenges from tokens and does nothing else: it is
// never asked for a certificate. ours reports whether a host name, in lower case, is one of the domains.
func Responder(tokens *Tokens, ours func(host string) bool) *autocert.Manager {
	return &autocert.Manager{
		Prompt: autocert.AcceptTOS,
		Cache:  tokens,
		HostPolicy: func(_ context.Context, host string) error {
			// autocert passes r.Host unchanged, with the port if there is one.
			if h, _, err := net.SplitHostPort(host); err == nil {
				host = h
			}
			if !ours(strings.ToLower(host)) {
				return errors.New(NotOurs)
			}
			return nil
		},
	}
}

// IsValidation reports whether hello is the handshake of a tls-alpn-01 validation: "The ACME server MUST
// provide an ALPN extension with the single protocol name "acme-tls/1"".
// https://www.rfc-editor.org/rfc/rfc8737#section-3
func IsValidation(hello *tls.ClientHelloInfo) bool {
	return len(hello.SupportedProtos) == 1 && hello.SupportedProtos[0] == xacme.ALPNProto
}

// Answer returns the answer to a challenge of type typ with the given token, and the name under which
// Responder looks for the answer in [Tokens]. client has the account key.
func Answer(client *xacme.Client, typ, domain, token string) (name string, answer []byte, err error) {
	if typ == HTTP01 {
		body, err := client.HTTP01ChallengeResponse(token)
		return token + "+http-01", []byte(body), err
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
	return domain + "+token", answer, err
}
