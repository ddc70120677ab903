package acme

import (
	"context"
	"time"

	"plusminus/acme/internal/cahttp"
)

// clockInterval bounds the sleep of keepLocal: the clock may be set, and timers stand still while a machine is
// suspended.
const clockInterval = time.Hour

// keepLocal sees to it that s has a valid certificate of the local CA, until ctx is done.
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
		cert, err := p.local.Issue(s.name)
		if err == nil {
			p.serve(s, cert, nil, true)
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
			cahttp.Pause(ctx, saveWait)
		}
	}
}
