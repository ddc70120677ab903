package acme

import (
	"bufio"
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	xacme "golang.org/x/crypto/acme"

	"plusminus/acme/internal/acmetest"
	"plusminus/acme/internal/certs"
	"plusminus/acme/internal/store"
	"plusminus/acme/pebbletest"
)

const domain = "counter.example.com"

func TestObtain(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		name       string
		tls, plain bool // which port the CA can reach
		orders     int  // autocert places one for each challenge that it tries
	}{
		{"tls-alpn-01 only", true, false, 1},
		{"http-01 only", false, true, 2},
		{"both", true, true, 1},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			tlsLn, plainLn := acmetest.Listen(t), acmetest.Listen(t)
			var ports pebbletest.Config
			if test.tls {
				ports.TLSPort = acmetest.Port(tlsLn)
			}
			if test.plain {
				ports.HTTPPort = acmetest.Port(plainLn)
			}
			ca, cfg := startCA(t, ports, domain)
			s := serve(t, cfg, tlsLn, plainLn)
			acmetest.WaitFor(t, "renewal information", func() bool { return s.status(t, domain).Renewal != nil })
			s.stop() // nothing more is logged

			leaf := s.leaf(t, domain, ca.IssuingRoots)
			if pub, ok := leaf.PublicKey.(*ecdsa.PublicKey); !ok || pub.Curve != elliptic.P256() {
				t.Errorf("key is a %T, want P-256", leaf.PublicKey)
			}
			if got := ca.Orders(); got != test.orders {
				t.Errorf("%d orders, want %d", got, test.orders)
			}
			if !s.PubliclyTrusted(domain) {
				t.Errorf("PubliclyTrusted = false for a certificate that the roots verify")
			}
			e := s.log.one("certificate obtained")
			if e.attrs["domain"] != domain || e.attrs["not_after"] == "" || e.attrs["issuer"] == "" || e.attrs["took"] == "" {
				t.Errorf("logged %v, want domain, not_after, issuer, took", e)
			}
			s.log.one("the CA says when to renew")
			if all := s.log.logged(""); len(all) != 2 {
				t.Errorf("logged %v, want these two entries", all)
			}
			st := s.status(t, domain)
			if st.Source != "acme" || st.Directory != ca.DirectoryURL || !st.NotAfter.Equal(leaf.NotAfter) ||
				st.Serial != fmt.Sprintf("%x", leaf.SerialNumber.Bytes()) || st.Issuer != leaf.Issuer.String() || st.LastError != nil {
				t.Errorf("Status = %+v does not fit the certificate", st)
			}
			if st.Renewal == nil || !st.NextAttempt.Equal(st.Renewal.Start) || st.NextAction != "renew" { // random is 0
				t.Errorf("%q planned at %v, want a renewal in %+v", st.NextAction, st.NextAttempt, st.Renewal)
			}
			checkModes(t, cfg.Dir)
		})
	}
}

