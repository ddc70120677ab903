package acme

import (
	"errors"
	"net/http"
	"slices"
	"strings"
	"time"

	xacme "golang.org/x/crypto/acme"

	"plusminus/acme/internal/cahttp"
)

// A failure is the error of an attempt that gave no certificate.
type failure struct {
	step       string    // what failed last: a resource of RFC 8555 section 7.1, a challenge type, "clock" or "store"
	kind       string    // the CA's error type without its prefix; empty if the CA did not refuse
	reason     string    // one line, in the CA's own words where it gave any
	hint       string    // what to check; may be empty
	retryAfter time.Time // the CA's Retry-After; zero if it sent none
	validFrom  time.Time // when the certificate that came becomes valid; zero if there is none to wait for

	validations int  // how many validations failed
	free        bool // nothing happened that a CA counts
	deactivated bool // the CA has deactivated the account
}

func (f *failure) Error() string { return f.reason }

func (f *failure) lastError(now time.Time) *LastError {
	return &LastError{When: now, Step: f.step, Type: f.kind, Reason: f.reason, Hint: f.hint}
}

// maxProxyWait bounds a Retry-After that came without a problem document, so probably from a proxy.
const maxProxyWait = time.Hour

// newFailure explains an attempt that ended with err in step, after the given problems.
func newFailure(problems []*cahttp.Problem, step string, err error, now time.Time) *failure {
	f := &failure{step: step}
	if step != "authorization" || len(problems) == 0 {
		problems = append(problems, cahttp.NewProblem(step, err))
	}
	if errors.As(err, new(*cahttp.StoreError)) || errors.As(err, new(*cahttp.ClockError)) || errors.As(err, new(*cahttp.ProfileError)) {
		problems = []*cahttp.Problem{{Detail: cahttp.OneLine(err.Error())}} // the error names the step itself
	}
	last := problems[len(problems)-1]
	if last.Step != "" {
		f.step = last.Step
	}
	f.kind = last.Kind
	var reasons, hints []string
	for _, p := range problems {
		reasons = append(reasons, p.String())
		if h := p.Hint(); h != "" && !slices.Contains(hints, h) {
			hints = append(hints, h)
		}
	}
	f.reason, f.hint = strings.Join(reasons, "; "), strings.Join(hints, "; ")
	if f.hint == "" {
		f.hint = cahttp.Hint(err)
	}
	var refused *xacme.Error
	if errors.As(err, &refused) && (refused.StatusCode == http.StatusTooManyRequests || refused.StatusCode == http.StatusServiceUnavailable) {
		at, ok := cahttp.RetryAfter(refused.Header, now)
		if refused.ProblemType == "" {
			at = earliest(at, now.Add(maxProxyWait))
		}
		if ok && at.After(now) { // for "now", the plan's own wait is better
			f.retryAfter = at
		}
	}
	return f
}
