package acme

import (
	"context"
	"log/slog"

	"plusminus/acme/internal/certbot"
	"plusminus/acme/internal/store"
)

// importCertificates takes certificates of certbot over for the domains that have none at any CA. It reads the folder of
// certbot only if there is such a domain.
func (p *Provider) importCertificates() {
	if p.cfg.ImportDir == "" {
		return
	}
	var missing []*site
	var names []string
	for _, s := range p.sites {
		if s.source == sourceACME && s.current.Load() == nil {
			missing, names = append(missing, s), append(names, s.name)
		}
	}
	if len(missing) == 0 {
		return
	}
	found, skipped := certbot.Scan(p.cfg.ImportDir, names, p.cfg.DirectoryURL == LetsEncryptStaging, p.now())
	for _, sk := range skipped {
		level := slog.LevelWarn
		switch {
		case sk.Good && len(found) == len(names):
			level = slog.LevelDebug
		case sk.Good:
			level = slog.LevelInfo
		}
		args := []any{"folder", sk.Path, "reason", sk.Reason}
		if sk.Hint != "" {
			args = append(args, "hint", sk.Hint)
		}
		p.log.Log(context.Background(), level, "certificate of certbot not taken over", args...)
	}
	for _, s := range missing {
		if l := found[s.name]; l != nil {
			p.takeOver(s, l)
		} else {
			p.log.Warn("no certificate to take over: ordering one", "domain", s.name, "folder", p.cfg.ImportDir)
		}
	}
}

// takeOver serves l and stores it, as if the first CA had issued it just now. If it cannot be stored now, keep tries again.
//
// The account that obtained it is certbot's. A CA refuses an order that names it in `replaces`, and the transport then
// orders without that field in the same attempt.
func (p *Provider) takeOver(s *site, l *certbot.Lineage) {
	a := s.authorities[0]
	ctx, cancel := context.WithTimeout(context.Background(), openTimeout)
	defer cancel()
	release, err := store.WaitLock(ctx, p.locks, s.name)
	if err == nil {
		defer release()
		err = p.look(s)
	}
	if s.current.Load() != nil {
		return // another replica has obtained or imported one meanwhile
	}
	if err == nil {
		err = storeCertificate(a.store, s.name, l.Certificate)
		a.certSeen = store.Seen(a.store, s.name)
	}
	p.take(s, a, l.Certificate, "")
	p.log.Info("certificate taken over from certbot", "domain", s.name, "folder", l.Path, "not_after", l.Certificate.Leaf.NotAfter,
		"issuer", l.Certificate.Leaf.Issuer.String(), "renewal", p.due(s, p.now()))
	if err != nil {
		a.unsaved, a.saveAt = l.Certificate, p.now().Add(saveWait)
		p.log.Warn("certificate of certbot not stored: trying again every minute", "domain", s.name, "err", err)
	}
}
