package cahttp

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
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

// roundTripper is a func that is an [http.RoundTripper].
type roundTripper func(*http.Request) (*http.Response, error)

func (f roundTripper) RoundTrip(req *http.Request) (*http.Response, error) { return f(req) }

func TestBoundedSize(t *testing.T) {
	t.Parallel()
	for size, ok := range map[int]bool{MaxAnswer: true, MaxAnswer + 1: false} {
		b := &Bounded{Timeout: RequestTimeout, Base: roundTripper(func(*http.Request) (*http.Response, error) {
			return &http.Response{Body: io.NopCloser(strings.NewReader(strings.Repeat("x", size)))}, nil
		})}
		req, err := http.NewRequestWithContext(t.Context(), "GET", "https://ca/dir", nil)
		if err != nil {
			t.Fatal(err)
		}
		res, err := b.RoundTrip(req)
		if (err == nil) != ok {
			t.Errorf("RoundTrip with an answer of %d bytes = %v, want success %v", size, err, ok)
		}
		if err != nil {
			continue
		}
		if body, err := io.ReadAll(res.Body); err != nil || len(body) != size {
			t.Errorf("body has %d bytes, %v, want %d", len(body), err, size)
		}
	}
}

// A CA that takes a request and does not answer is given up.
func TestBoundedTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := &Bounded{Timeout: RequestTimeout, Base: roundTripper(func(req *http.Request) (*http.Response, error) {
			<-req.Context().Done()
			return nil, req.Context().Err()
		})}
		start := time.Now()
		req, err := http.NewRequestWithContext(t.Context(), "POST", "https://ca/order", nil)
		if err != nil {
			t.Fatal(err)
		}
		_, err = b.RoundTrip(req)
		if err == nil || err.Error() != "the CA did not answer within 30s" || time.Since(start) != RequestTimeout {
			t.Errorf("RoundTrip = %v after %v, want a timeout after %v", err, time.Since(start), RequestTimeout)
		}
	})
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
		{"newOrder", "userActionRequired", "terms", "agree to new terms of service"},
		{"finalize", "serverInternal", "oops", "nothing to do here"},
		{"finalize", "badCSR", "CSR is bad", ""},

		// The words of Let's Encrypt's CA.
		{"tls-alpn-01", "dns", "DNS problem: SERVFAIL looking up CAA for example.com - the domain's nameservers may be malfunctioning", "must answer it, be it with none"},
		{"finalize", "caa", "Error finalizing order :: While processing CAA for example.com: DNS problem: query timed out looking up CAA for com", "must answer it, be it with none"},
		{"finalize", "caa", "Error finalizing order :: CAA record for example.com prevents issuance", "CAA record in the DNS forbids"},
		{"http-01", "dns", "DNS problem: looking up A for example.com: DNSSEC: DNSKEY Missing: validation failure <example.com. A IN>", "DNSSEC of the domain is broken"},
		{"http-01", "dns", "DNS problem: SERVFAIL looking up A for example.com - the domain's nameservers may be malfunctioning; no valid AAAA records found for example.com", "name servers do not answer"},
		{"http-01", "dns", "DNS problem: query timed out looking up AAAA for example.com", "name servers do not answer"},
		{"http-01", "dns", "DNS problem: NXDOMAIN looking up A for example.com - check that a DNS record exists for this domain", "A and AAAA records"},
		{"http-01", "connection", "During secondary validation: 203.0.113.5: Fetching http://example.com/.well-known/acme-challenge/x: Timeout during connect (likely firewall problem)", "other vantage points"},
		{"http-01", "dns", "During secondary validation: DNS problem: NXDOMAIN looking up A for example.com", "name servers have old records"},
		{"http-01", "connection", "203.0.113.5: Fetching https://example.com/.well-known/acme-challenge/x: Connection refused", "redirects to https"},
		{"http-01", "unauthorized", "203.0.113.5: Invalid response from https://example.com/.well-known/acme-challenge/x: 404", "redirects to https"},
		{"http-01", "connection", "Get \"https://example.com/.well-known/acme-challenge/x\": dial tcp 203.0.113.5:443: connect: connection refused", "redirects to https"},
		{"http-01", "connection", "Fetching https://example.com/.well-known/acme-challenge/x: Redirect loop detected", "redirects in a circle"},
		{"http-01", "connection", "Fetching http://example.com/.well-known/acme-challenge/x: Too many redirects", "redirects in a circle"},
		{"http-01", "connection", "203.0.113.5: Fetching http://example.com/.well-known/acme-challenge/x: Timeout after connect (your server may be slow or overloaded)", "does not answer"},
		{"http-01", "connection", "203.0.113.5: Fetching http://example.com/.well-known/acme-challenge/x: Error getting validation data", "port 80 cannot be reached"},
		{"tls-alpn-01", "connection", "203.0.113.5: Server only speaks HTTP, not TLS", "speaks http"},
		{"tls-alpn-01", "connection", "203.0.113.5: Timeout during connect (likely firewall problem)", "port 443 cannot be reached"},
		{"tls-alpn-01", "tls", "203.0.113.5: remote error: tls: no application protocol", "another server ends TLS"},
		{"newAccount", "externalAccountRequired", "The request must include a value for the \"externalAccountBinding\" field", "-acme-eab-kid and -acme-eab-key-file"},
		{"newAccount", "malformed", "External account binding required", "-acme-eab-kid and -acme-eab-key-file"},
		{"newAccount", "malformed", "must have at least one contact", "-acme-email"},
		{"newAccount", "invalidContact", "\"x\" is not a valid e-mail address", "-acme-email"},
		{"directory", "", "HTTP 404 Not Found", "has the CA moved or closed"},
		{"directory", "", "HTTP 410 Gone", "has the CA moved or closed"},
		{"directory", "", "HTTP 502 Bad Gateway", "nothing to do here"},
	} {
		p := &Problem{Step: test.step, Kind: test.kind, Detail: test.detail}
		if got := p.Hint(); !strings.Contains(got, test.want) || (got == "") != (test.want == "") {
			t.Errorf("hint for %q = %q, want it to contain %q", p, got, test.want)
		}
	}
	for want, err := range map[string]error{
		"does it need a root of its own": fmt.Errorf("get: %w", &tls.CertificateVerificationError{Err: x509.UnknownAuthorityError{}}),
		"check its DNS":                  &net.OpError{Op: "dial", Err: &net.DNSError{Err: "no such host", Name: "ca"}},
		"check outgoing connections":     &net.OpError{Op: "dial", Err: errors.New("refused")},
		"owner, mode and free space":     &StoreError{Err: errors.New("no space left on device")},
		"NTP":                            &ClockError{Skew: time.Hour},
	} {
		if got := Hint(err); !strings.Contains(got, want) {
			t.Errorf("Hint(%v) = %q, want it to contain %q", err, got, want)
		}
	}
}

