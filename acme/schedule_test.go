package acme

import (
	"testing"
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
		{1, 2 * time.Second, 0.5, 2 * time.Second},
		{1, -time.Hour, 0.5, time.Second},
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

func TestFallbackTime(t *testing.T) {
	t.Parallel()
	failing := time.Date(2026, 11, 22, 9, 0, 0, 0, time.UTC)
	for left, want := range map[time.Duration]time.Duration{
		-40 * day:      3 * time.Hour, // it had expired
		0:              3 * time.Hour,
		6 * time.Hour:  3 * time.Hour,
		80 * time.Hour: 40 * time.Hour,
		30 * day:       15 * day,
	} {
		if got := fallbackTime(failing, failing.Add(left)).Sub(failing); got != want {
			t.Errorf("with %v left, the fallback is asked after %v, want %v", left, got, want)
		}
	}
}

func TestSpareAt(t *testing.T) {
	t.Parallel()
	now := time.Date(2026, 11, 22, 9, 0, 0, 0, time.UTC)
	ago := func(ages ...time.Duration) (times []time.Time) {
		for _, a := range ages {
			times = append(times, now.Add(-a))
		}
		return times
	}
	const m = time.Minute
	for _, test := range []struct {
		times []time.Time
		want  time.Duration
	}{
		{nil, 0},
		{ago(0, m, 2*m, 3*m), 0},
		{ago(0, m, 2*m, 3*m, 59*m), m},
		{ago(59*m, 3*m, 2*m, m, 0), m},               // in any order
		{ago(0, m, 2*m, 3*m, 60*m), 0},               // the window is over
		{ago(0, 0, m, 2*m, 3*m, 50*m, 55*m), 57 * m}, // two too many: until five are four
		{ago(0, -m, -2*m, -day, m, m, m), 0},         // from a clock that was ahead
	} {
		if got := spareAt(test.times, 5, time.Hour, now).Sub(now); got != test.want {
			t.Errorf("spareAt(%v) is in %v, want %v", test.times, got, test.want)
		}
	}
}

func TestIssuedLimit(t *testing.T) {
	t.Parallel()
	for life, want := range map[time.Duration]int{
		0: 5, 90 * day: 5, 45 * day: 5, 160 * time.Hour: 5, 2 * day: 12, day: 26, time.Hour: 670,
	} {
		if got := issuedLimit(life); got != want {
			t.Errorf("%d certificates of %v a week, want %d", got, life, want)
		}
	}
}
