package hub

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/coder/websocket"
)

// message is any message of the protocol.
type message struct {
	Type  string `json:"type"`
	Count int    `json:"count"`
	Value int64  `json:"value"`
	Code  string `json:"code"`
}

func (m message) String() string {
	switch m.Type {
	case "users":
		return fmt.Sprint("users ", m.Count)
	case "state":
		return fmt.Sprint("state ", m.Value)
	}
	return m.Type + " " + m.Code
}

// peer collects what one client receives, until its connection ends.
type peer struct {
	t  testing.TB
	ws *websocket.Conn

	mu  sync.Mutex
	got []string
	err error     // why the connection ended
	end time.Time // and when
}

func (f *fakeHub) join() *peer {
	f.t.Helper()
	ws, _ := f.dial()
	p := &peer{t: f.t, ws: ws}
	go p.read()
	synctest.Wait()
	return p
}

func (p *peer) read() {
	for {
		_, data, err := p.ws.Read(context.Background())
		p.mu.Lock()
		if err != nil {
			p.err, p.end = err, time.Now()
			p.mu.Unlock()
			return
		}
		var m message
		if err := json.Unmarshal(data, &m); err != nil {
			p.t.Errorf("a message is no JSON: %q", data)
		}
		p.got = append(p.got, m.String())
		p.mu.Unlock()
	}
}

func (p *peer) send(text string) {
	p.t.Helper()
	if err := p.ws.Write(context.Background(), websocket.MessageText, []byte(text)); err != nil {
		p.t.Fatalf("sending %q: %v", text, err)
	}
	synctest.Wait()
}

// take returns what has been received since the last call.
func (p *peer) take() []string {
	synctest.Wait()
	p.mu.Lock()
	defer p.mu.Unlock()
	got := p.got
	p.got = nil
	return got
}

func (p *peer) want(want ...string) {
	p.t.Helper()
	if got := p.take(); !slices.Equal(got, want) {
		p.t.Errorf("received %q, want %q", got, want)
	}
}

// closed reports whether the connection has ended.
func (p *peer) closed() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.err != nil
}

func (p *peer) wantClosed(code websocket.StatusCode) {
	p.t.Helper()
	synctest.Wait()
	p.mu.Lock()
	defer p.mu.Unlock()
	if got := websocket.CloseStatus(p.err); got != code {
		p.t.Errorf("connection ended with %v (status code %d), want status code %d", p.err, got, code)
	}
}

const (
	plus  = `{"action":"plus"}`
	minus = `{"action":"minus"}`
)

func TestCounting(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newFakeHub(t, Config{})
		defer h.stop()
		a := h.join()
		a.want("users 1", "state 0")
		b := h.join()
		b.want("users 2", "state 0")
		time.Sleep(usersEvery)
		a.want("users 2")
		a.send(plus)
		a.want("state 1")
		b.want("state 1")
		b.send(minus)
		b.send(minus)
		a.want("state 0", "state -1")
		b.want("state 0", "state -1")
		if s := h.Stats(); s.Value != -1 || s.Users != 2 {
			t.Errorf("Stats = %+v, want value -1, users 2", s)
		}
	})
}

// Actions that are sent in one piece become one batch, and each value is delivered all
// the same.
func TestEachValueOfABatchIsDelivered(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := &slowStore{delay: time.Second}
		h := newFakeHub(t, Config{Store: store})
		defer h.stop()
		a := h.join()
		a.take()
		for range 5 {
			a.send(plus)
		}
		a.send(minus)
		time.Sleep(time.Second)
		a.want("state 1") // went to the store at once; the rest waited for it
		time.Sleep(time.Second)
		a.want("state 2", "state 3", "state 4", "state 5", "state 4")
		if store.applied != 2 {
			t.Errorf("the store was called %d times, want 2", store.applied)
		}
	})
}

// A client that is further behind than recentValues gets the newest value alone.
func TestManyValuesMerge(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newFakeHub(t, Config{Store: &slowStore{delay: time.Second}})
		defer h.stop()
		a := h.join()
		a.take()
		for range 2 + recentValues {
			a.send(plus)
		}
		time.Sleep(time.Second)
		a.want("state 1")
		time.Sleep(time.Second)
		a.want("state 18")
	})
}

// slowStore takes its time, and counts.
type slowStore struct {
	Memory
	delay   time.Duration
	applied int
}

func (s *slowStore) Apply(ctx context.Context, delta int64) (Snapshot, error) {
	time.Sleep(s.delay)
	s.applied++
	return s.Memory.Apply(ctx, delta)
}

