package acme

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"plusminus/acme/internal/acmetest"
	"plusminus/acme/internal/store"
	"plusminus/acme/pebbletest"
)

// Rare faults: clocks, disks, replicas that hang, and CAs that never finish.

// wrongClock gives s a clock that is ahead by the result, in nanoseconds.
func wrongClock(s *timetable, ahead time.Duration) *atomic.Int64 {
	v := new(atomic.Int64)
	v.Store(int64(ahead))
	s.cfg.now = func() time.Time { return time.Now().Add(time.Duration(v.Load())) }
	s.cfg.lookInterval = 2 * time.Second
	return v
}

// waitEnd waits until an attempt of s has ended and its result is published.
func waitEnd(t *testing.T, s *server) {
	t.Helper()
	acmetest.WaitFor(t, "end of an attempt", func() bool {
		st := s.status(t, domain)
		return st.LastError != nil || len(st.CAs) > 0 && st.CAs[0].Attempts["ok"] > 0
	})
}

// After a clock that was two years ahead is corrected, the next attempt follows within minutes. Renew works after
// a clock was set back.
func TestClockWasAhead(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var ahead *atomic.Int64
		orders := 0
		s := prepareSchedule(t, t.TempDir(), &fakeCA{answer: func(*attempt) (*tls.Certificate, error) {
			if ahead.Load() != 0 {
				return nil, &failure{step: "clock", reason: "ahead", free: true}
			}
			orders++
			return testPair(t, 90*day), nil
		}})
		ahead = wrongClock(s, 2*365*day)
		s.start(t)
		sleep(5 * time.Second)
		ahead.Store(0)
		sleep(2 * time.Minute)
		if orders != 1 {
			t.Fatalf("%d orders two minutes after the clock was set right, want 1", orders)
		}
		ahead.Store(int64(-time.Hour)) // less than the certificate's age, or it would not be valid
		sleep(2 * time.Hour)
		ahead.Store(int64(-2 * time.Hour))
		sleep(5 * time.Second)
		before := s.site.current.Load()
		ahead.Store(0)
		if err := s.Renew(t.Context(), "counter.test"); err != nil || s.site.current.Load() == before {
			t.Errorf("Renew = %v, and the same certificate as before: %v", err, s.site.current.Load() == before)
		}
	})
}

// A machine without a clock battery starts with its clock behind. It keeps the CA's Retry-After and counts.
func TestClockBehindAtStart(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		dir := t.TempDir()
		asked := 0
		var ahead *atomic.Int64
		ca := &fakeCA{answer: func(*attempt) (*tls.Certificate, error) {
			if ahead.Load() != 0 {
				return nil, &failure{step: "clock", reason: "behind", free: true}
			}
			asked++
			return testPair(t, 90*day), nil
		}}
		s := prepareSchedule(t, dir, ca)
		now := time.Now()
		pl := &plan{Failures: 5, FailingSince: now, NotBefore: now.Add(day), RetryAfter: now.Add(7 * day),
			Failed: []time.Time{now, now, now, now, now}, Issued: []time.Time{now, now, now, now, now}}
		if err := pl.save(s.site.authorities[0].store, "counter.test", now); err != nil {
			t.Fatal(err)
		}
		s = prepareSchedule(t, dir, ca)
		ahead = wrongClock(s, -20*time.Minute)
		s.cfg.lookInterval = 30 * time.Second // a week of looks every 2 s takes seconds
		var err error
		if s.site.authorities[0].plan, err = loadPlan(s.site.authorities[0].store, "counter.test", s.now()); err != nil {
			t.Fatal(err)
		}
		s.start(t)
		sleep(10 * time.Second)
		ahead.Store(0)
		sleep(7*day - time.Minute)
		if asked != 0 {
			t.Errorf("the CA was asked %d times before its Retry-After", asked)
		}
		st := s.Status()[0].CAs[0]
		if want := now.Add(7 * day); !st.RetryAfter.Equal(want) || st.Failures != 5 {
			t.Errorf("Retry-After %v, %d failures, want %v and 5", st.RetryAfter, st.Failures, want)
		}
		sleep(time.Minute)
		if asked != 1 {
			t.Errorf("the CA was asked %d times when that was over, want once", asked)
		}
	})
}

