package e2e

import (
	"io"
	"net"
	"os"
	"path/filepath"
	"sync"
	"testing"

	"plusminus/acme/pebbletest"
)

// forwarder is a loopback port that passes connections on to a server. The address of the server may come later: a CA
// needs a port for its validations before the server can start.
type forwarder struct {
	port   int
	target string        // Immutable once known is closed.
	known  chan struct{} // closed by to; connections wait for it
}

// newForwarder starts a forwarder that ends with the test.
func newForwarder(t *testing.T) *forwarder {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	f := &forwarder{port: ln.Addr().(*net.TCPAddr).Port, known: make(chan struct{})}
	var conns sync.WaitGroup
	conns.Go(func() {
		for {
			conn, err := ln.Accept()
			if err != nil {
				return
			}
			conns.Go(func() { f.forward(conn) })
		}
	})
	t.Cleanup(func() {
		ln.Close()
		conns.Wait()
	})
	return f
}

// to sets the address of the server. A test calls it once.
func (f *forwarder) to(target string) {
	f.target = target
	close(f.known)
}

// forward passes the bytes of one connection on, in both directions.
func (f *forwarder) forward(in net.Conn) {
	defer in.Close()
	<-f.known
	out, err := net.Dial("tcp", f.target)
	if err != nil {
		return
	}
	defer out.Close()
	back := make(chan struct{})
	go func() {
		defer close(back)
		io.Copy(in, out)
		in.Close()
	}()
	io.Copy(out, in)
	out.Close()
	<-back
}

// TestPebble gets a certificate by one challenge alone, and counts over it. After a restart without the CA the server
// uses the same certificate and orders nothing.
func TestPebble(t *testing.T) {
	t.Parallel()
	for _, challenge := range []string{"tls-alpn-01", "http-01"} {
		t.Run(challenge, func(t *testing.T) {
			t.Parallel()
			f := newForwarder(t)
			cfg := pebbletest.Config{TLSPort: f.port}
			if challenge == "http-01" {
				cfg = pebbletest.Config{HTTPPort: f.port}
			}
			ca := pebbletest.Start(t, cfg)
			data := t.TempDir()
			root := filepath.Join(data, "root.pem")
			if err := os.WriteFile(root, ca.DirectoryRootPEM, 0o600); err != nil {
				t.Fatal(err)
			}
			args := []string{"-data", data, "-domain", "counter.test", "-acme-directory", ca.DirectoryURL, "-acme-ca-root", root}
			s := start(t, args...)
			s.roots = ca.IssuingRoots
			if challenge == "http-01" {
				f.to(s.addrs.HTTP)
			} else {
				f.to(s.addrs.HTTPS[0])
			}
			s.waitReady()
			ws := s.join("wss://counter.test/")
			wantRead(t, ws, `{"count":1,"type":"users"}`, `{"type":"state","value":0}`)
			send(t, ws, plus)
			wantRead(t, ws, `{"type":"state","value":1}`)
			ws.CloseNow()

			if err := s.stop(); err != nil {
				t.Fatal(err)
			}
			orders := ca.Orders()
			ca.Stop()
			s = start(t, args...)
			s.roots = ca.IssuingRoots
			s.waitReady()
			ws = s.join("wss://counter.test/")
			wantRead(t, ws, `{"count":1,"type":"users"}`, `{"type":"state","value":1}`)
			if got := ca.Orders(); got != orders {
				t.Errorf("orders after a restart = %d, want %d as before", got, orders)
			}
		})
	}
}