// A hundred arrivals at once are announced a few times, and the last announcement is
// right.
func TestUsersAreMerged(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newFakeHub(t, Config{})
		defer h.stop()
		a := h.join()
		time.Sleep(time.Second)
		a.want("users 1", "state 0")
		var others []*peer
		for i := range 100 {
			p := h.join()
			p.want(fmt.Sprint("users ", i+2), "state 0") // a newcomer is always told the truth
			others = append(others, p)
		}
		time.Sleep(usersEvery)
		a.want("users 2", "users 101") // the first at once, the others together
		for _, p := range others[:50] {
			p.ws.CloseNow()
		}
		synctest.Wait()
		time.Sleep(usersEvery)
		if got := a.take(); len(got) == 0 || len(got) > 2 || got[len(got)-1] != "users 51" {
			t.Errorf("received %q, want one or two announcements and the last of 51 users", got)
		}
	})
}

// A count that went up and down again between two announcements is announced to those
// who were told another one, and to nobody else.
func TestUsersUpAndDown(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newFakeHub(t, Config{})
		defer h.stop()
		a, b := h.join(), h.join()
		time.Sleep(time.Second)
		h.join().ws.CloseNow() // announced at once: 3, then 2 has to wait
		synctest.Wait()
		a.want("users 1", "state 0", "users 2", "users 3")
		c := h.join()
		b.ws.CloseNow()
		synctest.Wait()
		c.want("users 3", "state 0")
		time.Sleep(usersEvery)
		a.want("users 2")
		c.want("users 2")
	})
}

func TestRefusals(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newFakeHub(t, Config{})
		defer h.stop()
		a, b := h.join(), h.join()
		time.Sleep(time.Second)
		a.take()
		b.take()
		for _, tt := range []struct{ text, want string }{
			{`{"action":"times"}`, "error unknown_action"},
			{`plus`, "error bad_message"},
			{`["plus"]`, "error bad_message"},
			{`{"act":"plus"}`, "error bad_message"},
			{`{"Action":"plus"}`, "error bad_message"},
			{`{"action":null}`, "error bad_message"},
			{`{"action":1}`, "error bad_message"},
			{`{"action":"plus"} x`, "error bad_message"},
			{``, "error bad_message"},
		} {
			a.send(tt.text)
			a.want(tt.want)
		}
		if err := a.ws.Write(t.Context(), websocket.MessageBinary, []byte(plus)); err != nil {
			t.Fatal(err)
		}
		a.want("error binary_message")
		a.send(plus)
		a.want("state 1")
		b.want("state 1") // and nothing else: errors are for the sender alone
	})
}

func TestRubbishIsClosed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newFakeHub(t, Config{})
		defer h.stop()
		a := h.join()
		for range maxNotActions - 1 {
			a.send("x")
		}
		a.send(plus) // it can do better: the count starts again
		for range maxNotActions - 1 {
			a.send("x")
		}
		if got := a.take(); len(got) != 2+2*(maxNotActions-1)+1 {
			t.Errorf("received %d messages, want users, state, an error for each rubbish, and the state", len(got))
		}
		a.send("x")
		a.wantClosed(websocket.StatusPolicyViolation)
	})
}

func TestMessageSize(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newFakeHub(t, Config{})
		defer h.stop()
		a := h.join()
		a.take()
		padded := func(size int) string {
			return plus + fmt.Sprintf("%*s", size-len(plus), "")
		}
		a.send(padded(MaxMessage))
		a.want("state 1")
		a.send(padded(MaxMessage + 1))
		a.wantClosed(websocket.StatusMessageTooBig)
	})
}

func TestNotUTF8(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newFakeHub(t, Config{})
		defer h.stop()
		a := h.join()
		a.send("{\"action\":\"plus\xff\"}")
		a.wantClosed(websocket.StatusInvalidFramePayloadData)
	})
}

func TestActionRate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newFakeHub(t, Config{ActionRate: 2, ActionBurst: 3})
		defer h.stop()
		a := h.join()
		a.take()
		for range 4 {
			a.send(plus)
		}
		a.want("state 1", "state 2", "state 3", "error rate_limited")
		time.Sleep(500 * time.Millisecond)
		a.send(plus)
		a.send(plus)
		a.want("state 4", "error rate_limited")
	})
}

func TestRange(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := new(Memory)
		if _, err := store.Apply(t.Context(), MaxValue-1); err != nil {
			t.Fatal(err)
		}
		h := newFakeHub(t, Config{Store: store})
		defer h.stop()
		a := h.join()
		a.want("users 1", "state 9007199254740990")
		a.send(plus)
		a.send(plus)
		a.want("state 9007199254740991", "error out_of_range")
		a.send(minus)
		a.want("state 9007199254740990")
	})
}

