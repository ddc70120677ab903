package hub

import (
	"context"
	"errors"
	"math/rand/v2"
	"net/netip"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// fakeServer holds the data of several fakeShared.
type fakeServer struct {
	mu sync.Mutex
	// Guarded by mu.
	counters map[string]*fakeRecord
	all      []*fakeShared
	away     bool
}

// fakeRecord is a counter of a fakeServer.
type fakeRecord struct {
	now     Snapshot
	clients map[*fakeShared]int
}

// newFakeServer returns a server with the default counter.
func newFakeServer(now Snapshot) *fakeServer {
	srv := &fakeServer{counters: make(map[string]*fakeRecord)}
	srv.recordLocked("").now = now
	return srv
}

func (srv *fakeServer) recordLocked(name string) *fakeRecord {
	r := srv.counters[name]
	if r == nil {
		r = &fakeRecord{now: Snapshot{Epoch: 1}, clients: make(map[*fakeShared]int)}
		srv.counters[name] = r
	}
	return r
}

// set sets the snapshot of the default counter.
func (srv *fakeServer) set(now Snapshot) {
	srv.mu.Lock()
	defer srv.mu.Unlock()
	srv.recordLocked("").now = now
}

// fakeShared is a [SharedCounters] on fake time. Calls and news take random times, and some news are lost. It also reads
// the server every second, which makes up for lost news.
type fakeShared struct {
	srv *fakeServer
	ch  chan News
	end chan struct{}

	mu sync.Mutex
	// Guarded by mu.
	rng     *rand.Rand
	watched map[string]Snapshot // the snapshot of this hub's last commit
}

func (srv *fakeServer) join(seed uint64) *fakeShared {
	s := &fakeShared{srv: srv, rng: rand.New(rand.NewPCG(seed, 7)), ch: make(chan News, 1), end: make(chan struct{}), watched: map[string]Snapshot{"": {}}}
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

// tell sends the server's data as news. It leaves out snapshots that are no newer than this hub's last commit.
func (s *fakeShared) tell() {
	s.srv.mu.Lock()
	defer s.srv.mu.Unlock()
	s.mu.Lock()
	defer s.mu.Unlock()
	n := News{Hubs: len(s.srv.all)}
	if s.srv.away {
		n.Err = errors.New("away")
	}
	for name, own := range s.watched {
		r := s.srv.recordLocked(name)
		of := CounterNews{Counter: name}
		if r.now.newerThan(own) && n.Err == nil {
			of.Snapshot = r.now
		}
		for o, c := range r.clients {
			if o != s {
				of.Others += c
			}
		}
		n.Counters = append(n.Counters, of)
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

func (s *fakeShared) Load(ctx context.Context) (Snapshot, error) { return s.LoadCounter(ctx, "") }

func (s *fakeShared) LoadCounter(_ context.Context, name string) (Snapshot, error) {
	s.srv.mu.Lock()
	defer s.srv.mu.Unlock()
	if s.srv.away {
		return Snapshot{}, errors.New("away")
	}
	return s.srv.recordLocked(name).now, nil
}

func (s *fakeShared) Apply(ctx context.Context, delta int64) (Snapshot, error) {
	changes := []Change{{Delta: delta}}
	s.ApplyAll(ctx, changes)
	return changes[0].Snapshot, changes[0].Err
}

func (s *fakeShared) ApplyAll(_ context.Context, changes []Change) {
	time.Sleep(s.delay())
	s.srv.mu.Lock()
	s.mu.Lock()
	for i := range changes {
		c := &changes[i]
		r := s.srv.recordLocked(c.Counter)
		switch {
		case s.srv.away:
			c.Err = errors.New("away")
		case c.Remove:
			c.Snapshot = Snapshot{Epoch: r.now.Epoch + 1}
		default:
			c.Snapshot, c.Err = c.Apply(r.now)
		}
		if c.Err == nil {
			r.now = c.Snapshot
			s.watched[c.Counter] = c.Snapshot
		}
	}
	s.mu.Unlock()
	s.srv.mu.Unlock()
	s.tellOthers()
	time.Sleep(s.delay()) // the other hubs continue meanwhile
}

func (s *fakeShared) List(context.Context, string, string, int) ([]Entry, error) { return nil, nil }

func (s *fakeShared) Len() int { return 0 }

func (s *fakeShared) News() <-chan News { return s.ch }

func (s *fakeShared) Watch(counter string) {
	s.mu.Lock()
	s.watched[counter] = Snapshot{}
	s.mu.Unlock()
	time.AfterFunc(s.delay(), s.tell)
}

func (s *fakeShared) Unwatch(counter string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.watched, counter)
}

func (s *fakeShared) Announce(counter string, clients int) {
	s.srv.mu.Lock()
	s.srv.recordLocked(counter).clients[s] = clients
	s.srv.mu.Unlock()
	s.tellOthers()
}

func (s *fakeShared) Pace(int) time.Duration { return 5 * time.Millisecond }

// TestMergingContractShared checks the promise about merging for several hubs that share a store of several counters. The
// values that a client receives are in the store's order. The last of them is the newest value, which includes all actions.
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
	srv := newFakeServer(Snapshot{Epoch: 1})
	names := []string{"", "likes", "door.a"}
	hubs := make([]*fakeHub, 2+rng.IntN(3))
	type watcher struct {
		*series
		hub, counter int
	}
	var clients []watcher
	for i := range hubs {
		store := srv.join(seed*10 + uint64(i))
		defer close(store.end)
		hubs[i] = newFakeHub(t, Config{Store: store, Shards: 1 + rng.IntN(2), Counters: []string{"*"}})
		defer hubs[i].stop()
		hubs[i].ln.size = 150
		for range 1 + rng.IntN(5) {
			n := rng.IntN(len(names))
			path := "/"
			if names[n] != "" {
				path = "/c/" + names[n]
			}
			clients = append(clients, watcher{newSeriesAt(hubs[i], path), i, n})
		}
	}
	// All actions are plus, so the store's order is the order of the values.
	sent, users := make([]int64, len(names)), make([]int, len(names))
	for _, c := range clients {
		users[c.counter]++
	}
	for range 200 {
		c := clients[rng.IntN(len(clients))]
		switch n := rng.IntN(20); {
		case n < 15:
			if c.act(plus, plus, rng) {
				sent[c.counter]++
			}
		case n < 17:
			c.stall()
		default:
			c.resume()
		}
		time.Sleep(time.Duration(rng.IntN(3000)) * time.Microsecond)
	}
	for _, c := range clients {
		c.resume()
	}
	time.Sleep(3 * time.Second)
	synctest.Wait()
	for i, h := range hubs {
		if s := h.Stats(); s.Value != sent[0] || s.Users != users[0] || s.Hubs != len(hubs) {
			t.Errorf("hub %d: value %d, %d users, %d hubs, want %d, %d, %d", i, s.Value, s.Users, s.Hubs, sent[0], users[0], len(hubs))
		}
	}
	for i, c := range clients {
		if value, n, ok := hubs[c.hub].State(t.Context(), names[c.counter]); value != sent[c.counter] || n != users[c.counter] || !ok {
			t.Errorf("hub %d has %q at %d with %d users, want %d and %d", c.hub, names[c.counter], value, n, sent[c.counter], users[c.counter])
		}
		values := c.values()
		for j := 1; j < len(values); j++ {
			if values[j] <= values[j-1] {
				t.Errorf("client %d received %d, then %d, want growing values", i, values[j-1], values[j])
			}
		}
		if !c.open() || len(values) == 0 || values[len(values)-1] != sent[c.counter] {
			t.Errorf("client %d received %v, want it to end with %d", i, values, sent[c.counter])
		}
	}
}

// A shared store is asked for a counter when its first client comes, which waits for the value, and is told when the hub has
// forgotten the counter. A removal reaches all hubs.
func TestSharedCounterInUse(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		srv := newFakeServer(Snapshot{Epoch: 1})
		srv.recordLocked("likes").now = Snapshot{Epoch: 1, Version: 4, Value: 7}
		var hubs [2]*fakeHub
		var stores [2]*fakeShared
		for i := range hubs {
			stores[i] = srv.join(uint64(i))
			defer close(stores[i].end)
			hubs[i] = newFakeHub(t, Config{Store: stores[i], Counters: []string{"*"}})
			defer hubs[i].stop()
		}
		a, b := hubs[0].joinPath("/c/likes"), hubs[1].joinPath("/c/likes")
		time.Sleep(2 * time.Second)
		a.want("users 1", "state 7", "users 2")
		b.take()
		if err := hubs[0].Remove(t.Context(), "likes"); err != nil {
			t.Fatal(err)
		}
		time.Sleep(2 * time.Second)
		a.want("state 0")
		b.want("state 0")
		b.send(minus)
		time.Sleep(2 * time.Second)
		a.want("state -1")
		a.ws.CloseNow()
		b.ws.CloseNow()
		time.Sleep(2 * time.Second)
		for i, s := range stores {
			s.mu.Lock()
			if _, ok := s.watched["likes"]; ok {
				t.Errorf("hub %d watches a counter that it has forgotten", i)
			}
			s.mu.Unlock()
		}
		if value, users, ok := hubs[1].State(t.Context(), "likes"); value != -1 || users != 0 || !ok {
			t.Errorf("State = %d, %d, %v, want -1 without users", value, users, ok)
		}
	})
}