// The directory is a page, and the CA wants a person to visit one.
func TestProblemOf(t *testing.T) {
	t.Parallel()
	var v any
	page := NewProblem("directory", json.Unmarshal([]byte("<html>closed</html>"), &v))
	if page.String() != "directory: the answer is not JSON" || !strings.Contains(page.Hint(), "a login page answer") {
		t.Errorf("a page is %q, hint %q", page, page.Hint())
	}
	const terms, instance = "https://ca.example/terms/2", "https://ca.example/agree?token=x"
	header := http.Header{"Link": {`<https://ca.example/dir>;rel="index"`, `<https://ca.example/other>; rel="up", <` + terms + `>; rel="terms-of-service"`}}
	for body, want := range map[string]string{
		`{"type":"urn:ietf:params:acme:error:userActionRequired","detail":"Terms of service have changed","instance":"` + instance + `"}`: instance,
		`{"type":"urn:ietf:params:acme:error:userActionRequired","detail":"Terms of service have changed"}`:                               terms,
	} {
		p := NewProblem("newOrder", ParseProblem(403, header, []byte(body)))
		if hint := p.Hint(); p.Visit != want || !strings.HasSuffix(hint, "new terms of service: "+want) {
			t.Errorf("%s: to visit %q, hint %q, want %q", body, p.Visit, hint, want)
		}
	}
	if p := NewProblem("newOrder", ParseProblem(403, header, []byte(`{"type":"urn:ietf:params:acme:error:unauthorized"}`))); p.Visit != "" {
		t.Errorf("to visit %q without need", p.Visit)
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
		got, ok := RetryAfter(http.Header{"Retry-After": {value}}, now)
		if !got.Equal(want) || ok == want.IsZero() {
			t.Errorf("RetryAfter(%q) = %v, %v, want %v", value, got, ok, want)
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
		res := &http.Response{StatusCode: test.status, Header: make(http.Header)}
		if test.retryAfter != "" {
			res.Header.Set("Retry-After", test.retryAfter)
		}
		if got := RetryBackoff(test.n, nil, res); got != test.want {
			t.Errorf("RetryBackoff(%d, status %d, Retry-After %q) = %v, want %v", test.n, test.status, test.retryAfter, got, test.want)
		}
	}
}
