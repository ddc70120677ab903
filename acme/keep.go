package acme

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"log/slog"
	"time"

	"plusminus/acme/internal/store"
)

const (
	// lookInterval is how often keep looks for what other replicas wrote.
	lookInterval = 2 * time.Second

	busyWait = time.Second // before the next try of a lock that another replica holds
	saveWait = time.Minute // before the next try to store a certificate

	// hungAfter is how long another replica can hold the lock before it must be stuck.
	hungAfter = attemptTimeout + 5*time.Minute

	never = 100 * 365 * day
)

// A certifier is the part of a CA that keep needs: an [issuer], or a fake in tests. Its methods are safe for
// concurrent use.
type certifier interface {
	// obtain makes one attempt to get a certificate. It must not be called twice at the same time for one
	// name. The error is a *failure, or ctx's if ctx ended the attempt.
	obtain(ctx context.Context, a *attempt) (*tls.Certificate, error)

	// renewalInfo asks when the certificate with the given id is to be renewed (RFC 9773). FetchAfter of the
	// result is set even with an error. The error is [errNoRenewalInfo] if the CA does not offer this.
	renewalInfo(ctx context.Context, certID string) (renewalInfo, error)

	// restoreAccount stores the account key again if the store has lost it. If another replica has stored
	// one since, it takes that one over. It is called only for stores that replicas share.
	restoreAccount() error
}

// An authority is one CA as one site uses it: the CA itself, and what the site remembers of it.
type authority struct {
	// Immutable after newAuthority.
	certifier
	directory string // URL
	store     store.Store
	copies    *store.Folder // local copies of certificates, if store is shared; otherwise nil

	// Owned by keep, and by New before.
	plan      *plan
	planSeen  store.Version    // of the plan's file at the last read or write
	certSeen  store.Version    // of the certificate's file at the last read or write
	cutOff    bool             // the process before this one died during an attempt
	fetchedID string           // the certificate that renewalInfo was last called for
	fetchedAt time.Time        // when that was
	unsaved   *tls.Certificate // is served, but could not be stored
	lost      bool             // the shared store has lost entries
	saveAt    time.Time        // when to try again to store unsaved or lost entries
	skew      time.Duration    // its clock minus ours at the last attempt
	attempts  map[string]int   // by outcome: "ok", or the step that failed
}

func newAuthority(ca certifier, directory string, st store.Store, copies *store.Folder) *authority {
	return &authority{certifier: ca, directory: directory, store: st, copies: copies, plan: new(plan), attempts: make(map[string]int)}
}

// shared reports whether replicas on other machines use a's store, too.
func (a *authority) shared() bool { return a.copies != nil }

// keep sees to it that s has a valid certificate of an ACME CA, until ctx is done. It is the only goroutine
// that changes the state of s.
func (p *Provider) keep(ctx context.Context, s *site) {
	p.announce(s)
	for ctx.Err() == nil {
		p.logUnreadable(s, p.look(s))
		p.logInvalid(s)
		at, do := p.next(s)
		p.publish(s)
		if wait := at.Sub(p.now()); wait > 0 {
			p.nap(ctx, s, wait)
			continue
		}
		do(ctx)
	}
	p.publish(s)
}

// announce logs the certificate and the last failure that s starts with.
func (p *Provider) announce(s *site) {
	if c := s.current.Load(); c != nil {
		p.logExpired(s, "certificate loaded", "domain", s.name, "not_after", c.Leaf.NotAfter,
			"issuer", c.Leaf.Issuer.String(), "renewal", p.due(s, p.now()))
	}
	if release, err := p.locks.Lock(s.name); err == nil {
		release()
		for _, a := range s.authorities {
			if a.plan.Interrupted { // and no replica is making that attempt
				a.cutOff, a.plan.LastError = true, a.plan.cutOff()
			}
		}
	}
	for _, a := range s.authorities {
		if last := a.plan.LastError; last != nil && a.plan.NotBefore.After(p.now()) {
			p.log.Warn("the last attempt before this start gave no certificate: waiting for the next one", "domain", s.name,
				"ca", a.directory, "when", last.When, "err", last.Reason, "hint", last.Hint,
				"next_attempt", a.plan.NotBefore, "sooner", "POST /renew?domain="+s.name)
		}
	}
}

// logUnreadable logs err, an error of look, once until a look succeeds.
func (p *Provider) logUnreadable(s *site, err error) {
	if err != nil && !s.unreadable {
		p.log.Warn("stored state cannot be read: continuing with the state in memory", "domain", s.name, "err", err)
	}
	s.unreadable = err != nil
}

// logInvalid logs once that the certificate of s has become invalid.
func (p *Provider) logInvalid(s *site) {
	why := invalidity(s.current.Load(), s.name, p.now())
	if why != "" && s.valid {
		p.log.Error("visitors are refused from now on", "domain", s.name, "problem", why, "next_attempt", p.nextAttempt(s))
	}
	s.valid = why == ""
}

// logExpired logs at level Info, or Error if the certificate of s is not valid.
func (p *Provider) logExpired(s *site, msg string, args ...any) {
	level := slog.LevelInfo
	if why := invalidity(s.current.Load(), s.name, p.now()); why != "" {
		level = slog.LevelError
		args = append(args, "problem", why)
	}
	p.log.Log(context.Background(), level, msg, args...)
}