// While a shared store is away, a counter that is not in use cannot be joined or acted on. Both fail in time.
func TestSharedCounterAway(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		srv := newFakeServer(Snapshot{Epoch: 1})
		store := srv.join(1)
		defer close(store.end)
		h := newFakeHub(t, Config{Store: store, Counters: []string{"*"}})
		defer h.stop()
		srv.mu.Lock()
		srv.away = true
		srv.mu.Unlock()
		began := time.Now()
		if _, err := h.Act(t.Context(), "likes", netip.Prefix{}, []byte(plus)); err == nil || time.Since(began) > 2*time.Second {
			t.Errorf("Act = %v after %v, want an error within 2s", err, time.Since(began))
		}
		if _, _, resp, err := h.tryDial("/c/likes"); err == nil || resp == nil || resp.StatusCode != 503 {
			t.Errorf("joining = %v, want 503", err)
		}
		if _, _, ok := h.State(t.Context(), "likes"); ok {
			t.Error("State knows a value while the store is away")
		}
		time.Sleep(time.Second)
		h.mu.Lock()
		defer h.mu.Unlock()
		if n := len(h.counters); n != 0 {
			t.Errorf("%d counters are in use, want none", n)
		}
	})
}

// TestSharedStoreAtStart checks a hub that cannot reach its store at the start: it refuses clients until it knows
// the value. When the store later begins a new epoch, the hub publishes its value.
func TestSharedStoreAtStart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		srv := newFakeServer(Snapshot{Epoch: 1, Version: 9, Value: 42})
		srv.away = true
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
		srv.set(Snapshot{Epoch: 2, Version: 1, Value: 3})
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
		srv := newFakeServer(Snapshot{Epoch: 1})
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
	next, err := s.srv.recordLocked("").now.Add(delta)
	s.srv.set(next)
	s.mu.Lock()
	s.watched[""] = next
	s.mu.Unlock()
	return next, err
}
