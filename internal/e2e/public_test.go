package e2e

import (
	"crypto/tls"
	"net"
	"net/http"
	"strings"
	"testing"

	"github.com/coder/websocket"
)

// TestPublicListener compares the answers on the HTTPS and HTTP listeners for paths and Host headers.
func TestPublicListener(t *testing.T) {
	t.Parallel()
	s := start(t, "-domain", "localhost,counter.test", "-domain", "127.0.0.1")
	for _, tt := range []struct {
		url, host string
		status    int
		header    string // "Name: value" that must be there
	}{
		{"https://localhost/", "", 200, "Content-Type: text/html; charset=utf-8"},
		{"https://counter.test/", "", 200, ""},
		{"https://127.0.0.1/", "", 200, ""},
		{"https://localhost/", "LOCALHOST.:8443", 200, ""},
		{"https://localhost/", "counter.test:1", 200, ""},
		{"https://localhost/nowhere", "", 404, ""},
		{"https://localhost/", "evil.example", 421, ""},
		{"https://localhost/", "evil.example:443", 421, ""},
		{"https://localhost/state", "evil.example:443", 421, ""},
		{"https://localhost/state", "", 200, "Content-Type: application/json"},
		{"http://localhost/", "", 308, "Location: https://localhost" + portOf(t, s.addrs.HTTPS[0]) + "/"},
		{"http://localhost/a?b=c", "counter.test:80", 308, "Location: https://counter.test" + portOf(t, s.addrs.HTTPS[0]) + "/a?b=c"},
		{"http://localhost/", "evil.example:80", 421, ""},
		{"http://localhost/.well-known/acme-challenge/unknown", "", 404, ""},
	} {
		resp, body := s.get(tt.url, tt.host)
		if resp.StatusCode != tt.status {
			t.Errorf("GET %s, Host %q: %s %q, want %d", tt.url, tt.host, resp.Status, body, tt.status)
		}
		if name, value, _ := strings.Cut(tt.header, ": "); resp.Header.Get(name) != value {
			t.Errorf("GET %s, Host %q: %s is %q, want %q", tt.url, tt.host, name, resp.Header.Get(name), value)
		}
		if hsts := resp.Header.Get("Strict-Transport-Security"); hsts != "" {
			t.Errorf("GET %s: HSTS %q with a certificate that only this machine trusts", tt.url, hsts)
		}
	}

	ws := s.join("wss://localhost/any/path")
	wantRead(t, ws, `{"count":1,"type":"users"}`, `{"type":"state","value":0}`)
	send(t, ws, minus)
	wantRead(t, ws, `{"type":"state","value":-1}`)
	if _, body := s.get("https://localhost/state", ""); body != `{"value":-1,"users":1}`+"\n" {
		t.Errorf("GET /state = %q", body)
	}
}

// TestIPv6 serves on an IPv6 and an IPv4 address at once.
func TestIPv6(t *testing.T) {
	t.Parallel()
	probe, err := net.Listen("tcp", "[::1]:0")
	if err != nil {
		t.Skip("IPv6 is not configured on this machine: ", err)
	}
	probe.Close()
	s := start(t, "-domain", "::1,localhost", "-https", "[::1]:0,127.0.0.1:0")
	for i, name := range []string{"[::1]", "localhost"} {
		port := portOf(t, s.addrs.HTTPS[i])
		if resp, body := s.get("https://"+name+port+"/state", ""); resp.StatusCode != 200 {
			t.Errorf("GET https://%s/state = %s %s", name, resp.Status, body)
		}
		ws := s.join("wss://" + name + port + "/")
		wantRead(t, ws, `{"count":1,"type":"users"}`, `{"type":"state","value":0}`)
		ws.Close(websocket.StatusNormalClosure, "")
	}
}

// portOf returns the port of an address, with its colon.
func portOf(t *testing.T, addr string) string {
	t.Helper()
	_, port, err := net.SplitHostPort(addr)
	if err != nil {
		t.Fatal(err)
	}
	return ":" + port
}

// TestOrigin checks which origins and hosts may open a WebSocket.
func TestOrigin(t *testing.T) {
	t.Parallel()
	s := start(t, "-domain", "counter.test", "-origin", "https://friend.example")
	for _, tt := range []struct {
		origin string
		ok     bool
	}{
		{"", true},
		{"https://counter.test", true},
		{"https://counter.test:8443", true},
		{"https://friend.example", true},
		{"http://counter.test", false},
		{"https://friend.example:444", false},
		{"https://evil.example", false},
		{"null", false},
	} {
		header := http.Header{}
		if tt.origin != "" {
			header.Set("Origin", tt.origin)
		}
		ws, resp, err := s.dial("wss://counter.test/", websocket.DialOptions{HTTPHeader: header})
		if err == nil {
			ws.CloseNow()
		}
		if (err == nil) != tt.ok {
			t.Errorf("Origin %q: %v, want ok %v", tt.origin, err, tt.ok)
		}
		if err != nil && (resp == nil || resp.StatusCode != http.StatusForbidden) {
			t.Errorf("Origin %q: %v, want 403", tt.origin, err)
		}
	}
	if _, resp, err := s.dial("wss://counter.test/", websocket.DialOptions{Host: "evil.example:443"}); err == nil || resp.StatusCode != http.StatusMisdirectedRequest {
		t.Errorf("upgrade for another host: %v, %v, want 421", resp, err)
	}
}

// TestPlain checks a server with -plain: HTTP and WebSockets on one listener, without TLS.
func TestPlain(t *testing.T) {
	t.Parallel()
	s := start(t, "-plain", "-domain", "counter.example.com")
	if resp, _ := s.get("http://counter.example.com/", ""); resp.StatusCode != 200 {
		t.Errorf("GET / = %s, want 200", resp.Status)
	}
	if resp, _ := s.get("http://counter.example.com/", "upstream:8080"); resp.StatusCode != 421 {
		t.Errorf("GET / for another host = %s, want 421", resp.Status)
	}
	ws := s.join("ws://counter.example.com/")
	wantRead(t, ws, `{"count":1,"type":"users"}`, `{"type":"state","value":0}`)
	if len(s.addrs.HTTPS) != 0 {
		t.Errorf("HTTPS listeners with -plain = %q, want none", s.addrs.HTTPS)
	}
}

// TestNotReady checks that a server without its certificate is not ready, and that /readyz names the domain.
func TestNotReady(t *testing.T) {
	t.Parallel()
	s := start(t, "-domain", "counter.test", "-acme-directory", "https://127.0.0.1:1/dir")
	resp, body := s.get("http://"+s.addrs.Admin+"/readyz", "")
	if resp.StatusCode != 503 || !strings.Contains(body, "counter.test") {
		t.Errorf("GET /readyz = %s %q, want 503 and the domain", resp.Status, body)
	}
	if conn, err := tls.Dial("tcp", s.addrs.HTTPS[0], &tls.Config{ServerName: "counter.test"}); err == nil {
		conn.Close()
		t.Error("a TLS handshake succeeds without a certificate")
	}
}
