package acme

import (
	"cmp"
	"context"
	"crypto/ecdsa"
	"crypto/tls"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"maps"
	"time"
)

const (
	// lookInterval is how often the data folder is looked at for what other replicas wrote.
	lookInterval = 2 * time.Second

	// clockInterval is how often the clock is looked at, at least: it may have been set, and timers
	// stand still while a machine is suspended.
	clockInterval = time.Hour

	busyWait = time.Second // before trying again to do what another replica is doing
	saveWait = time.Minute // before trying again to store a certificate

	// hungAfter is how long another replica can be at it before it must be stuck.
	hungAfter = attemptTimeout + 5*time.Minute

	never = 100 * 365 * day
)

// An authority is one CA as one site sees it: whom to ask, and what is remembered of having asked.
type authority struct {
	// Immutable after New.
	directory   string // URL
	store       store
	stored      func() (*tls.Certificate, error)
	keep        func(*tls.Certificate) error
	obtain      func(context.Context, *attempt) (*tls.Certificate, error)
	renewalInfo func(ctx context.Context, certID string) (renewalInfo, error)
	restore     func() error // the account key, if the store has lost it; nil where the store is a folder of ours
	copies      *folder      // of certificates; nil the same

	// Owned by keep, and by New before.
	plan      *plan
	planSeen  version          // of the plan's file when it was read or written last
	certSeen  version          // the same of the certificate's
	life      time.Duration    // of its last certificate; 0 if unknown
	cutOff    bool             // the process before this one died in an attempt
	fetchedID string           // the certificate that it was asked about last
	fetchedAt time.Time        // when that was
	unsaved   *tls.Certificate // is served, but could not be stored
	lost      bool             // the store no longer has what it had
	saveAt    time.Time        // when to try again to store what is unsaved or lost
	skew      time.Duration    // its clock less ours, when it was asked last
	attempts  map[string]int   // by outcome: "ok", or the step that failed
}

// A request is somebody's wish that a certificate be renewed now.
type request struct {
	before *certificate // what was served then; may be nil
	done   chan error   // to him, with buffer 1, so that he may have gone
}

// Why an attempt is made.
type reason int

const (
	scheduled reason = iota
	resuming         // to finish what was cut off
	asked            // by an operator
)

