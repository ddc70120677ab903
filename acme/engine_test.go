package acme

import (
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io/fs"
	"math/big"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"
	"testing"
	"time"

	xacme "golang.org/x/crypto/acme"

	"plusminus/acme/internal/acmetest"
	"plusminus/acme/internal/certs"
	"plusminus/acme/internal/challenge"
	"plusminus/acme/internal/store"
	"plusminus/acme/pebbletest"
)

// autocert has the conversation with the CA: nothing else in this folder orders a certificate, but for address.go, which does
// that for what autocert refuses.
func TestOnlyAutocertOrders(t *testing.T) {
	t.Parallel()
	orders := regexp.MustCompile(`\b(AuthorizeOrder|Accept|WaitAuthorization|WaitOrder|CreateCertFromOrder|CreateOrderCert|FetchCert)\(`)
	asked := 0
	err := filepath.WalkDir(".", func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go") {
			return err
		}
		data, err := os.ReadFile(path)
		if found := orders.Find(data); found != nil && path != "address.go" {
			t.Errorf("%s calls %s), which is autocert's part", path, found)
		}
		asked += strings.Count(string(data), "m.GetCertificate(")
		return err
	})
	if err != nil || asked != 1 {
		t.Errorf("an autocert.Manager is asked for a certificate in %d places, %v, want 1", asked, err)
	}
}

// With one failed validation left in the budget, one challenge is tried, and one order placed for it. Successive
// attempts begin with different types.
func TestOneValidationLeft(t *testing.T) {
	t.Parallel()
	for failures, typ := range []string{challenge.HTTP01, challenge.TLSALPN01} { // begin counts one more failure
		ca, cfg := startCA(t, pebbletest.Config{}, domain)
		s := serveLater(t, cfg)
		pl, now := s.sites[0].authorities[0].plan, time.Now()
		pl.Failures = failures + 1
		for range maxFailed - 1 {
			pl.Failed = append(pl.Failed, now.Add(-time.Minute))
		}
		s.run()
		s.waitFailure(t)
		s.stop()
		if orders, failed := ca.Orders(), ca.FailedValidations(); orders != 1 || failed != 1 {
			t.Errorf("%s: %d orders, %d failed validations, want 1 each", typ, orders, failed)
		}
		if last := s.status(t, domain).LastError; last.Step != typ || strings.Contains(last.Reason, ";") {
			t.Errorf("failed in %q: %q, want only %q", last.Step, last.Reason, typ)
		}
	}
}

// attempts makes n attempts with is, every second of which fails, and waits for the end of what they leave behind.
func attempts(t *testing.T, ca *pebbletest.CA, is *issuer, n int) {
	t.Helper()
	for i := range n {
		if i%4 == 1 { // cut in the middle of the conversation
			ca.Inject(pebbletest.ChallengePath, 1, pebbletest.Drop)
		}
		types := []string{challenge.TLSALPN01}
		if i%4 == 3 { // where nobody answers
			types = []string{challenge.HTTP01}
		}
		a := &attempt{name: domain, challenges: types, plan: new(plan), save: func() error { return nil }}
		if cert, err := is.obtain(t.Context(), a); (err == nil) != (i%2 == 0) {
			t.Fatalf("attempt %d: %v, %v", i, cert, err)
		}
	}
}

// Attempts leave nothing behind: no goroutine, and of each success only what a retired Manager holds until its
// certificate expires.
func TestNothingIsLeft(t *testing.T) { // not parallel: it counts the goroutines of the whole process
	tlsLn := acmetest.Listen(t)
	ca, cfg := startCA(t, pebbletest.Config{TLSPort: acmetest.Port(tlsLn)}, domain)
	s := prepare(t, cfg, tlsLn, acmetest.Listen(t))
	is := s.issuers[0]
	measure := func() (goroutines int, heap uint64) {
		for range 100 { // those that are ending
			runtime.GC()
			n := runtime.NumGoroutine()
			time.Sleep(20 * time.Millisecond)
			if goroutines = runtime.NumGoroutine(); goroutines >= n {
				break
			}
		}
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return goroutines, m.HeapAlloc
	}
	attempts(t, ca, is, 10)
	goroutines, heap := measure()
	attempts(t, ca, is, 190)
	goroutinesAfter, heapAfter := measure()
	for _, r := range ca.Requests() {
		if strings.HasPrefix(r.Path, pebbletest.AuthorizationPath) && len(r.Payload) > 0 {
			t.Errorf("%s %s: the next attempt may need this authorization", r.Path, r.Payload)
		}
	}
	perAttempt := (int64(heapAfter) - int64(heap)) / 190
	t.Logf("%d goroutines, then %d; %d bytes of heap for each attempt, with what Pebble keeps of it", goroutines, goroutinesAfter, perAttempt)
	if goroutinesAfter > goroutines+3 { // connections of the test's CA
		t.Errorf("%d goroutines after 200 attempts, %d after 10", goroutinesAfter, goroutines)
	}
	if perAttempt > 64<<10 {
		t.Errorf("each attempt left %d bytes behind", perAttempt)
	}
}

