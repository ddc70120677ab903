package acme

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"time"

	"plusminus/acme/internal/certs"
)

// Values of [Status.Source].
const (
	sourceACME  = "acme"
	sourceLocal = "local"
	sourceFiles = "files"
)

// Status is the state of one domain's certificate. A time that does not apply is zero and left out of the
// JSON.
type Status struct {
	Domain      string            `json:"domain"`
	Source      string            `json:"source"`                // "acme", "local" or "files"
	Directory   string            `json:"directory,omitempty"`   // of the CA that issued the served certificate
	NotBefore   time.Time         `json:"not_before,omitzero"`   // of the served certificate
	NotAfter    time.Time         `json:"not_after,omitzero"`    // of the served certificate
	Ends        time.Time         `json:"ends,omitzero"`         // NotAfter, or that of the first certificate of the chain that ends
	Chain       string            `json:"chain,omitempty"`       // what is wrong with the chain; empty if nothing is
	Serial      string            `json:"serial,omitempty"`      // in hexadecimal, as crt.sh and openssl show it
	Issuer      string            `json:"issuer,omitempty"`      // the issuer's distinguished name
	Problem     string            `json:"problem,omitempty"`     // why visitors cannot be served; empty if they can
	NextAction  string            `json:"next_action,omitempty"` // "obtain", "renew" or "retry"
	NextAttempt time.Time         `json:"next_attempt,omitzero"` // when that is planned
	Attempting  time.Time         `json:"attempting,omitzero"`   // since when an attempt has been in progress
	Renewal     *RenewalWindow    `json:"renewal,omitempty"`     // when the CA wants it to be renewed (RFC 9773)
	LastError   *LastError        `json:"last_error,omitempty"`  // why there is no newer certificate; nil after success
	CAs         []AuthorityStatus `json:"cas,omitempty"`         // for source "acme": the CA and the fallback
}

// RenewalWindow is the time in which a CA wants a certificate to be renewed.
type RenewalWindow struct {
	Start          time.Time `json:"start"`
	End            time.Time `json:"end"`
	Chosen         time.Time `json:"chosen"`                    // the random moment in the window that we chose
	ExplanationURL string    `json:"explanation_url,omitempty"` // a page with the CA's reason
}

// AuthorityStatus is the state of one domain at one CA.
type AuthorityStatus struct {
	Directory        string         `json:"directory"`               // URL
	Failures         int            `json:"failures"`                // attempts in a row without a certificate
	FailingSince     time.Time      `json:"failing_since,omitzero"`  // when the first of these was
	BackoffUntil     time.Time      `json:"backoff_until,omitzero"`  // no attempt before
	RetryAfter       time.Time      `json:"retry_after,omitzero"`    // the CA's last Retry-After
	ValidationsLeft  int            `json:"failed_validations_left"` // how many may still fail within the hour
	CertificatesLeft int            `json:"certificates_left"`       // how many may still be obtained within the week
	Unsaved          bool           `json:"unsaved,omitempty"`       // its certificate could not be stored yet
	ClockSkew        float64        `json:"clock_skew_seconds"`      // its clock minus ours at the last attempt
	LastError        *LastError     `json:"last_error,omitempty"`    // nil after success
	Attempts         map[string]int `json:"attempts"`                // since the start, by outcome: "ok", or the step that failed
}

// LastError is the reason why the last attempt failed.
type LastError struct {
	When   time.Time `json:"when"`
	Step   string    `json:"step,omitempty"` // a resource of RFC 8555 section 7.1, a challenge type, "clock", "store" or "lock"
	Type   string    `json:"type,omitempty"` // the CA's error type (RFC 8555 section 6.7), without its prefix
	Reason string    `json:"reason"`         // in the CA's own words where it gave any
	Hint   string    `json:"hint,omitempty"` // what to check
}

// Status returns the state of each domain, in the order of Config.Domains.
func (p *Provider) Status() []Status {
	all := make([]Status, 0, len(p.sites))
	for _, s := range p.sites {
		c := s.current.Load()
		st := Status{Domain: s.name, Source: s.source, Problem: invalidity(c, s.name, p.cfg.now())}
		if c != nil {
			if c.from != nil {
				st.Directory = c.from.directory
			}
			st.NotBefore, st.NotAfter, st.Ends, st.Chain = c.Leaf.NotBefore, c.Leaf.NotAfter, c.ends, c.chain
			st.Serial = fmt.Sprintf("%x", c.Leaf.SerialNumber.Bytes())
			st.Issuer = c.Leaf.Issuer.String()
		}
		s.mu.Lock()
		st.NextAttempt, st.Attempting, st.LastError, st.CAs, st.Renewal = s.next, s.attempting, s.lastError, s.known, s.window
		s.mu.Unlock()
		switch {
		case st.NextAttempt.IsZero():
		case st.LastError != nil:
			st.NextAction = "retry"
		case c == nil:
			st.NextAction = "obtain"
		default:
			st.NextAction = "renew"
		}
		all = append(all, st)
	}
	return all
}

// Ready returns nil when at least one domain has a certificate that is valid for it now: then the server is of use, and
// must not be taken away because of the other domains. Otherwise the error is that of [Provider.Complete].
func (p *Provider) Ready() error {
	for _, s := range p.sites {
		if p.siteReady(s) == nil {
			return nil
		}
	}
	return p.Complete()
}

// Complete returns nil when every domain has a certificate that is valid for it now. Otherwise the error has a line for
// each domain without one: why its last attempt failed, and when the next attempt is.
func (p *Provider) Complete() error {
	var errs []error
	for _, s := range p.sites {
		if err := p.siteReady(s); err != nil {
			errs = append(errs, fmt.Errorf("acme: %s: %w", s.name, err))
		}
	}
	return errors.Join(errs...)
}

func (p *Provider) siteReady(s *site) error {
	why := invalidity(s.current.Load(), s.name, p.cfg.now())
	if why == "" {
		return nil
	}
	s.mu.Lock()
	next, attempting, last := s.next, s.attempting, s.lastError
	s.mu.Unlock()
	if last != nil {
		why += ": " + last.Reason
		if last.Hint != "" {
			why += " (" + last.Hint + ")"
		}
	}
	switch {
	case !attempting.IsZero():
		why += "; an attempt has been in progress since " + rfc3339(attempting)
	case !next.IsZero():
		why += "; next attempt at " + rfc3339(next)
	}
	return errors.New(why)
}

// invalidity says why c, which may be nil, is not valid for name at the time now. It returns "" if c is valid.
func invalidity(c *certificate, name string, now time.Time) string {
	if c == nil {
		return "no certificate yet"
	}
	return certs.Invalidity(c.Leaf, name, now)
}

// PubliclyTrusted reports whether the certificate that is served for domain verifies for that name against
// the system's roots, so that any visitor accepts it. The answer is computed when a certificate is installed.
// It is false for unknown domains and for those of the local CA, even if this system trusts that CA.
func (p *Provider) PubliclyTrusted(domain string) bool {
	s := p.byName[domain]
	if s == nil {
		return false
	}
	c := s.current.Load()
	return c != nil && c.public
}

// publish updates the fields of s that Status and Ready read.
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
			CertificatesLeft: issuedLimit(a.plan.Life) - len(recent(a.plan.Issued, issuedWindow, now)),
		}
		if a.plan.Interrupted && !a.cutOff && st.Failures > 0 {
			st.Failures-- // the plan counts an attempt when it begins; this one may be in progress
		}
		if at := a.plan.attemptTime(now); at.After(now) {
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