// checkModes checks that only the owner can read the files in dir.
func checkModes(t *testing.T, dir string) {
	t.Helper()
	count := 0
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		want := fs.FileMode(0o600)
		if d.IsDir() {
			want = 0o700
		} else {
			count++
		}
		if path != dir && info.Mode().Perm() != want { // the test made dir itself
			t.Errorf("%s has mode %v, want %v", path, info.Mode().Perm(), want)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if count != 6 { // the account key and its copy, certificate, plan, two locks
		t.Errorf("%d files in the data folder, want 6", count)
	}
}

func TestBothPortsClosed(t *testing.T) {
	t.Parallel()
	ca, cfg := startCA(t, pebbletest.Config{}, domain)
	s := serve(t, cfg, acmetest.Listen(t), acmetest.Listen(t))
	s.waitFailure(t)

	e := s.log.one("no certificate obtained")
	if e.level.String() != "ERROR" {
		t.Errorf("logged at %v, want ERROR: there is no certificate", e.level)
	}
	for _, want := range []string{
		"tls-alpn-01: unauthorized: Failed to connect to 127.0.0.1:1 for the tls-alpn-01 challenge", // Pebble's words
		"http-01: connection: ", "connect: connection refused",
	} {
		if !strings.Contains(e.attrs["err"], want) {
			t.Errorf("err = %q, want it to contain %q", e.attrs["err"], want)
		}
		if ready := s.Ready(); ready == nil || !strings.Contains(ready.Error(), want) {
			t.Errorf("Ready = %v, want it to contain %q", ready, want)
		}
	}
	if strings.Contains(e.attrs["err"], "\n") {
		t.Errorf("err = %q is more than a line", e.attrs["err"])
	}
	if want := "connection refused on port 80: is it published?"; !strings.Contains(e.attrs["hint"], want) {
		t.Errorf("hint = %q, want it to contain %q", e.attrs["hint"], want)
	}
	st := s.status(t, domain)
	if got := st.NextAttempt.Sub(st.LastError.When); got != time.Minute {
		t.Errorf("next attempt %v after the failure, want 1m", got)
	}
	if want := "next attempt at " + st.NextAttempt.UTC().Format(time.RFC3339); !strings.Contains(s.Ready().Error(), want) {
		t.Errorf("Ready = %v, want it to contain %q", s.Ready(), want)
	}
	if got := ca.Orders(); got != 2 {
		t.Errorf("%d orders, want one for each challenge", got)
	}

	// A visitor gets an alert at once, and causes no order.
	const internalError = 80
	if _, err := s.dial(t, &tls.Config{ServerName: domain}); !isAlert(err, internalError) {
		t.Errorf("handshake without a certificate: %v, want alert internal_error", err)
	}
	_, err := s.getCertificate(&tls.ClientHelloInfo{ServerName: domain})
	if err == nil || !strings.Contains(err.Error(), "no certificate for "+domain+" yet") {
		t.Errorf("getCertificate = %v, want an error that says that there is none yet", err)
	}
	if got := ca.Orders(); got != 2 {
		t.Errorf("%d orders after a visit, want 2", got)
	}
	if got := st.CAs[0].ValidationsLeft; got != maxFailed-2 {
		t.Errorf("%d more validations may fail within the hour, want %d", got, maxFailed-2)
	}
}

func TestRestart(t *testing.T) {
	t.Parallel()
	tlsLn, plainLn := acmetest.Listen(t), acmetest.Listen(t)
	ca, cfg := startCA(t, pebbletest.Config{TLSPort: acmetest.Port(tlsLn)}, domain)
	first := serve(t, cfg, tlsLn, plainLn)
	first.waitReady(t)
	serial := first.status(t, domain).Serial
	first.stop()
	ca.Stop() // a restart must not need it

	second := serve(t, cfg, acmetest.Listen(t), acmetest.Listen(t))
	if err := second.Ready(); err != nil {
		t.Errorf("Ready after restart = %v, want nil at once", err)
	}
	if got := fmt.Sprintf("%x", second.leaf(t, domain, ca.IssuingRoots).SerialNumber.Bytes()); got != serial {
		t.Errorf("serial %s after restart, want %s", got, serial)
	}
	if got := ca.Orders(); got != 1 {
		t.Errorf("%d orders, want 1", got)
	}
	if !second.issuers[0].key.Equal(first.issuers[0].key) {
		t.Errorf("restart made another account key")
	}
	if all := second.log.logged("obtained"); len(all) != 0 {
		t.Errorf("restart logged %v, want nothing of obtaining", all)
	}
}

// State of different CA directories is kept apart: changing to staging and back loses nothing.
func TestDirectoriesApart(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	lnA, lnB := acmetest.Listen(t), acmetest.Listen(t)
	caA := pebbletest.Start(t, pebbletest.Config{TLSPort: acmetest.Port(lnA)})
	caB := pebbletest.Start(t, pebbletest.Config{TLSPort: acmetest.Port(lnB)})

	a := serve(t, configFor(t, caA, dir, domain), lnA, acmetest.Listen(t))
	a.waitReady(t)
	serial := a.status(t, domain).Serial
	a.stop()

	b := serve(t, configFor(t, caB, dir, domain), lnB, acmetest.Listen(t))
	if b.Ready() == nil {
		t.Errorf("the second CA's server is ready with the first one's certificate")
	}
	b.waitReady(t)
	b.leaf(t, domain, caB.IssuingRoots) // verifies
	b.stop()
	if b.issuers[0].key.Equal(a.issuers[0].key) {
		t.Errorf("two CAs were told the same account key")
	}

	back := serve(t, configFor(t, caA, dir, domain), acmetest.Listen(t), acmetest.Listen(t))
	if got := back.status(t, domain).Serial; got != serial {
		t.Errorf("serial %s with the first CA again, want %s as before", got, serial)
	}
	if caA.Orders() != 1 || caB.Orders() != 1 {
		t.Errorf("%d and %d orders, want 1 each", caA.Orders(), caB.Orders())
	}
}

func TestSeveralDomains(t *testing.T) {
	t.Parallel()
	var domains []string
	for i := range maxAttempts + 2 {
		domains = append(domains, fmt.Sprintf("d%d.example.com", i))
	}
	tlsLn, plainLn := acmetest.Listen(t), acmetest.Listen(t)
	ca, cfg := startCA(t, pebbletest.Config{TLSPort: acmetest.Port(tlsLn)}, append(domains, "counter.test")...)
	s := serve(t, cfg, tlsLn, plainLn)
	s.waitReady(t)
	for _, d := range domains {
		if leaf := s.leaf(t, d, ca.IssuingRoots); len(leaf.DNSNames) != 1 || leaf.DNSNames[0] != d {
			t.Errorf("certificate for %s is for %v", d, leaf.DNSNames)
		}
	}
	if got := ca.Orders(); got != len(domains) {
		t.Errorf("%d orders, want %d", got, len(domains))
	}
	if s.PubliclyTrusted("counter.test") || !s.PubliclyTrusted(domains[0]) || s.PubliclyTrusted("other.example.com") {
		t.Errorf("PubliclyTrusted is not exactly for the ACME domains")
	}
}

// Attempts of several domains send newAccount one after the other: a CA may fail two at the same time.
func TestRegistersOneAtATime(t *testing.T) {
	t.Parallel()
	domains := []string{"a.example.com", "b.example.com", "c.example.com", "d.example.com"}
	ca, cfg := startCA(t, pebbletest.Config{}, domains...)
	refuse := pebbletest.Problem(403, "unauthorized", "no", "")
	var now, most atomic.Int64
	ca.Intercept(pebbletest.NewAccountPath, func(w http.ResponseWriter, r *http.Request) {
		if n := now.Add(1); n > most.Load() {
			most.Store(n)
		}
		time.Sleep(20 * time.Millisecond) // gives a second request time to arrive
		now.Add(-1)
		refuse(w, r)
	})
	s := serve(t, cfg, acmetest.Listen(t), acmetest.Listen(t))
	acmetest.WaitFor(t, "failure of all", func() bool { return len(s.log.logged("no certificate obtained")) == len(domains) })
	if got := most.Load(); got != 1 {
		t.Errorf("%d newAccount requests at once, want 1", got)
	}
}

// A renewal makes a new key, reaches the next visitor, and leaves open connections alone.
func TestRenewal(t *testing.T) {
	t.Parallel()
	tlsLn, plainLn := acmetest.Listen(t), acmetest.Listen(t)
	ca, cfg := startCA(t, pebbletest.Config{
		TLSPort:  acmetest.Port(tlsLn),
		Profiles: map[string]time.Duration{"seconds": 6 * time.Second},
	}, domain)
	s := serve(t, cfg, tlsLn, plainLn)
	s.waitReady(t)

	conn, err := s.dial(t, &tls.Config{ServerName: domain, RootCAs: ca.IssuingRoots})
	if err != nil {
		t.Fatal(err)
	}
	old := conn.ConnectionState().PeerCertificates[0]
	answers := bufio.NewReader(conn)
	visit := func() {
		t.Helper()
		fmt.Fprintf(conn, "GET / HTTP/1.1\r\nHost: %s\r\n\r\n", domain)
		res, err := http.ReadResponse(answers, nil)
		if err != nil {
			t.Fatalf("request on the old connection: %v", err)
		}
		if body, err := io.ReadAll(res.Body); err != nil || string(body) != "hello" {
			t.Fatalf("answer on the old connection = %q, %v, want hello", body, err)
		}
	}
	visit()

	// Visitors connect all the time. Each of them must be served.
	ctx, cancel := context.WithCancel(t.Context())
	var visitors sync.WaitGroup
	for range 2 {
		visitors.Go(func() {
			for ctx.Err() == nil {
				if c, err := s.dial(t, &tls.Config{ServerName: domain, InsecureSkipVerify: true}); err != nil {
					t.Errorf("handshake during renewals: %v", err)
				} else {
					c.Close()
				}
				time.Sleep(time.Millisecond)
			}
		})
	}
	acmetest.WaitFor(t, "second renewal", func() bool { return len(s.log.logged("certificate renewed")) >= 2 })
	s.stop()
	cancel()
	visitors.Wait()
	visit()

	renewed, err := s.getCertificate(&tls.ClientHelloInfo{ServerName: domain})
	if err != nil {
		t.Fatal(err)
	}
	leaf := renewed.Leaf
	if leaf.SerialNumber.Cmp(old.SerialNumber) == 0 {
		t.Errorf("the certificate served is still the first one")
	}
	if leaf.PublicKey.(*ecdsa.PublicKey).Equal(old.PublicKey) {
		t.Errorf("the renewal kept the key")
	}
	certificates := 1 + len(s.log.logged("certificate renewed"))
	if got := ca.Orders(); got < certificates || got > certificates+1 { // stop may have interrupted one
		t.Errorf("%d orders for %d certificates, want one for each", got, certificates)
	}
}

// Every kind of hello gets the ECDSA certificate or an alert, and causes no order.
func TestHellos(t *testing.T) {
	t.Parallel()
	tlsLn, plainLn := acmetest.Listen(t), acmetest.Listen(t)
	ca, cfg := startCA(t, pebbletest.Config{TLSPort: acmetest.Port(tlsLn)}, domain, "second.example.com")
	cfg.Domains = append(cfg.Domains, Domain{Name: "127.0.0.2", Local: true})
	s := serve(t, cfg, tlsLn, plainLn)
	s.waitReady(t)
	orders := ca.Orders()

	const handshakeFailure, protocolVersion, unrecognizedName = 40, 70, 112
	for _, test := range []struct {
		name  string
		cfg   *tls.Config
		want  string // the name in the certificate
		alert tls.AlertError
	}{
		{"TLS 1.3 only", &tls.Config{ServerName: domain, MinVersion: tls.VersionTLS13}, domain, 0},
		{"TLS 1.2 only", &tls.Config{ServerName: domain, MaxVersion: tls.VersionTLS12}, domain, 0},
		{"X25519 only", &tls.Config{ServerName: domain, CurvePreferences: []tls.CurveID{tls.X25519}}, domain, 0},
		{"no SNI", &tls.Config{}, "127.0.0.2", 0},
		{"second domain", &tls.Config{ServerName: "second.example.com"}, "second.example.com", 0},
		{"upper case", &tls.Config{ServerName: "Second.Example.COM"}, "second.example.com", 0},
		{"HTTP/1.1", &tls.Config{ServerName: domain, NextProtos: []string{"http/1.1"}}, domain, 0},
		{"browser", &tls.Config{ServerName: domain, NextProtos: []string{"h2", "http/1.1"}}, domain, 0},
		{"acme-tls/1 among others", &tls.Config{ServerName: domain, NextProtos: []string{xacme.ALPNProto, "http/1.1"}}, domain, 0},
		{"unknown SNI", &tls.Config{ServerName: "other.example.com"}, "", unrecognizedName},
		{"RSA only", &tls.Config{ServerName: domain, MaxVersion: tls.VersionTLS12,
			CipherSuites: []uint16{tls.TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256}}, "", handshakeFailure},
		{"TLS 1.1", &tls.Config{ServerName: domain, MinVersion: tls.VersionTLS10, MaxVersion: tls.VersionTLS11}, "", protocolVersion},
	} {
		t.Run(test.name, func(t *testing.T) {
			test.cfg.InsecureSkipVerify = true // the test checks only the name
			c, err := s.dial(t, test.cfg)
			if test.alert != 0 {
				if !isAlert(err, test.alert) {
					t.Errorf("handshake: %v, want alert %v", err, test.alert)
				}
				return
			}
			if err != nil {
				t.Fatalf("handshake: %v", err)
			}
			leaf := c.ConnectionState().PeerCertificates[0]
			if err := leaf.VerifyHostname(test.want); err != nil {
				t.Errorf("certificate: %v", err)
			}
			if _, ok := leaf.PublicKey.(*ecdsa.PublicKey); !ok {
				t.Errorf("key is a %T, want ECDSA", leaf.PublicKey)
			}
			if len(test.cfg.NextProtos) > 0 {
				if got := c.ConnectionState().NegotiatedProtocol; got != "http/1.1" {
					t.Errorf("protocol %q, want http/1.1", got)
				}
			}
		})
	}

	t.Run("no SNI to an address that is a domain", func(t *testing.T) {
		for addr, want := range map[string]string{"127.0.0.2:443": "127.0.0.2", "[::ffff:127.0.0.2]:443": "127.0.0.2", "127.0.0.3:443": "127.0.0.2"} {
			cert, err := s.getCertificate(&tls.ClientHelloInfo{Conn: connTo{addr: addr}})
			if err != nil {
				t.Fatal(err)
			}
			if err := cert.Leaf.VerifyHostname(want); err != nil {
				t.Errorf("connected to %s: %v", addr, err)
			}
		}
	})
	t.Run("challenge that is not ours", func(t *testing.T) {
		_, err := s.dial(t, &tls.Config{ServerName: domain, NextProtos: []string{xacme.ALPNProto}, InsecureSkipVerify: true})
		if err == nil {
			t.Errorf("a challenge without a token was answered")
		}
	})
	if got := ca.Orders(); got != orders {
		t.Errorf("%d orders after the visits, want the %d before", got, orders)
	}
}

// isAlert reports whether err is the given alert from the other side, for which crypto/tls exports no type.
func isAlert(err error, alert tls.AlertError) bool {
	return err != nil && err.Error() == "remote error: "+alert.Error()
}

// connTo is a connection that has only a local address.
type connTo struct {
	net.Conn
	addr string
}

func (c connTo) LocalAddr() net.Addr { return c }
func (c connTo) Network() string     { return "tcp" }
func (c connTo) String() string      { return c.addr }

func TestHTTPHandler(t *testing.T) {
	t.Parallel()
	_, cfg := startCA(t, pebbletest.Config{}, domain)
	p, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	if err := p.tokens.Put(t.Context(), "token+http-01", []byte("token.thumbprint")); err != nil {
		t.Fatal(err)
	}
	h := p.HTTPHandler(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { w.WriteHeader(http.StatusTeapot) }))
	for _, test := range []struct {
		url    string
		status int
	}{
		{"http://" + domain + "/.well-known/acme-challenge/token", 200},
		{"http://" + strings.ToUpper(domain) + ":5002/.well-known/acme-challenge/token", 200},
		{"http://" + domain + "/.well-known/acme-challenge/other", 404},
		{"http://other.example.com/.well-known/acme-challenge/token", 403},
		{"http://" + domain + "/", http.StatusTeapot},
		{"http://other.example.com/.well-known/", http.StatusTeapot},
	} {
		req, err := http.NewRequest("GET", test.url, nil)
		if err != nil {
			t.Fatal(err)
		}
		w := &answerWriter{header: make(http.Header), status: 200}
		h.ServeHTTP(w, req)
		if w.status != test.status {
			t.Errorf("GET %s = %d, want %d", test.url, w.status, test.status)
		}
		if test.status == 200 && w.body.String() != "token.thumbprint" {
			t.Errorf("GET %s = %q, want the key authorization", test.url, w.body.String())
		}
	}
}

