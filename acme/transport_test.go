package acme

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	xacme "golang.org/x/crypto/acme"

	"plusminus/acme/internal/cahttp"
	"plusminus/acme/internal/challenge"
	"plusminus/acme/pebbletest"
)

// A script has the answers for each URL, in order.
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

// reply returns an answer. header has pairs of name and value.
func reply(status int, body string, header ...string) *http.Response {
	res := &http.Response{StatusCode: status, Status: fmt.Sprint(status, " ", http.StatusText(status)),
		Header: make(http.Header), Body: io.NopCloser(strings.NewReader(body))}
	for i := 0; i < len(header); i += 2 {
		res.Header.Set(header[i], header[i+1])
	}
	return res
}

// The reason of a failed attempt has all of its problems, in the CA's words, on one line.
func TestNewFailure(t *testing.T) {
	t.Parallel()
	const urn = "urn:ietf:params:acme:error:"
	now := time.Date(2026, 11, 22, 9, 0, 0, 0, time.UTC)
	timeout := []*cahttp.Problem{cahttp.NewProblem(challenge.HTTP01, cahttp.ParseProblem(0, nil,
		[]byte(`{"type":"`+urn+`connection","detail":"203.0.113.5: Timeout\n during connect","status":400}`)))}
	rejected := &xacme.Error{StatusCode: 400, ProblemType: urn + "rejectedIdentifier", Detail: "no",
		Subproblems: []xacme.Subproblem{{Type: urn + "malformed", Detail: "bad label", Identifier: &xacme.AuthzID{Type: "dns", Value: "x_y.example"}}}}
	for _, test := range []struct {
		problems []*cahttp.Problem
		step     string
		err      error
		want     failure
	}{
		{timeout, "authorization", errors.New("no challenge succeeded"), failure{step: challenge.HTTP01, kind: "connection",
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
		{nil, "order", &cahttp.StoreError{Err: errors.New("disk full")}, failure{step: "order", reason: "stopped before anything was issued, since it could not be stored: disk full"}},
	} {
		got := newFailure(test.problems, test.step, test.err, now)
		got.hint = "" // see TestHints
		if *got != test.want {
			t.Errorf("newFailure(%v, %v) =\n%+v, want\n%+v", test.step, test.err, *got, test.want)
		}
	}
}

// Polls, and finalize, obey the CA's Retry-After. Without one, the waits grow to a second.
func TestTransportPolls(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		const pending, processing, valid = `{"status":"pending"}`, `{"status":"processing"}`, `{"status":"valid"}`
		key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		answers := make(script)
		is := &issuer{base: &cahttp.Bounded{Base: answers, Timeout: cahttp.RequestTimeout}, now: time.Now, log: newLogger(&recorder{t: t})}
		ctx, cancel := context.WithTimeout(t.Context(), attemptTimeout)
		defer cancel()
		tr := newTransport(ctx, is, &attempt{plan: &plan{Order: &pendingOrder{URL: "https://ca/order", Final: true}}}, key)
		tr.begin(&object{Finalize: "https://ca/finalize"})
		for i, test := range []struct {
			of     string
			status int
			body   string
			after  string // Retry-After
			want   time.Duration
		}{
			{"finalize", 200, processing, "", 20 * time.Millisecond},
			{"finalize", 200, processing, "3", 3 * time.Second},
			{"order", 200, pending, "", 40 * time.Millisecond},
			{"order", 200, pending, "", 80 * time.Millisecond},
			{"order", 200, pending, "7", 7 * time.Second},
			{"order", 200, processing, "", 320 * time.Millisecond},
			{"order", 200, processing, "", 640 * time.Millisecond},
			{"order", 200, processing, "", time.Second},
			{"order", 200, processing, "", time.Second},
			{"order", 200, processing, "0", firstPoll},
			{"order", 200, processing, "86400", maxPoll},
			{"order", 200, processing, "61", maxPoll},
			{"order", 200, processing, "60", maxPoll},
			{"order", 200, processing, "60", maxPoll},
			{"order", 200, processing, "86400", attemptTimeout - lastChance - 4*maxPoll - 13120*time.Millisecond}, // those before took 13.12 s
			{"order", 200, valid, "5", 0},
			{"order", 503, `{"status":503,"type":"urn:ietf:params:acme:error:serverInternal"}`, "5", 0},
		} {
			answer := reply(test.status, test.body)
			if test.after != "" {
				answer.Header.Set("Retry-After", test.after)
			}
			answers["https://ca/"+test.of] = []*http.Response{answer}
			start := time.Now()
			req, err := http.NewRequestWithContext(t.Context(), "POST", "https://ca/"+test.of, strings.NewReader(`{"protected":"e30"}`))
			if err != nil {
				t.Fatal(err)
			}
			res, err := tr.RoundTrip(req)
			if err != nil {
				t.Fatal(err)
			}
			if got := time.Since(start); got != test.want {
				t.Errorf("request %d: waited %v, want %v", i, got, test.want)
			}
			if asksAgain := res.Header.Get("Retry-After") == "Thu, 01 Jan 1970 00:00:00 GMT"; asksAgain != (test.want > 0) {
				t.Errorf("request %d: Retry-After %q", i, res.Header.Get("Retry-After"))
			}
			if body, err := io.ReadAll(res.Body); err != nil || string(body) != test.body {
				t.Errorf("request %d: body %q, %v, want %q", i, body, err, test.body)
			}
		}
	})
}

