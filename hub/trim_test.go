package hub

import (
	"bytes"
	"crypto/tls"
	"net/http"
	"reflect"
	"testing"
)

// If TestTrimTLS fails with a new version of Go, check whether crypto/tls now frees these buffers itself. If so,
// remove trimTLS.
func TestTrimTLS(t *testing.T) {
	_, srv := newTLSHub(t, Config{})
	conn, err := tls.Dial("tcp", srv.Listener.Addr().String(), srv.Client().Transport.(*http.Transport).TLSClientConfig)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	kept := func() (n int) {
		for _, name := range []string{"hand", "rawInput"} {
			field := reflect.ValueOf(conn).Elem().FieldByName(name)
			if !field.IsValid() || field.Type() != reflect.TypeFor[bytes.Buffer]() {
				t.Fatalf("tls.Conn has no bytes.Buffer named %s", name)
			}
			n += (*bytes.Buffer)(field.Addr().UnsafePointer()).Cap()
		}
		return n
	}
	before := kept()
	trimTLS(conn)
	if after := kept(); before < 1000 || after != 0 {
		t.Errorf("%d bytes kept before, %d after, want over 1000 and none", before, after)
	}
	// The connection still works.
	if _, err := conn.Write([]byte(rawHandshake)); err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, 64)
	if n, err := conn.Read(buf); err != nil || !bytes.HasPrefix(buf[:n], []byte("HTTP/1.1 101")) {
		t.Errorf("read %q, %v, want the answer to an opening handshake", buf[:n], err)
	}
}
