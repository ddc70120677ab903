package hub

import (
	"context"
	"errors"
	"math/rand/v2"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// fakeServer holds the data of several fakeShared.
type fakeServer struct {
	mu sync.Mutex
	// Guarded by mu.
	now     Snapshot
	clients map[*fakeShared]int
	all     []*fakeShared
	away    bool
}

// fakeShared is a [Shared] on fake time. Calls and news take random times, and some news are lost. It also reads
// the server every second, which makes up for lost news.
type fakeShared struct {
	srv *fakeServer
	rng *rand.Rand // Guarded by mu.
	mu  sync.Mutex
	ch  chan News
	own uint64
	end chan struct{}
}

func (srv *fakeServer) join(seed uint64) *fakeShared {
	s := &fakeShared{srv: srv, rng: rand.New(rand.NewPCG(seed, 7)), ch: make(chan News, 1), end: make(chan struct{})}
	srv.mu.Lock()
	srv.all = append(srv.all, s)
	srv.mu.Unlock()
	go func() {
		for {
			select {
			case <-time.After(time.Second):
				s.tell()
			case <-s.end:
				return
			}
		}
	}()
	return s
}

func (s *fakeShared) delay() time.Duration {
	s.mu.Lock()
	defer s.mu.Unlock()
	return time.Duration(s.rng.Int64N(int64(8 * time.Millisecond)))
}

// tell sends the server's data as news. It leaves out a snapshot that is no newer than this hub's last commit.
func (s *fakeShared) tell() {
	s.srv.mu.Lock()
	n := News{Snapshot: s.srv.now, Hubs: len(s.srv.all)}
	for o, c := range s.srv.clients {
		if o != s {
			n.Others += c
		}
	}
	if s.srv.away {
		n.Err = errors.New("away")
	}
	s.srv.mu.Unlock()
	s.mu.Lock()
	defer s.mu.Unlock()
	if n.Snapshot.Version <= s.own {
		n.Snapshot = Snapshot{}
	}
	select {
	case <-s.ch:
	default:
	}
	s.ch <- n
}

// tellOthers makes the other hubs call tell, after random times. Some are left out: their news are lost.
func (s *fakeShared) tellOthers() {
	for _, o := range s.srv.all {
		s.mu.Lock()
		lost := s.rng.IntN(5) == 0
		s.mu.Unlock()
		if o != s && !lost {
			time.AfterFunc(s.delay(), o.tell)
		}
	}
}

func (s *fakeShared) Load(context.Context) (Snapshot, error) {
	s.srv.mu.Lock()
	defer s.srv.mu.Unlock()
	if s.srv.away {
		return Snapshot{}, errors.New("away")
	}
	return s.srv.now, nil
}

func (s *fakeShared) Apply(_ context.Context, delta int64) (Snapshot, error) {
	time.Sleep(s.delay())
	s.srv.mu.Lock()
	if s.srv.away {
		s.srv.mu.Unlock()
		return Snapshot{}, errors.New("away")
	}
	next, err := s.srv.now.Add(delta)
	if err == nil {
		s.srv.now = next
	}
	s.srv.mu.Unlock()
	if err == nil {
		s.mu.Lock()
		s.own = next.Version
		s.mu.Unlock()
		s.tellOthers()
	}
	time.Sleep(s.delay()) // the other hubs continue meanwhile
	return next, err
}

func (s *fakeShared) News() <-chan News { return s.ch }

func (s *fakeShared) Announce(clients int) {
	s.srv.mu.Lock()
	s.srv.clients[s] = clients
	s.srv.mu.Unlock()
	s.tellOthers()
}

func (s *fakeShared) Pace() time.Duration { return 5 * time.Millisecond }

// TestMergingContractShared checks the promise about merging for several hubs that share a store. The values that
// a client receives are in the store's order. The last of them is the newest value, which includes all actions.
func TestMergingContractShared(t *testing.T) {
	for seed := range uint64(50) {
		synctest.Test(t, func(t *testing.T) { mergingContractShared(t, seed) })
		if t.Failed() {
			t.Fatalf("seed %d", seed)
		}
	}
}

func mergingContractShared(t *testing.T, seed uint64) {
	rng := rand.New(rand.NewPCG(seed, 0))
	srv := &fakeServer{now: Snapshot{Epoch: 1}, clients: map[*fakeShared]int{}}
	hubs := make([]*fakeHub, 2+rng.IntN(3))
	var all, clients []*series
	for i := range hubs {
		store := srv.join(seed*10 + uint64(i))
		defer close(store.end)
		hubs[i] = newFakeHub(t, Config{Store: store, Shards: 1 + rng.IntN(2)})
		defer hubs[i].stop()
		hubs[i].ln.size = 150
		for range 1 + rng.IntN(3) {
			clients = append(clients, newSeries(hubs[i]))
		}
	}
	all = append(all, clients...)
	// All actions are plus, so the store's order is the order of the values.
	sent := int64(0)
	for range 200 {
		c := clients[rng.IntN(len(clients))]
		switch n := rng.IntN(20); {
		case n < 15:
			if c.act(plus, plus, rng) {
				sent++
			}
		case n < 17:
			c.stall()
		default:
			c.resume()
		}
		time.Sleep(time.Duration(rng.IntN(3000)) * time.Microsecond)
	}
	for _, c := range all {
		c.resume()
	}
	time.Sleep(3 * time.Second)
	synctest.Wait()
	for i, h := range hubs {
		if s := h.Stats(); s.Value != sent || s.Users != len(clients) || s.Hubs != len(hubs) {
			t.Errorf("hub %d: value %d, %d users, %d hubs, want %d, %d, %d", i, s.Value, s.Users, s.Hubs, sent, len(clients), len(hubs))
		}
	}
	for i, c := range all {
		values := c.values()
		for j := 1; j < len(values); j++ {
			if values[j] <= values[j-1] {
				t.Errorf("client %d received %d, then %d, want growing values", i, values[j-1], values[j])
			}
		}
		if !c.open() || len(values) == 0 || values[len(values)-1] != sent {
			t.Errorf("client %d received %v, want it to end with %d", i, values, sent)
		}
	}
}

// TestSharedStoreAtStart checks a hub that cannot reach its store at the start: it refuses clients until it knows
// the value. When the store later begins a new epoch, the hub publishes its value.
func TestSharedStoreAtStart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		srv := &fakeServer{now: Snapshot{Epoch: 1, Version: 9, Value: 42}, clients: map[*fakeShared]int{}, away: true}
		store := srv.join(1)
		defer close(store.end)
		h := newFakeHub(t, Config{Store: store})
		defer h.stop()
		if err := h.Ready(); err == nil || !h.Stats().Unknown {
			t.Errorf("Ready = %v, Stats = %+v while the store is away", err, h.Stats())
		}
		if reason, _ := h.admit(&client{hub: h.Hub}); reason == "" {
			t.Error("a client is admitted while the value is unknown")
		}
		srv.mu.Lock()
		srv.away = false
		srv.mu.Unlock()
		time.Sleep(2 * time.Second)
		a := h.join()
		a.want("users 1", "state 42")
		if err := h.Ready(); err != nil {
			t.Errorf("Ready = %v", err)
		}
		srv.mu.Lock()
		srv.now = Snapshot{Epoch: 2, Version: 1, Value: 3}
		srv.mu.Unlock()
		store.mu.Lock()
		store.own = 0
		store.mu.Unlock()
		time.Sleep(time.Second)
		a.want("state 3")
		if s := h.Stats(); s.Epoch != 2 || s.Version != 1 {
			t.Errorf("Stats = %+v, want the new epoch", s)
		}
	})
}

// TestPace checks that actions that arrive within Pace form one batch, and that the first of them does not wait.
func TestPace(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		srv := &fakeServer{now: Snapshot{Epoch: 1}, clients: map[*fakeShared]int{}}
		store := &instantStore{fakeShared: srv.join(1)}
		defer close(store.end)
		h := newFakeHub(t, Config{Store: store})
		defer h.stop()
		a := h.join()
		a.take()
		a.send(plus)
		a.want("state 1") // at once
		a.send(plus)
		a.send(plus)
		a.want()
		time.Sleep(5 * time.Millisecond)
		a.want("state 2", "state 3")
		if store.applied != 2 {
			t.Errorf("the store was called %d times, want 2", store.applied)
		}
	})
}

// instantStore is a fakeShared whose calls take no time.
type instantStore struct {
	*fakeShared
	applied int
}

func (s *instantStore) Apply(_ context.Context, delta int64) (Snapshot, error) {
	s.applied++
	next, err := s.srv.now.Add(delta)
	s.srv.now = next
	s.own = next.Version
	return next, err
}