type answerWriter struct {
	header http.Header
	status int
	body   bytes.Buffer
}

func (w *answerWriter) Header() http.Header         { return w.header }
func (w *answerWriter) WriteHeader(status int)      { w.status = status }
func (w *answerWriter) Write(b []byte) (int, error) { return w.body.Write(b) }

// A damaged file costs at most one order, whatever the damage.
func TestDamagedFiles(t *testing.T) {
	t.Parallel()
	tlsLn, plainLn := acmetest.Listen(t), acmetest.Listen(t)
	ca, cfg := startCA(t, pebbletest.Config{TLSPort: acmetest.Port(tlsLn)}, domain)
	first := serve(t, cfg, tlsLn, plainLn)
	first.waitReady(t)
	first.stop()
	good, err := os.ReadFile(filepath.Join(first.issuers[0].store.(*store.Folder).Dir(), domain))
	if err != nil {
		t.Fatal(err)
	}
	goodKey, err := os.ReadFile(filepath.Join(first.issuers[0].store.(*store.Folder).Dir(), store.AccountKey))
	if err != nil {
		t.Fatal(err)
	}
	leafEnd := bytes.Index(good, []byte("-----END CERTIFICATE-----\n")) + len("-----END CERTIFICATE-----\n")
	if bytes.Count(good, []byte("BEGIN CERTIFICATE")) != 2 || len(good) == leafEnd {
		t.Fatalf("stored file does not hold a leaf and an intermediate")
	}

	for _, test := range []struct {
		name, file string
		data       []byte
	}{
		{"empty", domain, nil},
		{"cut in the middle", domain, good[:len(good)/2]},
		{"cut after the leaf", domain, good[:leafEnd]},
		{"flipped bit", domain, flip(good, len(good)/2)},
		{"no checksum", domain, good[bytes.IndexByte(good, '\n')+1:]},
		{"another domain's", domain, otherPair(t)},
		{"account key cut", store.AccountKey, goodKey[:len(goodKey)-10]},
		{"account key flipped", store.AccountKey, flip(goodKey, len(goodKey)/2)},
		{"copy of the account key cut", store.AccountKeyBackup, goodKey[:len(goodKey)-10]},
		{"plan cut", domain + store.PlanSuffix, store.WithChecksum([]byte("{}"))[:len(store.WithChecksum(nil))+1]},
		{"plan no JSON", domain + store.PlanSuffix, store.WithChecksum([]byte("no"))},
	} {
		t.Run(test.name, func(t *testing.T) {
			cfg := cfg
			cfg.Dir = t.TempDir()
			log := &recorder{t: t}
			dir := filepath.Join(cfg.Dir, "acme", store.DirectoryName(ca.DirectoryURL))
			if err := os.MkdirAll(dir, 0o700); err != nil {
				t.Fatal(err)
			}
			contents := map[string][]byte{domain: good, store.AccountKey: goodKey, store.AccountKeyBackup: goodKey}
			contents[test.file] = test.data
			for name, data := range contents {
				if err := os.WriteFile(filepath.Join(dir, name), data, 0o600); err != nil {
					t.Fatal(err)
				}
			}
			cfg.Logger = newLogger(log)
			p, err := New(cfg)
			if err != nil {
				t.Fatalf("New = %v, want nil: damage is not fatal", err)
			}
			if missing := p.Ready() != nil; missing != (test.file == domain) {
				t.Errorf("Ready = %v after damage to %s", p.Ready(), test.file)
			}
			if !p.issuers[0].key.Equal(first.issuers[0].key) {
				t.Errorf("another account key after damage to %s", test.file)
			}
			for _, name := range []string{store.AccountKey, store.AccountKeyBackup} {
				if data, err := os.ReadFile(filepath.Join(dir, name)); err != nil || !bytes.Equal(data, goodKey) {
					t.Errorf("%s is not whole again: %v", name, err)
				}
			}
			e := log.one("damaged file set aside")
			if aside, err := os.ReadFile(e.attrs["now"]); err != nil || !bytes.Equal(aside, test.data) {
				t.Errorf("set aside as %q: %v, want the damaged content", e.attrs["now"], err)
			}
		})
	}

	// The next run gets a new certificate.
	if err := os.WriteFile(filepath.Join(first.issuers[0].store.(*store.Folder).Dir(), domain), good[:leafEnd], 0o600); err != nil {
		t.Fatal(err)
	}
	ln := acmetest.Listen(t)
	ca2 := pebbletest.Start(t, pebbletest.Config{TLSPort: acmetest.Port(ln)})
	cfg2 := configFor(t, ca2, cfg.Dir, domain)
	if err := os.Rename(first.issuers[0].store.(*store.Folder).Dir(), filepath.Join(cfg.Dir, "acme", store.DirectoryName(ca2.DirectoryURL))); err != nil {
		t.Fatal(err)
	}
	second := serve(t, cfg2, ln, acmetest.Listen(t))
	second.waitReady(t)
	second.leaf(t, domain, ca2.IssuingRoots)
	if got := ca2.Orders(); got != 1 {
		t.Errorf("%d orders to replace a damaged certificate, want 1", got)
	}
}

