package acme

import (
	"slices"
	"time"
)

const day = 24 * time.Hour

// shortLife is the lifetime below which a certificate is renewed with half of it left, in place of a third. Let's
// Encrypt advises this: a third of six days leaves no weekend to correct a fault.
// https://letsencrypt.org/docs/integration-guide/#when-to-renew
const shortLife = 10 * day

// Let's Encrypt's limits for one name. The plan keeps to them with every CA.
// https://letsencrypt.org/docs/rate-limits/
const (
	maxFailed    = 5 // failed validations in failedWindow
	failedWindow = time.Hour

	maxIssued    = 5 // certificates in issuedWindow
	issuedWindow = 7 * day
)

// orderInterval is the shortest time between two orders for one name at one CA. No fault in a schedule makes a loop of
// orders. It is a quarter of the certificates' life if that is less.
const orderInterval = 10 * time.Second

// fallbackAfter is how long a CA must fail, at least, before the fallback is asked. By then three or four attempts
// have failed, so the outage is not a short one.
const fallbackAfter = 3 * time.Hour

// retryWait returns the wait after the given number of failures in a row: 1, 10, 100 minutes, then a day.
// https://letsencrypt.org/docs/integration-guide/#retrying-failures
func retryWait(failures int) time.Duration {
	switch {
	case failures <= 1:
		return time.Minute
	case failures == 2:
		return 10 * time.Minute
	case failures == 3:
		return 100 * time.Minute
	default:
		return day
	}
}

// retryTime returns the time of the next attempt after a failure at now, the last of the given number of failures in
// a row. random, in [0, 1), adds up to a tenth of the wait, so that servers that failed together do not return
// together.
//
// asked is the CA's Retry-After, or zero. It replaces the wait, and nothing is added to it.
func retryTime(now time.Time, failures int, asked time.Time, random float64) time.Time {
	if !asked.IsZero() {
		return latest(asked, now.Add(time.Second))
	}
	wait := retryWait(failures)
	return now.Add(wait + time.Duration(random*float64(wait/10)))
}

// renewalTime returns when to renew a certificate with this validity: with a third of its life left, or half if the
// life is below [shortLife]. random, in [0, 1), delays that by up to a hundredth of the life, at most an hour, so
// that certificates issued together are not renewed together.
func renewalTime(notBefore, notAfter time.Time, random float64) time.Time {
	life := notAfter.Sub(notBefore)
	left := life / 3
	if life < shortLife {
		left = life / 2
	}
	jitter := time.Duration(random * float64(min(life/100, time.Hour)))
	return notAfter.Add(-left + jitter)
}

// latestRenewal returns the latest time to which a CA's advice can delay a renewal. A twentieth of the life is left
// then, which is little time for further attempts.
func latestRenewal(notBefore, notAfter time.Time) time.Time {
	return notAfter.Add(-notAfter.Sub(notBefore) / 20)
}

// fallbackTime returns when to ask the fallback. The CA has failed since failing, and the served certificate is
// valid until notAfter, which is zero if there is none. The CA gets half of the remaining life to recover.
func fallbackTime(failing, notAfter time.Time) time.Time {
	return failing.Add(max(fallbackAfter, notAfter.Sub(failing)/2))
}

// spareAt returns the earliest time, now or later, at which fewer than limit of times lie within the window before
// it. Then one more can be added.
func spareAt(times []time.Time, limit int, window time.Duration, now time.Time) time.Time {
	times = recent(times, window, now)
	if len(times) < limit {
		return now
	}
	return times[len(times)-limit].Add(window)
}

// recent returns those of times that lie within the window before now, sorted. A time in the future comes from a
// clock that was wrong and does not count.
func recent(times []time.Time, window time.Duration, now time.Time) []time.Time {
	times = slices.DeleteFunc(slices.Clone(times), func(t time.Time) bool {
		return t.After(now) || !t.After(now.Add(-window))
	})
	slices.SortFunc(times, time.Time.Compare)
	return times
}

// issuedLimit returns how many certificates with the given life may be obtained for a name in [issuedWindow]. It is
// above [maxIssued] where the life is so short that renewals alone need more.
func issuedLimit(life time.Duration) int {
	if life <= 0 {
		return maxIssued
	}
	return max(maxIssued, 2*int(issuedWindow/(life/2+1)))
}

func latest(times ...time.Time) time.Time   { return slices.MaxFunc(times, time.Time.Compare) }
func earliest(times ...time.Time) time.Time { return slices.MinFunc(times, time.Time.Compare) }
