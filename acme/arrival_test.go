package acme

import (
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"plusminus/acme/internal/acmetest"
	"plusminus/acme/pebbletest"
)

// pairFrom returns a certificate for counter.test that is valid for life from the given time.
func pairFrom(t testing.TB, from time.Time, life time.Duration) *tls.Certificate {
	t.Helper()
	cert := acmetest.Sign(t, &x509.Certificate{DNSNames: []string{"counter.test"}, NotBefore: from, NotAfter: from.Add(life)}, nil)
	return &cert
}

// A certificate that is of no use when it comes is a failed attempt with a reason. The next order does not follow at once.
func TestUselessCertificate(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		name        string
		ahead, life time.Duration // of the certificate's NotBefore, from now; of the certificate
		shift       time.Duration // of the CA's clock
		want, hint  string
		served      bool // it is better than nothing
	}{
		{"expired, 47 hours", -48 * time.Hour, 47 * time.Hour, 0, "certificate: it expired at ", "this machine's clock agrees with the CA's", false},
		{"expired, 60 s, clock off", -2 * time.Minute, time.Minute, -2 * time.Minute,
			"before it came; this machine's clock is 2m0s ahead of the CA's", "NTP", false},
		{"due for renewal", -80 * day, 90 * day, 0, "so it is due for renewal already", "this machine's clock agrees with the CA's", true},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			tlsLn := acmetest.Listen(t)
			ca, cfg := startCA(t, pebbletest.Config{TLSPort: acmetest.Port(tlsLn)}, domain)
			roots := later(t, ca, test.ahead, test.life)
			ca.ShiftDate(test.shift)
			cfg.lookInterval = 10 * time.Millisecond
			s := serve(t, cfg, tlsLn, acmetest.Listen(t))
			s.waitFailure(t)
			if test.served {
				s.waitReady(t)
				s.leaf(t, domain, roots)
			}
			time.Sleep(300 * time.Millisecond) // many looks
			st := s.status(t, domain)
			if last := st.LastError; last == nil || last.Step != "certificate" || !strings.Contains(last.Reason, test.want) || !strings.Contains(last.Hint, test.hint) {
				t.Errorf("LastError = %+v, want %q and a hint at %q", last, test.want, test.hint)
			}
			if wait := st.NextAttempt.Sub(st.LastError.When); wait != time.Minute || ca.Orders() != 1 || st.CAs[0].Attempts["ok"] != 0 {
				t.Errorf("next attempt after %v, %d orders, attempts %v, want a minute, 1, and no success", wait, ca.Orders(), st.CAs[0].Attempts)
			}
			if e := s.log.one("no certificate obtained"); e.level < slog.LevelWarn {
				t.Errorf("logged %v, want at least a warning", e)
			}
			if test.served != (s.Ready() == nil) {
				t.Errorf("Ready = %v, want it served: %v", s.Ready(), test.served)
			}
			s.stop()
			if !test.served {
				return
			}
			s = serveLater(t, cfg)
			if s.Ready() != nil || s.status(t, domain).LastError != nil {
				t.Errorf("after a restart: Ready = %v, LastError = %+v", s.Ready(), s.status(t, domain).LastError)
			}
		})
	}
}

// With certificates that live for a minute, a clock that is two minutes off costs one order. Then the life is known, and
// nothing is ordered before the clock is set. The first attempt after that succeeds.
func TestSkewShrinksWithLife(t *testing.T) {
	t.Parallel()
	ca, cfg := startCA(t, pebbletest.Config{AlwaysValid: true, Profiles: map[string]time.Duration{"minute": time.Minute}}, domain)
	pacePolls(t, ca)
	cfg.Logger, cfg.orderInterval = newLogger(&recorder{t: t}), 0
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		later(t, ca, -2*time.Minute, time.Minute)
		ca.ShiftDate(-2 * time.Minute)
		p, stop := runInBubble(t, cfg, dir, ca)
		defer stop()
		sleep(time.Hour)
		if got := ca.Orders(); got != 1 {
			t.Errorf("%d orders in an hour, want 1", got)
		}
		if last := p.Status()[0].LastError; last == nil || last.Reason != "nothing was ordered: this machine's clock is 2m0s ahead of the CA's" {
			t.Errorf("LastError = %+v, want the clock", last)
		}
		ca.ShiftDate(0)
		ca.Intercept(pebbletest.CertificatePath, nil)
		sleep(10 * time.Minute)
		if err := p.Ready(); err != nil {
			t.Errorf("Ready ten minutes after the clock was set = %v", err)
		}
	})
}

