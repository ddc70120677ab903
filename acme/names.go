package acme

import (
	"net/netip"
	"strings"

	"plusminus/acme/internal/localca"
)

// A Domain is one name or address to serve.
type Domain struct {
	// Name is a host name in ASCII (A-labels), in lower case, without trailing dot and port, or an IP
	// address in canonical text form (RFC 5952), without brackets and zone. Wildcards are refused: no challenge
	// that this server can answer proves them.
	Name string

	// Local asks for a certificate of the local CA in place of one of the ACME CA. It is allowed for names
	// and addresses for which [IsLocal] is true.
	Local bool
}

// OrderedAddress reports whether d is an IP address that is ordered from an ACME CA.
func (d Domain) OrderedAddress() bool { return !d.Local && isAddress(d.Name) }

// IsLocal reports whether no public CA certifies name: [WhyLocal] says why.
func IsLocal(name string) bool { return WhyLocal(name) != "" }

// WhyLocal says what name is, if no public CA certifies it: "a private address", for example. Otherwise it returns "".
// name is normalised as in [Domain]. A private CA may certify it nevertheless.
//
// "test" and "localhost" are reserved by RFC 6761, "internal" by ICANN in 2024. Let's Encrypt certifies those addresses
// that [WhyNotPublic] permits.
func WhyLocal(name string) string {
	if addr, ok := parseAddress(name); ok {
		return WhyNotPublic(addr)
	}
	if name == "localhost" {
		return "the machine itself"
	}
	for _, zone := range localca.Zones() {
		if strings.HasSuffix(name, "."+zone) {
			return "a name under " + zone
		}
	}
	return ""
}

// parseAddress returns the IP address that a Domain's name is, and reports whether it is one.
func parseAddress(name string) (netip.Addr, bool) {
	addr, err := netip.ParseAddr(name)
	return addr, err == nil
}

// isAddress reports whether a Domain's name is an IP address.
func isAddress(name string) bool {
	_, ok := parseAddress(name)
	return ok
}

// reserved has the prefixes that have the form of global unicast addresses but are not reachable from the Internet.
// https://www.iana.org/assignments/iana-ipv4-special-registry
// https://www.iana.org/assignments/iana-ipv6-special-registry
var reserved = []struct {
	prefix netip.Prefix
	what   string
}{
	{netip.MustParsePrefix("100.64.0.0/10"), "an address behind a provider's NAT (CGNAT)"},
	{netip.MustParsePrefix("0.0.0.0/8"), "no address of a host"},
	{netip.MustParsePrefix("192.0.0.0/24"), "a reserved address"},
	{netip.MustParsePrefix("192.0.2.0/24"), "an address for documentation"},
	{netip.MustParsePrefix("198.51.100.0/24"), "an address for documentation"},
	{netip.MustParsePrefix("203.0.113.0/24"), "an address for documentation"},
	{netip.MustParsePrefix("198.18.0.0/15"), "an address for benchmarks"},
	{netip.MustParsePrefix("240.0.0.0/4"), "a reserved address"},
	{netip.MustParsePrefix("2001:db8::/32"), "an address for documentation"},
	{netip.MustParsePrefix("3fff::/20"), "an address for documentation"},
}

// globalUnicast is the prefix of all IPv6 addresses that are assigned for use on the Internet.
// https://www.iana.org/assignments/ipv6-address-space
var globalUnicast = netip.MustParsePrefix("2000::/3")

// WhyNotPublic says what addr is, if it is not reachable from the Internet. It returns "" if it is.
func WhyNotPublic(addr netip.Addr) string {
	addr = addr.Unmap().WithZone("")
	switch {
	case addr.IsPrivate():
		return "a private address"
	case addr.IsLoopback():
		return "a loopback address"
	case addr.IsLinkLocalUnicast():
		return "a link-local address"
	case addr.IsUnspecified(), addr.IsMulticast():
		return "no address of a host"
	}
	for _, r := range reserved {
		if r.prefix.Contains(addr) {
			return r.what
		}
	}
	if addr.Is6() && !globalUnicast.Contains(addr) {
		return "a reserved address"
	}
	return ""
}
