package hub

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"testing/synctest"
	"time"
)

// wantHistory compares the history of a counter.
func wantHistory(t *testing.T, h *Hub, name string, before Value, points ...Point) {
	t.Helper()
	gotBefore, got, ok := h.History(t.Context(), name)
	if !ok || gotBefore != before || !slices.Equal(got, points) {
		t.Errorf("History(%q) = %d, %v, %v, want %d, %v", name, gotBefore, got, ok, before, points)
	}
}

// A history has one point for each second with a change, and the value before them. It ends after 300 seconds.
func TestHistory(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := new(Memory)
		if _, err := store.Apply(t.Context(), 5); err != nil {
			t.Fatal(err)
		}
		h := newFakeHub(t, Config{Store: store})
		defer h.stop()
		p := h.join()
		p.take()
		wantHistory(t, h.Hub, "", 5)
		time.Sleep(10 * time.Second)
		p.send(plus)
		wantHistory(t, h.Hub, "", 5, Point{0, 6})
		time.Sleep(time.Second - time.Nanosecond)
		p.send(plus) // in the same second
		wantHistory(t, h.Hub, "", 5, Point{0, 7})
		time.Sleep(time.Nanosecond)
		wantHistory(t, h.Hub, "", 5, Point{-1, 7})
		p.send(minus)
		wantHistory(t, h.Hub, "", 5, Point{-1, 7}, Point{0, 6})
		time.Sleep(298 * time.Second)
		wantHistory(t, h.Hub, "", 5, Point{-299, 7}, Point{-298, 6})
		p.send(plus)
		time.Sleep(time.Second - time.Nanosecond)
		wantHistory(t, h.Hub, "", 5, Point{-299, 7}, Point{-298, 6}, Point{0, 7})
		time.Sleep(time.Nanosecond)
		wantHistory(t, h.Hub, "", 7, Point{-299, 6}, Point{-1, 7})
		time.Sleep(time.Second)
		wantHistory(t, h.Hub, "", 6, Point{-2, 7})
		time.Sleep(297 * time.Second)
		wantHistory(t, h.Hub, "", 6, Point{-299, 7})
		time.Sleep(time.Second)
		wantHistory(t, h.Hub, "", 7)
	})
}

// A counter that changes all the time has 300 points.
func TestHistoryIsFull(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newFakeHub(t, Config{})
		defer h.stop()
		p := h.join()
		for range 1000 {
			p.send(plus)
			time.Sleep(500 * time.Millisecond)
		}
		before, points, ok := h.History(t.Context(), "")
		if !ok || before != 402 || len(points) != 299 || points[0] != (Point{-299, 404}) || points[298] != (Point{-1, 1000}) {
			t.Errorf("History = %d, %d points from %v to %v, want 402 and 299 from {-299 404} to {-1 1000}", before, len(points), points[0], points[len(points)-1])
		}
		p.send(plus)
		if _, points, _ := h.History(t.Context(), ""); len(points) != 300 {
			t.Errorf("%d points, want 300", len(points))
		}
	})
}

// Each counter has its history, also after it is not in use any more, and none when it has not changed for 300 seconds.
func TestHistoriesOfCounters(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newFakeHub(t, Config{Counters: []string{"*"}})
		defer h.stop()
		act := func(name, action string) {
			t.Helper()
			if _, err := h.Act(t.Context(), name, someone, []byte(action)); err != nil {
				t.Fatal(err)
			}
			synctest.Wait() // Act may return before the value is published
		}
		act("likes", plus)
		time.Sleep(time.Second)
		act("seats", minus)
		time.Sleep(time.Second)
		synctest.Wait()
		h.mu.Lock()
		inUse := len(h.counters)
		h.mu.Unlock()
		if inUse != 0 {
			t.Fatalf("%d counters are in use, want none", inUse)
		}
		wantHistory(t, h.Hub, "likes", 0, Point{-2, 1})
		wantHistory(t, h.Hub, "seats", 0, Point{-1, -1})
		wantHistory(t, h.Hub, "", 0)
		wantHistory(t, h.Hub, "never", 0)
		act("likes", plus)
		if _, err := h.Set(t.Context(), "seats", 40); err != nil {
			t.Fatal(err)
		}
		if err := h.Remove(t.Context(), "likes"); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		wantHistory(t, h.Hub, "likes", 0, Point{-2, 1}, Point{0, 0})
		wantHistory(t, h.Hub, "seats", 0, Point{-1, -1}, Point{0, 40})
		time.Sleep(302 * time.Second) // nothing is published or read, and the hub forgets nevertheless
		h.histories.mu.Lock()
		defer h.histories.mu.Unlock()
		if n := len(h.histories.of); n != 0 || h.histories.ring != nil {
			t.Errorf("%d histories and room for %d points are left, want none", n, len(h.histories.ring))
		}
	})
}

