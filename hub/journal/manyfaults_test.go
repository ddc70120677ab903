package journal

import (
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"

	"plusminus/hub"
)

// small is a geometry with which a life is short and meets everything: a log that is full after a few commits, and a table
// that grows by 16 counters.
func small(maxCounters int) *Many {
	return &Many{geometry: geometry{sectors: 16}, growPages: 1, max: maxCounters}
}

// counts are the values of all counters. The default counter is always there.
type counts map[string]hub.Value

// contentOf returns all counters of m.
func contentOf(t *testing.T, m *Many) (counts, map[string]uint64) {
	t.Helper()
	values, versions := counts{}, map[string]uint64{}
	list, err := m.List(t.Context(), "", "", 1<<30)
	if err != nil || len(list) != m.Len() {
		t.Fatalf("List = %d counters, %v, want %d", len(list), err, m.Len())
	}
	first, _ := m.Load(t.Context())
	for _, e := range append(list, hub.Entry{Snapshot: first}) {
		values[e.Counter], versions[e.Counter] = e.Value, e.Version
	}
	return values, versions
}

// manyWitness drives a [Many] on a model as the hub does, and knows which counters a process may find after a crash. A
// commit is found as a whole or not at all.
type manyWitness struct {
	t      *testing.T
	what   string // the faults of this life, for failure texts
	m      *model
	random *rand.Rand
	most   int // the most sectors of which all sets are tried

	done     counts            // what was returned last
	versions map[string]uint64 // of done
	highest  map[string]uint64 // the highest version that a counter has had, also of removed ones
	flight   []counts          // the results of commits in flight, or of ones that failed and may be on disk
	crashes  int               // the crashes that were checked
	removed  bool              // the test has removed the file, and no change has succeeded since
	once     bool              // one call fails in this life, not several
}

func newManyWitness(t *testing.T, what string) *manyWitness {
	w := &manyWitness{t: t, what: what, m: newModel(), random: rand.New(rand.NewPCG(1, 2)), most: 3,
		done: counts{"": 0}, versions: map[string]uint64{}, highest: map[string]uint64{}}
	if *long {
		w.most = 6
	}
	return w
}

// accept checks that m holds done or one of flight.
func (w *manyWitness) accept(m *Many, how string) counts {
	w.t.Helper()
	got, versions := contentOf(w.t, m)
	ok := maps.Equal(got, w.done)
	for _, f := range w.flight {
		ok = ok || maps.Equal(got, f)
	}
	if !ok {
		w.t.Fatalf("%s: %s: the counters are %v, want %v or one of %v", w.what, how, got, w.done, w.flight)
	}
	for name, v := range versions {
		if was, ok := w.versions[name]; ok && (v < was || got[name] != w.done[name] && v == was) {
			w.t.Fatalf("%s: %s: %q has version %d, value %d; want one after version %d, value %d", w.what, how, name, v, got[name], was, w.done[name])
		}
	}
	return got
}

var seenMany sync.Map // as seen

// check opens m, the state after a crash.
func (w *manyWitness) check(m *model, how string) {
	w.t.Helper()
	w.crashes++
	key := fmt.Sprint(m.hash(), w.done, w.flight, w.removed)
	if _, ok := seenMany.LoadOrStore(key, true); ok {
		return
	}
	if m.hidden() {
		// Opening must not make anything depend on what the disk does not have. So the power may be lost meanwhile.
		m.look = func() {
			m.torn(2, w.random, func(after *model) {
				j, err := openMany(after, "d", small(100), true)
				if err != nil {
					w.t.Fatalf("%s: %s and power loss in OpenMany: OpenMany = %v", w.what, how, err)
				}
				w.accept(j, how+" and power loss in OpenMany")
			})
		}
	}
	j, err := openMany(m, "d", small(100), true)
	m.look = nil
	if w.removed && errors.Is(err, ErrDamaged) {
		return
	}
	if err != nil {
		w.t.Fatalf("%s: %s: OpenMany = %v", w.what, how, err)
	}
	got := w.accept(j, how)
	// What was found must stay, after a power loss and with any byte inverted.
	lost := newModel()
	for name, ino := range m.onDisk {
		lost.add(name, ino.disk)
	}
	file := lost.names[filepath.Join("d", FileName)]
	file.flip(w.random.IntN(len(file.cache)))
	j, err = openMany(lost, "d", small(100), true)
	if err != nil {
		w.t.Fatalf("%s: %s: after OpenMany, a power loss and with a damaged byte OpenMany = %v", w.what, how, err)
	}
	if again, _ := contentOf(w.t, j); !maps.Equal(again, got) {
		w.t.Fatalf("%s: %s: the counters were %v, and after a power loss they are %v", w.what, how, got, again)
	}
}