// A local CA that was made while the clock was ahead is replaced.
func TestLocalClock(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		cfg, _ := localConfig(t, dir, "localhost")
		var ahead atomic.Int64
		ahead.Store(int64(20 * 365 * day))
		cfg.now = func() time.Time { return time.Now().Add(time.Duration(ahead.Load())) }
		p, err := New(cfg)
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		go p.Run(ctx)
		synctest.Wait()
		ahead.Store(0)
		time.Sleep(2 * time.Hour)
		synctest.Wait()
		if err := p.Ready(); err != nil {
			t.Errorf("Ready = %v", err)
		}
		if _, err := p.sites[0].current.Load().Leaf.Verify(x509.VerifyOptions{DNSName: "localhost", Roots: trusting(t, dir), CurrentTime: time.Now()}); err != nil {
			t.Errorf("a client that trusts the root: %v", err)
		}
	})
}

// A server starts on a read-only disk and serves the stored certificate. It places no order.
func TestReadOnlyRestart(t *testing.T) {
	t.Parallel()
	tlsLn := acmetest.Listen(t)
	ca, cfg := startCA(t, pebbletest.Config{TLSPort: acmetest.Port(tlsLn)}, domain)
	s := serve(t, cfg, tlsLn, acmetest.Listen(t))
	acmetest.WaitFor(t, "renewal information", func() bool { return s.status(t, domain).Renewal != nil })
	s.stop()
	for _, args := range [][]string{{"--bind", cfg.Dir, cfg.Dir}, {"-o", "remount,ro,bind", cfg.Dir}} {
		if out, err := exec.Command("mount", args...).CombinedOutput(); err != nil {
			t.Skipf("needs root and mount: %v: %s", err, out)
		}
		if args[0] == "--bind" {
			t.Cleanup(func() { exec.Command("umount", cfg.Dir).Run() })
		}
	}
	if err := os.WriteFile(filepath.Join(cfg.Dir, "x"), nil, 0o600); err == nil {
		t.Fatal("the folder can be written")
	}
	s = serve(t, cfg, acmetest.Listen(t), acmetest.Listen(t))
	if err := s.Ready(); err != nil {
		t.Errorf("Ready = %v", err)
	}
	s.leaf(t, domain, ca.IssuingRoots)
	if err := s.Renew(t.Context(), domain); err == nil || !strings.Contains(err.Error(), "read-only file system") {
		t.Errorf("Renew = %v, want the reason", err)
	}
	if got := ca.Orders(); got != 1 {
		t.Errorf("%d orders, want none that cannot be stored", got)
	}
}

// The reason of a failed write is valid UTF-8, whatever the folder's name, and the same at each attempt.
func TestReasonIsText(t *testing.T) {
	t.Parallel()
	ca := pebbletest.Start(t, pebbletest.Config{})
	cfg := configFor(t, ca, t.TempDir()+"/d\xe9mo", domain)
	s := serveLater(t, cfg)
	if err := os.Mkdir(s.issuers[0].store.Path(domain+"+probe"), 0o700); err != nil {
		t.Fatal(err)
	}
	s.run()
	s.waitFailure(t)
	first := s.status(t, domain).LastError.Reason
	s.Renew(t.Context(), domain)
	if second := s.status(t, domain).LastError.Reason; first != second || !strings.Contains(first, "d\uFFFDmo/acme/") {
		t.Errorf("reasons %q and %q, want them alike and legible", first, second)
	}
}

