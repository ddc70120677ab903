package main

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/coder/websocket"
	"github.com/pires/go-proxyproto"

	"plusminus/hub"
)

// sayFirst has visitors begin each connection with some bytes.
func (s *server) sayFirst(first string) {
	s.connect = func(ctx context.Context, network, addr string) (net.Conn, error) {
		nc, err := new(net.Dialer).DialContext(ctx, network, addr)
		if err == nil {
			_, err = io.WriteString(nc, first)
		}
		return nc, err
	}
}

// metric returns the value of a line of /metrics, which begins with name.
func (s *server) metric(name string) string {
	s.t.Helper()
	_, body := s.get("http://"+s.addrs.Admin+"/metrics", "")
	for line := range strings.Lines(body) {
		if value, ok := strings.CutPrefix(line, name+" "); ok {
			return strings.TrimSpace(value)
		}
	}
	return ""
}

// wantProxyRefusals compares what was counted.
func (s *server) wantProxyRefusals(foreign, missing, bad int) {
	s.t.Helper()
	s.connect = nil
	for reason, want := range map[hub.Reason]int{hub.ReasonProxyForeign: foreign, hub.ReasonProxyMissing: missing, hub.ReasonProxyBad: bad} {
		name := fmt.Sprintf("plusminus_refusals_total{reason=%q}", reason)
		if got := s.metric(name); got != fmt.Sprint(want) {
			s.t.Errorf("%s is %s, want %d", name, got, want)
		}
	}
}

// header returns a PROXY protocol header for a connection from an address.
func header(t *testing.T, version byte, from string) string {
	t.Helper()
	h := proxyproto.HeaderProxyFromAddrs(version, &net.TCPAddr{IP: net.ParseIP(from), Port: 4711}, &net.TCPAddr{IP: net.ParseIP(from), Port: 443})
	b, err := h.Format()
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

const proxyLocal = "\r\n\r\n\x00\r\nQUIT\n\x20\x00\x00\x00" // version 2

// The cap per address counts the addresses that balancers tell of.
func TestProxyProtocol(t *testing.T) {
	for _, tt := range []struct {
		scheme string
		args   string
	}{
		{"wss", ""},
		{"ws", "-plain"},
	} {
		t.Run(tt.scheme, func(t *testing.T) {
			s := start(t, append(strings.Fields(tt.args), "-proxy-protocol", "10.0.0.0/8,127.0.0.1", "-proxy-protocol", "::1", "-max-clients-per-ip", "2")...)
			url := tt.scheme + "://localhost/"
			var all []*websocket.Conn
			for _, first := range []string{
				header(t, 1, "192.0.2.1"),
				header(t, 1, "2001:db8::1"),
				header(t, 2, "192.0.2.2"),
				header(t, 2, "2001:db8:0:1::1"),
				proxyLocal, // the balancer's own, and so counted under its address
			} {
				s.sayFirst(first)
				for range 2 {
					all = append(all, s.join(url))
				}
				if _, resp, err := s.dial(url, websocket.DialOptions{}); err == nil || resp == nil || resp.StatusCode/100 < 4 {
					t.Errorf("a third client after %q: %v, %v, want that it is refused", first, resp, err)
				}
			}
			s.sayFirst("PROXY UNKNOWN\r\n")
			if _, resp, err := s.dial(url, websocket.DialOptions{}); err == nil || resp == nil {
				t.Errorf("a third client of the balancer: %v, %v, want that it is refused", resp, err)
			}
			// The hub writes to them beside what reads.
			send(t, all[0], plus)
			for i, ws := range all {
				for read(t, ws) != `{"type":"state","value":1}` {
				}
				if i%2 == 0 {
					ws.CloseNow()
				}
			}
			s.wantProxyRefusals(0, 0, 0)
		})
	}
}

func TestProxyProtocolRefused(t *testing.T) {
	long := "\r\n\r\n\x00\r\nQUIT\n\x21\x11\xff\xff"
	for _, tt := range []struct {
		name, from, first     string
		foreign, missing, bad int
	}{
		{"a header from elsewhere", "192.0.2.0/24", header(t, 1, "192.0.2.1"), 1, 0, 0},
		{"a header of version 2 from elsewhere", "192.0.2.0/24", header(t, 2, "192.0.2.1"), 1, 0, 0},
		{"LOCAL from elsewhere", "192.0.2.0/24", proxyLocal, 1, 0, 0},
		{"none", "127.0.0.0/8", "", 0, 1, 0},
		{"HTTP", "127.0.0.0/8", "GET / HTTP/1.1\r\n\r\n", 0, 1, 0},
		{"an unknown network", "127.0.0.0/8", "PROXY TCP5 192.0.2.1 192.0.2.1 1 1\r\n", 0, 0, 1},
		{"no address", "127.0.0.0/8", "PROXY TCP4 all of us\r\n", 0, 0, 1},
		{"no end", "127.0.0.0/8", "PROXY TCP4 " + strings.Repeat("1", 200), 0, 0, 1},
		{"too long", "127.0.0.0/8", long, 0, 0, 1},
		{"an unknown command", "127.0.0.0/8", "\r\n\r\n\x00\r\nQUIT\n\x25\x11\x00\x00", 0, 0, 1},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			s := start(t, "-proxy-protocol", tt.from)
			s.sayFirst(tt.first)
			client := s.client()
			if resp, err := client.Get("https://localhost/state"); err == nil {
				t.Errorf("GET /state = %s, want that the connection is closed", resp.Status)
				resp.Body.Close()
			}
			client.CloseIdleConnections()
			s.wantProxyRefusals(tt.foreign, tt.missing, tt.bad)
		})
	}
	t.Run("from elsewhere without one", func(t *testing.T) {
		s := start(t, "-proxy-protocol", "192.0.2.0/24")
		wantRead(t, s.join("wss://localhost/"), `{"count":1,"type":"users"}`, `{"type":"state","value":0}`)
		s.wantProxyRefusals(0, 0, 0)
	})
}

