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
			left    time.Duration // until ctx ends; 0 means never
			want    drainPlan
		}{
			{0, 10 * time.Second, drainPlan{0, 2 * time.Second}},
			{25, 10 * time.Second, drainPlan{0, 2 * time.Second}}, // they fit one slice
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
				t.Errorf("planDrain(%v, %d) = %+v, want %+v", tt.left, tt.clients, got, tt.want)
			}
			cancel()
		}
	})
}

// TestDrainInSlices checks that many clients are closed in slices, evenly over the planned time, even if some
// clients leave by themselves meanwhile. A client is served until its turn.
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
				// Closing lags by at most one slice for each shard, and is never early.
				slice := int(math.Ceil(clients * float64(drainSlice*3/2) / float64(spread)))
				if open < clients/2 || open > clients/2+slice {
					t.Errorf("%d of %d clients are open after half of the time, want half, or at most %d more", open, clients, slice)
				}
				if got := h.Stats().Clients; got != open {
					t.Errorf("Stats().Clients = %d, want %d, the clients that are open", got, open)
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
						t.Errorf("while the hub shuts down, a client received %q, want the new state", got)
					}
				}

				if err := <-down; err != nil {
					t.Errorf("Shutdown = %v", err)
				}
				if took := time.Since(began); took > spread || took < spread-spread/clients {
					t.Errorf("Shutdown took %v, want %v, or less by at most one client's turn", took, spread)
				}
				at := map[time.Duration]int{}
				for _, p := range staying {
					p.wantClosed(websocket.StatusServiceRestart)
					at[p.end.Sub(began)]++
				}
				for when, n := range at {
					if n > slice {
						t.Errorf("%d clients were closed together after %v, want at most %d", n, when, slice)
					}
				}
				if want := int(spread / 2 / (drainSlice * 3 / 2)); len(at) < want {
					t.Errorf("%d slices in the second half, want at least %d", len(at), want)
				}
			})
		})
	}
}

// TestJoinWhileDraining checks that a client is closed that joins during a shutdown, because its opening
// handshake began before.
func TestJoinWhileDraining(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newFakeHub(t, Config{Shards: 1})
		first := h.join()
		s := h.shards[0]
		for range 100 { // so that the shutdown takes some time
			h.join()
		}
		down := make(chan error, 1)
		go func() { down <- h.Shutdown(t.Context()) }()
		synctest.Wait()
		first.take()
		_, server := fakePipe(1 << 10)
		late := &client{hub: h.Hub, owner: s, index: -1, first: watch{counter: h.standard}, wire: clientWire{Conn: server, sock: server}}
		server.neverWait()
		s.members <- membership{late, false}
		synctest.Wait()
		if got := string(server.out.data); got != string(appendClose(nil, codeStopping, textStopping)) {
			t.Errorf("the late client was sent %q, want only the close frame", got)
		}
		s.members <- membership{late, true}
		if err := <-down; err != nil {
			t.Errorf("Shutdown = %v", err)
		}
		first.wantClosed(websocket.StatusServiceRestart)
	})
}

// TestShutdownWithoutAnswer checks that a peer that does not answer its close frame is disconnected after the
// planned time, or when the context of Shutdown ends.
func TestShutdownWithoutAnswer(t *testing.T) {
	for _, tt := range []struct {
		name  string
		grace time.Duration // until ctx's deadline; 0 means none
		stop  time.Duration // when ctx is canceled; 0 means never
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
				ws, _ := h.dial() // it does not read
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
