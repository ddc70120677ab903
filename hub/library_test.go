package hub

import (
	"bufio"
	"net"
	"net/http"
	"net/http/httptest"
	"runtime"
	"testing"
	"testing/synctest"
	"time"
	"weak"
)

// TestLibraryConnIsMadeLate checks that a client that sends only known frames has no Conn of the library, and
// that it gets one with its first other frame.
func TestLibraryConnIsMadeLate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newFakeHub(t, Config{Shards: 1})
		defer h.stop()
		_, conn := h.dial()
		send := func(frame []byte) {
			if _, err := conn.Write(frame); err != nil {
				t.Fatal(err)
			}
			synctest.Wait()
		}
		synctest.Wait()
		c := h.shards[0].clients[0]
		send(maskedFrame(plus))
		send(maskedFrame(minus))
		send([]byte{finBit | opPong, maskBit, 1, 2, 3, 4})
		if c.ws != nil {
			t.Error("the client has a Conn after known frames, want none")
		}
		send([]byte{finBit | opPing, maskBit, 1, 2, 3, 4})
		if c.ws == nil {
			t.Error("the client has no Conn after a ping")
		}
	})
}

// TestLibraryConnOfHandshake checks that the collector frees the Conn that the opening handshake has made, and
// that the client's connection stays open then.
func TestLibraryConnOfHandshake(t *testing.T) {
	h, err := New(t.Context(), Config{Store: new(Memory)})
	if err != nil {
		t.Fatal(err)
	}
	defer (&fakeHub{Hub: h}).stop()
	readers := make(chan weak.Pointer[bufio.Reader], 1)
	srv := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		h.ServeHTTP(observedHijack{w, readers}, r)
	}))
	srv.Listener = connListener{srv.Listener}
	srv.Start()
	defer srv.Close()
	p := dialRaw(t, srv.Listener.Addr().String())
	p.send([]byte(rawHandshake))
	p.upgraded()
	reader := <-readers // the Conn has it
	for end := time.Now().Add(10 * time.Second); reader.Value() != nil; time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("the Conn is still in memory")
		}
		runtime.GC()
	}
	p.send([]byte{finBit | opPing, maskBit | 1, 0, 0, 0, 0, 'x'})
	if got, ok := p.next(); got != `pong "x"` {
		t.Errorf("after a ping: %q, %t, want a pong", got, ok)
	}
}

// observedHijack sends a pointer to the reader that Hijack returns.
type observedHijack struct {
	http.ResponseWriter
	readers chan<- weak.Pointer[bufio.Reader]
}

func (o observedHijack) Hijack() (net.Conn, *bufio.ReadWriter, error) {
	nc, brw, err := http.NewResponseController(o.ResponseWriter).Hijack()
	if err == nil {
		o.readers <- weak.Make(brw.Reader)
	}
	return nc, brw, err
}
