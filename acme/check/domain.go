package check

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"plusminus/acme"
	"plusminus/acme/internal/cahttp"
	"plusminus/acme/internal/challenge"
	"plusminus/acme/internal/localca"
)

// A domainCheck is the check of one domain. Its methods are safe for concurrent use.
type domainCheck struct {
	*checker
	name    string
	address netip.Addr // invalid if the domain is a name
	ctx     context.Context
	out     chan<- Finding // to the goroutine that called Run; checkDomains closes it
}

func (s *domainCheck) say(level Level, subject, format string, args ...any) {
	s.out <- Finding{Domain: s.name, Subject: subject, Level: level, Text: fmt.Sprintf(format, args...)}
}

// checkLocal checks a domain that the local CA certifies. It changes nothing.
func (s *domainCheck) checkLocal() {
	const subject = "certificate"
	dir := filepath.Join(s.cfg.Dir, localca.Folder)
	file := localca.RootPath(dir)
	switch root, err := localca.ReadRoot(dir); {
	case errors.Is(err, fs.ErrNotExist):
		s.say(OK, subject, "comes from a small CA of our own, which is made at the first start; clients have to trust its root then, %s", file)
	case errors.Is(err, fs.ErrPermission):
		s.say(Problem, subject, "the CA of our own cannot be read: %v", err)
	case err != nil:
		s.say(Warning, subject, "the CA of our own in %s is damaged (%v): another is made at the start, and has to be trusted anew", dir, err)
	case root.NotAfter.Sub(s.cfg.now()) < localca.RootRenewal:
		s.say(Warning, subject, "the root of our own CA, %s, expires at %s: another is made at the start, and has to be trusted anew",
			file, root.NotAfter.UTC().Format(time.RFC3339))
	default:
		if _, err := root.Verify(x509.VerifyOptions{Roots: s.cfg.systemRoots, CurrentTime: s.cfg.now()}); err == nil {
			s.say(OK, subject, "comes from a CA of our own, which this system trusts")
			return
		}
		s.say(OK, subject, "comes from a CA of our own, whose root clients have to trust: %s", file)
	}
}

// check checks a domain that an ACME CA certifies.
func (s *domainCheck) check() {
	s.checkStored()
	if s.address.IsValid() {
		s.checkIPAddress()
		return
	}

	var caa []caaVerdict
	var wg sync.WaitGroup
	wg.Go(func() { caa = s.checkCAA() })
	addrs, looked := s.checkAddresses()
	var states map[string]portState
	if len(addrs) > 0 {
		states = s.probeAll(addrs)
	}
	wg.Wait()
	if len(addrs) == 0 {
		if !looked {
			s.say(Warning, "challenges", "could not be tried, since the name could not be looked up")
		}
		return // checkAddresses has reported why there are no addresses
	}
	allowed := challengeTypes()
	if len(caa) > 0 && caa[0].methods != nil {
		allowed = caa[0].methods
	}
	s.conclude(states, allowed)
}

// checkIPAddress checks a domain that is an IP address. It has no records in the DNS, so there is
// none to look up.
func (s *domainCheck) checkIPAddress() {
	const subject = "address"
	switch what := acme.WhyNotPublic(s.address); {
	case what == "":
	case s.inside:
		s.say(OK, subject, "it is %s; so is the CA's own", what)
	default:
		s.say(Problem, subject, "it is %s, which the CA does not reach", what)
		return
	}
	states := s.probeAll([]netip.Addr{s.address})
	if leadsHere := slices.Contains(slices.Collect(maps.Values(states)), works); leadsHere || slices.Contains(s.own, s.address) {
		s.say(OK, subject, "leads to this machine")
	} else {
		s.say(Warning, subject, "this machine does not seem to have it: it has %s. That is right behind a router or a published port that leads here, and wrong otherwise", list(s.ownPublic()))
	}
	s.conclude(states, challengeTypes())
}

// ownPublic returns this machine's addresses, without those that lead nowhere else.
func (s *domainCheck) ownPublic() []string {
	var all []string
	for _, a := range s.own {
		if a.IsGlobalUnicast() {
			all = append(all, a.String())
		}
	}
	return all
}

// host returns the domain as it stands in a URL: an IPv6 address in brackets.
func (s *domainCheck) host() string {
	if s.address.Is6() {
		return "[" + s.name + "]"
	}
	return s.name
}

// checkStored reports what earlier runs of the server stored for the domain.
func (s *domainCheck) checkStored() {
	cfg, now := s.cfg.Config, s.cfg.now()
	if s.seal == nil {
		cfg.Shared = nil // it cannot be used, as checkShared has reported
	}
	found := acme.ReadStored(cfg, s.name, now)
	if !found.NotAfter.IsZero() {
		s.say(OK, "certificate", "there is one, valid until %s: no order is placed before it is to be renewed", found.NotAfter.UTC().Format(time.RFC3339))
	}
	if !found.Certificate && cfg.ImportDir != "" {
		s.checkImport()
	}
	if found.Damaged != "" {
		s.say(Warning, "certificate", "%s is damaged, and will be set aside", found.Damaged)
	}
	last := found.LastError
	if last == nil {
		return
	}
	text := fmt.Sprintf("the last attempt failed, at %s: %s", last.When.UTC().Format(time.RFC3339), cahttp.OneLine(last.Reason))
	if last.Hint != "" {
		text += " (" + last.Hint + ")"
	}
	if found.NextAttempt.After(now) {
		text += "; the next one is not made before " + found.NextAttempt.UTC().Format(time.RFC3339)
	}
	s.say(Warning, "certificate", "%s", text)
}

// conclude reports whether the CA would validate an order by one of the challenges in allowed, which are those
// that the CAA records permit.
func (s *domainCheck) conclude(states map[string]portState, allowed []string) {
	const subject = "challenges"
	var good, doubtful []string
	for _, typ := range allowed {
		switch states[typ] {
		case works:
			good = append(good, typ)
		case inDoubt:
			doubtful = append(doubtful, typ)
		}
	}
	switch {
	case len(good) > 0:
		s.say(OK, subject, "the CA would get its answer by %s; one is enough", strings.Join(good, " and by "))
	case len(doubtful) > 0:
		s.say(Warning, subject, "whether the CA would get its answer by %s cannot be told from inside: while this check runs, or the server, try http://%s/ from another network", strings.Join(doubtful, " or "), s.host())
	case len(allowed) == 1:
		s.say(Problem, subject, "the CA would not get its answer by %s, and the CAA record allows nothing else", allowed[0])
	default:
		s.say(Problem, subject, "the CA would get its answer neither by %s: see above", strings.Join(allowed, " nor by "))
	}
}

// challengeTypes returns the challenges that the server can answer, in alphabetical order.
func challengeTypes() []string { return []string{challenge.HTTP01, challenge.TLSALPN01} }
