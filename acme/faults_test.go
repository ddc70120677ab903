package acme

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"log/slog"
	"net/http"
	"os"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"plusminus/acme/internal/acmetest"
	"plusminus/acme/internal/challenge"
	"plusminus/acme/internal/store"
	"plusminus/acme/pebbletest"
)

// The key of an external account: the key itself, and its base64url.
const eabKey, eabKey64 = "mac key of thirty-two bytes at least", "bWFjIGtleSBvZiB0aGlydHktdHdvIGJ5dGVzIGF0IGxlYXN0"

// Each request to the CA meets each fault once. Either the attempt succeeds, or it fails and names the step, and
// the next attempt continues the open order. So a certificate costs one order, unless the answer to newOrder
// itself was lost.
func TestCutAtEachStep(t *testing.T) {
	t.Parallel()
	faults := []struct {
		name   string
		answer pebbletest.Fault
		want   string // in the reason
	}{
		{"dropped", pebbletest.Drop, "EOF"},
		{"answer dropped", pebbletest.DropAnswer, "EOF"},
		{"answer cut", pebbletest.Truncate, "EOF"},
		{"nonsense", pebbletest.Garbage, ""},
		{"a proxy's page", pebbletest.HTML(403), "HTTP 403 Forbidden"},
		{"hanging", pebbletest.Hang, "did not answer within 3s"},
	}
	for _, at := range []struct{ path, step string }{
		{pebbletest.DirectoryPath, "directory"},
		{pebbletest.NewNoncePath, "newAccount"},
		{pebbletest.NewAccountPath, "newAccount"},
		{pebbletest.NewOrderPath, "newOrder"},
		{pebbletest.AuthorizationPath, challenge.TLSALPN01},
		{pebbletest.ChallengePath, challenge.TLSALPN01},
		{pebbletest.OrderPath, "order"},
		{pebbletest.FinalizePath, "finalize"},
		{pebbletest.CertificatePath, "certificate"},
	} {
		for _, fault := range faults {
			t.Run(strings.Trim(at.path, "/")+" "+fault.name, func(t *testing.T) {
				t.Parallel()
				tlsLn := acmetest.Listen(t)
				ca, cfg := startCA(t, pebbletest.Config{TLSPort: acmetest.Port(tlsLn)}, domain)
				cfg.requestTimeout = 3 * time.Second // far longer than any answer takes on a busy machine
				ca.Inject(at.path, 1, fault.answer)
				s := serve(t, cfg, tlsLn, acmetest.Listen(t))
				acmetest.WaitFor(t, "end of the attempt", func() bool { return s.Ready() == nil || s.status(t, domain).LastError != nil })
				if e := s.status(t, domain).LastError; e != nil {
					if e.Step != at.step || !strings.Contains(e.Reason, fault.want) {
						t.Errorf("failed in %q: %q, want it in %q, and told as %q", e.Step, e.Reason, at.step, fault.want)
					}
					if err := s.Renew(t.Context(), domain); err != nil {
						t.Fatalf("the attempt after that: %v", err)
					}
				}
				if err := s.Ready(); err != nil {
					t.Errorf("Ready = %v", err)
				}
				want := 1
				if at.path == pebbletest.NewOrderPath {
					want = 2
				}
				if got := ca.Orders(); got > want {
					t.Errorf("%d orders, want at most %d", got, want)
				}
				if got := ca.FailedValidations(); got != 0 {
					t.Errorf("%d failed validations, want none", got)
				}
			})
		}
	}
}

