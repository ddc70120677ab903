package hub

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/coder/websocket"
)

// TestActAndLeave checks that each action counts whose client leaves at once, however it leaves. A busy room
// makes the hub write to clients that have just left.
func TestActAndLeave(t *testing.T) {
	times := int64(400)
	if testing.Short() {
		times = 40
	}
	ping, act, bye := sent(finBit|opPing, ""), sent(finBit|opText, plus), closing(1000, "")
	for _, tt := range []struct {
		name  string
		sends [][]byte // each in a TLS record of its own
		reset bool     // the connection ends with a reset, even if the peer has read all
	}{
		{"close frame", [][]byte{act, bye}, false},
		{"no close frame", [][]byte{act}, false},
		{"reset", [][]byte{act}, true},
		{"ping and reset", [][]byte{ping, act}, true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			h, srv := newTLSHub(t, Config{})
			stop := keepBusy(t, srv)
			for range times {
				tcp, conn := dialUpgraded(t, srv)
				for _, frame := range tt.sends {
					if _, err := conn.Write(frame); err != nil {
						t.Fatal(err)
					}
				}
				if tt.reset {
					_ = tcp.SetLinger(0) // fails only on a closed connection
				}
				tcp.Close()
			}
			waitFor(t, "only the busy client", func() bool { return h.admittedNow() == 1 })
			others := stop()
			waitEmpty(t, h)
			// All actions are on their way to the store.
			for deadline := time.Now().Add(10 * time.Second); h.Stats().Value < others+times && time.Now().Before(deadline); {
				time.Sleep(time.Millisecond)
			}
			if got := h.Stats().Value - others; got != times {
				t.Errorf("%d actions count, want %d", got, times)
			}
			closes := h.events.Counts().Closes
			if bytes.Equal(tt.sends[len(tt.sends)-1], bye) && closes[ReasonPeer] != uint64(times)+1 {
				t.Errorf("Counts().Closes = %v, want %d for %q", closes, times+1, ReasonPeer)
			}
		})
	}
}

// keepBusy connects a client that acts all the time. stop closes it, and returns the number of its actions.
func keepBusy(t *testing.T, srv *httptest.Server) (stop func() int64) {
	t.Helper()
	ctx := testContext(t)
	ws := dialTLS(t, srv)
	acting, cancel := context.WithCancel(ctx)
	acted := int64(0)
	var reads, acts sync.WaitGroup
	reads.Go(func() {
		for {
			if _, _, err := ws.Read(ctx); err != nil {
				return
			}
		}
	})
	acts.Go(func() {
		for ; acting.Err() == nil; acted++ {
			if err := ws.Write(ctx, websocket.MessageText, []byte(plus)); err != nil {
				t.Errorf("the busy client: %v", err)
				return
			}
			time.Sleep(20 * time.Microsecond)
		}
	})
	return func() int64 {
		cancel()
		acts.Wait()
		_ = ws.Close(websocket.StatusNormalClosure, "") // the peer's answer does not matter
		reads.Wait()
		return acted
	}
}

