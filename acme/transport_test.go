package acme

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	xacme "golang.org/x/crypto/acme"
)

// A script answers requests to its URLs in turn.
type script map[string][]*http.Response

func (s script) RoundTrip(req *http.Request) (*http.Response, error) {
	url := req.URL.String()
	if len(s[url]) == 0 {
		return nil, fmt.Errorf("unexpected request to %s", url)
	}
	res := s[url][0]
	s[url] = s[url][1:]
	return res, nil
}

// reply returns an answer; header is pairs of name and value.
func reply(status int, body string, header ...string) *http.Response {
	res := &http.Response{StatusCode: status, Status: fmt.Sprint(status, " ", http.StatusText(status)),
		Header: make(http.Header), Body: io.NopCloser(strings.NewReader(body))}
	for i := 0; i < len(header); i += 2 {
		res.Header.Set(header[i], header[i+1])
	}
	return res
}

// What is told of an attempt is everything that went wrong in it, in the CA's words, on one line.
func TestNewFailure(t *testing.T) {
	t.Parallel()
	const urn = "urn:ietf:params:acme:error:"
	now := time.Date(2026, 11, 22, 9, 0, 0, 0, time.UTC)
	timeout := authorizationProblems(http01, &xacme.AuthorizationError{Errors: []error{
		&xacme.Error{StatusCode: 400, ProblemType: urn + "connection", Detail: "203.0.113.5: Timeout\n during connect"}}})
	rejected := &xacme.Error{StatusCode: 400, ProblemType: urn + "rejectedIdentifier", Detail: "no",
		Subproblems: []xacme.Subproblem{{Type: urn + "malformed", Detail: "bad label", Identifier: &xacme.AuthzID{Type: "dns", Value: "x_y.example"}}}}
	for _, test := range []struct {
		problems []*problem
		step     string
		err      error
		want     failure
	}{
		{timeout, "authorization", errors.New("no challenge succeeded"), failure{step: http01, kind: "connection",
			reason: "http-01: connection: 203.0.113.5: Timeout during connect"}},
		{timeout, "newOrder", rejected, failure{step: "newOrder", kind: "rejectedIdentifier",
			reason: "http-01: connection: 203.0.113.5: Timeout during connect; newOrder: rejectedIdentifier: no; x_y.example: bad label"}},
		{nil, "order", &xacme.OrderError{Status: "invalid", Problem: &xacme.Error{ProblemType: urn + "caa", Detail: "forbidden"}},
			failure{step: "order", kind: "caa", reason: "order: caa: forbidden"}},
		{nil, "directory", &xacme.Error{StatusCode: 502, Detail: "<html>"}, failure{step: "directory", reason: "directory: HTTP 502 Bad Gateway"}},
		{nil, "newOrder", &xacme.Error{StatusCode: 429, ProblemType: urn + "rateLimited", Detail: "slow", Header: http.Header{"Retry-After": {"60"}}},
			failure{step: "newOrder", kind: "rateLimited", reason: "newOrder: rateLimited: slow", retryAfter: now.Add(time.Minute)}},
		{nil, "newOrder", &xacme.Error{StatusCode: 403, ProblemType: urn + "unauthorized", Detail: "no", Header: http.Header{"Retry-After": {"60"}}},
			failure{step: "newOrder", kind: "unauthorized", reason: "newOrder: unauthorized: no"}},
		{nil, "order", &storeError{errors.New("disk full")}, failure{step: "order", reason: "stopped before anything was issued, since it could not be stored: disk full"}},
	} {
		got := newFailure(test.problems, test.step, test.err, now)
		got.hint = "" // see TestHints
		if *got != test.want {
			t.Errorf("newFailure(%v, %v) =\n%+v, want\n%+v", test.step, test.err, *got, test.want)
		}
	}
}

