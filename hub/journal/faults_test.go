package journal

import (
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"sync"
	"testing"

	"plusminus/hub"
)

// witness drives a journal on a model as the hub does, and knows which values a process may
// find after a crash.
type witness struct {
	t    *testing.T
	what string // the faults of this life, for failure texts
	m    *model

	done    int64   // the value that was returned last
	flight  []int64 // the results of changes in flight, or of changes that failed and may be on disk
	crashes int     // the crashes that were checked
	once    bool    // one call fails in this life, not several
	removed bool    // the test has removed the file, and no change has succeeded since
}

// seen holds the checks that were made. A check with the same files and the same expectations
// would end the same way.
var seen sync.Map

// check starts a journal on m, the state after a crash. It must find done or one of flight,
// or nothing if there never was a value.
func (w *witness) check(m *model, how string) {
	w.t.Helper()
	w.crashes++
	key := fmt.Sprint(m.hash(), w.done, w.flight, w.removed)
	if _, ok := seen.LoadOrStore(key, true); ok {
		return
	}
	before := m.content()
	j, err := open(m, "d", &hub.Snapshot{})
	if w.removed && errors.Is(err, ErrDamaged) {
		return
	}
	if err != nil {
		w.t.Fatalf("%s: %s: Open = %v, on\n%s", w.what, how, err, before)
	}
	if v := j.now.Value; v != w.done && !slices.Contains(w.flight, v) {
		w.t.Fatalf("%s: %s: the value is %d, want %d or one of %d, on\n%s", w.what, how, v, w.done, w.flight, before)
	}
	// The value must stay, even if one copy is damaged now.
	for i := range copies {
		again := m.killed()
		again.names[filepath.Join("d", FileName)].flip(i*pageSize + 40)
		other, err := open(again, "d", &hub.Snapshot{})
		if err != nil || other.now != j.now {
			w.t.Fatalf("%s: %s: with copy %d damaged Open = %+v, %v, want %+v", w.what, how, i, other, err, j.now)
		}
	}
}

// look checks every state that a crash at this moment may leave.
func (w *witness) look() {
	w.check(w.m.killed(), "killed")
	w.m.crashed(func(after *model) { w.check(after, "power loss") })
}

// open opens the journal. It tries again while a fault makes that fail.
func (w *witness) open() *Journal {
	w.t.Helper()
	for range 100 {
		j, err := open(w.m, "d", &hub.Snapshot{})
		if err == nil {
			// The journal may hold a value of flight. From now on that is the value that counts.
			if v := j.now.Value; v != w.done && !slices.Contains(w.flight, v) {
				w.t.Fatalf("%s: opened, the value is %d, want %d or one of %d", w.what, v, w.done, w.flight)
			}
			w.done, w.flight = j.now.Value, nil
			return j
		}
		if w.removed && errors.Is(err, ErrDamaged) {
			set(w.m, "d", w.done) // as the operator would
			continue
		}
		if !errors.Is(err, errDisk) {
			w.t.Fatalf("%s: Open = %v, want %v or nil", w.what, err, errDisk)
		}
	}
	w.t.Fatalf("%s: Open failed 100 times, want it to recover", w.what)
	return nil
}

// apply makes one change.
func (w *witness) apply(j *Journal, delta int64) error {
	w.t.Helper()
	want := w.done + delta
	w.flight = append(w.flight, want)
	s, err := j.Apply(w.t.Context(), delta)
	switch {
	case err == nil && s.Value != want:
		w.t.Fatalf("%s: Apply(%d) = %d, want %d", w.what, delta, s.Value, want)
	case err == nil:
		w.done, w.flight, w.removed = want, nil, false
	case w.once || !j.unsure:
		w.flight = nil // the old value was written back: the disk holds nothing of the change
	}
	if err != nil && !errors.Is(err, errDisk) {
		w.t.Fatalf("%s: Apply(%d) = %v, want %v or nil", w.what, delta, err, errDisk)
	}
	if now, _ := j.Load(w.t.Context()); now.Value != w.done {
		w.t.Fatalf("%s: after Apply(%d), %v: Load = %d, want %d", w.what, delta, err, now.Value, w.done)
	}
	return err
}

// life makes a journal, changes it, closes and opens it, removes its file, and changes it
// again. Each delta is a power of two, so that a value tells which changes counted.
func (w *witness) life() {
	j := w.open()
	w.apply(j, 1)
	w.apply(j, 2)
	w.apply(j, 4)
	j.Close()
	j = w.open()
	w.apply(j, 8)
	w.m.remove(filepath.Join("d", FileName))
	w.removed = true
	w.apply(j, 16)
	w.apply(j, 32)
	j.Close()
}

// A crash at any moment, of the process or of the machine, leaves the last value that was
// returned or the one in flight.
func TestCrashAnywhere(t *testing.T) {
	t.Parallel()
	w := &witness{t: t, what: "no fault", m: newModel()}
	w.m.look = w.look
	w.life()
	if w.done != 63 || w.crashes < 500 {
		t.Errorf("the value is %d after %d crashes, want 63 and at least 500", w.done, w.crashes)
	}
	t.Logf("%d crashes at %d calls", w.crashes, w.m.calls)
}

// faults are the ways in which a call can fail.
var faults = []fault{
	{short: 0},
	{short: 1},
	{short: 60},
	{short: 600},
	{short: pageSize},
	{short: pageSize + 60},
	{short: fileSize, flushed: true}, // the call succeeds and reports an error
}

// Each call of a life fails, in each way, once or several times in a row. A change that Apply
// has refused does not count, unless a crash comes before the old value could be written
// back. The journal recovers by itself.
//
// The short form has fewer lengths of failure, the long form all.
func TestFaultAnywhere(t *testing.T) {
	t.Parallel()
	total := newModel()
	(&witness{t: t, m: total}).life()
	lengths := []int{1, 3}
	if *long {
		lengths = []int{1, 2, 3, 5, 20}
	}
	for _, kind := range faults {
		t.Run(fmt.Sprintf("short=%d", kind.short), func(t *testing.T) {
			t.Parallel()
			calls, crashes := 0, 0
			for first := range total.calls {
				for _, length := range lengths {
					m := newModel()
					w := &witness{t: t, m: m, once: length == 1, what: fmt.Sprintf("calls %d to %d fail as %+v", first, first+length-1, kind)}
					m.fail = func(call int) *fault {
						if call >= first && call < first+length {
							calls++
							return &kind
						}
						return nil
					}
					m.look = w.look
					w.life()
					// The disk works again. A refused change must leave no trace.
					m.look, m.fail = nil, nil
					j := w.open()
					if err := w.apply(j, 1<<20); err != nil {
						t.Fatalf("%s: after the faults Apply = %v, want nil", w.what, err)
					}
					w.look()
					j.Close()
					crashes += w.crashes
				}
			}
			t.Logf("%d calls failed, in lives of %d calls; %d crashes", calls, total.calls, crashes)
		})
	}
}
