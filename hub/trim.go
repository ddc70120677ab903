package hub

import (
	"bytes"
	"crypto/tls"
	"reflect"
)

// trimTLS frees two buffers of a TLS connection after its handshake. Otherwise t keeps their memory
// for as long as it lives: about 3 KB, a fifth of what an idle client costs. From Go 1.28 on
// crypto/tls frees them itself (https://go.dev/issue/81348); remove trimTLS then.
//
// Both buffers are empty after the handshake, and an empty [bytes.Buffer] equals a new one. If the
// fields differ from those in Go 1.26, trimTLS does nothing. No other goroutine may use t
// meanwhile.
func trimTLS(t *tls.Conn) {
	conn := reflect.ValueOf(t).Elem()
	for _, name := range [...]string{"hand", "rawInput"} {
		field := conn.FieldByName(name)
		if !field.IsValid() || field.Type() != reflect.TypeFor[bytes.Buffer]() {
			continue
		}
		if b := (*bytes.Buffer)(field.Addr().UnsafePointer()); b.Len() == 0 {
			*b = bytes.Buffer{}
		}
	}
}
