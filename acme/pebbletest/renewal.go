package pebbletest

import (
	"bytes"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"net/http"
	"net/http/httptest"
	"time"

	"github.com/letsencrypt/pebble/v2/core"
)

// SetRenewalInfo makes the CA suggest to renew cert between start and end (RFC 9773), until [CA.ClearRenewalInfo].
// explanationURL may be empty. It fails the test if the CA did not issue cert.
func (c *CA) SetRenewalInfo(cert *x509.Certificate, start, end time.Time, explanationURL string) {
	c.t.Helper()
	info := map[string]any{"suggestedWindow": map[string]time.Time{"start": start.UTC(), "end": end.UTC()}}
	if explanationURL != "" {
		info["explanationURL"] = explanationURL
	}
	body, err := json.Marshal(info)
	if err != nil {
		c.t.Errorf("renewal info: %v", err)
		return
	}
	c.SetRenewalInfoBody(cert, string(body))
}

// ClearRenewalInfo restores Pebble's own renewal info: two days around two thirds of the certificate's life, within
// it, or a window in the past if cert is revoked.
func (c *CA) ClearRenewalInfo(cert *x509.Certificate) {
	c.t.Helper()
	c.SetRenewalInfoBody(cert, "")
}

// SetRenewalInfoBody sets the body of the renewal info for cert, valid or not. An empty body restores Pebble's own.
func (c *CA) SetRenewalInfoBody(cert *x509.Certificate, body string) {
	c.t.Helper()
	req, err := json.Marshal(map[string]string{
		"Certificate": string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert.Raw})),
		"ARIResponse": body,
	})
	if err != nil {
		c.t.Errorf("renewal info: %v", err)
		return
	}
	r := httptest.NewRequest(http.MethodPost, "/set-renewal-info/", bytes.NewReader(req))
	r.Header.Set("User-Agent", "pebbletest") // Pebble refuses requests without one
	rec := httptest.NewRecorder()
	c.renewal.Lock()
	defer c.renewal.Unlock()
	c.management.ServeHTTP(rec, r)
	if rec.Code != http.StatusOK {
		c.t.Errorf("renewal info: Pebble answered %d: %s", rec.Code, rec.Body)
	}
}

// Revoke revokes cert without asking the account, like a CA that has found a mistake of its own. The certificate's
// renewal info then lies in the past, unless the test has set one. It fails the test if the CA did not issue cert.
func (c *CA) Revoke(cert *x509.Certificate) {
	c.t.Helper()
	issued := c.store.GetCertificateBySerial(cert.SerialNumber)
	if issued == nil {
		c.t.Errorf("revoking: the CA did not issue serial %v", cert.SerialNumber)
		return
	}
	c.store.RevokeCertificate(&core.RevokedCertificate{Certificate: issued, RevokedAt: time.Now()})
}

// Revoked reports whether cert is revoked.
func (c *CA) Revoked(cert *x509.Certificate) bool {
	return c.store.GetRevokedCertificateBySerial(cert.SerialNumber) != nil
}
