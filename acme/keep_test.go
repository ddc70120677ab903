package acme

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"plusminus/acme/internal/acmetest"
	"plusminus/acme/internal/challenge"
	"plusminus/acme/internal/store"
)

// A fakeCA is a [certifier] that answers as a test wants.
type fakeCA struct {
	answer func(*attempt) (*tls.Certificate, error)
	advise func(id string) (renewalInfo, error) // nil offers no renewal information

	mu sync.Mutex // held during each call of these
}

// with calls f while neither func runs. f may read or change what they use.
func (ca *fakeCA) with(f func()) {
	ca.mu.Lock()
	defer ca.mu.Unlock()
	f()
}

// obtain implements [certifier].
func (ca *fakeCA) obtain(_ context.Context, a *attempt) (*tls.Certificate, error) {
	ca.mu.Lock()
	defer ca.mu.Unlock()
	cert, err := ca.answer(a)
	if err == nil {
		a.plan.Issued = append(a.plan.Issued, time.Now())
	}
	return cert, err
}

// renewalInfo implements [certifier].
func (ca *fakeCA) renewalInfo(_ context.Context, id string) (renewalInfo, error) {
	ca.mu.Lock()
	defer ca.mu.Unlock()
	if ca.advise == nil {
		return renewalInfo{CertID: id, FetchAfter: time.Now().Add(latestFetch)}, errNoRenewalInfo
	}
	return ca.advise(id)
}

// restoreAccount implements [certifier]. A fakeCA has no account.
func (ca *fakeCA) restoreAccount() error { return nil }

// A timetable is a Provider with one site, whose CAs are fake.
type timetable struct {
	*Provider
	site *site
	log  *recorder
	stop func() // ends keep; may be called more than once
}

// schedule starts a Provider on the data folder dir. It is for use inside a synctest bubble.
func schedule(t *testing.T, dir string, cas ...*fakeCA) *timetable {
	t.Helper()
	s := prepareSchedule(t, dir, cas...)
	s.start(t)
	return s
}

func prepareSchedule(t *testing.T, dir string, cas ...*fakeCA) *timetable {
	t.Helper()
	log := &recorder{t: t}
	st := newSite("counter.test", sourceACME)
	p := &Provider{
		cfg: Config{now: time.Now, random: func() float64 { return 0 }, lookInterval: time.Hour},
		log: newLogger(log), sites: []*site{st}, byName: map[string]*site{st.name: st}, slots: make(chan struct{}, maxAttempts),
	}
	for i, ca := range cas {
		name := string(rune('a' + i))
		f, err := store.OpenFolder(dir+"/"+name, time.Now, p.log)
		if err != nil {
			t.Fatal(err)
		}
		st.authorities = append(st.authorities, newAuthority(ca, "https://"+name+".example/", f, nil))
	}
	locks, err := store.OpenFolder(dir+"/locks", time.Now, p.log)
	if err != nil {
		t.Fatal(err)
	}
	p.locks = memoryLocks{locks}
	if err := p.look(st); err != nil {
		t.Fatal(err)
	}
	for _, a := range st.authorities {
		a.plan.restarted()
	}
	return &timetable{Provider: p, site: st, log: log}
}

// memoryLocks are locks among the timetables of this process. flock(2) does not do for fake time: while another test starts a
// program, the child has the lock, too, until it runs the program. On a busy machine minutes of fake time pass meanwhile.
type memoryLocks struct{ store.Store }

// heldLocks has the paths of the locks of memoryLocks that are held.
var heldLocks sync.Map

func (l memoryLocks) Lock(name string) (release func(), err error) {
	path := store.LockPath(l.Store, name)
	if _, held := heldLocks.LoadOrStore(path, true); held {
		return nil, store.ErrLocked
	}
	return func() { heldLocks.Delete(path) }, nil
}

func (s *timetable) start(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	s.site.running = true
	go func() { defer close(done); s.keep(ctx, s.site) }()
	s.stop = func() { cancel(); <-done }
	t.Cleanup(s.stop)
}

// sleep advances the clock of a synctest bubble by d, and waits until all goroutines are idle.
func sleep(d time.Duration) {
	time.Sleep(d)
	synctest.Wait()
}