// A value that the hub reads from a shared store for the first time is no change.
func TestHistoryBeginsWithTheFirstValue(t *testing.T) {
	h := &Hub{histories: newHistories(), cfg: Config{Shards: 1}}
	h.standard = newCounter(h, "")
	h.publish(h.standard, Snapshot{Version: 3, Value: 7}, nil)
	wantHistory(t, h, "", 7)
	h.publish(h.standard, Snapshot{Version: 4, Value: 9}, nil)
	wantHistory(t, h, "", 7, Point{0, 9})
}

// The histories are those that a simple program keeps, whatever the number of counters.
func TestHistoriesModel(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHistories()
		type change struct {
			second   int
			from, to Value
		}
		var now int
		all := map[string][]change{}
		random := rand.New(rand.NewPCG(1, 2))
		for step := range 20_000 {
			if step%1000 == 0 { // sometimes a long pause, which empties most
				time.Sleep(200 * time.Second)
				now += 200
			}
			if random.IntN(3) == 0 {
				time.Sleep(time.Second)
				now++
			}
			name := fmt.Sprint(random.IntN(1 + step/100))
			changes := all[name]
			var from Value
			if len(changes) > 0 {
				from = changes[len(changes)-1].to
			}
			to := from + Value(random.IntN(5)) + 1
			h.add(name, from, to)
			if n := len(changes); n > 0 && changes[n-1].second == now {
				changes[n-1].to = to
			} else {
				changes = append(changes, change{now, from, to})
			}
			all[name] = changes

			name = fmt.Sprint(random.IntN(1 + step/100))
			var want []Point
			var wantBefore Value
			for _, c := range all[name] {
				if now-c.second >= historyLength {
					continue
				}
				if want == nil {
					wantBefore = c.from
				}
				want = append(want, Point{c.second - now, c.to})
			}
			before, got := h.read(name)
			if before != wantBefore || !slices.Equal(got, want) {
				t.Fatalf("step %d: read(%s) = %d, %v, want %d, %v", step, name, before, got, wantBefore, want)
			}
		}
	})
}

// The points of all histories are bounded. Over that the oldest are dropped, and the rest stays right.
func TestHistoriesAreBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHistories()
		h.add("first", 0, 1)
		time.Sleep(time.Second)
		h.add("first", 1, 2)
		h.add("other", 0, 7)
		for i := range maxPoints - 3 {
			h.add(fmt.Sprint(i), 0, 1)
		}
		want := func(name string, before Value, points ...Point) {
			t.Helper()
			if gotBefore, got := h.read(name); gotBefore != before || !slices.Equal(got, points) {
				t.Errorf("read(%s) = %d, %v, want %d, %v", name, gotBefore, got, before, points)
			}
		}
		want("first", 0, Point{-1, 1}, Point{0, 2})
		h.add("new", 0, 3)
		want("first", 1, Point{0, 2})
		time.Sleep(time.Second)
		h.add("first", 2, 3) // drops its own only point
		want("first", 2, Point{0, 3})
		h.add("new", 3, 4) // drops that of other
		want("new", 0, Point{-1, 3}, Point{0, 4})
		want("other", 0)
		if len(h.ring) != maxPoints || len(h.of) != maxPoints-1 {
			t.Errorf("room for %d points, %d histories, want %d and %d", len(h.ring), len(h.of), maxPoints, maxPoints-1)
		}
		time.Sleep(historyLength * time.Second)
		h.trim()
		if len(h.ring) != 0 || len(h.of) != 0 {
			t.Errorf("room for %d points, %d histories, want none", len(h.ring), len(h.of))
		}
	})
}

// Publishing keeps no garbage: a counter that changes all the time allocates nothing for its history.
func TestHistoryAllocatesNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHistories()
		change := func() {
			h.add("likes", 0, 1)
			time.Sleep(time.Second / 2)
		}
		for range 4 * historyLength {
			change()
		}
		if n := testing.AllocsPerRun(1000, change); n != 0 {
			t.Errorf("a change allocates %v times, want 0", n)
		}
	})
}

// Goroutines read histories while others act.
func TestHistoryConcurrently(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newFakeHub(t, Config{Counters: []string{"*"}})
		defer h.stop()
		for i := range 4 {
			name := fmt.Sprint(i % 2)
			go func() {
				for range 200 {
					if _, err := h.Act(t.Context(), name, someone, []byte(plus)); err != nil {
						t.Error(err)
					}
				}
			}()
			go func() {
				var last Value
				for range 200 {
					before, points, ok := h.History(t.Context(), name)
					value := before
					if len(points) > 0 {
						value = points[len(points)-1].Value
					}
					if !ok || value < last {
						t.Errorf("History goes back to %d after %d, ok %v", value, last, ok)
					}
					last = value
				}
			}()
		}
		synctest.Wait()
		wantHistory(t, h.Hub, "0", 0, Point{0, 400})
		wantHistory(t, h.Hub, "1", 0, Point{0, 400})
	})
}
