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

// message is any message from the server.
type message struct {
	Type  string `json:"type"`
	Count int    `json:"count"`
	Value int64  `json:"value"`
	Code  string `json:"code"`

	Counter string `json:"counter"`
}

func (m message) String() string {
	if m.Counter != "" {
		name := m.Counter
		m.Counter = ""
		return name + ": " + m.String()
	}
	switch m.Type {
	case "users":
		return fmt.Sprint("users ", m.Count)
	case "state":
		return fmt.Sprint("state ", m.Value)
	}
	return m.Type + " " + m.Code
}

// peer is a client that collects the messages that it receives, until its connection ends.
type peer struct {
	t  testing.TB
	ws *websocket.Conn

	mu  sync.Mutex
	got []string
	err error     // why the connection ended
	end time.Time // when it ended
}

// join connects a client that reads.
func (f *fakeHub) join() *peer { return f.joinPath("/") }

// joinPath is join for a path of dialPath.
func (f *fakeHub) joinPath(path string) *peer {
	f.t.Helper()
	ws, _ := f.dialPath(path)
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
			p.t.Errorf("a message is not JSON: %q", data)
		}
		p.got = append(p.got, m.String())
		p.mu.Unlock()
	}
}

// send sends a text message and waits until the hub is idle.
func (p *peer) send(text string) {
	p.t.Helper()
	if err := p.ws.Write(context.Background(), websocket.MessageText, []byte(text)); err != nil {
		p.t.Fatalf("sending %q: %v", text, err)
	}
	synctest.Wait()
}

// take returns the messages that have been received since the last call.
func (p *peer) take() []string {
	synctest.Wait()
	p.mu.Lock()
	defer p.mu.Unlock()
	got := p.got
	p.got = nil
	return got
}

// want checks the messages that have been received since the last call of want or take.
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

// wantClosed checks that the connection has ended with the given status code.
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

// TestEachValueOfABatchIsDelivered checks that clients are sent each value of actions that the store applied
// as one batch.
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
		a.want("state 1") // the store got the first action at once; the others waited
		time.Sleep(time.Second)
		a.want("state 2", "state 3", "state 4", "state 5", "state 4")
		if store.applied != 2 {
			t.Errorf("the store was called %d times, want 2", store.applied)
		}
	})
}

// TestManyValuesMerge checks that a client that is more than recentValues behind is sent only the newest value.
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

// slowStore takes the time delay for each commit.
type slowStore struct {
	Memory
	delay   time.Duration
	applied int // calls of Apply
}

func (s *slowStore) Apply(ctx context.Context, delta int64) (Snapshot, error) {
	time.Sleep(s.delay)
	s.applied++
	return s.Memory.Apply(ctx, delta)
}

// TestUsersAreMerged checks that a hundred arrivals at once are announced only a few times, and that the last
// announcement is right.
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
			p.want(fmt.Sprint("users ", i+2), "state 0") // a newcomer is always sent the present number
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

// TestUsersUpAndDown checks a number that goes up and down again between two announcements. It is announced
// only to clients that were sent another number.
func TestUsersUpAndDown(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newFakeHub(t, Config{})
		defer h.stop()
		a, b := h.join(), h.join()
		time.Sleep(time.Second)
		h.join().ws.CloseNow() // 3 is announced at once; 2 has to wait
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
		b.want("state 1") // and nothing else: errors go only to the sender
	})
}

// TestTooManyMessagesThatAreNotActions checks the limit on messages that are not actions: the number at once, how fast
// the client gets them back, and that an action gives all of them back.
func TestTooManyMessagesThatAreNotActions(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newFakeHub(t, Config{})
		defer h.stop()
		a := h.join()
		rubbish := func(n int) {
			for range n {
				a.send("x")
			}
		}
		rubbish(maxNotActions - 1)
		a.send(plus)
		rubbish(maxNotActions - 1)
		time.Sleep(notActionsEvery)
		rubbish(1)
		time.Sleep(3 * notActionsEvery)
		rubbish(3)
		if got, want := len(a.take()), 2+2*(maxNotActions-1)+1+1+3; got != want {
			t.Errorf("received %d messages, want %d: users, state, an error for each message that is not an action, and the state", got, want)
		}
		time.Sleep(notActionsEvery - time.Microsecond) // a rate.Limiter rounds nanoseconds
		rubbish(1)
		a.wantClosed(websocket.StatusPolicyViolation)
	})
}

