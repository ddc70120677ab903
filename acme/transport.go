package acme

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strconv"
	"sync"
	"time"
)

const (
	requestTimeout = 30 * time.Second // for one request to the CA; Boulder answers in seconds
	maxAnswer      = 1 << 20          // bytes; a chain is about 5 kB

	// How often an order or authorization is looked at when the CA does not say. The first wait is
	// short because a validation takes about as long as a round trip; x/crypto always waits a second.
	firstPoll = 50 * time.Millisecond
	lastPoll  = time.Second
)

// errNoMoreOrders is what a Manager gets that orders once more than it should.
var errNoMoreOrders = errors.New("acme: this attempt is over")

// A transport is the [http.RoundTripper] of one attempt to get one certificate. It stands between
// autocert and the CA because only here can be seen what autocert does not tell, and done what it
// does not offer:
//
//   - it keeps the CA's problem documents, and the errors inside the challenges of authorizations;
//   - it notes the Retry-After of 429 and 503, and lets no further order follow such an answer;
//   - it adds the profile to newOrder and signs it again;
//   - it waits between polls, where the wait can be cut short;
//   - it sends one newAccount at a time, since every Manager registers, and a CA that is asked to make
//     the same account twice at once may fail one of the two (Pebble does);
//   - it ends every request when the context of the attempt is done, which autocert's is not part of;
//   - once retired, it refuses a Manager that wakes up a new order.
type transport struct {
	// Immutable after newTransport.
	ctx     context.Context // of [Provider.Run]
	base    http.RoundTripper
	key     *ecdsa.PrivateKey // the account's
	profile string            // may be empty
	now     func() time.Time

	// Safe from any goroutine.
	accounts chan struct{} // the issuer's

	mu sync.Mutex
	// Guarded by mu.
	steps      map[string]string // URL -> what a request to it does; grows as answers name URLs
	accepted   bool              // the CA was told to validate the current order's challenge
	polls      int               // how often the current order was polled
	ordered    bool              // a newOrder was sent
	noMore     bool              // no newOrder is let through any more
	retired    bool              // what comes now is housekeeping, not part of the attempt
	problems   []*problem
	retryAfter time.Time // the latest that the CA asked for
}

func newTransport(ctx context.Context, is *issuer) *transport {
	return &transport{
		ctx: ctx, base: is.base, key: is.key, profile: is.profile, now: is.now, accounts: is.accounts,
		steps: map[string]string{is.directory: "directory"},
	}
}

// costNothing reports whether no order was placed, so that the CA has nothing to count.
func (t *transport) costNothing() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return !t.ordered
}

// retire ends the attempt, and returns what went wrong in it and when the CA wants to see us again.
// Requests that autocert still makes to tidy up (it deactivates authorizations that nobody needs) are
// let through; a new order is not.
func (t *transport) retire() ([]*problem, time.Time) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.retired, t.noMore = true, true
	return slices.Clone(t.problems), t.retryAfter // housekeeping may still change ours
}

func (t *transport) RoundTrip(req *http.Request) (*http.Response, error) {
	url := req.URL.String()
	t.mu.Lock()
	step, noMore := t.steps[url], t.noMore
	t.ordered = t.ordered || step == "newOrder" && !noMore
	t.mu.Unlock()
	if step == "newOrder" && noMore {
		closeBody(req)
		return nil, errNoMoreOrders
	}
	if step == "newOrder" && t.profile != "" {
		var err error
		if req, err = t.withProfile(req); err != nil {
			return nil, err
		}
	}

	if step == "newAccount" {
		select {
		case t.accounts <- struct{}{}:
			defer func() { <-t.accounts }()
		case <-t.ctx.Done():
			closeBody(req)
			return nil, t.ctx.Err()
		}
	}

	ctx, cancel := context.WithTimeout(req.Context(), requestTimeout)
	defer cancel()
	defer context.AfterFunc(t.ctx, cancel)()
	res, err := t.base.RoundTrip(req.WithContext(ctx))
	if err != nil {
		t.fail(step, err.Error())
		return nil, err
	}
	body, err := io.ReadAll(io.LimitReader(res.Body, maxAnswer+1))
	res.Body.Close()
	if err == nil && len(body) > maxAnswer {
		err = fmt.Errorf("acme: answer longer than %d bytes", maxAnswer)
	}
	if err != nil {
		t.fail(step, err.Error())
		return nil, err
	}
	res.Body = io.NopCloser(bytes.NewReader(body)) // x/crypto reads it too, and needs it whole

	if wait := t.inspect(step, res, body); wait > 0 {
		t.pause(req.Context(), wait)
		// A time that has passed makes x/crypto ask again at once; without it, it waits a second more.
		res.Header.Set("Retry-After", time.Unix(0, 0).UTC().Format(http.TimeFormat))
	}
	return res, nil
}

