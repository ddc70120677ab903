package acme

import (
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

const directoryBody = `{"newNonce":"https://ca/nonce","newAccount":"https://ca/account","newOrder":"https://ca/order"}`

func newTestTransport(t *testing.T, s script) (*transport, func(method, url string) (*http.Response, string)) {
	tr := &transport{ctx: t.Context(), base: s, now: time.Now, steps: map[string]string{"https://ca/dir": "directory"}}
	return tr, func(method, url string) (*http.Response, string) {
		t.Helper()
		req, err := http.NewRequestWithContext(t.Context(), method, url, nil)
		if err != nil {
			t.Fatal(err)
		}
		res, err := tr.RoundTrip(req)
		if err != nil {
			return nil, err.Error()
		}
		body, err := io.ReadAll(res.Body)
		if err != nil {
			t.Fatal(err)
		}
		return res, string(body)
	}
}

// The transport keeps problems, from refusals and from inside authorizations, and hands every body on.
func TestTransportCaptures(t *testing.T) {
	t.Parallel()
	const (
		authz = `{"status":"invalid","challenges":[
			{"type":"http-01","url":"https://ca/chal/1","status":"invalid","error":{"type":"urn:ietf:params:acme:error:connection","detail":"203.0.113.5: Timeout during connect","status":400}},
			{"type":"dns-01","url":"https://ca/chal/2","status":"pending"}]}`
		stale    = `{"type":"urn:ietf:params:acme:error:badNonce","detail":"stale","status":400}`
		rejected = `{"type":"urn:ietf:params:acme:error:rejectedIdentifier","detail":"no","status":400,"subproblems":[{"type":"urn:ietf:params:acme:error:malformed","detail":"bad label","identifier":{"type":"dns","value":"x_y.example"}}]}`
	)
	tr, do := newTestTransport(t, script{
		"https://ca/dir":     {reply(500, "<html>oops</html>"), reply(200, directoryBody)},
		"https://ca/order":   {reply(400, stale), reply(201, `{"status":"pending","authorizations":["https://ca/authz/1"],"finalize":"https://ca/fin/1"}`, "Location", "https://ca/order/1"), reply(400, rejected)},
		"https://ca/authz/1": {reply(200, authz), reply(200, authz), reply(200, authz)},
		"https://ca/fin/1":   {reply(403, `{"type":"urn:ietf:params:acme:error:unauthorized","detail":"late"}`)},
	})
	for _, test := range []struct{ method, url, want string }{
		{"GET", "https://ca/dir", "<html>oops</html>"},
		{"GET", "https://ca/dir", directoryBody},
		{"POST", "https://ca/order", stale},
		{"POST", "https://ca/order", `{"status":"pending","authorizations":["https://ca/authz/1"],"finalize":"https://ca/fin/1"}`},
		{"POST", "https://ca/authz/1", authz},
		{"POST", "https://ca/authz/1", authz},
		{"POST", "https://ca/order", rejected},
	} {
		if _, got := do(test.method, test.url); got != test.want {
			t.Errorf("%s %s = %q, want %q", test.method, test.url, got, test.want)
		}
	}
	problems, _ := tr.retire()
	f := newFailure(errors.New("no viable challenge type found"), problems, time.Time{})
	want := "http-01: connection: 203.0.113.5: Timeout during connect; newOrder: rejectedIdentifier: no; x_y.example: bad label"
	if f.reason != want {
		t.Errorf("reason = %q, want %q", f.reason, want)
	}

	// Retired: housekeeping passes and is not recorded, an order does not pass.
	do("POST", "https://ca/fin/1")
	if _, got := do("POST", "https://ca/authz/1"); got != authz {
		t.Errorf("housekeeping = %q, want %q", got, authz)
	}
	if _, got := do("POST", "https://ca/order"); got != errNoMoreOrders.Error() {
		t.Errorf("order of a retired attempt = %q, want %q", got, errNoMoreOrders)
	}
	if len(tr.problems) != len(problems) {
		t.Errorf("housekeeping was recorded: %v", tr.problems)
	}
}

// What the CA says about when to poll is obeyed; where it says nothing, the waits grow to a second.
func TestTransportPolls(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		pending := func(header ...string) *http.Response {
			return reply(200, `{"status":"pending","challenges":[{"type":"http-01","url":"https://ca/chal"}]}`, header...)
		}
		processing := func(header ...string) *http.Response {
			return reply(200, `{"status":"processing"}`, header...)
		}
		_, do := newTestTransport(t, script{
			"https://ca/dir":   {reply(200, directoryBody)},
			"https://ca/order": {reply(201, `{"status":"pending","authorizations":["https://ca/authz"]}`, "Location", "https://ca/order/1")},
			"https://ca/authz": {pending("Retry-After", "9"), pending(), pending(), pending("Retry-After", "7"), pending(), pending(), pending(), pending(),
				reply(200, `{"status":"valid"}`)},
			"https://ca/chal":    {reply(200, `{"type":"http-01","status":"pending"}`)},
			"https://ca/order/1": {processing("Retry-After", "3"), reply(200, `{"status":"valid"}`)},
		})
		for i, test := range []struct {
			url  string
			want time.Duration
		}{
			{"https://ca/dir", 0},
			{"https://ca/order", 0},
			{"https://ca/authz", 0}, // not a poll: nothing was asked to be validated
			{"https://ca/chal", 0},
			{"https://ca/authz", 50 * time.Millisecond},
			{"https://ca/authz", 100 * time.Millisecond},
			{"https://ca/authz", 7 * time.Second},
			{"https://ca/authz", 400 * time.Millisecond},
			{"https://ca/authz", 800 * time.Millisecond},
			{"https://ca/authz", time.Second},
			{"https://ca/authz", time.Second},
			{"https://ca/authz", 0}, // valid
			{"https://ca/order/1", 3 * time.Second},
			{"https://ca/order/1", 0},
		} {
			start := time.Now()
			res, _ := do("POST", test.url)
			if got := time.Since(start); got != test.want {
				t.Errorf("request %d, to %s: waited %v, want %v", i, test.url, got, test.want)
			}
			if asksAgain := res.Header.Get("Retry-After") == "Thu, 01 Jan 1970 00:00:00 GMT"; asksAgain != (test.want > 0) {
				t.Errorf("request %d, to %s: Retry-After %q", i, test.url, res.Header.Get("Retry-After"))
			}
		}
	})
}