// TestFaults checks the result of one attempt against each fault of a CA.
func TestFaults(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		name   string
		ca     pebbletest.Config
		fault  func(*pebbletest.CA) // may be nil
		cfg    func(*Config)        // may be nil
		step   string               // of the failure of the first attempt; empty is success
		want   []string             // in the log line of the failure
		orders int                  // placed by the first attempt
		retry  time.Duration        // until the next attempt after a failure

		failedValidations int
	}{
		{name: "half of the nonces refused", ca: pebbletest.Config{NonceReject: 50}, orders: -1},
		{name: "validations that take their time", ca: pebbletest.Config{ValidationSleep: 2 * time.Second}, orders: 1},
		{name: "strict", ca: pebbletest.Config{Strict: true}, orders: 1},
		{name: "long chain", ca: pebbletest.Config{Intermediates: 3}, orders: 1},
		{name: "Retry-After while validating and issuing", ca: pebbletest.Config{
			RetryAfterAuthorization: time.Second, RetryAfterOrder: time.Second}, orders: 1},
		{name: "issuing takes a while", fault: func(ca *pebbletest.CA) {
			ca.Inject(pebbletest.FinalizePath, 1, pebbletest.Processing(""))
			ca.Inject(pebbletest.OrderPath, 1, pebbletest.Forward)
			ca.Inject(pebbletest.OrderPath, 8, pebbletest.Processing(""))
		}, orders: 1},
		{name: "slow", fault: func(ca *pebbletest.CA) {
			ca.Inject(pebbletest.AnyPath, -1, pebbletest.Delay(50*time.Millisecond, pebbletest.Forward))
		}, orders: 1},
		{name: "every third request fails with 500", fault: func(ca *pebbletest.CA) {
			for range 10 {
				ca.Inject(pebbletest.AnyPath, 1, pebbletest.Problem(500, "serverInternal", "hiccup", ""))
				ca.Inject(pebbletest.AnyPath, 2, pebbletest.Forward)
			}
		}, orders: -1},
		{name: "a clock half an hour ahead", fault: func(ca *pebbletest.CA) { ca.ShiftDate(-30 * time.Minute) },
			step: "clock", want: []string{"this machine's clock is 30m0s ahead of the CA's", "NTP"}, retry: time.Minute},
		{name: "a clock half an hour behind", fault: func(ca *pebbletest.CA) { ca.ShiftDate(30 * time.Minute) },
			step: "clock", want: []string{"this machine's clock is 30m0s behind the CA's", "NTP"}, retry: time.Minute},
		{name: "a clock five minutes off", fault: func(ca *pebbletest.CA) { ca.ShiftDate(5 * time.Minute) }, orders: 1},
		{name: "a blocked domain", ca: pebbletest.Config{BlockedDomains: []string{domain}},
			step: "newOrder", want: []string{"newOrder: rejectedIdentifier: ", "the CA does not certify this name"}, orders: 1, retry: time.Minute},
		{name: "external account binding missing", ca: pebbletest.Config{EABKeys: map[string]string{"kid": eabKey64}},
			step: "newAccount", want: []string{"newAccount: externalAccountRequired: ", "wants an external account binding"}, retry: time.Minute},
		{name: "external account binding given", ca: pebbletest.Config{EABKeys: map[string]string{"kid": eabKey64}},
			cfg: func(c *Config) {
				c.EABKeyID, c.EABKey = "kid", []byte(eabKey)
			}, orders: 1},
		{name: "external account binding refused", ca: pebbletest.Config{EABKeys: map[string]string{"kid": eabKey64}},
			cfg:  func(c *Config) { c.EABKeyID, c.EABKey = "kid", []byte("another key") },
			step: "newAccount", want: []string{"newAccount: unauthorized: "}, retry: time.Minute},
		{name: "no address in the DNS", ca: pebbletest.Config{DNS: map[string]pebbletest.DNSRecords{domain: {}}},
			step: challenge.HTTP01, want: []string{"tls-alpn-01: ", "http-01: "}, orders: 2, retry: time.Minute, failedValidations: 2},
		{name: "a stale AAAA", ca: pebbletest.Config{DNS: map[string]pebbletest.DNSRecords{domain: {A: []string{"127.0.0.1"}, AAAA: []string{"::1"}}}},
			step: challenge.HTTP01, want: []string{"tls-alpn-01: ", "http-01: ", "AAAA"}, orders: 2, retry: time.Minute, failedValidations: 2},
		{name: "CAA", fault: func(ca *pebbletest.CA) { // Pebble ignores such records
			ca.Inject(pebbletest.FinalizePath, 1, pebbletest.Problem(403, "caa", "CAA record for counter.example.com prevents issuance", ""))
		}, step: "finalize", want: []string{"finalize: caa: CAA record for counter.example.com prevents issuance", "a CAA record in the DNS"}, orders: 1, retry: time.Minute},
		{name: "limited, in seconds", fault: func(ca *pebbletest.CA) {
			ca.Inject(pebbletest.NewOrderPath, -1, pebbletest.Problem(429, "rateLimited", "too many certificates (5) already issued", "7200"))
		}, step: "newOrder", want: []string{"newOrder: rateLimited: too many certificates (5) already issued", "only waiting helps"}, orders: 1, retry: 2 * time.Hour},
		{name: "limited, by a date", fault: func(ca *pebbletest.CA) {
			ca.Inject(pebbletest.NewOrderPath, -1, pebbletest.Problem(429, "rateLimited", "too many", "Fri, 01 Jan 2100 00:00:00 GMT"))
		}, step: "newOrder", want: []string{"newOrder: rateLimited: too many"}, orders: 1,
			retry: time.Until(time.Date(2100, 1, 1, 0, 0, 0, 0, time.UTC)).Round(time.Hour)},
		{name: "down for maintenance", fault: func(ca *pebbletest.CA) {
			ca.Inject(pebbletest.AnyPath, -1, pebbletest.Problem(503, "serverInternal", "maintenance", "600"))
		}, step: "directory", want: []string{"directory: serverInternal: maintenance", "the CA is in trouble"}, retry: 10 * time.Minute},
		{name: "a proxy's page everywhere", fault: func(ca *pebbletest.CA) { ca.Inject(pebbletest.AnyPath, -1, pebbletest.HTML(502)) },
			step: "directory", want: []string{"directory: HTTP 502 Bad Gateway"}, retry: time.Minute},
		{name: "a profile that is not offered", ca: pebbletest.Config{Profiles: map[string]time.Duration{"classic": 90 * day}},
			cfg: func(c *Config) { c.Profile = "dropped" }, orders: 1},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			tlsLn, plainLn := acmetest.Listen(t), acmetest.Listen(t)
			test.ca.TLSPort, test.ca.HTTPPort = acmetest.Port(tlsLn), acmetest.Port(plainLn)
			ca, cfg := startCA(t, test.ca, domain)
			if test.cfg != nil {
				test.cfg(&cfg)
			}
			if test.fault != nil {
				test.fault(ca)
			}
			s := serve(t, cfg, tlsLn, plainLn)
			acmetest.WaitFor(t, "end of the attempt", func() bool { return s.Ready() == nil || s.status(t, domain).LastError != nil })
			s.stop()
			st := s.status(t, domain)
			if got := ca.Orders(); got != test.orders && test.orders >= 0 {
				t.Errorf("%d orders, want %d", got, test.orders)
			}
			if got := ca.FailedValidations(); got != test.failedValidations {
				t.Errorf("%d failed validations, want %d", got, test.failedValidations)
			}
			if got := st.CAs[0].ValidationsLeft; got != maxFailed-test.failedValidations {
				t.Errorf("%d validations left by our count, want %d", got, maxFailed-test.failedValidations)
			}
			if test.step == "" {
				if st.LastError != nil || st.CAs[0].CertificatesLeft != maxIssued-1 {
					t.Fatalf("Status = %+v, %+v, want a certificate", st.LastError, st.CAs[0])
				}
				s.leaf(t, domain, ca.IssuingRoots)
				return
			}
			e := s.log.one("no certificate obtained")
			if e.attrs["step"] != test.step || st.LastError.Step != test.step || st.CAs[0].Attempts[test.step] != 1 {
				t.Errorf("step %q in the log, %q in Status, want %q; attempts %v", e.attrs["step"], st.LastError.Step, test.step, st.CAs[0].Attempts)
			}
			for _, want := range test.want {
				if line := e.attrs["err"] + " " + e.attrs["hint"]; !strings.Contains(line, want) {
					t.Errorf("logged %q, want it to contain %q", line, want)
				}
			}
			if wait := st.NextAttempt.Sub(st.LastError.When).Round(time.Second); wait < test.retry-test.retry/100 || wait > test.retry+test.retry/100 {
				t.Errorf("next attempt after %v, want %v", wait, test.retry)
			}
			if st.CAs[0].CertificatesLeft != maxIssued {
				t.Errorf("%d certificates left, want all of %d: none was issued", st.CAs[0].CertificatesLeft, maxIssued)
			}
		})
	}
}

