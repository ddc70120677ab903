package acme

import (
	"crypto/ecdsa"
	"crypto/rsa"
	"crypto/tls"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"plusminus/acme/internal/acmetest"
	"plusminus/acme/internal/store"
	"plusminus/acme/pebbletest"
)

// A certificate that another account has obtained from the same CA is served at once and stored, without an order. The renewal
// names it in `replaces`. The CA refuses that, and the same attempt orders without. Later starts do not look at certbot's
// folder.
func TestImport(t *testing.T) {
	t.Parallel()
	tlsLn := acmetest.Listen(t)
	ca, cfg := startCA(t, pebbletest.Config{TLSPort: acmetest.Port(tlsLn)}, domain)
	certbots := serve(t, cfg, tlsLn, acmetest.Listen(t))
	certbots.waitReady(t)
	certbots.stop()
	old := *certbots.Served(domain)
	folder := t.TempDir()
	path := acmetest.Lineage(t, folder, domain+"-0001", old)
	certbots.tls.Close()

	cfg.Dir, cfg.ImportDir = t.TempDir(), folder
	s := prepare(t, cfg, listenAgain(t, tlsLn), acmetest.Listen(t))
	if c := s.Served(domain); c == nil || !c.Leaf.Equal(old.Leaf) {
		t.Fatalf("before Run, %v is served, want the certificate of certbot", c)
	}
	e := s.log.one("certificate taken over from certbot")
	if e.attrs["folder"] != path || e.attrs["not_after"] == "" || e.attrs["renewal"] == "" {
		t.Errorf("logged %v, want the folder, and the times of end and renewal", e)
	}
	s.run()
	if leaf := s.leaf(t, domain, ca.IssuingRoots); !leaf.Equal(old.Leaf) {
		t.Error("visitors get another certificate")
	}
	acmetest.WaitFor(t, "renewal information", func() bool { return s.status(t, domain).Renewal != nil })
	if got := ca.Orders(); got != 1 {
		t.Errorf("%d orders, want only that of the other account", got)
	}
	s.stop()

	// The next start has a stored certificate, and the folder is of no interest.
	if err := os.RemoveAll(folder); err != nil {
		t.Fatal(err)
	}
	s.tls.Close()
	s = prepare(t, cfg, listenAgain(t, tlsLn), acmetest.Listen(t))
	s.run()
	if c := s.Served(domain); c == nil || !c.Leaf.Equal(old.Leaf) || len(s.log.logged("certbot")) > 0 {
		t.Errorf("a later start serves %v and logs %v", c, s.log.logged("certbot"))
	}
	acmetest.WaitFor(t, "renewal information", func() bool { return s.status(t, domain).Renewal != nil })
	began := time.Now()
	if err := s.Renew(t.Context(), domain); err != nil {
		t.Fatal(err)
	}
	t.Logf("renewed within %v", time.Since(began))
	st := s.status(t, domain)
	if st.LastError != nil || st.CAs[0].Failures != 0 || st.CAs[0].CertificatesLeft != 4 {
		t.Errorf("after the renewal: %+v, want no failure and one certificate of the budget spent", st)
	}
	id, _ := certID(old.Leaf)
	var replaces []string
	for _, o := range ca.NewOrders() {
		replaces = append(replaces, o.Replaces)
	}
	if !slices.Equal(replaces, []string{"", id, ""}) {
		t.Errorf("the orders name %q as replaced, want the first, then %q, which is refused, and then none", replaces, id)
	}
	refused := s.log.one("order placed without naming the certificate that it replaces")
	t.Log(refused)
}

// listenAgain listens on the address of ln, which is closed. That is where the CA asks.
func listenAgain(t *testing.T, ln net.Listener) net.Listener {
	t.Helper()
	again, err := net.Listen("tcp", ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { again.Close() })
	return again
}

// An RSA key is served, stored and read again. A certificate that is due is renewed at once, with a key of our own.
func TestImportRSA(t *testing.T) {
	t.Parallel()
	tlsLn := acmetest.Listen(t)
	ca, cfg := startCA(t, pebbletest.Config{TLSPort: acmetest.Port(tlsLn)}, domain)
	issuer := acmetest.NewIssuer(t)
	cert := issuer.IssueRSA(t, 90*day, domain, "www."+domain)
	folder := t.TempDir()
	acmetest.Lineage(t, folder, "www."+domain, cert)
	cfg.ImportDir = folder
	for range 2 { // the second start reads what the first has stored
		s := serveLater(t, cfg)
		for _, version := range []uint16{tls.VersionTLS12, tls.VersionTLS13} {
			c, err := s.dial(t, &tls.Config{ServerName: domain, RootCAs: issuer.Roots(), MaxVersion: version})
			if err != nil {
				t.Fatal(err)
			}
			if _, ok := c.ConnectionState().PeerCertificates[0].PublicKey.(*rsa.PublicKey); !ok {
				t.Error("visitors get another key")
			}
		}
	}

	// The same, with a certificate of which less than half of its life is left.
	now := time.Now()
	due := acmetest.SelfSigned(t, domain, now.Add(-60*day), now.Add(20*day))
	cfg.Dir, cfg.ImportDir = t.TempDir(), t.TempDir()
	acmetest.Lineage(t, cfg.ImportDir, domain, due)
	s := prepare(t, cfg, tlsLn, acmetest.Listen(t))
	if !s.Served(domain).Leaf.Equal(due.Leaf) {
		t.Error("a certificate that is due is not taken over")
	}
	s.run()
	acmetest.WaitFor(t, "renewal", func() bool { return !s.Served(domain).Leaf.Equal(due.Leaf) })
	if _, ok := s.leaf(t, domain, ca.IssuingRoots).PublicKey.(*ecdsa.PublicKey); !ok || ca.Orders() != 1 {
		t.Errorf("%d orders, want one, for an ECDSA key", ca.Orders())
	}
}

