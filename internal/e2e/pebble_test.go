package e2e

import (
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"plusminus/acme"
	"plusminus/acme/pebbletest"

	"github.com/coder/websocket"
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
	f.serve(t, ln)
	return f
}

// serve passes on the connections that come to ln, until the test ends.
func (f *forwarder) serve(t *testing.T, ln net.Listener) {
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

// TestAddresses serves two addresses and a name with certificates of one CA. Behind the forwarder, as behind a published port,
// the server's own address is another one. Clients that trust only the CA's root connect to the addresses.
func TestAddresses(t *testing.T) {
	t.Parallel()
	f := newForwarder(t)
	port := ":" + strconv.Itoa(f.port)
	ln, err := net.Listen("tcp", "[::1]"+port)
	if err != nil {
		t.Skip("IPv6 is not configured on this machine: ", err)
	}
	f.serve(t, ln)
	ca := pebbletest.Start(t, pebbletest.Config{TLSPort: f.port, Profiles: map[string]time.Duration{acme.AddressProfile: 160 * time.Hour}})
	data := t.TempDir()
	root := filepath.Join(data, "root.pem")
	if err := os.WriteFile(root, ca.DirectoryRootPEM, 0o600); err != nil {
		t.Fatal(err)
	}
	s := start(t, "-data", data, "-domain", "counter.test,127.0.0.1", "-domain", "[::1]", "-https", "[::1]:0,127.0.0.2:0",
		"-acme-directory", ca.DirectoryURL, "-acme-ca-root", root)
	s.roots = ca.IssuingRoots
	f.to(s.addrs.HTTPS[1])
	for _, name := range []string{"counter.test", "127.0.0.1", "::1"} {
		waitUntil(t, "a certificate for "+name, func() bool {
			_, body := s.get("http://"+s.addrs.Admin+"/metrics", "")
			return strings.Contains(body, `plusminus_certificate_valid{domain="`+name+`",source="acme"} 1`)
		})
	}
	for i, host := range []string{"127.0.0.1", "[::1]"} {
		address := "https://" + host + portOf(t, s.addrs.HTTPS[1-i])
		if i == 0 {
			address = "https://" + host + port
		}
		resp, body := s.get(address+"/", "")
		if resp.StatusCode != http.StatusOK || !strings.Contains(body, "plusminus") {
			t.Errorf("GET %s = %s", address, resp.Status)
		}
		leaf := resp.TLS.PeerCertificates[0]
		if got := leaf.IPAddresses[0].String(); got != strings.Trim(host, "[]") || leaf.Subject.CommonName != "" {
			t.Errorf("%s has a certificate for %s, %q", host, got, leaf.Subject)
		}
		ws, _, err := s.dial("wss"+strings.TrimPrefix(address, "https"), websocket.DialOptions{HTTPHeader: http.Header{"Origin": {address}}})
		if err != nil {
			t.Fatal(err)
		}
		wantRead(t, ws, `{"count":1,"type":"users"}`, `{"type":"state","value":0}`)
		ws.Close(websocket.StatusNormalClosure, "")
		waitUntil(t, "the client to leave", func() bool { _, body := s.get(address+"/state", ""); return strings.Contains(body, `"users":0`) })

		if resp, _ := s.get("http://"+s.addrs.HTTP+"/c/x?y", host); resp.Header.Get("Location") != "https://"+host+httpsPortOf(t, s)+"/c/x?y" {
			t.Errorf("redirect for the Host %s to %q", host, resp.Header.Get("Location"))
		}
	}
	if _, body := s.get("https://counter.test/", ""); body == "" {
		t.Error("no page by name")
	}
	if resp, body := s.get("https://127.0.0.1"+port+"/", "192.0.2.1"); resp.StatusCode != http.StatusMisdirectedRequest {
		t.Errorf("another address as Host: %s %s", resp.Status, body)
	}
}

// httpsPortOf returns the port to which s redirects.
func httpsPortOf(t *testing.T, s *plusminus) string { return portOf(t, s.addrs.HTTPS[0]) }