// testPair returns a certificate for counter.test with the given life.
func testPair(t testing.TB, life time.Duration) *tls.Certificate {
	t.Helper()
	cert := acmetest.Sign(t, &x509.Certificate{
		DNSNames:       []string{"counter.test"},
		NotBefore:      time.Now(),
		NotAfter:       time.Now().Add(life),
		AuthorityKeyId: []byte("issuer"), // without it, there is no renewal information
	}, nil)
	return &cert
}

func TestKeepRetries(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		start := time.Now()
		var attempts []time.Duration
		s := schedule(t, t.TempDir(), &fakeCA{answer: func(*attempt) (*tls.Certificate, error) {
			attempts = append(attempts, time.Since(start))
			switch len(attempts) {
			case 3: // a Retry-After does not count as a failure in a row
				return nil, &failure{reason: "limited", retryAfter: time.Now().Add(36 * time.Hour)}
			case 7, 9:
				return testPair(t, 90*day), nil
			case 8:
				return nil, &failure{reason: "down again"}
			}
			return nil, &failure{step: "newOrder", reason: "down"}
		}})
		sleep(200 * day)
		s.stop()
		var want []time.Duration
		at := time.Duration(0)
		for _, wait := range []time.Duration{
			0, time.Minute, 10 * time.Minute, 36 * time.Hour, 100 * time.Minute, day, day, // success
			60 * day, time.Minute, // a renewal, with the first wait again; success
			60 * day, time.Minute,
		} {
			at += wait
			want = append(want, at)
		}
		if len(attempts) < len(want) || !slices.Equal(attempts[:len(want)], want) {
			t.Errorf("attempts at %v, want %v", attempts, want)
		}
		// Error without a valid certificate; Warn for a renewal that failed with weeks left.
		if all := s.log.logged("no certificate obtained"); all[5].level != slog.LevelError || all[6].level != slog.LevelWarn {
			t.Errorf("failures logged at %v, then %v for a renewal, want ERROR, then WARN", all[5].level, all[6].level)
		}
		if st := s.Status()[0].CAs[0]; st.Attempts["ok"] != 2 || st.Attempts["newOrder"] < 5 {
			t.Errorf("attempts told as %v", st.Attempts)
		}
	})
}

// A process that is killed and restarted all the time makes as many attempts as one that keeps running.
func TestKeepCrashLoop(t *testing.T) {
	t.Parallel()
	attemptsOf := func(t *testing.T, crash bool) (attempts []time.Duration) {
		synctest.Test(t, func(t *testing.T) {
			dir, start := t.TempDir(), time.Now()
			ca := &fakeCA{answer: func(a *attempt) (*tls.Certificate, error) {
				attempts = append(attempts, time.Since(start))
				if crash {
					a.ordered = true
					return nil, context.Canceled // as when Run ends: nothing is written afterwards
				}
				return nil, &failure{reason: "down", validations: 1}
			}}
			if !crash {
				s := schedule(t, dir, ca)
				sleep(3 * day)
				s.stop()
				return
			}
			for time.Since(start) < 3*day {
				s := schedule(t, dir, ca)
				sleep(1200 * time.Millisecond) // fifty times a minute
				s.stop()
				if time.Since(start) > 4*time.Minute {
					sleep(5 * time.Minute)
				}
			}
		})
		return attempts
	}
	patient, crashing := attemptsOf(t, false), attemptsOf(t, true)
	if len(crashing) != len(patient) || len(patient) < 5 {
		t.Errorf("attempts at %v in a crash loop, at %v in one run: want as many", crashing, patient)
	}
	for i := range min(len(patient), len(crashing)) {
		if crashing[i] < patient[i] {
			t.Errorf("attempt %d after %v in a crash loop, after %v in one run", i, crashing[i], patient[i])
		}
	}
}

