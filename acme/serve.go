package acme

import (
	"cmp"
	"crypto/tls"
	"fmt"
	"net/http"
	"net/netip"
	"slices"
	"strings"

	xacme "golang.org/x/crypto/acme"

	"plusminus/acme/internal/challenge"
)

// TLSConfig returns a configuration for the TLS listeners: TLS 1.2 and newer, and for 1.2 only cipher suites
// with forward secrecy and authenticated encryption. Sessions resume with tickets. crypto/tls makes their keys
// anew each day and keeps them in memory.
//
// The protocols are "http/1.1", which WebSockets need, and "acme-tls/1", which tls-alpn-01 needs. The server
// takes the first one in this list that the client offers, so the place of an added "h2" matters.
//
// A client that names a host that is not one of the domains gets the alert unrecognized_name.
//
// TLSConfig must be called before Run: without it, tls-alpn-01 is not tried if http-01 can be.
func (p *Provider) TLSConfig() *tls.Config {
	p.tlsALPN01.Store(true)
	return &tls.Config{
		MinVersion:     tls.VersionTLS12,
		CipherSuites:   cipherSuites(),
		NextProtos:     []string{"http/1.1", xacme.ALPNProto},
		GetCertificate: p.getCertificate,
	}
}

// cipherSuites returns crypto/tls's own suites for TLS 1.2 without those in CBC mode. CBC suites are
// MAC-then-encrypt (Lucky Thirteen), and no client that is otherwise secure needs one. The result is Mozilla's
// "intermediate" list: https://wiki.mozilla.org/Security/Server_Side_TLS
func cipherSuites() []uint16 {
	var ids []uint16
	for _, suite := range tls.CipherSuites() {
		if slices.Contains(suite.SupportedVersions, tls.VersionTLS12) && !strings.Contains(suite.Name, "_CBC_") {
			ids = append(ids, suite.ID)
		}
	}
	return ids
}

// getCertificate is [tls.Config.GetCertificate]. Each handshake calls it, so it takes no lock.
func (p *Provider) getCertificate(hello *tls.ClientHelloInfo) (*tls.Certificate, error) {
	if challenge.IsValidation(hello) {
		return p.responder.GetCertificate(hello)
	}
	s := p.siteFor(hello)
	if s == nil {
		return nil, nil // crypto/tls sends unrecognized_name
	}
	c := s.current.Load()
	if c == nil {
		return nil, fmt.Errorf("acme: no certificate for %s yet", s.name)
	}
	// An expired certificate is served, too. A refused handshake tells a person nothing. An expired certificate
	// shows a date, which also shows whose clock is wrong. Clients that verify refuse both, and clients that do
	// not verify (a device with its clock at 1970, a monitor of expiry dates) are served. Ready reports it.
	return &c.Certificate, nil
}

// siteFor returns the site that hello asks for, or nil if hello names a host that is not one of the domains.
func (p *Provider) siteFor(hello *tls.ClientHelloInfo) *site {
	if hello.ServerName != "" {
		return p.byName[strings.ToLower(hello.ServerName)]
	}
	// RFC 6066 section 3 does not permit addresses as server names. A client that connects to an address sends no name, so
	// the address of the connection decides. Behind a published port that is the container's. Then the client most likely
	// meant the first address of the same family.
	local, _ := netip.ParseAddrPort(localAddress(hello))
	addr := local.Addr().Unmap().WithZone("")
	if s := p.byName[addr.String()]; s != nil {
		return s
	}
	rank := func(s *site) (n int) {
		if s.current.Load() != nil {
			n = 4
		}
		if of, ok := parseAddress(s.name); ok {
			n += 2
			if of.Is4() == addr.Is4() {
				n++
			}
		}
		return n
	}
	return slices.MaxFunc(p.sites, func(a, b *site) int { return cmp.Compare(rank(a), rank(b)) }) // the first of several
}

// localAddress returns the address that the client connected to, or "".
func localAddress(hello *tls.ClientHelloInfo) string {
	if hello.Conn == nil {
		return ""
	}
	return hello.Conn.LocalAddr().String()
}

// HTTPHandler returns a handler for the plain listener, where http-01 challenges arrive. The CA asks only on
// port 80. The handler answers requests under /.well-known/acme-challenge/, with 403 for a host that is not
// one of the domains and 404 for an unknown token. All other requests go to fallback, which must not be nil.
//
// HTTPHandler must be called before Run: without it, http-01 is not tried if tls-alpn-01 can be.
func (p *Provider) HTTPHandler(fallback http.Handler) http.Handler {
	p.http01.Store(true)
	return p.responder.HTTPHandler(fallback)
}

// challengeTypes returns the challenges that this server can answer, in the order in which they are tried.
func (p *Provider) challengeTypes() []string {
	switch {
	case p.tlsALPN01.Load() && !p.http01.Load():
		return []string{challenge.TLSALPN01}
	case p.http01.Load() && !p.tlsALPN01.Load():
		return []string{challenge.HTTP01}
	}
	return []string{challenge.TLSALPN01, challenge.HTTP01}
}
