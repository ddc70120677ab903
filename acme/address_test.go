package acme

import (
	"crypto/tls"
	"encoding/json"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"plusminus/acme/internal/acmetest"
	"plusminus/acme/internal/challenge"
	"plusminus/acme/pebbletest"
)

// addressProfiles are profiles like those of Let's Encrypt, of which one is for addresses. Pebble chooses one at random for an
// order that names none.
var addressProfiles = map[string]time.Duration{"classic": 90 * day, AddressProfile: 160 * time.Hour}

// listenOn opens a listener on a loopback address. Without that address, the test is skipped.
func listenOn(t *testing.T, address string) net.Listener {
	t.Helper()
	ln, err := net.Listen("tcp", net.JoinHostPort(address, "0"))
	if err != nil {
		t.Skipf("this machine has no address %s: %v", address, err)
	}
	t.Cleanup(func() { ln.Close() })
	return ln
}

// An address is validated by each challenge alone. A visitor who trusts only the CA's root connects to it.
func TestAddress(t *testing.T) {
	t.Parallel()
	for _, address := range []string{"127.0.0.1", "::1"} {
		for _, test := range []struct {
			name       string
			tls, plain bool // which port the CA can reach
			orders     int
		}{
			{challenge.TLSALPN01, true, false, 1},
			{challenge.HTTP01, false, true, 2},
			{"both", true, true, 1},
		} {
			t.Run(address+" "+test.name, func(t *testing.T) {
				t.Parallel()
				tlsLn, plainLn := listenOn(t, address), listenOn(t, address)
				ports := pebbletest.Config{Profiles: addressProfiles, NonceReject: 20}
				if test.tls {
					ports.TLSPort = acmetest.Port(tlsLn)
				}
				if test.plain {
					ports.HTTPPort = acmetest.Port(plainLn)
				}
				ca, cfg := startCA(t, ports, address)
				cfg.Email = "admin@example.com"
				s := serve(t, cfg, tlsLn, plainLn)
				s.waitReady(t)
				acmetest.WaitFor(t, "renewal information", func() bool { return s.status(t, address).Renewal != nil })
				leaf := s.leaf(t, address, ca.IssuingRoots) // crypto/tls sends no server name for an address
				s.stop()
				if len(leaf.IPAddresses) != 1 || leaf.IPAddresses[0].String() != address || len(leaf.DNSNames) != 0 || leaf.Subject.CommonName != "" {
					t.Errorf("certificate for %v and %v with the common name %q, want only the address", leaf.IPAddresses, leaf.DNSNames, leaf.Subject.CommonName)
				}
				if life := leaf.NotAfter.Sub(leaf.NotBefore) + time.Second; life != 160*time.Hour {
					t.Errorf("certificate lives %v, want 160h", life)
				}
				for _, o := range ca.NewOrders() {
					if want := []pebbletest.Identifier{{Type: "ip", Value: address}}; !slices.Equal(o.Identifiers, want) || o.Profile != AddressProfile {
						t.Errorf("ordered %+v, want %v with the profile %q", o, want, AddressProfile)
					}
				}
				if test.orders == 1 && ca.FailedValidations() != 0 || test.orders == 2 && ca.FailedValidations() != 1 {
					t.Errorf("%d failed validations", ca.FailedValidations())
				}
				e := s.log.one("certificate obtained")
				if e.attrs["domain"] != address {
					t.Errorf("logged %v, want domain %s", e, address)
				}
				if !s.PubliclyTrusted(address) {
					t.Errorf("PubliclyTrusted = false for a certificate that the roots verify")
				}
				checkModes(t, cfg.Dir)

				// A restart uses what is stored.
				orders := ca.Orders()
				ca.Stop()
				p, err := New(cfg)
				if err != nil || p.Ready() != nil {
					t.Fatalf("after a restart: %v, %v", err, p.Ready())
				}
				if got := ca.Orders(); got != orders {
					t.Errorf("%d orders after a restart, want %d", got, orders)
				}
			})
		}
	}
}

// A renewal names the certificate that it replaces, has a new key, and begins with the challenge that succeeded before.
func TestAddressRenewed(t *testing.T) {
	t.Parallel()
	tlsLn, plainLn := acmetest.Listen(t), acmetest.Listen(t)
	ca, cfg := startCA(t, pebbletest.Config{HTTPPort: acmetest.Port(plainLn), Profiles: addressProfiles}, "127.0.0.1", domain)
	s := serve(t, cfg, tlsLn, plainLn)
	s.waitReady(t)
	acmetest.WaitFor(t, "renewal information", func() bool { return s.status(t, "127.0.0.1").Renewal != nil })
	first, failed, orders := s.leaf(t, "127.0.0.1", ca.IssuingRoots), ca.FailedValidations(), len(ca.NewOrders())
	if err := s.Renew(t.Context(), "127.0.0.1"); err != nil {
		t.Fatal(err)
	}
	second := s.leaf(t, "127.0.0.1", ca.IssuingRoots)
	if first.Equal(second) || string(first.RawSubjectPublicKeyInfo) == string(second.RawSubjectPublicKeyInfo) {
		t.Errorf("the renewed certificate is the same, or has the same key")
	}
	if got := ca.FailedValidations(); got != failed {
		t.Errorf("%d failed validations after the renewal, %d before", got, failed)
	}
	id, _ := certID(first)
	if all := ca.NewOrders(); len(all) != orders+1 || id == "" || all[orders].Replaces != id {
		t.Errorf("the renewal ordered %+v, want one order that replaces %q", all[orders:], id)
	}
	if s.leaf(t, domain, ca.IssuingRoots).VerifyHostname(domain) != nil {
		t.Errorf("a client that names %s does not get its certificate", domain)
	}
}

