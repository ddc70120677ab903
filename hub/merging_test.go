package hub

import (
	"context"
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/coder/websocket"
)

// TestMergingContract checks the promise about merging under random schedules of actions, stalls and
// reconnects, with a store that takes random times. The values that a connection receives are a subsequence of
// all values. The last of them is the newest value, which includes the connection's own actions.
func TestMergingContract(t *testing.T) {
	const seeds = 100
	merged := 0
	for seed := range uint64(seeds) {
		synctest.Test(t, func(t *testing.T) { merged += mergingContract(t, seed) })
		if t.Failed() {
			t.Fatalf("seed %d", seed)
		}
	}
	if merged == 0 {
		t.Error("no value was merged, so the test has shown nothing")
	}
	t.Logf("%d values merged", merged)
}

// mergingContract runs one schedule and returns how many values were merged.
func mergingContract(t *testing.T, seed uint64) (merged int) {
	rng := rand.New(rand.NewPCG(seed, 0))
	h := newFakeHub(t, Config{
		// Slow enough that actions pile up, but fast enough that a batch never has more than
		// recentValues actions: the observer has to be sent each value.
		Store:  &randomStore{rng: rand.New(rand.NewPCG(seed, 1)), max: 8 * time.Millisecond},
		Shards: 1 + rng.IntN(3),
	})
	defer h.stop()
	// The observer always reads and is never blocked, so it receives every value.
	observer := newSeries(h)
	h.ln.size = 150 // a client that stalls is blocked after about five messages
	clients := make([]*series, 2+rng.IntN(5))
	for i := range clients {
		clients[i] = newSeries(h)
	}
	all := append([]*series{observer}, clients...)
	first := len(clients)
	sent := 0
	for range 300 {
		i := rng.IntN(len(clients))
		c := clients[i]
		switch n := rng.IntN(20); {
		case n < 14:
			if c.act(plus, minus, rng) {
				sent++
			}
		case n < 16:
			c.stall()
		case n < 19:
			c.resume()
		default:
			c.ws.CloseNow()
			clients[i] = newSeries(h)
			all = append(all, clients[i])
		}
		time.Sleep(time.Duration(rng.IntN(2000)) * time.Microsecond)
	}
	for _, c := range all {
		c.resume()
	}
	time.Sleep(time.Second) // less than stallTimeout, so no client is disconnected
	synctest.Wait()

	history := observer.values()
	if len(history) != sent+1 {
		t.Errorf("the observer received %d values, want one more than the %d actions", len(history), sent)
	}
	for i := 1; i < len(history); i++ {
		if d := history[i] - history[i-1]; d != 1 && d != -1 {
			t.Errorf("the observer received %d, then %d, want steps of 1", history[i-1], history[i])
		}
	}
	counts := h.Counts()
	if n := uint64(sent); counts.Actions["counted"] != n || counts.Received != n || counts.Joined != uint64(len(all)) {
		t.Errorf("counted %d, received %d, joined %d, want %d, %d and %d", counts.Actions["counted"], counts.Received, counts.Joined, n, n, len(all))
	}
	newest := h.Stats().Value
	for i, c := range all {
		values := c.values()
		pos := 0
		for j, v := range values {
			for pos < len(history) && history[pos] != v {
				pos++
				if j > 0 {
					merged++
				}
			}
			if pos == len(history) {
				t.Errorf("connection %d received %v, want a subsequence of %v", i, values, history)
				break
			}
			pos++
		}
		if c.open() && (len(values) == 0 || values[len(values)-1] != newest) {
			t.Errorf("connection %d received %v, want it to end with %d", i, values, newest)
		}
	}
	// A client that was connected all the time has received each value, or the value was merged.
	// When the other clients joined cannot be seen from outside.
	missed := 0
	for _, c := range all[:1+first] {
		if c.open() {
			missed += len(history) - len(c.values())
		}
	}
	if counts.Merged < uint64(missed) {
		t.Errorf("Counts().Merged = %d, want at least %d", counts.Merged, missed)
	}
	if got := h.Stats().Behind; got != 0 {
		t.Errorf("Stats().Behind = %d, want 0", got)
	}
	for _, c := range clients {
		if !c.open() {
			t.Error("a client that stalled for less than stallTimeout was disconnected")
		}
	}
	return merged
}

// randomStore takes a random time, up to max, for each commit.
type randomStore struct {
	Memory
	rng *rand.Rand // only commitLoop uses it
	max time.Duration
}

func (s *randomStore) Apply(ctx context.Context, delta int64) (Snapshot, error) {
	time.Sleep(time.Duration(s.rng.Int64N(int64(s.max))))
	return s.Memory.Apply(ctx, delta)
}

// series is a client that records the values that it receives. It reads except while it stalls.
type series struct {
	ws *websocket.Conn

	mu      sync.Mutex
	resumed *sync.Cond
	stalled bool
	got     []int64
	err     error
}

func newSeries(h *fakeHub) *series { return newSeriesAt(h, "/") }

func newSeriesAt(h *fakeHub, path string) *series {
	ws, _ := h.dialPath(path)
	s := &series{ws: ws}
	s.resumed = sync.NewCond(&s.mu)
	go s.read()
	synctest.Wait()
	return s
}

func (s *series) read() {
	for {
		s.mu.Lock()
		for s.stalled {
			s.resumed.Wait()
		}
		s.mu.Unlock()
		_, data, err := s.ws.Read(context.Background())
		s.mu.Lock()
		if err != nil {
			s.err = err
			s.mu.Unlock()
			return
		}
		var value int64
		if n, _ := fmt.Sscanf(string(data), `{"type":"state","value":%d}`, &value); n == 1 {
			s.got = append(s.got, value)
		}
		s.mu.Unlock()
	}
}

// act sends a or b, at random, and reports whether that succeeded.
func (s *series) act(a, b string, rng *rand.Rand) bool {
	if rng.IntN(2) == 0 {
		a = b
	}
	return s.ws.Write(context.Background(), websocket.MessageText, []byte(a)) == nil
}

func (s *series) stall() { s.setStalled(true) }

func (s *series) resume() { s.setStalled(false) }

func (s *series) setStalled(stalled bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.stalled = stalled
	s.resumed.Broadcast()
}

func (s *series) values() []int64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.got
}

func (s *series) open() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.err == nil
}