// Two orders for a name are at least orderInterval apart, also if an operator asks for each of them. The budget of such short
// lives would allow more.
func TestOrderInterval(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var orders []time.Time
		s := prepareSchedule(t, t.TempDir(), &fakeCA{answer: func(a *attempt) (*tls.Certificate, error) {
			orders = append(orders, time.Now())
			a.plan.Ordered = time.Now()
			return testPair(t, 5*time.Minute), nil
		}})
		s.cfg.orderInterval = orderInterval
		s.start(t)
		for range 20 {
			if err := s.Renew(t.Context(), "counter.test"); err != nil {
				t.Fatal(err)
			}
		}
		for i := 1; i < len(orders); i++ {
			if wait := orders[i].Sub(orders[i-1]); wait != orderInterval {
				t.Errorf("order %d after %v, want %v", i, wait, orderInterval)
			}
		}
		if len(orders) != 20 && len(orders) != 21 { // the first one serves the first call, too
			t.Errorf("%d orders", len(orders))
		}
	})
	// A fault in the schedule: each certificate is due at once, and the failure is not counted.
	pl := plan{Ordered: time.Unix(1000, 0)}
	for life, want := range map[time.Duration]int64{0: 1010, 90 * day: 1010, 40 * time.Second: 1010, 8 * time.Second: 1002} {
		pl.Life = life
		if got := pl.nextOrderTime(time.Unix(1001, 0), orderInterval).Unix(); got != want {
			t.Errorf("life %v: next order at %d, want %d", life, got, want)
		}
	}
	if got := pl.nextOrderTime(time.Unix(500, 0), time.Second).Unix(); got != 501 {
		t.Errorf("with an order in the future: next order at %d, want 501", got)
	}
}

// A certificate that becomes valid in five minutes is served from then on, and the old one until then, by all replicas, and
// even if the process ends meanwhile. It costs one order.
func TestNotValidYet(t *testing.T) {
	t.Parallel()
	for _, restart := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			dir := t.TempDir()
			var orders atomic.Int64
			ca := &fakeCA{answer: func(a *attempt) (*tls.Certificate, error) {
				if orders.Add(1) == 1 {
					return pairFrom(t, time.Now().Add(-65*day), 98*day), nil // renewed with 32 days and 16 hours left
				}
				return pairFrom(t, time.Now().Add(5*time.Minute), 90*day), nil
			}}
			s := schedule(t, dir, ca)
			other := schedule(t, dir, ca)
			sleep(time.Minute)
			old := s.site.current.Load().Leaf
			renewal := renewalTime(old.NotBefore, old.NotAfter, 0)
			check := func(when string, served *x509.Certificate) {
				t.Helper()
				if orders.Load() != 2 {
					t.Errorf("%s: %d orders, want 2", when, orders.Load())
				}
				for _, s := range []*timetable{s, other} {
					if got := s.site.current.Load().Leaf; served != nil != got.Equal(old) || s.Ready() != nil {
						t.Errorf("%s: serving the certificate from %v, Ready = %v", when, got.NotBefore, s.Ready())
					}
				}
			}
			for _, s := range []*timetable{s, other} {
				s.stop()
				s.cfg.lookInterval = 2 * time.Second
				s.start(t)
			}
			sleep(time.Until(renewal) + time.Minute)
			if restart {
				s.stop()
				s = schedule(t, dir, ca)
			}
			sleep(3*time.Minute + 58*time.Second)
			check("before it is valid", old)
			last := s.Status()[0].LastError
			if last == nil || last.Step != "certificate" || !strings.Contains(last.Reason, "it is valid only from ") {
				t.Errorf("LastError = %+v, want that it is not valid yet", last)
			}
			sleep(5 * time.Second)
			check("when it is valid", nil)
			for _, s := range []*timetable{s, other} {
				if st := s.Status()[0]; st.LastError != nil || st.NextAction != "renew" || st.CAs[0].Failures != 0 {
					t.Errorf("Status = %+v, want no failure", st)
				}
			}
			sleep(time.Hour)
			check("an hour later", nil)
			s.stop()
			s = schedule(t, dir, ca)
			check("after a restart", nil)
		})
	}
}

