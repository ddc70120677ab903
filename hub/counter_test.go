package hub

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

func TestValidName(t *testing.T) {
	t.Parallel()
	for name, ok := range map[string]bool{
		"likes": true, "Likes": true, "door.a": true, "a_b-c.9": true, "likes.": true, ".likes": true, "0": true, strings.Repeat("a", 64): true,
		"": false, strings.Repeat("a", 65): false, ".": false, "..": false, "a/b": false, "a b": false, "é": false, "a%20b": false, "a\x00": false, "likes?": false,
	} {
		if err := ValidName(name); (err == nil) != ok {
			t.Errorf("ValidName(%q) = %v, want valid %v", name, err, ok)
		}
	}
	h := &Hub{cfg: Config{Counters: []string{"likes", "door.*", "vote-[0-9]"}}}
	for name, ok := range map[string]bool{"likes": true, "likes2": false, "door.": true, "door.front": true, "doors": false, "vote-3": true, "vote-x": false, "": false} {
		if got := h.Allows(name); got != ok {
			t.Errorf("Allows(%q) = %v, want %v", name, got, ok)
		}
	}
	for _, pattern := range []string{"", "[", "a/b"} {
		if _, err := New(t.Context(), Config{Store: new(Memory), Counters: []string{pattern}}); err == nil {
			t.Errorf("New with the pattern %q = nil", pattern)
		}
	}
	if _, err := New(t.Context(), Config{Store: oneCounter{new(Memory)}, Counters: []string{"*"}}); err == nil {
		t.Error("New with a store of one counter = nil")
	}
}

// oneCounter hides that a store has many counters.
type oneCounter struct{ Store }

// A change of one counter reaches those who watch it, and nobody else. The default counter is one of them.
func TestCountersAreApart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newFakeHub(t, Config{Counters: []string{"*"}})
		defer h.stop()
		likes, door, standard := h.joinPath("/c/likes"), h.joinPath("/c/door"), h.join()
		also := h.joinPath("/c/likes")
		time.Sleep(time.Second)
		likes.want("users 1", "state 0", "users 2")
		also.want("users 2", "state 0")
		door.want("users 1", "state 0")
		standard.want("users 1", "state 0")
		likes.send(plus)
		likes.send(plus)
		also.want("state 1", "state 2")
		likes.want("state 1", "state 2")
		door.send(minus)
		door.want("state -1")
		standard.want()
		late := h.joinPath("/c/likes")
		late.want("users 3", "state 2")
		if value, users, ok := h.State(t.Context(), "likes"); value != 2 || users != 3 || !ok {
			t.Errorf("State = %d, %d, %v, want 2 and 3", value, users, ok)
		}
		if got := h.Stats(); got.Value != 0 || got.Users != 1 {
			t.Errorf("Stats of the default counter: %+v, want 0 and 1 user", got)
		}
	})
}

// One connection about several counters: each message names its counter.
func TestSeveralCounters(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newFakeHub(t, Config{Counters: []string{"*"}})
		defer h.stop()
		both, one := h.joinPath("/c?name=a&name=b"), h.joinPath("/c/b")
		time.Sleep(time.Second)
		both.want("a: users 1", "a: state 0", "b: users 1", "b: state 0", "b: users 2")
		one.want("users 2", "state 0")
		both.send(`{"action":"plus","counter":"b"}`)
		both.want("b: state 1")
		one.want("state 1")
		both.send(`{"counter":"a","action":"minus"}`)
		both.want("a: state -1")
		one.want()
		for _, text := range []string{plus, `{"action":"plus","counter":"c"}`, `{"action":"plus","counter":7}`, `{"action":"plus","Counter":"a"}`} {
			both.send(text)
			both.want("error unknown_counter")
		}
		both.send(`{"action":"leap","counter":"a"}`)
		both.want("error unknown_action")
	})
}

// A counter that nobody uses is forgotten by the hub, with its goroutines and memory, and kept by the store. One that nobody
// has acted on is not stored.
func TestIdleCountersAreForgotten(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := new(Memory)
		h := newFakeHub(t, Config{Store: store, Counters: []string{"*"}})
		defer h.stop()
		inUse := func() int {
			synctest.Wait()
			h.mu.Lock()
			defer h.mu.Unlock()
			return len(h.counters)
		}
		watched, acted := h.joinPath("/c/watched"), h.joinPath("/c/acted")
		acted.send(plus)
		if got := inUse(); got != 2 {
			t.Errorf("%d counters in use, want 2", got)
		}
		watched.ws.CloseNow()
		acted.ws.CloseNow()
		time.Sleep(time.Second)
		if got := inUse(); got != 0 || store.Len() != 1 {
			t.Errorf("%d counters in use, %d stored, want none and the one that was acted on", got, store.Len())
		}
		h.joinPath("/c/acted").want("users 1", "state 1")
	})
}

