package e2e

import (
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/coder/websocket"

	"plusminus/internal/ingress"
)

// headerOf returns a request whose request line and header have n bytes.
func headerOf(n int) string {
	const begin, end = "GET /state HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nCookie: a=", "\r\n\r\n"
	return begin + strings.Repeat("x", n-len(begin)-len(end)) + end
}

// The limit of a request header is exactly the one that docs state, with and without TLS, and each request over it is
// counted.
func TestHeaderLimit(t *testing.T) {
	t.Parallel()
	s := start(t)
	plain := start(t, "-plain")
	for _, tt := range []struct{ bytes, want int }{
		{8 << 10, http.StatusOK}, // large cookies of other services
		{ingress.MaxHeader - 1, http.StatusOK},
		{ingress.MaxHeader, http.StatusOK},
		{ingress.MaxHeader + 1, http.StatusRequestHeaderFieldsTooLarge},
	} {
		if resp, _ := exchange(t, s.addrs.HTTPS[0], true, headerOf(tt.bytes)); resp.StatusCode != tt.want {
			t.Errorf("a header of %d bytes over TLS: %s, want %d", tt.bytes, resp.Status, tt.want)
		}
		if resp, _ := exchange(t, plain.addrs.HTTP, false, headerOf(tt.bytes)); resp.StatusCode != tt.want {
			t.Errorf("a header of %d bytes: %s, want %d", tt.bytes, resp.Status, tt.want)
		}
	}
	want := map[string]int{"header_too_long": 1, "bad_request": 0}
	wantRefusals(t, s, want)
	wantRefusals(t, plain, want)
	cookie := http.Header{"Cookie": {strings.Repeat("x", 14<<10)}}
	if ws, _, err := s.dial("wss://localhost/", websocket.DialOptions{HTTPHeader: cookie}); err != nil {
		t.Errorf("an upgrade with 14 KB of cookies: %v", err)
	} else {
		ws.CloseNow()
	}
}

// What net/http answers itself is counted, on all public listeners, and nothing else is.
func TestAnswersOfNetHTTP(t *testing.T) {
	t.Parallel()
	s := start(t)
	plain := start(t, "-plain")
	n := 0
	for _, tt := range []struct {
		request string
		want    int
	}{
		{"GET\r\n\r\n", 400},
		{"GET / HTTP/1.1\r\n\r\n", 400},
		{"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", 400},
		{"GET / HTTP/1.1\r\nHost: localhost\r\na b: c\r\n\r\n", 400},
		{"\x16\x03\x01\x00\x05hello\r\n\r\n", 400},
		{"GET / HTTP/1.1\r\nHost: localhost\r\nExpect: x\r\n\r\n", 417},
		{"POST / HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: x\r\n\r\n", 501},
		{"GET / HTTP/3.0\r\nHost: localhost\r\n\r\n", 505},
		// After a request that was served.
		{"HEAD /state HTTP/1.1\r\nHost: localhost\r\n\r\n" + "GET / HTTP/1.1\r\n\r\n", 0},
	} {
		n++
		for _, listener := range []struct {
			addr    string
			withTLS bool
		}{{s.addrs.HTTPS[0], true}, {plain.addrs.HTTP, false}} {
			resp, _ := exchange(t, listener.addr, listener.withTLS, tt.request)
			if tt.want != 0 && resp.StatusCode != tt.want {
				t.Errorf("%q: %s, want %d", tt.request, resp.Status, tt.want)
			}
		}
		wantRefusals(t, s, map[string]int{"bad_request": n})
		wantRefusals(t, plain, map[string]int{"bad_request": n})
	}
	// Answers of handlers have reasons of their own, or none.
	for _, path := range []string{"/nothing", "/state", "/"} {
		s.get("https://localhost"+path, "")
		s.get("https://localhost"+path, "evil.example")
	}
	if resp, _ := exchange(t, s.addrs.HTTPS[0], true, "OPTIONS * HTTP/1.0\r\n\r\n"); resp.StatusCode >= 400 {
		t.Errorf("OPTIONS *: %s", resp.Status)
	}
	wantRefusals(t, s, map[string]int{"bad_request": n, "header_too_long": 0, "host": 3})
}