// The engine keeps the key of a certificate that is not valid yet. Without a certificate, that one is served when it is valid.
func TestFirstIsNotValidYet(t *testing.T) {
	t.Parallel()
	tlsLn := acmetest.Listen(t)
	ca, cfg := startCA(t, pebbletest.Config{TLSPort: acmetest.Port(tlsLn)}, domain)
	cfg.lookInterval = 10 * time.Millisecond
	roots := later(t, ca, 3*time.Second, 90*day)
	s := serve(t, cfg, tlsLn, acmetest.Listen(t))
	s.waitFailure(t)
	s.waitReady(t)
	s.leaf(t, domain, roots) // verifies it, at this moment
	acmetest.WaitFor(t, "end of the failure", func() bool { return s.status(t, domain).LastError == nil })
	if got := ca.Orders(); got != 1 {
		t.Errorf("%d orders, want 1", got)
	}
	s.log.one("certificate served from now on")
}

// The rule for what is better, in a table.
func TestBetter(t *testing.T) {
	t.Parallel()
	s := prepareSchedule(t, t.TempDir(), new(fakeCA), new(fakeCA))
	first, second := s.site.authorities[0], s.site.authorities[1]
	now := time.Now()
	pair := func(from, to time.Duration) *tls.Certificate { return pairFrom(t, now.Add(from), to-from) }
	valid, older := pair(-2*time.Hour, day), pair(-3*time.Hour, 2*day)
	for _, test := range []struct {
		name     string
		served   *tls.Certificate
		servedBy *authority
		cert     *tls.Certificate
		from     *authority
		newest   bool
		want     bool
	}{
		{"anything is better than nothing", nil, nil, pair(-2*day, -day), first, false, true},
		{"the same", valid, first, valid, first, true, false},
		{"not valid yet", valid, first, pair(time.Minute, 90*day), first, true, false},
		{"expired", valid, first, pair(-2*day, -day), first, true, false},
		{"valid in place of expired", pair(-2*day, -day), first, older, second, false, true},
		{"valid in place of not valid yet", pair(time.Minute, 90*day), first, older, second, false, true},
		{"the same CA, stored later, whatever its dates", valid, first, older, first, false, true},
		{"another CA, valid since later", older, first, valid, second, false, true},
		{"another CA, valid since earlier", valid, first, older, second, false, false},
		{"another CA, valid since earlier, but just obtained", valid, first, older, second, true, true},
	} {
		s.site.current.Store(nil)
		if test.served != nil && !s.serve(s.site, test.served, test.servedBy, true) {
			t.Fatalf("%s: the first one is not served", test.name)
		}
		if got := s.serve(s.site, test.cert, test.from, test.newest); got != test.want {
			t.Errorf("%s: served %v, want %v", test.name, got, test.want)
		}
		if got := s.site.current.Load().Leaf.Equal(test.cert.Leaf); got != test.want && test.cert != test.served {
			t.Errorf("%s: served in fact %v, want %v", test.name, got, test.want)
		}
	}
}