// An action counts that its sender sent last before it left, however busy the loop is, and the counter is forgotten after that.
func TestForgettingLosesNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := &slowMany{}
		h := newFakeHub(t, Config{Store: store, Counters: []string{"*"}, Shards: 2})
		const names, each = 20, 30
		for n := range each {
			for i := range names {
				p := h.joinPath(fmt.Sprintf("/c/n%d", i))
				p.send(plus)
				if n%2 == 0 {
					p.ws.CloseNow()
				} else {
					go p.ws.Close(1000, "")
				}
			}
		}
		time.Sleep(10 * time.Second)
		synctest.Wait()
		for i := range names {
			if value, users, _ := h.State(t.Context(), fmt.Sprintf("n%d", i)); value != each || users != 0 {
				t.Errorf("counter %d is %d with %d users, want %d and none", i, value, users, each)
			}
		}
		h.mu.Lock()
		left := len(h.counters)
		h.mu.Unlock()
		if left != 0 {
			t.Errorf("%d counters are in use, want none", left)
		}
		h.stop()
	})
}

// slowMany takes some time for each commit.
type slowMany struct{ Memory }

func (s *slowMany) ApplyAll(ctx context.Context, changes []Change) {
	time.Sleep(30 * time.Millisecond)
	s.Memory.ApplyAll(ctx, changes)
}

// The promise about merging holds for each of several counters at once, under random schedules.
func TestMergingOfCounters(t *testing.T) {
	for seed := range uint64(30) {
		synctest.Test(t, func(t *testing.T) {
			rng := rand.New(rand.NewPCG(seed, 7))
			h := newFakeHub(t, Config{Store: &slowMany{}, Counters: []string{"*"}, Shards: 1 + rng.IntN(3)})
			defer h.stop()
			paths := []string{"/", "/c/a", "/c/b", "/c/c"}
			sent := make([]int64, len(paths))
			observers, clients := make([]*series, len(paths)), make([][]*series, len(paths))
			for i, path := range paths {
				observers[i] = newSeriesAt(h, path)
			}
			h.ln.size = 150
			for i, path := range paths {
				for range 1 + rng.IntN(3) {
					clients[i] = append(clients[i], newSeriesAt(h, path))
				}
			}
			for range 300 {
				i := rng.IntN(len(paths))
				c := clients[i][rng.IntN(len(clients[i]))]
				switch n := rng.IntN(10); {
				case n < 7:
					if c.act(plus, plus, rng) {
						sent[i]++
					}
				case n < 8:
					c.stall()
				default:
					c.resume()
				}
				time.Sleep(time.Duration(rng.IntN(2000)) * time.Microsecond)
			}
			for _, all := range clients {
				for _, c := range all {
					c.resume()
				}
			}
			time.Sleep(time.Second)
			synctest.Wait()
			for i, path := range paths {
				for _, c := range append([]*series{observers[i]}, clients[i]...) {
					values := c.values()
					for j := 1; j < len(values); j++ {
						if values[j] <= values[j-1] {
							t.Errorf("seed %d: %s: received %d after %d", seed, path, values[j], values[j-1])
						}
					}
					if len(values) == 0 || values[len(values)-1] != sent[i] {
						t.Errorf("seed %d: %s: received %v, want it to end with %d", seed, path, values, sent[i])
					}
				}
			}
		})
	}
}

var someone = netip.MustParsePrefix("203.0.113.7/32")