// nap waits for d, at most lookInterval, or until Renew or Reload has a request for s. It then serves that
// request.
func (p *Provider) nap(ctx context.Context, s *site, d time.Duration) {
	timer := time.NewTimer(min(d, p.cfg.lookInterval))
	defer timer.Stop()
	select {
	case <-ctx.Done():
	case <-timer.C:
	case <-s.wake:
		p.refetch(s)
	case r := <-s.requests:
		r.done <- p.renewNow(ctx, s, r)
	}
}

// next returns what to do next for s, and when.
func (p *Provider) next(s *site) (time.Time, func(context.Context)) {
	now := p.now()
	at, do := now.Add(never), func(context.Context) {}
	offer := func(t time.Time, f func(context.Context)) {
		if t.Before(at) {
			at, do = t, f
		}
	}
	for _, a := range s.authorities {
		switch {
		case a.unsaved != nil:
			offer(latest(a.saveAt, s.busyUntil), func(context.Context) { p.saveAgain(s, a) })
		case a.lost:
			offer(latest(a.saveAt, s.busyUntil), func(context.Context) { p.restore(s, a) })
		case a.plan.Unsaved != nil:
			offer(latest(p.unsavedTime(s, a), a.saveAt, s.busyUntil), func(context.Context) { p.collect(s, a) })
		case a.plan.Interrupted && a.plan.Order != nil:
			offer(latest(now, a.plan.RetryAfter, s.busyUntil), func(ctx context.Context) { p.attempt(ctx, s, a, resuming) })
		}
	}
	for i, a := range s.authorities {
		offer(p.attemptTime(s, i, now), func(ctx context.Context) { p.attempt(ctx, s, a, scheduled) })
	}
	if t, ok := p.fetchTime(s); ok {
		offer(t, func(ctx context.Context) { p.fetch(ctx, s) })
	}
	return at, do
}

// attemptTime returns when s asks its i-th authority for a certificate, now at the earliest.
func (p *Provider) attemptTime(s *site, i int, now time.Time) time.Time {
	a := s.authorities[i]
	at := latest(p.due(s, now), a.plan.attemptTime(now), a.plan.nextOrderTime(now, p.cfg.orderInterval), s.busyUntil)
	if i == 0 {
		return at
	}
	failing := s.authorities[0].plan.FailingSince
	if failing.IsZero() {
		return now.Add(never)
	}
	notAfter := failing
	if c := s.current.Load(); c != nil {
		failing = latest(failing, p.renewal(c, now)) // failures before the renewal was due do not count
		notAfter = c.ends
	}
	return latest(at, fallbackTime(failing, notAfter))
}

// nextAttempt returns when s next asks any CA for a certificate.
func (p *Provider) nextAttempt(s *site) time.Time {
	now := p.now()
	at := p.attemptTime(s, 0, now)
	for i := range s.authorities[1:] {
		if t := p.attemptTime(s, i+1, now); t.Before(at) {
			at = t
		}
	}
	return at
}

// lock takes the lock of s. While this replica holds it, no other replica asks a CA for s or writes for s.
func (p *Provider) lock(s *site) (release func(), err error) {
	release, err = p.locks.Lock(s.name)
	switch {
	case errors.Is(err, store.ErrLocked):
		p.setBusy(s)
	case errors.Is(err, store.ErrAway):
		p.setAway(s, err)
	default:
		s.busySince, s.hung, s.away = time.Time{}, nil, nil
	}
	return release, err
}

// setBusy records that another replica holds the lock of s.
func (p *Provider) setBusy(s *site) {
	now := p.now()
	if s.busySince.IsZero() || s.busySince.After(now) || now.Sub(s.busyUntil) > time.Minute { // the try before was another matter
		s.busySince = now
	}
	s.busyUntil = now.Add(busyWait)
	if now.Sub(s.busySince) > hungAfter && s.hung == nil {
		s.hung = &LastError{When: now, Step: "lock", Reason: "another replica has held the lock since " + s.busySince.UTC().Format(time.RFC3339),
			Hint: "a process that hangs, or a network file system that lost it, holds the lock on " + store.LockPath(p.locks, s.name)}
		p.log.Error("no certificate can be ordered: another replica has held the lock for too long", "domain", s.name, "since", s.busySince, "hint", s.hung.Hint)
	}
}

// setAway records that the shared store cannot be used now. That does not count as an attempt and is tried
// again soon, since no CA was asked.
func (p *Provider) setAway(s *site, err error) {
	now := p.now()
	s.busyUntil = now.Add(busyWait)
	s.away = &LastError{When: now, Step: "store", Reason: err.Error(), Hint: "attempts go on by themselves when -store answers"}
	if errors.Is(err, store.ErrOtherKey) {
		s.away.Hint = "all replicas need the same -store-key-file"
	}
}

// renewedSince reports whether s serves another certificate than before.
func (s *site) renewedSince(before *certificate) bool { return s.current.Load() != before }

// reasonOf returns e's reason, or "" if e is nil.
func reasonOf(e *LastError) string { return cmp.Or(e, new(LastError)).Reason }
