package pebbletest

import (
	"context"
	"fmt"
	"maps"
	"net"
	"slices"
	"sync"
	"testing"

	"github.com/miekg/dns"
)

// DNSRecords are the records of one name, in the syntax of a zone file. The zero value is a name without records,
// which Pebble cannot resolve.
type DNSRecords struct {
	A    []string // "192.0.2.1". Pebble connects to one address only, to an AAAA if there is one.
	AAAA []string // "2001:db8::1"
	CAA  []string // `0 issue "letsencrypt.org"`. Pebble does not query them.
}

// DNSAddr returns the address of the CA's name server, which answers over TCP and UDP.
func (c *CA) DNSAddr() string { return c.dns.addr }

// SetDNS makes the CA's name server answer with exactly these records for name from now on. A name that was never
// set has the A record 127.0.0.1 and no other. If records cannot be parsed, SetDNS fails the test and changes nothing.
func (c *CA) SetDNS(name string, records DNSRecords) {
	c.t.Helper()
	if err := c.dns.set(name, records); err != nil {
		c.t.Errorf("records for %s: %v", name, err)
	}
}

// A nameServer is a DNS server on loopback. It has two goroutines, one for TCP and one for UDP; stop joins them.
type nameServer struct {
	addr string // immutable
	stop func() // ends the server and waits for it; may be called more than once
	mu   sync.Mutex
	// Guarded by mu.
	records map[string][]dns.RR // by name, in canonical form
}

func startNameServer(t testing.TB) *nameServer {
	t.Helper()
	tcp, udp := listenDNS(t)
	s := &nameServer{addr: tcp.Addr().String(), records: make(map[string][]dns.RR)}
	var wg sync.WaitGroup
	servers := []*dns.Server{{Listener: tcp, Handler: s}, {PacketConn: udp, Handler: s}}
	for _, server := range servers {
		wg.Go(func() { server.ActivateAndServe() })
	}
	s.stop = sync.OnceFunc(func() {
		tcp.Close() // Shutdown does nothing for a server that has not started yet
		udp.Close()
		for _, server := range servers {
			server.ShutdownContext(context.Background())
		}
		wg.Wait()
	})
	return s
}

// listenDNS returns a TCP and a UDP listener with the same port. Pebble asks over TCP, other clients over UDP.
func listenDNS(t testing.TB) (net.Listener, net.PacketConn) {
	t.Helper()
	for try := 0; ; try++ {
		tcp, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		udp, err := net.ListenPacket("udp", tcp.Addr().String())
		if err == nil {
			return tcp, udp
		}
		tcp.Close()
		if try == 20 { // another program has the UDP port; the next port may be free
			t.Fatal(err)
		}
	}
}

func (s *nameServer) set(name string, records DNSRecords) error {
	name = dns.CanonicalName(name)
	values := map[string][]string{"A": records.A, "AAAA": records.AAAA, "CAA": records.CAA}
	all := []dns.RR{} // not nil, which would mean that the name was never set
	for _, kind := range slices.Sorted(maps.Keys(values)) {
		for _, value := range values[kind] {
			rr, err := dns.NewRR(fmt.Sprintf("%s 0 IN %s %s", name, kind, value))
			if err != nil {
				return err
			}
			all = append(all, rr)
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.records[name] = all
	return nil
}

// ServeDNS implements [dns.Handler].
func (s *nameServer) ServeDNS(w dns.ResponseWriter, q *dns.Msg) {
	m := new(dns.Msg).SetReply(q)
	m.Authoritative = true
	for _, question := range q.Question {
		for _, rr := range s.find(question.Name) {
			if rr.Header().Rrtype == question.Qtype {
				rr = dns.Copy(rr)
				rr.Header().Name = question.Name // with the case of the question
				m.Answer = append(m.Answer, rr)
			}
		}
	}
	w.WriteMsg(m)
}

func (s *nameServer) find(name string) []dns.RR {
	s.mu.Lock()
	defer s.mu.Unlock()
	if all, ok := s.records[dns.CanonicalName(name)]; ok {
		return all
	}
	return []dns.RR{&dns.A{
		Hdr: dns.RR_Header{Name: name, Rrtype: dns.TypeA, Class: dns.ClassINET},
		A:   net.IPv4(127, 0, 0, 1),
	}}
}
