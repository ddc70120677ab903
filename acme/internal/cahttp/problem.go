package cahttp

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"time"

	xacme "golang.org/x/crypto/acme"
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

// A ProfileError says that nothing was ordered, since the CA does not offer the profile that the order needs.
type ProfileError struct{ Profile, Offered string }

func (e *ProfileError) Error() string {
	return fmt.Sprintf("nothing was ordered: an IP address needs the profile %q, and the CA has only: %s", e.Profile, e.Offered)
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
	Visit  string   // a page that the CA wants a person to visit; may be empty
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
		detail := OneLine(err.Error())
		if errors.As(err, new(*json.SyntaxError)) {
			detail = notJSON
		}
		return &Problem{Step: step, Detail: detail}
	}
	if e.ProblemType == "" { // not a problem document: a page of a proxy
		return &Problem{Step: step, Detail: fmt.Sprintf("HTTP %d %s", e.StatusCode, http.StatusText(e.StatusCode))}
	}
	p := &Problem{Step: step, Kind: KindOf(e.ProblemType), Detail: OneLine(e.Detail)}
	if p.Kind == "userActionRequired" {
		// "an "instance" field indicating a URL that the client should direct a human user to visit". "The response MUST
		// include a Link header field with link relation "terms-of-service" and the latest terms-of-service URL."
		// https://www.rfc-editor.org/rfc/rfc8555#section-7.3.3
		p.Visit = OneLine(cmp.Or(e.Instance, termsOf(e.Header)))
	}
	for _, sub := range e.Subproblems {
		name := ""
		if sub.Identifier != nil {
			name = sub.Identifier.Value + ": "
		}
		p.Parts = append(p.Parts, name+OneLine(sub.Detail))
	}
	return p
}

// termsOf returns the URL of the terms of service in a Link header, or "".
func termsOf(h http.Header) string {
	for _, line := range h.Values("Link") {
		for link := range strings.SplitSeq(line, ",") {
			target, params, _ := strings.Cut(link, ">")
			if strings.Contains(strings.ReplaceAll(params, `"`, ""), "rel=terms-of-service") {
				return strings.TrimPrefix(strings.TrimSpace(target), "<")
			}
		}
	}
	return ""
}

// OneLine returns text from a peer as one line of valid UTF-8, so that it cannot forge a log line.
func OneLine(s string) string {
	return strings.Join(strings.Fields(strings.ToValidUTF8(s, "\uFFFD")), " ")
}

// ParseProblem returns the error in a problem document (RFC 7807). Without one, ProblemType is empty. A status of 0 is
// that of the document.
func ParseProblem(status int, header http.Header, body []byte) *xacme.Error {
	var doc struct {
		Type, Detail, Instance string
		Status                 any
		Subproblems            []xacme.Subproblem
	}
	json.Unmarshal(body, &doc) // what is not JSON has no fields
	if n, ok := doc.Status.(float64); ok && status == 0 {
		status = int(n)
	}
	return &xacme.Error{StatusCode: status, ProblemType: doc.Type, Detail: doc.Detail, Instance: doc.Instance, Header: header, Subproblems: doc.Subproblems}
}