func flip(data []byte, at int) []byte {
	data = bytes.Clone(data)
	data[at] ^= 1
	return data
}

// otherPair returns an undamaged file with the certificate of another domain.
func otherPair(t *testing.T) []byte {
	cert := acmetest.SelfSigned(t, "other.example.com", time.Now(), time.Now().Add(day))
	data, err := certs.EncodePair(cert.PrivateKey.(*ecdsa.PrivateKey), cert.Certificate)
	if err != nil {
		t.Fatal(err)
	}
	return store.WithChecksum(data)
}

// An expired certificate is served while there is no new one: it tells a visitor more than a refused handshake.
// Ready reports the reason.
func TestExpired(t *testing.T) {
	t.Parallel()
	tlsLn, plainLn := acmetest.Listen(t), acmetest.Listen(t)
	ca, cfg := startCA(t, pebbletest.Config{TLSPort: acmetest.Port(tlsLn)}, domain)
	first := serve(t, cfg, tlsLn, plainLn)
	first.waitReady(t)
	serial := first.status(t, domain).Serial
	first.stop()
	ca.Stop()

	cfg.now = func() time.Time { return time.Now().Add(100 * day) }
	second := serve(t, cfg, acmetest.Listen(t), acmetest.Listen(t))
	second.waitFailure(t)
	c, err := second.dial(t, &tls.Config{ServerName: domain, InsecureSkipVerify: true})
	if err != nil {
		t.Fatalf("handshake with an expired certificate: %v", err)
	}
	if got := fmt.Sprintf("%x", c.ConnectionState().PeerCertificates[0].SerialNumber.Bytes()); got != serial {
		t.Errorf("serial %s, want the old certificate's %s", got, serial)
	}
	ready := second.Ready()
	for _, want := range []string{domain + ": the certificate expired at ", "connection refused", "next attempt at "} {
		if ready == nil || !strings.Contains(ready.Error(), want) {
			t.Errorf("Ready = %v, want it to contain %q", ready, want)
		}
	}
	if e := second.log.one("no certificate obtained"); e.level.String() != "ERROR" {
		t.Errorf("logged %v, want level ERROR: no certificate is valid", e)
	}
	if second.PubliclyTrusted(domain) {
		t.Errorf("PubliclyTrusted = true for an expired certificate")
	}
}