// No schedule and no operator causes more than five failed validations an hour.
func TestKeepBudget(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		start := time.Now()
		var failed []time.Time
		var tried [][]string
		var at []time.Duration
		s := schedule(t, t.TempDir(), &fakeCA{answer: func(a *attempt) (*tls.Certificate, error) {
			a.validations = len(a.challenges)
			tried, at = append(tried, a.challenges), append(at, time.Since(start))
			for range a.challenges {
				failed = append(failed, time.Now())
			}
			return nil, &failure{reason: "unreachable", validations: a.validations}
		}})
		sleep(12 * time.Minute)
		both := []string{challenge.TLSALPN01, challenge.HTTP01}
		if len(tried) != 3 || !slices.Equal(tried[0], both) || !slices.Equal(tried[1], both) || !slices.Equal(tried[2], []string{challenge.TLSALPN01}) {
			t.Errorf("tried %v, want both challenges twice, and then the one that the budget has left", tried)
		}
		if want := []time.Duration{0, time.Minute, 11 * time.Minute}; !slices.Equal(at, want) {
			t.Errorf("attempts at %v, want %v", at, want)
		}

		// The budget binds an operator, too. The error says until when.
		err := s.Renew(t.Context(), "counter.test")
		if err == nil || !strings.Contains(err.Error(), "in an hour: not before "+start.Add(time.Hour).UTC().Format(time.RFC3339)) {
			t.Errorf("Renew = %v, want it refused until an hour after the first failure", err)
		}
		sleep(time.Hour - 12*time.Minute)
		for range 9 { // a minute apart
			s.Renew(t.Context(), "counter.test")
			sleep(time.Minute)
		}
		for i := range failed {
			if within := recent(failed, time.Hour, failed[i]); len(within) > maxFailed {
				t.Errorf("%d failed validations within an hour: %v", len(within), within)
			}
		}
		if len(failed) < 7 {
			t.Errorf("only %d validations were tried in all: Renew did nothing", len(failed))
		}
	})
}

// No operator causes more than five certificates a week.
func TestKeepIssuedBudget(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		issued := 0
		s := schedule(t, t.TempDir(), &fakeCA{answer: func(a *attempt) (*tls.Certificate, error) {
			issued++
			return testPair(t, 90*day), nil
		}})
		for range 10 {
			sleep(time.Hour)
			s.Renew(t.Context(), "counter.test")
		}
		if issued != maxIssued {
			t.Errorf("%d certificates in ten hours, want %d", issued, maxIssued)
		}
		err := s.Renew(t.Context(), "counter.test")
		if err == nil || !strings.Contains(err.Error(), "in a week: not before ") {
			t.Errorf("Renew = %v, want it refused", err)
		}
		sleep(issuedWindow)
		if err := s.Renew(t.Context(), "counter.test"); err != nil {
			t.Errorf("Renew a week later = %v, want nil", err)
		}
	})
}

// After a CA or a disk was away for a night, the next attempt follows within minutes.
func TestKeepRetriesForFree(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		start := time.Now()
		var last time.Duration
		s := schedule(t, t.TempDir(), &fakeCA{answer: func(*attempt) (*tls.Certificate, error) {
			last = time.Since(start)
			if last < 8*time.Hour {
				return nil, &failure{reason: "cannot reach the CA", free: true}
			}
			return testPair(t, 90*day), nil
		}})
		sleep(9 * time.Hour)
		s.stop()
		if want := 8*time.Hour + time.Minute; last != want { // 1 minute, and then every 10
			t.Errorf("the attempt that succeeded came after %v, want %v", last, want)
		}
	})
}

func TestKeepRenews(t *testing.T) {
	t.Parallel()
	for _, test := range []struct{ life, want time.Duration }{
		{90 * day, 60 * day},
		{64 * day, 64 * day * 2 / 3},
		{45 * day, 30 * day},
		{160 * time.Hour, 80 * time.Hour},
	} {
		synctest.Test(t, func(t *testing.T) {
			var orders atomic.Int64
			s := schedule(t, t.TempDir(), &fakeCA{answer: func(*attempt) (*tls.Certificate, error) {
				orders.Add(1)
				return testPair(t, test.life), nil
			}})
			for n := range 3 {
				sleep(test.want - time.Second) // certificates have whole seconds
				if got := orders.Load(); got != int64(n+1) {
					t.Errorf("life %v: %d orders before renewal %d, want %d", test.life, got, n+1, n+1)
				}
				sleep(time.Second)
				if got := orders.Load(); got != int64(n+2) {
					t.Errorf("life %v: %d orders at renewal %d, want %d", test.life, got, n+1, n+2)
				}
				if err := s.Ready(); err != nil {
					t.Errorf("life %v: Ready = %v, want nil", test.life, err)
				}
			}
		})
	}
}

