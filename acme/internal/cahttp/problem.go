package cahttp

import (
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"strings"
	"time"

	xacme "golang.org/x/crypto/acme"

	"plusminus/acme/internal/challenge"
)

// MaxSkew is how far this machine's clock may be from the CA's for an order to make sense. Beyond it, a new
// certificate may be not valid yet, or expired, by this machine's clock, and the next order would follow.
const MaxSkew = 10 * time.Minute

// SkewLimit is [MaxSkew] for certificates with the given life, or a quarter of the life if that is less. It is MaxSkew if
// life is 0, which means unknown. With more, a certificate would be due for renewal when it comes, or soon after.
func SkewLimit(life time.Duration) time.Duration {
	if life <= 0 {
		return MaxSkew
	}
	return min(MaxSkew, life/4)
}

// FairSkew is how far a clock that is synchronised may be off.
const FairSkew = 30 * time.Second

// A ClockError says that nothing was ordered, since this machine's clock is too far from the CA's.
type ClockError struct {
	Skew time.Duration // the CA's clock minus ours
}

func (e *ClockError) Error() string { return "nothing was ordered: " + Off(e.Skew) }

// Off says by how much this machine's clock is off. skew is the CA's clock minus ours.
func Off(skew time.Duration) string {
	where := "behind"
	if skew < 0 {
		where = "ahead of"
	}
	unit := 10 * time.Second
	if skew.Abs() < time.Minute {
		unit = time.Second
	}
	return fmt.Sprintf("this machine's clock is %v %s the CA's", skew.Abs().Round(unit), where)
}

// A CertificateError says that the CA issued a certificate that is of no use now, or not for long.
type CertificateError struct {
	Flaw string        // what is wrong with it
	Skew time.Duration // the CA's clock minus ours
}

func (e *CertificateError) Error() string {
	if e.Skew.Abs() <= FairSkew {
		return e.Flaw
	}
	return e.Flaw + "; " + Off(e.Skew)
}

// A StoreError says that a file could not be read or written.
type StoreError struct{ Err error }

func (e *StoreError) Error() string {
	return "stopped before anything was issued, since it could not be stored: " + e.Err.Error()
}
func (e *StoreError) Unwrap() error { return e.Err }

// A Problem is something that went wrong in an attempt.
type Problem struct {
	Step   string   // a resource of RFC 8555 section 7.1, or a challenge type
	Kind   string   // the error type (RFC 8555 section 6.7) without its prefix; empty if it is not the CA's
	Detail string   // in the CA's words
	Parts  []string // the CA's words about single identifiers (RFC 8555 section 6.7.1)
}

// String returns the problem in one line.
func (p *Problem) String() string {
	var parts []string
	for _, s := range []string{p.Step, p.Kind, p.Detail} {
		if s != "" {
			parts = append(parts, s)
		}
	}
	return strings.Join(append([]string{strings.Join(parts, ": ")}, p.Parts...), "; ")
}

// KindOf returns an error type without the prefix that all ACME types share.
func KindOf(problemType string) string {
	return strings.TrimPrefix(problemType, "urn:ietf:params:acme:error:")
}

// Deactivated reports whether err, the CA's answer to newAccount, says that the account was deactivated. ACME has no error
// type for that. These are the words of Boulder and Pebble.
func Deactivated(err error) bool {
	var refused *xacme.Error
	return errors.As(err, &refused) && KindOf(refused.ProblemType) == "unauthorized" && strings.Contains(refused.Detail, "deactivated")
}

// NewProblem returns err, which happened in step, as a Problem.
func NewProblem(step string, err error) *Problem {
	var order *xacme.OrderError
	if errors.As(err, &order) && order.Problem != nil {
		err = order.Problem
	}
	var e *xacme.Error
	if !errors.As(err, &e) {
		return &Problem{Step: step, Detail: OneLine(err.Error())}
	}
	if e.ProblemType == "" { // not a problem document: a page of a proxy
		return &Problem{Step: step, Detail: fmt.Sprintf("HTTP %d %s", e.StatusCode, http.StatusText(e.StatusCode))}
	}
	p := &Problem{Step: step, Kind: KindOf(e.ProblemType), Detail: OneLine(e.Detail)}
	for _, sub := range e.Subproblems {
		name := ""
		if sub.Identifier != nil {
			name = sub.Identifier.Value + ": "
		}
		p.Parts = append(p.Parts, name+OneLine(sub.Detail))
	}
	return p
}

