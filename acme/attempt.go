package acme

import (
	"context"
	"crypto/tls"
	"errors"
	"log/slog"
	"time"

	"plusminus/acme/internal/cahttp"
	"plusminus/acme/internal/store"
)

// An attempt is one try to get a certificate for one name from one CA. It belongs to one goroutine.
type attempt struct {
	// Set by [Provider.attempt].
	name       string
	challenges []string // to try in this order; not empty
	replaces   string   // ARI id of the certificate to replace; may be empty
	resume     bool     // only finish the pending order; place no new one

	// plan.Order is the order to continue, if any. The certifier changes it and calls save after each change,
	// so that the next process can continue after a crash.
	plan *plan
	save func() error

	// Set by the certifier.
	challenge   string            // the type that succeeded; empty if none was needed
	validations int               // how many failed
	ordered     bool              // a newOrder was sent
	ignored     bool              // the CA did not process the newOrder
	skew        time.Duration     // the CA's clock minus ours
	problems    []*cahttp.Problem // what failed before the last error
}

// A reason is why an attempt is made.
type reason int

const (
	scheduled reason = iota
	resuming         // to finish an attempt that was cut off
	asked            // by an operator
)

// attempt asks a for a certificate for s, unless that turns out to be unnecessary once the lock is held. The
// error is [store.ErrLocked] if another replica holds the lock; otherwise it says why there is no new
// certificate.
func (p *Provider) attempt(ctx context.Context, s *site, a *authority, why reason) error {
	select {
	case p.slots <- struct{}{}:
		defer func() { <-p.slots }()
	case <-ctx.Done():
		return ctx.Err()
	}
	release, err := p.lock(s)
	if errors.Is(err, store.ErrLocked) {
		return err
	}
	if err == nil {
		defer release()
		err = p.look(s) // another replica may have made an attempt meanwhile
		p.takeUnsaved(s, a)
	}
	if errors.Is(err, store.ErrAway) {
		p.setAway(s, err)
		return err
	}
	if err != nil {
		return p.failed(s, a, a.plan, a.plan.clone(), why, newFailure(nil, "store", &cahttp.StoreError{Err: err}, p.now()))
	}
	if needed, err := p.stillNeeded(s, a, why); !needed {
		return err
	}

	before, pl := a.plan, a.plan.clone()
	t := &attempt{
		name:       s.name,
		challenges: pl.challenges(p.challengeTypes(), p.now()),
		replaces:   p.replaces(s, a),
		resume:     why == resuming,
		plan:       pl,
		save:       func() error { return p.writePlan(s, a, pl) },
	}
	// If a certificate could not be stored, each restart would order another one, up to the CA's limit.
	err = store.TryWrite(a.store, s.name)
	if err == nil && why != resuming {
		pl.begin(p.now(), len(t.challenges), p.cfg.random())
		err = t.save()
	}
	if err != nil {
		f := newFailure(nil, "store", &cahttp.StoreError{Err: err}, p.now())
		f.free = true
		return p.failed(s, a, before, before.clone(), why, f)
	}

	start := p.now()
	s.setAttempting(start)
	cert, err := a.obtain(ctx, t)
	s.setAttempting(time.Time{})
	a.skew = t.skew
	var f *failure
	switch {
	case err == nil:
		pl.Life = cert.Leaf.NotAfter.Sub(cert.Leaf.NotBefore)
		if flaw := p.flaw(s, cert, t.skew); flaw != nil {
			return p.failed(s, a, before, pl, why, p.flawed(t, cert, flaw))
		}
		p.succeeded(s, a, before, t, cert, p.now().Sub(start))
		return nil
	case errors.As(err, &f):
		return p.failed(s, a, before, pl, why, f)
	}
	// Run is stopping. If nothing was ordered, the attempt does not count. Otherwise the stored plan tells the
	// next process what to expect.
	a.plan = pl
	if !t.ordered && before.Order == nil {
		a.plan = before
		p.savePlan(s, a)
	}
	return err
}

// setAttempting makes Status and Ready show an attempt since the given time; none if that is zero.
func (s *site) setAttempting(since time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.attempting = since
}