// A renewal names the certificate that it replaces. If the CA refuses that, it orders without.
func TestReplaces(t *testing.T) {
	t.Parallel()
	tlsLn := acmetest.Listen(t)
	ca, cfg := startCA(t, pebbletest.Config{TLSPort: acmetest.Port(tlsLn)}, domain)
	s := serve(t, cfg, tlsLn, acmetest.Listen(t))
	acmetest.WaitFor(t, "renewal information", func() bool { return s.status(t, domain).Renewal != nil })
	renew := func() string {
		t.Helper()
		id, _ := certID(s.leaf(t, domain, ca.IssuingRoots))
		if err := s.Renew(t.Context(), domain); err != nil {
			t.Fatal(err)
		}
		acmetest.WaitFor(t, "renewal information", func() bool { return s.status(t, domain).Renewal != nil })
		return id
	}
	first := renew()
	ca.Inject(pebbletest.NewOrderPath, 1, pebbletest.Problem(409, "alreadyReplaced", "replaced already", ""))
	second := renew()
	third := renew()
	var got []string
	for _, o := range ca.NewOrders() {
		got = append(got, o.Replaces)
	}
	want := []string{"", first, second, "", third}
	if strings.Join(got, " ") != strings.Join(want, " ") {
		t.Errorf("orders named %q as replaced, want %q", got, want)
	}
}

