package hub

import (
	"fmt"
	"net/http"
	"net/netip"
	"net/url"
	"strings"

	"golang.org/x/net/idna"
)

// Origin says which pages may connect. The zero value is none.
type Origin struct {
	any          bool
	scheme, host string // as CanonicalHost has it
	below        bool   // every name below host, and not host itself
	port         string // "*" is any; the scheme's own is ""
}

// ParseOrigin understands "https://host", "https://host:port", "https://host:*" (any
// port), "https://*.host" (every name below host), the same with http, and "*" (any page
// whatsoever). The scheme counts as much as the host does: a page that came over http may be
// anybody's. https://www.rfc-editor.org/rfc/rfc6454#section-6.2
func ParseOrigin(s string) (Origin, error) {
	if s == "*" {
		return Origin{any: true}, nil
	}
	base, anyPort := strings.CutSuffix(strings.TrimSuffix(s, "/"), ":*")
	o, ok := parseOrigin(base)
	o.host, o.below = cutWildcard(o.host)
	ascii, err := idna.Lookup.ToASCII(o.host) // as browsers have it
	if _, noIP := netip.ParseAddr(o.host); noIP == nil {
		ascii, err = o.host, nil
	}
	if !ok || err != nil || strings.Contains(ascii, "*") || anyPort && o.port != "" {
		return Origin{}, fmt.Errorf("%q is no origin: write https://host, https://host:port, https://host:*, https://*.host or *", s)
	}
	o.host = ascii
	if anyPort {
		o.port = "*"
	}
	return o, nil
}

func cutWildcard(host string) (string, bool) { return strings.CutPrefix(host, "*.") }

// parseOrigin parses the origin of one page, as browsers send it.
// https://www.rfc-editor.org/rfc/rfc6454#section-7.1
func parseOrigin(s string) (Origin, bool) {
	u, err := url.Parse(s)
	if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Hostname() == "" ||
		u.User != nil || u.Path != "" || u.RawQuery != "" || u.ForceQuery || strings.Contains(s, "#") {
		return Origin{}, false
	}
	o := Origin{scheme: u.Scheme, host: CanonicalHost(u.Hostname()), port: u.Port()}
	if o.scheme == "https" && o.port == "443" || o.scheme == "http" && o.port == "80" {
		o.port = ""
	}
	return o, true
}

// CanonicalHost returns a host in lower case and without the trailing dot, and an IP address in its
// shortest form, without brackets. host has no port.
func CanonicalHost(host string) string {
	host = strings.ToLower(strings.TrimSuffix(host, "."))
	if ip, err := netip.ParseAddr(strings.Trim(host, "[]")); err == nil {
		return ip.Unmap().String()
	}
	return host
}

// allows reports whether a page of the given Origin header may connect.
func (h *Hub) allows(header string) bool {
	page, ok := parseOrigin(header)
	for _, o := range h.cfg.Origins {
		host := o.host == page.host
		if o.below {
			host = strings.HasSuffix(page.host, "."+o.host)
		}
		if o.any || ok && host && o.scheme == page.scheme && (o.port == "*" || o.port == page.port) {
			return true
		}
	}
	return false
}

// checkOrigin reports whether the page that r comes from, if it comes from one, may connect. If
// not it answers 403.
func (h *Hub) checkOrigin(w http.ResponseWriter, r *http.Request) bool {
	origins := r.Header["Origin"]
	if len(origins) == 0 || len(origins) == 1 && h.allows(origins[0]) {
		return true
	}
	h.refuse(w, r, ReasonOrigin, http.StatusForbidden, fmt.Sprintf("pages of %q may not connect here", strings.Join(origins, ", ")))
	return false
}