func TestRefusals(t *testing.T) {
	t.Parallel()
	const limit = "too many certificates already issued for this exact set of identifiers"
	date := time.Now().Add(36 * time.Hour).UTC().Truncate(time.Second)
	for _, test := range []struct {
		name   string
		path   string
		answer http.HandlerFunc
		orders int
		wait   time.Duration // until the next attempt; 0 is until date
		want   []string      // in the log line
	}{
		{"429 with seconds", pebbletest.NewOrderPath, pebbletest.Problem(429, "rateLimited", limit, "7200"),
			1, 2 * time.Hour, []string{"newOrder: rateLimited: " + limit, "only waiting helps"}},
		{"429 with a date", pebbletest.NewOrderPath, pebbletest.Problem(429, "rateLimited", limit, date.Format(http.TimeFormat)),
			1, 0, []string{"newOrder: rateLimited: " + limit}},
		{"429 without", pebbletest.NewOrderPath, pebbletest.Problem(429, "rateLimited", limit, ""),
			1, time.Minute, []string{limit}},
		{"429 soon", pebbletest.NewOrderPath, pebbletest.Problem(429, "rateLimited", limit, "1"),
			1, time.Second, []string{limit}},
		{"429 on the challenge", pebbletest.ChallengePath, pebbletest.Problem(429, "rateLimited", limit, "7200"),
			1, 2 * time.Hour, []string{"tls-alpn-01: rateLimited: " + limit}},
		{"429 on newAccount", pebbletest.NewAccountPath, pebbletest.Problem(429, "rateLimited", limit, "7200"),
			0, 2 * time.Hour, []string{"newAccount: rateLimited: " + limit}},
		{"503 with Retry-After", pebbletest.NewOrderPath, pebbletest.Problem(503, "serverInternal", "busy", "300"),
			1, 5 * time.Minute, []string{"newOrder: serverInternal: busy", "nothing to do here"}},
		{"503 from a proxy", pebbletest.DirectoryPath, func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Retry-After", "300")
			http.Error(w, "<html>busy</html>", http.StatusServiceUnavailable)
		}, 0, 5 * time.Minute, []string{"directory: HTTP 503"}},
		{"503 without", pebbletest.NewOrderPath, pebbletest.Problem(503, "serverInternal", "busy", ""),
			4, time.Minute, []string{"newOrder: serverInternal: busy"}},
		{"403 in full", pebbletest.NewOrderPath, pebbletest.Problem(403, "unauthorized", strings.Repeat("long detail ", 99)+"end", ""),
			1, time.Minute, []string{strings.Repeat("long detail ", 99) + "end"}},
		{"finalize", pebbletest.FinalizePath, pebbletest.Problem(403, "caa", "CAA record forbids", ""),
			1, time.Minute, []string{"finalize: caa: CAA record forbids", "a CAA record in the DNS"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			tlsLn, plainLn := acmetest.Listen(t), acmetest.Listen(t)
			ca, cfg := startCA(t, pebbletest.Config{TLSPort: acmetest.Port(tlsLn), HTTPPort: acmetest.Port(plainLn)}, domain)
			start := time.Now().Round(0)
			cfg.now = func() time.Time { return start } // so that Retry-After in seconds gives an exact time
			ca.Intercept(test.path, test.answer)
			s := serve(t, cfg, tlsLn, plainLn)
			s.waitFailure(t)

			e := s.log.one("no certificate obtained")
			for _, want := range test.want {
				if line := e.attrs["err"] + " " + e.attrs["hint"]; !strings.Contains(line, want) {
					t.Errorf("logged %q, want it to contain %q", line, want)
				}
			}
			want := start.Add(test.wait)
			if test.wait == 0 {
				want = date
			}
			if got := s.status(t, domain).NextAttempt; !got.Equal(want) {
				t.Errorf("next attempt at %v, want %v", got, want)
			}
			if got := ca.Orders(); got != test.orders {
				t.Errorf("%d orders, want %d", got, test.orders)
			}
		})
	}
}

