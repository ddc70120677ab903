package journal

import (
	"errors"
	"fmt"
	"slices"
	"testing"

	"plusminus/hub"
)

// witness drives a journal on a model as the hub does, and knows what may be found.
type witness struct {
	t    *testing.T
	what string // the faults, for messages
	m    *model

	done    int64   // the value that was returned last
	flight  []int64 // the values that a change on its way would lead to, or led to as it failed
	applied int     // changes that went well
	crashes int     // that were looked at
	once    bool    // one call fails, and no more
	removed bool    // somebody has removed the file, and no change went well since
}

// seen are the checks that were made; the same again would end the same.
var seen = map[string]bool{}

// check makes sure that a process that starts on m after a crash finds done or one of
// flight, or nothing if there never was a value.
func (w *witness) check(m *model, how string) {
	w.t.Helper()
	w.crashes++
	key := fmt.Sprint(m.hash(), w.done, w.flight, w.removed)
	if seen[key] {
		return
	}
	seen[key] = true
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
	// Whatever was found must stay, even if one copy is damaged now.
	for i := range copies {
		again := m.killed()
		again.names["d/"+FileName].cache[i*pageSize+40] ^= 1
		other, err := open(again, "d", &hub.Snapshot{})
		if err != nil || other.now != j.now {
			w.t.Fatalf("%s: %s: with copy %d damaged it is %+v, %v, want %+v", w.what, how, i, other, err, j.now)
		}
	}
}

// look checks all that a crash may leave now.
func (w *witness) look() {
	w.check(w.m.killed(), "killed")
	w.m.crashed(func(after *model) { w.check(after, "power loss") })
}

// open opens the journal, again and again while that fails.
func (w *witness) open() *Journal {
	w.t.Helper()
	for range 100 {
		j, err := open(w.m, "d", &hub.Snapshot{})
		if err == nil {
			// It may have what was on its way; now that is what counts.
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
			w.t.Fatalf("%s: Open = %v, want only the fault", w.what, err)
		}
	}
	w.t.Fatalf("%s: Open does not heal", w.what)
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
		w.applied++
	case w.once || !j.unsure:
		w.flight = nil // it was put back, and nothing of it is left
	}
	if err != nil && !errors.Is(err, errDisk) {
		w.t.Fatalf("%s: Apply = %v, want only the fault", w.what, err)
	}
	if now, _ := j.Load(w.t.Context()); now.Value != w.done {
		w.t.Fatalf("%s: after Apply(%d), %v: Load = %d, want %d", w.what, delta, err, now.Value, w.done)
	}
	return err
}

// life is what a journal does in a test: it is made, changed, closed, opened, removed by
// somebody, changed. Each delta is a power of two, so that a value tells which counted.
func (w *witness) life() {
	j := w.open()
	w.apply(j, 1)
	w.apply(j, 2)
	w.apply(j, 4)
	j.Close()
	j = w.open()
	w.apply(j, 8)
	w.m.remove("d/" + FileName)
	w.removed = true
	w.apply(j, 16)
	w.apply(j, 32)
	j.Close()
}

// A crash at any moment, of the process or of the machine, leaves the last value that was
// returned or the one that was on its way.
func TestCrashAnywhere(t *testing.T) {
	w := &witness{t: t, what: "no fault", m: newModel()}
	w.m.look = w.look
	w.life()
	if w.done != 63 || w.crashes < 500 {
		t.Errorf("the value is %d after %d crashes, want 63 and hundreds", w.done, w.crashes)
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
	{short: fileSize, flushed: true}, // it worked, and says that it did not
}

// Every call fails, in every way, once or for a while. What Apply has refused does not
// count, unless a crash comes before the old value could be put back; it heals by itself.
func TestFaultAnywhere(t *testing.T) {
	total := newModel()
	(&witness{t: t, m: total}).life()
	calls, crashes := 0, 0
	lengths := []int{1, 2, 3, 5, 20}
	if testing.Short() {
		lengths = []int{1, 3}
	}
	for first := range total.calls {
		for _, kind := range faults {
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
				// The refusal of one change must leave no trace, if the disk works again by then.
				m.look, m.fail = nil, nil
				j := w.open()
				if err := w.apply(j, 1<<20); err != nil {
					t.Fatalf("%s: then Apply = %v, want it to have healed", w.what, err)
				}
				w.look()
				j.Close()
				crashes += w.crashes
			}
		}
	}
	t.Logf("%d calls of %d in a life failed, %d crashes", calls, total.calls, crashes)
}
