package e2e

import (
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"plusminus/acme/pebbletest"
)

// TestComingFromCertbot runs certbot of Debian, and then plusminus with -import on its folder. The certificate of certbot is
// served and no order is placed, for both kinds of keys. What -export then writes is what certbot has in live, byte for byte. A
// renewal gives a certificate of plusminus's own account. A second start does not look at certbot's folder.
func TestComingFromCertbot(t *testing.T) {
	t.Parallel()
	certbot, err := lookPath("certbot")
	if err != nil {
		t.Skip("certbot is not installed (Debian: certbot)")
	}
	for _, keyType := range []string{"ecdsa", "rsa"} {
		t.Run(keyType, func(t *testing.T) {
			t.Parallel()
			_, port, err := net.SplitHostPort(freeAddr(t))
			if err != nil {
				t.Fatal(err)
			}
			var standalone int
			fmt.Sscan(port, &standalone)
			p, ca := newCertifiedProcess(t, pebbletest.Config{HTTPPort: standalone})
			dir := t.TempDir()
			letsencrypt, export := filepath.Join(dir, "letsencrypt"), filepath.Join(dir, "export")
			cmd := exec.Command(certbot, "certonly", "--standalone", "--http-01-port", port, "--domain", "counter.test", "--cert-name", "counter.test-0001",
				"--key-type", keyType, "--server", ca.DirectoryURL, "--config-dir", letsencrypt, "--work-dir", filepath.Join(dir, "work"),
				"--logs-dir", filepath.Join(dir, "logs"), "--agree-tos", "--register-unsafely-without-email", "--non-interactive")
			cmd.Env = append(os.Environ(), "REQUESTS_CA_BUNDLE="+filepath.Join(p.data, "root.pem"))
			if out, err := cmd.CombinedOutput(); err != nil {
				t.Fatalf("certbot: %v\n%s", err, out)
			}
			live := filepath.Join(letsencrypt, "live", "counter.test-0001")
			read := func(file string) string {
				data, err := os.ReadFile(file)
				if err != nil {
					t.Fatal(err)
				}
				return string(data)
			}
			block, _ := pem.Decode([]byte(read(filepath.Join(live, "cert.pem"))))
			cert, err := x509.ParseCertificate(block.Bytes)
			if err != nil {
				t.Fatal(err)
			}
			serial := fmt.Sprintf("%x", cert.SerialNumber.Bytes())
			orders := ca.Orders()

			p.args = append(p.args, "-import", letsencrypt, "-export", export)
			p.start()
			p.waitUp()
			if !p.ready() {
				t.Error("not ready at the start")
			}
			if got := p.serial("counter.test"); got != serial {
				t.Errorf("serial %s is served, want that of certbot, %s", got, serial)
			}
			line := lineWith(p.output.String(), "certificate taken over from certbot")
			if !strings.Contains(line, "folder="+live+" ") || !strings.Contains(line, "level=INFO") {
				t.Errorf("logged %q", line)
			}
			t.Log(line)
			folder := filepath.Join(export, "counter.test")
			waitUntil(t, "the export", func() bool { _, ok, _ := readExport(folder); return ok })
			for _, file := range []string{"cert.pem", "chain.pem", "fullchain.pem", "privkey.pem"} {
				if got, want := read(filepath.Join(folder, file)), read(filepath.Join(live, file)); got != want {
					t.Errorf("exported %s =\n%s, want what certbot has:\n%s", file, got, want)
				}
			}
			if got := ca.Orders(); got != orders {
				t.Errorf("%d orders, want %d, those of certbot", got, orders)
			}

			p.kill()
			if err := os.RemoveAll(letsencrypt); err != nil {
				t.Fatal(err)
			}
			p.start()
			p.waitUp()
			if got := p.serial("counter.test"); got != serial {
				t.Errorf("serial %s is served after a restart, want %s", got, serial)
			}
			if n := strings.Count(p.output.String(), "certbot"); n != strings.Count(line, "certbot") {
				t.Errorf("the log names certbot %d times, want only in the line of the first start:\n%s", n, p.output)
			}
			if out, err := command(t, "renew", "-admin", p.addrs.Admin).CombinedOutput(); err != nil {
				t.Errorf("renew = %v: %s", err, out)
			}
			if got := p.serial("counter.test"); got == serial {
				t.Error("renew has not replaced the certificate of certbot")
			}
		})
	}
}

// lineWith returns the first line of a log that contains text.
func lineWith(log, text string) string {
	for line := range strings.Lines(log) {
		if strings.Contains(line, text) {
			return strings.TrimSpace(line)
		}
	}
	return ""
}