// The next look notices a clock that was set forward, as after a suspend.
func TestKeepNoticesClock(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var ahead atomic.Int64 // nanoseconds
		var orders atomic.Int64
		s := prepareSchedule(t, t.TempDir(), &fakeCA{answer: func(*attempt) (*tls.Certificate, error) {
			orders.Add(1)
			cert := acmetest.SelfSigned(t, "counter.test", time.Now(), time.Now().Add(400*day))
			return &cert, nil // which has no renewal information
		}})
		s.cfg.now = func() time.Time { return time.Now().Add(time.Duration(ahead.Load())) }
		s.serve(s.site, testPair(t, 90*day), nil, true)
		s.start(t)

		synctest.Wait()
		ahead.Store(int64(60 * day))
		sleep(s.cfg.lookInterval)
		if got := orders.Load(); got != 1 {
			t.Errorf("%d orders a look after the clock jumped past the renewal, want 1", got)
		}
	})
}

// A plan from a clock that was years ahead delays attempts by the intervals in the plan, and not by years.
func TestPlanFromTheFuture(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		dir := t.TempDir()
		var orders atomic.Int64
		ca := &fakeCA{answer: func(*attempt) (*tls.Certificate, error) { orders.Add(1); return testPair(t, 90*day), nil }}
		s := prepareSchedule(t, dir, ca)
		future := time.Now().AddDate(5, 0, 0)
		pl := &plan{Failures: 4, FailingSince: future, NotBefore: future.Add(day), RetryAfter: future.Add(day),
			Failed: slices.Repeat([]time.Time{future}, 5), Issued: slices.Repeat([]time.Time{future}, 5)}
		if err := pl.save(s.site.authorities[0].store, "counter.test", future); err != nil {
			t.Fatal(err)
		}
		s.start(t)
		sleep(issuedWindow - time.Minute)
		if got := orders.Load(); got != 0 {
			t.Errorf("%d orders while five certificates of a week are on the books", got)
		}
		sleep(time.Hour + time.Minute)
		if got := orders.Load(); got != 1 {
			t.Errorf("%d orders after that, want 1", got)
		}
	})
}

// The fallback is asked when the CA has failed for hours. At the next renewal the CA is asked first again.
func TestKeepFallback(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		start := time.Now()
		down := true
		var first, second []time.Duration
		dir := t.TempDir()
		cas := []*fakeCA{
			{answer: func(*attempt) (*tls.Certificate, error) {
				first = append(first, time.Since(start))
				if down {
					return nil, &failure{step: "newOrder", reason: "down"}
				}
				return testPair(t, 90*day), nil
			}},
			{answer: func(a *attempt) (*tls.Certificate, error) {
				second = append(second, time.Since(start))
				if a.replaces != "" {
					t.Errorf("the fallback is asked to replace %s", a.replaces)
				}
				if len(second) == 1 {
					return nil, &failure{step: "newOrder", reason: "down, too"}
				}
				return testPair(t, 90*day), nil
			}},
		}
		s := schedule(t, dir, cas...)
		sleep(day)
		const m = time.Minute
		if want := []time.Duration{0, m, 11 * m, 111 * m}; !slices.Equal(first, want) {
			t.Errorf("the CA was asked at %v, want %v", first, want)
		}
		if want := []time.Duration{180 * m, 181 * m}; !slices.Equal(second, want) {
			t.Errorf("the fallback was asked at %v, want %v", second, want)
		}
		if got := s.Status()[0]; got.Directory != "https://b.example/" || got.LastError != nil || got.NextAction != "renew" || got.CAs[0].Failures != 0 {
			t.Errorf("Status = %+v, want the fallback's certificate, and peace until its renewal", got)
		}
		if e := s.log.one("another CA than before"); e.level != slog.LevelWarn || e.attrs["err"] != "down" || e.attrs["instead_of"] != "https://a.example/" {
			t.Errorf("logged %v, want a warning with why the CA gave none", e)
		}
		s.stop()
		s = schedule(t, dir, cas...) // the stored certificate of the fallback is loaded
		if err := s.Ready(); err != nil {
			t.Errorf("Ready after a restart = %v", err)
		}

		cas[0].with(func() { down = false })
		sleep(60 * day)
		if len(first) != 5 || len(second) != 2 || s.Status()[0].Directory != "https://a.example/" {
			t.Errorf("after the recovery the CA was asked at %v, the fallback at %v, and %s serves", first, second, s.Status()[0].Directory)
		}
	})
}