// TestHeartbeatsThatAreNotActions checks that a client may send a heartbeat that is not an action for ever, up to
// one each notActionsEvery.
func TestHeartbeatsThatAreNotActions(t *testing.T) {
	for _, every := range []time.Duration{notActionsEvery, 25 * time.Second, time.Minute} {
		synctest.Test(t, func(t *testing.T) {
			h := newFakeHub(t, Config{})
			defer h.stop()
			a := h.join()
			a.want("users 1", "state 0")
			for range 6 * time.Hour / (25 * time.Second) {
				a.send(`{"action":"ping"}`)
				a.want("error unknown_action")
				time.Sleep(every)
			}
			if a.closed() {
				t.Errorf("a heartbeat each %v: the client was closed", every)
			}
		})
	}
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

// brokenStore fails while err is not nil.
type brokenStore struct {
	Memory
	mu  sync.Mutex
	err error // Guarded by mu.
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

// TestStoreAway checks that actions are refused while the store fails, that clients are served, and that the hub
// recovers.
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
		b.want("users 2", "state 1") // clients can still join
		store.fail(nil)
		time.Sleep(storeRetry) // the hub recovers without an action
		synctest.Wait()
		if err := h.Ready(); err != nil {
			t.Errorf("Ready = %v after the store has recovered", err)
		}
		a.take()
		a.send(plus)
		a.want("state 2")
	})
}

// TestStalledClient checks that a client that does not read delays no other client, and is disconnected after
// stallTimeout, not before.
func TestStalledClient(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newFakeHub(t, Config{Shards: 1})
		defer h.stop()
		a := h.join()
		blocked, _ := h.dial() // it does not read
		defer blocked.CloseNow()
		synctest.Wait()
		time.Sleep(time.Second)
		a.take()
		// Fill the buffers of the connection until the hub has to keep bytes.
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

// TestBlockedClientCatchesUp checks that a client that reads again after a while is sent the newest value, and
// not all that it has missed.
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
			t.Errorf("the last message is %q, want %q", last, newest)
		}
		if len(got) >= 100 {
			t.Errorf("received %d messages after not reading, want fewer than 100: values merge", len(got))
		}
		a.send(plus)
		p.want(fmt.Sprint("state ", h.Stats().Value))
	})
}

// TestSilentClient checks that a ping finds a peer that has vanished without closing the connection.
func TestSilentClient(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newFakeHub(t, Config{})
		defer h.stop()
		a := h.join() // it reads, so it answers pings
		gone, conn := h.dial()
		defer gone.CloseNow()
		defer conn.Close()
		go func() { // reads everything and answers nothing
			for buf := make([]byte, 512); ; {
				if _, err := conn.Read(buf); err != nil {
					return
				}
			}
		}()
		time.Sleep(usersEvery)
		a.want("users 1", "state 0", "users 2")
		time.Sleep((pingEvery + pongTimeout - 1) * time.Second) // the hub cannot know yet
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
			a.send(plus) // the store is working on the first; two are waiting
		}
		if err := h.Shutdown(t.Context()); err != nil {
			t.Errorf("Shutdown = %v", err)
		}
		a.wantClosed(websocket.StatusServiceRestart)
		b.wantClosed(websocket.StatusServiceRestart)
		if snap, _ := store.Load(t.Context()); snap.Value != 3 {
			t.Errorf("the store holds %d, want 3: actions that were sent before Shutdown count", snap.Value)
		}
		if err := h.Ready(); err == nil {
			t.Error("Ready = nil after Shutdown")
		}
	})
}

// hangingStore waits in Apply until the test sends on answers. It fails with the error that was sent, if it is
// not nil.
type hangingStore struct {
	Memory
	answers chan error // if nil, Apply does not wait
}

