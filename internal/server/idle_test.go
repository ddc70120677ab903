package server

import (
	"bufio"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"os"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"plusminus/internal/config"
)

// docs/limits.md states these times.
func TestLimitsPage(t *testing.T) {
	page, err := os.ReadFile("../../docs/limits.md")
	if err != nil {
		t.Fatal(err)
	}
	want := fmt.Sprintf("between two requests | %.0f seconds; with `-proxy-protocol` %.0f seconds, with `-plain` %.0f seconds",
		idleDirect.Seconds(), idleBalanced.Seconds(), idleProxied.Seconds())
	if !strings.Contains(string(page), want) {
		t.Errorf("docs/limits.md does not say %q", want)
	}
}

// oneConn is a listener with one connection.
type oneConn struct {
	conns chan net.Conn
	done  chan struct{}
}

func (l oneConn) Accept() (net.Conn, error) {
	select {
	case c := <-l.conns:
		return c, nil
	case <-l.done:
		return nil, net.ErrClosed
	}
}
func (l oneConn) Close() error   { close(l.done); return nil }
func (l oneConn) Addr() net.Addr { return &net.TCPAddr{} }

// An idle connection is there for the next request until just before its time, and closed after it. Balancers
// that reuse connections for a minute, or for ten, find them open.
func TestIdleConnections(t *testing.T) {
	networks := []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")}
	for _, tt := range []struct {
		name  string
		cfg   config.Config
		least time.Duration
		most  time.Duration
	}{
		{"visitors", config.Config{}, 10 * time.Second, 10 * time.Second},
		{"-trusted-proxies alone", config.Config{TrustedProxies: networks}, 10 * time.Second, 10 * time.Second},
		{"-proxy-protocol", config.Config{LoadBalancers: networks}, 75 * time.Second, 2 * time.Minute},
		{"-plain", config.Config{Plain: true}, 601 * time.Second, 15 * time.Minute},
	} {
		idle := idleTimeout(&tt.cfg)
		if idle < tt.least || idle > tt.most {
			t.Errorf("%s: idle connections live for %v, want %v to %v", tt.name, idle, tt.least, tt.most)
		}
		synctest.Test(t, func(t *testing.T) {
			srv := newHTTPServer(http.NotFoundHandler(), slog.New(slog.DiscardHandler))
			srv.IdleTimeout = idle
			ln := oneConn{make(chan net.Conn, 1), make(chan struct{})}
			here, there := net.Pipe()
			ln.conns <- there
			go srv.Serve(ln)
			defer srv.Close()
			br := bufio.NewReader(here)
			for range 2 {
				if _, err := io.WriteString(here, "GET / HTTP/1.1\r\nHost: a\r\n\r\n"); err != nil {
					t.Fatalf("%s: a request after %v: %v", tt.name, idle-1, err)
				}
				resp, err := http.ReadResponse(br, nil)
				if err != nil {
					t.Fatalf("%s: a request after %v: %v", tt.name, idle-1, err)
				}
				io.Copy(io.Discard, resp.Body)
				synctest.Wait()
				time.Sleep(idle - 1)
				synctest.Wait()
			}
			time.Sleep(time.Nanosecond)
			synctest.Wait()
			if _, err := br.ReadByte(); err != io.EOF {
				t.Errorf("%s: after %v the connection reads %v, want its end", tt.name, idle, err)
			}
		})
	}
}
