// Package cahttp has what each conversation with a CA needs: connections, limits on time and size, waits
// between repeated requests, and an explanation of what went wrong. It starts no goroutine.
package cahttp

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"time"
)

const (
	// UserAgent is sent with each request to a CA.
	UserAgent = "plusminus"

	// RequestTimeout bounds one request to the CA. Boulder answers in seconds.
	RequestTimeout = 30 * time.Second

	// MaxAnswer bounds an answer in bytes. A chain has about 5 kB.
	MaxAnswer = 1 << 20
)

// NewTransport returns a pool of connections to a CA. It trusts roots; nil is the system's roots.
func NewTransport(roots *x509.CertPool) *http.Transport {
	conns := http.DefaultTransport.(*http.Transport).Clone()
	conns.TLSClientConfig = &tls.Config{RootCAs: roots}
	return conns
}

// A Bounded is an [http.RoundTripper] that reads each answer to its end before it returns. An answer that
// takes longer than Timeout, or is larger than [MaxAnswer], is an error. It is safe for concurrent use if
// Base is.
type Bounded struct {
	Base    http.RoundTripper
	Timeout time.Duration
}

// RoundTrip implements [http.RoundTripper].
func (b *Bounded) RoundTrip(req *http.Request) (*http.Response, error) {
	ctx, cancel := context.WithTimeout(req.Context(), b.Timeout)
	defer cancel()
	res, err := b.Base.RoundTrip(req.WithContext(ctx))
	var body []byte
	if err == nil {
		body, err = io.ReadAll(io.LimitReader(res.Body, MaxAnswer+1))
		res.Body.Close()
	}
	switch {
	case err != nil && ctx.Err() != nil && req.Context().Err() == nil:
		return nil, fmt.Errorf("the CA did not answer within %v", b.Timeout)
	case err != nil:
		return nil, err
	case len(body) > MaxAnswer:
		return nil, fmt.Errorf("the CA's answer is longer than %d bytes", MaxAnswer)
	}
	res.Body = io.NopCloser(bytes.NewReader(body))
	return res, nil
}

// Skew returns the CA's clock minus ours. ok is false if the answer has no valid Date.
func Skew(h http.Header, now time.Time) (skew time.Duration, ok bool) {
	date, err := http.ParseTime(h.Get("Date"))
	return date.Sub(now), err == nil
}

// RetryAfter returns the time in the header Retry-After. ok is false if there is no valid one. "Its value
// can be either an HTTP-date or a number of seconds to delay".
// https://www.rfc-editor.org/rfc/rfc9110#section-10.2.3
func RetryAfter(h http.Header, now time.Time) (at time.Time, ok bool) {
	v := h.Get("Retry-After")
	if n, err := strconv.ParseUint(v, 10, 31); err == nil {
		return now.Add(time.Duration(n) * time.Second), true
	}
	if t, err := http.ParseTime(v); err == nil {
		return t, true
	}
	return time.Time{}, false
}

// RetryBackoff is an [golang.org/x/crypto/acme.Client.RetryBackoff]. It returns the wait before a request
// is sent again, or 0 to give up. res is the answer that failed, and n counts the failures.
func RetryBackoff(n int, _ *http.Request, res *http.Response) time.Duration {
	switch {
	case res.StatusCode == http.StatusTooManyRequests, res.Header.Get("Retry-After") != "":
		return 0 // minutes or days: the plan waits, not this goroutine
	case res.StatusCode < 500: // the client repeats no other 4xx than badNonce
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

// Pause waits for d or until ctx is done.
func Pause(ctx context.Context, d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-ctx.Done():
	}
}