func TestCannotAskCA(t *testing.T) {
	t.Parallel()
	ca, cfg := startCA(t, pebbletest.Config{}, domain)
	cfg.RootCAs = x509.NewCertPool()
	untrusting := serve(t, cfg, acmetest.Listen(t), acmetest.Listen(t))
	untrusting.waitFailure(t)
	if got := untrusting.status(t, domain).LastError; !strings.Contains(got.Reason, "directory: ") || !strings.Contains(got.Hint, "does it need a root of its own") {
		t.Errorf("LastError = %+v, want a hint that the CA's own certificate is not trusted", got)
	}
	ca.Stop()
	cfg.Dir = t.TempDir() // a folder without the earlier failure
	refused := serve(t, cfg, acmetest.Listen(t), acmetest.Listen(t))
	refused.waitFailure(t)
	if got := refused.status(t, domain).LastError; !strings.Contains(got.Reason, "directory: ") || !strings.Contains(got.Hint, "check outgoing connections") {
		t.Errorf("LastError = %+v, want a hint that the CA cannot be reached", got)
	}
	if got := refused.status(t, domain).CAs[0]; got.ValidationsLeft != maxFailed || got.Attempts["directory"] == 0 {
		t.Errorf("an attempt that did not reach the CA is told as %+v", got)
	}
}