// Two faults after finalize lose no certificate: a load balancer's 502, and a replica of the CA that lags.
func TestFinalizeInDoubt(t *testing.T) {
	t.Parallel()
	for name, fault := range map[string]func(*pebbletest.CA){
		"502 after it was taken": func(ca *pebbletest.CA) {
			ca.Inject(pebbletest.FinalizePath, 1, func(w http.ResponseWriter, r *http.Request) {
				pebbletest.Forward(httptest.NewRecorder(), r)
				pebbletest.HTML(502)(w, r)
			})
		},
		"ready after finalize": func(ca *pebbletest.CA) {
			ca.Inject(pebbletest.FinalizePath, 1, pebbletest.Processing(""))
			ca.Inject(pebbletest.OrderPath, 1, pebbletest.Forward)
			ca.Inject(pebbletest.OrderPath, 1, func(w http.ResponseWriter, r *http.Request) {
				w.Header().Set("Content-Type", "application/json")
				w.Write([]byte(`{"status":"ready"}`))
			})
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			tlsLn := acmetest.Listen(t)
			ca, cfg := startCA(t, pebbletest.Config{TLSPort: acmetest.Port(tlsLn)}, domain)
			fault(ca)
			s := serve(t, cfg, tlsLn, acmetest.Listen(t))
			waitEnd(t, s)
			if s.Ready() != nil {
				if err := s.Renew(t.Context(), domain); err != nil {
					t.Fatal(err)
				}
			}
			if got := ca.Orders(); got != 1 {
				t.Errorf("%d orders, want 1", got)
			}
			if got := s.status(t, domain).CAs[0].CertificatesLeft; got != maxIssued-1 {
				t.Errorf("%d certificates left, want %d", got, maxIssued-1)
			}
		})
	}
}

// An order that the CA has lost is given up by the next attempt.
func TestOrderLeadsNowhere(t *testing.T) {
	t.Parallel()
	tlsLn := acmetest.Listen(t)
	ca, cfg := startCA(t, pebbletest.Config{TLSPort: acmetest.Port(tlsLn)}, domain)
	cfg.patience = 100 * time.Millisecond
	ca.Inject(pebbletest.FinalizePath, 1, pebbletest.Drop)
	ca.Inject(pebbletest.OrderPath, 1, pebbletest.Forward)
	lift := ca.Inject(pebbletest.OrderPath, -1, pebbletest.HTML(404))
	s := serve(t, cfg, tlsLn, acmetest.Listen(t))
	s.waitFailure(t)
	if err := s.Renew(t.Context(), domain); err == nil {
		t.Errorf("Renew = nil, although the CA gives no order")
	}
	if got := ca.Orders(); got != 2 {
		t.Errorf("%d orders, want another one", got)
	}
	lift()
	if err := s.Renew(t.Context(), domain); err != nil {
		t.Errorf("Renew = %v", err)
	}
}

// An order that the CA does not finish is given up after a few attempts.
func TestOrderIsStuck(t *testing.T) {
	t.Parallel()
	tlsLn := acmetest.Listen(t)
	ca, cfg := startCA(t, pebbletest.Config{TLSPort: acmetest.Port(tlsLn)}, domain)
	ca.Intercept(pebbletest.ChallengePath, pebbletest.Problem(403, "unauthorized", "this one is broken", ""))
	s := serve(t, cfg, tlsLn, acmetest.Listen(t))
	s.waitFailure(t)
	for n := range maxTaken {
		if err := s.Renew(t.Context(), domain); err == nil || ca.Orders() != 1 {
			t.Errorf("attempt %d: %v, %d orders, want the first order, and a failure", n+2, err, ca.Orders())
		}
	}
	ca.Intercept(pebbletest.ChallengePath, nil)
	if err := s.Renew(t.Context(), domain); err != nil || ca.Orders() != 2 {
		t.Errorf("the last attempt: %v, %d orders, want another order, and a certificate", err, ca.Orders())
	}
	s.log.one("order given up")
}

// A process that stops while the CA issues waits for the certificate and stores it.
func TestStopAfterFinalize(t *testing.T) {
	t.Parallel()
	tlsLn := acmetest.Listen(t)
	ca, cfg := startCA(t, pebbletest.Config{TLSPort: acmetest.Port(tlsLn)}, domain)
	issuing := make(chan struct{})
	ca.Inject(pebbletest.FinalizePath, 1, func(w http.ResponseWriter, r *http.Request) {
		ca.Inject(pebbletest.OrderPath, 4, pebbletest.Processing(""))
		pebbletest.Forward(w, r)
		close(issuing)
	})
	s := serve(t, cfg, tlsLn, acmetest.Listen(t))
	<-issuing
	s.stop()
	s = serveLater(t, cfg)
	if err := s.Ready(); err != nil || ca.Orders() != 1 {
		t.Errorf("Ready after a restart = %v, with %d orders, want the certificate of the first", err, ca.Orders())
	}
}

