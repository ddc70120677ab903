package ingress

import (
	"fmt"
	"net/netip"
	"slices"

	"plusminus/hub"
)

// sharedPage is where an operator reads what to do about an address that all clients have.
const sharedPage = `docs/run.md, "When all clients have one address"`

// SharedHint returns what an operator needs to know of an address that was refused for using more than its share, if
// it seems to be that of many visitors, or "". gateways are the machine's own. clients and total are the clients of
// the address and of all.
func SharedHint(reason hub.Reason, address netip.Prefix, gateways []netip.Addr, clients, total int) string {
	switch reason {
	case ReasonAddressRate, ReasonAddressConnections, hub.ReasonAddressFull:
	default:
		return ""
	}
	private := address.IsValid() && isPrivate(address.Addr())
	isGateway := slices.ContainsFunc(gateways, func(g netip.Addr) bool {
		// The /64 of a public IPv6 gateway is that of other machines, too.
		return hub.PrefixOf(g) == address && (g.Is4() || private)
	})
	switch {
	case isGateway:
		return "this address is the default gateway of this machine or container: Docker or a NAT hides the clients' own addresses behind it; " + sharedPage + ", says what to do"
	case private && 2*clients > total:
		return fmt.Sprintf("%d of %d clients have this private address: if a proxy, Docker or a NAT hides their own addresses, see %s", clients, total, sharedPage)
	}
	return ""
}

// isPrivate reports whether no visitor from the internet can have the address ip.
func isPrivate(ip netip.Addr) bool {
	return ip.IsPrivate() || ip.IsLoopback() || ip.IsLinkLocalUnicast()
}
