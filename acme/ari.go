package acme

import (
	"context"
	"crypto/x509"
	"encoding/asn1"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"time"

	"plusminus/acme/internal/cahttp"
)

// How long to wait before the CA is asked again about a certificate.
const (
	// The CA's Retry-After, but at least a minute and at most a day.
	// https://www.rfc-editor.org/rfc/rfc9773#section-4.3.2
	soonestFetch = time.Minute
	latestFetch  = day

	// After an error, and without a Retry-After.
	// https://www.rfc-editor.org/rfc/rfc9773#section-4.3.3
	failedFetch = 6 * time.Hour
)

// renewalInfo is the CA's renewal information for one certificate, with the moment that we chose.
type renewalInfo struct {
	CertID         string    `json:"cert_id"`                   // names the certificate
	Start          time.Time `json:"start,omitzero"`            // when the window begins; zero if the CA has not given one
	End            time.Time `json:"end,omitzero"`              // when it ends
	Chosen         time.Time `json:"chosen,omitzero"`           // when we renew: a random moment in the window
	ExplanationURL string    `json:"explanation_url,omitempty"` // a page for people
	FetchAfter     time.Time `json:"fetch_after"`               // when to ask again
}

// errNoRenewalInfo is returned for a CA without renewal information.
var errNoRenewalInfo = errors.New("acme: the directory offers no renewal information")

// certID returns the name of a certificate in renewal information: the key identifier of its issuer, a period, and
// the content of its serial number in DER, both in base64url. The bool is false for a
// certificate without a key identifier.
// https://www.rfc-editor.org/rfc/rfc9773#section-4.1
func certID(leaf *x509.Certificate) (string, bool) {
	if len(leaf.AuthorityKeyId) == 0 || leaf.SerialNumber == nil {
		return "", false
	}
	// DER, since it has a leading zero byte where the first bit of the number is set.
	der, err := asn1.Marshal(leaf.SerialNumber)
	if err != nil {
		return "", false
	}
	var serial asn1.RawValue
	if _, err := asn1.Unmarshal(der, &serial); err != nil {
		return "", false
	}
	b64 := base64.RawURLEncoding.EncodeToString
	return b64(leaf.AuthorityKeyId) + "." + b64(serial.Bytes), true
}

// renewalInfo implements [certifier]. It leaves Chosen to the caller.
func (is *issuer) renewalInfo(ctx context.Context, id string) (renewalInfo, error) {
	now := is.now()
	info := renewalInfo{CertID: id, FetchAfter: now.Add(failedFetch)}
	var directory struct {
		RenewalInfo string `json:"renewalInfo"`
	}
	if _, err := is.get(ctx, is.directory, &directory); err != nil {
		return info, fmt.Errorf("directory: %w", err)
	}
	if directory.RenewalInfo == "" {
		info.FetchAfter = now.Add(latestFetch) // the CA may offer it some day
		return info, errNoRenewalInfo
	}
	address, err := url.JoinPath(directory.RenewalInfo, id)
	if err != nil {
		return info, fmt.Errorf("renewalInfo: %w", err)
	}
	var answer struct {
		SuggestedWindow struct{ Start, End time.Time }
		ExplanationURL  string
	}
	header, err := is.get(ctx, address, &answer)
	if at, ok := cahttp.RetryAfter(header, now); ok {
		wait := min(max(at.Sub(now), soonestFetch), latestFetch)
		info.FetchAfter = now.Add(wait)
	}
	if err != nil {
		return info, fmt.Errorf("renewalInfo: %w", err)
	}
	start, end := answer.SuggestedWindow.Start, answer.SuggestedWindow.End
	// A window that does not end after its start is invalid.
	// https://www.rfc-editor.org/rfc/rfc9773#section-4.2
	if !end.After(start) {
		return info, fmt.Errorf("renewalInfo: the window ends at %s, before it begins", end.Format(time.RFC3339))
	}
	info.Start, info.End, info.ExplanationURL = start, end, answer.ExplanationURL
	return info, nil
}

// get fetches a JSON object without an account. The header is nil if there was no answer.
func (is *issuer) get(ctx context.Context, address string, object any) (http.Header, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, address, nil)
	if err != nil {
		return nil, err
	}
	req.Header.Set("User-Agent", cahttp.UserAgent)
	res, err := is.base.RoundTrip(req)
	if err != nil {
		return nil, err
	}
	if res.StatusCode != http.StatusOK {
		return res.Header, fmt.Errorf("HTTP %s", res.Status)
	}
	if err := json.NewDecoder(res.Body).Decode(object); err != nil {
		return res.Header, fmt.Errorf("no JSON of the kind expected: %w", err)
	}
	return res.Header, nil
}

// merge returns info with a chosen moment. It keeps the moment of old as long as the window is the same. random is in
// [0, 1).
//
// "Select a uniform random time within the suggested window."
// https://www.rfc-editor.org/rfc/rfc9773#section-4.2
func (info renewalInfo) merge(old *renewalInfo, random float64) *renewalInfo {
	if old != nil && old.CertID == info.CertID && old.Start.Equal(info.Start) && old.End.Equal(info.End) {
		info.Chosen = old.Chosen
	} else {
		info.Chosen = info.Start.Add(time.Duration(random * float64(info.End.Sub(info.Start))))
	}
	return &info
}
