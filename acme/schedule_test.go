package acme

import (
	"context"
	"crypto/tls"
	"errors"
	"log/slog"
	"slices"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

func TestRetryTime(t *testing.T) {
	t.Parallel()
	now := time.Date(2026, 11, 22, 9, 0, 0, 0, time.UTC)
	for _, test := range []struct {
		failures int
		asked    time.Duration // 0 is not asked
		random   float64
		want     time.Duration
	}{
		{1, 0, 0, time.Minute},
		{2, 0, 0, 10 * time.Minute},
		{3, 0, 0, 100 * time.Minute},
		{4, 0, 0, 24 * time.Hour},
		{1000, 0, 0, 24 * time.Hour},
		{1, 0, 0.5, time.Minute + 3*time.Second},
		{4, 0, 0.5, 24*time.Hour + 72*time.Minute},

		// Retry-After counts in place of our own wait, whether longer or shorter, and is not jittered.
		{1, 7 * day, 0.5, 7 * day},
		{4, time.Hour, 0.5, time.Hour},
		{1, time.Minute + 1, 0.5, time.Minute + 1},
		{1, time.Minute, 0.5, time.Minute},
		{1, time.Minute - 1, 0.5, time.Minute},
		{1, -time.Hour, 0.5, time.Minute},
	} {
		var asked time.Time
		if test.asked != 0 {
			asked = now.Add(test.asked)
		}
		if got := retryTime(now, test.failures, asked, test.random).Sub(now); got != test.want {
			t.Errorf("retryTime(failures %d, asked %v, random %v) is in %v, want %v", test.failures, test.asked, test.random, got, test.want)
		}
	}
}

func TestRenewalTime(t *testing.T) {
	t.Parallel()
	start := time.Date(2026, 11, 22, 9, 0, 0, 0, time.UTC)
	for _, test := range []struct {
		life   time.Duration
		random float64
		want   time.Duration // after start
	}{
		{90 * day, 0, 60 * day},
		{90 * day, 0.5, 60*day + 30*time.Minute},
		{64 * day, 0, 42*day + 16*time.Hour},
		{45 * day, 0, 30 * day},
		{10 * day, 0, 160 * time.Hour},                        // a third of 240 h left
		{10*day - 2, 0, 120*time.Hour - 1},                    // half left
		{160 * time.Hour, 0, 80 * time.Hour},                  // Let's Encrypt's shortlived
		{100 * time.Hour, 0.5, 50*time.Hour + 30*time.Minute}, // a hundredth is an hour
		{10 * time.Hour, 0.5, 5*time.Hour + 3*time.Minute},
		{6 * time.Second, 0, 3 * time.Second},
	} {
		if got := renewalTime(start, start.Add(test.life), test.random).Sub(start); got != test.want {
			t.Errorf("renewalTime(life %v, random %v) is after %v, want %v", test.life, test.random, got, test.want)
		}
	}
}

// newScheduled returns a Provider with one site that obtains its certificates from obtain.
func newScheduled(t *testing.T, obtain func(context.Context) (*tls.Certificate, error)) (*Provider, *site, *recorder) {
	log := &recorder{t: t}
	s := &site{name: "counter.test", source: sourceLocal, obtain: obtain}
	p := &Provider{cfg: Config{now: time.Now, random: func() float64 { return 0 }}, log: newLogger(log), sites: []*site{s}}
	return p, s, log
}

// testPair returns a certificate for counter.test with the given life.
func testPair(t testing.TB, life time.Duration) *tls.Certificate {
	t.Helper()
	cert := selfSigned(t, "counter.test", time.Now(), time.Now().Add(life))
	return &cert
}

func TestKeepRetries(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		start := time.Now()
		var attempts []time.Duration
		p, s, log := newScheduled(t, func(context.Context) (*tls.Certificate, error) {
			attempts = append(attempts, time.Since(start))
			switch len(attempts) {
			case 3: // names a time, which is no step of ours
				return nil, &failure{reason: "limited", retryAfter: time.Now().Add(36 * time.Hour)}
			case 7, 9:
				return testPair(t, 90*day), nil
			case 8:
				return nil, errors.New("down again")
			}
			return nil, errors.New("down")
		})
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() { defer close(done); p.keep(ctx, s) }()

		time.Sleep(200 * day)
		cancel()
		<-done
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
		// Nothing valid: an operator must act. A renewal that failed with weeks to go: we cope.
		if all := log.logged("no certificate obtained"); all[5].level != slog.LevelError || all[6].level != slog.LevelWarn {
			t.Errorf("failures logged at %v, then %v for a renewal, want ERROR, then WARN", all[5].level, all[6].level)
		}
	})
}

// A CA or a disk that is away for a night keeps nobody waiting for another day.
func TestKeepRetriesForFree(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		start := time.Now()
		var last time.Duration
		p, s, _ := newScheduled(t, func(context.Context) (*tls.Certificate, error) {
			last = time.Since(start)
			if last < 8*time.Hour {
				return nil, &failure{reason: "cannot reach the CA", free: true}
			}
			return testPair(t, 90*day), nil
		})
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() { defer close(done); p.keep(ctx, s) }()
		time.Sleep(9 * time.Hour)
		cancel()
		<-done
		if want := 8*time.Hour + time.Minute; last != want { // 1 minute, and then every 10
			t.Errorf("the attempt that succeeded came after %v, want %v", last, want)
		}
	})
}

func TestKeepRenews(t *testing.T) {
	for _, test := range []struct{ life, want time.Duration }{
		{90 * day, 60 * day},
		{160 * time.Hour, 80 * time.Hour},
	} {
		synctest.Test(t, func(t *testing.T) {
			var orders atomic.Int64
			p, s, _ := newScheduled(t, func(context.Context) (*tls.Certificate, error) {
				orders.Add(1)
				return testPair(t, test.life), nil
			})
			p.install(s, testPair(t, test.life)) // as if it had been stored
			ctx, cancel := context.WithCancel(t.Context())
			done := make(chan struct{})
			go func() { defer close(done); p.keep(ctx, s) }()

			time.Sleep(test.want - time.Nanosecond)
			synctest.Wait()
			if got := orders.Load(); got != 0 {
				t.Errorf("life %v: %d orders before %v, want 0", test.life, got, test.want)
			}
			time.Sleep(time.Nanosecond)
			synctest.Wait()
			if got := orders.Load(); got != 1 {
				t.Errorf("life %v: %d orders at %v, want 1", test.life, got, test.want)
			}
			if err := p.Ready(); err != nil {
				t.Errorf("life %v: Ready = %v, want nil", test.life, err)
			}
			cancel()
			<-done
		})
	}
}

// A clock that is set forward, as after a suspend, is noticed within the longest nap.
func TestKeepNoticesClock(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var ahead atomic.Int64 // nanoseconds
		var orders atomic.Int64
		p, s, _ := newScheduled(t, func(context.Context) (*tls.Certificate, error) {
			orders.Add(1)
			return testPair(t, 400*day), nil
		})
		p.cfg.now = func() time.Time { return time.Now().Add(time.Duration(ahead.Load())) }
		p.install(s, testPair(t, 90*day))
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() { defer close(done); p.keep(ctx, s) }()

		synctest.Wait()
		ahead.Store(int64(60 * day))
		time.Sleep(longestNap)
		synctest.Wait()
		if got := orders.Load(); got != 1 {
			t.Errorf("%d orders a nap after the clock jumped past the renewal, want 1", got)
		}
		cancel()
		<-done
	})
}
