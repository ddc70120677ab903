package pebbletest

import (
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"iter"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/letsencrypt/pebble/v2/acme"
	"github.com/letsencrypt/pebble/v2/core"
)

// A Request is a request that arrived, whatever its answer.
type Request struct {
	Method string
	Path   string
	At     time.Time
	// Payload is the payload of a signed request; the signature is not verified. It is empty for a POST-as-GET and for
	// an unsigned request.
	Payload []byte
}

// A NewOrder is the payload of a newOrder request (RFC 8555 section 7.4), with the fields of RFC 9773 and of the
// profiles draft.
type NewOrder struct {
	Identifiers []Identifier `json:"identifiers"`
	Profile     string       `json:"profile"`
	Replaces    string       `json:"replaces"`
	NotBefore   string       `json:"notBefore"`
	NotAfter    string       `json:"notAfter"`
}

// An Identifier is a name or address to certify, of type "dns" or "ip".
type Identifier struct {
	Type  string `json:"type"`
	Value string `json:"value"`
}

// remember works around a fault of Pebble 2.10.1. It answers 500 to an order that replaces 1 of 256 certificates:
// those whose serial number begins with a set bit. DER puts a zero byte before it; Pebble looks for the number with
// that byte and has stored it without. remember stores it with the byte, too.
func (c *CA) remember(body []byte) {
	_, serial, _ := strings.Cut(newOrder(payloadOf(body)).Replaces, ".")
	der, err := base64.RawURLEncoding.DecodeString(serial)
	if err != nil || len(der) < 2 || der[0] != 0 {
		return
	}
	c.orders.Lock()
	defer c.orders.Unlock()
	if _, err := c.store.GetOrderByIssuedSerial(hex.EncodeToString(der)); err == nil {
		return
	}
	order, err := c.store.GetOrderByIssuedSerial(hex.EncodeToString(der[1:]))
	if err != nil {
		return
	}
	order.RLock()
	defer order.RUnlock()
	if err := c.store.AddOrderByIssuedSerial(&core.Order{
		ID: order.ID, AccountID: order.AccountID, Order: order.Order, IsReplaced: order.IsReplaced,
		CertificateObject: &core.Certificate{ID: hex.EncodeToString(der)},
	}); err != nil {
		c.t.Errorf("an order that Pebble forgot: %v", err)
	}
}

// payloadOf returns the payload of a JWS, or nil.
func payloadOf(body []byte) []byte {
	var jws struct{ Payload string }
	json.Unmarshal(body, &jws)
	payload, _ := base64.RawURLEncoding.DecodeString(jws.Payload)
	return payload
}

// newOrder parses the payload of a newOrder request. Its fields are empty if payload is not JSON.
func newOrder(payload []byte) (o NewOrder) {
	json.Unmarshal(payload, &o)
	return o
}

// arrived records r. It returns the handler for it, and by how much to shift the Date of the answer.
func (c *CA) arrived(r *http.Request, body []byte) (http.HandlerFunc, time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.requests = append(c.requests, Request{r.Method, r.URL.Path, time.Now(), payloadOf(body)})
	return c.handlerLocked(r.URL.Path), c.dateShift
}

// Requests returns all requests so far, in the order in which they arrived. It includes those that a Fault answered.
func (c *CA) Requests() []Request {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.Clone(c.requests)
}

// Count returns how many requests went to path. A request that the client sent again after a badNonce counts twice.
func (c *CA) Count(path string) int {
	n := 0
	for _, r := range c.Requests() {
		if match(path, r.Path) {
			n++
		}
	}
	return n
}

// Orders returns the number of newOrder requests so far, including those that a Fault answered.
func (c *CA) Orders() int { return c.Count(NewOrderPath) }

// NewOrders returns the payloads of the newOrder requests so far. One that is not JSON is empty.
func (c *CA) NewOrders() []NewOrder {
	var orders []NewOrder
	for _, r := range c.Requests() {
		if r.Path == NewOrderPath {
			orders = append(orders, newOrder(r.Payload))
		}
	}
	return orders
}

// FailedValidations returns the number of validations that failed so far. Let's Encrypt allows 5 an hour for an
// account and name.
func (c *CA) FailedValidations() int {
	n := 0
	for chal := range c.challenges() {
		chal.RLock()
		if chal.Status == acme.StatusInvalid {
			n++
		}
		chal.RUnlock()
	}
	return n
}

// challenges yields each challenge once for which a request arrived. Pebble validates no others.
func (c *CA) challenges() iter.Seq[*core.Challenge] {
	return func(yield func(*core.Challenge) bool) {
		seen := make(map[string]bool)
		for _, r := range c.Requests() {
			id, ok := strings.CutPrefix(r.Path, ChallengePath)
			if !ok || seen[id] {
				continue
			}
			seen[id] = true
			if chal := c.store.GetChallengeByID(id); chal != nil && !yield(chal) {
				return
			}
		}
	}
}