// An action without a client counts once it is safe, and everyone who watches sees it.
func TestAct(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var allowed atomic.Bool
		allowed.Store(true)
		store := &slowMany{}
		h := newFakeHub(t, Config{Store: store, Counters: []string{"*"}, MayAct: func(netip.Prefix) bool { return allowed.Load() }})
		defer h.stop()
		act := func(name, message string) (Value, string) {
			t.Helper()
			value, err := h.Act(t.Context(), name, someone, []byte(message))
			if refused := (*RefusedError)(nil); errors.As(err, &refused) {
				return value, refused.Code
			} else if err != nil {
				return value, err.Error()
			}
			return value, ""
		}
		p := h.joinPath("/c/likes")
		p.take()
		began := time.Now()
		if value, why := act("likes", plus); value != 1 || why != "" || time.Since(began) < 30*time.Millisecond {
			t.Errorf("Act = %d, %q after %v, want 1 when it is stored", value, why, time.Since(began))
		}
		p.want("state 1")
		if value, why := act("", minus); value != -1 || why != "" {
			t.Errorf("Act on the default counter = %d, %q, want -1", value, why)
		}
		for message, want := range map[string]string{"": "bad_message", `{"action":"leap"}`: "unknown_action"} {
			if _, why := act("likes", message); why != want {
				t.Errorf("Act with %q: %q, want %q", message, why, want)
			}
		}
		allowed.Store(false)
		if _, why := act("likes", plus); why != "rate_limited" {
			t.Errorf("Act over the rate: %q", why)
		}
		allowed.Store(true)
		if _, err := h.Set(t.Context(), "likes", MaxValue); err != nil {
			t.Fatal(err)
		}
		if _, why := act("likes", plus); why != "out_of_range" {
			t.Errorf("Act at the limit: %q", why)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
		defer cancel()
		if _, err := h.Act(ctx, "likes", someone, []byte(minus)); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("Act with a context that ends = %v", err)
		}
		time.Sleep(time.Second)
		counts := h.Counts()
		for code, n := range map[string]uint64{"counted": 3, "rate_limited": 1, "out_of_range": 1} {
			if got := counts.Actions[code]; got != n {
				t.Errorf("%d actions are %s, want %d", got, code, n)
			}
		}
		if counts.Received != 7 || counts.Refused["bad_message"] != 1 || counts.Refused["unknown_action"] != 1 || h.Stats().Refused != 4 {
			t.Errorf("Counts = %+v, want 7 messages and 4 refused ones", counts)
		}
	})
}

// Making counters is limited in number and by address. Acting on those that are there is not.
func TestMakingIsLimited(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var may atomic.Bool
		store := &Memory{Max: 2}
		h := newFakeHub(t, Config{Store: store, Counters: []string{"*"}, MayMake: func(netip.Prefix) bool { return may.Load() }})
		defer h.stop()
		a, b, c := h.joinPath("/c/a"), h.joinPath("/c/b"), h.joinPath("/c/c")
		for _, p := range []*peer{a, b, c} {
			p.take()
		}
		a.send(plus)
		a.want("error making_limited")
		may.Store(true)
		a.send(plus)
		a.want("state 1")
		b.send(plus)
		b.want("state 1")
		c.send(plus)
		c.want("error too_many_counters")
		may.Store(false)
		a.send(plus)
		a.want("state 2")
		if store.Len() != 2 {
			t.Errorf("%d counters stored, want 2", store.Len())
		}
	})
}

// What an operator sets is a new version like any other. Actions that come at the same time count before or after it.
func TestSetAndRemove(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := &slowMany{}
		h := newFakeHub(t, Config{Store: store, Counters: []string{"*"}})
		defer h.stop()
		p, standard := h.joinPath("/c/likes"), h.join()
		p.send(plus)
		time.Sleep(time.Second)
		p.take()
		standard.take()
		snap, err := h.Set(t.Context(), "likes", 100)
		if err != nil || snap.Value != 100 || snap.Version != 2 {
			t.Errorf("Set = %+v, %v, want 100 in version 2", snap, err)
		}
		p.want("state 100")
		p.send(plus) // in flight
		done := make(chan error)
		go func() {
			_, err := h.Set(t.Context(), "likes", 7)
			done <- err
		}()
		synctest.Wait()
		p.send(plus)
		if err := <-done; err != nil {
			t.Error(err)
		}
		time.Sleep(time.Second)
		if got := p.take(); got[len(got)-1] != "state 8" {
			t.Errorf("received %v, want 8 at the end", got)
		}
		if _, err := h.Set(t.Context(), "unwatched", 5); err != nil {
			t.Error(err)
		}
		if _, err := h.Set(t.Context(), "likes", MaxValue+1); !errors.Is(err, ErrRange) {
			t.Errorf("Set beyond the limit = %v", err)
		}
		if _, err := h.Set(t.Context(), "", 3); err != nil {
			t.Error(err)
		}
		standard.want("state 3")
		list, err := h.List(t.Context(), "", "", 10)
		if err != nil || len(list) != 2 || list[0].Counter != "likes" || list[0].Value != 8 || list[1].Value != 5 {
			t.Errorf("List = %+v, %v", list, err)
		}
		if err := h.Remove(t.Context(), "likes"); err != nil {
			t.Error(err)
		}
		p.want("state 0")
		if store.Len() != 1 {
			t.Errorf("%d counters, want 1", store.Len())
		}
		p.send(minus)
		time.Sleep(time.Second)
		p.want("state -1")
	})
}