// A renewal window in the past causes a renewal, and its explanation is logged. A revocation causes one, too.
func TestRenewalWindowForced(t *testing.T) {
	t.Parallel()
	tlsLn := acmetest.Listen(t)
	ca, cfg := startCA(t, pebbletest.Config{TLSPort: acmetest.Port(tlsLn)}, domain)
	s := serve(t, cfg, tlsLn, acmetest.Listen(t))
	acmetest.WaitFor(t, "renewal information", func() bool { return s.status(t, domain).Renewal != nil })
	first := s.leaf(t, domain, ca.IssuingRoots)
	ca.SetRenewalInfo(first, time.Now().Add(-2*time.Hour), time.Now().Add(-time.Hour), "https://ca.example/incident-7")
	s.Reload() // Pebble says to come back in six hours
	acmetest.WaitFor(t, "renewal", func() bool { return !s.leaf(t, domain, ca.IssuingRoots).Equal(first) })
	if e := s.log.logged("the CA says when to renew"); len(e) < 2 || e[1].attrs["explanation"] != "https://ca.example/incident-7" {
		t.Errorf("logged %v, want the CA's explanation", e)
	}

	second := s.leaf(t, domain, ca.IssuingRoots)
	s.stop()
	ca.Revoke(second)
	// A CA that wants each certificate replaced at once gets one renewal a day, so this is the next day.
	cfg.now = func() time.Time { return time.Now().Add(25 * time.Hour) }
	ca.ShiftDate(25 * time.Hour)
	serve(t, cfg, acmetest.Listen(t), acmetest.Listen(t)).Reload()
	acmetest.WaitFor(t, "attempt", func() bool { return ca.Orders() == 3 })
}

// Certificates of a few seconds are renewed in time, again and again, and visitors notice nothing.
func TestShortLives(t *testing.T) {
	t.Parallel()
	life, want := 8*time.Second, 3
	if *long {
		life, want = 20*time.Second, 4
	}
	tlsLn := acmetest.Listen(t)
	ca, cfg := startCA(t, pebbletest.Config{TLSPort: acmetest.Port(tlsLn), Profiles: map[string]time.Duration{"shortlived": life},
		AuthorizationReuse: 50}, domain)
	s := serve(t, cfg, tlsLn, acmetest.Listen(t))
	s.waitReady(t)
	seen := make(map[string]bool)
	for deadline := time.Now().Add(2 * acmetest.Patience); len(seen) < want; time.Sleep(50 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("%d certificates in %v, want %d", len(seen), 2*acmetest.Patience, want)
		}
		leaf := s.leaf(t, domain, ca.IssuingRoots) // verifies it, at this moment
		if left := time.Until(leaf.NotAfter); left < life/4 {
			t.Errorf("certificate with %v left of %v is still served", left, life)
		}
		seen[leaf.SerialNumber.String()] = true
	}
	if got := s.log.logged("no certificate obtained"); len(got) != 0 {
		t.Errorf("logged %v, want no failure", got)
	}
	if got := ca.Orders(); got != len(seen) {
		t.Errorf("%d orders for %d certificates", got, len(seen))
	}
}