// While the certificate is valid, the CA has half of its remaining life to recover before the fallback is asked.
func TestKeepFallbackOnRenewal(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		start := time.Now()
		var second []time.Duration
		n := 0
		schedule(t, t.TempDir(),
			&fakeCA{answer: func(*attempt) (*tls.Certificate, error) {
				if n++; n == 1 {
					return testPair(t, 90*day), nil
				}
				return nil, &failure{step: "newOrder", reason: "down"}
			}},
			&fakeCA{answer: func(*attempt) (*tls.Certificate, error) {
				second = append(second, time.Since(start))
				return testPair(t, 90*day), nil
			}})
		sleep(80 * day)
		if want := []time.Duration{75 * day}; !slices.Equal(second, want) {
			t.Errorf("the fallback was asked at %v, want %v", second, want)
		}
	})
}

// Renewal information decides when to renew, and survives a restart.
func TestKeepRenewalInfo(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		start, dir := time.Now(), t.TempDir()
		from, to := 40*day, 41*day
		var orders, asked []time.Duration
		var replaced []string
		fail := false
		ca := &fakeCA{
			answer: func(a *attempt) (*tls.Certificate, error) {
				orders, replaced = append(orders, time.Since(start)), append(replaced, a.replaces)
				return testPair(t, 90*day), nil
			},
			advise: func(id string) (renewalInfo, error) {
				asked = append(asked, time.Since(start))
				info := renewalInfo{CertID: id, FetchAfter: time.Now().Add(6 * time.Hour)}
				if fail {
					return info, errors.New("HTTP 500")
				}
				info.Start, info.End = start.Add(from), start.Add(to)
				return info, nil
			},
		}
		s := prepareSchedule(t, dir, ca)
		s.cfg.random = func() float64 { return 0.25 }
		s.start(t)
		sleep(12*time.Hour + time.Second)
		if want := []time.Duration{0, 6 * time.Hour, 12 * time.Hour}; !slices.Equal(asked, want) {
			t.Errorf("the CA was asked at %v, want %v", asked, want)
		}
		chosen := start.Add(from + (to-from)/4)
		if got := s.Status()[0]; !got.NextAttempt.Equal(chosen) || !got.Renewal.Chosen.Equal(chosen) || got.NextAction != "renew" {
			t.Errorf("renewal %v planned at %v, want %v", got.Renewal, got.NextAttempt, chosen)
		}

		s.stop()
		s = prepareSchedule(t, dir, ca)
		s.cfg.random = func() float64 { return 0.75 } // would choose another moment
		s.start(t)
		ca.with(func() { fail = true }) // the earlier window holds
		sleep(time.Until(chosen.Add(-time.Second)))
		if len(orders) != 1 {
			t.Errorf("orders at %v, want none before the chosen moment", orders)
		}
		ca.with(func() { fail, from, to = false, 100*day, 101*day }) // of the next certificate
		sleep(time.Second)
		id, _ := certID(s.site.current.Load().Leaf)
		if want := []time.Duration{0, chosen.Sub(start)}; !slices.Equal(orders, want) || replaced[0] != "" || replaced[1] == "" || replaced[1] == id {
			t.Errorf("orders at %v, want %v; replacing %v", orders, want, replaced)
		}

		// A window in the past, as after a revocation, causes a renewal at once.
		ca.with(func() { from, to = 0, time.Hour })
		sleep(6*time.Hour + time.Second)
		ca.with(func() {
			if len(orders) != 3 {
				t.Errorf("orders at %v, want another one when the window has passed", orders)
			}
		})
		// The CA gives such a window for each new certificate. That causes one renewal a day.
		sleep(5 * day)
		if wait := orders[3] - orders[2]; len(orders) > 9 || wait < 17*time.Hour {
			t.Errorf("orders at %v, want one a day when each window has passed from the start", orders)
		}
	})
}

// A window that lies too late does not delay the renewal beyond the last twentieth of the life.
func TestKeepRenewalInfoTooLate(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		start := time.Now()
		var orders []time.Duration
		s := schedule(t, t.TempDir(), &fakeCA{
			answer: func(a *attempt) (*tls.Certificate, error) {
				orders = append(orders, time.Since(start).Round(time.Minute))
				return testPair(t, 100*day), nil
			},
			advise: func(id string) (renewalInfo, error) {
				return renewalInfo{CertID: id, Start: start.AddDate(1, 0, 0), End: start.AddDate(2, 0, 0), FetchAfter: time.Now().Add(day)}, nil
			},
		})
		sleep(96 * day)
		s.stop()
		if want := []time.Duration{0, 95 * day}; !slices.Equal(orders, want) {
			t.Errorf("orders at %v, want %v", orders, want)
		}
	})
}