// look checks states that a crash at this moment may leave.
func (w *manyWitness) look() {
	w.check(w.m.killedAlone(), "killed")
	w.m.torn(w.most, w.random, func(after *model) { w.check(after, "power loss") })
}

// open opens the journal. It tries again while a fault makes that fail.
func (w *manyWitness) open() *Many {
	w.t.Helper()
	for range 100 {
		m, err := openMany(w.m, "d", small(100), true)
		if err == nil {
			w.done = w.accept(m, "opened")
			_, w.versions = contentOf(w.t, m)
			w.flight = nil
			return m
		}
		if w.removed && errors.Is(err, ErrDamaged) {
			// The operator goes on without the values.
			w.done, w.versions, w.highest, w.flight, w.removed = counts{"": 0}, nil, map[string]uint64{}, nil, false
			for ; m == nil; m, _, _ = renewMany(w.m, "d", small(100)) {
			}
			return m
		}
		if !errors.Is(err, errDisk) && !errors.Is(err, syscall.ENOSPC) {
			w.t.Fatalf("%s: OpenMany = %v, want %v or nil", w.what, err, errDisk)
		}
	}
	w.t.Fatalf("%s: OpenMany failed 100 times, want it to recover", w.what)
	return nil
}

// after returns done with those changes made that pick picks and that stay in range, and the errors of the others.
func (w *manyWitness) after(changes []hub.Change, pick func(c hub.Change, isNew bool) bool) (counts, []error) {
	after, errs := maps.Clone(w.done), make([]error, len(changes))
	for i, c := range changes {
		value, had := after[c.Counter]
		next := value + c.Delta
		if c.Set != nil {
			next = *c.Set
		}
		switch {
		case !pick(c, !had):
		case c.Remove && c.Counter != "":
			delete(after, c.Counter)
		case c.Remove:
			after[""] = 0
		case !had && c.Set == nil && c.Delta == 0:
		case next > hub.MaxValue || next < -hub.MaxValue:
			errs[i] = hub.ErrRange
		default:
			after[c.Counter] = next
		}
	}
	return after, errs
}

// apply makes the changes, and compares their outcomes with those of a map. Its error is that of the commit.
func (w *manyWitness) apply(m *Many, changes ...hub.Change) error {
	w.t.Helper()
	all, want := w.after(changes, func(hub.Change, bool) bool { return true })
	slots := len(m.unused)
	some, _ := w.after(changes, func(c hub.Change, isNew bool) bool { // if the table cannot grow
		if isNew && makes(&c) {
			slots--
		}
		return !isNew || slots >= 0
	})
	w.flight = append(w.flight, all, some)
	m.ApplyAll(w.t.Context(), changes)
	made, _ := w.after(changes, func(c hub.Change, _ bool) bool { return c.Err == nil })
	var failed error
	for i, c := range changes {
		_, had := w.done[c.Counter]
		switch isDisk := errors.Is(c.Err, errDisk); {
		case isDisk && maps.Equal(made, w.done): // the commit, or all that there was to do
			failed = c.Err
		case isDisk && !had && !c.Remove:
		case errors.Is(c.Err, hub.ErrFull) && !had && !c.Remove:
		case c.Err != want[i]:
			w.t.Fatalf("%s: %+v has %v, want %v", w.what, c, c.Err, want[i])
		}
	}
	values, versions := contentOf(w.t, m)
	if !maps.Equal(values, made) {
		w.t.Fatalf("%s: after %+v the counters are %v, want %v", w.what, changes, values, made)
	}
	if failed == nil || !m.unsure || w.once {
		w.flight = nil // a commit that failed is undone on disk
	}
	if failed == nil {
		w.done, w.versions, w.removed = made, versions, false
	}
	for _, c := range changes {
		if c.Err == nil && c.Snapshot.Version > 0 {
			if c.Snapshot.Value != made[c.Counter] || c.Snapshot.Version <= w.highest[c.Counter] {
				w.t.Fatalf("%s: %q has %+v, want value %d and a version above %d", w.what, c.Counter, c.Snapshot, made[c.Counter], w.highest[c.Counter])
			}
			w.highest[c.Counter] = c.Snapshot.Version
		}
	}
	return failed
}