// brokenStore fails while told so.
type brokenStore struct {
	Memory
	mu  sync.Mutex
	err error
}

func (s *brokenStore) fail(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.err = err
}

func (s *brokenStore) Apply(ctx context.Context, delta int64) (Snapshot, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.err != nil {
		return Snapshot{}, s.err
	}
	return s.Memory.Apply(ctx, delta)
}

func TestStoreAway(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := new(brokenStore)
		h := newFakeHub(t, Config{Store: store})
		defer h.stop()
		a := h.join()
		a.send(plus)
		a.want("users 1", "state 0", "state 1")
		store.fail(errors.New("disk full"))
		a.send(plus)
		a.send(minus)
		a.want("error store_unavailable", "error store_unavailable")
		if err := h.Ready(); err == nil {
			t.Error("Ready = nil while the store fails")
		}
		b := h.join()
		b.want("users 2", "state 1") // served on
		store.fail(nil)
		time.Sleep(storeRetry) // it heals without anybody's action
		synctest.Wait()
		if err := h.Ready(); err != nil {
			t.Errorf("Ready = %v after the store has come back", err)
		}
		a.take()
		a.send(plus)
		a.want("state 2")
	})
}

// A client that does not read is skipped, holds up nobody, is disconnected after
// stallTimeout, and not before.
func TestStalledClient(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newFakeHub(t, Config{Shards: 1})
		defer h.stop()
		a := h.join()
		stuck, _ := h.dial() // nobody reads from it
		defer stuck.CloseNow()
		synctest.Wait()
		time.Sleep(time.Second)
		a.take()
		// Fill what the connection holds, until bytes are kept.
		n := 0
		for ; h.Stats().Blocked == 0; n++ {
			a.send(plus)
			a.want(fmt.Sprint("state ", n+1))
		}
		time.Sleep(stallTimeout - time.Millisecond)
		a.send(plus)
		a.want(fmt.Sprint("state ", n+1))
		time.Sleep(flushEvery + usersEvery)
		a.want("users 1")
		if got := h.cfg.Events.Counts().Closes[ReasonStalled]; got != 1 {
			t.Errorf("%d clients closed as stalled, want 1", got)
		}
	})
}

// A client that reads again after a while has missed values, and gets the newest.
func TestBlockedClientCatchesUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newFakeHub(t, Config{Shards: 1})
		defer h.stop()
		a := h.join()
		ws, _ := h.dial()
		synctest.Wait()
		for h.Stats().Blocked == 0 {
			a.send(plus)
		}
		for range 100 {
			a.send(plus)
		}
		time.Sleep(stallTimeout / 2)
		p := &peer{t: t, ws: ws}
		go p.read()
		time.Sleep(2 * flushEvery)
		newest := fmt.Sprint("state ", h.Stats().Value)
		got := p.take()
		if last := got[len(got)-1]; last != newest {
			t.Errorf("last received %q, want %q", last, newest)
		}
		if len(got) >= 100 {
			t.Errorf("received %d messages after not reading, want merged ones", len(got))
		}
		a.send(plus)
		p.want(fmt.Sprint("state ", h.Stats().Value))
	})
}

// A peer that vanished without a word is found by a ping.
func TestSilentClient(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newFakeHub(t, Config{})
		defer h.stop()
		a := h.join() // reads, and so answers pings
		gone, conn := h.dial()
		defer gone.CloseNow()
		defer conn.Close()
		go func() { // takes all bytes and says nothing
			for buf := make([]byte, 512); ; {
				if _, err := conn.Read(buf); err != nil {
					return
				}
			}
		}()
		time.Sleep(usersEvery)
		a.want("users 1", "state 0", "users 2")
		time.Sleep((pingEvery + pongTimeout - 1) * time.Second) // too early to tell
		a.want()
		time.Sleep((pingJitter + 2) * time.Second)
		a.want("users 1")
		if got := h.cfg.Events.Counts().Closes[ReasonSilent]; got != 1 {
			t.Errorf("%d clients closed as silent, want 1", got)
		}
		time.Sleep(10 * time.Minute)
		a.want()
		a.send(plus)
		a.want("state 1")
	})
}

func TestShutdown(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := &slowStore{delay: time.Second}
		h := newFakeHub(t, Config{Store: store})
		a, b := h.join(), h.join()
		for range 3 {
			a.send(plus) // the store is at work on the first, two are waiting
		}
		if err := h.Shutdown(t.Context()); err != nil {
			t.Errorf("Shutdown = %v", err)
		}
		a.wantClosed(websocket.StatusServiceRestart)
		b.wantClosed(websocket.StatusServiceRestart)
		if snap, _ := store.Load(t.Context()); snap.Value != 3 {
			t.Errorf("the store holds %d, want 3: what was sent before the end counts", snap.Value)
		}
		if err := h.Ready(); err == nil {
			t.Error("Ready = nil after Shutdown")
		}
	})
}