// An attempt for an address keeps to the plan as one for a name does.
func TestAddressFaults(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		name, path string
		fault      pebbletest.Fault
		orders     int // in all, also of the attempt that succeeds
		step       string
	}{
		{"order refused", pebbletest.NewOrderPath, pebbletest.Problem(429, "rateLimited", "too many", "1"), 2, "newOrder"},
		{"order cut", pebbletest.NewOrderPath, pebbletest.Drop, 2, "newOrder"},
		{"authorization cut", pebbletest.AuthorizationPath, pebbletest.Drop, 1, "tls-alpn-01"},
		{"challenge cut", pebbletest.ChallengePath, pebbletest.Drop, 1, "tls-alpn-01"},
		{"answer to finalize cut", pebbletest.FinalizePath, pebbletest.DropAnswer, 1, ""},
		{"finalize refused", pebbletest.FinalizePath, pebbletest.Problem(403, "caa", "not today", ""), 1, "finalize"},
		{"certificate cut", pebbletest.CertificatePath, pebbletest.Drop, 1, ""},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			tlsLn := acmetest.Listen(t)
			ca, cfg := startCA(t, pebbletest.Config{TLSPort: acmetest.Port(tlsLn), Profiles: addressProfiles}, "127.0.0.1")
			ca.Inject(test.path, 1, test.fault)
			s := serve(t, cfg, tlsLn, acmetest.Listen(t))
			if test.step != "" {
				s.waitFailure(t)
				if last := s.status(t, "127.0.0.1").LastError; last.Step != test.step {
					t.Errorf("failed in %q (%s), want %q", last.Step, last.Reason, test.step)
				}
				acmetest.WaitFor(t, "permission to renew", func() bool { return s.Renew(t.Context(), "127.0.0.1") == nil })
			}
			s.waitReady(t)
			if got := ca.Orders(); got != test.orders {
				t.Errorf("%d orders, want %d: an open order is continued", got, test.orders)
			}
		})
	}
}

// A CA that has no profile for addresses gets no order: it would refuse one with its default. No account is made, either.
func TestAddressProfileMissing(t *testing.T) {
	t.Parallel()
	ca, cfg := startCA(t, pebbletest.Config{}, "127.0.0.1")
	cfg.Profile = "default"
	s := serveLater(t, cfg)
	s.run()
	s.waitFailure(t)
	s.stop()
	const want = `nothing was ordered: an IP address needs the profile "shortlived", and the CA has only: default`
	if last := s.status(t, "127.0.0.1").LastError; last.Reason != want || last.Hint == "" || last.Step != "directory" {
		t.Errorf("failed with %+v, want %q and a hint", last, want)
	}
	if ca.Orders() != 0 || ca.Count(pebbletest.NewAccountPath) != 0 {
		t.Errorf("%d orders, %d accounts, want none", ca.Orders(), ca.Count(pebbletest.NewAccountPath))
	}
	if st := s.status(t, "127.0.0.1").CAs[0]; st.CertificatesLeft != maxIssued || st.ValidationsLeft != maxFailed {
		t.Errorf("%d certificates and %d validations left, want all", st.CertificatesLeft, st.ValidationsLeft)
	}
}

// A CA that knows no profiles, as most private ones, gets an order without.
func TestAddressWithoutProfiles(t *testing.T) {
	t.Parallel()
	tlsLn := acmetest.Listen(t)
	ca, cfg := startCA(t, pebbletest.Config{TLSPort: acmetest.Port(tlsLn)}, "127.0.0.1")
	ca.Intercept(pebbletest.DirectoryPath, func(w http.ResponseWriter, r *http.Request) {
		rec := httptest.NewRecorder()
		pebbletest.Forward(rec, r)
		var directory map[string]any
		if err := json.Unmarshal(rec.Body.Bytes(), &directory); err != nil {
			t.Error(err)
		}
		delete(directory["meta"].(map[string]any), "profiles")
		json.NewEncoder(w).Encode(directory)
	})
	s := serve(t, cfg, tlsLn, acmetest.Listen(t))
	s.waitReady(t)
	if orders := ca.NewOrders(); len(orders) != 1 || orders[0].Profile != "" {
		t.Errorf("ordered %+v, want one order without profile", orders)
	}
	if got := s.log.logged("certificate profile"); len(got) != 0 {
		t.Errorf("logged %v, though nobody asked for a profile", got)
	}
}

