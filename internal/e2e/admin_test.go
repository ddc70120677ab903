package e2e

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil/promlint"

	"plusminus/acme/pebbletest"
)

func TestAdmin(t *testing.T) {
	s := start(t)
	admin := "http://" + s.addrs.Admin
	for _, tt := range []struct {
		path   string
		status int
		body   string
	}{
		{"/livez", 200, "alive\n"},
		{"/readyz", 200, "ready\n"},
		{"/nowhere", 404, "this listener has GET /livez, /readyz, /status and /metrics, and POST /renew?domain=\n"},
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
		t.Errorf("healthcheck of nobody = %q, %v, want exit status 1", out, err)
	}
}

// post returns the response to a POST without a body, and its own.
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

// startCertified runs plusminus for counter.test with a Pebble as its CA, until it is ready.
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

// serial returns the serial number of the certificate that a visitor is served, as Status tells it.
func (s *plusminus) serial(domain string) string {
	s.t.Helper()
	resp, _ := s.get("https://"+domain+"/", "")
	return fmt.Sprintf("%x", resp.TLS.PeerCertificates[0].SerialNumber.Bytes())
}

func TestRenewCommand(t *testing.T) {
	s, ca := startCertified(t)
	first := s.serial("counter.test")
	ws := s.join("wss://counter.test/")
	wantRead(t, ws, `{"count":1,"type":"users"}`, `{"type":"state","value":0}`)

	renewed := regexp.MustCompile(`^renewed: counter\.test, serial ([0-9a-f]+), expires 20\d\d-.*Z\n$`)
	for _, args := range [][]string{{"-domain", "Counter.Test."}, {}} { // there is only one
		out, err := command(t, append([]string{"renew", "-admin", s.addrs.Admin}, args...)...).Output()
		m := renewed.FindSubmatch(out)
		if err != nil || m == nil || string(m[1]) == first {
			t.Fatalf("renew %v = %q, %v, want another serial than %s", args, out, err, first)
		}
		if got := s.serial("counter.test"); got != string(m[1]) {
			t.Errorf("renew %v said serial %s, visitors get %s", args, m[1], got)
		}
	}
	out, err := command(t, "renew", "-admin", s.addrs.Admin, "-domain", "other.example").CombinedOutput()
	if exitStatus(err) != 1 || !strings.Contains(string(out), "other.example: acme: not one of the domains") {
		t.Errorf("renew of another domain = %q, %v, want exit status 1 and why", out, err)
	}

	// What is open stays as it is.
	send(t, ws, plus)
	wantRead(t, ws, `{"type":"state","value":1}`)

	// The budget is for everybody.
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

func TestRenewRefused(t *testing.T) {
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

// SIGHUP makes the process look at its certificate files at once, and does not end it.
func TestHangup(t *testing.T) {
	dir, roots := t.TempDir(), x509.NewCertPool()
	cert, key := filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem")
	roots.AddCert(writePair(t, cert, key))
	s := newSupervisor(t, []string{"https", "admin"}, "-http", "off", "-domain", "counter.test", "-cert", cert, "-key", key)
	s.start()
	s.roots = roots
	before := s.serial("counter.test")
	if resp, body := s.post("http://"+s.addrs.Admin+"/renew", nil); resp.StatusCode != 409 || !strings.Contains(body, "comes from files") {
		t.Errorf("POST /renew with -cert = %s %q, want 409 and why", resp.Status, body)
	}
	roots.AddCert(writePair(t, cert, key))
	if err := s.cmd.Process.Signal(syscall.SIGHUP); err != nil {
		t.Fatal(err)
	}
	for deadline := time.Now().Add(time.Minute); s.serial("counter.test") == before; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("the new pair is not served")
		}
	}
}

// writePair writes a new pair for counter.test, signed by itself, to two files, and returns it.
func writePair(t *testing.T, certFile, keyFile string) *x509.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{DNSNames: []string{"counter.test"}, NotBefore: time.Now(), NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	keyDER, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	for file, block := range map[string]*pem.Block{
		certFile: {Type: "CERTIFICATE", Bytes: der},
		keyFile:  {Type: "EC PRIVATE KEY", Bytes: keyDER},
	} {
		if err := os.WriteFile(file, pem.EncodeToMemory(block), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return leaf
}

// All that the alerts and dashboards of an operator are made of is there and says what is so.
func TestMetrics(t *testing.T) {
	s, ca := startCertified(t)
	ws := s.join("wss://counter.test/")
	wantRead(t, ws, `{"count":1,"type":"users"}`)
	ok := `plusminus_acme_attempts_total{ca="` + ca.DirectoryURL + `",domain="counter.test",outcome="ok"} 1`
	var body string
	for deadline := time.Now().Add(time.Minute); !strings.Contains(body, ok); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("/metrics has no line %s", ok) // a moment after it is served
		}
		_, body = s.get("http://"+s.addrs.Admin+"/metrics", "")
	}
	if found, err := promlint.New(strings.NewReader(body)).Lint(); err != nil || len(found) != 0 {
		t.Errorf("promlint: %v, %v", found, err)
	}
	resp, _ := s.get("https://counter.test/", "")
	leaf := resp.TLS.PeerCertificates[0]
	domain, both := `{domain="counter.test",source="acme"} `, `{ca="`+ca.DirectoryURL+`",domain="counter.test"} `
	for _, want := range []string{
		"plusminus_ready 1",
		"plusminus_clients 1",
		"plusminus_store_up 1",
		"plusminus_certificate_valid" + domain + "1",
		"plusminus_certificate_not_after_timestamp_seconds" + domain + prometheusNumber(leaf.NotAfter),
		"plusminus_certificate_not_before_timestamp_seconds" + domain + prometheusNumber(leaf.NotBefore),
		"plusminus_acme_failures" + both + "0",
		"plusminus_acme_failed_validations_left" + both + "5",
		"plusminus_acme_certificates_left" + both + "4",
		"plusminus_acme_certificate_unsaved" + both + "0",
		"plusminus_acme_clock_skew_seconds" + both,
		"plusminus_certificate_next_attempt_timestamp_seconds" + domain,
		"go_goroutines ",
		"process_resident_memory_bytes ",
	} {
		if !strings.Contains(body, "\n"+want) {
			t.Errorf("/metrics has no line %s", want)
		}
	}

	down := start(t, "-domain", "counter.test", "-acme-directory", "https://127.0.0.1:1/dir")
	last := regexp.MustCompile(`plusminus_acme_last_error_timestamp_seconds{ca="https://127.0.0.1:1/dir",domain="counter.test",` +
		`hint="[^"]*outgoing connections",reason="directory: .*connection refused",step="directory",type=""} 1\.\d+e\+09`)
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(20 * time.Millisecond) {
		_, body := down.get("http://"+down.addrs.Admin+"/metrics", "")
		if last.MatchString(body) && strings.Contains(body, "\nplusminus_ready 0\n") {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("no failure told by\n%s", body)
		}
	}
}

// prometheusNumber writes t as /metrics does.
func prometheusNumber(t time.Time) string {
	return strconv.FormatFloat(float64(t.Unix()), 'g', -1, 64)
}
