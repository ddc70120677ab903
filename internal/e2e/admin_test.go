package e2e

import (
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"plusminus/acme/pebbletest"
)

// TestAdmin checks the paths of the admin listener, and plusminus healthcheck.
func TestAdmin(t *testing.T) {
	t.Parallel()
	s := start(t)
	admin := "http://" + s.addrs.Admin
	for _, tt := range []struct {
		path   string
		status int
		body   string
	}{
		{"/livez", 200, "alive\n"},
		{"/readyz", 200, "ready\n"},
		{"/nowhere", 404, "this listener has GET /livez, /readyz, /status, /metrics and /counters, POST /renew?domain=, and GET, PUT and DELETE /counter?name=\n"},
	} {
		if resp, body := s.get(admin+tt.path, ""); resp.StatusCode != tt.status || body != tt.body {
			t.Errorf("GET %s = %s %q, want %d %q", tt.path, resp.Status, body, tt.status, tt.body)
		}
	}
	_, body := s.get(admin+"/status", "")
	var status struct {
		Ready        bool
		Certificates []struct{ Domain, Source string }
		Hub          struct{ Users int }
		Store        struct {
			Where string
			Up    bool
		}
	}
	if err := json.Unmarshal([]byte(body), &status); err != nil || !status.Ready ||
		len(status.Certificates) != 1 || status.Certificates[0].Domain != "localhost" || status.Certificates[0].Source != "local" {
		t.Errorf("GET /status = %s, %v, want ready and a local certificate for localhost", body, err)
	}
	if got := status.Store; got.Where != "file" || !got.Up {
		t.Errorf("GET /status has store %+v, want a file that is up", got)
	}
	out, err := command(t, "healthcheck", "-admin", s.addrs.Admin).CombinedOutput()
	if err != nil || string(out) != "ready\n" {
		t.Errorf("healthcheck = %q, %v, want ready and exit status 0", out, err)
	}
	if err := s.stop(); err != nil {
		t.Fatal(err)
	}
	if out, err := command(t, "healthcheck", "-admin", s.addrs.Admin).CombinedOutput(); exitStatus(err) != 1 {
		t.Errorf("healthcheck without a server = %q, %v, want exit status 1", out, err)
	}
}

// post sends a POST without a body, and returns the response and its body.
func (s *plusminus) post(url string, header http.Header) (*http.Response, string) {
	s.t.Helper()
	req, err := http.NewRequestWithContext(s.t.Context(), http.MethodPost, url, nil)
	if err != nil {
		s.t.Fatal(err)
	}
	for name, values := range header {
		req.Header[name] = values
	}
	return s.do(req)
}

// startCertified runs a server for counter.test with Pebble as its CA, and waits until it is ready.
func startCertified(t *testing.T, args ...string) (*plusminus, *pebbletest.CA) {
	t.Helper()
	f := newForwarder(t)
	ca := pebbletest.Start(t, pebbletest.Config{TLSPort: f.port})
	root := filepath.Join(t.TempDir(), "root.pem")
	if err := os.WriteFile(root, ca.DirectoryRootPEM, 0o600); err != nil {
		t.Fatal(err)
	}
	s := start(t, append([]string{"-domain", "counter.test", "-acme-directory", ca.DirectoryURL, "-acme-ca-root", root}, args...)...)
	s.roots = ca.IssuingRoots
	f.to(s.addrs.HTTPS[0])
	s.waitReady()
	return s, ca
}

// serial returns the serial number of the served certificate, in the form of /status.
func (s *plusminus) serial(domain string) string {
	s.t.Helper()
	resp, _ := s.get("https://"+domain+"/", "")
	return fmt.Sprintf("%x", resp.TLS.PeerCertificates[0].SerialNumber.Bytes())
}