// A certificate is renewed before the first certificate of its chain ends.
func TestChainEnds(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		start := time.Now()
		var orders []time.Duration
		fake := &fakeCA{answer: func(*attempt) (*tls.Certificate, error) {
			orders = append(orders, time.Since(start))
			ends := 30 * day
			if len(orders) > 1 {
				ends = 1000 * day // the CA has a new intermediate
			}
			ca := acmetest.Sign(t, &x509.Certificate{Subject: pkix.Name{CommonName: "intermediate"}, NotBefore: start.Add(-1000 * day), NotAfter: time.Now().Add(ends),
				IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign}, nil)
			cert := acmetest.Sign(t, &x509.Certificate{DNSNames: []string{"counter.test"}, NotBefore: time.Now(), NotAfter: time.Now().Add(90 * day)}, &ca)
			cert.Certificate = append(cert.Certificate, ca.Certificate[0])
			return &cert, nil
		}}
		s := schedule(t, t.TempDir(), fake)
		sleep(time.Minute)
		if st := s.Status()[0]; st.Ends.Sub(start) != 30*day || st.NotAfter.Sub(start) != 90*day || st.Chain != "" {
			t.Errorf("Status = %+v, want the end of the chain", st)
		}
		sleep(79 * day)
		fake.with(func() {
			if want := []time.Duration{0, 20 * day}; !slices.Equal(orders, want) {
				t.Errorf("orders at %v, want %v", orders, want)
			}
		})
		sleep(2 * day)
		fake.with(func() {
			if len(orders) != 3 {
				t.Errorf("orders at %v, want the next at the usual time", orders)
			}
		})
	})
}

// A chain that ends so soon that the certificate is due already is a failed attempt, and is served for what it is worth.
func TestChainEndsAtOnce(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		orders := 0
		ca := acmetest.Sign(t, &x509.Certificate{Subject: pkix.Name{CommonName: "intermediate"}, NotBefore: time.Now().Add(-1000 * day), NotAfter: time.Now().Add(time.Hour),
			IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign}, nil)
		s := schedule(t, t.TempDir(), &fakeCA{answer: func(*attempt) (*tls.Certificate, error) {
			orders++
			cert := acmetest.Sign(t, &x509.Certificate{DNSNames: []string{"counter.test"}, NotBefore: time.Now().Add(-3 * time.Hour), NotAfter: time.Now().Add(90 * day)}, &ca)
			cert.Certificate = append(cert.Certificate, ca.Certificate[0])
			return &cert, nil
		}})
		sleep(50 * time.Second)
		if last := s.Status()[0].LastError; orders != 1 || s.Ready() != nil || last == nil || !strings.Contains(last.Reason, "its chain ends at ") {
			t.Errorf("%d orders, Ready = %v, LastError = %+v, want one, served, and that its chain ends", orders, s.Ready(), last)
		}
	})
}

// A chain without its intermediate, and one that has expired, are served with a warning.
func TestChainFault(t *testing.T) {
	t.Parallel()
	tlsLn := acmetest.Listen(t)
	ca, cfg := startCA(t, pebbletest.Config{TLSPort: acmetest.Port(tlsLn)}, domain)
	ca.Intercept(pebbletest.CertificatePath, func(w http.ResponseWriter, r *http.Request) {
		rec := httptest.NewRecorder()
		pebbletest.Forward(rec, r)
		block, _ := pem.Decode(rec.Body.Bytes())
		if block == nil {
			send(w, rec, rec.Body.Bytes())
			return
		}
		send(w, rec, pem.EncodeToMemory(block))
	})
	s := serve(t, cfg, tlsLn, acmetest.Listen(t))
	s.waitReady(t)
	e := s.log.one("certificate chain has a fault")
	if e.level != slog.LevelWarn || !strings.Contains(e.attrs["problem"], "it has no certificate of the issuer, CN=Pebble Intermediate CA") {
		t.Errorf("logged %v, want a warning with what is missing", e)
	}
	if got := s.status(t, domain).Chain; got != e.attrs["problem"] {
		t.Errorf("Status says %q of the chain, want %q", got, e.attrs["problem"])
	}
	ca.Intercept(pebbletest.CertificatePath, nil)
	if err := s.Renew(t.Context(), domain); err != nil {
		t.Fatal(err)
	}
	if got := s.status(t, domain).Chain; got != "" || len(s.log.logged("certificate chain has a fault")) != 1 {
		t.Errorf("Status says %q of a good chain, want nothing", got)
	}
}