// keep sees to it that s has a certificate of an ACME CA, until ctx is done.
func (p *Provider) keep(ctx context.Context, s *site) {
	p.announce(s)
	for ctx.Err() == nil {
		p.complain(s, p.look(s))
		p.shout(s)
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

// announce logs what s starts with.
func (p *Provider) announce(s *site) {
	if c := s.current.Load(); c != nil {
		p.logExpired(s, "certificate loaded", "domain", s.name, "not_after", c.Leaf.NotAfter,
			"issuer", c.Leaf.Issuer.String(), "renewal", p.due(s, p.now()))
	}
	if release, err := p.locks.lock(s.name); err == nil {
		release()
		for _, a := range s.authorities {
			if a.plan.Interrupted { // and nobody is at it
				a.cutOff, a.plan.LastError = true, a.plan.cutOff()
			}
		}
	}
	for _, a := range s.authorities {
		if last := a.plan.LastError; last != nil && a.plan.NotBefore.After(p.now()) {
			p.log.Warn("the last attempt, before this start, gave no certificate: waiting for the next one", "domain", s.name,
				"ca", a.directory, "when", last.When, "err", last.Reason, "hint", last.Hint,
				"next_attempt", a.plan.NotBefore, "sooner", "POST /renew?domain="+s.name)
		}
	}
}

// complain logs why files cannot be read, once until they can be.
func (p *Provider) complain(s *site, err error) {
	if err != nil && !s.unreadable {
		p.log.Warn("what is stored cannot be read: going on with what is known", "domain", s.name, "err", err)
	}
	s.unreadable = err != nil
}

// shout logs that what s serves has become invalid, once.
func (p *Provider) shout(s *site) {
	problem := invalidity(s.current.Load(), s.name, p.now())
	if problem != "" && s.valid {
		p.log.Error("visitors are refused from now on", "domain", s.name, "problem", problem, "next_attempt", p.nextAttempt(s))
	}
	s.valid = problem == ""
}

// logExpired logs at level Info, or Error if what s serves is not valid.
func (p *Provider) logExpired(s *site, msg string, args ...any) {
	level := slog.LevelInfo
	if problem := invalidity(s.current.Load(), s.name, p.now()); problem != "" {
		level = slog.LevelError
		args = append(args, "problem", problem)
	}
	p.log.Log(context.Background(), level, msg, args...)
}

// nap waits for d, for a while, or for somebody who wants something of s.
func (p *Provider) nap(ctx context.Context, s *site, d time.Duration) {
	timer := time.NewTimer(min(d, p.cfg.lookInterval))
	defer timer.Stop()
	select {
	case <-ctx.Done():
	case <-timer.C:
	case <-s.wake:
		for _, a := range s.authorities {
			// "POST /renew" is for orders; this asks the CA only what it thinks of the certificate.
			if info := a.plan.Renewal; info != nil && a.plan.RetryAfter.Before(p.now()) {
				info.FetchAfter, a.fetchedID = p.now(), ""
			}
		}
	case r := <-s.requests:
		r.done <- p.renewNow(ctx, s, r)
	}
}

// renewNow does what an operator asked for. The fallback is asked, too, if the CA gives nothing.
func (p *Provider) renewNow(ctx context.Context, s *site, r *request) error {
	var errs []error
	for _, a := range s.authorities {
		err := p.renewFrom(ctx, s, a, r)
		if err == nil {
			return nil
		}
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

func (p *Provider) renewFrom(ctx context.Context, s *site, a *authority, r *request) error {
	if s.current.Load() != r.before {
		return nil // what was under way when he asked has succeeded since
	}
	began := p.now()
	for {
		err := p.attempt(ctx, s, a, asked)
		if !errors.Is(err, errLocked) || ctx.Err() != nil || p.now().Sub(began) > hungAfter {
			return err
		}
		pause(ctx, busyWait)
		if p.look(s) == nil && s.current.Load() != r.before {
			return nil
		}
	}
}

// look takes over what other replicas wrote since, and what the clock did. The error says what cannot be
// read now; what was known before stands.
func (p *Provider) look(s *site) error {
	now := p.now()
	jump := time.Duration(0) // of the wall clock, against the one that nobody sets
	if !s.looked.IsZero() {
		jump = now.Sub(s.looked) - time.Since(s.lookedMono)
	}
	s.looked, s.lookedMono = now, time.Now()
	s.busyUntil = earliest(s.busyUntil, now.Add(busyWait)) // or a clock that was ahead keeps us waiting
	var errs []error
	for _, a := range s.authorities {
		v, err := a.store.version(s.name + planSuffix)
		gone := a.restore != nil && v == "" && a.planSeen != ""
		switch {
		case err != nil, gone, v == a.planSeen:
			a.lost = a.lost || err == nil && gone
			a.plan.follow(now, jump)
		default:
			var plan *plan
			if plan, err = loadPlan(a.store, s.name, now); err == nil {
				a.plan, a.planSeen = plan, v
			}
		}
		errs = append(errs, err)
		a.saveAt, a.fetchedAt = earliest(a.saveAt, now.Add(saveWait)), earliest(a.fetchedAt, now)
		errs = append(errs, p.adopt(s, a))
	}
	return errors.Join(errs...)
}

// adopt takes over a's stored certificate if it is another one than before and better than what s serves.
func (p *Provider) adopt(s *site, a *authority) error {
	v, err := a.store.version(s.name)
	if err != nil || v == a.certSeen {
		return err
	}
	if a.restore != nil && v == "" {
		a.lost = true
		return nil
	}
	cert, err := a.stored()
	if errors.Is(err, fs.ErrNotExist) {
		a.certSeen = v
		return nil
	}
	if err != nil {
		return err
	}
	if !p.now().Before(cert.Leaf.NotBefore) { // or else it is looked at again: our clock may be a little behind
		a.certSeen = v
	}
	a.life = cert.Leaf.NotAfter.Sub(cert.Leaf.NotBefore)
	current := s.current.Load()
	if current != nil && cert.Leaf.Equal(current.Leaf) || !p.better(s, a, cert, current) {
		return nil
	}
	p.install(s, cert, a)
	if s.running {
		p.log.Info("certificate adopted: another replica obtained it", "domain", s.name,
			"not_after", cert.Leaf.NotAfter, "issuer", cert.Leaf.Issuer.String(), "renewal", p.due(s, p.now()))
	}
	return nil
}

// better reports whether cert, which a has stored, is to be served in place of current, which may be nil.
// Valid ones come before others. Of one CA's, the one that is stored counts: it was obtained last, whatever
// its dates say. Of two CAs', the latest does.
func (p *Provider) better(s *site, a *authority, cert *tls.Certificate, current *certificate) bool {
	if current == nil {
		return true
	}
	valid := func(c *certificate) bool { return invalidity(c, s.name, p.now()) == "" }
	if a, b := valid(&certificate{Certificate: *cert}), valid(current); a != b {
		return a
	}
	if current.from == a && a.unsaved == nil {
		return true
	}
	return cert.Leaf.NotBefore.After(current.Leaf.NotBefore)
}

// next returns what is to be done next for s, and when.
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

// due returns when s wants a new certificate, now if it has none of use.
func (p *Provider) due(s *site, now time.Time) time.Time {
	c := s.current.Load()
	if c == nil || now.After(c.Leaf.NotAfter) || c.Leaf.VerifyHostname(s.name) != nil {
		return now
	}
	return p.renewal(c, now)
}

// renewal returns when c is to be renewed.
func (p *Provider) renewal(c *certificate, now time.Time) time.Time {
	info := renewalInfoOf(c)
	if info == nil || info.Chosen.IsZero() {
		return c.renewal
	}
	if floor := latestRenewal(c.Leaf.NotBefore, c.Leaf.NotAfter); floor.Before(info.Chosen) {
		return floor
	}
	// A CA that wants each new certificate replaced at once is out of order. It gets its way once a day.
	if hurried := spareAt(c.from.plan.Issued, 2, day, now); hurried.After(info.Chosen) {
		return earliest(hurried, c.renewal)
	}
	return info.Chosen
}

// renewalInfoOf returns what c's CA says about renewing it, or nil.
func renewalInfoOf(c *certificate) *renewalInfo {
	if c == nil || c.from == nil || c.id == "" {
		return nil
	}
	if info := c.from.plan.Renewal; info != nil && info.CertID == c.id {
		return info
	}
	return nil
}

// attemptTime returns when s asks its i-th authority for a certificate, now at the earliest.
func (p *Provider) attemptTime(s *site, i int, now time.Time) time.Time {
	a := s.authorities[i]
	at := latest(p.due(s, now), a.plan.attemptTime(now, a.life, false), s.busyUntil)
	if i == 0 {
		return at
	}
	failing := s.authorities[0].plan.FailingSince
	if failing.IsZero() {
		return now.Add(never)
	}
	notAfter := failing
	if c := s.current.Load(); c != nil {
		failing = latest(failing, p.renewal(c, now)) // what failed before there was any need for it says little
		notAfter = c.Leaf.NotAfter
	}
	return latest(at, fallbackTime(failing, notAfter))
}

// busy notes that another replica holds the lock of s.
func (p *Provider) busy(s *site) {
	now := p.now()
	s.busyUntil = now.Add(busyWait)
	if s.busySince.IsZero() || s.busySince.After(now) {
		s.busySince = now
	}
	if now.Sub(s.busySince) > hungAfter && s.hung == nil {
		file := p.locks.path(s.name + lockSuffix)
		s.hung = &LastError{When: now, Step: "lock", Reason: "another replica has been at it since " + s.busySince.UTC().Format(time.RFC3339),
			Hint: "a process that hangs, or a network file system that lost it, holds the lock on " + file}
		p.log.Error("no certificate can be asked for: another replica does not come to an end", "domain", s.name, "since", s.busySince, "hint", s.hung.Hint)
	}
}

// lock takes the lock of s, which keeps all replicas from asking any CA, and from writing what another is
// writing.
func (p *Provider) lock(s *site) (release func(), err error) {
	release, err = p.locks.lock(s.name)
	switch {
	case errors.Is(err, errLocked):
		p.busy(s)
	case errors.Is(err, errAway):
		p.away(s, err)
	default:
		s.busySince, s.hung, s.away = time.Time{}, nil, nil
	}
	return release, err
}

// away notes that what is shared cannot be used now. That is no attempt, and is tried again soon: no CA has
// been asked, and it is known when all is well again.
func (p *Provider) away(s *site, err error) {
	now := p.now()
	s.busyUntil = now.Add(busyWait)
	s.away = &LastError{When: now, Step: "store", Reason: err.Error(), Hint: "all goes on by itself when -store answers"}
	if errors.Is(err, errOtherKey) {
		s.away.Hint = "all replicas need the same -store-key-file"
	}
}

// attempt asks a for a certificate for s, if that is still called for once we hold the lock. It returns
// [errLocked] if another replica holds it, and otherwise why there is no new certificate.
func (p *Provider) attempt(ctx context.Context, s *site, a *authority, why reason) error {
	select {
	case p.slots <- struct{}{}:
		defer func() { <-p.slots }()
	case <-ctx.Done():
		return ctx.Err()
	}
	release, err := p.lock(s)
	if errors.Is(err, errLocked) {
		return err
	}
	if err == nil {
		defer release()
		err = p.look(s) // what the others did while we waited
	}
	if errors.Is(err, errAway) {
		p.away(s, err)
		return err
	}
	if err != nil {
		return p.failed(s, a, a.plan, a.plan.clone(), why, newFailure(nil, "store", &storeError{err}, p.now()))
	}
	switch now := p.now(); why {
	case scheduled:
		for i := range s.authorities {
			if s.authorities[i] == a && p.attemptTime(s, i, now).After(now) {
				return nil
			}
		}
	case resuming:
		if !a.plan.Interrupted || a.plan.Order == nil {
			return nil
		}
	case asked:
		if err := a.plan.refusal(now, a.life); err != nil {
			return err
		}
	}

	before, plan := a.plan, a.plan.clone()
	save := func() error { return p.writePlan(s, a, plan) }
	t := &attempt{
		name:       s.name,
		challenges: plan.challenges(p.challengeTypes(), p.now()),
		replaces:   p.replaces(s, a),
		reuse:      p.keyToReuse(s),
		resume:     why == resuming,
		impatient:  why == asked,
		plan:       plan,
		save:       save,
	}
	// A certificate that cannot be kept is ordered again at each restart, until the CA has had enough.
	err = tryWrite(a.store, s.name)
	if err == nil && why != resuming {
		plan.begin(p.now(), len(t.challenges), p.cfg.random())
		err = save()
	}
	if err != nil {
		f := newFailure(nil, "store", &storeError{err}, p.now())
		f.free = true
		return p.failed(s, a, before, before.clone(), why, f)
	}

	start := p.now()
	cert, err := a.obtain(ctx, t)
	if t.transport != nil {
		a.skew = t.transport.skew
	}
	var f *failure
	switch {
	case err == nil:
		p.succeeded(s, a, before, t, cert, p.now().Sub(start))
		return nil
	case errors.As(err, &f):
		return p.failed(s, a, before, plan, why, f)
	}
	// We are stopping. If nothing was ordered, it is as if we had not begun; otherwise the plan on the
	// disk says what to expect.
	a.plan = plan
	if !t.ordered && before.Order == nil {
		a.plan = before
		p.savePlan(s, a)
	}
	return err
}

// replaces returns the ARI id of the certificate that an order with a is to replace, or "".
func (p *Provider) replaces(s *site, a *authority) string {
	c := s.current.Load()
	info := renewalInfoOf(c)
	if info == nil || info.Start.IsZero() || c.from != a || a.plan.NoReplaces == c.id {
		return "" // it is not this CA's, or the CA has no renewal information
	}
	return c.id
}

// keyToReuse returns the key of the certificate that s serves if it is to be certified again.
func (p *Provider) keyToReuse(s *site) *ecdsa.PrivateKey {
	if c := s.current.Load(); c != nil && p.cfg.ReuseKey {
		key, _ := c.PrivateKey.(*ecdsa.PrivateKey)
		return key
	}
	return nil
}

// succeeded serves and stores what an attempt brought.
func (p *Provider) succeeded(s *site, a *authority, before *plan, t *attempt, cert *tls.Certificate, took time.Duration) {
	msg := "certificate obtained"
	if s.current.Load() != nil {
		msg = "certificate renewed"
	}
	a.life = cert.Leaf.NotAfter.Sub(cert.Leaf.NotBefore)
	a.attempts["ok"]++
	order, plan := t.plan.Order, t.plan
	plan.succeeded(before, t.validations, t.challenge, p.now())
	p.install(s, cert, a)
	err := a.keep(cert)
	a.certSeen = seen(a.store, s.name)
	a.unsaved = nil
	if err != nil {
		a.unsaved, a.saveAt = cert, p.now().Add(saveWait)
		plan.Order, plan.Interrupted = order, true // with this the next process can fetch it again
		p.log.Error("certificate not stored: trying again every minute", "domain", s.name, "err", err,
			"hint", "check the data folder's owner, mode and free space")
	}
	a.plan, a.cutOff = plan, false
	if err := t.save(); err != nil {
		p.log.Error("plan not stored", "domain", s.name, "err", err)
	}
	for _, other := range s.authorities {
		if other != a && other.plan.Failures > 0 {
			p.log.Warn("another CA than before", "domain", s.name, "ca", a.directory, "instead_of", other.directory,
				"failing_since", other.plan.FailingSince, "err", reasonOf(other.plan.LastError))
			other.plan.elsewhere()
			p.savePlan(s, other)
		}
	}
	p.log.Info(msg, "domain", s.name, "not_after", cert.Leaf.NotAfter, "issuer", cert.Leaf.Issuer.String(),
		"ca", a.directory, "took", took.Round(time.Millisecond).String(), "renewal", p.due(s, p.now()))
}

// saveAgain stores a certificate that could not be stored before.
func (p *Provider) saveAgain(s *site, a *authority) {
	release, err := p.lock(s)
	if errors.Is(err, errLocked) {
		return
	}
	a.saveAt = p.now().Add(saveWait)
	if err != nil {
		return
	}
	defer release()
	stored, err := a.stored()
	if err == nil && stored.Leaf.NotBefore.After(a.unsaved.Leaf.NotBefore) {
		a.unsaved = nil // another replica has obtained a newer one since; look adopts it
		a.certSeen = ""
		p.log.Info("certificate not stored: there is a newer one by now", "domain", s.name)
		return
	}
	if err := a.keep(a.unsaved); err != nil {
		return
	}
	a.certSeen = seen(a.store, s.name)
	a.unsaved = nil
	a.plan.Order, a.plan.Interrupted = nil, false
	p.savePlan(s, a)
	p.log.Info("certificate stored at last", "domain", s.name)
}

func (p *Provider) savePlan(s *site, a *authority) {
	if err := p.writePlan(s, a, a.plan); err != nil {
		p.log.Warn("plan not stored", "domain", s.name, "err", err)
	}
}

// writePlan stores pl, which is a's or is going to be.
func (p *Provider) writePlan(s *site, a *authority, pl *plan) error {
	err := pl.save(a.store, s.name, p.now())
	a.planSeen = seen(a.store, s.name+planSuffix)
	a.lost = a.lost || err != nil && a.restore != nil // the lock may have been lost with all the rest
	return err
}

// restore stores what the store has lost: it was replaced or flushed, or was away when we started with our
// copy.
func (p *Provider) restore(s *site, a *authority) {
	release, err := p.lock(s)
	if err != nil {
		return // lock says when to try again
	}
	defer release()
	a.saveAt = p.now().Add(saveWait)
	if p.look(s) != nil {
		return
	}
	err = a.restore()
	if err == nil && seen(a.store, s.name+planSuffix) == "" {
		err = p.writePlan(s, a, a.plan)
	}
	c := s.current.Load()
	lacks := err == nil && c != nil && c.from == a && seen(a.store, s.name) == ""
	if lacks {
		err = a.keep(&c.Certificate)
	}
	if err != nil {
		p.log.Warn("the shared store has lost what it had, and cannot be given it back: trying again every minute",
			"domain", s.name, "ca", a.directory, "err", err)
		return
	}
	a.certSeen = seen(a.store, s.name)
	a.lost, a.saveAt = false, time.Time{}
	if lacks {
		p.log.Warn("the shared store did not have the certificate that is served: stored again", "domain", s.name, "ca", a.directory)
	}
}

// failed records and tells why an attempt gave no certificate. plan is what is remembered from now on,
// before what was before the attempt.
func (p *Provider) failed(s *site, a *authority, before, plan *plan, why reason, f *failure) error {
	now := p.now()
	a.attempts[f.step]++
	if why == resuming {
		plan.notResumed(f, now)
	} else {
		plan.failed(f, before, now, p.cfg.random())
	}
	a.plan, a.cutOff = plan, false
	p.savePlan(s, a)
	level := slog.LevelWarn
	if invalidity(s.current.Load(), s.name, now) != "" {
		level = slog.LevelError
	}
	p.log.Log(context.Background(), level, "no certificate obtained", "domain", s.name, "ca", a.directory,
		"step", f.step, "type", f.kind, "err", f.reason, "hint", f.hint, "failures", plan.Failures,
		"next_attempt", p.nextAttempt(s))
	return f
}

// fetchTime returns when to ask the CA about the certificate that s serves, and whether to ask at all:
// one that has expired is not to be asked about.
// https://www.rfc-editor.org/rfc/rfc9773#section-4.3
func (p *Provider) fetchTime(s *site) (time.Time, bool) {
	c := s.current.Load()
	if c == nil || c.from == nil || c.id == "" || p.now().After(c.Leaf.NotAfter) {
		return time.Time{}, false
	}
	at := latest(s.busyUntil, c.from.plan.RetryAfter)
	if c.from.fetchedID == c.id {
		at = latest(at, c.from.fetchedAt.Add(soonestFetch)) // even if replicas disagree on which one it is
	}
	if info := renewalInfoOf(c); info != nil {
		at = latest(at, info.FetchAfter)
	}
	return at, true
}

// fetch asks the CA when it wants the certificate that s serves to be renewed.
func (p *Provider) fetch(ctx context.Context, s *site) {
	c := s.current.Load()
	a := c.from
	release, err := p.lock(s)
	if errors.Is(err, errLocked) {
		return
	}
	if err == nil {
		defer release()
		p.complain(s, p.look(s))
		if t, ok := p.fetchTime(s); !ok || t.After(p.now()) {
			return // another replica has asked
		}
		c = s.current.Load()
		a = c.from
	} // a folder that cannot be locked now is no reason not to learn of a revocation

	a.fetchedID, a.fetchedAt = c.id, p.now()
	old := renewalInfoOf(c)
	info, err := a.renewalInfo(ctx, c.id)
	if ctx.Err() != nil {
		return
	}
	if err != nil {
		if old != nil { // what it said before still stands
			info.Start, info.End, info.Chosen, info.ExplanationURL = old.Start, old.End, old.Chosen, old.ExplanationURL
		}
		a.plan.Renewal = &info
		p.savePlan(s, a)
		if !errors.Is(err, errNoRenewalInfo) {
			p.log.Warn("renewal information not to be had: going by the lifetime, or by what was said before",
				"domain", s.name, "ca", a.directory, "err", err, "renewal", p.due(s, p.now()), "again", info.FetchAfter)
		}
		return
	}
	a.plan.Renewal = info.merge(old, p.cfg.random())
	p.savePlan(s, a)
	if old == nil || !old.Chosen.Equal(a.plan.Renewal.Chosen) || old.ExplanationURL != info.ExplanationURL {
		p.log.Info("the CA says when to renew", "domain", s.name, "window_start", info.Start, "window_end", info.End,
			"explanation", info.ExplanationURL, "renewal", p.due(s, p.now()))
	}
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

// publish makes what keep knows of s known to those who ask.
func (p *Provider) publish(s *site) {
	now := p.now()
	var known []AuthorityStatus
	for _, a := range s.authorities {
		st := AuthorityStatus{
			Directory:    a.directory,
			Failures:     a.plan.Failures,
			FailingSince: a.plan.FailingSince,
			LastError:    a.plan.LastError,
			RetryAfter:   a.plan.RetryAfter,
			Unsaved:      a.unsaved != nil,
			ClockSkew:    a.skew.Seconds(),
			Attempts:     maps.Clone(a.attempts),

			ValidationsLeft:  maxFailed - len(recent(a.plan.Failed, failedWindow, now)),
			CertificatesLeft: issuedLimit(a.life) - len(recent(a.plan.Issued, issuedWindow, now)),
		}
		if a.plan.Interrupted && !a.cutOff && st.Failures > 0 {
			st.Failures-- // it was counted when it began, and may be under way
		}
		if at := a.plan.attemptTime(now, a.life, false); at.After(now) {
			st.BackoffUntil = at
		}
		known = append(known, st)
	}
	next := p.nextAttempt(s)
	var window *RenewalWindow
	if info := renewalInfoOf(s.current.Load()); info != nil && !info.Start.IsZero() {
		window = &RenewalWindow{Start: info.Start, End: info.End, Chosen: info.Chosen, ExplanationURL: info.ExplanationURL}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.next, s.known, s.window, s.lastError = next, known, window, cmp.Or(s.hung, s.away)
	for _, st := range known {
		if s.lastError == nil && st.LastError != nil {
			s.lastError = st.LastError
		}
	}
}

// keepLocal sees to it that s has a certificate of the local CA, until ctx is done.
func (p *Provider) keepLocal(ctx context.Context, s *site) {
	for ctx.Err() == nil {
		at := s.current.Load().renewal
		if invalidity(s.current.Load(), s.name, p.now()) != "" { // the clock was set
			at = p.now()
		}
		s.mu.Lock()
		s.next = at
		s.mu.Unlock()
		var asking *request
		if wait := at.Sub(p.now()); wait > 0 {
			timer := time.NewTimer(min(wait, clockInterval))
			select {
			case <-ctx.Done():
				timer.Stop()
				return
			case <-timer.C:
				continue
			case <-s.wake:
				continue
			case asking = <-s.requests:
			}
			timer.Stop()
		}
		cert, err := p.local.issue(s.name)
		if err == nil {
			p.install(s, cert, nil)
			p.log.Info("certificate renewed", "domain", s.name, "not_after", cert.Leaf.NotAfter, "issuer", cert.Leaf.Issuer.String())
		} else {
			p.log.Error("no certificate obtained", "domain", s.name, "err", err)
		}
		s.mu.Lock()
		s.lastError = nil
		if err != nil {
			s.lastError = &LastError{When: p.now(), Reason: err.Error()}
		}
		s.mu.Unlock()
		if asking != nil {
			asking.done <- err
		} else if err != nil {
			pause(ctx, saveWait)
		}
	}
}

// Renew obtains a new certificate for domain now, whatever the schedule says, and returns when that is
// done or ctx is. It waits for an attempt that is under way, and is content if that succeeds. It is for
// operators: what the CA said about coming back later is obeyed, and the budget that keeps us
// within a CA's limits is kept. An attempt goes on when ctx is done. Run must be running.
//
// The error is [ErrUnknownDomain], [ErrFromFiles], a *[NotYetError], that of ctx, or says in one line
// why the CA gave no certificate.
func (p *Provider) Renew(ctx context.Context, domain string) error {
	s := p.byName[domain]
	switch {
	case s == nil:
		return fmt.Errorf("acme: %w: %q", ErrUnknownDomain, domain)
	case s.source == sourceFiles:
		return fmt.Errorf("acme: %s: %w", domain, ErrFromFiles)
	}
	r := &request{before: s.current.Load(), done: make(chan error, 1)}
	select {
	case s.requests <- r:
	case <-ctx.Done():
		return ctx.Err()
	}
	select {
	case err := <-r.done:
		return err
	case <-ctx.Done():
		return ctx.Err()
	}
}

// Reload looks at once at what is otherwise looked at from time to time: certificate files are read
// again, and the CA is asked when it wants its certificates renewed. It returns at once.
func (p *Provider) Reload() {
	for _, s := range p.sites {
		select {
		case s.wake <- struct{}{}:
		default: // it is about to look
		}
	}
	if p.files != nil {
		select {
		case p.files.wake <- struct{}{}:
		default:
		}
	}
}