// TestAdminHost asks the admin listener with the Host of a page that has made its own name lead there (DNS rebinding).
func TestAdminHost(t *testing.T) {
	t.Parallel()
	s := start(t, "-admin", "localhost:0")
	_, port, _ := net.SplitHostPort(s.addrs.Admin)
	for _, tt := range []struct {
		method, path, host string
		status             int
	}{
		{"GET", "/status", "evil.example", 421},
		{"GET", "/status", "evil.example:" + port, 421},
		{"GET", "/status", "localhost.evil.example", 421},
		{"GET", "/status", "127.0.0.1.evil.example", 421},
		{"POST", "/renew", "evil.example:" + port, 421},
		{"GET", "/counters", "evil.example:" + port, 421},
		{"PUT", "/counter?name=a", "evil.example:" + port, 421},
		{"DELETE", "/counter", "evil.example:" + port, 421},
		{"GET", "/status", ".", 421},
		{"GET", "/livez", "evil.example", 200},
		{"GET", "/readyz", "plusminus.default.svc", 200},
		{"GET", "/metrics", "plusminus:9180", 200},
		{"GET", "/status", "127.0.0.1:" + port, 200},
		{"GET", "/status", "10.1.2.3", 200}, // a published port
		{"GET", "/status", "[::1]:" + port, 200},
		{"GET", "/status", "LOCALHOST.:" + port, 200},
		{"POST", "/renew", "localhost:" + port, 200},
	} {
		resp, body := exchange(t, s.addrs.Admin, false, tt.method+" "+tt.path+" HTTP/1.1\r\nHost: "+tt.host+"\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
		if resp.StatusCode != tt.status || tt.status == 421 && !strings.Contains(body, "name the host in -admin") {
			t.Errorf("%s %s for %s = %s %.80q, want %d", tt.method, tt.path, tt.host, resp.Status, body, tt.status)
		}
	}
	if resp, _ := exchange(t, s.addrs.Admin, false, "GET /status HTTP/1.0\r\n\r\n"); resp.StatusCode != 200 {
		t.Errorf("GET /status without a Host = %s, want 200: no browser sends that", resp.Status)
	}
}

// TestOneNameFails runs a server with two domains, one of which the CA refuses. The server is ready, and healthy to Docker,
// and says which domain it cannot serve.
func TestOneNameFails(t *testing.T) {
	t.Parallel()
	f := newForwarder(t)
	ca := pebbletest.Start(t, pebbletest.Config{TLSPort: f.port, BlockedDomains: []string{"blocked.example"}})
	root := filepath.Join(t.TempDir(), "root.pem")
	if err := os.WriteFile(root, ca.DirectoryRootPEM, 0o600); err != nil {
		t.Fatal(err)
	}
	s := start(t, "-domain", "blocked.example,counter.example", "-acme-directory", ca.DirectoryURL, "-acme-ca-root", root)
	f.to(s.addrs.HTTPS[0])
	s.waitReady()
	waitUntil(t, "refusal", func() bool {
		_, body := s.get("http://"+s.addrs.Admin+"/readyz", "")
		return strings.HasPrefix(body, "ready, but not for all domains: acme: blocked.example: no certificate yet: newOrder: rejectedIdentifier: ") &&
			strings.Contains(body, "; next attempt at ")
	})
	if out, err := command(t, "healthcheck", "-admin", s.addrs.Admin).CombinedOutput(); err != nil {
		t.Errorf("healthcheck = %q, %v, want exit status 0", out, err)
	}
	wantHealth(t, s.addrs.HTTPS[0], true, 200)
	_, metrics := s.get("http://"+s.addrs.Admin+"/metrics", "")
	for _, line := range []string{"plusminus_ready 1", `plusminus_certificate_valid{domain="blocked.example",source="acme"} 0`, `plusminus_certificate_valid{domain="counter.example",source="acme"} 1`} {
		if !strings.Contains(metrics, line+"\n") {
			t.Errorf("metrics have no %s", line)
		}
	}
}

// TestRenewCommand renews with plusminus renew and with POST /renew, until the limit of certificates is reached.
func TestRenewCommand(t *testing.T) {
	t.Parallel()
	s, ca := startCertified(t)
	first := s.serial("counter.test")
	ws := s.join("wss://counter.test/")
	wantRead(t, ws, `{"count":1,"type":"users"}`, `{"type":"state","value":0}`)

	renewed := regexp.MustCompile(`^renewed: counter\.test, serial ([0-9a-f]+), expires 20\d\d-.*Z\n$`)
	for _, args := range [][]string{{"-domain", "Counter.Test."}, {}} { // without -domain: the only one
		out, err := command(t, append([]string{"renew", "-admin", s.addrs.Admin}, args...)...).Output()
		m := renewed.FindSubmatch(out)
		if err != nil || m == nil || string(m[1]) == first {
			t.Fatalf("renew %v = %q, %v, want another serial than %s", args, out, err, first)
		}
		if got := s.serial("counter.test"); got != string(m[1]) {
			t.Errorf("renew %v printed the serial %s, and the server serves %s, want the same", args, m[1], got)
		}
	}
	out, err := command(t, "renew", "-admin", s.addrs.Admin, "-domain", "other.example").CombinedOutput()
	if exitStatus(err) != 1 || !strings.Contains(string(out), "other.example: acme: not one of the domains") {
		t.Errorf("renew of another domain = %q, %v, want exit status 1 and the reason", out, err)
	}

	// Open connections stay open.
	send(t, ws, plus)
	wantRead(t, ws, `{"type":"state","value":1}`)

	// Renewals by command and by POST share one budget.
	admin := "http://" + s.addrs.Admin + "/renew?domain=counter.test"
	for range 2 {
		if resp, body := s.post(admin, nil); resp.StatusCode != 200 {
			t.Errorf("POST /renew = %s %q, want 200", resp.Status, body)
		}
	}
	resp, body := s.post(admin, nil)
	wait, _ := strconv.Atoi(resp.Header.Get("Retry-After"))
	if days := float64(wait) / 86400; resp.StatusCode != 429 || !strings.Contains(body, "not renewed: ") || days < 6.9 || days > 7 {
		t.Errorf("the sixth certificate: %s %q, Retry-After %d, want 429 and about a week", resp.Status, body, wait)
	}
	if got := ca.Orders(); got != 5 {
		t.Errorf("%d orders, want 5", got)
	}
	for what, header := range map[string]http.Header{
		"a page of another origin": {"Origin": {"https://evil.example"}},
		"another site":             {"Sec-Fetch-Site": {"cross-site"}},
	} {
		if resp, body := s.post(admin, header); resp.StatusCode != 403 {
			t.Errorf("POST /renew by %s = %s %q, want 403", what, resp.Status, body)
		}
	}
}

// TestRenewRefused checks the reasons for which POST /renew fails.
func TestRenewRefused(t *testing.T) {
	t.Parallel()
	plain := start(t, "-plain")
	if resp, body := plain.post("http://"+plain.addrs.Admin+"/renew", nil); resp.StatusCode != 400 || !strings.Contains(body, "with -plain the proxy in front has the certificate") {
		t.Errorf("POST /renew with -plain = %s %q, want 400 and why", resp.Status, body)
	}
	two := start(t, "-domain", "a.test,b.test")
	if resp, body := two.post("http://"+two.addrs.Admin+"/renew", nil); resp.StatusCode != 400 || !strings.Contains(body, "a.test, b.test") {
		t.Errorf("POST /renew without a domain = %s %q, want 400 and their names", resp.Status, body)
	}
	before := two.serial("b.test")
	if resp, body := two.post("http://"+two.addrs.Admin+"/renew?domain=b.test", nil); resp.StatusCode != 200 || two.serial("b.test") == before {
		t.Errorf("POST /renew of a local domain = %s %q, want 200 and a new certificate", resp.Status, body)
	}
	down := start(t, "-domain", "counter.test", "-acme-directory", "https://127.0.0.1:1/dir")
	if resp, body := down.post("http://"+down.addrs.Admin+"/renew", nil); resp.StatusCode != 502 || !strings.Contains(body, "connection refused") {
		t.Errorf("POST /renew with the CA down = %s %q, want 502 and why", resp.Status, body)
	}
}