// pause waits for d, or until the attempt or the request is given up.
func (t *transport) pause(ctx context.Context, d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-ctx.Done():
	case <-t.ctx.Done():
	}
}

// answer is whatever we use of any of the CA's JSON objects.
type answer struct {
	// A directory's.
	NewNonce, NewAccount, NewOrder string

	// An order's, an authorization's or a challenge's. Elsewhere it can be a number.
	Status any

	// An order's.
	Authorizations        []string
	Finalize, Certificate string

	// An authorization's.
	Challenges []struct {
		Type, URL string
		Error     *problem
	}

	// An order's or a challenge's.
	Error *problem
}

// inspect learns what it can from an answer, and returns how long to wait before the next one is
// asked for, 0 if this was no poll.
func (t *transport) inspect(step string, res *http.Response, body []byte) time.Duration {
	t.mu.Lock()
	defer t.mu.Unlock()
	// x/crypto repeats a request that met a stale nonce or a 5xx; what the last answer says counts.
	t.problems = slices.DeleteFunc(t.problems, func(p *problem) bool { return p.step == step })
	if res.StatusCode >= 400 {
		t.refusedLocked(step, res, body)
		return 0
	}

	var a answer
	if json.Unmarshal(body, &a) != nil {
		return 0 // a certificate, or nothing
	}
	t.learnLocked(step, res, &a)
	for _, c := range a.Challenges {
		t.addLocked(c.Type, c.Error)
	}
	t.addLocked(step, a.Error)

	switch step {
	case "newOrder":
		t.accepted, t.polls = false, 0
	case "tls-alpn-01", "http-01":
		t.accepted = true
	}
	waiting := a.Status == "pending" || a.Status == "processing"
	polled := step == "order" || step == "authorization" && t.accepted
	if !waiting || !polled || t.retired {
		return 0
	}
	t.polls++
	if at, ok := retryAfter(res.Header, t.now()); ok {
		return max(at.Sub(t.now()), firstPoll)
	}
	return min(firstPoll<<min(t.polls-1, 10), lastPoll)
}

// learnLocked notes what the URLs in a are for.
func (t *transport) learnLocked(step string, res *http.Response, a *answer) {
	if step == "directory" {
		t.steps[a.NewNonce] = "newNonce"
		t.steps[a.NewAccount] = "newAccount"
		t.steps[a.NewOrder] = "newOrder"
	}
	if step == "newOrder" {
		t.steps[res.Header.Get("Location")] = "order"
	}
	for _, u := range a.Authorizations {
		t.steps[u] = "authorization"
	}
	for _, c := range a.Challenges {
		t.steps[c.URL] = c.Type
	}
	t.steps[a.Finalize] = "finalize"
	t.steps[a.Certificate] = "certificate"
	delete(t.steps, "")
}

// refusedLocked takes note of an answer that is an error.
func (t *transport) refusedLocked(step string, res *http.Response, body []byte) {
	p := new(problem)
	if json.Unmarshal(body, p) != nil || p.Type == "" && p.Detail == "" {
		p = &problem{Detail: "HTTP " + res.Status} // a proxy's page, not the CA's word
	}
	if res.StatusCode == http.StatusTooManyRequests || res.StatusCode == http.StatusServiceUnavailable {
		at, ok := retryAfter(res.Header, t.now())
		if ok && at.After(t.retryAfter) {
			t.retryAfter = at
		}
		// autocert answers a 429 on the challenge with another order. One is enough to be told.
		t.noMore = t.noMore || ok || res.StatusCode == http.StatusTooManyRequests
	}
	t.addLocked(step, p)
}

