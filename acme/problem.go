package acme

import (
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/http"
	"slices"
	"strings"
	"time"

	xacme "golang.org/x/crypto/acme"
)

// A failure is why an attempt gave no certificate.
type failure struct {
	step       string    // what failed last: a resource of RFC 8555 section 7.1, a challenge type, "clock" or "store"
	kind       string    // the CA's error type without its prefix; empty if it was not the CA that refused
	reason     string    // one line; the CA's own words where it gave any
	hint       string    // what to look at; may be empty
	retryAfter time.Time // when the CA said to come back; zero if it did not

	validations int  // how many validations failed
	free        bool // nothing happened that a CA counts
}

func (f *failure) Error() string { return f.reason }

func (f *failure) lastError(now time.Time) *LastError {
	return &LastError{When: now, Step: f.step, Type: f.kind, Reason: f.reason, Hint: f.hint}
}

// A problem is something that went wrong in an attempt.
type problem struct {
	step   string   // what was being done
	kind   string   // the error type (RFC 8555 section 6.7) without its prefix; empty if it is not the CA's
	detail string   // in the CA's words
	parts  []string // the same, for one identifier each (RFC 8555 section 6.7.1)
}

func (p *problem) String() string {
	var parts []string
	for _, s := range []string{p.step, p.kind, p.detail} {
		if s != "" {
			parts = append(parts, s)
		}
	}
	return strings.Join(append([]string{strings.Join(parts, ": ")}, p.parts...), "; ")
}

// kindOf returns the error type without the prefix that all ACME types share.
func kindOf(problemType string) string {
	return strings.TrimPrefix(problemType, "urn:ietf:params:acme:error:")
}

// newProblem returns what err says of step.
func newProblem(step string, err error) *problem {
	var order *xacme.OrderError
	if errors.As(err, &order) && order.Problem != nil {
		err = order.Problem
	}
	var e *xacme.Error
	if !errors.As(err, &e) {
		return &problem{step: step, detail: oneLine(err.Error())}
	}
	if e.ProblemType == "" { // a proxy's page, not the CA's word
		return &problem{step: step, detail: fmt.Sprintf("HTTP %d %s", e.StatusCode, http.StatusText(e.StatusCode))}
	}
	p := &problem{step: step, kind: kindOf(e.ProblemType), detail: oneLine(e.Detail)}
	for _, sub := range e.Subproblems {
		name := ""
		if sub.Identifier != nil {
			name = sub.Identifier.Value + ": "
		}
		p.parts = append(p.parts, name+oneLine(sub.Detail))
	}
	return p
}

// oneLine keeps a peer's words from looking like a second line of a log, and from being no text at all.
func oneLine(s string) string {
	return strings.Join(strings.Fields(strings.ToValidUTF8(s, "\uFFFD")), " ")
}

// authorizationProblems returns why the validation by a challenge of type typ failed.
func authorizationProblems(typ string, err *xacme.AuthorizationError) []*problem {
	if len(err.Errors) == 0 {
		return []*problem{{step: typ, detail: "the validation failed, and the CA does not say why"}}
	}
	var all []*problem
	for _, e := range err.Errors {
		all = append(all, newProblem(typ, e))
	}
	return all
}

