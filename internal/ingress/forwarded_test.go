package ingress

import (
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"testing"
)

// TestForwarded compares the remote address that Forwarded sets, for a peer and its X-Forwarded-For values.
func TestForwarded(t *testing.T) {
	for _, tt := range []struct {
		peer   string
		values []string
		want   string
	}{
		{"10.0.0.1:1", []string{"192.0.2.1"}, "192.0.2.1:0"},
		{"10.0.0.1:1", []string{"198.51.100.1, 192.0.2.1"}, "192.0.2.1:0"},              // the client may have written the first
		{"10.0.0.1:1", []string{"198.51.100.1", "192.0.2.1"}, "192.0.2.1:0"},            // the same in two headers
		{"10.0.0.1:1", []string{"192.0.2.1, 10.0.0.2,10.0.0.3 "}, "192.0.2.1:0"},        // through several proxies
		{"10.0.0.1:1", []string{"10.0.0.2, 192.0.2.1, 10.0.0.3"}, "192.0.2.1:0"},        // a client that claims to be a proxy
		{"10.0.0.1:1", []string{"10.0.0.2, 10.0.0.3"}, "10.0.0.2:0"},                    // all addresses are trusted proxies
		{"10.0.0.1:1", []string{"192.0.2.1:4711"}, "192.0.2.1:0"},                       // with a port
		{"10.0.0.1:1", []string{"[2001:db8::1]:4711"}, "[2001:db8::1]:0"},               // likewise
		{"10.0.0.1:1", []string{"[2001:db8::1]"}, "[2001:db8::1]:0"},                    // with brackets
		{"10.0.0.1:1", []string{"2001:db8::1"}, "[2001:db8::1]:0"},                      // without brackets
		{"10.0.0.1:1", []string{"::ffff:192.0.2.1"}, "192.0.2.1:0"},                     // IPv4 in IPv6
		{"[::ffff:10.0.0.1]:1", []string{"192.0.2.1"}, "192.0.2.1:0"},                   // likewise
		{"[fd00::1]:1", []string{"192.0.2.1"}, "192.0.2.1:0"},                           // the other trusted network
		{"10.0.0.1:1", nil, "10.0.0.1:1"},                                               // no header
		{"10.0.0.1:1", []string{""}, "10.0.0.1:1"},                                      // likewise
		{"10.0.0.1:1", []string{"unknown"}, "10.0.0.1:1"},                               // the proxy does not know
		{"10.0.0.1:1", []string{"192.0.2.1, unknown"}, "10.0.0.1:1"},                    // addresses before it are not trusted
		{"10.0.0.1:1", []string{"192.0.2.1, garbage, 10.0.0.3"}, "10.0.0.3:0"},          // likewise
		{"192.0.2.7:1", []string{"198.51.100.1"}, "192.0.2.7:1"},                        // not a proxy
		{"192.0.2.7:1", []string{"198.51.100.1, 10.0.0.1"}, "192.0.2.7:1"},              // not a proxy, though it claims to be one
		{"@", []string{"198.51.100.1"}, "@"},                                            // not TCP
		{"10.0.0.1:1", []string{strings.Repeat("192.0.2.1,", 800) + "9"}, "10.0.0.1:1"}, // too long
	} {
		var got string
		in := New(Config{TrustedProxies: Networks{netip.MustParsePrefix("10.0.0.0/8"), netip.MustParsePrefix("fd00::/64")}})
		h := in.Forwarded(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { got = r.RemoteAddr }))
		r := httptest.NewRequest(http.MethodGet, "/", nil)
		r.RemoteAddr, r.Header["X-Forwarded-For"] = tt.peer, tt.values
		h.ServeHTTP(httptest.NewRecorder(), r)
		if got != tt.want {
			t.Errorf("peer %s, X-Forwarded-For %q: RemoteAddr = %s, want %s", tt.peer, tt.values, got, tt.want)
		}
	}
}
