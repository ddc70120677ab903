package e2e

import (
	"bufio"
	"context"
	"crypto/tls"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"
)

// exchange sends a request byte by byte as given, with or without TLS, and returns the response and its body. The
// TLS client sends no server name, as one that connects by address.
func exchange(t *testing.T, addr string, withTLS bool, request string) (*http.Response, string) {
	t.Helper()
	conn, err := new(net.Dialer).DialContext(t.Context(), "tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	if withTLS {
		conn = tls.Client(conn, &tls.Config{InsecureSkipVerify: true})
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(time.Minute)); err != nil {
		t.Fatal(err)
	}
	if _, err := io.WriteString(conn, request); err != nil {
		t.Fatal(err)
	}
	method, _, _ := strings.Cut(request, " ")
	resp, err := http.ReadResponse(bufio.NewReader(conn), &http.Request{Method: method})
	if err != nil {
		t.Fatalf("%q on %s: %v", request, addr, err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatalf("%q on %s: %v", request, addr, err)
	}
	return resp, string(body)
}

// The ways in which load balancers ask.
var healthChecks = []string{
	"GET /healthz HTTP/1.1\r\nHost: 192.0.2.1:443\r\nConnection: close\r\n\r\n",
	"GET /healthz HTTP/1.1\r\nHost: [2001:db8::1]\r\nConnection: close\r\n\r\n",
	"GET /healthz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n",
	"GET /healthz HTTP/1.1\r\nHost:\r\nConnection: close\r\n\r\n",
	"GET /healthz HTTP/1.0\r\n\r\n",
	"HEAD /healthz HTTP/1.0\r\n\r\n",
}

// wantHealth asks in all ways on one listener.
func wantHealth(t *testing.T, addr string, withTLS bool, want int) {
	t.Helper()
	for _, request := range healthChecks {
		resp, body := exchange(t, addr, withTLS, request)
		if resp.StatusCode != want || body != "" || resp.Header.Get("Cache-Control") != "no-store" {
			t.Errorf("%q on %s: %s, %v, %q, want %d, no-store and no body", request, addr, resp.Status, resp.Header, body, want)
		}
		for name := range resp.Header {
			switch name {
			case "Cache-Control", "Date", "Connection", "Content-Length":
			default:
				t.Errorf("%q on %s: the answer has %s, which tells more than the status", request, addr, name)
			}
		}
	}
}

func TestHealth(t *testing.T) {
	t.Parallel()
	s := start(t)
	wantHealth(t, s.addrs.HTTPS[0], true, http.StatusOK)
	wantHealth(t, s.addrs.HTTP, false, http.StatusOK)
	for _, path := range []string{"/", "/healthz/", "/healthzz", "/readyz"} {
		resp, _ := exchange(t, s.addrs.HTTPS[0], true, "GET "+path+" HTTP/1.0\r\nHost: 192.0.2.1\r\n\r\n")
		if resp.StatusCode != http.StatusMisdirectedRequest {
			t.Errorf("GET %s by address: %s, want 421", path, resp.Status)
		}
	}
	if resp, _ := exchange(t, s.addrs.HTTPS[0], true, "POST /healthz HTTP/1.0\r\nHost: localhost\r\n\r\n"); resp.StatusCode == http.StatusOK {
		t.Errorf("POST /healthz: %s, want no answer for other methods", resp.Status)
	}
	// An upgrade on any path is the hub's.
	wantRead(t, s.join("wss://localhost/healthz"), `{"count":1,"type":"users"}`, `{"type":"state","value":0}`)
}

func TestHealthWithPlain(t *testing.T) {
	t.Parallel()
	s := start(t, "-plain")
	wantHealth(t, s.addrs.HTTP, false, http.StatusOK)
}

// A server that cannot serve clients says so to its balancer: here the CA cannot be reached.
func TestHealthNotReady(t *testing.T) {
	t.Parallel()
	s := start(t, "-domain", "counter.example.com", "-acme-directory", "https://127.0.0.1:1/")
	wantHealth(t, s.addrs.HTTP, false, http.StatusServiceUnavailable)
	if resp, _ := s.get("http://"+s.addrs.Admin+"/readyz", ""); resp.StatusCode != http.StatusServiceUnavailable {
		t.Errorf("GET /readyz: %s, want 503 as from /healthz", resp.Status)
	}
}

// A stopping server is not ready, on connections that its balancer has kept.
func TestHealthWhileStopping(t *testing.T) {
	t.Parallel()
	s := start(t, "-plain", "-drain", "20s")
	ws := s.join("ws://localhost/") // takes its time to leave
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	go func() {
		for ctx.Err() == nil {
			if _, _, err := ws.Read(ctx); err != nil {
				return
			}
		}
	}()
	conn, err := net.Dial("tcp", s.addrs.HTTP)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(time.Minute))
	// Half a request keeps the connection while the server stops.
	if _, err := io.WriteString(conn, "GET /healthz HTTP/1.1\r\n"); err != nil {
		t.Fatal(err)
	}
	time.Sleep(100 * time.Millisecond)
	stopped := make(chan error, 1)
	go func() { stopped <- s.stop() }()
	time.Sleep(100 * time.Millisecond)
	if _, err := io.WriteString(conn, "Host: 192.0.2.1\r\n\r\n"); err != nil {
		t.Fatal(err)
	}
	resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil || resp.StatusCode != http.StatusServiceUnavailable {
		t.Errorf("GET /healthz while stopping: %v, %v, want 503", resp, err)
	}
	if err := <-stopped; err != nil {
		t.Error(err)
	}
}

// The health check has no way around the rate of an address.
func TestHealthIsRated(t *testing.T) {
	t.Parallel()
	s := start(t, "-plain", "-connection-rate", "0.01", "-max-clients-per-ip", "1")
	last := 0
	for range 200 {
		conn, err := net.Dial("tcp", s.addrs.HTTP)
		if err != nil {
			t.Fatal(err)
		}
		br := bufio.NewReader(conn)
		for last != http.StatusTooManyRequests {
			if _, err := io.WriteString(conn, "GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n"); err != nil {
				break
			}
			resp, err := http.ReadResponse(br, nil)
			if err != nil {
				break
			}
			last = resp.StatusCode
		}
		conn.Close()
		if last == http.StatusTooManyRequests {
			return
		}
	}
	t.Errorf("after 200 connections full of health checks the answer is %d, want 429", last)
}
