package check

import (
	"context"
	"errors"
	"net"
	"net/netip"

	"plusminus/acme"
)

// maxAddresses bounds the addresses of one domain that are probed. More are unlikely to all lead to one server.
const maxAddresses = 16

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
		switch what := acme.WhyNotPublic(addr); {
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