// stuckStore answers when it is let go.
type stuckStore struct {
	Memory
	stuck chan error // nil: it answers at once; or else what it says before it does
}

func (s *stuckStore) Apply(ctx context.Context, delta int64) (Snapshot, error) {
	if s.stuck != nil {
		select {
		case err := <-s.stuck:
			if err != nil {
				return Snapshot{}, err
			}
		case <-ctx.Done():
			return Snapshot{}, context.Cause(ctx)
		}
	}
	return s.Memory.Apply(ctx, delta)
}

// A store that hangs holds up nobody: who sent what it was given is told that this is
// open, what comes later is refused, and the outcome is told when it is known.
func TestStoreDoesNotAnswer(t *testing.T) {
	for _, tt := range []struct {
		name  string
		err   error
		a, b  []string // what the clients get when the store answers
		value int64
	}{
		{"it had counted", nil, []string{"state 1"}, []string{"state 1"}, 1},
		{"it had not", errors.New("disk full"), []string{"error store_unavailable"}, nil, 0},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				store := &stuckStore{stuck: make(chan error)}
				h := newFakeHub(t, Config{Store: store})
				defer h.stop()
				a, b := h.join(), h.join()
				time.Sleep(time.Second)
				a.take()
				b.take()
				a.send(plus) // the store gets this one
				b.send(plus) // and this one waits
				time.Sleep(storeTimeout - time.Millisecond)
				a.want()
				b.want()
				if err := h.Ready(); err != nil {
					t.Errorf("Ready = %v too soon", err)
				}
				time.Sleep(time.Millisecond)
				a.want("error store_undecided")
				b.want("error store_unavailable")
				if err := h.Ready(); err == nil {
					t.Error("Ready = nil while the store does not answer")
				}
				for range 3 * maxBatch / 2 { // more than a batch can carry
					b.send(minus)
				}
				if got := b.take(); len(got) != 3*maxBatch/2 {
					t.Errorf("%d answers, want one for each of %d actions", len(got), 3*maxBatch/2)
				}
				h.join().want("users 3", "state 0")
				time.Sleep(time.Second)
				a.want("users 3")
				b.want("users 3")
				store.stuck <- tt.err
				a.want(tt.a...)
				b.want(tt.b...)
				if got := h.Stats().Value; got != tt.value {
					t.Errorf("value %d, want %d", got, tt.value)
				}
				close(store.stuck)
				time.Sleep(storeRetry)
				synctest.Wait()
				if err := h.Ready(); err != nil {
					t.Errorf("Ready = %v after the store has come back", err)
				}
			})
		})
	}
}

// A client that is blocked when its actions are refused is told of each when it reads again,
// before it is told the state that follows.
func TestRefusalsOfABlockedClient(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := &stuckStore{stuck: make(chan error)}
		h := newFakeHub(t, Config{Store: store})
		defer h.stop()
		ws, _ := h.dial()
		p := &peer{t: t, ws: ws}
		time.Sleep(time.Second)
		const waiting, later = 100, 50
		for range 1 + waiting { // the first is given to the store
			p.send(plus)
		}
		time.Sleep(storeTimeout) // the others are refused at once
		for range later {
			p.send(plus) // refused on arrival
		}
		if h.Stats().Blocked != 1 {
			t.Fatal("the client is not blocked: more actions are needed here")
		}
		go p.read()
		time.Sleep(time.Second)
		got := p.take()
		count := make(map[string]int)
		for _, m := range got {
			count[m]++
		}
		if n := count["error store_unavailable"]; n != waiting+later {
			t.Errorf("told of %d actions that were refused, want %d", n, waiting+later)
		}
		if n := count["error store_undecided"]; n != 1 {
			t.Errorf("told of %d actions that are undecided, want 1", n)
		}
		close(store.stuck)
		p.want("state 1")
		p.send(plus)
		p.want("state 2")
	})
}

// Shutdown does not wait for ever for a store that hangs.
func TestShutdownWithoutStore(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newFakeHub(t, Config{Store: &stuckStore{stuck: make(chan error)}})
		a := h.join()
		a.send(plus)
		a.send(plus)
		began := time.Now()
		if err := h.Shutdown(t.Context()); err != nil {
			t.Errorf("Shutdown = %v", err)
		}
		if took := time.Since(began); took > storeTimeout {
			t.Errorf("Shutdown took %v, want %v at most", took, storeTimeout)
		}
	})
}
