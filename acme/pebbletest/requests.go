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

// A Request is one that came in, whatever became of it.
type Request struct {
	Method string
	Path   string
	At     time.Time
	// Payload is what a signed request says, its signature unchecked; it is empty for a POST-as-GET and
	// for what is not signed.
	Payload []byte
}

// A NewOrder is the payload of a newOrder request (RFC 8555 section 7.4), with what RFC 9773 and the
// profiles draft add.
type NewOrder struct {
	Identifiers []Identifier `json:"identifiers"`
	Profile     string       `json:"profile"`
	Replaces    string       `json:"replaces"`
	NotBefore   string       `json:"notBefore"`
	NotAfter    string       `json:"notAfter"`
}

// An Identifier is what a certificate is for: of type "dns" or "ip".
type Identifier struct {
	Type  string `json:"type"`
	Value string `json:"value"`
}

// remember makes good what Pebble 2.10.1 gets wrong with 1 of 256 certificates, so that no test fails so
// often: an order that names one as replaced is answered with 500. Pebble looks for the serial number with
// the zero byte that DER puts before a first bit that is set, and has stored it without.
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

// payloadOf returns the payload of a JWS, or nothing.
func payloadOf(body []byte) []byte {
	var jws struct{ Payload string }
	json.Unmarshal(body, &jws)
	payload, _ := base64.RawURLEncoding.DecodeString(jws.Payload)
	return payload
}

func newOrder(payload []byte) (o NewOrder) {
	json.Unmarshal(payload, &o)
	return o
}

// arrived notes r and returns what is to answer it, and how wrong the clock is to be.
func (c *CA) arrived(r *http.Request, body []byte) (http.HandlerFunc, time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.requests = append(c.requests, Request{r.Method, r.URL.Path, time.Now(), payloadOf(body)})
	return c.handlerLocked(r.URL.Path), c.dateShift
}

// Requests returns all requests so far in the order in which they came, those that a Fault answered
// included.
func (c *CA) Requests() []Request {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.Clone(c.requests)
}

// Count returns how many of Requests went to path. Those that Pebble refused because of their nonce, and
// that were sent again, count twice.
func (c *CA) Count(path string) int {
	n := 0
	for _, r := range c.Requests() {
		if match(path, r.Path) {
			n++
		}
	}
	return n
}

// Orders returns how many newOrder requests came in so far, those that were intercepted included.
func (c *CA) Orders() int { return c.Count(NewOrderPath) }

// NewOrders returns what the newOrder requests so far asked for. One that is not JSON is empty.
func (c *CA) NewOrders() []NewOrder {
	var orders []NewOrder
	for _, r := range c.Requests() {
		if r.Path == NewOrderPath {
			orders = append(orders, newOrder(r.Payload))
		}
	}
	return orders
}

// FailedValidations returns how many validations have failed so far. Let's Encrypt allows 5 an hour for an
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

// challenges yields those that a request came for, once each. Pebble validates no other.
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