// The first actions on a new counter, before the store has made it, take one of the address's new counters, not one each.
func TestMakingCountsOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var asked atomic.Int64
		h := newFakeHub(t, Config{Store: &slowMany{}, Counters: []string{"*"}, MayMake: func(netip.Prefix) bool { return asked.Add(1) == 1 }})
		defer h.stop()
		p := h.joinPath("/c/new")
		p.take()
		for range 10 {
			p.send(plus)
			p.send(minus)
		}
		time.Sleep(time.Second)
		if got := p.take(); asked.Load() != 1 || got[len(got)-1] != "state 0" || strings.Contains(strings.Join(got, " "), "making_limited") {
			t.Errorf("asked %d times, and the client received %v, want one counter, and each action to count", asked.Load(), got)
		}
	})
}

// A client counts for the whole hub, whatever it watches.
func TestStatsOfAllCounters(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newFakeHub(t, Config{Counters: []string{"*"}})
		defer h.stop()
		h.joinPath("/c/likes")
		both := h.joinPath("/c?name=a&name=b")
		h.join()
		if got := h.Stats(); got.Clients != 3 || got.Users != 1 {
			t.Errorf("%d clients, %d users of the default counter, want 3 and 1", got.Clients, got.Users)
		}
		both.ws.CloseNow()
		synctest.Wait()
		if got := h.Stats().Clients; got != 2 {
			t.Errorf("%d clients after one has left, want 2", got)
		}
	})
}

// An action without a client that the store has is told its outcome, also if the hub shuts down meanwhile. An operator's
// change is never waited for longer than the store may take.
func TestActWhileStopping(t *testing.T) {
	for range 20 { // the outcome and the end of the hub come at about the same time
		synctest.Test(t, func(t *testing.T) {
			h := newFakeHub(t, Config{Store: &slowMany{}, Counters: []string{"*"}})
			acted := make(chan error, 1)
			go func() {
				_, err := h.Act(t.Context(), "likes", someone, []byte(plus))
				acted <- err
			}()
			synctest.Wait()
			if err := h.Shutdown(t.Context()); err != nil {
				t.Error(err)
			}
			if err := <-acted; err != nil {
				t.Errorf("Act = %v, although the action counts", err)
			}
			if _, err := h.Act(t.Context(), "likes", someone, []byte(plus)); err == nil {
				t.Error("Act after the end = nil")
			}
			if _, err := h.Set(t.Context(), "likes", 3); err == nil {
				t.Error("Set after the end = nil")
			}
		})
	}
}

// hangingMany takes a minute for each commit.
type hangingMany struct{ Memory }

func (s *hangingMany) ApplyAll(ctx context.Context, changes []Change) {
	select {
	case <-time.After(time.Minute):
	case <-ctx.Done():
	}
	s.Memory.ApplyAll(ctx, changes)
}

// While the store does not answer, an operator's change fails soon, also one that comes later.
func TestSetWhileStoreHangs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newFakeHub(t, Config{Store: &hangingMany{}, Counters: []string{"*"}})
		defer h.stop()
		for range 3 {
			began := time.Now()
			if _, err := h.Set(t.Context(), "likes", 1); err == nil || time.Since(began) > storeTimeout {
				t.Errorf("Set = %v after %v, want an error within %v", err, time.Since(began), storeTimeout)
			}
		}
	})
}

// A client that watches many counters takes more than one place.
func TestPlacesOfManyNames(t *testing.T) {
	t.Parallel()
	for names, want := range map[int]int{1: 1, 16: 1, 17: 2, 32: 2} {
		h, err := New(t.Context(), Config{Store: new(Memory), Counters: []string{"*"}, MaxClients: 3, MaxClientsPerIP: 2})
		if err != nil {
			t.Fatal(err)
		}
		c := &client{hub: h, remote: someone, more: make([]watch, names-1)}
		if reason, _ := h.admit(c); reason != "" || h.admitted.total != want {
			t.Errorf("%d names: %s, %d places, want %d", names, reason, h.admitted.total, want)
		}
		wantReason := Reason("")
		if want == 2 {
			wantReason = ReasonAddressFull
		}
		if reason, _ := h.admit(&client{hub: h, remote: someone}); reason != wantReason {
			t.Errorf("%d names: another client of the address: %q, want %q", names, reason, wantReason)
		} else if reason == "" {
			h.release(&client{hub: h, remote: someone})
		}
		h.release(c)
		if of, total := h.ClientsOf(someone); of != 0 || total != 0 {
			t.Errorf("%d names: %d and %d places left", names, of, total)
		}
		if err := h.Shutdown(t.Context()); err != nil {
			t.Error(err)
		}
	}
}