func add(name string, delta hub.Delta) hub.Change { return hub.Change{Counter: name, Delta: delta} }
func remove(name string) hub.Change               { return hub.Change{Counter: name, Remove: true} }

// longNames returns changes of n counters with names of 64 bytes, so that six of them need two sectors.
func longNames(n int, delta hub.Delta) []hub.Change {
	var list []hub.Change
	for i := range n {
		list = append(list, add(fmt.Sprintf("%02d%s", i, strings.Repeat("x", 62)), delta))
	}
	return list
}

// life makes a journal, and does everything with it that changes the file in a way of its own.
func (w *manyWitness) life() {
	m := w.open()
	w.apply(m, add("", 1))
	w.apply(m, add("a", 2), add("b", 4), add("", 8))
	w.apply(m, remove("a"), add("c", 16))
	w.apply(m, longNames(8, 32)...)                     // two sectors
	w.apply(m, longNames(7, 64)...)                     // a checkpoint
	w.apply(m, add("a", 128), add("d", 1), add("e", 1)) // a again
	w.apply(m, append(longNames(10, 256), add("", 256))...)
	w.apply(m, longNames(13, 1)...) // the table grows
	m.Close()
	m = w.open()
	w.apply(m, add("b", 512), remove("c"))
	w.m.remove(filepath.Join("d", FileName))
	w.removed = true
	w.apply(m, add("", 1024))
	w.apply(m, add("b", 2048))
	m.Close()
}

// A crash at any moment, of the process or of the machine, leaves the commit that was returned last or the one in flight,
// each as a whole.
func TestManyCrashAnywhere(t *testing.T) {
	t.Parallel()
	w := newManyWitness(t, "no fault")
	w.most += 3
	w.m.look = w.look
	w.life()
	if w.done[""] != 1+8+256+1024 || w.done["b"] != 4+512+2048 || len(w.done) != 18 || w.crashes < 2000 {
		t.Errorf("%d counters after %d crashes, %v", len(w.done), w.crashes, w.done)
	}
	t.Logf("%d crashes at %d calls", w.crashes, w.m.calls)
}

// A crash at any moment while commits of one to three sectors go round the log, which has room for sixteen.
func TestManyCrashRoundLog(t *testing.T) {
	t.Parallel()
	w := newManyWitness(t, "round the log")
	m := w.open()
	w.m.look = w.look
	for i := range 24 {
		w.apply(m, longNames(1+i%3*6, 1)...)
	}
	t.Logf("%d crashes", w.crashes)
}

// Two crashes in a row, each in the middle of a commit of the same size: no mixture of the two is a commit.
func TestManyTwoCrashes(t *testing.T) {
	t.Parallel()
	begin := newModel()
	m, err := openMany(begin, "d", small(100), true)
	if err != nil {
		t.Fatal(err)
	}
	applyAll(t, m, longNames(12, 1)...)
	random := rand.New(rand.NewPCG(1, 2))
	// interrupt makes a commit on sys, and calls f with each state that a crash in its fsync may leave.
	interrupt := func(sys *model, delta hub.Delta, f func(*model)) {
		m, err := openMany(sys, "d", small(100), true)
		if err != nil {
			t.Fatalf("OpenMany = %v", err)
		}
		var states []*model // the last ones: those before the fsync
		sys.look = func() {
			if len(sys.names[m.path].dirty) > 0 {
				states = states[:0]
				sys.torn(6, random, func(after *model) { states = append(states, after) })
			}
		}
		applyAll(t, m, longNames(12, delta)...)
		for _, after := range states {
			f(after)
		}
	}
	crashes := 0
	interrupt(begin, 10, func(first *model) {
		interrupt(first, 100, func(second *model) {
			crashes++
			m, err := openMany(second, "d", small(100), true)
			if err != nil {
				t.Fatalf("OpenMany = %v", err)
			}
			seen := map[hub.Value]bool{}
			for _, s := range m.slots[1:13] {
				seen[s.value] = true
			}
			for v := range seen {
				if len(seen) != 1 || v != 1 && v != 11 && v != 101 && v != 111 {
					t.Fatalf("the counters have the values %v, want all the same", seen)
				}
			}
		})
	})
	t.Logf("%d pairs of crashes", crashes)
}