// OneLine returns text from a peer as one line of valid UTF-8, so that it cannot forge a log line.
func OneLine(s string) string {
	return strings.Join(strings.Fields(strings.ToValidUTF8(s, "\uFFFD")), " ")
}

// ParseProblem returns the error in a problem document (RFC 7807). Without one, ProblemType is empty. A status of 0 is
// that of the document.
func ParseProblem(status int, header http.Header, body []byte) *xacme.Error {
	var doc struct {
		Type, Detail string
		Status       any
		Subproblems  []xacme.Subproblem
	}
	json.Unmarshal(body, &doc) // what is not JSON has no fields
	if n, ok := doc.Status.(float64); ok && status == 0 {
		status = int(n)
	}
	return &xacme.Error{StatusCode: status, ProblemType: doc.Type, Detail: doc.Detail, Header: header, Subproblems: doc.Subproblems}
}

// Hint says what to check, or returns "" if the problem's own words are all there is to say.
func (p *Problem) Hint() string {
	unreachable := p.Kind == "connection" || strings.Contains(p.Detail, "Failed to connect")
	switch {
	case p.Kind == "rateLimited" && strings.Contains(p.Detail, "temporarily prevented"):
		return "the CA has paused this account for this name: follow the link in its message"
	case p.Kind == "rateLimited":
		return "a limit of the CA: only waiting helps; use its staging directory for experiments"
	case p.Kind == "dns":
		return "the CA finds no address for the name: check its A and AAAA records"
	case p.Kind == "caa":
		return "a CAA record in the DNS forbids this CA to certify the name"
	case p.Kind == "rejectedIdentifier":
		return "the CA does not certify this name"
	case p.Kind == "invalidProfile":
		return "the CA's directory lists the profiles that it has"
	case p.Kind == "externalAccountRequired":
		return "this CA wants an external account binding: a key id and key from its website"
	case p.Kind == "userActionRequired":
		return "the CA wants its terms of service agreed to again"
	case p.Step == challenge.HTTP01 && strings.Contains(p.Detail, "refused"):
		return "connection refused on port 80: is it published? is an AAAA record stale?"
	case p.Step == challenge.HTTP01 && unreachable:
		return "port 80 cannot be reached from outside: check firewall, port forwarding, and the AAAA record if there is one"
	case p.Step == challenge.HTTP01 && p.Kind == "unauthorized":
		return "another server answers on port 80 for this name: check where its A and AAAA records point"
	case p.Step == challenge.TLSALPN01 && strings.Contains(p.Detail, "refused"):
		return "connection refused on port 443: is it published? is an AAAA record stale?"
	case p.Step == challenge.TLSALPN01 && unreachable:
		return "port 443 cannot be reached from outside, or another server answers there"
	case p.Step == challenge.TLSALPN01 && p.Kind == "unauthorized":
		return "another server ends TLS on port 443 for this name: a proxy, or an old address in the DNS"
	case p.Kind == "serverInternal" || strings.HasPrefix(p.Detail, "HTTP 5"):
		return "the CA is in trouble: nothing to do here"
	}
	return ""
}

const clockHint = "set the clock, and keep it synchronised (NTP)"

// Hint says what to check when this machine could not ask the CA. It returns "" for other errors.
func Hint(err error) string {
	var unknown x509.UnknownAuthorityError
	var invalid x509.CertificateInvalidError
	var dnsErr *net.DNSError
	var opErr *net.OpError
	var useless *CertificateError
	switch {
	case errors.As(err, &useless) && useless.Skew.Abs() > FairSkew:
		return clockHint
	case errors.As(err, &useless):
		return "this machine's clock agrees with the CA's, so it is for the CA's operator to look at: the times that it puts into its certificates"
	case errors.As(err, new(*StoreError)):
		return "check the data folder's owner, mode and free space"
	case errors.As(err, new(*ClockError)):
		return clockHint
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
