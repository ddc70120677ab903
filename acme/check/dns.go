package check

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"time"

	"github.com/miekg/dns"
)

// dnsTimeout bounds one query to one name server.
const dnsTimeout = 3 * time.Second

// A resolver asks this machine's name servers. It does not read /etc/hosts, which a CA does not have. Its methods
// are safe for concurrent use.
type resolver struct {
	// Immutable after newResolver.
	servers []string // addresses
	dial    func(ctx context.Context, network, address string) (net.Conn, error)
}

// newResolver reads the name servers from file, which has the form of resolv.conf(5). Without any, it uses this
// machine's own, as the C library does.
func newResolver(file string, dial func(context.Context, string, string) (net.Conn, error)) *resolver {
	r := &resolver{dial: dial}
	if conf, err := dns.ClientConfigFromFile(file); err == nil {
		for _, server := range conf.Servers {
			r.servers = append(r.servers, net.JoinHostPort(server, conf.Port))
		}
	}
	if len(r.servers) == 0 {
		r.servers = []string{"127.0.0.1:53"}
	}
	return r
}

// An rcodeError is a DNS answer with a response code other than NOERROR and NXDOMAIN.
type rcodeError struct{ rcode int }

func (e *rcodeError) Error() string { return dns.RcodeToString[e.rcode] }

// query returns the answer to a question about name. NXDOMAIN is an answer; other response codes are an *rcodeError.
// query asks the name servers in turn until one answers.
func (r *resolver) query(ctx context.Context, name string, qtype uint16) (*dns.Msg, error) {
	q := new(dns.Msg).SetQuestion(dns.Fqdn(name), qtype).SetEdns0(1232, false)
	var last error
	for _, server := range r.servers {
		answer, err := r.exchange(ctx, "udp", server, q)
		if err == nil && answer.Truncated {
			answer, err = r.exchange(ctx, "tcp", server, q)
		}
		switch {
		case err != nil:
			last = err
		case answer.Rcode != dns.RcodeSuccess && answer.Rcode != dns.RcodeNameError:
			last = &rcodeError{answer.Rcode}
		default:
			return answer, nil
		}
		if ctx.Err() != nil {
			break
		}
	}
	return nil, last
}

func (r *resolver) exchange(ctx context.Context, network, server string, q *dns.Msg) (*dns.Msg, error) {
	ctx, cancel := context.WithTimeout(ctx, dnsTimeout)
	defer cancel()
	conn, err := r.dial(ctx, network, server)
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { conn.Close() })()
	client := &dns.Client{Net: network, Timeout: dnsTimeout}
	answer, _, err := client.ExchangeWithConnContext(ctx, q, &dns.Conn{Conn: conn})
	if err != nil && ctx.Err() != nil {
		return nil, fmt.Errorf("the name server %s does not answer", server)
	}
	return answer, err
}

// A lookup is the result of the address queries for a name.
type lookup struct {
	addrs  []netip.Addr // IPv6 first, as CAs prefer it
	exists bool         // the name exists
}

// nat64 is the prefix of addresses that a resolver synthesises for machines without IPv4. Other machines do not see
// them. https://www.rfc-editor.org/rfc/rfc6052#section-2.1
var nat64 = netip.MustParsePrefix("64:ff9b::/96")

// lookup queries the A and AAAA records of name. If one of the two queries fails, lookup returns its error together
// with the addresses from the other.
func (r *resolver) lookup(ctx context.Context, name string) (lookup, error) {
	type result struct {
		answer *dns.Msg
		err    error
	}
	ask := func(qtype uint16) chan result {
		ch := make(chan result, 1)
		go func() {
			answer, err := r.query(ctx, name, qtype)
			ch <- result{answer, err}
		}()
		return ch
	}
	v6, v4 := ask(dns.TypeAAAA), ask(dns.TypeA)
	var l lookup
	var errs []error
	for _, res := range []result{<-v6, <-v4} {
		if res.err != nil {
			errs = append(errs, res.err)
			continue
		}
		if res.answer.Rcode == dns.RcodeSuccess {
			l.exists = true
		}
		for _, rr := range res.answer.Answer {
			var ip net.IP
			switch rr := rr.(type) {
			case *dns.A:
				ip = rr.A
			case *dns.AAAA:
				ip = rr.AAAA
			}
			if addr, ok := netip.AddrFromSlice(ip); ok {
				addr = addr.Unmap()
				if !nat64.Contains(addr) && !slices.Contains(l.addrs, addr) {
					l.addrs = append(l.addrs, addr)
				}
			}
		}
	}
	if len(errs) > 0 {
		return l, errs[0]
	}
	return l, nil
}