// A domain that the CA refuses does not delay the certificates of the others.
func TestOneOfManyFails(t *testing.T) {
	t.Parallel()
	tlsLn := acmetest.Listen(t)
	ca, cfg := startCA(t, pebbletest.Config{TLSPort: acmetest.Port(tlsLn), BlockedDomains: []string{"blocked.example.com"}},
		"blocked.example.com", "a.example.com", "b.example.com", "c.example.com", "d.example.com", "e.example.com")
	s := serve(t, cfg, tlsLn, acmetest.Listen(t))
	for _, name := range []string{"a", "b", "c", "d", "e"} {
		acmetest.WaitFor(t, "certificate", func() bool { return s.status(t, name+".example.com").Problem == "" })
		s.leaf(t, name+".example.com", ca.IssuingRoots)
	}
	acmetest.WaitFor(t, "failure", func() bool { return s.status(t, "blocked.example.com").LastError != nil })
	if err := s.Complete(); err == nil || !strings.HasPrefix(err.Error(), "acme: blocked.example.com: no certificate yet: newOrder: rejectedIdentifier") || strings.Contains(err.Error(), "\n") {
		t.Errorf("Complete = %v, want the blocked name alone and why", err)
	}
	if err := s.Ready(); err != nil {
		t.Errorf("Ready = %v, want nil: the others are served", err)
	}
	var notYet *NotYetError
	if err := s.Renew(t.Context(), "blocked.example.com"); err == nil || errors.As(err, &notYet) {
		t.Errorf("Renew = %v, want the CA's answer", err)
	}
}

// A certificate that cannot be stored is served, and stored later. A process that starts before that downloads it
// again, since the plan has the order.
func TestUnsaved(t *testing.T) {
	t.Parallel()
	for _, restart := range []bool{false, true} {
		t.Run(map[bool]string{false: "same process", true: "next process"}[restart], func(t *testing.T) {
			t.Parallel()
			tlsLn := acmetest.Listen(t)
			ca, cfg := startCA(t, pebbletest.Config{TLSPort: acmetest.Port(tlsLn)}, domain)
			cfg.lookInterval = 10 * time.Millisecond
			var later atomic.Int64 // nanoseconds
			cfg.now = func() time.Time { return time.Now().Add(time.Duration(later.Load())) }
			s := prepare(t, cfg, tlsLn, acmetest.Listen(t))
			// A folder in the place of the file makes exactly this write fail.
			obstacle := s.issuers[0].store.Path(domain)
			ca.Inject(pebbletest.CertificatePath, 1, func(w http.ResponseWriter, r *http.Request) {
				if err := os.Mkdir(obstacle, 0o700); err != nil {
					t.Error(err)
				}
				pebbletest.Forward(w, r)
			})
			s.run()
			s.waitReady(t)
			first := s.leaf(t, domain, ca.IssuingRoots)
			acmetest.WaitFor(t, "published result", func() bool { return s.status(t, domain).CAs[0].Unsaved })
			if e := s.log.one("certificate not stored"); e.level.String() != "ERROR" || !strings.Contains(e.attrs["hint"], "free space") {
				t.Errorf("logged %v, want an error with a hint", e)
			}
			if restart {
				s.stop()
			}
			if err := os.Remove(obstacle); err != nil {
				t.Fatal(err)
			}
			if restart {
				s = serve(t, cfg, acmetest.Listen(t), acmetest.Listen(t))
			} else {
				later.Store(int64(saveWait))
			}
			acmetest.WaitFor(t, "the file", func() bool { _, err := s.issuers[0].store.Read(domain); return err == nil })
			if got, err := loadCertificate(s.issuers[0].store, domain); err != nil || !got.Leaf.Equal(first) {
				t.Errorf("stored %v, %v, want %v", got.Leaf.SerialNumber, err, first.SerialNumber)
			}
			acmetest.WaitFor(t, "published result", func() bool { return s.Ready() == nil && !s.status(t, domain).CAs[0].Unsaved })
			if got := ca.Orders(); got != 1 {
				t.Errorf("%d orders, want 1", got)
			}
		})
	}
}

