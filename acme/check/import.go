package check

import (
	"time"

	"plusminus/acme"
	"plusminus/acme/internal/certbot"
)

// checkImport reports what the server would take over from certbot for the domain, which has no certificate stored.
func (s *domainCheck) checkImport() {
	const subject = "import"
	found, skipped := certbot.Scan(s.cfg.ImportDir, []string{s.name}, s.cfg.DirectoryURL == acme.LetsEncryptStaging, s.cfg.now())
	if l := found[s.name]; l != nil {
		s.say(OK, subject, "the first start takes the certificate of %s over, valid until %s, and orders none", l.Path,
			l.Certificate.Leaf.NotAfter.UTC().Format(time.RFC3339))
		return
	}
	for _, sk := range skipped {
		if !sk.Good {
			text := sk.Reason
			if sk.Hint != "" {
				text += "; " + sk.Hint
			}
			s.say(Warning, subject, "not taken over: %s: %s", sk.Path, text)
		}
	}
	s.say(Warning, subject, "%s has no certificate to take over: the first start orders one", s.cfg.ImportDir)
}
