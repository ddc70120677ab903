package main

import (
	"fmt"
	"net"
	"net/netip"
	"strings"
)

// networks are those whose word is believed about whose connection it is that they pass on.
type networks []netip.Prefix

// parseNetwork understands one network, such as 10.0.0.0/8 or 2001:db8::/32, or one address.
func parseNetwork(s string) (netip.Prefix, error) {
	if ip, err := netip.ParseAddr(s); err == nil && ip.Zone() == "" {
		ip = ip.Unmap()
		return netip.PrefixFrom(ip, ip.BitLen()), nil
	}
	p, err := netip.ParsePrefix(s)
	switch {
	case err != nil || p.Addr().Is4In6():
		return p, fmt.Errorf("%q is no network: write 10.0.0.0/8, 2001:db8::/32, or one address", s)
	case p != p.Masked():
		return p, fmt.Errorf("%q has bits set behind the first %d: write %v", s, p.Bits(), p.Masked())
	}
	return p, nil
}

// contains reports whether ip is in one of them.
func (ns networks) contains(ip netip.Addr) bool {
	ip = ip.Unmap().WithZone("")
	for _, n := range ns {
		if n.Contains(ip) {
			return true
		}
	}
	return false
}

func (ns networks) String() string {
	words := make([]string, len(ns))
	for i, n := range ns {
		words[i] = n.String()
	}
	return strings.Join(words, ", ")
}

// addrOf returns the IP address of a TCP address; any other has none.
func addrOf(a net.Addr) netip.Addr {
	tcp, ok := a.(*net.TCPAddr)
	if !ok {
		return netip.Addr{}
	}
	return tcp.AddrPort().Addr()
}