// fakeListener accepts what is put into it.
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

// proxyTest is a listener on connections in memory, in a bubble.
type proxyTest struct {
	*proxyListener
	conns    chan net.Conn // from 10.0.0.1, which has to send headers
	accepted chan net.Conn
}

func newProxyTest() *proxyTest {
	p := &proxyTest{conns: make(chan net.Conn), accepted: make(chan net.Conn, 10)}
	from := networks{netip.MustParsePrefix("10.0.0.1/32")}
	p.proxyListener = newProxyListener(fakeListener{p.conns}, from, hub.NewEvents(nil, nil))
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
	for reason, n := range p.events.Tallies().Refusals {
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

// A balancer that says nothing is disconnected after a while, and holds up nobody meanwhile.
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
		p.wantRefused(t, hub.ReasonProxyBad, hub.ReasonProxyMissing)
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

// Who connects to see whether somebody listens is not refused, and those whose header is on its way when the
// listener is closed are still accepted.
func TestProxyProtocolClose(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newProxyTest()
		p.dial().Close()
		late := p.dial()
		p.Close()
		synctest.Wait()
		io.WriteString(late, header(t, 1, "192.0.2.1"))
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

// haproxyConfig passes connections on, and looks every 50 ms whether the server is there.
const haproxyConfig = `
defaults
    mode tcp
    timeout connect 5s
    timeout client 1m
    timeout server 1m
    timeout check 5s
frontend in
    bind %s
    default_backend %s
backend v1
    server a %[3]s send-proxy check inter 50ms
backend v2
    server a %[3]s send-proxy-v2 check-send-proxy check inter 50ms
`

// Behind a real balancer the cap counts its clients' addresses, and its checks are no refusals.
func TestHAProxy(t *testing.T) {
	needLoopbacks(t)
	haproxy, err := lookPath("haproxy")
	if err != nil {
		t.Skip("HAProxy is not installed (Debian: haproxy)")
	}
	for _, backend := range []string{"v1", "v2"} {
		t.Run(backend, func(t *testing.T) {
			s := start(t, "-proxy-protocol", "127.0.0.1", "-max-clients-per-ip", "1")
			in := freeAddr(t)
			file := filepath.Join(t.TempDir(), "haproxy.cfg")
			if err := os.WriteFile(file, fmt.Appendf(nil, haproxyConfig, in, backend, s.addrs.HTTPS[0]), 0o600); err != nil {
				t.Fatal(err)
			}
			startPeer(t, exec.CommandContext(t.Context(), haproxy, "-db", "-f", file), in)
			time.Sleep(200 * time.Millisecond) // some checks
			for _, ip := range []string{"127.0.0.2", "127.0.0.3"} {
				s.from(ip, in)
				ws := s.join("wss://localhost/")
				read(t, ws)
				if _, resp, err := s.dial("wss://localhost/", websocket.DialOptions{}); err == nil || resp == nil || resp.StatusCode < http.StatusBadRequest {
					t.Errorf("a second client of %s: %v, %v, want that it is refused", ip, resp, err)
				}
			}
			s.wantProxyRefusals(0, 0, 0)
		})
	}
}

// needLoopbacks skips the test where clients cannot have addresses of their own.
func needLoopbacks(t *testing.T) {
	t.Helper()
	ln, err := net.ListenTCP("tcp", &net.TCPAddr{IP: net.IPv4(127, 0, 0, 2)})
	if err != nil {
		t.Skip("only Linux has all of 127.0.0.0/8: ", err)
	}
	ln.Close()
}

// from has visitors come from an address of loopback to another one.
func (s *server) from(ip, to string) {
	s.connect = func(ctx context.Context, network, _ string) (net.Conn, error) {
		d := &net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(ip)}}
		return d.DialContext(ctx, network, to)
	}
}

// startPeer starts a program that listens on addr and ends it with the test.
func startPeer(t *testing.T, cmd *exec.Cmd, addr string) {
	t.Helper()
	output := new(lockedBuffer)
	cmd.Stdout, cmd.Stderr = output, output
	cmd.WaitDelay = time.Second // for children that outlive it
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	t.Cleanup(func() {
		cmd.Process.Signal(syscall.SIGTERM)
		select {
		case <-ended:
		case <-time.After(5 * time.Second):
			cmd.Process.Kill()
			<-ended
		}
		if t.Failed() {
			t.Logf("%s said:\n%s", cmd.Path, output)
		}
	})
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(10 * time.Millisecond) {
		nc, err := net.Dial("tcp", addr)
		if err == nil {
			nc.Close()
			return
		}
		select {
		case err := <-ended:
			ended <- err
			t.Fatalf("%s ended: %v\n%s", cmd.Path, err, output)
		default:
		}
		if time.Now().After(deadline) {
			t.Fatalf("%s does not listen on %s:\n%s", cmd.Path, addr, output)
		}
	}
}