// A process that stops during finalize, when the CA does not answer, loses that one certificate, whose key it had in memory. It has counted it.
func TestStopDuringFinalize(t *testing.T) {
	t.Parallel()
	tlsLn := acmetest.Listen(t)
	ca, cfg := startCA(t, pebbletest.Config{TLSPort: acmetest.Port(tlsLn)}, domain)
	ca.Inject(pebbletest.OrderPath, 1, pebbletest.Problem(503, "serverInternal", "busy", "0")) // the first attempt ends after the validation
	s := serve(t, cfg, tlsLn, acmetest.Listen(t))
	s.waitFailure(t)
	taken := make(chan struct{})
	ca.Inject(pebbletest.FinalizePath, 1, func(w http.ResponseWriter, r *http.Request) {
		pebbletest.Forward(httptest.NewRecorder(), r)
		close(taken)
		pebbletest.Hang(w, r)
	})
	go s.Renew(t.Context(), domain)
	<-taken
	s.stop()
	s = serve(t, cfg, tlsLn, acmetest.Listen(t))
	waitEnd(t, s)
	if s.Ready() != nil {
		if err := s.Renew(t.Context(), domain); err != nil {
			t.Fatal(err)
		}
	}
	s.stop()
	if left := s.status(t, domain).CAs[0].CertificatesLeft; ca.Orders() != 2 || left != maxIssued-2 {
		t.Errorf("%d orders, %d certificates left, want 2 and %d", ca.Orders(), left, maxIssued-2)
	}
	s.log.one("certificate lost")
}

// After a refusal with another cause, later orders still name the certificate that they replace.
func TestReplacesIsNotToBlame(t *testing.T) {
	t.Parallel()
	tlsLn := acmetest.Listen(t)
	ca, cfg := startCA(t, pebbletest.Config{TLSPort: acmetest.Port(tlsLn)}, domain)
	s := serve(t, cfg, tlsLn, acmetest.Listen(t))
	acmetest.WaitFor(t, "renewal information", func() bool { return s.status(t, domain).Renewal != nil })
	ca.Inject(pebbletest.NewOrderPath, 2, pebbletest.Problem(403, "rejectedIdentifier", "a mishap", ""))
	if err := s.Renew(t.Context(), domain); err == nil {
		t.Fatal("Renew = nil, want the refusal")
	}
	if err := s.Renew(t.Context(), domain); err != nil {
		t.Fatal(err)
	}
	orders := ca.NewOrders()
	if len(orders) != 4 || orders[1].Replaces == "" || orders[2].Replaces != "" || orders[3].Replaces != orders[1].Replaces {
		t.Errorf("orders %+v, want the last one to name what it replaces", orders)
	}
}

// A CA may fail over `replaces` each time, as plain Pebble 2.10.1 does for 1 of 256 certificates. The renewal then
// succeeds without the field.
func TestReplacesFailsTheCA(t *testing.T) {
	t.Parallel()
	tlsLn := acmetest.Listen(t)
	ca, cfg := startCA(t, pebbletest.Config{TLSPort: acmetest.Port(tlsLn)}, domain)
	s := serve(t, cfg, tlsLn, acmetest.Listen(t))
	acmetest.WaitFor(t, "renewal information", func() bool { return s.status(t, domain).Renewal != nil })
	serial := s.status(t, domain).Serial
	const tries = 4 // the client repeats a request that meets a 500
	ca.Inject(pebbletest.NewOrderPath, tries, pebbletest.Problem(500, "serverInternal", "could not find an order for the given certificate", ""))
	if err := s.Renew(t.Context(), domain); err != nil {
		t.Fatal(err)
	}
	orders := ca.NewOrders()
	if n := len(orders); n != 1+tries+1 || orders[n-2].Replaces == "" || orders[n-1].Replaces != "" {
		t.Errorf("orders %+v, want the last one to name nothing", orders)
	}
	if got := s.status(t, domain).Serial; got == serial {
		t.Error("the certificate is the old one")
	}
}

