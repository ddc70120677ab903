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
	// What the CA says is taken for a minute if it is less, and for a day if it is more.
	// https://www.rfc-editor.org/rfc/rfc9773#section-4.3.2
	soonestFetch = time.Minute
	latestFetch  = day

	// After an error, and where the CA does not say.
	// https://www.rfc-editor.org/rfc/rfc9773#section-4.3.3
	failedFetch = 6 * time.Hour
)

// renewalInfo is what the CA says about renewing one certificate, and what we made of it.
type renewalInfo struct {
	CertID         string    `json:"cert_id"`                   // of the certificate
	Start          time.Time `json:"start,omitzero"`            // of the window in which it wants us to renew; zero if it has not said
	End            time.Time `json:"end,omitzero"`              // of the same
	Chosen         time.Time `json:"chosen,omitzero"`           // when we renew: a random moment of the window
	ExplanationURL string    `json:"explanation_url,omitempty"` // a page for people
	FetchAfter     time.Time `json:"fetch_after"`               // when to ask again
}

// errNoRenewalInfo is returned for a CA that does not offer renewal information.
var errNoRenewalInfo = errors.New("acme: the directory offers no renewal information")

// certID returns the identifier of a certificate in renewal information, and whether it has one: the
// key identifier of its issuer, a period, and the content of its DER-encoded serial number, both in
// base64url.
// https://www.rfc-editor.org/rfc/rfc9773#section-4.1
func certID(leaf *x509.Certificate) (string, bool) {
	if len(leaf.AuthorityKeyId) == 0 || leaf.SerialNumber == nil {
		return "", false
	}
	// The bytes of the number are not enough: DER has a zero before a first bit that would be its sign.
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

// renewalInfo asks the CA about the certificate with the given id. FetchAfter is set whether or not
// there is an error; the error is [errNoRenewalInfo] if the CA has no such service. Chosen is left to
// the caller.
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
		info.FetchAfter = now.Add(latestFetch) // it may learn to
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
	// A window that does not end after its start is no window.
	// https://www.rfc-editor.org/rfc/rfc9773#section-4.2
	if !end.After(start) {
		return info, fmt.Errorf("renewalInfo: the window ends at %s, before it begins", end.Format(time.RFC3339))
	}
	info.Start, info.End, info.ExplanationURL = start, end, answer.ExplanationURL
	return info, nil
}

// get fetches a JSON object that needs no account. The header is nil if there was no answer.
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

// merge returns what to remember when info arrives after old: as long as the window is the same, so is
// the moment that was chosen in it. random is in [0, 1).
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
