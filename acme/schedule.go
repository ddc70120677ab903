package acme

import (
	"context"
	"errors"
	"log/slog"
	"time"
)

const day = 24 * time.Hour

// shortLife is the lifetime below which a certificate is renewed with half of it left, in place of a
// third: so Let's Encrypt advises, since a third of six days leaves no weekend to mend things in.
// https://letsencrypt.org/docs/integration-guide/#when-to-renew
const shortLife = 10 * day

// longestNap bounds how long the schedule sleeps before it looks at the clock again. Timers stand
// still while a machine is suspended, and know nothing of a clock that was set.
const longestNap = time.Hour

// retryWait returns how long to wait after so many failures in a row: 1, 10, 100 minutes, then a day.
// https://letsencrypt.org/docs/integration-guide/#retrying-failures
//
// One attempt is up to two failed validations (tls-alpn-01, then http-01). Let's Encrypt allows five an
// hour for a name, so the third attempt may be told to come back later, and is obeyed.
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

// retryTime returns when to try again after so many failures in a row, of which the last one was at
// now. random, in [0, 1), adds up to a tenth so that servers that failed together do not come back
// together.
//
// asked, if not zero, is when the CA said to come back (Retry-After). It replaces our own wait and
// nothing is added to it, except that we never come back within a minute.
func retryTime(now time.Time, failures int, asked time.Time, random float64) time.Time {
	if !asked.IsZero() {
		if soonest := now.Add(retryWait(1)); asked.Before(soonest) {
			return soonest
		}
		return asked
	}
	wait := retryWait(failures)
	return now.Add(wait + time.Duration(random*float64(wait/10)))
}

// renewalTime returns when to renew a certificate with this validity: with a third of its life left,
// or half if the life is under [shortLife]. random, in [0, 1), delays it by up to a hundredth of the
// life, an hour at most, so that certificates made together are not renewed together.
func renewalTime(notBefore, notAfter time.Time, random float64) time.Time {
	life := notAfter.Sub(notBefore)
	left := life / 3
	if life < shortLife {
		left = life / 2
	}
	jitter := time.Duration(random * float64(min(life/100, time.Hour)))
	return notAfter.Add(-left + jitter)
}

// keep obtains a certificate for s whenever one is due, until ctx is done.
func (p *Provider) keep(ctx context.Context, s *site) {
	next := p.cfg.now()
	renewal := false
	if c := s.current.Load(); c != nil {
		next, renewal = renewalTime(c.Leaf.NotBefore, c.Leaf.NotAfter, p.cfg.random()), true
		if s.source == sourceACME { // a local one was made just now
			p.log.Info("certificate loaded", "domain", s.name, "not_after", c.Leaf.NotAfter,
				"issuer", c.Leaf.Issuer.String(), "next_attempt", next)
		}
	}
	failures := 0
	s.plan(next, nil)

	for p.sleepUntil(ctx, next) {
		start := p.cfg.now()
		cert, err := s.obtain(ctx)
		now := p.cfg.now()
		if ctx.Err() != nil {
			return
		}
		if err == nil {
			p.install(s, cert)
			failures = 0
			next = renewalTime(cert.Leaf.NotBefore, cert.Leaf.NotAfter, p.cfg.random())
			s.plan(next, nil)
			msg := "certificate obtained"
			if renewal {
				msg = "certificate renewed"
			}
			renewal = true
			p.log.Info(msg, "domain", s.name, "not_after", cert.Leaf.NotAfter, "issuer", cert.Leaf.Issuer.String(),
				"took", now.Sub(start).Round(time.Millisecond).String(), "next_attempt", next)
			continue
		}

		var f *failure
		if !errors.As(err, &f) {
			f = &failure{reason: err.Error()}
		}
		if f.retryAfter.IsZero() {
			failures++ // a CA that names the time has told us nothing about our own set-up
		}
		if f.free {
			// The long waits are for the sake of the CA's limits. A network or a disk that was away
			// for an hour must not keep us waiting for a day.
			failures = min(failures, 2)
		}
		next = retryTime(now, failures, f.retryAfter, p.cfg.random())
		s.plan(next, &LastError{When: now, Reason: f.reason, Hint: f.hint})
		level := slog.LevelWarn
		if invalidity(s.current.Load(), s.name, now) != "" {
			level = slog.LevelError
		}
		p.log.Log(ctx, level, "no certificate obtained", "domain", s.name, "err", err, "hint", f.hint, "next_attempt", next)
	}
}

// plan records when the next attempt is made, and why the last one failed.
func (s *site) plan(next time.Time, last *LastError) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.next, s.lastError = next, last
}

// sleepUntil waits until the clock shows t, and reports false if ctx is done first.
func (p *Provider) sleepUntil(ctx context.Context, t time.Time) bool {
	t = t.Round(0) // by the clock on the wall, whatever happens to it meanwhile
	for {
		left := t.Sub(p.cfg.now().Round(0))
		if left <= 0 {
			return ctx.Err() == nil
		}
		timer := time.NewTimer(min(left, longestNap))
		select {
		case <-ctx.Done():
			timer.Stop()
			return false
		case <-timer.C:
		}
	}
}
