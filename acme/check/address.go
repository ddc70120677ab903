package check

import (
	"context"
	"errors"
	"net"
	"net/netip"
)

// maxAddresses bounds the addresses of one domain that are probed. More are unlikely to all lead to one server.
const maxAddresses = 16

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

// notPublic says why addr is not reachable from the Internet. It returns "" if it is.
func notPublic(addr netip.Addr) string {
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
	// "…global unicast": https://www.iana.org/assignments/ipv6-address-space
	if addr.Is6() && !netip.MustParsePrefix("2000::/3").Contains(addr) {
		return "a reserved address"
	}
	return ""
}

// ownAddresses returns the addresses of this machine's interfaces. In a container these are the container's.
func ownAddresses() []netip.Addr {
	addrs, err := net.InterfaceAddrs()
	if err != nil {
		return nil
	}
	var own []netip.Addr
	for _, a := range addrs {
		if p, err := netip.ParsePrefix(a.String()); err == nil {
			own = append(own, p.Addr().Unmap())
		}
	}
	return own
}

// checkAddresses reports the domain's addresses. It returns those to probe, and whether the lookup worked.
func (s *domainCheck) checkAddresses() (addrs []netip.Addr, looked bool) {
	const subject = "address"
	ctx, cancel := context.WithTimeout(s.ctx, timeout)
	defer cancel()
	l, err := s.dns.lookup(ctx, s.name)
	var rcode *rcodeError
	switch {
	case len(l.addrs) > 0:
	case errors.As(err, &rcode):
		s.say(Problem, subject, "the DNS answers %v: the name's DNS servers, or their DNSSEC, have to be mended", err)
		return nil, true
	case err != nil:
		s.say(Warning, subject, "could not be looked up: %v; this machine's DNS is at fault rather than the name's", err)
		return nil, false
	case !l.exists:
		s.say(Problem, subject, "there is no such name in the DNS: add an A record with this machine's public address; a record that was just added may take minutes")
		return nil, true
	default:
		s.say(Problem, subject, "the name has neither an A nor an AAAA record: add an A record with this machine's public address")
		return nil, true
	}
	for _, addr := range l.addrs {
		switch what := notPublic(addr); {
		case what == "":
			s.say(OK, subject, "%v", addr)
		case s.inside:
			s.say(OK, subject, "%v is %s; so is the CA's own", addr, what)
		default:
			s.say(Problem, subject, "%v is %s, which the CA does not reach: the record has to name the public address", addr, what)
			continue
		}
		addrs = append(addrs, addr)
	}
	if err != nil {
		s.say(Warning, subject, "one of the A and AAAA lookups failed: %v", err)
	}
	if len(addrs) > maxAddresses {
		s.say(Warning, subject, "only the first %d of %d addresses are probed", maxAddresses, len(addrs))
		addrs = addrs[:maxAddresses]
	}
	return addrs, true
}
