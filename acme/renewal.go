package acme

import (
	"context"
	"errors"
	"time"

	"plusminus/acme/internal/store"
)

// due returns when s needs a new certificate: now if it has none that is usable.
func (p *Provider) due(s *site, now time.Time) time.Time {
	c := s.current.Load()
	if c == nil || now.After(c.Leaf.NotAfter) || c.Leaf.VerifyHostname(s.name) != nil {
		return now
	}
	return p.renewal(c, now)
}

// renewal returns when c is to be renewed: at the moment chosen in the CA's window, or by its lifetime if the
// CA gave no window.
func (p *Provider) renewal(c *certificate, now time.Time) time.Time {
	info := renewalInfoOf(c)
	if info == nil || info.Chosen.IsZero() {
		return c.renewal
	}
	if last := latestRenewal(c.Leaf.NotBefore, c.ends); last.Before(info.Chosen) {
		return last
	}
	// A CA that wants each new certificate replaced at once has a fault. It gets one renewal a day.
	if hurried := spareAt(c.from.plan.Issued, 2, day, now); hurried.After(info.Chosen) {
		return earliest(hurried, c.renewal)
	}
	return info.Chosen
}

// renewalInfoOf returns the CA's renewal information for c, which may be nil. It returns nil if there is none.
func renewalInfoOf(c *certificate) *renewalInfo {
	if c == nil || c.from == nil || c.id == "" {
		return nil
	}
	if info := c.from.plan.Renewal; info != nil && info.CertID == c.id {
		return info
	}
	return nil
}

// fetchTime returns when to ask the CA for renewal information about the certificate of s. ok is false if it
// is not to be asked: one that has expired, for example.
// https://www.rfc-editor.org/rfc/rfc9773#section-4.3
func (p *Provider) fetchTime(s *site) (at time.Time, ok bool) {
	c := s.current.Load()
	if c == nil || c.from == nil || c.id == "" || p.now().After(c.Leaf.NotAfter) {
		return time.Time{}, false
	}
	at = latest(s.busyUntil, c.from.plan.RetryAfter)
	if c.from.fetchedID == c.id {
		at = latest(at, c.from.fetchedAt.Add(soonestFetch)) // even if replicas serve different certificates
	}
	if info := renewalInfoOf(c); info != nil {
		at = latest(at, info.FetchAfter)
	}
	return at, true
}

// refetch makes the next look ask each CA for renewal information again, unless its Retry-After forbids that.
func (p *Provider) refetch(s *site) {
	for _, a := range s.authorities {
		if info := a.plan.Renewal; info != nil && a.plan.RetryAfter.Before(p.now()) {
			info.FetchAfter, a.fetchedID = p.now(), ""
		}
	}
}

// fetch asks the CA when the certificate that s serves is to be renewed.
func (p *Provider) fetch(ctx context.Context, s *site) {
	c := s.current.Load()
	a := c.from
	release, err := p.lock(s)
	if errors.Is(err, store.ErrLocked) {
		return
	}
	if err == nil {
		defer release()
		p.logUnreadable(s, p.look(s))
		if t, ok := p.fetchTime(s); !ok || t.After(p.now()) {
			return // another replica has asked
		}
		c = s.current.Load()
		a = c.from
	} // with any other error go on: renewal information is how a server learns of a revocation

	a.fetchedID, a.fetchedAt = c.id, p.now()
	old := renewalInfoOf(c)
	info, err := a.renewalInfo(ctx, c.id)
	if ctx.Err() != nil {
		return
	}
	if err != nil {
		if old != nil { // the earlier window still holds
			info.Start, info.End, info.Chosen, info.ExplanationURL = old.Start, old.End, old.Chosen, old.ExplanationURL
		}
		a.plan.Renewal = &info
		p.savePlan(s, a)
		if !errors.Is(err, errNoRenewalInfo) {
			p.log.Warn("renewal information not available: using the lifetime, or the CA's earlier answer",
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
