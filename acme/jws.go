package acme

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"net/url"
)

// A jws is the body of a signed request. Its protected header has the URL and the nonce, which is good for one
// request, so a transport can change and sign again what the client has signed, but not repeat it.
// https://www.rfc-editor.org/rfc/rfc8555#section-6.2
type jws struct {
	Protected string `json:"protected"`
	Payload   string `json:"payload"` // empty for a POST-as-GET
	Signature string `json:"signature"`
}

var b64 = base64.RawURLEncoding

// readJWS returns the body of req, which can still be sent.
func readJWS(req *http.Request) (*jws, error) {
	if req.GetBody == nil {
		return nil, errors.New("acme: request without a body")
	}
	body, err := req.GetBody()
	if err != nil {
		return nil, err
	}
	defer body.Close()
	m := new(jws)
	return m, json.NewDecoder(body).Decode(m)
}

// payload returns the fields of the payload.
func (m *jws) payload() map[string]any {
	fields := make(map[string]any)
	if data, err := b64.DecodeString(m.Payload); err == nil {
		json.Unmarshal(data, &fields)
	}
	return fields
}

func (m *jws) setPayload(fields map[string]any) {
	data, _ := json.Marshal(fields) // of strings, numbers and their like
	m.Payload = b64.EncodeToString(data)
}

// sign signs m with key, which is the account's, and makes it the body of req.
func (m *jws) sign(req *http.Request, key *ecdsa.PrivateKey) error {
	var err error
	if m.Signature, err = signES256(key, m.Protected+"."+m.Payload); err != nil {
		return err
	}
	body, err := json.Marshal(m)
	if err != nil {
		return err
	}
	req.ContentLength = int64(len(body))
	req.GetBody = func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(body)), nil }
	req.Body, err = req.GetBody()
	return err
}

// signFor is sign, and sends the request to address in place of its own URL.
func (m *jws) signFor(address string, req *http.Request, key *ecdsa.PrivateKey) error {
	header := make(map[string]json.RawMessage)
	data, err := b64.DecodeString(m.Protected)
	if err == nil {
		err = json.Unmarshal(data, &header)
	}
	if err != nil {
		return err
	}
	if header["url"], err = json.Marshal(address); err != nil {
		return err
	}
	if data, err = json.Marshal(header); err != nil {
		return err
	}
	m.Protected = b64.EncodeToString(data)
	if req.URL, err = url.Parse(address); err != nil {
		return err
	}
	req.Host = req.URL.Host
	return m.sign(req, key)
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
	return b64.EncodeToString(sig[:]), nil
}
