package acme

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/tls"
	"crypto/x509"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"plusminus/acme/internal/acmetest"
	"plusminus/acme/internal/certs"
	"plusminus/acme/internal/localca"
)

// trusting returns a pool with the root in the data folder, which clients are told to trust.
func trusting(t *testing.T, dir string) *x509.CertPool {
	t.Helper()
	data, err := os.ReadFile(filepath.Join(dir, "local-ca", "root.pem"))
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(data) {
		t.Fatal("root.pem holds no certificate")
	}
	return pool
}

func localConfig(t testing.TB, dir string, names ...string) (Config, *recorder) {
	log := &recorder{t: t}
	cfg := Config{Dir: dir, Logger: newLogger(log)}
	for _, n := range names {
		cfg.Domains = append(cfg.Domains, Domain{Name: n, Local: true})
	}
	return cfg, log
}

// A new server serves visitors who trust only root.pem.
func TestLocal(t *testing.T) {
	t.Parallel()
	domains := []string{"localhost", "a.localhost", "counter.test", "counter.internal", "127.0.0.1", "::1", "203.0.113.5"}
	cfg, _ := localConfig(t, t.TempDir(), domains...)
	tlsLn, plainLn := acmetest.Listen(t), acmetest.Listen(t)
	s := serve(t, cfg, tlsLn, plainLn)
	if err := s.Ready(); err != nil {
		t.Errorf("Ready = %v, want nil at once", err)
	}
	roots := trusting(t, cfg.Dir)
	for _, name := range domains {
		if ip := net.ParseIP(name); ip != nil {
			// crypto/tls sends no server name for an address, so the hello has only the connection's address.
			cert, err := s.getCertificate(&tls.ClientHelloInfo{Conn: connTo{addr: net.JoinHostPort(name, "443")}})
			if err != nil {
				t.Fatal(err)
			}
			if _, err := cert.Leaf.Verify(x509.VerifyOptions{DNSName: name, Roots: roots}); err != nil {
				t.Errorf("certificate for %s: %v", name, err)
			}
			if len(cert.Leaf.DNSNames) != 0 || len(cert.Leaf.IPAddresses) != 1 {
				t.Errorf("certificate for %s is for %v, want the one address", name, certs.Names(cert.Leaf))
			}
			continue
		}
		leaf := s.leaf(t, name, roots)
		if _, ok := leaf.PublicKey.(*ecdsa.PublicKey); !ok {
			t.Errorf("key for %s is a %T, want ECDSA", name, leaf.PublicKey)
		}
		if s.PubliclyTrusted(name) {
			t.Errorf("PubliclyTrusted(%s) = true for the local CA", name)
		}
	}
	if info, err := os.Stat(filepath.Join(cfg.Dir, "local-ca", "root-key.pem")); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("root-key.pem: %v, %v, want mode 0600", info.Mode(), err)
	}
	e := s.log.one("local certificates")
	if root := filepath.Join(cfg.Dir, "local-ca", "root.pem"); e.attrs["root"] != root || !strings.Contains(e.attrs["trust"], root) ||
		e.attrs["curl"] != "curl --cacert '"+root+"'" {
		t.Errorf("logged %v, want where the root is and how to trust it", e)
	}
}

func TestLocalReuse(t *testing.T) {
	t.Parallel()
	cfg, _ := localConfig(t, t.TempDir(), "localhost")
	first, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	second, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	if !first.local.Root().Equal(second.local.Root()) {
		t.Errorf("a restart made another root")
	}
	_, err = first.sites[0].current.Load().Leaf.Verify(x509.VerifyOptions{DNSName: "localhost", Roots: trusting(t, cfg.Dir)})
	if err != nil {
		t.Errorf("certificate from before the restart: %v", err)
	}
}

func TestLocalDamaged(t *testing.T) {
	t.Parallel()
	for _, name := range []string{"root.pem", "root-key.pem"} {
		for _, damage := range []string{"cut", "missing"} {
			cfg, log := localConfig(t, t.TempDir(), "localhost")
			if _, err := New(cfg); err != nil {
				t.Fatal(err)
			}
			path := filepath.Join(cfg.Dir, "local-ca", name)
			var err error
			if damage == "cut" {
				err = os.Truncate(path, 100)
			} else {
				err = os.Remove(path)
			}
			if err != nil {
				t.Fatal(err)
			}
			p, err := New(cfg)
			if err != nil {
				t.Fatalf("%s %s: New = %v, want nil: damage is not fatal", name, damage, err)
			}
			if _, err := p.sites[0].current.Load().Leaf.Verify(x509.VerifyOptions{Roots: trusting(t, cfg.Dir)}); err != nil {
				t.Errorf("%s %s: %v", name, damage, err)
			}
			if len(log.logged("local CA made anew")) != 1 {
				t.Errorf("%s %s: logged %v, want a warning that trust has to be renewed", name, damage, log.logged(""))
			}
		}
	}
}

// For eleven years, leaves are renewed with new keys. The root is replaced once, before it ends, with a warning.
func TestLocalYears(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		cfg, log := localConfig(t, dir, "localhost")
		p, err := New(cfg)
		if err != nil {
			t.Fatal(err)
		}
		firstRoot := p.local.Root()
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error)
		go func() { done <- p.Run(ctx) }()

		last := p.sites[0].current.Load().Leaf
		for month := range 12 * 11 {
			time.Sleep(30 * day)
			synctest.Wait()
			leaf := p.sites[0].current.Load().Leaf
			if leaf.Equal(last) || leaf.PublicKey.(*ecdsa.PublicKey).Equal(last.PublicKey) {
				t.Fatalf("month %d: same certificate or key as the month before", month)
			}
			last = leaf
			if err := p.Ready(); err != nil {
				t.Fatalf("month %d: Ready = %v", month, err)
			}
			if _, err := leaf.Verify(x509.VerifyOptions{DNSName: "localhost", Roots: trusting(t, dir), CurrentTime: time.Now()}); err != nil {
				t.Fatalf("month %d: %v", month, err)
			}
			replaced := len(log.logged("local CA replaced"))
			if early := firstRoot.NotAfter.Add(-localca.RootRenewal); time.Now().Before(early) && replaced != 0 {
				t.Fatalf("month %d: root replaced before %v", month, early)
			}
			if replaced > 1 {
				t.Fatalf("month %d: root replaced %d times, want once", month, replaced)
			}
		}
		if log.one("local CA replaced").level.String() != "WARN" {
			t.Errorf("root replaced without a warning")
		}
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run = %v, want nil", err)
		}
	})
	paths, err := filepath.Glob(filepath.Join(dir, "local-ca", "*"))
	if err != nil || len(paths) != 2 {
		t.Errorf("local-ca holds %v, %v, want root and key", paths, err)
	}
	for _, f := range paths {
		if data, err := os.ReadFile(f); err != nil || !bytes.HasPrefix(data, []byte("-----BEGIN ")) {
			t.Errorf("%s is no plain PEM file: %v", f, err)
		}
	}
}
