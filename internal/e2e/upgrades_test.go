package e2e

import (
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/coder/websocket"
)

const handshakeKey = "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"

// wantRefusals waits until /metrics has these counts of refusals. An answer may arrive before it is counted. A count
// that is too high stays so, and fails the test.
func wantRefusals(t *testing.T, s *plusminus, want map[string]int) {
	t.Helper()
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		_, body := s.get("http://"+s.addrs.Admin+"/metrics", "")
		missing := ""
		for reason, n := range want {
			if line := fmt.Sprintf("plusminus_refusals_total{reason=%q} %d\n", reason, n); !strings.Contains(body, line) {
				missing = line
			}
		}
		if missing == "" {
			return
		}
		if time.Now().After(deadline) {
			t.Errorf("/metrics has no %s", missing)
			return
		}
	}
}

// A handshake that arrives without its Upgrade gets no page, but is told why it fails.
func TestStrippedUpgrade(t *testing.T) {
	t.Parallel()
	s := start(t)
	for i, path := range []string{"/", "/events", "/healthz", "/no/such/page"} {
		resp, body := exchange(t, s.addrs.HTTPS[0], true, "GET "+path+" HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"+handshakeKey+"\r\n")
		if resp.StatusCode != http.StatusUpgradeRequired || resp.Header.Get("Upgrade") != "websocket" || !strings.Contains(body, "a proxy in front does not pass Upgrade on") {
			t.Errorf("GET %s with a key alone: %s %v %q, want 426", path, resp.Status, resp.Header, body)
		}
		wantRefusals(t, s, map[string]int{"upgrade_stripped": i + 1, "bad_handshake": 0})
	}
}

// A WebSocket client that comes without TLS learns the right URL, and no page is redirected differently.
func TestUpgradeWithoutTLS(t *testing.T) {
	t.Parallel()
	s := start(t)
	_, port, _ := strings.Cut(s.addrs.HTTPS[0], ":")
	_, resp, err := s.dial("ws://localhost/a?b", websocket.DialOptions{})
	if err == nil || resp == nil || resp.StatusCode != http.StatusUpgradeRequired || resp.Header.Get("Upgrade") != "TLS/1.2, HTTP/1.1" || resp.Header.Get("Location") != "" {
		t.Errorf("Dial(ws://) = %v, %v, want 426 that asks for TLS", resp, err)
	}
	_, body := exchange(t, s.addrs.HTTP, false, "GET /a?b HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade, close\r\nUpgrade: websocket\r\n"+handshakeKey+"\r\n")
	if want := "connect to wss://localhost:" + port + "/a?b\n"; !strings.HasSuffix(body, want) {
		t.Errorf("the answer to ws:// is %q, want it to end with %q", body, want)
	}
	resp, _ = exchange(t, s.addrs.HTTP, false, "GET / HTTP/1.1\r\nHost: evil.example\r\nConnection: Upgrade, close\r\nUpgrade: websocket\r\n"+handshakeKey+"\r\n")
	if resp.StatusCode != http.StatusMisdirectedRequest {
		t.Errorf("ws:// with a foreign Host: %s, want 421", resp.Status)
	}
	if resp, _ := s.get("http://localhost/", ""); resp.StatusCode != http.StatusPermanentRedirect {
		t.Errorf("GET http://: %s, want 308", resp.Status)
	}
	wantRefusals(t, s, map[string]int{"upgrade_plain": 2})
}

// nginx runs the configuration of docs/run.md, without the line that passes Upgrade on: the client is told, and
// the operator, too.
func TestProxyThatStripsUpgrade(t *testing.T) {
	t.Parallel()
	s := startBehindNginx(t, func(example string) string {
		return strings.ReplaceAll(example, "proxy_set_header Upgrade $http_upgrade;", "")
	}, "location / {")
	_, resp, err := s.dial("wss://"+proxyTestDomain+"/", websocket.DialOptions{})
	if err == nil || resp == nil || resp.StatusCode != http.StatusUpgradeRequired {
		t.Errorf("Dial = %v, %v, want 426", resp, err)
	}
	wantRefusals(t, s, map[string]int{"upgrade_stripped": 1})
}

// Under a path of its own, as docs/run.md sets it up: the page, its files, the state, the stream and the hub.
func TestBehindProxySubpath(t *testing.T) {
	t.Parallel()
	s := startBehindNginx(t, nil, "location /counter/ {")
	base := "https://" + proxyTestDomain
	for path, want := range map[string]string{
		"/counter/":          "<html",
		"/counter/client.js": "export",
		"/counter/style.css": "{",
		"/counter/state":     `"value":0`,
	} {
		if resp, body := s.get(base+path, ""); resp.StatusCode != http.StatusOK || !strings.Contains(body, want) {
			t.Errorf("GET %s: %s %q, want 200 and %q", path, resp.Status, body, want)
		}
	}
	if resp, _ := s.get(base+"/counter", ""); resp.StatusCode != http.StatusMovedPermanently || !strings.HasSuffix(resp.Header.Get("Location"), "/counter/") {
		t.Errorf("GET /counter: %s to %q, want a redirect to /counter/", resp.Status, resp.Header.Get("Location"))
	}
	if resp, _ := s.get(base+"/state", ""); resp.StatusCode != http.StatusNotFound {
		t.Errorf("GET /state, outside of the path: %s, want nginx's 404", resp.Status)
	}
	events := s.listen(base + "/counter/events")
	events.wantRetry(2000, 8000)
	events.want(`{"type":"users","count":1}`, `{"type":"state","value":0}`)
	ws, _, err := s.dial("wss://"+proxyTestDomain+"/counter/", websocket.DialOptions{HTTPHeader: http.Header{"Origin": {base}}})
	if err != nil {
		t.Fatal(err)
	}
	defer ws.CloseNow()
	wantRead(t, ws, `{"count":2,"type":"users"}`, `{"type":"state","value":0}`)
	send(t, ws, plus)
	wantRead(t, ws, `{"type":"state","value":1}`)
}

// startBehindNginx starts plusminus, and nginx in front with the example of docs/run.md that begins with pattern.
// edit changes the example; nil leaves it. Visitors of the server reach nginx.
func startBehindNginx(t *testing.T, edit func(string) string, pattern string) *plusminus {
	t.Helper()
	path, err := lookPath("nginx")
	if err != nil {
		t.Skip("nginx is not installed (Debian: nginx)")
	}
	s := start(t, "-plain", "-domain", proxyTestDomain, "-trusted-proxies", "127.0.0.1")
	dir, listen := t.TempDir(), freeAddr(t)
	s.roots = writeCertificate(t, dir, proxyTestDomain)
	example := strings.ReplaceAll(proxyExample(t, pattern), "127.0.0.1:8080", s.addrs.HTTP)
	if edit != nil {
		example = edit(example)
	}
	config := nginxConfig(dir, listen, example)
	if err := os.WriteFile(filepath.Join(dir, "config"), []byte(config), 0o600); err != nil {
		t.Fatal(err)
	}
	startPeer(t, exec.CommandContext(t.Context(), path, "-p", dir, "-e", "stderr", "-c", filepath.Join(dir, "config")), listen)
	s.addrs.HTTPS = []string{listen}
	return s
}