// An error that ends within a second is not a failed attempt.
func TestShortTrouble(t *testing.T) {
	t.Parallel()
	tlsLn, plainLn := acmetest.Listen(t), acmetest.Listen(t)
	ca, cfg := startCA(t, pebbletest.Config{TLSPort: acmetest.Port(tlsLn)}, domain)
	busy, stale := pebbletest.Problem(503, "serverInternal", "busy", ""), pebbletest.Problem(400, "badNonce", "stale", "")
	ca.Intercept(pebbletest.NewOrderPath, func(w http.ResponseWriter, r *http.Request) {
		if ca.Orders() == 1 {
			busy(w, r)
			return
		}
		stale(w, r)
		if ca.Orders() == 5 {
			ca.Intercept(pebbletest.NewOrderPath, nil)
		}
	})
	s := serve(t, cfg, tlsLn, plainLn)
	s.waitReady(t)
	if all := s.log.logged("no certificate obtained"); len(all) != 0 {
		t.Errorf("logged %v, want no failure", all)
	}
	if got := ca.Orders(); got != 6 {
		t.Errorf("%d orders, want 6: busy, 4 stale, good", got)
	}
}

func TestProfile(t *testing.T) {
	t.Parallel()
	profiles := map[string]time.Duration{"classic": 90 * day, "shortlived": 160 * time.Hour}
	for name, life := range profiles {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			// With several profiles, Pebble chooses one at random for an order that names none. Five orders make it
			// unlikely that a missing profile goes unnoticed.
			domains := []string{"a.example.com", "b.example.com", "c.example.com", "d.example.com", "e.example.com"}
			tlsLn, plainLn := acmetest.Listen(t), acmetest.Listen(t)
			ca, cfg := startCA(t, pebbletest.Config{TLSPort: acmetest.Port(tlsLn), HTTPPort: acmetest.Port(plainLn), Profiles: profiles}, domains...)
			cfg.Profile = name
			s := serve(t, cfg, tlsLn, plainLn)
			s.waitReady(t)
			for _, d := range domains {
				leaf := s.leaf(t, d, ca.IssuingRoots)
				if got := (leaf.NotAfter.Sub(leaf.NotBefore) + time.Second).Truncate(time.Minute); got != life {
					t.Errorf("certificate for %s lives %v, want %v", d, got, life)
				}
			}
			if got := ca.Orders(); got != len(domains) {
				t.Errorf("%d orders, want %d", got, len(domains))
			}
		})
	}
	t.Run("unknown", func(t *testing.T) { // the directory does not list it, or newOrder refuses it
		t.Parallel()
		for _, lists := range []bool{false, true} {
			tlsLn, plainLn := acmetest.Listen(t), acmetest.Listen(t)
			ca, cfg := startCA(t, pebbletest.Config{TLSPort: acmetest.Port(tlsLn)}, domain)
			cfg.Profile = "nonesuch"
			if lists {
				cfg.Profile = "default"
				refuse := pebbletest.Problem(400, "invalidProfile", "not any more", "")
				ca.Intercept(pebbletest.NewOrderPath, func(w http.ResponseWriter, r *http.Request) {
					ca.Intercept(pebbletest.NewOrderPath, nil)
					refuse(w, r)
				})
			}
			s := serve(t, cfg, tlsLn, plainLn)
			s.waitReady(t)
			e := s.log.one("certificate profile not available")
			if e.level != slog.LevelWarn || e.attrs["profile"] != cfg.Profile || e.attrs["offered"] != "default" {
				t.Errorf("logged %v, want a warning with what is offered", e)
			}
		}
	})
}

func TestExternalAccountBinding(t *testing.T) {
	t.Parallel()
	keys := map[string]string{"kid-1": base64.RawURLEncoding.EncodeToString([]byte("0123456789abcdef0123456789abcdef"))}
	for _, bound := range []bool{true, false} {
		tlsLn, plainLn := acmetest.Listen(t), acmetest.Listen(t)
		_, cfg := startCA(t, pebbletest.Config{TLSPort: acmetest.Port(tlsLn), EABKeys: keys}, domain)
		if bound {
			cfg.EABKeyID, cfg.EABKey = "kid-1", []byte("0123456789abcdef0123456789abcdef")
		}
		s := serve(t, cfg, tlsLn, plainLn)
		if bound {
			s.waitReady(t)
			continue
		}
		s.waitFailure(t)
		if got := s.status(t, domain).LastError; !strings.Contains(got.Reason, "newAccount: externalAccountRequired: ") || !strings.Contains(got.Hint, "external account binding") {
			t.Errorf("LastError = %+v, want externalAccountRequired and a hint", got)
		}
	}
}