// What is not taken over is said, each in one line. That a lineage is for other names matters only if a domain goes without.
func TestImportSkips(t *testing.T) {
	t.Parallel()
	_, cfg := startCA(t, pebbletest.Config{}, domain)
	issuer := acmetest.NewIssuer(t)
	cfg.ImportDir = t.TempDir()
	other := acmetest.Lineage(t, cfg.ImportDir, "other.example", issuer.Issue(t, 90*day, "other.example"))
	now := time.Now()
	expired := acmetest.Lineage(t, cfg.ImportDir, domain, acmetest.SelfSigned(t, domain, now.Add(-2*day), now.Add(-day)))

	s := serveLater(t, cfg)
	if s.Served(domain) != nil {
		t.Error("an expired certificate was taken over")
	}
	levels := make(map[string]string)
	for _, e := range s.log.logged("certificate of certbot not taken over") {
		levels[e.attrs["folder"]] = e.level.String() + " " + e.attrs["reason"]
	}
	if len(levels) != 2 || levels[other] != "INFO the certificate is for other names: other.example" || !strings.HasPrefix(levels[expired], "WARN the certificate expired at ") {
		t.Errorf("logged %q", levels)
	}
	s.log.one("no certificate to take over: ordering one")

	acmetest.Lineage(t, cfg.ImportDir, domain+"-0001", issuer.Issue(t, 90*day, domain))
	s = serveLater(t, cfg)
	if s.Served(domain) == nil {
		t.Error("nothing was taken over")
	}
	for _, e := range s.log.logged("certificate of certbot not taken over") {
		if want := map[string]string{other: "DEBUG", expired: "WARN"}[e.attrs["folder"]]; e.level.String() != want {
			t.Errorf("logged %v, want level %s", e, want)
		}
	}
}

// Replicas that start together on one data folder take one certificate over. It stays when one replica is told nothing of certbot.
func TestImportReplicas(t *testing.T) {
	t.Parallel()
	ca, cfg := startCA(t, pebbletest.Config{}, domain)
	cfg.ImportDir = t.TempDir()
	cert := acmetest.NewIssuer(t).Issue(t, 90*day, domain)
	acmetest.Lineage(t, cfg.ImportDir, domain, cert)
	log := &recorder{t: t}
	cfg.Logger = newLogger(log)
	var starting sync.WaitGroup
	for i := range 8 {
		starting.Go(func() {
			cfg := cfg
			if i == 0 {
				cfg.ImportDir = ""
			}
			p, err := New(cfg)
			if err != nil {
				t.Error(err)
			} else if c := p.Served(domain); i > 0 && (c == nil || !c.Leaf.Equal(cert.Leaf)) {
				t.Errorf("replica %d serves %v", i, c)
			}
		})
	}
	starting.Wait()
	log.one("certificate taken over from certbot")
	if got := ca.Orders(); got != 0 {
		t.Errorf("%d orders", got)
	}
}

// With a shared store the certificate is stored there, sealed, for all replicas. If the store is away it is served all the same,
// and stored when the store is back.
func TestImportShared(t *testing.T) {
	t.Parallel()
	srv, ca, cfg, tlsLn, plainLn := startShared(t)
	cert := acmetest.NewIssuer(t).Issue(t, 90*day, domain)
	cfg.ImportDir = t.TempDir()
	acmetest.Lineage(t, cfg.ImportDir, domain, cert)

	srv.Kill()
	s := serve(t, cfg, tlsLn, plainLn)
	if c := s.Served(domain); c == nil || !c.Leaf.Equal(cert.Leaf) {
		t.Errorf("%v is served while the store is away", c)
	}
	s.log.one("certificate of certbot not stored: trying again every minute")
	srv.Restart()
	s.stop() // keep would try again within a minute
	for _, name := range []string{"stored", "read"} {
		other := cfg
		shareThrough(t, srv, &other)
		if name == "read" {
			other.ImportDir = filepath.Join(cfg.ImportDir, "none")
		}
		r := serveLater(t, other)
		if c := r.Served(domain); c == nil || !c.Leaf.Equal(cert.Leaf) {
			t.Errorf("%s: another replica serves %v", name, c)
		}
		if n := len(r.log.logged("certbot")); (n > 0) != (name == "stored") {
			t.Errorf("%s: %d lines about certbot", name, n)
		}
	}
	if data := srv.Do("HGET", sharedKey(ca, domain), "data"); !strings.HasPrefix(data, store.SealMagic) {
		t.Error("the entry is not sealed")
	}
	if got := ca.Orders(); got != 0 {
		t.Errorf("%d orders", got)
	}
}
