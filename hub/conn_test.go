package hub

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/coder/websocket"
)

// connListener wraps each connection that it accepts in a Conn.
type connListener struct{ net.Listener }

func (l connListener) Accept() (net.Conn, error) {
	nc, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return NewConn(nc), nil
}

// newTLSHub starts a hub behind TLS on loopback, as the program does.
func newTLSHub(t *testing.T, cfg Config) (*Hub, *httptest.Server) {
	t.Helper()
	if cfg.Store == nil {
		cfg.Store = new(Memory)
	}
	h, err := New(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	srv := httptest.NewUnstartedServer(h)
	srv.Listener = connListener{srv.Listener}
	srv.StartTLS()
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), time.Millisecond)
		defer cancel()
		_ = h.Shutdown(ctx) // the error is that clients were disconnected
		srv.Close()
	})
	return h, srv
}

// testContext returns a context that bounds the waits of a test on a real network.
func testContext(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	t.Cleanup(cancel)
	return ctx
}

func dialTLS(t *testing.T, srv *httptest.Server) *websocket.Conn {
	t.Helper()
	ws, _, err := websocket.Dial(testContext(t), "wss"+strings.TrimPrefix(srv.URL, "https"),
		&websocket.DialOptions{HTTPClient: srv.Client()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ws.CloseNow() })
	return ws
}

func readMessage(ctx context.Context, t *testing.T, ws *websocket.Conn) message {
	t.Helper()
	_, data, err := ws.Read(ctx)
	if err != nil {
		t.Fatalf("reading: %v", err)
	}
	var m message
	if err := json.Unmarshal(data, &m); err != nil {
		t.Fatalf("a message is not JSON: %q", data)
	}
	return m
}

// TestBlockedOverTLS checks that a client whose kernel buffers are full delays no other client, and is sent
// the newest value when it reads again.
func TestBlockedOverTLS(t *testing.T) {
	ctx := testContext(t)
	h, srv := newTLSHub(t, Config{})
	blocked := dialTLS(t, srv)
	acting := dialTLS(t, srv)
	var newest int64
	for h.Stats().Blocked == 0 {
		if err := acting.Write(ctx, websocket.MessageText, []byte(plus)); err != nil {
			t.Fatal(err)
		}
		for want := newest + 1; newest < want; {
			if m := readMessage(ctx, t, acting); m.Type == "state" {
				newest = m.Value
			}
		}
	}
	t.Logf("blocked after %d values", newest)
	for {
		if m := readMessage(ctx, t, blocked); m.Type == "state" && m.Value == newest {
			break
		}
	}
}

// TestClientsLeaveAtOnce checks that clients that disconnect right after the handshake, as scanners do, are
// not counted afterwards.
func TestClientsLeaveAtOnce(t *testing.T) {
	h, srv := newTLSHub(t, Config{Shards: 1})
	config := srv.Client().Transport.(*http.Transport).TLSClientConfig
	var clients sync.WaitGroup
	for range 8 {
		clients.Go(func() {
			for range 50 {
				conn, err := tls.Dial("tcp", srv.Listener.Addr().String(), config)
				if err != nil {
					t.Error(err)
					return
				}
				_, err = conn.Write([]byte(rawHandshake))
				if err == nil {
					_, err = io.ReadFull(conn, make([]byte, len("HTTP/1.1 101")))
				}
				if err != nil {
					t.Error(err)
				}
				conn.Close()
			}
		})
	}
	clients.Wait()
	ws := dialTLS(t, srv)
	for ctx := testContext(t); ; {
		if m := readMessage(ctx, t, ws); m.Type == "users" && m.Count == 1 {
			break
		}
	}
	if got := h.Stats().Users; got != 1 {
		t.Errorf("Stats().Users = %d, want 1", got)
	}
}

// rawHandshake is the request of a valid opening handshake.
const rawHandshake = "GET / HTTP/1.1\r\nHost: hub.test\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n" +
	"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"

// maskedFrame returns a text frame from a client, with a masking key of zeros.
func maskedFrame(payload string) []byte {
	f := appendFrame(nil, opText, []byte(payload))
	head := len(f) - len(payload)
	f[1] |= 0x80
	return append(append(append([]byte{}, f[:head]...), 0, 0, 0, 0), payload...)
}

// TestFramesRightAfterHandshake checks that frames that arrive together with the opening handshake are not
// lost, however many they are. The last of them is for the library.
func TestFramesRightAfterHandshake(t *testing.T) {
	for _, n := range []int{1, 2, 60} {
		_, srv := newTLSHub(t, Config{})
		conn, err := tls.Dial("tcp", srv.Listener.Addr().String(), srv.Client().Transport.(*http.Transport).TLSClientConfig)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		conn.SetDeadline(time.Now().Add(time.Minute))
		frames := append(bytes.Repeat(maskedFrame(plus), n-1), maskedFrame(`{"action":"plus","by":10}`)...)
		if _, err := conn.Write(append([]byte(rawHandshake), frames...)); err != nil {
			t.Fatal(err)
		}
		br := bufio.NewReader(conn)
		resp, err := http.ReadResponse(br, nil)
		if err != nil || resp.StatusCode != http.StatusSwitchingProtocols {
			t.Fatalf("response %v, %v, want 101", resp, err)
		}
		want := fmt.Sprintf(`{"type":"state","value":%d}`, n)
		var got []byte
		for !strings.HasSuffix(string(got), want) {
			b, err := br.ReadByte()
			if err != nil {
				t.Fatalf("%d frames: read %q, then %v, want it to end in %s", n, got, err, want)
			}
			got = append(got, b)
		}
	}
}

// TestTooBigOverTLS checks that the close frame reaches a peer that is still sending.
func TestTooBigOverTLS(t *testing.T) {
	_, srv := newTLSHub(t, Config{})
	ws := dialTLS(t, srv)
	ctx := testContext(t)
	_ = ws.Write(ctx, websocket.MessageText, make([]byte, 1<<20)) // may fail when the connection closes
	for {
		_, _, err := ws.Read(ctx)
		if err == nil {
			continue // users, state
		}
		if got := websocket.CloseStatus(err); got != websocket.StatusMessageTooBig {
			t.Errorf("connection ended with %v, want status code 1009", err)
		}
		return
	}
}

// TestForeignListener checks that the hub refuses a connection that is not a Conn, logs an error, and does not
// hang.
func TestForeignListener(t *testing.T) {
	lines := make(chanWriter, 1)
	h, err := New(t.Context(), Config{
		Store:  new(Memory),
		Logger: slog.New(slog.NewTextHandler(lines, nil)),
	})
	if err != nil {
		t.Fatal(err)
	}
	srv := httptest.NewUnstartedServer(h)
	srv.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, 0) // the library tries to answer on the closed connection
	srv.Start()
	conn, err := net.Dial("tcp", srv.Listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(time.Minute))
	if _, err := conn.Write([]byte(rawHandshake)); err != nil {
		t.Fatal(err)
	}
	if _, err := io.Copy(io.Discard, conn); err != nil {
		t.Errorf("reading to the end: %v", err)
	}
	if line := <-lines; !strings.Contains(line, errNotOurs.Error()) {
		t.Errorf("log %q does not say %q", line, errNotOurs)
	}
	srv.Close()
	if err := h.Shutdown(t.Context()); err != nil {
		t.Errorf("Shutdown = %v", err)
	}
}

// chanWriter sends on the channel what is written to it.
type chanWriter chan string

func (w chanWriter) Write(p []byte) (int, error) {
	w <- string(p)
	return len(p), nil
}