// While one replica makes an attempt, the others wait and do not ask the fallback.
func TestFallbackWaitsForOthers(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var down atomic.Bool
		down.Store(true)
		var asked [2]atomic.Int64
		dir := t.TempDir()
		cas := []*fakeCA{
			{answer: func(*attempt) (*tls.Certificate, error) {
				asked[0].Add(1)
				if down.Load() {
					return nil, &failure{step: "newOrder", reason: "down"}
				}
				time.Sleep(5 * time.Second)
				return testPair(t, 90*day), nil
			}},
			{answer: func(*attempt) (*tls.Certificate, error) { asked[1].Add(1); return testPair(t, 90*day), nil }},
		}
		a := schedule(t, dir, cas...)
		sleep(4 * time.Hour)
		b := schedule(t, dir, cas...)
		if asked[1].Load() != 1 {
			t.Fatalf("the fallback was asked %d times in four hours, want once", asked[1].Load())
		}
		down.Store(false)
		first := asked[0].Load()
		sleep(70 * day)
		if asked[0].Load() != first+1 || asked[1].Load() != 1 {
			t.Errorf("at the renewal the CA was asked %d times, the fallback %d, want once and never", asked[0].Load()-first, asked[1].Load()-1)
		}
		for _, s := range []*timetable{a, b} {
			if got := s.Status()[0].Directory; got != "https://a.example/" {
				t.Errorf("%s serves", got)
			}
		}
	})
}

// Failures of the last renewal do not count at the next one: the CA again has hours before the fallback is asked.
func TestFallbackIsNotForEver(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		start := time.Now()
		var first, second []time.Duration
		s := schedule(t, t.TempDir(),
			&fakeCA{answer: func(*attempt) (*tls.Certificate, error) {
				first = append(first, time.Since(start))
				if time.Since(start) < 4*time.Hour || len(first) == 5 { // one failure at the renewal
					return nil, &failure{step: "newOrder", reason: "down"}
				}
				return testPair(t, 90*day), nil
			}},
			&fakeCA{answer: func(*attempt) (*tls.Certificate, error) {
				second = append(second, time.Since(start))
				return testPair(t, 90*day), nil
			}})
		sleep(70 * day)
		if len(first) != 6 || first[5]-first[4] != time.Minute || len(second) != 1 || s.Status()[0].Directory != "https://a.example/" {
			t.Errorf("the CA was asked at %v, the fallback at %v, and %s serves", first, second, s.Status()[0].Directory)
		}
	})
}

// An attempt that another replica is making is not shown as a failure.
func TestAttemptUnderWay(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		dir := t.TempDir()
		ca := &fakeCA{answer: func(a *attempt) (*tls.Certificate, error) {
			time.Sleep(8 * time.Second)
			return testPair(t, 90*day), nil
		}}
		schedule(t, dir, ca)
		sleep(time.Second)
		other := schedule(t, dir, &fakeCA{})
		sleep(time.Second)
		if st := other.Status()[0]; st.LastError != nil || st.CAs[0].Failures != 0 || st.NextAction != "obtain" || len(other.log.logged("")) != 0 {
			t.Errorf("Status = %+v, logged %v, want no failure", st, other.log.logged(""))
		}
	})
}

// A replica that never releases the lock is reported.
func TestLockIsHeld(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := prepareSchedule(t, t.TempDir(), &fakeCA{answer: func(*attempt) (*tls.Certificate, error) { return testPair(t, 90*day), nil }})
		release, err := s.locks.Lock("counter.test")
		if err != nil {
			t.Fatal(err)
		}
		s.cfg.lookInterval = 2 * time.Second
		s.start(t)
		sleep(10 * time.Minute)
		if got := s.log.logged(""); len(got) != 0 {
			t.Errorf("logged %v after ten minutes, which an attempt may take", got)
		}
		sleep(time.Hour)
		if e := s.log.one("another replica has held the lock for too long"); !strings.Contains(e.attrs["hint"], "counter.test+lock") {
			t.Errorf("logged %v, want the file", e)
		}
		if last := s.Status()[0].LastError; last == nil || last.Step != "lock" {
			t.Errorf("LastError = %+v, want the lock", last)
		}
		release()
		sleep(2 * time.Second)
		if st := s.Status()[0]; st.Problem != "" || st.LastError != nil {
			t.Errorf("Status = %+v after it was let go", st)
		}
	})
}