// do sends a request through a transport over s.
func do(t *testing.T, ctx context.Context, s script, url string) (*http.Response, string) {
	t.Helper()
	req, err := http.NewRequestWithContext(ctx, "POST", url, nil)
	if err != nil {
		t.Fatal(err)
	}
	res, err := (&transport{base: &bounded{s, requestTimeout}, now: time.Now}).RoundTrip(req)
	if err != nil {
		return nil, err.Error()
	}
	body, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	return res, string(body)
}

// What the CA says about when to poll is obeyed; where it says nothing, the waits grow to a second.
func TestTransportPolls(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const pending, processing, valid = `{"status":"pending"}`, `{"status":"processing"}`, `{"status":"valid"}`
		ctx := polling(t.Context())
		for i, test := range []struct {
			ctx    context.Context
			status int
			body   string
			after  string // Retry-After
			want   time.Duration
		}{
			{t.Context(), 200, pending, "9", 0}, // not a poll
			{ctx, 200, pending, "", 20 * time.Millisecond},
			{ctx, 200, pending, "", 40 * time.Millisecond},
			{ctx, 200, pending, "7", 7 * time.Second},
			{ctx, 200, processing, "", 160 * time.Millisecond},
			{ctx, 200, processing, "", 320 * time.Millisecond},
			{ctx, 200, processing, "", 640 * time.Millisecond},
			{ctx, 200, processing, "", time.Second},
			{ctx, 200, processing, "", time.Second},
			{ctx, 200, processing, "0", firstPoll},
			{ctx, 200, valid, "5", 0},
			{ctx, 503, `{"status":503}`, "5", 0},
			{ctx, 200, "-----BEGIN CERTIFICATE-----", "", 0},
		} {
			answer := reply(test.status, test.body)
			if test.after != "" {
				answer.Header.Set("Retry-After", test.after)
			}
			start := time.Now()
			res, body := do(t, test.ctx, script{"https://ca/order": {answer}}, "https://ca/order")
			if got := time.Since(start); got != test.want {
				t.Errorf("request %d: waited %v, want %v", i, got, test.want)
			}
			if asksAgain := res.Header.Get("Retry-After") == "Thu, 01 Jan 1970 00:00:00 GMT"; asksAgain != (test.want > 0) {
				t.Errorf("request %d: Retry-After %q", i, res.Header.Get("Retry-After"))
			}
			if body != test.body {
				t.Errorf("request %d: body %q, want %q", i, body, test.body)
			}
		}
	})
}

func TestTransportLimitsAnswers(t *testing.T) {
	t.Parallel()
	for size, ok := range map[int]bool{maxAnswer: true, maxAnswer + 1: false} {
		res, body := do(t, t.Context(), script{"https://ca/dir": {reply(200, strings.Repeat("x", size))}}, "https://ca/dir")
		if (res != nil) != ok || ok && len(body) != size {
			t.Errorf("answer of %d bytes passed: %v, want %v", size, res != nil, ok)
		}
	}
}

// A CA that takes a request and says nothing is given up.
func TestTransportTimeout(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		start := time.Now()
		req, _ := http.NewRequestWithContext(t.Context(), "POST", "https://ca/order", nil)
		_, err := (&transport{base: &bounded{silent{}, requestTimeout}, now: time.Now}).RoundTrip(req)
		if err == nil || err.Error() != "the CA did not answer within 30s" || time.Since(start) != requestTimeout {
			t.Errorf("RoundTrip = %v after %v, want a timeout after %v", err, time.Since(start), requestTimeout)
		}
	})
}

// silent answers no request.
type silent struct{}

func (silent) RoundTrip(req *http.Request) (*http.Response, error) {
	<-req.Context().Done()
	return nil, req.Context().Err()
}