// Each call of a life fails, in each way, once or several times in a row. A change that ApplyAll has refused does not
// count, unless a crash comes before it could be undone. The journal recovers by itself.
//
// The short form has fewer kinds and lengths of failure, and looks at crashes only for a while after the first failure.
func TestManyFaultAnywhere(t *testing.T) {
	t.Parallel()
	total := newManyWitness(t, "")
	total.life()
	kinds := []fault{{short: 1}, {short: 1200}, {short: 1 << 20, flushed: true}}
	lengths := []int{1, 4}
	during := 10
	if *long {
		kinds = append(kinds, fault{short: 0}, fault{short: sector}, fault{short: 3 * sector}, fault{short: pageSize}, fault{short: 1 << 20})
		lengths = []int{1, 2, 5, 20}
		during = 30
	}
	for _, kind := range kinds {
		t.Run(fmt.Sprintf("short=%d flushed=%t", kind.short, kind.flushed), func(t *testing.T) {
			t.Parallel()
			calls, crashes := 0, 0
			for first := range total.m.calls {
				for _, length := range lengths {
					w := newManyWitness(t, fmt.Sprintf("calls %d to %d fail as %+v", first, first+length-1, kind))
					w.most, w.once = w.most-1, length == 1
					w.m.fail = func(call int) *fault {
						if call >= first && call < first+length {
							calls++
							return &kind
						}
						return nil
					}
					w.m.look = func() {
						if w.m.calls > first && w.m.calls < first+length+during {
							w.look()
						}
					}
					w.life()
					// The disk works again. A refused change must leave no trace.
					w.m.look, w.m.fail = nil, nil
					m := w.open()
					if err := w.apply(m, add("a", 1<<20)); err != nil {
						t.Fatalf("%s: after the faults ApplyAll = %v, want nil", w.what, err)
					}
					w.look()
					m.Close()
					crashes += w.crashes
				}
			}
			t.Logf("%d calls failed, in lives of %d calls; %d crashes", calls, total.m.calls, crashes)
		})
	}
}

// Many random lives: changes of all kinds, a full disk, closes, and crashes in the middle of calls.
func TestManyRandom(t *testing.T) {
	t.Parallel()
	lives := 60
	if *long {
		lives = 5000
	}
	seed := rand.Uint64()
	crashes, full := 0, 0
	for life := range lives {
		w := newManyWitness(t, fmt.Sprintf("seed %d, life %d", seed, life))
		w.random = rand.New(rand.NewPCG(seed, uint64(life)))
		name := func() string {
			if n := w.random.IntN(40); n > 0 {
				return strings.Repeat("n", n) + fmt.Sprint(n)
			}
			return ""
		}
		m := w.open()
		for range 40 {
			w.m.full = w.random.IntN(3) == 0
			if w.random.IntN(8) == 0 { // power is lost some calls later, perhaps in the middle of a write
				last, cut := w.m.calls+w.random.IntN(6), fault{short: w.random.IntN(6) * sector}
				w.m.fail = func(call int) *fault {
					if call >= last {
						return &cut
					}
					return nil
				}
			}
			var changes []hub.Change
			names := map[string]bool{}
			for range 1 + w.random.IntN(12) {
				c := hub.Change{Counter: name()}
				if names[c.Counter] {
					continue
				}
				names[c.Counter] = true
				switch w.random.IntN(8) {
				case 0, 1:
					c.Remove = true
				case 2:
					v := hub.Value(w.random.Int64N(2*hub.MaxValue) - hub.MaxValue)
					c.Set = &v
				case 3:
					c.Delta = hub.MaxValue - 5 // often out of range
				case 4: // 0
				default:
					c.Delta = hub.Delta(w.random.IntN(1 << 30))
				}
				changes = append(changes, c)
			}
			w.apply(m, changes...)
			for _, c := range changes {
				if errors.Is(c.Err, hub.ErrFull) {
					full++
				}
			}
			switch {
			case w.m.fail != nil:
				var states []*model
				w.m.fail = nil
				w.m.torn(6, w.random, func(after *model) { states = append(states, after) })
				w.m = states[w.random.IntN(len(states))]
				crashes++
				m = w.open()
			case w.random.IntN(10) == 0:
				m.Close()
				m = w.open()
			}
		}
	}
	t.Logf("%d lives with %d crashes; %d counters found no room", lives, crashes, full)
	if crashes == 0 || full == 0 {
		t.Error("want some of each")
	}
}