// A CA that is too busy for finalize is asked again when it says, or less and less often.
func TestTransportBusyAtFinalize(t *testing.T) {
	t.Parallel()
	const order, finalize = "https://ca/order", "https://ca/finalize"
	for _, test := range []struct {
		after string // Retry-After
		most  int    // requests to finalize
		least time.Duration
	}{
		{"", 70, 55 * time.Second}, // 20 ms, 40 ms, ..., 1 s, 1 s, ...
		{"20", 3, 40 * time.Second},
		{"300", 1, 0}, // the next attempt asks again
	} {
		synctest.Test(t, func(t *testing.T) {
			key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
			if err != nil {
				t.Fatal(err)
			}
			answers := make(script)
			is := &issuer{base: &cahttp.Bounded{Base: answers, Timeout: cahttp.RequestTimeout}, now: time.Now, patience: patience}
			ctx, cancel := context.WithTimeout(t.Context(), attemptTimeout)
			defer cancel()
			tr := newTransport(ctx, is, &attempt{plan: &plan{Order: &pendingOrder{URL: order, Final: true}}}, key)
			tr.begin(&object{Finalize: finalize})
			start, finalized, address := time.Now(), 0, finalize
			for {
				busy := reply(503, `{"status":503,"type":"urn:ietf:params:acme:error:serverInternal"}`, "Retry-After", test.after)
				answers[finalize] = []*http.Response{busy}
				answers[order] = []*http.Response{reply(200, `{"status":"ready","finalize":"`+finalize+`"}`)}
				req, err := http.NewRequestWithContext(t.Context(), "POST", address, strings.NewReader(`{"protected":"e30"}`))
				if err != nil {
					t.Fatal(err)
				}
				_, err = tr.RoundTrip(req)
				if len(answers[finalize]) == 0 {
					finalized++
				}
				if err != nil {
					break
				}
				address = order
			}
			took := time.Since(start)
			t.Logf("Retry-After %q: %d requests to finalize in %v", test.after, finalized, took)
			if finalized > test.most || took < test.least || took > patience {
				t.Errorf("Retry-After %q: finalize was sent %d times in %v, want at most %d times in %v to %v", test.after, finalized, took, test.most, test.least, patience)
			}
			if kindOf(tr.err) != "serverInternal" {
				t.Errorf("Retry-After %q: error %v, want the CA's", test.after, tr.err)
			}
		})
	}
}

// A CA that names a day as the wait between polls is asked each minute. Meanwhile Ready and Status show the attempt.
func TestPollWait(t *testing.T) {
	t.Parallel()
	for _, path := range []string{pebbletest.OrderPath, pebbletest.AuthorizationPath} {
		ca, cfg := startCA(t, pebbletest.Config{AlwaysValid: true}, domain)
		log := &recorder{t: t}
		cfg.Logger = newLogger(log)
		dir := t.TempDir()
		pacePolls(t, ca)
		synctest.Test(t, func(t *testing.T) {
			if path == pebbletest.OrderPath { // two polls of the order after finalize
				ca.Inject(pebbletest.FinalizePath, 1, func(w http.ResponseWriter, r *http.Request) {
					ca.Inject(path, 2, slowly)
					pebbletest.Forward(w, r)
				})
			} else { // the first one is autocert's look for challenges
				ca.Inject(path, 1, pebbletest.Forward)
				ca.Inject(path, 2, slowly)
			}
			start := time.Now()
			p, stop := runInBubble(t, cfg, dir, ca)
			defer stop()
			sleep(90 * time.Second)
			if got := p.Status()[0].Attempting; got.Before(start) || got.Sub(start) > time.Second {
				t.Errorf("%s: attempting since %v, want %v", path, got, start)
			}
			if err := p.Ready(); err == nil || !strings.Contains(err.Error(), "an attempt has been in progress since "+rfc3339(start)) {
				t.Errorf("%s: Ready = %v, want the attempt", path, err)
			}
			sleep(time.Minute)
			if err := p.Ready(); err != nil || !p.Status()[0].Attempting.IsZero() {
				t.Errorf("%s: Ready after two polls = %v, attempting since %v", path, err, p.Status()[0].Attempting)
			}
			if e := log.one("long wait between polls"); e.attrs["retry_after"] == "" {
				t.Errorf("logged %v, want the CA's time", e)
			}
		})
	}
}

// slowly shows a resource that is in progress and wants the client back in a day.
func slowly(w http.ResponseWriter, r *http.Request) {
	rec := httptest.NewRecorder()
	status := "processing"
	if strings.HasPrefix(r.URL.Path, pebbletest.AuthorizationPath) {
		status = "pending"
	}
	showing(status)(rec, r)
	rec.Header().Set("Retry-After", "86400")
	send(w, rec, rec.Body.Bytes())
}
