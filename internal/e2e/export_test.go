package e2e

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"plusminus/acme/pebbletest"
)

// readExport reads a pair as a program does that resolves the folder once. It returns false if two changes came between.
func readExport(folder string) (cert tls.Certificate, ok bool, err error) {
	root, err := os.OpenRoot(filepath.Join(folder, "current"))
	if err != nil {
		return cert, false, err
	}
	defer root.Close()
	chain, err := root.ReadFile("fullchain.pem")
	if err != nil {
		return cert, false, ignoreGone(err)
	}
	key, err := root.ReadFile("privkey.pem")
	if err != nil {
		return cert, false, ignoreGone(err)
	}
	cert, err = tls.X509KeyPair(chain, key)
	return cert, err == nil, err
}

func ignoreGone(err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

// watchExport reads the pair all the time until stop is called, and fails the test if one does not fit.
func watchExport(t *testing.T, folder string) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	var reading sync.WaitGroup
	reads, serials := 0, make(map[string]bool)
	reading.Go(func() {
		for ctx.Err() == nil {
			cert, ok, err := readExport(folder)
			if err != nil {
				t.Errorf("read %d of %s: %v", reads, folder, err)
				return
			}
			if ok {
				reads++
				serials[fmt.Sprintf("%x", cert.Leaf.SerialNumber.Bytes())] = true
			}
			time.Sleep(time.Millisecond)
		}
	})
	return func() {
		cancel()
		reading.Wait()
		t.Logf("%d pairs read, %d different ones; each fits", reads, len(serials))
	}
}

// TestExportToNginx lets nginx serve the files of -export. The hook reloads it, so it serves each new certificate soon after
// plusminus renew. A program that reads the files all the time never gets a key that does not fit.
// With -long there are 15 renewals.
func TestExportToNginx(t *testing.T) {
	t.Parallel()
	nginx, err := lookPath("nginx")
	if err != nil {
		t.Skip("nginx is not installed (Debian: nginx)")
	}
	renewals := 3
	if *long {
		renewals = 15
	}
	// Two orders are at least a quarter of the lifetime apart.
	p, _ := newCertifiedProcess(t, pebbletest.Config{Profiles: map[string]time.Duration{"short": 12 * time.Second}})
	dir, listen := t.TempDir(), freeAddr(t)
	export := filepath.Join(dir, "certs")
	config := fmt.Sprintf(`
daemon off;
pid %[1]s/pid;
error_log stderr notice;
events {}
http {
    access_log off;
    client_body_temp_path %[1]s; proxy_temp_path %[1]s; fastcgi_temp_path %[1]s; uwsgi_temp_path %[1]s; scgi_temp_path %[1]s;
    server {
        listen %[2]s ssl;
        ssl_certificate %[3]s/counter.test/fullchain.pem;
        ssl_certificate_key %[3]s/counter.test/privkey.pem;
        return 204;
    }
}
`, dir, listen, export)
	if err := os.WriteFile(filepath.Join(dir, "config"), []byte(config), 0o600); err != nil {
		t.Fatal(err)
	}
	args := fmt.Sprintf("-p %s -e stderr -c %s/config", dir, dir)
	p.args = append(p.args, "-export", export, "-export-hook", nginx+" "+args+" -s reload")
	p.start()
	p.waitUp()
	p.waitReady()
	folder := filepath.Join(export, "counter.test")
	waitUntil(t, "the export", func() bool { _, ok, _ := readExport(folder); return ok })

	metric := func(name string) string {
		_, body := p.get("http://"+p.addrs.Admin+"/metrics", "")
		m := regexp.MustCompile(`(?m)^plusminus_export_` + name + ` (\S+)$`).FindStringSubmatch(body)
		if m == nil {
			t.Fatalf("/metrics has no plusminus_export_%s", name)
		}
		return m[1]
	}
	// nginx does not run yet, so the hook fails, which harms nothing.
	waitUntil(t, "failure of the hook", func() bool { return metric(`hook_runs_total{domain="counter.test",result="failed"}`) != "0" })
	if got := metric(`hook_pending{domain="counter.test"}`); got != "1" {
		t.Errorf("hook_pending = %s after a failure, want 1", got)
	}

	startPeer(t, exec.Command(nginx, strings.Fields(args)...), listen)
	stop := watchExport(t, folder)
	for range renewals {
		out, err := command(t, "renew", "-admin", p.addrs.Admin).Output()
		m := regexp.MustCompile(`serial ([0-9a-f]+),`).FindSubmatch(out)
		if err != nil || m == nil {
			t.Fatalf("renew = %q, %v", out, err)
		}
		renewed := time.Now()
		waitUntil(t, "nginx to serve the new serial "+string(m[1]), func() bool {
			nc, err := tls.Dial("tcp", listen, &tls.Config{ServerName: "counter.test", InsecureSkipVerify: true})
			if err != nil {
				t.Fatal(err)
			}
			defer nc.Close()
			serial := fmt.Appendf(nil, "%x", nc.ConnectionState().PeerCertificates[0].SerialNumber.Bytes())
			// If the certificate was due meanwhile, the next one is as good.
			return bytes.Equal(serial, m[1]) || string(serial) == p.serial("counter.test")
		})
		t.Logf("nginx serves the new certificate %v after the renewal", time.Since(renewed).Round(time.Millisecond))
	}
	stop()
	waitUntil(t, "success of the hook", func() bool { return metric(`hook_pending{domain="counter.test"}`) == "0" })
	if got := metric(`failures_total{domain="counter.test"}`); got != "0" {
		t.Errorf("failures_total = %s, want 0", got)
	}
}

