package ingress

import (
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strings"
)

// Forwarded returns next behind the trusted proxies: a request that one of them passes on gets the
// client's address from X-Forwarded-For as its RemoteAddr. So caps per address count clients and not
// proxies. Without trusted proxies it returns next itself.
func (in *Ingress) Forwarded(next http.Handler) http.Handler {
	if len(in.trustedProxies) == 0 {
		return next
	}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if peer, err := netip.ParseAddrPort(r.RemoteAddr); err == nil && in.trustedProxies.Contains(peer.Addr()) {
			if client := clientBehind(in.trustedProxies, peer.Addr(), r.Header["X-Forwarded-For"]); client != peer.Addr() {
				r.RemoteAddr = netip.AddrPortFrom(client, 0).String() // the header has no port
			}
		}
		next.ServeHTTP(w, r)
	})
}

// clientBehind returns the address of the client whose request the trusted proxy peer passes on.
// values are those of X-Forwarded-For. Each proxy appends the address that it got the request from.
// So the last address that is not a trusted proxy's is the client's: the client may have written
// all that stands before it. If all are trusted, the client's is the first.
func clientBehind(trusted Networks, peer netip.Addr, values []string) netip.Addr {
	client := peer
	hops := strings.Split(strings.Join(values, ","), ",")
	for _, hop := range slices.Backward(hops) {
		ip, ok := parseHop(strings.TrimSpace(hop))
		if !ok {
			return client // "unknown", for example: no address further back can be trusted
		}
		if client = ip; !trusted.Contains(ip) {
			return client
		}
	}
	return client
}

// parseHop parses an address of X-Forwarded-For. Some proxies add a port.
func parseHop(s string) (netip.Addr, bool) {
	if host, _, err := net.SplitHostPort(s); err == nil {
		s = host
	}
	ip, err := netip.ParseAddr(strings.Trim(s, "[]"))
	return ip.Unmap().WithZone(""), err == nil
}
