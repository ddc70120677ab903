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
	scheme, host string // host as CanonicalHost returns it
	below        bool   // matches every name below host, but not host itself
	port         string // "*" is any port; "" is the default port of the scheme
}

// ParseOrigin parses "https://host", "https://host:port", "https://host:*" (any port),
// "https://*.host" (every name below host), the same with http, and "*" (every page). The
// scheme has to match, too: anyone on the network can change a page that is loaded over http.
// https://www.rfc-editor.org/rfc/rfc6454#section-6.2
func ParseOrigin(s string) (Origin, error) {
	if s == "*" {
		return Origin{any: true}, nil
	}
	base, anyPort := strings.CutSuffix(strings.TrimSuffix(s, "/"), ":*")
	o, ok := parseOrigin(base)
	o.host, o.below = cutWildcard(o.host)
	ascii, err := idna.Lookup.ToASCII(o.host) // browsers send the ASCII form
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

// cutWildcard removes the prefix "*." from host, and reports whether host had it.
func cutWildcard(host string) (string, bool) { return strings.CutPrefix(host, "*.") }

// parseOrigin parses the origin of one page, in the form that browsers send. It reports false if s
// is not of that form.
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
		if o.any || ok && host && o.scheme == page.scheme && (o.port == "*" || o.port == page.port) {
			return true
		}
	}
	return false
}

// checkOrigin reports whether the Origin header of r is missing or allowed. If it is neither,
// checkOrigin answers 403.
func (h *Hub) checkOrigin(w http.ResponseWriter, r *http.Request) bool {
	origins := r.Header["Origin"]
	if len(origins) == 0 || len(origins) == 1 && h.allows(origins[0]) {
		return true
	}
	h.refuse(w, r, ReasonOrigin, http.StatusForbidden, fmt.Sprintf("pages of %q may not connect here", strings.Join(origins, ", ")))
	return false
}
