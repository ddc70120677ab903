package ingress

import (
	"net"
	"net/netip"
	"strings"
)

// Networks lists trusted proxies: peers that may state the client's address.
type Networks []netip.Prefix

// Contains reports whether ip is in one of the networks.
func (ns Networks) Contains(ip netip.Addr) bool {
	ip = ip.Unmap().WithZone("")
	for _, n := range ns {
		if n.Contains(ip) {
			return true
		}
	}
	return false
}

// String returns the networks with commas between.
func (ns Networks) String() string {
	words := make([]string, len(ns))
	for i, n := range ns {
		words[i] = n.String()
	}
	return strings.Join(words, ", ")
}

// addrOf returns the IP address of a TCP address, and the zero Addr for any other.
func addrOf(a net.Addr) netip.Addr {
	tcp, ok := a.(*net.TCPAddr)
	if !ok {
		return netip.Addr{}
	}
	return tcp.AddrPort().Addr()
}