func (s *hangingStore) Apply(ctx context.Context, delta int64) (Snapshot, error) {
	if s.answers != nil {
		select {
		case err := <-s.answers:
			if err != nil {
				return Snapshot{}, err
			}
		case <-ctx.Done():
			return Snapshot{}, context.Cause(ctx)
		}
	}
	return s.Memory.Apply(ctx, delta)
}

// TestStoreDoesNotAnswer checks that a store that hangs delays no client. The senders of the batch in flight are
// told that the outcome is open, later actions are refused, and the outcome is told once it is known.
func TestStoreDoesNotAnswer(t *testing.T) {
	for _, tt := range []struct {
		name  string
		err   error
		a, b  []string // what the clients receive when the store answers
		value int64
	}{
		{"it had counted", nil, []string{"state 1"}, []string{"state 1"}, 1},
		{"it had not", errors.New("disk full"), []string{"error store_unavailable"}, nil, 0},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				store := &hangingStore{answers: make(chan error)}
				h := newFakeHub(t, Config{Store: store})
				defer h.stop()
				a, b := h.join(), h.join()
				time.Sleep(time.Second)
				a.take()
				b.take()
				a.send(plus) // the store is given this one
				b.send(plus) // this one waits
				time.Sleep(storeTimeout - time.Millisecond)
				a.want()
				b.want()
				if err := h.Ready(); err != nil {
					t.Errorf("Ready = %v before storeTimeout, want nil", err)
				}
				time.Sleep(time.Millisecond)
				a.want("error store_undecided")
				b.want("error store_unavailable")
				if err := h.Ready(); err == nil {
					t.Error("Ready = nil while the store does not answer")
				}
				for range 3 * maxBatch / 2 { // more than a batch can have
					b.send(minus)
				}
				if got := b.take(); len(got) != 3*maxBatch/2 {
					t.Errorf("%d answers, want one for each of %d actions", len(got), 3*maxBatch/2)
				}
				h.join().want("users 3", "state 0")
				time.Sleep(time.Second)
				a.want("users 3")
				b.want("users 3")
				store.answers <- tt.err
				a.want(tt.a...)
				b.want(tt.b...)
				if got := h.Stats().Value; got != tt.value {
					t.Errorf("Stats().Value = %d, want %d", got, tt.value)
				}
				close(store.answers)
				time.Sleep(storeRetry)
				synctest.Wait()
				if err := h.Ready(); err != nil {
					t.Errorf("Ready = %v after the store has recovered", err)
				}
			})
		})
	}
}

// TestRefusalsOfABlockedClient checks a client that is blocked when its actions are refused. When it reads again,
// it is sent each refusal, before the state that follows.
func TestRefusalsOfABlockedClient(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := &hangingStore{answers: make(chan error)}
		h := newFakeHub(t, Config{Store: store})
		defer h.stop()
		ws, _ := h.dial()
		p := &peer{t: t, ws: ws}
		time.Sleep(time.Second)
		const waiting, later = 100, 50
		for range 1 + waiting { // the store is given the first
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
			t.Errorf("%d actions were refused, want %d", n, waiting+later)
		}
		if n := count["error store_undecided"]; n != 1 {
			t.Errorf("%d actions are undecided, want 1", n)
		}
		close(store.answers)
		p.want("state 1")
		p.send(plus)
		p.want("state 2")
	})
}

// TestShutdownWithoutStore checks that Shutdown waits at most storeTimeout for a store that hangs.
func TestShutdownWithoutStore(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newFakeHub(t, Config{Store: &hangingStore{answers: make(chan error)}})
		a := h.join()
		a.send(plus)
		a.send(plus)
		began := time.Now()
		if err := h.Shutdown(t.Context()); err != nil {
			t.Errorf("Shutdown = %v", err)
		}
		if took := time.Since(began); took > storeTimeout {
			t.Errorf("Shutdown took %v, want at most %v", took, storeTimeout)
		}
	})
}
