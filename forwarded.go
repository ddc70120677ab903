package main

import (
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strings"
)

// forwarded has requests that trusted proxies pass on come from the address that they tell of
// in X-Forwarded-For, and so the cap per address counts clients and not proxies.
type forwarded struct {
	trusted networks
	next    http.Handler
}

func (h *forwarded) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if peer, err := netip.ParseAddrPort(r.RemoteAddr); err == nil && h.trusted.contains(peer.Addr()) {
		if client := h.client(peer.Addr(), r.Header["X-Forwarded-For"]); client != peer.Addr() {
			r.RemoteAddr = netip.AddrPortFrom(client, 0).String() // nobody tells the port
		}
	}
	h.next.ServeHTTP(w, r)
}

// client returns whose request it is that peer, a trusted proxy, passes on. Each proxy appends
// who came to it, and so the last address that is no trusted proxy's is the client's: what is
// in front of it anybody could have written. If all are trusted it is the first.
func (h *forwarded) client(peer netip.Addr, values []string) netip.Addr {
	client := peer
	hops := strings.Split(strings.Join(values, ","), ",")
	for _, hop := range slices.Backward(hops) {
		ip, ok := parseHop(strings.TrimSpace(hop))
		if !ok {
			return client // "unknown", say: the proxy is all that is known
		}
		if client = ip; !h.trusted.contains(ip) {
			return client
		}
	}
	return client
}

// parseHop understands an address as proxies write it: some add the port.
func parseHop(s string) (netip.Addr, bool) {
	if host, _, err := net.SplitHostPort(s); err == nil {
		s = host
	}
	ip, err := netip.ParseAddr(strings.Trim(s, "[]"))
	return ip.Unmap().WithZone(""), err == nil
}