// A retired Manager never orders, even if its certificate expires while nobody renews: five Managers with certificates of
// 30 s, and a scheduler that stalls. Without the stand-in all five would order at the expiry.
func TestRetiredManagersOrderNothing(t *testing.T) {
	t.Parallel()
	life, watch := 6*time.Second, 9*time.Second
	if *long {
		life, watch = 30*time.Second, 70*time.Second
	}
	tlsLn := acmetest.Listen(t)
	ca, cfg := startCA(t, pebbletest.Config{TLSPort: acmetest.Port(tlsLn), Profiles: map[string]time.Duration{"short": life}}, domain)
	s := prepare(t, cfg, tlsLn, acmetest.Listen(t))
	for range 5 {
		a := &attempt{name: domain, challenges: []string{challenge.TLSALPN01}, plan: new(plan), save: func() error { return nil }}
		if _, err := s.issuers[0].obtain(t.Context(), a); err != nil {
			t.Fatal(err)
		}
	}
	before := len(ca.Requests())
	time.Sleep(watch)
	if late := ca.Requests()[before:]; len(late) != 0 {
		t.Errorf("retired Managers sent %v, want nothing", late)
	}
}

// Of an attempt, autocert sees a stand-in for the certificate: it is valid for a century, so the Manager never renews it.
func TestStandIn(t *testing.T) {
	t.Parallel()
	leaf := testPair(t, time.Minute).Leaf
	der, err := standIn("counter.test", leaf.PublicKey)
	if err != nil {
		t.Fatal(err)
	}
	got, err := x509.ParseCertificate(der)
	if err != nil || time.Until(got.NotAfter) < 99*365*day || !leaf.PublicKey.(*ecdsa.PublicKey).Equal(got.PublicKey) || got.VerifyHostname("counter.test") != nil {
		t.Errorf("stand-in %v, %v, want the same key and name, and a century", got, err)
	}
}

// later makes ca give certificates that become valid only in the given time. The chain is the test's own.
func later(t *testing.T, ca *pebbletest.CA, ahead, life time.Duration) *x509.CertPool {
	root := acmetest.Sign(t, &x509.Certificate{SerialNumber: big.NewInt(1), NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(day),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign, SubjectKeyId: []byte("later")}, nil)
	ca.Intercept(pebbletest.CertificatePath, func(w http.ResponseWriter, r *http.Request) {
		rec := httptest.NewRecorder()
		pebbletest.Forward(rec, r)
		block, _ := pem.Decode(rec.Body.Bytes())
		if rec.Code != 200 || block == nil {
			send(w, rec, rec.Body.Bytes())
			return
		}
		leaf, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			t.Error(err)
			return
		}
		der, err := x509.CreateCertificate(rand.Reader, &x509.Certificate{SerialNumber: leaf.SerialNumber, DNSNames: leaf.DNSNames,
			NotBefore: time.Now().Add(ahead), NotAfter: time.Now().Add(ahead + life)}, root.Leaf, leaf.PublicKey, root.PrivateKey)
		if err != nil {
			t.Error(err)
			return
		}
		send(w, rec, certs.EncodeChain([][]byte{der, root.Leaf.Raw}))
	})
	pool := x509.NewCertPool()
	pool.AddCert(root.Leaf)
	return pool
}

