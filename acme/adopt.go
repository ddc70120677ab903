package acme

import (
	"crypto/tls"
	"errors"
	"io/fs"
	"time"

	"plusminus/acme/internal/certs"
	"plusminus/acme/internal/store"
)

// look takes over what other replicas wrote, and what happened to the clock. The error names what cannot be
// read now; the earlier state stays.
func (p *Provider) look(s *site) error {
	now := p.now()
	jump := time.Duration(0) // by how much the wall clock was set since the last look
	if !s.looked.IsZero() {
		jump = now.Sub(s.looked) - time.Since(s.lookedMono)
	}
	s.looked, s.lookedMono = now, time.Now()
	s.busyUntil = earliest(s.busyUntil, now.Add(busyWait)) // later only if the clock was ahead
	var errs []error
	for _, a := range s.authorities {
		errs = append(errs, p.lookAtPlan(s, a, now, jump))
		// The same for these two.
		a.saveAt, a.fetchedAt = earliest(a.saveAt, now.Add(saveWait)), earliest(a.fetchedAt, now)
		errs = append(errs, p.adopt(s, a))
	}
	return errors.Join(errs...)
}

// lookAtPlan reads a's plan if another replica has written it. Otherwise it moves the plan in memory with the
// clock.
func (p *Provider) lookAtPlan(s *site, a *authority, now time.Time, jump time.Duration) error {
	v, err := a.store.Version(s.name + store.PlanSuffix)
	gone := a.shared() && v == "" && a.planSeen != ""
	if err != nil || gone || v == a.planSeen {
		a.lost = a.lost || err == nil && gone
		a.plan.follow(now, jump)
		return err
	}
	pl, err := loadPlan(a.store, s.name, now)
	if err == nil {
		a.plan, a.planSeen = pl, v
	}
	return err
}

// unsavedTime returns when the certificate in a's plan, which has one, can be served.
func (p *Provider) unsavedTime(s *site, a *authority) time.Time {
	cert, err := certs.ParsePair(s.name, a.plan.Unsaved)
	if err != nil {
		return p.now() // to forget it
	}
	return latest(p.now(), cert.Leaf.NotBefore)
}

// collect takes the certificate in a's plan, if there is one.
func (p *Provider) collect(s *site, a *authority) {
	release, err := p.lock(s)
	if err != nil {
		return // lock has set when to try again
	}
	defer release()
	a.saveAt = p.now().Add(saveWait) // if this fails
	if p.look(s) == nil && p.takeUnsaved(s, a) {
		a.saveAt = time.Time{}
	}
}

// takeUnsaved serves the certificate in a's plan, if there is one that is valid: it has become valid, or the process that
// obtained it died before it was in its own file, or could not write that. The lock of s must be held, since such a process
// holds it. takeUnsaved reports whether the plan has been written, if it had to be.
func (p *Provider) takeUnsaved(s *site, a *authority) bool {
	if a.plan.Unsaved == nil || a.unsaved != nil {
		return true
	}
	cert, err := certs.ParsePair(s.name, a.plan.Unsaved)
	switch {
	case err == nil && p.now().Before(cert.Leaf.NotBefore):
		return true
	case err == nil && p.take(s, a, cert, "certificate served from now on: the plan had kept it"):
		a.unsaved = cert
		if s.current.Load().renewal.After(p.now()) {
			a.plan.settled()
		}
	default:
		a.plan.Unsaved = nil
	}
	return p.savePlan(s, a)
}

// adopt installs a's stored certificate if it is new and better than the one that s serves.
func (p *Provider) adopt(s *site, a *authority) error {
	v, err := a.store.Version(s.name)
	if err != nil || v == a.certSeen {
		return err
	}
	if a.shared() && v == "" {
		a.lost = true
		return nil
	}
	cert, err := loadCertificate(a.store, s.name)
	if errors.Is(err, fs.ErrNotExist) {
		a.certSeen = v
		return nil
	}
	if err != nil {
		return err
	}
	if !p.now().Before(cert.Leaf.NotBefore) { // otherwise look again: this clock may be a little behind
		a.certSeen = v
	}
	p.take(s, a, cert, "certificate adopted: another replica obtained it")
	return nil
}

// take serves cert, which a has stored, if it is better than the one that s serves, and reports whether it is. It logs
// msg then.
func (p *Provider) take(s *site, a *authority, cert *tls.Certificate, msg string) bool {
	a.plan.Life = cert.Leaf.NotAfter.Sub(cert.Leaf.NotBefore)
	if !p.serve(s, cert, a, false) {
		return false
	}
	if s.running {
		p.log.Info(msg, "domain", s.name,
			"not_after", cert.Leaf.NotAfter, "issuer", cert.Leaf.Issuer.String(), "renewal", p.due(s, p.now()))
	}
	return true
}

