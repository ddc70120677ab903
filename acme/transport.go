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
	"io"
	"net/http"
	"time"

	"plusminus/acme/internal/cahttp"
)

const (
	// The wait between polls of an order or authorization, where the CA does not name one. It begins short, because
	// a validation takes about a round trip; x/crypto always waits a second. It doubles up to lastPoll.
	firstPoll = 20 * time.Millisecond
	lastPoll  = time.Second
)

// A transport is the [http.RoundTripper] of one attempt, between x/crypto's ACME client and the CA. It adds what the
// client does not offer:
//
//   - it adds `replaces` to newOrder and signs the request again;
//   - where the CA does not name a time, it polls sooner than after a second;
//   - it measures how far the CA's clock is from ours.
//
// It belongs to the goroutine that makes the attempt.
type transport struct {
	base http.RoundTripper
	key  *ecdsa.PrivateKey // the account's
	now  func() time.Time

	newOrder string // URL of the resource; empty until the directory is known
	replaces string // ARI id for newOrder; may be empty

	last string        // URL of the last request
	skew time.Duration // the CA's clock minus ours, by the last answer with a Date
}

// pollKey is the context key of a *int that counts the polls made with that context.
type pollKey struct{}

// polling returns a context that marks requests as polls.
func polling(ctx context.Context) context.Context {
	return context.WithValue(ctx, pollKey{}, new(int))
}

func (t *transport) RoundTrip(req *http.Request) (*http.Response, error) {
	t.last = req.URL.String()
	if t.replaces != "" && t.last == t.newOrder {
		var err error
		if req, err = t.withReplaces(req); err != nil {
			return nil, err
		}
	}
	res, err := t.base.RoundTrip(req)
	// The client repeats a request that met a 5xx, but not the one for a nonce.
	for n := 1; err == nil && req.Method == http.MethodHead && res.StatusCode >= 500; n++ {
		wait := cahttp.RetryBackoff(n, req, res)
		if wait == 0 {
			break
		}
		cahttp.Pause(req.Context(), wait)
		res, err = t.base.RoundTrip(req)
	}
	if err != nil {
		return nil, err
	}
	if skew, ok := cahttp.Skew(res.Header, t.now()); ok {
		t.skew = skew
	}
	if polls, ok := req.Context().Value(pollKey{}).(*int); ok && unfinished(res) {
		*polls++
		wait := min(firstPoll<<min(*polls-1, 10), lastPoll)
		if at, ok := cahttp.RetryAfter(res.Header, t.now()); ok {
			wait = max(at.Sub(t.now()), firstPoll)
		}
		cahttp.Pause(req.Context(), wait)
		// A time in the past makes x/crypto ask again at once. Without the header it waits another second.
		res.Header.Set("Retry-After", time.Unix(0, 0).UTC().Format(http.TimeFormat))
	}
	return res, nil
}

// unfinished reports whether res is an order or authorization that the CA is still working on. The body of res can
// be read again afterwards.
func unfinished(res *http.Response) bool {
	body, err := io.ReadAll(res.Body)
	res.Body = io.NopCloser(bytes.NewReader(body))
	var object struct {
		Status any // a string in an order, a number in a problem document
	}
	return err == nil && res.StatusCode < 300 && json.Unmarshal(body, &object) == nil &&
		(object.Status == "pending" || object.Status == "processing")
}

// withReplaces returns req, a newOrder, with `replaces` in its payload: "Clients SHOULD include this field in
// new-order requests if there is a clear predecessor certificate". A JWS is {protected, payload, signature}. The
// protected header stays, with its nonce, so only the payload is signed again.
// https://www.rfc-editor.org/rfc/rfc9773#section-5
func (t *transport) withReplaces(req *http.Request) (*http.Request, error) {
	body, err := io.ReadAll(req.Body)
	req.Body.Close()
	if err != nil {
		return nil, err
	}
	var jws struct {
		Protected string `json:"protected"`
		Payload   string `json:"payload"`
		Signature string `json:"signature"`
	}
	var order map[string]any
	payload, err := []byte(nil), json.Unmarshal(body, &jws)
	if err == nil {
		payload, err = base64.RawURLEncoding.DecodeString(jws.Payload)
	}
	if err == nil {
		err = json.Unmarshal(payload, &order)
	}
	if err != nil || order == nil {
		return nil, errors.Join(errors.New("acme: newOrder has not the form of RFC 8555"), err)
	}
	order["replaces"] = t.replaces
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
