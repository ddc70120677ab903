package acme

import (
	"crypto/x509"
	"errors"
	"net"
	"slices"
	"strings"
	"time"
)

// A failure is why an attempt gave no certificate.
type failure struct {
	reason     string    // one line; the CA's own words where it gave any
	hint       string    // what to look at; may be empty
	retryAfter time.Time // when the CA said to come back; zero if it did not
	free       bool      // no order was placed
}

func (f *failure) Error() string { return f.reason }

// A problem is a problem document of the CA (RFC 7807, as RFC 8555 section 6.7 uses it), or another
// reason why a step went wrong.
//
// It leaves out "status", which is a number here and a string in orders and authorizations: naming it
// would fail the parsing of just those answers that hold the reason for a failed validation.
type problem struct {
	step string // what was being done: "newOrder", "finalize"…, or the type of the challenge

	Type        string       `json:"type"`
	Detail      string       `json:"detail"`
	Subproblems []subproblem `json:"subproblems"`
}

// A subproblem is a part of a problem that concerns one identifier (RFC 8555 section 6.7.1).
type subproblem struct {
	Type       string `json:"type"`
	Detail     string `json:"detail"`
	Identifier struct {
		Value string `json:"value"`
	} `json:"identifier"`
}

// kind returns the type without the prefix that all ACME types share.
func (p *problem) kind() string {
	return strings.TrimPrefix(p.Type, "urn:ietf:params:acme:error:")
}

func (p *problem) String() string {
	parts := []string{p.step}
	if k := p.kind(); k != "" {
		parts = append(parts, k)
	}
	parts = append(parts, p.Detail)
	s := strings.Join(parts, ": ")
	for _, sub := range p.Subproblems {
		s += "; " + sub.Identifier.Value + ": " + sub.Detail
	}
	return s
}

// hint returns what to look at, or "" if the problem's own words have to do.
func (p *problem) hint() string {
	unreachable := p.kind() == "connection" || strings.Contains(p.Detail, "Failed to connect")
	switch {
	case p.kind() == "rateLimited" && strings.Contains(p.Detail, "temporarily prevented"):
		return "the CA has paused this account for this name: follow the link in its message"
	case p.kind() == "rateLimited":
		return "a limit of the CA: only waiting helps, and its staging directory is there for tries"
	case p.kind() == "dns":
		return "the CA finds no address for the name: check its A and AAAA records"
	case p.kind() == "caa":
		return "a CAA record in the DNS forbids this CA to certify the name"
	case p.kind() == "rejectedIdentifier":
		return "the CA does not certify this name"
	case p.kind() == "invalidProfile":
		return "the CA's directory lists the profiles that it has"
	case p.kind() == "externalAccountRequired":
		return "this CA wants an external account binding: a key id and key from its website"
	case p.kind() == "userActionRequired":
		return "the CA wants its terms of service agreed to again"
	case p.step == "http-01" && strings.Contains(p.Detail, "refused"):
		return "connection refused on port 80: is it published?"
	case p.step == "http-01" && unreachable:
		return "port 80 cannot be reached from outside: check firewall, port forwarding, and the AAAA record if there is one"
	case p.step == "http-01" && p.kind() == "unauthorized":
		return "another server answers on port 80 for this name: check where its A and AAAA records point"
	case p.step == "tls-alpn-01" && strings.Contains(p.Detail, "refused"):
		return "connection refused on port 443: is it published?"
	case p.step == "tls-alpn-01" && unreachable:
		return "port 443 cannot be reached from outside, or not this server answers there"
	case p.step == "tls-alpn-01" && p.kind() == "unauthorized":
		return "another server ends TLS on port 443 for this name: a proxy, or an old address in the DNS"
	case p.kind() == "serverInternal" || strings.HasPrefix(p.Detail, "HTTP 5"):
		return "the CA is in trouble: nothing to do here"
	}
	return ""
}

// newFailure explains err, which is what autocert made of the given problems. autocert drops most
// reasons and says "no viable challenge type found", so the problems are what counts.
func newFailure(err error, problems []*problem, retryAfter time.Time) *failure {
	f := &failure{retryAfter: retryAfter}
	if len(problems) == 0 {
		f.reason, f.hint = err.Error(), transportHint(err)
		return f
	}
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
	return f
}

// transportHint returns what to look at when the CA could not even be asked, or "".
func transportHint(err error) string {
	var unknown x509.UnknownAuthorityError
	var dnsErr *net.DNSError
	var opErr *net.OpError
	switch {
	case errors.As(err, &unknown):
		return "the CA's own TLS certificate is not trusted here: does it need a root of its own, or is a proxy in between?"
	case errors.As(err, &dnsErr):
		return "this machine cannot resolve the CA's name: check its DNS"
	case errors.As(err, &opErr) && opErr.Op == "dial":
		return "this machine cannot reach the CA: check outgoing connections"
	case strings.Contains(err.Error(), "not valid yet"):
		return "this machine's clock is behind the CA's"
	case strings.Contains(err.Error(), "expired certificate"):
		return "this machine's clock is ahead of the CA's"
	}
	return ""
}