// hint returns what to look at, or "" if the problem's own words have to do.
func (p *problem) hint() string {
	unreachable := p.kind == "connection" || strings.Contains(p.detail, "Failed to connect")
	switch {
	case p.kind == "rateLimited" && strings.Contains(p.detail, "temporarily prevented"):
		return "the CA has paused this account for this name: follow the link in its message"
	case p.kind == "rateLimited":
		return "a limit of the CA: only waiting helps, and its staging directory is there for tries"
	case p.kind == "dns":
		return "the CA finds no address for the name: check its A and AAAA records"
	case p.kind == "caa":
		return "a CAA record in the DNS forbids this CA to certify the name"
	case p.kind == "rejectedIdentifier":
		return "the CA does not certify this name"
	case p.kind == "invalidProfile":
		return "the CA's directory lists the profiles that it has"
	case p.kind == "externalAccountRequired":
		return "this CA wants an external account binding: a key id and key from its website"
	case p.kind == "userActionRequired":
		return "the CA wants its terms of service agreed to again"
	case p.step == "http-01" && strings.Contains(p.detail, "refused"):
		return "connection refused on port 80: is it published? is an AAAA record stale?"
	case p.step == "http-01" && unreachable:
		return "port 80 cannot be reached from outside: check firewall, port forwarding, and the AAAA record if there is one"
	case p.step == "http-01" && p.kind == "unauthorized":
		return "another server answers on port 80 for this name: check where its A and AAAA records point"
	case p.step == "tls-alpn-01" && strings.Contains(p.detail, "refused"):
		return "connection refused on port 443: is it published? is an AAAA record stale?"
	case p.step == "tls-alpn-01" && unreachable:
		return "port 443 cannot be reached from outside, or not this server answers there"
	case p.step == "tls-alpn-01" && p.kind == "unauthorized":
		return "another server ends TLS on port 443 for this name: a proxy, or an old address in the DNS"
	case p.kind == "serverInternal" || strings.HasPrefix(p.detail, "HTTP 5"):
		return "the CA is in trouble: nothing to do here"
	}
	return ""
}

// newFailure explains an attempt that ended with err in step, after the given problems.
func newFailure(problems []*problem, step string, err error, now time.Time) *failure {
	f := &failure{step: step}
	if step != "authorization" || len(problems) == 0 {
		problems = append(problems, newProblem(step, err))
	}
	if errors.As(err, new(*storeError)) || errors.As(err, new(*clockError)) {
		problems = []*problem{{detail: oneLine(err.Error())}} // says what was being done
	}
	last := problems[len(problems)-1]
	if last.step != "" {
		f.step = last.step
	}
	f.kind = last.kind
	var reasons, hints []string
	for _, p := range problems {
		reasons = append(reasons, p.String())
		if h := p.hint(); h != "" && !slices.Contains(hints, h) {
			hints = append(hints, h)
		}
	}
	f.reason, f.hint = strings.Join(reasons, "; "), strings.Join(hints, "; ")
	if f.hint == "" {
		f.hint = transportHint(err)
	}
	var refused *xacme.Error
	if errors.As(err, &refused) && (refused.StatusCode == http.StatusTooManyRequests || refused.StatusCode == http.StatusServiceUnavailable) {
		at, ok := retryAfter(refused.Header, now)
		if refused.ProblemType == "" {
			at = earliest(at, now.Add(maxProxyWait))
		}
		if ok && at.After(now) { // "now" says nothing that our own wait does not say better
			f.retryAfter = at
		}
	}
	return f
}

// maxProxyWait is how long a Retry-After counts that came without a problem document: from a proxy, say.
const maxProxyWait = time.Hour

// reasonOf returns e's reason, or "" if e is nil.
func reasonOf(e *LastError) string {
	if e == nil {
		return ""
	}
	return e.Reason
}

// transportHint returns what to look at when the CA could not even be asked, or "".
func transportHint(err error) string {
	var unknown x509.UnknownAuthorityError
	var invalid x509.CertificateInvalidError
	var dnsErr *net.DNSError
	var opErr *net.OpError
	switch {
	case errors.As(err, new(*storeError)):
		return "check the data folder's owner, mode and free space"
	case errors.As(err, new(*clockError)):
		return "set the clock, and have it kept right (NTP)"
	case errors.As(err, &unknown):
		return "the CA's own TLS certificate is not trusted here: does it need a root of its own, or is a proxy in between?"
	case errors.As(err, &invalid) && invalid.Reason == x509.Expired:
		return "the CA's own TLS certificate is not valid today: is this machine's clock right?"
	case errors.As(err, &dnsErr):
		return "this machine cannot resolve the CA's name: check its DNS"
	case errors.As(err, &opErr) && opErr.Op == "dial":
		return "this machine cannot reach the CA: check outgoing connections"
	}
	return ""
}