func TestHints(t *testing.T) {
	t.Parallel()
	for _, test := range []struct{ step, kind, detail, want string }{
		{"http-01", "connection", "203.0.113.5: Fetching http://x/: Connection refused", "connection refused on port 80: is it published?"},
		{"http-01", "connection", "203.0.113.5: Timeout during connect (likely firewall problem)", "port 80 cannot be reached"},
		{"http-01", "unauthorized", "Invalid response from http://x/: 404", "another server answers on port 80"},
		{"tls-alpn-01", "connection", "Connection refused", "connection refused on port 443: is it published?"},
		{"tls-alpn-01", "unauthorized", "Failed to connect to 127.0.0.1:5001 for the tls-alpn-01 challenge", "port 443 cannot be reached"},
		{"tls-alpn-01", "unauthorized", "Cannot negotiate ALPN protocol \"acme-tls/1\"", "another server ends TLS"},
		{"http-01", "dns", "NXDOMAIN looking up A", "check its A and AAAA records"},
		{"finalize", "caa", "forbidden", "CAA record"},
		{"newOrder", "rateLimited", "too many failed authorizations (5)", "only waiting helps"},
		{"newOrder", "rateLimited", "Your account is temporarily prevented from requesting certificates for x and possibly others. Please visit: https://portal.example/unpause", "follow the link"},
		{"newOrder", "rejectedIdentifier", "forbidden by policy", "does not certify this name"},
		{"newOrder", "invalidProfile", "unknown", "lists the profiles"},
		{"newAccount", "externalAccountRequired", "no", "external account binding"},
		{"newOrder", "userActionRequired", "terms", "agreed to again"},
		{"finalize", "serverInternal", "oops", "nothing to do here"},
		{"finalize", "badCSR", "CSR is bad", ""},
	} {
		p := &problem{step: test.step, kind: test.kind, detail: test.detail}
		if got := p.hint(); !strings.Contains(got, test.want) || (got == "") != (test.want == "") {
			t.Errorf("hint for %q = %q, want it to contain %q", p, got, test.want)
		}
	}
	for want, err := range map[string]error{
		"does it need a root of its own": fmt.Errorf("get: %w", &tls.CertificateVerificationError{Err: x509.UnknownAuthorityError{}}),
		"check its DNS":                  &net.OpError{Op: "dial", Err: &net.DNSError{Err: "no such host", Name: "ca"}},
		"check outgoing connections":     &net.OpError{Op: "dial", Err: errors.New("refused")},
		"owner, mode and free space":     &storeError{errors.New("no space left on device")},
		"NTP":                            &clockError{time.Hour},
	} {
		got := newFailure(nil, "directory", err, time.Now())
		if !strings.Contains(got.hint, want) || !strings.HasSuffix(got.reason, err.Error()) {
			t.Errorf("newFailure(%v) = %q, hint %q, want the hint to contain %q", err, got.reason, got.hint, want)
		}
	}
}

func TestRetryAfter(t *testing.T) {
	t.Parallel()
	now := time.Date(2026, 11, 22, 9, 0, 0, 0, time.UTC)
	for value, want := range map[string]time.Time{
		"0":                             now,
		"120":                           now.Add(2 * time.Minute),
		"Sun, 22 Nov 2026 10:00:00 GMT": now.Add(time.Hour),
		"":                              {},
		"-1":                            {},
		"soon":                          {},
		"99999999999999999999":          {},
	} {
		got, ok := retryAfter(http.Header{"Retry-After": {value}}, now)
		if !got.Equal(want) || ok == want.IsZero() {
			t.Errorf("retryAfter(%q) = %v, %v, want %v", value, got, ok, want)
		}
	}
}

func TestRetryBackoff(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		n, status  int
		retryAfter string
		want       time.Duration
	}{
		{1, 429, "", 0},
		{1, 429, "5", 0},
		{1, 503, "5", 0},
		{1, 503, "", 100 * time.Millisecond},
		{3, 500, "", 300 * time.Millisecond},
		{4, 500, "", 0},
		{20, 400, "", time.Millisecond},
		{21, 400, "", 0},
	} {
		res := reply(test.status, "")
		if test.retryAfter != "" {
			res.Header.Set("Retry-After", test.retryAfter)
		}
		if got := retryBackoff(test.n, nil, res); got != test.want {
			t.Errorf("retryBackoff(%d, status %d, Retry-After %q) = %v, want %v", test.n, test.status, test.retryAfter, got, test.want)
		}
	}
}