// When the CA has failed for hours, the fallback is asked. Its state has a folder of its own.
func TestFallback(t *testing.T) {
	t.Parallel()
	tlsLn := acmetest.Listen(t)
	ca, cfg := startCA(t, pebbletest.Config{TLSPort: acmetest.Port(tlsLn)}, domain)
	fallback := pebbletest.Start(t, pebbletest.Config{TLSPort: acmetest.Port(tlsLn), EABKeys: map[string]string{"kid": eabKey64}})
	cfg.RootCAs = x509.NewCertPool()
	for _, pem := range [][]byte{ca.DirectoryRootPEM, fallback.DirectoryRootPEM} {
		cfg.RootCAs.AppendCertsFromPEM(pem)
	}
	cfg.FallbackURL, cfg.FallbackEABKeyID, cfg.FallbackEABKey = fallback.DirectoryURL, "kid", []byte(eabKey)
	cfg.lookInterval = 10 * time.Millisecond
	var later atomic.Int64 // nanoseconds
	cfg.now = func() time.Time { return time.Now().Add(time.Duration(later.Load())) }
	lift := ca.Inject(pebbletest.NewOrderPath, -1, pebbletest.Problem(500, "serverInternal", "our HSM is on fire", ""))
	defer lift()
	s := serve(t, cfg, tlsLn, acmetest.Listen(t))
	s.waitFailure(t)
	if got := fallback.Count(pebbletest.AnyPath); got != 0 {
		t.Errorf("the fallback was asked %d times at once, want after hours", got)
	}
	ca.ShiftDate(fallbackAfter)
	fallback.ShiftDate(fallbackAfter)
	later.Store(int64(fallbackAfter))
	s.waitReady(t)
	s.leaf(t, domain, fallback.IssuingRoots)
	if st := s.status(t, domain); st.Directory != fallback.DirectoryURL || st.Problem != "" {
		t.Errorf("Status = %+v, want the fallback's certificate", st)
	}
	acmetest.WaitFor(t, "published result", func() bool { return len(s.log.logged("another CA than before")) == 1 })
	if e := s.log.one("another CA than before"); !strings.Contains(e.attrs["err"], "our HSM is on fire") {
		t.Errorf("logged %v, want why it is not the CA's", e)
	}
	if a, b := s.issuers[0].store.(*store.Folder).Dir(), s.issuers[1].store.(*store.Folder).Dir(); a == b {
		t.Errorf("both CAs keep their state in %s", a)
	}
	if s.issuers[0].key.Equal(s.issuers[1].key) {
		t.Errorf("both CAs have the same account key")
	}
}

// No hello and no request of a stranger causes an order, or a log line above Debug.
func TestVisitorsOrderNothing(t *testing.T) {
	t.Parallel()
	tlsLn, plainLn := acmetest.Listen(t), acmetest.Listen(t)
	ca, cfg := startCA(t, pebbletest.Config{TLSPort: acmetest.Port(tlsLn)}, domain)
	s := serve(t, cfg, tlsLn, plainLn)
	acmetest.WaitFor(t, "renewal information", func() bool { return s.status(t, domain).Renewal != nil }) // then the site is idle
	logged := len(s.log.logged(""))
	for _, hello := range []*tls.Config{
		{ServerName: domain},
		{ServerName: domain, MinVersion: tls.VersionTLS13, CurvePreferences: []tls.CurveID{tls.X25519}},
		{ServerName: domain, MaxVersion: tls.VersionTLS12, CipherSuites: []uint16{tls.TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256}}, // no certificate of ours fits
		{ServerName: domain, NextProtos: []string{"acme-tls/1"}},
		{ServerName: domain, NextProtos: []string{"acme-tls/1", "http/1.1"}},
		{ServerName: "other.example.com"},
		{ServerName: "other.example.com", NextProtos: []string{"acme-tls/1"}},
		{ServerName: strings.Repeat("a", 300)},
		{ServerName: "../../etc/passwd"},
		{},
	} {
		hello.InsecureSkipVerify = true
		if c, err := s.dial(t, hello); err == nil {
			c.Close()
		}
	}
	for _, path := range []string{"x", "..%2f..%2facme_account+key", "", strings.Repeat("a", 300)} {
		req, _ := http.NewRequestWithContext(t.Context(), "GET", "http://"+plainLn.Addr().String()+"/.well-known/acme-challenge/"+path, nil)
		req.Host = domain
		res, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		res.Body.Close()
		if res.StatusCode != http.StatusNotFound {
			t.Errorf("GET of token %q = %s, want 404", path, res.Status)
		}
	}
	if got := ca.Orders(); got != 1 {
		t.Errorf("%d orders, want only the one at the start", got)
	}
	for _, e := range s.log.logged("")[logged:] {
		if e.level > slog.LevelDebug {
			t.Errorf("logged %v", e)
		}
	}
}