// TestExportReaders renews local certificates as fast as it can, while a program reads the files. Each key that it reads fits the certificate.
func TestExportReaders(t *testing.T) {
	t.Parallel()
	renewals := 30
	if *long {
		renewals = 300
	}
	data, export, runs := t.TempDir(), t.TempDir(), filepath.Join(t.TempDir(), "runs")
	args := []string{"-data", data, "-domain", "a.test,b.test", "-store", "memory", "-export", export, "-export-hook", "echo $PLUSMINUS_DOMAIN >>" + runs}
	s := start(t, args...)
	count := func() int {
		text, _ := os.ReadFile(runs)
		return bytes.Count(text, []byte("\n"))
	}
	waitUntil(t, "two runs of the hook", func() bool { return count() == 2 })
	stopA, stopB := watchExport(t, filepath.Join(export, "a.test")), watchExport(t, filepath.Join(export, "b.test"))
	for i := range renewals {
		domain := []string{"a.test", "b.test"}[i%2]
		if resp, body := s.post("http://"+s.addrs.Admin+"/renew?domain="+domain, nil); resp.StatusCode != http.StatusOK {
			t.Fatalf("POST /renew = %s %s", resp.Status, body)
		}
		serial := s.serial(domain)
		waitUntil(t, "the export of the new certificate", func() bool {
			cert, ok, _ := readExport(filepath.Join(export, domain))
			return ok && fmt.Sprintf("%x", cert.Leaf.SerialNumber.Bytes()) == serial
		})
	}
	stopA()
	stopB()
	pending := regexp.MustCompile(`plusminus_export_hook_pending\{domain="[ab]\.test"\} 1`)
	waitUntil(t, "the last run of the hook", func() bool {
		_, body := s.get("http://"+s.addrs.Admin+"/metrics", "")
		return !pending.MatchString(body)
	})
	ran := count()
	t.Logf("%d runs of the hook for %d renewals", ran, renewals)
	if err := s.stop(); err != nil {
		t.Fatal(err)
	}
	// A local certificate is issued anew at each start. That is a change, so the hook runs for it, once for each domain.
	start(t, args...)
	waitUntil(t, "the hook after a restart", func() bool { return count() == ran+2 })
}

// TestExportRefused checks the reasons for which a server does not start, and their exit status.
func TestExportRefused(t *testing.T) {
	t.Parallel()
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		args   string
		status int
		want   string
	}{
		{"-export d -export-group no-such-group", 2, `-export: there is no group "no-such-group" here`},
		{"-export " + file, 1, "-export: mkdir " + file + ": not a directory"},
	} {
		cmd := command(t, append(strings.Fields(test.args), "-http", "127.0.0.1:0", "-https", "127.0.0.1:0", "-admin", "off")...)
		out, err := cmd.CombinedOutput()
		if exitStatus(err) != test.status || !strings.Contains(string(out), test.want) {
			t.Errorf("plusminus %s: %v, %q, want exit status %d and %q", test.args, err, out, test.status, test.want)
		}
	}
}