// dialUpgraded connects a client and returns its connections after the opening handshake.
func dialUpgraded(t *testing.T, srv *httptest.Server) (*net.TCPConn, *tls.Conn) {
	t.Helper()
	tcp, err := net.Dial("tcp", srv.Listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	config := srv.Client().Transport.(*http.Transport).TLSClientConfig.Clone()
	config.ServerName = "example.com" // as in the certificate of httptest
	conn := tls.Client(tcp, config)
	conn.SetDeadline(time.Now().Add(time.Minute))
	if _, err := conn.Write([]byte(rawHandshake)); err != nil {
		t.Fatal(err)
	}
	resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil || resp.StatusCode != http.StatusSwitchingProtocols {
		t.Fatalf("response %v, %v, want 101", resp, err)
	}
	return tcp.(*net.TCPConn), conn
}

// TestLostClient checks what is read from a client after a write to it has failed, and when its connection
// ends. The fake connection stays open for reading, so that more can arrive than after a real reset.
func TestLostClient(t *testing.T) {
	padded := sent(finBit|opText, plus+fmt.Sprintf("%*s", MaxMessage-len(plus), ""))
	for _, tt := range []struct {
		name   string
		err    error // of the write
		send   []byte
		counts int64 // actions that count
		users  int   // after send
		after  time.Duration
		reason Reason
	}{
		{"nothing", syscall.EPIPE, nil, 0, 2, lostTimeout, ReasonGone},
		{"an action", syscall.EPIPE, sent(finBit|opText, plus), 1, 1, lostTimeout, ReasonGone},
		{"after a reset", syscall.ECONNRESET, sent(finBit|opText, plus), 1, 1, lostTimeout, ReasonGone},
		{"a ping, an action", syscall.EPIPE, join(sent(finBit|opPing, ""), sent(finBit|opText, plus)), 1, 1, lostTimeout, ReasonGone},
		{"an action, a close frame", syscall.EPIPE, join(sent(finBit|opText, plus), closing(1000, "")), 1, 1, 0, ReasonPeer},
		{"a close frame, an action", syscall.EPIPE, join(closing(1000, ""), sent(finBit|opText, plus)), 0, 1, 0, ReasonPeer},
		{"too many bytes", syscall.EPIPE, bytes.Repeat(padded, maxLostRead/len(padded)+1), int64(maxLostRead / len(padded)), 1, 0, ReasonGone},
		{"rubbish", syscall.EPIPE, bytes.Repeat(sent(finBit|opText, "x"), maxNotActions+1), 0, 1, 0, ReasonRubbish},
		{"what RFC 6455 forbids, an action", syscall.EPIPE, join(sent(finBit|0xf, ""), sent(finBit|opText, plus)), 0, 1, 0, ReasonProtocol},
		{"an action to a client that does not read", errTailFull, sent(finBit|opText, plus), 0, 1, 0, ReasonDeaf},
		{"an action to a client whose system vanished", syscall.ETIMEDOUT, sent(finBit|opText, plus), 0, 1, 0, ReasonSilent},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				h := newFakeHub(t, Config{})
				defer h.stop()
				_, conn := h.dial()
				other := h.join()
				server := conn.(*fakeConn).peer
				server.failWrites(tt.err)
				began := time.Now()
				other.send(plus) // the hub writes to both clients
				_, _ = conn.Write(tt.send)
				synctest.Wait()
				if got := h.Stats(); got.Value != 1+tt.counts || got.Users != tt.users {
					t.Errorf("value %d, users %d, want %d and %d", got.Value, got.Users, 1+tt.counts, tt.users)
				}
				if tt.after > 0 {
					time.Sleep(tt.after - 1)
					synctest.Wait()
					if n := h.admittedNow(); n != 2 {
						t.Errorf("%d clients 1 ns before the end, want 2", n)
					}
					other.send(plus) // another failed write does not put off the end
					time.Sleep(time.Nanosecond)
					synctest.Wait()
				}
				if n := h.admittedNow(); n != 1 || time.Since(began) != tt.after {
					t.Errorf("%d clients after %v, want 1 after %v", n, time.Since(began), tt.after)
				}
				if got := h.Stats().Users; got != 1 {
					t.Errorf("%d users at the end, want 1", got)
				}
				for reason, n := range h.events.Counts().Closes {
					if n > 1 || (n == 1) != (reason == tt.reason) {
						t.Errorf("Counts().Closes[%q] = %d; the reason is %q", reason, n, tt.reason)
					}
				}
			})
		})
	}
}

// TestShutdownWithLostClient checks that a lost client does not hold up a shutdown.
func TestShutdownWithLostClient(t *testing.T) {
	for _, lostBefore := range []bool{true, false} {
		synctest.Test(t, func(t *testing.T) {
			h := newFakeHub(t, Config{})
			_, conn := h.dial()
			synctest.Wait()
			conn.(*fakeConn).peer.failWrites(syscall.EPIPE)
			if lostBefore {
				if _, err := conn.Write(sent(finBit|opPing, "")); err != nil { // the pong fails
					t.Fatal(err)
				}
				synctest.Wait()
			}
			ctx, cancel := context.WithTimeout(t.Context(), time.Second)
			defer cancel()
			began := time.Now()
			if err := h.Shutdown(ctx); err != nil {
				t.Errorf("Shutdown = %v", err)
			}
			if took := time.Since(began); took > time.Second/5 {
				t.Errorf("Shutdown took %v, want at most %v", took, time.Second/5)
			}
		})
	}
}
