package ingress

import (
	"io"
	"net"
	"net/netip"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"plusminus/hub"
)

// proxyLocal is a header of version 2 with the command LOCAL: the connection is the balancer's own.
const proxyLocal = "\r\n\r\n\x00\r\nQUIT\n\x20\x00\x00\x00"

// fakeListener accepts the connections that are sent to conns.
type fakeListener struct{ conns chan net.Conn }

func (l fakeListener) Accept() (net.Conn, error) {
	if nc, ok := <-l.conns; ok {
		return nc, nil
	}
	return nil, net.ErrClosed
}

func (l fakeListener) Close() error   { close(l.conns); return nil }
func (l fakeListener) Addr() net.Addr { return &net.TCPAddr{} }

// pipeEnd is one end of a pipe, with a remote address.
type pipeEnd struct {
	net.Conn
	remote net.TCPAddr
}

func (p pipeEnd) RemoteAddr() net.Addr { return &p.remote }

// proxyTest is a proxyListener whose connections are pipes.
type proxyTest struct {
	*proxyListener
	conns    chan net.Conn // from 10.0.0.1, which must send headers
	accepted chan net.Conn
}

func newProxyTest() *proxyTest {
	p := &proxyTest{conns: make(chan net.Conn), accepted: make(chan net.Conn, 10)}
	from := Networks{netip.MustParsePrefix("10.0.0.1/32")}
	p.proxyListener = newProxyListener(fakeListener{p.conns}, from, hub.NewEvents(hub.EventsConfig{Refusals: Refusals()}))
	go func() {
		defer close(p.accepted)
		for {
			nc, err := p.Accept()
			if err != nil {
				return
			}
			p.accepted <- nc
		}
	}()
	return p
}

// dial returns the peer's end of a new connection from 10.0.0.1.
func (p *proxyTest) dial() net.Conn {
	peer, ours := net.Pipe()
	p.conns <- pipeEnd{ours, net.TCPAddr{IP: net.IPv4(10, 0, 0, 1), Port: 1}}
	return peer
}

// wantRefused compares the reasons of all refused connections, one for each connection.
func (p *proxyTest) wantRefused(t *testing.T, want ...hub.Reason) {
	t.Helper()
	synctest.Wait()
	var got []hub.Reason
	for reason, n := range p.events.Counts().Refusals {
		for range n {
			got = append(got, reason)
		}
	}
	slices.Sort(got)
	slices.Sort(want)
	if !slices.Equal(got, want) {
		t.Errorf("refusals = %q, want %q", got, want)
	}
}

// ended reports whether the other end has closed the connection.
func ended(nc net.Conn) bool {
	nc.SetReadDeadline(time.Now().Add(1))
	_, err := nc.Read(make([]byte, 1))
	return err == io.EOF
}

// TestProxyProtocolSilence connects balancers that send no header or half of one. The listener disconnects them after
// proxyHeaderTimeout, and accepts other connections meanwhile.
func TestProxyProtocolSilence(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newProxyTest()
		silent := p.dial()
		half := p.dial()
		io.WriteString(half, proxyLocal[:13])
		ok := p.dial()
		io.WriteString(ok, proxyLocal+"hello")
		nc := <-p.accepted
		buf := make([]byte, 10)
		if n, err := nc.Read(buf); string(buf[:n]) != "hello" || err != nil {
			t.Errorf("Read after the header = %q, %v, want hello", buf[:n], err)
		}
		time.Sleep(proxyHeaderTimeout - 3*time.Nanosecond) // ended waits a nanosecond for each of the two
		p.wantRefused(t)
		if ended(silent) || ended(half) {
			t.Errorf("disconnected before %v", proxyHeaderTimeout)
		}
		time.Sleep(2 * time.Nanosecond)
		p.wantRefused(t, ReasonProxyBad, ReasonProxyMissing)
		if !ended(silent) || !ended(half) {
			t.Errorf("not disconnected after %v", proxyHeaderTimeout)
		}
		go io.WriteString(ok, "more")
		if n, err := nc.Read(buf); string(buf[:n]) != "more" || err != nil {
			t.Errorf("Read after the timeout = %q, %v, want more: the deadline is for the header only", buf[:n], err)
		}
		p.Close()
	})
}

// TestProxyProtocolClose checks two ends. A balancer that only checks whether the port is open does not count as a
// refusal. A connection whose header is in flight when the listener closes is still accepted.
func TestProxyProtocolClose(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newProxyTest()
		p.dial().Close()
		late := p.dial()
		p.Close()
		synctest.Wait()
		io.WriteString(late, "PROXY TCP4 192.0.2.1 192.0.2.1 4711 443\r\n")
		nc, ok := <-p.accepted
		if !ok || nc.RemoteAddr().String() != "192.0.2.1:4711" {
			t.Errorf("Accept = %v, want the connection of 192.0.2.1:4711", nc)
		}
		if nc, ok := <-p.accepted; ok {
			t.Errorf("Accept = %v, want no more connections", nc)
		}
		p.wantRefused(t)
	})
}