// A data folder of the version before is taken over as it is: its account, its certificate, its plan, and the order that
// was pending.
//
// testdata/before was made by commit 57af51f: a server obtained a certificate that lives for a century from Pebble, began
// to renew it, and ended while it waited for the answer to its request for the authorization. The files of the CA's
// folder were copied. They have keys that were made for this.
func TestFolderOfTheVersionBefore(t *testing.T) {
	t.Parallel()
	for _, known := range []bool{true, false} { // whether the CA still has the order
		t.Run(fmt.Sprintf("order known %v", known), func(t *testing.T) {
			t.Parallel()
			tlsLn := acmetest.Listen(t)
			ca, cfg := startCA(t, pebbletest.Config{TLSPort: acmetest.Port(tlsLn)}, domain)
			dir := filepath.Join(cfg.Dir, store.ACME, store.DirectoryName(ca.DirectoryURL))
			if err := os.CopyFS(dir, os.DirFS("testdata/before")); err != nil {
				t.Fatal(err)
			}
			folder, err := store.OpenFolder(dir, time.Now, newLogger(&recorder{t: t}))
			if err != nil {
				t.Fatal(err)
			}
			key, err := store.Load(folder, store.AccountKey, certs.ParseKey)
			if err != nil {
				t.Fatal(err)
			}
			old, err := loadCertificate(folder, domain)
			if err != nil {
				t.Fatal(err)
			}

			// The test's CA gets the account and the order.
			client := &xacme.Client{Key: key, DirectoryURL: ca.DirectoryURL, HTTPClient: &http.Client{
				Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: ca.DirectoryRoots}}}}
			if _, err := client.Register(t.Context(), new(xacme.Account), xacme.AcceptTOS); err != nil {
				t.Fatal(err)
			}
			order, err := client.AuthorizeOrder(t.Context(), xacme.DomainIDs(domain))
			if err != nil {
				t.Fatal(err)
			}
			data, err := folder.Read(domain + store.PlanSuffix)
			if err != nil {
				t.Fatal(err)
			}
			var fields map[string]any
			if err := json.Unmarshal(data, &fields); err != nil {
				t.Fatal(err)
			}
			if known {
				fields["pending_order"].(map[string]any)["url"] = order.URI
			} else {
				fields["pending_order"].(map[string]any)["url"] = order.URI + "x"
			}
			if data, err = json.Marshal(fields); err == nil {
				err = folder.Write(domain+store.PlanSuffix, data)
			}
			if err != nil {
				t.Fatal(err)
			}

			s := prepare(t, cfg, tlsLn, acmetest.Listen(t))
			if got, err := s.getCertificate(&tls.ClientHelloInfo{ServerName: domain}); err != nil || !got.Leaf.Equal(old.Leaf) {
				t.Fatalf("certificate at start: %v, want the stored one", err)
			}
			if pl := s.sites[0].authorities[0].plan; pl.Failures != 1 || !pl.Interrupted || pl.Challenge != challenge.TLSALPN01 || pl.Renewal == nil {
				t.Errorf("plan at start %+v, want that of the folder", pl)
			}
			s.run()
			if known {
				acmetest.WaitFor(t, "certificate", func() bool { return len(s.log.logged("certificate renewed")) == 1 })
			} else {
				s.waitFailure(t)
				acmetest.WaitFor(t, "failure", func() bool { return len(s.log.logged("no certificate obtained")) == 1 })
				if err := s.Renew(t.Context(), domain); err != nil {
					t.Fatal(err)
				}
			}
			s.stop()
			if leaf := s.leaf(t, domain, ca.IssuingRoots); leaf.Equal(old.Leaf) {
				t.Error("the certificate is the old one")
			}
			want := 1
			if !known {
				want = 3 // this CA refuses the first one, since it replaces a certificate of another CA
			}
			if got := ca.Orders(); got != want {
				t.Errorf("%d orders, with the one of the version before, want %d", got, want)
			}
			if !s.issuers[0].key.Equal(key) {
				t.Error("the account key is another one")
			}
		})
	}
}

// An authorization that can no longer become valid ends the attempt at once, and the next one orders anew. x/crypto's client
// would poll it until the attempt's time is over.
func TestAuthorizationGone(t *testing.T) {
	t.Parallel()
	for _, status := range []string{xacme.StatusDeactivated, xacme.StatusExpired, xacme.StatusRevoked} {
		tlsLn := acmetest.Listen(t)
		ca, cfg := startCA(t, pebbletest.Config{TLSPort: acmetest.Port(tlsLn)}, domain)
		ca.Inject(pebbletest.AuthorizationPath, 1, pebbletest.Forward)
		ca.Inject(pebbletest.AuthorizationPath, 1, showing(status))
		s := serve(t, cfg, tlsLn, acmetest.Listen(t))
		s.waitFailure(t)
		if last := s.status(t, domain).LastError; last.Step != challenge.TLSALPN01 || !strings.Contains(last.Reason, "the authorization is "+status) {
			t.Errorf("LastError = %+v, want that the authorization is %s", last, status)
		}
		if err := s.Renew(t.Context(), domain); err != nil || ca.Orders() != 2 {
			t.Errorf("%s: the next attempt: %v, %d orders, want another order, and a certificate", status, err, ca.Orders())
		}
	}
}

// A CA whose account was bound before gets no binding again.
func TestBindingIsSentOnce(t *testing.T) {
	t.Parallel()
	tlsLn := acmetest.Listen(t)
	ca, cfg := startCA(t, pebbletest.Config{TLSPort: acmetest.Port(tlsLn), EABKeys: map[string]string{"kid": eabKey64}}, domain)
	cfg.EABKeyID, cfg.EABKey = "kid", []byte(eabKey)
	s := serve(t, cfg, tlsLn, acmetest.Listen(t))
	s.waitReady(t)
	for range 2 {
		if err := s.Renew(t.Context(), domain); err != nil {
			t.Fatal(err)
		}
	}
	bound := 0
	for _, r := range ca.Requests() {
		if r.Path == pebbletest.NewAccountPath && strings.Contains(string(r.Payload), "externalAccountBinding") {
			bound++
		}
	}
	if bound != 1 {
		t.Errorf("the binding was sent %d times, want once", bound)
	}
}