// A lock that is held at two tries, months apart, is not held all the time between.
func TestLockIsHeldTwice(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		dir := t.TempDir()
		ca := &fakeCA{answer: func(*attempt) (*tls.Certificate, error) {
			time.Sleep(10 * time.Second)
			return testPair(t, 90*day), nil
		}}
		a, b := prepareSchedule(t, dir, ca), prepareSchedule(t, dir, ca)
		for _, s := range []*timetable{a, b} {
			s.cfg.lookInterval = 10 * time.Minute
			s.start(t)
		}
		sleep(70 * day)
		for _, s := range []*timetable{a, b} {
			if e := s.log.logged("for too long"); len(e) != 0 || s.Status()[0].LastError != nil {
				t.Errorf("logged %v, LastError = %+v, want nothing", e, s.Status()[0].LastError)
			}
		}
	})
}

// A brokenStore stores no certificate while broken is true.
type brokenStore struct {
	store.Store
	broken *atomic.Bool
}

func (st *brokenStore) Write(name string, data []byte) error {
	if st.broken.Load() && !strings.Contains(name, "+") {
		return syscall.EROFS
	}
	return st.Store.Write(name, data)
}

// A certificate that is stored late does not replace a newer one of another replica.
func TestSaveAgainIsLate(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		dir := t.TempDir()
		ca := &fakeCA{answer: func(a *attempt) (*tls.Certificate, error) { return testPair(t, 90*day), nil }}
		a, b := prepareSchedule(t, dir, ca), prepareSchedule(t, dir, ca)
		var broken atomic.Bool // only for a
		broken.Store(true)
		first := a.site.authorities[0]
		first.store = &brokenStore{first.store, &broken}
		a.start(t)
		sleep(time.Second)
		b.start(t)
		sleep(2 * time.Minute)
		if err := b.Renew(t.Context(), "counter.test"); err != nil {
			t.Fatal(err)
		}
		newest := b.site.current.Load().Leaf
		broken.Store(false)
		sleep(2 * time.Hour)
		if got, err := loadCertificate(b.site.authorities[0].store, "counter.test"); err != nil || !got.Leaf.Equal(newest) {
			t.Errorf("stored from %v, %v, want the one from %v", got.Leaf.NotBefore, err, newest.NotBefore)
		}
		if got := a.site.current.Load().Leaf; !got.Equal(newest) {
			t.Errorf("the first replica serves the one from %v, want that from %v", got.NotBefore, newest.NotBefore)
		}
	})
}

// A replica whose clock is a little behind adopts the certificates of others, and fetches renewal information no
// more often than they do.
func TestSlowReplica(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		dir := t.TempDir()
		var orders, asked atomic.Int64
		ca := &fakeCA{answer: func(a *attempt) (*tls.Certificate, error) { orders.Add(1); return testPair(t, 90*day), nil },
			advise: func(id string) (renewalInfo, error) {
				asked.Add(1)
				now := time.Now()
				return renewalInfo{CertID: id, FetchAfter: now.Add(6 * time.Hour), Start: now.Add(59 * day), End: now.Add(60 * day)}, nil
			}}
		a, b := prepareSchedule(t, dir, ca), prepareSchedule(t, dir, ca)
		a.cfg.lookInterval, b.cfg.lookInterval = 2*time.Second, 2*time.Second
		b.cfg.now = func() time.Time { return time.Now().Add(-30 * time.Second) }
		a.start(t)
		b.start(t)
		sleep(2 * time.Minute)
		was := asked.Load()
		if err := a.Renew(t.Context(), "counter.test"); err != nil {
			t.Fatal(err)
		}
		sleep(time.Hour)
		if x, y := a.site.current.Load().Leaf, b.site.current.Load().Leaf; !x.Equal(y) {
			t.Errorf("an hour later one serves the certificate from %v, the other that from %v", x.NotBefore, y.NotBefore)
		}
		if orders.Load() != 2 || asked.Load()-was > 4 {
			t.Errorf("%d orders, want 2; asked %d times within an hour, want some, not each minute", orders.Load(), asked.Load()-was)
		}
	})
}

