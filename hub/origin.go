package hub

import (
	"fmt"
	"net/http"
	"net/netip"
	"net/url"
	"strings"

	"golang.org/x/net/idna"
)

// Origin is a pattern for the origins whose pages may connect. The zero value matches none.
type Origin struct {
	any          bool   // matches every origin
	opaque       bool   // matches "null"
	scheme, host string // host as CanonicalHost returns it
	below        bool   // matches every name below host, but not host itself
	port         string // "*" is any port; "" is the default port of the scheme
}

// ParseOrigin parses "https://host", "https://host:port", "https://host:*" (any port),
// "https://*.host" (every name below host), the same with any other scheme that a page may have, such as
// "capacitor://localhost" or "chrome-extension://id", "null" (pages without an origin of their own),
// and "*" (every page). The scheme has to match, too: anyone on the network can change a page that is
// loaded over http. https://www.rfc-editor.org/rfc/rfc6454#section-6.2
func ParseOrigin(s string) (Origin, error) {
	switch s {
	case "*":
		return Origin{any: true}, nil
	case opaqueOrigin:
		return Origin{opaque: true}, nil
	}
	base, anyPort := strings.CutSuffix(strings.TrimSuffix(s, "/"), ":*")
	o, ok := parseOrigin(base)
	if ok && (o.scheme == "ws" || o.scheme == "wss") {
		return Origin{}, fmt.Errorf("%q is the address of a WebSocket, and no page has such an origin: write that of the page, https://host", s)
	}
	o.host, o.below = cutWildcard(o.host)
	ascii, err := o.host, error(nil)
	if _, ipErr := netip.ParseAddr(o.host); ipErr != nil && (o.scheme == "http" || o.scheme == "https") {
		ascii, err = idna.Lookup.ToASCII(o.host) // browsers send the ASCII form
	}
	if !ok || err != nil || ascii == "" || strings.Contains(ascii, "*") || anyPort && o.port != "" {
		return Origin{}, fmt.Errorf("%q is no origin: write https://host, https://host:port, https://host:*, https://*.host, app://host, null or *", s)
	}
	o.host = ascii
	if anyPort {
		o.port = "*"
	}
	return o, nil
}

// String returns o in the form that [ParseOrigin] takes, with the host in its ASCII form. For an origin with a host that is also a
// source expression of a Content-Security-Policy, unless the host is an IPv6 address, which those do not have.
// https://www.w3.org/TR/CSP3/#framework-directive-source-list
func (o Origin) String() string {
	switch {
	case o.any:
		return "*"
	case o.opaque:
		return opaqueOrigin
	}
	s := o.scheme + "://"
	if o.below {
		s += "*."
	}
	if strings.Contains(o.host, ":") {
		s += "[" + o.host + "]"
	} else {
		s += o.host
	}
	if o.port != "" {
		s += ":" + o.port
	}
	return s
}

// opaqueOrigin is the Origin header of pages without an origin of their own: files, sandboxed frames, data:
// URLs and some apps. https://html.spec.whatwg.org/multipage/browsers.html#ascii-serialisation-of-an-origin
const opaqueOrigin = "null"

// cutWildcard removes the prefix "*." from host, and reports whether host had it.
func cutWildcard(host string) (string, bool) { return strings.CutPrefix(host, "*.") }

// parseOrigin parses the origin of one page, in the form that browsers send: any scheme with a host. Apps have
// schemes of their own. It reports false if s is not of that form.
// https://www.rfc-editor.org/rfc/rfc6454#section-7.1
func parseOrigin(s string) (Origin, bool) {
	u, err := url.Parse(s)
	if err != nil || u.Scheme == "" || u.Hostname() == "" ||
		u.User != nil || u.Path != "" || u.RawQuery != "" || u.ForceQuery || strings.Contains(s, "#") {
		return Origin{}, false
	}
	o := Origin{scheme: u.Scheme, host: CanonicalHost(u.Hostname()), port: u.Port()}
	if o.scheme == "https" && o.port == "443" || o.scheme == "http" && o.port == "80" {
		o.port = ""
	}
	return o, true
}

// CanonicalHost returns host in lower case and without a trailing dot. If host is an IP address, with
// or without brackets, CanonicalHost returns its shortest form without brackets. host has no port.
func CanonicalHost(host string) string {
	host = strings.ToLower(strings.TrimSuffix(host, "."))
	if ip, err := netip.ParseAddr(strings.Trim(host, "[]")); err == nil {
		return ip.Unmap().String()
	}
	return host
}

// allows reports whether pages with the given Origin header may connect.
func (h *Hub) allows(header string) bool {
	page, ok := parseOrigin(header)
	for _, o := range h.cfg.Origins {
		host := o.host == page.host
		if o.below {
			host = strings.HasSuffix(page.host, "."+o.host)
		}
		switch {
		case o.any, o.opaque && header == opaqueOrigin,
			ok && !o.opaque && host && o.scheme == page.scheme && (o.port == "*" || o.port == page.port):
			return true
		}
	}
	return false
}

// ShareWithOrigin lets the page that sent r read the response, if the page's origin is allowed (CORS). It sets
// Access-Control-Allow-Origin for an allowed origin only. It adds "Vary: Origin" in any case, also for a request
// without an Origin, since a cache must not give the answer for one origin to another.
// https://fetch.spec.whatwg.org/#cors-protocol-and-http-caches
func (h *Hub) ShareWithOrigin(header http.Header, r *http.Request) {
	header.Add("Vary", "Origin")
	if origins := r.Header["Origin"]; len(origins) == 1 && h.allows(origins[0]) {
		// https://fetch.spec.whatwg.org/#http-access-control-allow-origin
		header.Set("Access-Control-Allow-Origin", origins[0])
	}
}

// CheckOrigin reports whether the Origin header of r is missing or allowed. If it is neither,
// CheckOrigin answers 403.
func (h *Hub) CheckOrigin(w http.ResponseWriter, r *http.Request) bool {
	origins := r.Header["Origin"]
	if len(origins) == 0 || len(origins) == 1 && h.allows(origins[0]) {
		return true
	}
	text := fmt.Sprintf("pages of %q may not connect here", strings.Join(origins, ", "))
	if len(origins) == 1 && origins[0] == opaqueOrigin {
		text = `pages without an origin of their own (Origin: null) may not connect here; files, sandboxed frames and some apps all send the same "null"`
	}
	h.refuse(w, r, ReasonOrigin, http.StatusForbidden, text)
	return false
}
