package e2e

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/coder/websocket"
)

// proxyTestDomain is the domain in the examples of docs/run.md.
const proxyTestDomain = "counter.example.com"

// proxyExample returns the indented block of docs/run.md whose first line matches pattern.
func proxyExample(t *testing.T, pattern string) string {
	t.Helper()
	page, err := os.ReadFile("docs/run.md")
	if err != nil {
		t.Fatal(err)
	}
	example := regexp.MustCompile(`(?m)(^    ` + pattern + `\n(    .*\n)+)`).Find(page)
	if example == nil {
		t.Fatalf("docs/run.md has no example of %q", pattern)
	}
	return string(example)
}

// nginxConfig returns a configuration of nginx with TLS on listen. The certificate is in dir, and locations are those
// of the server.
func nginxConfig(dir, listen, locations string) string {
	return fmt.Sprintf(`
daemon off;
master_process off;
pid %[1]s/pid;
error_log stderr notice;
events {}
http {
    access_log off;
    client_body_temp_path %[1]s; proxy_temp_path %[1]s; fastcgi_temp_path %[1]s; uwsgi_temp_path %[1]s; scgi_temp_path %[1]s;
    server {
        listen %[2]s ssl;
        server_name %[3]s;
        root %[1]s/none;
        ssl_certificate %[1]s/cert.pem;
        ssl_certificate_key %[1]s/key.pem;
%[4]s
    }
}
`, dir, listen, proxyTestDomain, locations)
}

// proxies are the reverse proxies of TestBehindProxy. config returns the example of docs/run.md, with the addresses of
// the test, and a certificate in dir.
var proxies = []struct {
	name, debian string
	config       func(t *testing.T, dir, listen, upstream string) string
	args         func(dir string) []string
}{
	{"nginx", "nginx", func(t *testing.T, dir, listen, upstream string) string {
		return nginxConfig(dir, listen, strings.ReplaceAll(proxyExample(t, "location / {"), "127.0.0.1:8080", upstream))
	}, func(dir string) []string {
		return []string{"-p", dir, "-e", "stderr", "-c", filepath.Join(dir, "config")}
	}},
	{"caddy", "caddy", func(t *testing.T, dir, listen, upstream string) string {
		example := strings.ReplaceAll(proxyExample(t, regexp.QuoteMeta(proxyTestDomain)+" {"), "127.0.0.1:8080", upstream)
		_, port, _ := net.SplitHostPort(listen)
		at := fmt.Sprintf("%s:%s {\n bind 127.0.0.1\n tls %s/cert.pem %[3]s/key.pem\n", proxyTestDomain, port, dir)
		return "{\n admin off\n auto_https disable_redirects\n}\n" + strings.Replace(example, proxyTestDomain+" {\n", at, 1)
	}, func(dir string) []string {
		return []string{"run", "--adapter", "caddyfile", "--config", filepath.Join(dir, "config")}
	}},
}

// TestBehindProxy runs a server behind nginx and Caddy, configured as in docs/run.md. The page and the hub work.
// -max-clients-per-ip counts the addresses of the clients, and ignores an X-Forwarded-For that a client sends. At a
// stop of the server the clients receive 1012.
func TestBehindProxy(t *testing.T) {
	t.Parallel()
	for _, proxy := range proxies {
		t.Run(proxy.name, func(t *testing.T) {
			t.Parallel()
			needLoopbacks(t)
			path, err := lookPath(proxy.name)
			if err != nil {
				t.Skipf("%s is not installed (Debian: %s)", proxy.name, proxy.debian)
			}
			s := start(t, "-plain", "-domain", proxyTestDomain, "-trusted-proxies", "127.0.0.1", "-max-clients-per-ip", "2", "-drain", "1s")
			dir := t.TempDir()
			listen := freeAddr(t)
			s.roots = writeCertificate(t, dir, proxyTestDomain)
			config := proxy.config(t, dir, listen, s.addrs.HTTP)
			if err := os.WriteFile(filepath.Join(dir, "config"), []byte(config), 0o600); err != nil {
				t.Fatal(err)
			}
			cmd := exec.CommandContext(t.Context(), path, proxy.args(dir)...)
			cmd.Env = append(os.Environ(), "HOME="+dir, "XDG_DATA_HOME="+dir, "XDG_CONFIG_HOME="+dir)
			startPeer(t, cmd, listen)

			s.from("127.0.0.2", listen)
			if resp, body := s.get("https://"+proxyTestDomain+"/", ""); resp.StatusCode != 200 || !strings.Contains(body, "<html") {
				t.Errorf("GET / = %s %q, want the page", resp.Status, body)
			}
			s.from("127.0.0.4", listen)
			events := s.listen("https://" + proxyTestDomain + "/events")
			events.wantRetry(2000, 8000)
			events.want(`{"type":"users","count":1}`, `{"type":"state","value":0}`)

			url := "wss://" + proxyTestDomain + "/"
			users := 1
			for _, ip := range []string{"127.0.0.2", "127.0.0.3"} {
				s.from(ip, listen)
				for i := range 3 {
					forged := http.Header{"X-Forwarded-For": {fmt.Sprintf("203.0.113.%d", i)}, "Origin": {"https://" + proxyTestDomain}}
					ws, resp, err := s.dial(url, websocket.DialOptions{HTTPHeader: forged})
					if i == 2 {
						if err == nil || resp == nil || resp.StatusCode < http.StatusBadRequest {
							t.Errorf("third client of %s: response %v, %v, want a refusal", ip, resp, err)
						}
						continue
					}
					if err != nil {
						t.Fatalf("client %d of %s: %v", i, ip, err)
					}
					t.Cleanup(func() { ws.CloseNow() })
					users++
					wantRead(t, ws, fmt.Sprintf(`{"count":%d,"type":"users"}`, users), `{"type":"state","value":0}`)
					if users == 5 {
						send(t, ws, plus)
						for read(t, ws) != `{"type":"state","value":1}` {
						}
						for events.next() != `data: {"type":"state","value":1}` { // messages about users may come first
						}
						ended := make(chan error, 1)
						go func() {
							_, _, err := ws.Read(t.Context())
							ended <- err
						}()
						if err := s.stop(); err != nil {
							t.Fatal(err)
						}
						if err := <-ended; websocket.CloseStatus(err) != websocket.StatusServiceRestart {
							t.Errorf("Read = %v, want status code 1012", err)
						}
						events.wantEnd()
						return
					}
				}
			}
		})
	}
}

// lookPath finds a program in PATH or in /usr/sbin.
func lookPath(name string) (string, error) {
	path, err := exec.LookPath(name)
	if err != nil {
		path, err = exec.LookPath("/usr/sbin/" + name)
	}
	return path, err
}

// writeCertificate writes a self-signed cert.pem and its key.pem to dir, and returns a pool that trusts it.
func writeCertificate(t *testing.T, dir, domain string) *x509.CertPool {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), DNSNames: []string{domain}, NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	certPEM := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(certPEM)
	for name, data := range map[string][]byte{"cert.pem": certPEM, "key.pem": pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: keyDER})} {
		if err := os.WriteFile(filepath.Join(dir, name), data, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return roots
}