// http:// on the TLS port leads a browser to https:// on the same host and port, and nobody else anywhere.
func TestHTTPOnTLSPort(t *testing.T) {
	t.Parallel()
	s := start(t, "-domain", "localhost,::1")
	long := strings.Repeat("x", 4<<10) // more than crypto/tls reads before it gives up
	for _, tt := range []struct {
		name, request, want string // want is a Location; "" is 400
	}{
		{"a browser", "GET /a?b=%20 HTTP/1.1\r\nHost: localhost:8443\r\n\r\n", "https://localhost:8443/a?b=%20"},
		{"one with cookies", "GET / HTTP/1.1\r\nHost: localhost:8443\r\nCookie: " + long + "\r\n\r\n", "https://localhost:8443/"},
		{"in capitals", "GET / HTTP/1.1\r\nHost: LOCALHOST.:8443\r\n\r\n", "https://localhost:8443/"},
		{"an IPv6 address", "GET / HTTP/1.1\r\nHost: [::1]:8443\r\n\r\n", "https://[::1]:8443/"},
		{"HEAD", "HEAD / HTTP/1.0\r\nHost: localhost:1\r\n\r\n", "https://localhost:1/"},
		{"two slashes", "GET //evil.example/ HTTP/1.1\r\nHost: localhost:1\r\n\r\n", "https://localhost:1//evil.example/"},
		{"a foreign Host", "GET / HTTP/1.1\r\nHost: evil.example:8443\r\n\r\n", ""},
		{"an authority in the path", "GET /@evil.example/ HTTP/1.1\r\nHost: localhost:8443\r\n\r\n", "https://localhost:8443/@evil.example/"},
		{"a Host with more than a port", "GET / HTTP/1.1\r\nHost: localhost:1@evil.example\r\n\r\n", ""},
		{"no port, which means port 80", "GET / HTTP/1.1\r\nHost: localhost\r\n\r\n", ""},
		{"no Host", "GET / HTTP/1.0\r\n\r\n", ""},
		{"POST", "POST / HTTP/1.1\r\nHost: localhost:8443\r\nContent-Length: 0\r\n\r\n", ""},
		{"a proxy", "GET / HTTP/1.1\r\nHost: localhost:8443\r\nX-Forwarded-For: 192.0.2.1\r\n\r\n", ""},
		{"no HTTP", "GET / nonsense\r\n\r\n", ""},
	} {
		resp, body := exchange(t, s.addrs.HTTPS[0], false, tt.request)
		switch {
		case tt.want == "" && (resp.StatusCode != http.StatusBadRequest || !strings.Contains(body, "HTTPS server")):
			t.Errorf("%s: %s %q, want 400", tt.name, resp.Status, body)
		case tt.want != "" && (resp.StatusCode != http.StatusTemporaryRedirect || resp.Header.Get("Location") != tt.want):
			t.Errorf("%s: %s to %q, want 307 to %q", tt.name, resp.Status, resp.Header.Get("Location"), tt.want)
		}
	}
	resp, body := exchange(t, s.addrs.HTTPS[0], false, "GET /x HTTP/1.1\r\nHost: localhost:8443\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"+handshakeKey+"\r\n")
	if resp.StatusCode != http.StatusUpgradeRequired || resp.Header.Get("Upgrade") != "TLS/1.2, HTTP/1.1" || !strings.Contains(body, "wss://localhost:8443/x") {
		t.Errorf("ws:// on the TLS port: %s %v %q, want 426 and the right URL", resp.Status, resp.Header, body)
	}
	// The last answer arrives before its handshake is counted.
	name := fmt.Sprintf("plusminus_handshakes_total{outcome=%q}", ingress.HandshakeHTTP)
	for deadline := time.Now().Add(time.Minute); s.metric(name) != "15"; time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("%s = %s, want 15", name, s.metric(name))
		}
	}
}