// useCopy serves the local copy of a's certificate, if the shared store has none or is away, and if the
// copy is better than the certificate that s serves.
func (p *Provider) useCopy(s *site, a *authority) {
	if a.copies == nil || a.certSeen != "" {
		return
	}
	cert, err := loadCertificate(a.copies, s.name)
	if err != nil || !p.serve(s, cert, a, false) {
		return
	}
	a.lost = true // or the store is away; restore finds out
}

// restore writes what the shared store has lost: the store was replaced or flushed, or was away when this
// replica started with its copy.
func (p *Provider) restore(s *site, a *authority) {
	release, err := p.lock(s)
	if err != nil {
		return // lock has set when to try again
	}
	defer release()
	a.saveAt = p.now().Add(saveWait)
	if p.look(s) != nil {
		return
	}
	err = a.restoreAccount()
	if err == nil && store.Seen(a.store, s.name+store.PlanSuffix) == "" {
		err = p.writePlan(s, a, a.plan)
	}
	c := s.current.Load()
	lacks := err == nil && c != nil && c.from == a && store.Seen(a.store, s.name) == ""
	if lacks {
		err = storeCertificate(a.store, s.name, &c.Certificate)
	}
	if err != nil {
		p.log.Warn("the shared store has lost its entries, and they cannot be restored: trying again every minute",
			"domain", s.name, "ca", a.directory, "err", err)
		return
	}
	a.certSeen = store.Seen(a.store, s.name)
	a.lost, a.saveAt = false, time.Time{}
	if lacks {
		p.log.Warn("the shared store did not have the certificate that is served: stored again", "domain", s.name, "ca", a.directory)
	}
}

// saveAgain stores a certificate that could not be stored before.
func (p *Provider) saveAgain(s *site, a *authority) {
	release, err := p.lock(s)
	if errors.Is(err, store.ErrLocked) {
		return
	}
	a.saveAt = p.now().Add(saveWait)
	if err != nil {
		return
	}
	defer release()
	stored, err := loadCertificate(a.store, s.name)
	switch {
	case err == nil && stored.Leaf.Equal(a.unsaved.Leaf): // by another replica, or by a process that died then
		a.unsaved, a.plan.Unsaved = nil, nil
		p.savePlan(s, a)
		return
	case err == nil && stored.Leaf.NotBefore.After(a.unsaved.Leaf.NotBefore):
		a.unsaved = nil // the next look adopts the newer one
		a.certSeen = ""
		p.log.Info("certificate not stored: another replica has stored a newer one", "domain", s.name)
		return
	}
	if err := storeCertificate(a.store, s.name, a.unsaved); err != nil {
		return
	}
	a.certSeen = store.Seen(a.store, s.name)
	a.unsaved, a.plan.Unsaved = nil, nil
	p.savePlan(s, a)
	p.log.Info("certificate stored after earlier failures", "domain", s.name)
}

// savePlan stores a's plan, and reports whether that worked. It logs a failure.
func (p *Provider) savePlan(s *site, a *authority) bool {
	err := p.writePlan(s, a, a.plan)
	if err != nil {
		p.log.Warn("plan not stored", "domain", s.name, "err", err)
	}
	return err == nil
}

// writePlan stores pl, which is a's plan or the one that replaces it.
func (p *Provider) writePlan(s *site, a *authority, pl *plan) error {
	err := pl.save(a.store, s.name, p.now())
	a.planSeen = store.Seen(a.store, s.name+store.PlanSuffix)
	a.lost = a.lost || err != nil && a.shared() // the store may have lost the lock with everything else
	return err
}

// loadCertificate returns the certificate that is stored for name; it may have expired. The error is
// [fs.ErrNotExist] if there is none, or if it was damaged and is set aside.
func loadCertificate(st store.Store, name string) (*tls.Certificate, error) {
	return store.Load(st, name, func(data []byte) (*tls.Certificate, error) { return certs.ParsePair(name, data) })
}

// storeCertificate stores cert for name.
func storeCertificate(st store.Store, name string, cert *tls.Certificate) error {
	data, err := encodeCertificate(cert)
	if err != nil {
		return err
	}
	return st.Write(name, data)
}

// encodeCertificate returns cert and its key in PEM.
func encodeCertificate(cert *tls.Certificate) ([]byte, error) {
	return certs.EncodePair(cert.PrivateKey, cert.Certificate)
}
