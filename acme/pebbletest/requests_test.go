package pebbletest

import (
	"encoding/base64"
	"encoding/json"
	"testing"

	"github.com/letsencrypt/pebble/v2/core"
)

// remember adds an entry that Pebble lacks, and none for an unknown certificate.
func TestRemember(t *testing.T) {
	c := Start(t, Config{})
	if err := c.store.AddOrderByIssuedSerial(&core.Order{ID: "one", AccountID: "me", CertificateObject: &core.Certificate{ID: "8a01"}}); err != nil {
		t.Fatal(err)
	}
	b64 := base64.RawURLEncoding.EncodeToString
	ask := func(serial ...byte) {
		payload, _ := json.Marshal(NewOrder{Replaces: b64([]byte("issuer")) + "." + b64(serial)})
		body, _ := json.Marshal(map[string]string{"payload": b64(payload)})
		c.remember(body)
	}
	for range 2 {
		ask(0, 0x8a, 1)
	}
	ask(0, 0x8a, 2)
	ask(0)
	ask()
	c.remember([]byte("no JWS"))
	if order, err := c.store.GetOrderByIssuedSerial("008a01"); err != nil || order.ID != "one" || order.AccountID != "me" {
		t.Errorf("order %+v, %v, want the one for 8a01", order, err)
	}
	if order, err := c.store.GetOrderByIssuedSerial("008a02"); err == nil {
		t.Errorf("order %+v for a certificate that was not issued", order)
	}
}