func TestRenew(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		orders := 0
		var err error
		s := schedule(t, t.TempDir(), &fakeCA{answer: func(a *attempt) (*tls.Certificate, error) {
			orders++
			sleep(10 * time.Second)
			if err != nil {
				return nil, err
			}
			return testPair(t, 90*day), nil
		}})
		// A Renew during the first attempt is content with its certificate.
		sleep(time.Second)
		if err := s.Renew(t.Context(), "counter.test"); err != nil || orders != 1 {
			t.Errorf("Renew during an attempt = %v with %d orders, want nil with 1", err, orders)
		}
		sleep(time.Hour)
		if err := s.Renew(t.Context(), "counter.test"); err != nil || orders != 2 {
			t.Errorf("Renew = %v with %d orders, want nil with 2", err, orders)
		}
		// Renew ignores our own backoff, but not the CA's Retry-After.
		for range 3 {
			err = &failure{reason: "no luck"}
			if got := s.Renew(t.Context(), "counter.test"); got == nil || got.Error() != "no luck" {
				t.Errorf("Renew = %v, want the reason", got)
			}
		}
		if orders != 5 {
			t.Errorf("%d orders, want 5", orders)
		}
		err = &failure{reason: "limited", retryAfter: time.Now().Add(day)}
		s.Renew(t.Context(), "counter.test")
		got := s.Renew(t.Context(), "counter.test")
		if got == nil || !strings.Contains(got.Error(), "the CA said to come back later: not before ") || orders != 6 {
			t.Errorf("Renew = %v with %d orders, want it refused", got, orders)
		}
		if got := s.Renew(t.Context(), "other.test"); !errors.Is(got, ErrUnknownDomain) {
			t.Errorf("Renew(other.test) = %v, want ErrUnknownDomain", got)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		s.stop()
		if got := s.Renew(ctx, "counter.test"); !errors.Is(got, context.DeadlineExceeded) {
			t.Errorf("Renew while nothing runs = %v, want its context's error", got)
		}
	})
}

// When the certificate expires because all attempts failed, that is logged once, at that moment.
func TestKeepShouts(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		start, orders := time.Now(), 0
		s := schedule(t, t.TempDir(), &fakeCA{answer: func(*attempt) (*tls.Certificate, error) {
			if orders++; orders == 1 || time.Since(start) > 92*day {
				return testPair(t, 90*day), nil
			}
			return nil, &failure{step: "newOrder", reason: "down"}
		}})
		sleep(90*day - time.Hour)
		if got := s.log.logged("visitors are refused"); len(got) != 0 {
			t.Errorf("logged %v before the certificate expired", got)
		}
		sleep(2 * time.Hour)
		e := s.log.one("visitors are refused")
		if e.level != slog.LevelError || !strings.Contains(e.attrs["problem"], "expired at ") || e.attrs["next_attempt"] == "" {
			t.Errorf("logged %v, want an error with the reason and the next attempt", e)
		}
		sleep(4 * day)
		if err := s.Ready(); err != nil {
			t.Errorf("Ready = %v after the CA is back", err)
		}
		s.log.one("visitors are refused") // still
	})
}

// When the fallback gives a certificate, the first CA's refusal is history, also one with a Retry-After, which counts as no
// failure in a row.
func TestFallbackEndsTheFailure(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		until := time.Now().Add(7 * day)
		s := schedule(t, t.TempDir(),
			&fakeCA{answer: func(*attempt) (*tls.Certificate, error) {
				return nil, &failure{step: "newOrder", kind: "rateLimited", reason: "limited", retryAfter: until}
			}},
			&fakeCA{answer: func(*attempt) (*tls.Certificate, error) { return testPair(t, 90*day), nil }})
		sleep(time.Hour)
		if st := s.Status()[0]; st.LastError == nil || st.NextAction != "retry" {
			t.Fatalf("Status = %+v, want the refusal", st)
		}
		sleep(3 * time.Hour)
		if st := s.Status()[0]; st.Problem != "" || st.LastError != nil || st.NextAction != "renew" || st.CAs[0].LastError != nil || !st.CAs[0].RetryAfter.Equal(until) {
			t.Errorf("Status = %+v, want a certificate, no error, and the Retry-After for later", st)
		}
	})
}