func TestTransportLimitsAnswers(t *testing.T) {
	t.Parallel()
	for size, ok := range map[int]bool{maxAnswer: true, maxAnswer + 1: false} {
		tr, do := newTestTransport(t, script{"https://ca/dir": {reply(200, strings.Repeat("x", size))}})
		res, body := do("GET", "https://ca/dir")
		if (res != nil) != ok || ok && len(body) != size {
			t.Errorf("answer of %d bytes passed: %v, want %v", size, res != nil, ok)
		}
		if problems, _ := tr.retire(); (len(problems) == 0) != ok {
			t.Errorf("answer of %d bytes: problems %v", size, problems)
		}
	}
}

func TestHints(t *testing.T) {
	t.Parallel()
	const urn = "urn:ietf:params:acme:error:"
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
		p := &problem{step: test.step, Type: urn + test.kind, Detail: test.detail}
		if got := p.hint(); !strings.Contains(got, test.want) || (got == "") != (test.want == "") {
			t.Errorf("hint for %q = %q, want it to contain %q", p, got, test.want)
		}
	}
	for want, err := range map[string]error{
		"does it need a root of its own": fmt.Errorf("get: %w", &tls.CertificateVerificationError{Err: x509.UnknownAuthorityError{}}),
		"check its DNS":                  &net.OpError{Op: "dial", Err: &net.DNSError{Name: "ca"}},
		"check outgoing connections":     &net.OpError{Op: "dial", Err: errors.New("refused")},
		"this machine's clock is behind": errors.New("acme/autocert: certificate is not valid yet"),
		"this machine's clock is ahead":  errors.New("acme/autocert: expired certificate"),
	} {
		if got := newFailure(err, nil, time.Time{}); !strings.Contains(got.hint, want) || got.reason != err.Error() {
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
