package hub

import (
	"errors"
	"fmt"
	"slices"
	"testing"
)

// Memory keeps counters apart. A change of nothing makes none, and each change has its own outcome.
func TestMemoryCounters(t *testing.T) {
	t.Parallel()
	m := new(Memory)
	limit, past, twelve := Value(MaxValue), Value(MaxValue+1), Value(12)
	for _, step := range []struct {
		change Change
		want   Snapshot
		err    error
	}{
		{Change{Counter: "likes"}, Snapshot{}, nil},
		{Change{Counter: "likes", Delta: 3}, Snapshot{Version: 1, Value: 3}, nil},
		{Change{Counter: "door.a", Delta: -2}, Snapshot{Version: 1, Value: -2}, nil},
		{Change{Counter: "likes", Set: &twelve}, Snapshot{Version: 2, Value: 12}, nil},
		{Change{Counter: "likes", Set: &limit}, Snapshot{Version: 3, Value: MaxValue}, nil},
		{Change{Counter: "likes", Delta: 1}, Snapshot{Version: 3, Value: MaxValue}, ErrRange},
		{Change{Counter: "likes", Set: &past}, Snapshot{Version: 3, Value: MaxValue}, ErrRange},
		{Change{Delta: 1}, Snapshot{Version: 1, Value: 1}, nil},
		{Change{Counter: "door.b", Delta: 1}, Snapshot{Version: 1, Value: 1}, nil},
		{Change{Counter: "door.b", Remove: true}, Snapshot{}, nil},
		{Change{Remove: true}, Snapshot{Version: 2}, nil},
	} {
		changes := []Change{step.change, {Counter: "other", Delta: 0}}
		m.ApplyAll(t.Context(), changes)
		if got := changes[0]; got.Snapshot != step.want || !errors.Is(got.Err, step.err) {
			t.Errorf("%+v: %+v, %v, want %+v, %v", step.change, got.Snapshot, got.Err, step.want, step.err)
		}
		if now, err := m.LoadCounter(t.Context(), step.change.Counter); now != step.want || err != nil {
			t.Errorf("after %+v: %+v, %v, want %+v", step.change, now, err, step.want)
		}
	}
	m.ApplyAll(t.Context(), []Change{{Counter: "door.c", Delta: 1}, {Counter: "door.d", Delta: 1}, {Counter: "door.e", Delta: 1}})
	if got := m.Len(); got != 5 {
		t.Errorf("%d counters, want 5", got)
	}
	names := func(prefix, after string, limit int) (names []string) {
		entries, err := m.List(t.Context(), prefix, after, limit)
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range entries {
			names = append(names, e.Counter)
		}
		return names
	}
	if got := names("", "", 100); !slices.Equal(got, []string{"door.a", "door.c", "door.d", "door.e", "likes"}) {
		t.Errorf("all: %v", got)
	}
	for limit := range 7 {
		if got := names("", "", limit); !slices.Equal(got, []string{"door.a", "door.c", "door.d", "door.e", "likes"}[:min(limit, 5)]) {
			t.Errorf("the first %d: %v", limit, got)
		}
	}
	if got := names("door.", "door.a", 2); !slices.Equal(got, []string{"door.c", "door.d"}) {
		t.Errorf("two after door.a: %v", got)
	}
}

// Of many counters, a list has the right ones, whatever the order in which they are found.
func TestListOf(t *testing.T) {
	t.Parallel()
	counters := make(map[string]int)
	for i := range 500 {
		counters[fmt.Sprintf("n%03d", i)] = i
	}
	for _, limit := range []int{1, 7, 250, 1000} {
		seen := 0
		for after := ""; ; {
			list := ListOf(counters, func(i int) Snapshot { return Snapshot{Value: Value(i)} }, "n", after, limit)
			if len(list) == 0 {
				break
			}
			for _, e := range list {
				if e.Counter != fmt.Sprintf("n%03d", seen) || e.Value != Value(seen) {
					t.Fatalf("limit %d: %+v as number %d", limit, e, seen)
				}
				seen++
				after = e.Counter
			}
		}
		if seen != 500 {
			t.Errorf("limit %d: %d counters, want 500", limit, seen)
		}
	}
}