// fail takes note of a request that got no answer.
func (t *transport) fail(step, reason string) {
	if t.ctx.Err() != nil {
		return // we are stopping; that is nobody's fault
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.addLocked(step, &problem{Detail: reason})
}

// addLocked adds p, if it is not nil and new, as something that went wrong in step.
func (t *transport) addLocked(step string, p *problem) {
	if p == nil || t.retired {
		return
	}
	p.step = step
	if p.step == "" {
		p.step = "request"
	}
	for _, q := range t.problems {
		if q.String() == p.String() {
			return
		}
	}
	t.problems = append(t.problems, p)
}

// withProfile returns req, a newOrder, with the profile in its payload. "A client which wishes to
// specify a profile adds a field "profile" to the newOrder request", which autocert cannot. A JWS is
// {protected, payload, signature}; protected stays as it is, with its nonce, so only the payload has
// to be signed anew.
// https://datatracker.ietf.org/doc/draft-ietf-acme-profiles/
func (t *transport) withProfile(req *http.Request) (*http.Request, error) {
	body, err := io.ReadAll(req.Body)
	closeBody(req)
	if err != nil {
		return nil, err
	}
	var jws struct {
		Protected string `json:"protected"`
		Payload   string `json:"payload"`
		Signature string `json:"signature"`
	}
	if err := json.Unmarshal(body, &jws); err != nil {
		return nil, fmt.Errorf("acme: newOrder to add a profile to: %w", err)
	}
	payload, err := base64.RawURLEncoding.DecodeString(jws.Payload)
	if err != nil {
		return nil, fmt.Errorf("acme: newOrder to add a profile to: %w", err)
	}
	var order map[string]any
	if err := json.Unmarshal(payload, &order); err != nil {
		return nil, fmt.Errorf("acme: newOrder to add a profile to: %w", err)
	}
	order["profile"] = t.profile
	if payload, err = json.Marshal(order); err != nil {
		return nil, err
	}
	jws.Payload = base64.RawURLEncoding.EncodeToString(payload)
	if jws.Signature, err = signES256(t.key, jws.Protected+"."+jws.Payload); err != nil {
		return nil, err
	}
	if body, err = json.Marshal(jws); err != nil {
		return nil, err
	}

	req = req.Clone(req.Context())
	req.ContentLength = int64(len(body))
	req.GetBody = func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(body)), nil }
	req.Body, _ = req.GetBody()
	return req, nil
}

// signES256 returns the JWS signature of input: r and s, 32 bytes each, in base64url.
// https://www.rfc-editor.org/rfc/rfc7518#section-3.4
func signES256(key *ecdsa.PrivateKey, input string) (string, error) {
	sum := sha256.Sum256([]byte(input))
	r, s, err := ecdsa.Sign(rand.Reader, key, sum[:])
	if err != nil {
		return "", err
	}
	var sig [64]byte
	r.FillBytes(sig[:32])
	s.FillBytes(sig[32:])
	return base64.RawURLEncoding.EncodeToString(sig[:]), nil
}

// retryAfter returns the time that the header names, and whether it names one: "Its value can be
// either an HTTP-date or a number of seconds to delay".
// https://www.rfc-editor.org/rfc/rfc9110#section-10.2.3
func retryAfter(h http.Header, now time.Time) (time.Time, bool) {
	v := h.Get("Retry-After")
	if n, err := strconv.ParseUint(v, 10, 31); err == nil {
		return now.Add(time.Duration(n) * time.Second), true
	}
	if t, err := http.ParseTime(v); err == nil {
		return t, true
	}
	return time.Time{}, false
}

// retryBackoff is [golang.org/x/crypto/acme.Client.RetryBackoff]: how long to wait before the same
// request is sent again, 0 to give up. res is the answer that failed, n how many did.
func retryBackoff(n int, _ *http.Request, res *http.Response) time.Duration {
	switch {
	case res.StatusCode == http.StatusTooManyRequests, res.Header.Get("Retry-After") != "":
		return 0 // a matter of minutes or days: the schedule waits, not a goroutine
	case res.StatusCode < 500: // only badNonce is retried
		if n > 20 {
			return 0
		}
		return time.Millisecond
	case n > 3:
		return 0
	default:
		return time.Duration(n) * 100 * time.Millisecond
	}
}

// closeBody does what a RoundTripper owes a request that it does not send on.
func closeBody(req *http.Request) {
	if req.Body != nil {
		req.Body.Close()
	}
}
