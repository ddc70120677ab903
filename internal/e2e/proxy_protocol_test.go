package e2e

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/coder/websocket"
	"github.com/pires/go-proxyproto"

	"plusminus/hub"
	"plusminus/internal/ingress"
)

// sayFirst makes the peers of s send first at the beginning of each connection.
func (s *plusminus) sayFirst(first string) {
	s.connect = func(ctx context.Context, network, addr string) (net.Conn, error) {
		nc, err := new(net.Dialer).DialContext(ctx, network, addr)
		if err == nil {
			_, err = io.WriteString(nc, first)
		}
		return nc, err
	}
}

// metric returns the value of a series in /metrics, or "". name has the labels, too.
func (s *plusminus) metric(name string) string {
	s.t.Helper()
	_, body := s.get("http://"+s.addrs.Admin+"/metrics", "")
	for line := range strings.Lines(body) {
		if value, ok := strings.CutPrefix(line, name+" "); ok {
			return strings.TrimSpace(value)
		}
	}
	return ""
}

// wantProxyRefusals compares the counts of refused connections: with a PROXY header from a peer that is no balancer,
// without a header, and with a malformed one.
func (s *plusminus) wantProxyRefusals(foreign, missing, bad int) {
	s.t.Helper()
	s.connect = nil
	for reason, want := range map[hub.Reason]int{ingress.ReasonProxyForeign: foreign, ingress.ReasonProxyMissing: missing, ingress.ReasonProxyBad: bad} {
		name := fmt.Sprintf("plusminus_refusals_total{reason=%q}", reason)
		if got := s.metric(name); got != fmt.Sprint(want) {
			s.t.Errorf("%s is %s, want %d", name, got, want)
		}
	}
}

// header returns a PROXY protocol header that states from as the client's address.
func header(t *testing.T, version byte, from string) string {
	t.Helper()
	h := proxyproto.HeaderProxyFromAddrs(version, &net.TCPAddr{IP: net.ParseIP(from), Port: 4711}, &net.TCPAddr{IP: net.ParseIP(from), Port: 443})
	b, err := h.Format()
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// proxyLocal is a header of version 2 with the command LOCAL: the connection is the balancer's own.
const proxyLocal = "\r\n\r\n\x00\r\nQUIT\n\x20\x00\x00\x00"

// TestProxyProtocol checks that -max-clients-per-ip counts the addresses that PROXY headers state.
func TestProxyProtocol(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		scheme string
		args   string
	}{
		{"wss", ""},
		{"ws", "-plain"},
	} {
		t.Run(tt.scheme, func(t *testing.T) {
			t.Parallel()
			s := start(t, append(strings.Fields(tt.args), "-proxy-protocol", "10.0.0.0/8,127.0.0.1", "-proxy-protocol", "::1", "-max-clients-per-ip", "2")...)
			url := tt.scheme + "://localhost/"
			var all []*websocket.Conn
			for _, first := range []string{
				header(t, 1, "192.0.2.1"),
				header(t, 1, "2001:db8::1"),
				header(t, 2, "192.0.2.2"),
				header(t, 2, "2001:db8:0:1::1"),
				proxyLocal, // counts for the address of the balancer
			} {
				s.sayFirst(first)
				for range 2 {
					all = append(all, s.join(url))
				}
				if _, resp, err := s.dial(url, websocket.DialOptions{}); err == nil || resp == nil || resp.StatusCode/100 < 4 {
					t.Errorf("third client after %q: response %v, %v, want a refusal", first, resp, err)
				}
			}
			s.sayFirst("PROXY UNKNOWN\r\n")
			if _, resp, err := s.dial(url, websocket.DialOptions{}); err == nil || resp == nil {
				t.Errorf("third client with the balancer's address: response %v, %v, want a refusal", resp, err)
			}
			// The hub's writes bypass the reader that has removed the header.
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

// TestProxyProtocolRefused sends headers that the listener must refuse, and checks that it closes the connection and
// counts the reason.
func TestProxyProtocolRefused(t *testing.T) {
	t.Parallel()
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
				t.Errorf("GET /state = %s, want a closed connection", resp.Status)
				resp.Body.Close()
			}
			client.CloseIdleConnections()
			s.wantProxyRefusals(tt.foreign, tt.missing, tt.bad)
		})
	}
	t.Run("from elsewhere without one", func(t *testing.T) {
		t.Parallel()
		s := start(t, "-proxy-protocol", "192.0.2.0/24")
		wantRead(t, s.join("wss://localhost/"), `{"count":1,"type":"users"}`, `{"type":"state","value":0}`)
		s.wantProxyRefusals(0, 0, 0)
	})
}

// haproxyConfig passes connections on and checks the server every 50 ms.
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

// TestHAProxy checks behind a real balancer that -max-clients-per-ip counts the clients' addresses, and that the
// balancer's health checks do not count as refusals.
func TestHAProxy(t *testing.T) {
	t.Parallel()
	needLoopbacks(t)
	haproxy, err := lookPath("haproxy")
	if err != nil {
		t.Skip("HAProxy is not installed (Debian: haproxy)")
	}
	for _, backend := range []string{"v1", "v2"} {
		t.Run(backend, func(t *testing.T) {
			t.Parallel()
			s := start(t, "-proxy-protocol", "127.0.0.1", "-max-clients-per-ip", "1")
			in := freeAddr(t)
			file := filepath.Join(t.TempDir(), "haproxy.cfg")
			if err := os.WriteFile(file, fmt.Appendf(nil, haproxyConfig, in, backend, s.addrs.HTTPS[0]), 0o600); err != nil {
				t.Fatal(err)
			}
			startPeer(t, exec.CommandContext(t.Context(), haproxy, "-db", "-f", file), in)
			waitUntil(t, "five checks of HAProxy", func() bool {
				checks, _ := strconv.Atoi(s.metric(`plusminus_handshakes_total{outcome="gone"}`))
				return checks >= 5
			})
			for _, ip := range []string{"127.0.0.2", "127.0.0.3"} {
				s.from(ip, in)
				ws := s.join("wss://localhost/")
				read(t, ws)
				if _, resp, err := s.dial("wss://localhost/", websocket.DialOptions{}); err == nil || resp == nil || resp.StatusCode < http.StatusBadRequest {
					t.Errorf("second client of %s: response %v, %v, want a refusal", ip, resp, err)
				}
			}
			s.wantProxyRefusals(0, 0, 0)
		})
	}
}

// needLoopbacks skips the test where a client cannot connect from 127.0.0.2.
func needLoopbacks(t *testing.T) {
	t.Helper()
	ln, err := net.ListenTCP("tcp", &net.TCPAddr{IP: net.IPv4(127, 0, 0, 2)})
	if err != nil {
		t.Skip("127.0.0.2 is not a local address here; Linux has all of 127.0.0.0/8: ", err)
	}
	ln.Close()
}

// from makes the peers of s connect from ip to the address to.
func (s *plusminus) from(ip, to string) {
	s.connect = func(ctx context.Context, network, _ string) (net.Conn, error) {
		d := &net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(ip)}}
		return d.DialContext(ctx, network, to)
	}
}

// startPeer starts a program, waits until it listens on addr, and ends it with the test.
func startPeer(t *testing.T, cmd *exec.Cmd, addr string) {
	t.Helper()
	output := new(lockedBuffer)
	cmd.Stdout, cmd.Stderr = output, output
	cmd.WaitDelay = time.Second // its children may keep stderr open
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
			t.Logf("%s printed:\n%s", cmd.Path, output)
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