// Replicas on one folder place one order for an address, and the other one adopts its certificate.
func TestAddressReplicas(t *testing.T) {
	t.Parallel()
	tlsLn, otherLn := acmetest.Listen(t), acmetest.Listen(t)
	ca, cfg := startCA(t, pebbletest.Config{TLSPort: acmetest.Port(tlsLn), Profiles: addressProfiles}, "127.0.0.1")
	cfg.lookInterval = 20 * time.Millisecond
	one, two := prepare(t, cfg, tlsLn, acmetest.Listen(t)), prepare(t, cfg, otherLn, acmetest.Listen(t))
	one.run()
	two.run()
	one.waitReady(t)
	two.waitReady(t)
	if !one.leaf(t, "127.0.0.1", ca.IssuingRoots).Equal(two.leaf(t, "127.0.0.1", ca.IssuingRoots)) || ca.Orders() != 1 {
		t.Errorf("two certificates, or %d orders, want one", ca.Orders())
	}
}

// Without renewal information, a certificate of 160 hours is renewed when half of its life is left.
// https://letsencrypt.org/docs/integration-guide/#when-to-renew
func TestAddressRenewedAtHalf(t *testing.T) {
	t.Parallel()
	const address = "2001:db8::7"
	ca, cfg := startCA(t, pebbletest.Config{AlwaysValid: true, Profiles: addressProfiles}, address)
	ca.Intercept(pebbletest.RenewalInfoPath, pebbletest.Problem(404, "malformed", "no such thing", ""))
	cfg.lookInterval = time.Minute
	dir := t.TempDir()
	pacePolls(t, ca)
	synctest.Test(t, func(t *testing.T) {
		p, stop := runInBubble(t, cfg, dir, ca)
		defer stop()
		sleep(time.Minute)
		first := p.Status()[0]
		if first.Problem != "" {
			t.Fatal(first.Problem)
		}
		half := first.NotBefore.Add(80*time.Hour - time.Second/2) // Pebble's certificates live a second less than 160 hours
		sleep(time.Until(half) - time.Minute)
		if got := p.Status()[0]; got.Serial != first.Serial {
			t.Errorf("renewed before half of its life, at %v", got.NotBefore)
		}
		sleep(2 * time.Minute)
		if got := p.Status()[0]; got.Serial == first.Serial || got.Problem != "" {
			t.Errorf("not renewed at half of its life: %+v", got)
		}
		if _, err := os.Stat(filepath.Join(dir, "acme")); err != nil {
			t.Error(err)
		}
		files, err := filepath.Glob(filepath.Join(dir, "acme", "*", "2001_db8__7*"))
		if err != nil || len(files) == 0 {
			t.Errorf("files of %s: %v, %v", address, files, err)
		}
	})
}

// What a client gets that names no server.
func TestNoServerName(t *testing.T) {
	t.Parallel()
	cfg, _ := localConfig(t, t.TempDir(), "counter.test", "2001:db8::1", "192.0.2.1", "192.0.2.2")
	p, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	got := func(to string) string {
		t.Helper()
		cert, err := p.getCertificate(&tls.ClientHelloInfo{Conn: connTo{addr: to}})
		if err != nil {
			t.Fatal(err)
		}
		for _, name := range p.sites {
			if cert.Leaf.VerifyHostname(name.name) == nil {
				return name.name
			}
		}
		return ""
	}
	for to, want := range map[string]string{
		"192.0.2.2:443":          "192.0.2.2",
		"[::ffff:192.0.2.2]:443": "192.0.2.2",
		"[2001:db8::1]:443":      "2001:db8::1",
		"172.17.0.2:443":         "192.0.2.1", // in a container
		"[fd00::2]:443":          "2001:db8::1",
		"@unix":                  "2001:db8::1",
	} {
		if got := got(to); got != want {
			t.Errorf("a client connected to %s gets the certificate for %q, want %q", to, got, want)
		}
	}
	p.byName["192.0.2.1"].current.Store(nil)
	if got := got("172.17.0.2:443"); got != "192.0.2.2" {
		t.Errorf("without the first address a client gets %q, want the second", got)
	}
	for _, s := range p.sites[1:] {
		s.current.Store(nil)
	}
	if got := got("172.17.0.2:443"); got != "counter.test" {
		t.Errorf("without any address a client gets %q, want the name", got)
	}
	if cert, err := p.getCertificate(&tls.ClientHelloInfo{Conn: connTo{addr: "192.0.2.2:443"}}); err == nil {
		t.Errorf("a client of an address without certificate gets one for %v", cert.Leaf.DNSNames)
	}
}

// An address that the local CA certifies is told, and why.
func TestLocalAddressLogged(t *testing.T) {
	t.Parallel()
	cfg, _ := localConfig(t, t.TempDir(), "203.0.113.7", "counter.test")
	s := serve(t, cfg, acmetest.Listen(t), acmetest.Listen(t))
	acmetest.WaitFor(t, "log line", func() bool { return len(s.log.logged("no public CA")) > 0 })
	if e := s.log.one("no public CA"); e.attrs["domain"] != "203.0.113.7" || !strings.Contains(e.attrs["reason"], "documentation") {
		t.Errorf("logged %v", e)
	}
}
