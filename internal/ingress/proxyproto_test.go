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

const proxyLocal = "\r\n\r\n\x00\r\nQUIT\n\x20\x00\x00\x00" // version 2

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

// pipeEnd is one end of a pipe, from an address.
type pipeEnd struct {
	net.Conn
	remote net.TCPAddr
}

func (p pipeEnd) RemoteAddr() net.Addr { return &p.remote }

// proxyTest is a proxyListener on connections in memory.
type proxyTest struct {
	*proxyListener
	conns    chan net.Conn // from 10.0.0.1, which has to send headers
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

func (p *proxyTest) dial() net.Conn {
	peer, ours := net.Pipe()
	p.conns <- pipeEnd{ours, net.TCPAddr{IP: net.IPv4(10, 0, 0, 1), Port: 1}}
	return peer
}

// wantRefused compares the reasons for which connections were refused, each once.
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
		t.Errorf("refused %q, want %q", got, want)
	}
}

// ended reports whether the other end has closed the connection.
func ended(nc net.Conn) bool {
	nc.SetReadDeadline(time.Now().Add(1))
	_, err := nc.Read(make([]byte, 1))
	return err == io.EOF
}

// A balancer that sends nothing is disconnected after proxyHeaderTimeout, and delays nobody meanwhile.
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
			t.Errorf("read %q, %v behind the header, want hello", buf[:n], err)
		}
		time.Sleep(proxyHeaderTimeout - 3*time.Nanosecond) // to look at each takes one
		p.wantRefused(t)
		if ended(silent) || ended(half) {
			t.Error("disconnected too soon")
		}
		time.Sleep(2 * time.Nanosecond)
		p.wantRefused(t, ReasonProxyBad, ReasonProxyMissing)
		if !ended(silent) || !ended(half) {
			t.Errorf("not disconnected after %v", proxyHeaderTimeout)
		}
		go io.WriteString(ok, "more")
		if n, err := nc.Read(buf); string(buf[:n]) != "more" || err != nil {
			t.Errorf("read %q, %v later, want more: the deadline was the header's", buf[:n], err)
		}
		p.Close()
	})
}

// A balancer that only wants to see whether the port is open is not refused. A connection whose header is
// on its way when the listener is closed is still accepted.
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
			t.Errorf("accepted %v, want the connection of 192.0.2.1:4711", nc)
		}
		if nc, ok := <-p.accepted; ok {
			t.Errorf("accepted %v, want no more", nc)
		}
		p.wantRefused(t)
	})
}
