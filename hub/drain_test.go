package hub

import (
	"context"
	"errors"
	"fmt"
	"math"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/coder/websocket"
)

func TestPlanDrain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for _, tt := range []struct {
			clients int
			left    time.Duration // until ctx ends; 0 is that it does not
			want    drainPlan
		}{
			{0, 10 * time.Second, drainPlan{0, 2 * time.Second}},
			{25, 10 * time.Second, drainPlan{0, 2 * time.Second}}, // fit one slice
			{26, 10 * time.Second, drainPlan{52 * time.Millisecond, 2 * time.Second}},
			{1000, 10 * time.Second, drainPlan{2 * time.Second, 2 * time.Second}},
			{100_000, 10 * time.Second, drainPlan{7 * time.Second, 2 * time.Second}},
			{100_000, time.Minute, drainPlan{42 * time.Second, closeTimeout}},
			{100_000, time.Millisecond, drainPlan{0, 200 * time.Microsecond}},
			{100_000, -time.Second, drainPlan{0, 0}},
			{1000, 0, drainPlan{2 * time.Second, closeTimeout}},
		} {
			ctx, cancel := context.WithCancel(t.Context())
			if tt.left != 0 {
				ctx, cancel = context.WithDeadline(t.Context(), time.Now().Add(tt.left))
			}
			if got := planDrain(ctx, tt.clients); got != tt.want {
				t.Errorf("planDrain of %d clients in %v = %+v, want %+v", tt.clients, tt.left, got, tt.want)
			}
			cancel()
		}
	})
}

// Many clients are closed one slice after the other, evenly over the time that there is for it, though some
// leave meanwhile by themselves. Those that are left are served.
func TestDrainInSlices(t *testing.T) {
	const clients, left = 600, time.Second
	const spread = left * 7 / 10
	for _, shards := range []int{1, 2} {
		t.Run(fmt.Sprintf("shards=%d", shards), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				h := newFakeHub(t, Config{Shards: shards})
				peers := make([]*peer, clients)
				for i := range peers {
					peers[i] = h.join()
				}
				began := time.Now()
				ctx, cancel := context.WithTimeout(t.Context(), left)
				defer cancel()
				down := make(chan error, 1)
				go func() { down <- h.Shutdown(ctx) }()

				time.Sleep(spread / 2)
				synctest.Wait()
				open := 0
				for _, p := range peers {
					if !p.closed() {
						open++
					}
				}
				// Behind by one slice of each shard at most, and never ahead.
				slice := int(math.Ceil(clients * float64(drainSlice*3/2) / float64(spread)))
				if open < clients/2 || open > clients/2+slice {
					t.Errorf("%d of %d clients are open after half of the time, want half, and %d more at most", open, clients, slice)
				}
				if got := h.Stats().Clients; got != open {
					t.Errorf("%d clients, want the %d that are open", got, open)
				}
				var staying []*peer
				for i, p := range peers {
					switch {
					case p.closed():
						p.wantClosed(websocket.StatusServiceRestart)
					case i%3 == 0:
						p.ws.CloseNow()
					default:
						staying = append(staying, p)
					}
				}
				for _, p := range staying {
					p.take()
				}
				staying[0].send(plus)
				for _, p := range staying {
					if got := p.take(); !slices.Contains(got, "state 1") {
						t.Errorf("while the hub is shut down a client received %q, want the new state", got)
					}
				}

				if err := <-down; err != nil {
					t.Errorf("Shutdown = %v", err)
				}
				if took := time.Since(began); took > spread || took < spread-spread/clients {
					t.Errorf("Shutdown took %v, want %v less the turn of one client at most", took, spread)
				}
				at := map[time.Duration]int{}
				for _, p := range staying {
					p.wantClosed(websocket.StatusServiceRestart)
					at[p.end.Sub(began)]++
				}
				for when, n := range at {
					if n > slice {
						t.Errorf("%d clients were closed at once after %v, want %d at most", n, when, slice)
					}
				}
				if want := int(spread / 2 / (drainSlice * 3 / 2)); len(at) < want {
					t.Errorf("%d slices in the second half, want %d at least", len(at), want)
				}
			})
		})
	}
}

// Who joins while the hub is shut down, its handshake having begun before, is closed, too.
func TestJoinWhileDraining(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newFakeHub(t, Config{Shards: 1})
		first := h.join()
		s := h.shards[0]
		for range 100 { // so that it takes a while
			h.join()
		}
		down := make(chan error, 1)
		go func() { down <- h.Shutdown(t.Context()) }()
		synctest.Wait()
		first.take()
		_, server := fakePipe(1 << 10)
		late := &client{hub: h.Hub, owner: s, index: -1, wire: clientWire{Conn: server, sock: server}}
		server.neverWait()
		s.members <- membership{late, false}
		synctest.Wait()
		if got := string(server.out.data); got != string(appendClose(nil, codeStopping, textStopping)) {
			t.Errorf("the late client was sent %q, want the close frame alone", got)
		}
		s.members <- membership{late, true}
		if err := <-down; err != nil {
			t.Errorf("Shutdown = %v", err)
		}
		first.wantClosed(websocket.StatusServiceRestart)
	})
}

// A peer that does not answer a close frame ends by itself, or with Shutdown's context.
func TestShutdownWithoutAnswer(t *testing.T) {
	for _, tt := range []struct {
		name  string
		grace time.Duration // until ctx's deadline; 0 is none
		stop  time.Duration // when ctx is canceled; 0 is not
		want  time.Duration
		err   error
	}{
		{"in time", 10 * time.Second, 0, 2 * time.Second, nil},
		{"plenty of time", time.Hour, 0, closeTimeout, nil},
		{"no limit", 0, 0, closeTimeout, nil},
		{"cut off", 0, closeTimeout - 1, closeTimeout - 1, context.Canceled},
		{"no time", -time.Second, 0, 0, context.DeadlineExceeded},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				h := newFakeHub(t, Config{})
				ws, _ := h.dial() // nobody reads
				defer ws.CloseNow()
				synctest.Wait()
				began := time.Now()
				ctx, cancel := context.WithCancel(t.Context())
				if tt.grace != 0 {
					ctx, cancel = context.WithTimeout(t.Context(), tt.grace)
				}
				defer cancel()
				if tt.stop != 0 {
					time.AfterFunc(tt.stop, cancel)
				}
				if err := h.Shutdown(ctx); !errors.Is(err, tt.err) {
					t.Errorf("Shutdown = %v, want %v", err, tt.err)
				}
				if took := time.Since(began); took != tt.want {
					t.Errorf("Shutdown took %v, want %v", took, tt.want)
				}
			})
		})
	}
}