// stillNeeded reports whether an attempt is still to be made, now that this replica holds the lock and has
// read what others wrote. The error tells an operator why not.
func (p *Provider) stillNeeded(s *site, a *authority, why reason) (bool, error) {
	switch now := p.now(); why {
	case scheduled:
		for i := range s.authorities {
			if s.authorities[i] == a && p.attemptTime(s, i, now).After(now) {
				return false, nil
			}
		}
	case resuming:
		return a.plan.Interrupted && a.plan.Order != nil, nil
	case asked:
		if err := a.plan.refusal(now); err != nil {
			return false, err
		}
	}
	return true, nil
}

// replaces returns the ARI id of the certificate that an order with a replaces, or "". It is empty if another
// CA issued the certificate, or if the CA gave no renewal information for it.
func (p *Provider) replaces(s *site, a *authority) string {
	c := s.current.Load()
	info := renewalInfoOf(c)
	if info == nil || info.Start.IsZero() || c.from != a || a.plan.NoReplaces == c.id {
		return ""
	}
	return c.id
}

// succeeded installs and stores cert, the result of attempt t. before is the plan from before the attempt.
func (p *Provider) succeeded(s *site, a *authority, before *plan, t *attempt, cert *tls.Certificate, took time.Duration) {
	msg := "certificate obtained"
	if s.current.Load() != nil {
		msg = "certificate renewed"
	}
	a.attempts["ok"]++
	pl := t.plan
	pl.succeeded(before, t.validations, t.challenge, p.now())
	pl.Unsaved, _ = encodeCertificate(cert) // with the plan, so that a process that dies here leaves both or neither
	a.plan, a.cutOff, a.unsaved = pl, false, nil
	planErr := t.save()
	p.serve(s, cert, a, true)
	err := storeCertificate(a.store, s.name, cert)
	a.certSeen = store.Seen(a.store, s.name)
	if err == nil {
		pl.Unsaved = nil
		planErr = t.save()
	} else {
		a.unsaved, a.saveAt = cert, p.now().Add(saveWait)
		p.log.Error("certificate not stored: trying again every minute", "domain", s.name, "err", err,
			"hint", "check the data folder's owner, mode and free space")
	}
	if planErr != nil {
		p.log.Error("plan not stored", "domain", s.name, "err", planErr)
	}
	for _, other := range s.authorities {
		if other != a && other.plan.LastError != nil {
			p.log.Warn("certificate comes from another CA than before", "domain", s.name, "ca", a.directory, "instead_of", other.directory,
				"failing_since", other.plan.FailingSince, "err", reasonOf(other.plan.LastError))
			other.plan.settled()
			p.savePlan(s, other)
		}
	}
	p.log.Info(msg, "domain", s.name, "not_after", cert.Leaf.NotAfter, "issuer", cert.Leaf.Issuer.String(),
		"ca", a.directory, "took", took.Round(time.Millisecond).String(), "renewal", p.due(s, p.now()))
}

// flawed returns the failure of t, which gave cert. If cert is of some use, now or later, the plan keeps it for [Provider.collect].
func (p *Provider) flawed(t *attempt, cert *tls.Certificate, flaw error) *failure {
	f := newFailure(nil, "certificate", flaw, p.now())
	f.validations = t.validations
	if leaf := cert.Leaf; p.now().Before(leaf.NotAfter) && leaf.VerifyHostname(t.name) == nil {
		t.plan.Unsaved, _ = encodeCertificate(cert)
		if leaf.NotBefore.After(p.now()) {
			f.validFrom = leaf.NotBefore
		}
	}
	return f
}

// failed records and logs f, the failure of an attempt, and returns it. pl becomes a's plan; before is the
// plan from before the attempt.
func (p *Provider) failed(s *site, a *authority, before, pl *plan, why reason, f *failure) error {
	now := p.now()
	a.attempts[f.step]++
	if why == resuming {
		pl.notResumed(f, now)
	} else {
		pl.failed(f, before, now, p.cfg.random())
	}
	a.plan, a.cutOff = pl, false
	p.savePlan(s, a)
	level := slog.LevelWarn
	if invalidity(s.current.Load(), s.name, now) != "" {
		level = slog.LevelError
	}
	p.log.Log(context.Background(), level, "no certificate obtained", "domain", s.name, "ca", a.directory,
		"step", f.step, "type", f.kind, "err", f.reason, "hint", f.hint, "failures", pl.Failures,
		"next_attempt", p.nextAttempt(s))
	return f
}
