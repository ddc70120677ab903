package acme

import (
	"context"
	"errors"
	"fmt"
	"time"

	"plusminus/acme/internal/cahttp"
	"plusminus/acme/internal/store"
)

var (
	// ErrUnknownDomain is returned for a name that is not one of the domains.
	ErrUnknownDomain = errors.New("not one of the domains")

	// ErrFromFiles is returned by Renew for a certificate that another program renews.
	ErrFromFiles = errors.New("the certificate comes from files: replace them, and they are read again")
)

// A NotYetError says that Renew does not ask the CA now.
type NotYetError struct {
	Reason string
	Until  time.Time
}

func (e *NotYetError) Error() string {
	return e.Reason + ": not before " + e.Until.UTC().Format(time.RFC3339)
}

// A request is one call of Renew.
type request struct {
	before *certificate // what was served at the call; may be nil
	done   chan error   // the result; buffer 1, since Renew may have returned; never closed
}

// Renew obtains a new certificate for domain now, whatever the schedule says. It returns when the attempt has
// ended or ctx is done; the attempt goes on when ctx is done. If an attempt is in progress, Renew waits for it
// and returns nil if it succeeds. Renew keeps to the CA's Retry-After, and to the budget that stays within the
// CA's limits. Run must be running.
//
// The error is [ErrUnknownDomain], [ErrFromFiles], a *[NotYetError], that of ctx, or says in one line why the
// CA gave no certificate.
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

// renewNow serves r, a call of Renew. It asks the fallback, too, if the CA gives no certificate.
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
	if s.renewedSince(r.before) {
		return nil // the attempt that was in progress has succeeded
	}
	began := p.now()
	if a.plan.refusal(began) == nil {
		cahttp.Pause(ctx, a.plan.nextOrderTime(began, p.cfg.orderInterval).Sub(began))
	}
	for {
		err := p.attempt(ctx, s, a, asked)
		if !errors.Is(err, store.ErrLocked) || ctx.Err() != nil || p.now().Sub(began) > hungAfter {
			return err
		}
		cahttp.Pause(ctx, busyWait)
		if p.look(s) == nil && s.renewedSince(r.before) {
			return nil
		}
	}
}

// Reload does at once what is otherwise done from time to time: it reads certificate files again, and asks
// the CAs when their certificates are to be renewed. It returns at once.
func (p *Provider) Reload() {
	for _, s := range p.sites {
		select {
		case s.wake <- struct{}{}:
		default: // a look is pending
		}
	}
	if p.files != nil {
		select {
		case p.files.wake <- struct{}{}:
		default:
		}
	}
}