// Run ends an attempt in progress, and leaves no goroutine behind.
func TestRunStops(t *testing.T) {
	ca, cfg := startCA(t, pebbletest.Config{}, domain, "counter.test")
	reached := make(chan struct{})
	var once sync.Once
	ca.Intercept(pebbletest.NewOrderPath, func(w http.ResponseWriter, r *http.Request) {
		io.Copy(io.Discard, r.Body) // otherwise the server does not notice that the client has gone
		once.Do(func() { close(reached) })
		<-r.Context().Done()
	})
	s := serve(t, cfg, acmetest.Listen(t), acmetest.Listen(t))
	select {
	case <-reached:
	case <-time.After(acmetest.Patience):
		t.Fatal("no order")
	}
	s.stop()
	if all := s.log.logged("no certificate obtained"); len(all) != 0 {
		t.Errorf("logged %v, want stopping not to be a failure", all)
	}
	buf := make([]byte, 1<<20)
	for _, g := range strings.Split(string(buf[:runtime.Stack(buf, true)]), "\n\n") {
		if strings.Contains(g, "plusminus/acme.(*Provider).") || strings.Contains(g, "plusminus/acme.(*issuer)") ||
			strings.Contains(g, "plusminus/acme.(*transport)") {
			t.Errorf("still running after Run:\n%s", g)
		}
	}
}

// A data folder that cannot be written costs no order: the certificate would be lost at the next start.
func TestUnwritableFolder(t *testing.T) {
	t.Parallel()
	ca, cfg := startCA(t, pebbletest.Config{}, domain)
	s := serveLater(t, cfg)
	// A file in its place rather than a read-only folder, since tests may run as root.
	dir := s.issuers[0].store.(*store.Folder).Dir()
	if err := os.RemoveAll(dir); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(dir, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	s.run()
	s.waitFailure(t)
	if last := s.status(t, domain).LastError; last.Step != "store" || !strings.Contains(last.Reason, "could not be stored") || last.Hint == "" {
		t.Errorf("LastError = %+v, want it to say that it could not be stored, and a hint", last)
	}
	if got := ca.Orders(); got != 0 {
		t.Errorf("%d orders, want none", got)
	}
}

func TestNewRefuses(t *testing.T) {
	t.Parallel()
	one := []Domain{{Name: domain}}
	for want, cfg := range map[string]Config{
		"no domains":                      {Dir: "d"},
		"no data folder":                  {Domains: one},
		"is given twice":                  {Dir: "d", Domains: []Domain{{Name: domain}, {Name: domain}}},
		"wildcards":                       {Dir: "d", Domains: []Domain{{Name: "*.example.com"}}},
		`"Example.com" is not`:            {Dir: "d", Domains: []Domain{{Name: "Example.com"}}},
		`"example.com." is not`:           {Dir: "d", Domains: []Domain{{Name: "example.com."}}},
		`"example.com:443" is not`:        {Dir: "d", Domains: []Domain{{Name: "example.com:443"}}},
		`"../x" is not`:                   {Dir: "d", Domains: []Domain{{Name: "../x"}}},
		`"::0:1" is not`:                  {Dir: "d", Domains: []Domain{{Name: "::0:1"}}},
		"is public":                       {Dir: "d", Domains: []Domain{{Name: domain, Local: true}}},
		"need each other":                 {Dir: "d", Domains: one, CertFile: "c.pem"},
		"both a key id and a key":         {Dir: "d", Domains: one, EABKeyID: "k"},
		"there is nothing to import":      {Dir: "d", Domains: one, CertFile: "c.pem", KeyFile: "k.pem", ImportDir: "d"},
		`"http://ca.example/d" is not an`: {Dir: "d", Domains: one, DirectoryURL: "http://ca.example/d"},
	} {
		if _, err := New(cfg); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("New(%+v) = %v, want an error that contains %q", cfg.Domains, err, want)
		}
	}
}

func TestIsLocal(t *testing.T) {
	t.Parallel()
	for name, want := range map[string]bool{
		"localhost": true, "a.localhost": true, "a.test": true, "a.b.internal": true,
		"127.0.0.1": true, "203.0.113.5": true, "::1": true,
		"test": false, "example.com": false, "localhost.example.com": false, "mytest": false, "internal": false,
	} {
		if got := IsLocal(name); got != want {
			t.Errorf("IsLocal(%q) = %v, want %v", name, got, want)
		}
	}
}

func TestStatusJSON(t *testing.T) {
	t.Parallel()
	b, err := json.Marshal([]Status{{Domain: domain, Source: sourceACME}})
	if err != nil {
		t.Fatal(err)
	}
	if want := `[{"domain":"counter.example.com","source":"acme"}]`; string(b) != want {
		t.Errorf("Status without a certificate is %s, want %s", b, want)
	}
}
