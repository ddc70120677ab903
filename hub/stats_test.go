package hub

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// askedStore is a store that a test watches, and can make slow.
type askedStore struct {
	Memory
	asked func(name string) // is called by LoadCounter; nil does nothing
	slow  bool              // LoadCounter does not answer
}

func (s *askedStore) LoadCounter(ctx context.Context, name string) (Snapshot, error) {
	if s.asked != nil {
		s.asked(name)
	}
	if s.slow {
		<-ctx.Done()
		return Snapshot{}, context.Cause(ctx)
	}
	return s.Memory.LoadCounter(ctx, name)
}

// TestCountersStats compares what the hub says of its counters while they are watched, made, refused and removed.
func TestCountersStats(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var lines bytes.Buffer
		var may atomic.Bool
		may.Store(true)
		store := &askedStore{Memory: Memory{Max: 2}}
		h := newFakeHub(t, Config{
			Store:    store,
			Counters: []string{"votes", "door.*", "likes", "likes", "[s]eats", `seat\s`, "seats?", "likes", "no name"},
			MayMake:  func(netip.Prefix) bool { return may.Load() },
			Events:   NewEvents(EventsConfig{Logger: slog.New(slog.NewTextHandler(&lines, nil)), Hints: map[Reason]string{ReasonTooManyCounters: "the hint"}}),
		})
		defer h.stop()
		refused := map[Reason]uint64{ReasonMakingLimited: 0, ReasonTooManyCounters: 0}
		want := func(when string, stored, watched int, made uint64, named ...CounterStats) {
			t.Helper()
			synctest.Wait()
			s := h.CountersStats(t.Context())
			if s.Stored != stored || s.Watched != watched || s.Made != made || !maps.Equal(s.NotMade, refused) {
				t.Errorf("%s: %+v, want %d stored, %d watched, %d made and %v refused", when, s, stored, watched, made, refused)
			}
			slices.SortFunc(s.Named, func(a, b CounterStats) int { return strings.Compare(a.Name, b.Name) })
			if !slices.Equal(s.Named, named) {
				t.Errorf("%s: named %v, want %v", when, s.Named, named)
			}
		}
		act := func(name, code string) {
			t.Helper()
			_, err := h.Act(t.Context(), name, someone, []byte(plus))
			if why := (*RefusedError)(nil); errors.As(err, &why) && why.Code != code || err == nil && code != "" {
				t.Errorf("Act on %s = %v, want %q", name, err, code)
			}
		}

		want("at first", 0, 0, 0, CounterStats{"likes", 0, 0}, CounterStats{"votes", 0, 0})
		h.join()
		likes, both := h.joinPath("/c/likes"), h.joinPath("/c?name=likes&name=door.a")
		want("watched", 0, 2, 0, CounterStats{"likes", 0, 2}, CounterStats{"votes", 0, 0})
		likes.send(plus)
		act("votes", "")
		act("votes", "")
		act("", "")
		want("full", 2, 2, 2, CounterStats{"likes", 1, 2}, CounterStats{"votes", 2, 0})
		for range 3 {
			act("door.b", "too_many_counters")
			both.send(`{"action":"plus","counter":"door.a"}`)
		}
		refused[ReasonTooManyCounters] = 6
		want("refused", 2, 2, 2, CounterStats{"likes", 1, 2}, CounterStats{"votes", 2, 0})
		may.Store(false)
		act("door.c", "making_limited")
		refused[ReasonMakingLimited] = 1
		want("limited", 2, 2, 2, CounterStats{"likes", 1, 2}, CounterStats{"votes", 2, 0})
		for _, line := range []string{`level=WARN msg="counter not made" counter=door.`, `level=INFO msg="counter not made" counter=door.c remote=203.0.113.7/32 reason=making_limited`, `reason=too_many_counters hint="the hint"`} {
			if strings.Count(lines.String(), line) != 1 {
				t.Errorf("the log has not one line with %s:\n%s", line, lines.String())
			}
		}

		may.Store(true)
		if err := h.Remove(t.Context(), "likes"); err != nil {
			t.Fatal(err)
		}
		if err := h.Remove(t.Context(), "door.z"); err != nil { // is not there, and does not come to be
			t.Fatal(err)
		}
		want("removed", 1, 2, 2, CounterStats{"likes", 0, 2}, CounterStats{"votes", 2, 0})
		likes.send(plus)
		want("made again", 2, 2, 3, CounterStats{"likes", 1, 2}, CounterStats{"votes", 2, 0})
		both.ws.CloseNow()
		want("door.a is left", 2, 1, 3, CounterStats{"likes", 1, 1}, CounterStats{"votes", 2, 0})

		store.asked = func(string) {
			if !h.mu.TryLock() {
				t.Error("the store is asked under the hub's lock")
				return
			}
			h.mu.Unlock()
		}
		want("a fast store", 2, 1, 3, CounterStats{"likes", 1, 1}, CounterStats{"votes", 2, 0})
		if t.Failed() {
			return // with a slow store the hub would hang
		}
		store.slow = true
		began := time.Now()
		want("a slow store", 2, 1, 3, CounterStats{"likes", 1, 1})
		if took := time.Since(began); took != storeTimeout {
			t.Errorf("a slow store is asked for %v, want %v", took, storeTimeout)
		}
		store.slow, store.asked = false, nil
	})
}

// TestWithoutCountersStats checks that a hub with the default counter only says nothing of others.
func TestWithoutCountersStats(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newFakeHub(t, Config{})
		defer h.stop()
		h.join()
		if s := h.CountersStats(t.Context()); s != nil {
			t.Errorf("CountersStats = %+v, want nil", s)
		}
	})
}