// A CA that cannot process orders counts nothing, so attempts follow every ten minutes.
func TestOutageIsFree(t *testing.T) {
	t.Parallel()
	for name, fault := range map[string]pebbletest.Fault{"500": pebbletest.Problem(500, "serverInternal", "down", ""), "no answer": pebbletest.Drop} {
		tlsLn := acmetest.Listen(t)
		ca, cfg := startCA(t, pebbletest.Config{TLSPort: acmetest.Port(tlsLn)}, domain)
		ca.Inject(pebbletest.NewOrderPath, -1, fault)
		s := serve(t, cfg, tlsLn, acmetest.Listen(t))
		s.waitFailure(t)
		s.stop()
		if !s.sites[0].authorities[0].plan.Free {
			t.Errorf("%s: the failure counts", name)
		}
	}
}

// After "Retry-After: 0" the next attempt waits a minute.
func TestRetryAfterZero(t *testing.T) {
	t.Parallel()
	for value, want := range map[string]time.Duration{"0": time.Minute, "Mon, 01 Jan 2001 00:00:00 GMT": time.Minute} {
		ca, cfg := startCA(t, pebbletest.Config{}, domain)
		ca.Inject(pebbletest.AnyPath, -1, pebbletest.Problem(503, "serverInternal", "busy", value))
		s := serveLater(t, cfg)
		s.run()
		s.waitFailure(t)
		s.stop()
		if st := s.status(t, domain); st.NextAttempt.Sub(st.LastError.When) != want || st.CAs[0].Failures != 1 {
			t.Errorf("Retry-After %q: next attempt after %v, %d failures, want %v and 1", value, st.NextAttempt.Sub(st.LastError.When), st.CAs[0].Failures, want)
		}
	}
}

// A crash loop at the worst moment, when the CA has issued and the process has not stored the certificate, costs at most
// five certificates a week, however impatient the operator is.
func TestCrashLoopAtFinalize(t *testing.T) {
	t.Parallel()
	tlsLn := acmetest.Listen(t)
	ca, cfg := startCA(t, pebbletest.Config{TLSPort: acmetest.Port(tlsLn)}, domain)
	var later atomic.Int64
	cfg.now = func() time.Time { return time.Now().Add(time.Duration(later.Load())) }
	issued := 0
	for day := range 7 {
		for range 2 {
			taken := make(chan struct{})
			lift := ca.Inject(pebbletest.FinalizePath, 1, func(w http.ResponseWriter, r *http.Request) {
				pebbletest.Forward(httptest.NewRecorder(), r)
				close(taken)
				pebbletest.Hang(w, r)
			})
			s := serve(t, cfg, tlsLn, acmetest.Listen(t))
			refused := make(chan error, 1)
			go func() {
				var notYet *NotYetError
				for err := s.Renew(t.Context(), domain); ; err = s.Renew(t.Context(), domain) {
					if errors.As(err, &notYet) || t.Context().Err() != nil {
						refused <- err
						return
					}
				}
			}()
			select {
			case <-taken:
				issued++
			case err := <-refused:
				if issued != maxIssued {
					t.Errorf("day %d: Renew = %v after %d certificates, want %d first", day, err, issued, maxIssued)
				}
			case <-time.After(acmetest.Patience):
				t.Fatalf("day %d: neither an order nor a refusal", day)
			}
			s.stop()
			lift()
		}
		later.Add(int64(23 * time.Hour))
		ca.ShiftDate(time.Duration(later.Load()))
	}
	if issued != maxIssued {
		t.Errorf("%d certificates issued in a week, want %d", issued, maxIssued)
	}
}
