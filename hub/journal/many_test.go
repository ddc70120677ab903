package journal

import (
	"bytes"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"plusminus/hub"
)

func mustOpenMany(t testing.TB, dir string, max int) *Many {
	t.Helper()
	m, err := OpenMany(dir, max)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { m.Close() })
	return m
}

// Counters are there after a second open, with their versions. A folder with many counters is refused by those who know one.
func TestManyReopen(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	if _, err := Format(dir); !errors.Is(err, ErrNone) {
		t.Errorf("Format of an empty folder = %v, want ErrNone", err)
	}
	if _, err := ReopenMany(dir, 10); !errors.Is(err, ErrNone) {
		t.Errorf("ReopenMany of an empty folder = %v, want ErrNone", err)
	}
	m := mustOpenMany(t, dir, 10)
	limit := hub.Value(hub.MaxValue)
	changes := []hub.Change{add("likes", 3), add("door.a", -2), {Counter: "max", Set: &limit}, add("", 5), {Counter: "nothing"}, remove("unknown")}
	m.ApplyAll(t.Context(), changes)
	for i, want := range []hub.Snapshot{{Version: 1, Value: 3}, {Version: 1, Value: -2}, {Version: 1, Value: limit}, {Version: 1, Value: 5}, {}, {}} {
		if changes[i].Snapshot != want || changes[i].Err != nil {
			t.Errorf("%s: %+v, %v, want %+v", changes[i].Counter, changes[i].Snapshot, changes[i].Err, want)
		}
	}
	changes = []hub.Change{add("max", 1), add("likes", 1)}
	m.ApplyAll(t.Context(), changes)
	if !errors.Is(changes[0].Err, hub.ErrRange) || changes[0].Snapshot.Value != limit || changes[1].Err != nil || changes[1].Snapshot.Value != 4 {
		t.Errorf("%+v, want the first out of range and the second made", changes)
	}
	values, versions := contentOf(t, m)
	m.Close()
	if _, err := Open(dir); !errors.Is(err, ErrMany) {
		t.Errorf("Open of a folder with many counters = %v, want ErrMany", err)
	}
	if _, err := Value(dir); !errors.Is(err, ErrMany) {
		t.Errorf("Value of it = %v, want ErrMany", err)
	}
	if _, err := Set(dir, 1); !errors.Is(err, ErrMany) {
		t.Errorf("Set of it = %v, want ErrMany", err)
	}
	if n, err := Format(dir); n != 2 || err != nil {
		t.Errorf("Format = %d, %v, want 2", n, err)
	}
	again, err := ReopenMany(dir, 10)
	if err != nil {
		t.Fatal(err)
	}
	defer again.Close()
	if gotValues, gotVersions := contentOf(t, again); !maps.Equal(gotValues, values) || !maps.Equal(gotVersions, versions) {
		t.Errorf("reopened: %v %v, want %v %v", gotValues, gotVersions, values, versions)
	}
	content, err := os.ReadFile(filepath.Join(dir, FileName))
	if err != nil || !bytes.HasPrefix(content, []byte("plusminus counter, format 2: ")) {
		t.Errorf("the file begins with %.40q, %v: an older program would not say that it is newer", content, err)
	}
}

// The limit, and the versions of a counter that was removed and made again.
func TestManyLimit(t *testing.T) {
	t.Parallel()
	m := mustOpenMany(t, t.TempDir(), 2)
	changes := []hub.Change{add("a", 1), add("b", 1), add("c", 1), add("", 1), add(strings.Repeat("n", 65), 1)}
	m.ApplyAll(t.Context(), changes)
	if changes[0].Err != nil || changes[1].Err != nil || !errors.Is(changes[2].Err, hub.ErrFull) || changes[3].Err != nil || changes[4].Err == nil {
		t.Errorf("%+v, want only the third and the last refused", changes)
	}
	for range 5 {
		m.ApplyAll(t.Context(), []hub.Change{add("a", 1)})
	}
	changes = []hub.Change{remove("a"), add("c", 1)}
	m.ApplyAll(t.Context(), changes)
	if changes[1].Err != nil || m.Len() != 2 {
		t.Errorf("%+v, %d counters, want the place of the one that was removed", changes, m.Len())
	}
	m.ApplyAll(t.Context(), []hub.Change{remove("c")})
	changes = []hub.Change{add("a", 1)}
	m.ApplyAll(t.Context(), changes)
	if got := changes[0].Snapshot; got.Value != 1 || got.Version <= 6 {
		t.Errorf("a made again: %+v, want 1 in a version above 6", got)
	}
}

// A single inverted byte, anywhere in the file, changes no value, and is repaired by the next open.
func TestManyInvertedBytes(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	m, err := openMany(osSystem{}, dir, small(100), true)
	if err != nil {
		t.Fatal(err)
	}
	rng := rand.New(rand.NewPCG(3, 4))
	for range 40 {
		var changes []hub.Change
		for _, i := range rng.Perm(20)[:1+rng.IntN(12)] {
			changes = append(changes, add(fmt.Sprint("n", i), hub.Delta(rng.IntN(1000)-500)))
		}
		m.ApplyAll(t.Context(), changes)
	}
	want, _ := contentOf(t, m)
	m.Close()
	path := filepath.Join(dir, FileName)
	content, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	step := 3 // the places of fields differ from page to page, so each field is met
	if *long {
		step = 1
	}
	for i := 0; i < len(content); i += step {
		content[i] ^= 0xff
		if got, err := readCounts(content); err != nil || !maps.Equal(got, want) {
			t.Errorf("byte %d inverted: %v, %v, want %v", i, got, err, want)
		}
		content[i] ^= 0xff
	}
	for range 20 {
		content[rng.IntN(len(content))] ^= 0x10
		if err := os.WriteFile(path, content, 0o600); err != nil {
			t.Fatal(err)
		}
		m, err := ReopenMany(dir, 100)
		if err != nil {
			t.Fatal(err)
		}
		if got, _ := contentOf(t, m); !maps.Equal(got, want) {
			t.Errorf("opened: %v, want %v", got, want)
		}
		m.Close()
		if content, err = os.ReadFile(path); err != nil {
			t.Fatal(err)
		}
	}
}

// A folder of today is taken over.
func TestManyTakesOver(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	j := mustOpen(t, dir)
	apply(t, j, 5)
	was := apply(t, j, 2)
	j.Close()
	if _, err := ReopenMany(dir, 10); !errors.Is(err, ErrOne) {
		t.Errorf("ReopenMany of one counter = %v, want ErrOne", err)
	}
	if n, err := Format(dir); n != 1 || err != nil {
		t.Errorf("Format = %d, %v, want 1", n, err)
	}
	m := mustOpenMany(t, dir, 10)
	if got, _ := m.Load(t.Context()); got != was || m.Len() != 0 {
		t.Errorf("taken over: %+v, want %+v", got, was)
	}
	m.Close()
}

// applyAll makes changes that must succeed.
func applyAll(t testing.TB, m *Many, changes ...hub.Change) []hub.Change {
	t.Helper()
	m.ApplyAll(t.Context(), changes)
	for _, c := range changes {
		if c.Err != nil {
			t.Fatalf("ApplyAll: %q has %v", c.Counter, c.Err)
		}
	}
	return changes
}

// Each change has an outcome of its own.
func TestManyOutcomes(t *testing.T) {
	t.Parallel()
	m := mustOpenMany(t, t.TempDir(), 3)
	applyAll(t, m, add("a", hub.MaxValue), add("b", 1), add("b2", 1), remove("b2"))
	set, tooMuch := hub.Value(-4), hub.Value(hub.MaxValue+1)
	for _, tt := range []struct {
		change hub.Change
		want   hub.Snapshot
		err    error
	}{
		{add("a", 1), hub.Snapshot{Version: 1, Value: hub.MaxValue}, hub.ErrRange},
		{add("b", 0), hub.Snapshot{Version: 2, Value: 1}, nil},
		{hub.Change{Counter: "b", Set: &set}, hub.Snapshot{Version: 3, Value: -4}, nil},
		{hub.Change{Counter: "b", Set: &tooMuch}, hub.Snapshot{Version: 3, Value: -4}, hub.ErrRange},
		{add("c", 0), hub.Snapshot{}, nil},
		{remove("c"), hub.Snapshot{}, nil},
		{hub.Change{Counter: "c", Set: &tooMuch}, hub.Snapshot{}, hub.ErrRange},
		{hub.Change{Counter: "c", Set: &set}, hub.Snapshot{Version: 2, Value: -4}, nil}, // b2 had version 1
		{add("d", 1), hub.Snapshot{}, hub.ErrFull},
		{remove("b"), hub.Snapshot{}, nil},
		{add("b", 1), hub.Snapshot{Version: 4, Value: 1}, nil},
		{remove("b"), hub.Snapshot{}, nil},
		{add("d", 1), hub.Snapshot{Version: 5, Value: 1}, nil},
	} {
		// A counter that is there has its change in the same commit.
		other, _ := m.Load(t.Context())
		changes := []hub.Change{tt.change, add("", 1)}
		m.ApplyAll(t.Context(), changes)
		if c := changes[0]; c.Snapshot != tt.want || !errors.Is(c.Err, tt.err) {
			t.Errorf("%+v: %+v, %v, want %+v, %v", tt.change, c.Snapshot, c.Err, tt.want, tt.err)
		}
		if changes[1].Err != nil || changes[1].Snapshot.Version != other.Version+1 {
			t.Errorf("%+v: the other change has %+v, %v", tt.change, changes[1].Snapshot, changes[1].Err)
		}
	}
	if c := applyAll(t, m, hub.Change{Set: &set}, remove("")); c[0].Snapshot.Value != set || c[1].Snapshot != (hub.Snapshot{Version: c[0].Snapshot.Version + 1}) {
		t.Errorf("the default counter set and removed: %+v, want the value 0 in a later version", c)
	}
	long := []hub.Change{add(strings.Repeat("n", maxName+1), 1)}
	if m.ApplyAll(t.Context(), long); long[0].Err == nil {
		t.Error("a name of 65 bytes was accepted")
	}
	// Changes of the same counter follow each other.
	twice := applyAll(t, m, add("a", -1), add("a", -1), remove("d"), add("d", 7), add("d", 1))
	if twice[1].Snapshot.Value != hub.MaxValue-2 || twice[4].Snapshot.Value != 8 || m.Len() != 3 {
		t.Errorf("changes of the same counter: %+v, and %d counters", twice, m.Len())
	}
}

// More changes than one record can have are several commits.
func TestManyLargeCommit(t *testing.T) {
	t.Parallel()
	m := newModel()
	w, err := openMany(m, "d", small(1000), true)
	if err != nil {
		t.Fatal(err)
	}
	changes := applyAll(t, w, longNames(99, 3)...)
	again, err := openMany(m.killed(), "d", small(1000), true)
	if err != nil || again.Len() != len(changes) {
		t.Fatalf("after one ApplyAll of %d changes Len = %d, %v", len(changes), again.Len(), err)
	}
}

// A full disk refuses new counters and goes on with the others, however long.
func TestManyFullDisk(t *testing.T) {
	t.Parallel()
	m := newModel()
	w, err := openMany(m, "d", small(1000), true)
	if err != nil {
		t.Fatal(err)
	}
	applyAll(t, w, add("a", 1))
	m.full = true
	for i := range 100 {
		changes := append(longNames(20, 1), add("a", 1), add("", 1))
		w.ApplyAll(t.Context(), changes)
		refused := 0
		for _, c := range changes {
			if c.Err != nil {
				refused++
				if !errors.Is(c.Err, hub.ErrFull) || !noSpace(c.Err) {
					t.Fatalf("commit %d: %q has %v, want ErrFull for the lack of space", i, c.Counter, c.Err)
				}
			}
		}
		if refused != 20-14 || changes[20].Err != nil || changes[21].Err != nil {
			t.Fatalf("commit %d: %d changes refused, want the 6 that the table has no room for", i, refused)
		}
	}
	m.full = false
	applyAll(t, w, longNames(20, 1)...)
}

// A file that is removed, cannot be made again, and comes back, has lost nothing.
func TestManyComesBack(t *testing.T) {
	t.Parallel()
	m := newModel()
	w, err := openMany(m, "d", small(100), true)
	if err != nil {
		t.Fatal(err)
	}
	applyAll(t, w, add("a", 1), add("b", 1))
	path := filepath.Join("d", FileName)
	for i := range 60 {
		file := m.names[path]
		m.remove(path)
		failing := m.calls + i%12
		m.fail = func(call int) *fault {
			if call >= failing {
				return &fault{}
			}
			return nil
		}
		changes := []hub.Change{add("a", 1)}
		w.ApplyAll(t.Context(), changes)
		m.fail = nil
		if changes[0].Err == nil || m.names[path] != nil {
			continue // it was made again
		}
		m.rename(func(names map[string]*inode) { names[path] = file })
		before, _ := contentOf(t, w)
		for _, state := range []*model{m.killed(), m.killedAlone()} {
			again, err := openMany(state, "d", small(100), true)
			if err != nil {
				t.Fatalf("round %d: OpenMany = %v", i, err)
			}
			if got, _ := contentOf(t, again); !maps.Equal(got, before) {
				t.Fatalf("round %d: the counters are %v, want %v", i, got, before)
			}
		}
		applyAll(t, w, add("b", 1))
		again, err := openMany(m.killed(), "d", small(100), true)
		if err != nil {
			t.Fatalf("round %d: OpenMany = %v", i, err)
		}
		before["b"]++
		if got, _ := contentOf(t, again); !maps.Equal(got, before) {
			t.Fatalf("round %d: the counters are %v, want %v", i, got, before)
		}
	}
}

// Commits that fail lose no slots: the table grows no more than the counters need.
func TestManyFailedCounters(t *testing.T) {
	t.Parallel()
	m := newModel()
	w, err := openMany(m, "d", small(1000), true)
	if err != nil {
		t.Fatal(err)
	}
	m.fail = func(int) *fault { return &fault{} }
	for range 50 {
		w.ApplyAll(t.Context(), longNames(5, 1))
	}
	m.fail = nil
	applyAll(t, w, longNames(15, 1)...)
	if w.pages() != 1 {
		t.Errorf("the table has %d pages, want 1 for 15 counters", w.pages())
	}
}

// LoadCounter and List may be called while a change is in progress, and wait for no disk.
func TestManyReadsDuringChange(t *testing.T) {
	t.Parallel()
	m := newModel()
	w, err := openMany(m, "d", small(1000), true)
	if err != nil {
		t.Fatal(err)
	}
	looks := 0
	m.look = func() {
		looks++
		done := make(chan counts)
		go func() {
			got, _ := contentOf(t, w)
			done <- got
		}()
		if got := <-done; !maps.Equal(got, counts{"": 0}) {
			t.Errorf("during the change the counters are %v, want the old ones", got)
		}
	}
	applyAll(t, w, add("", 1), add("a", 1))
	if looks == 0 {
		t.Error("no call was made")
	}
}

// OpenMany makes a removed file again, and does not write to one that was replaced.
func TestManyRemoved(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	path := filepath.Join(dir, FileName)
	m := mustOpenMany(t, dir, 10)
	applyAll(t, m, add("a", 3))
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	applyAll(t, m, add("b", 4))
	m.Close()
	m = mustOpenMany(t, dir, 10)
	if got, _ := contentOf(t, m); !maps.Equal(got, counts{"": 0, "a": 3, "b": 4}) {
		t.Errorf("removed while in use and opened again: %v, want a and b", got)
	}
	copied := mustOpenMany(t, t.TempDir(), 10)
	if err := os.Rename(copied.path, path); err != nil {
		t.Fatal(err)
	}
	if _, err := m.Apply(t.Context(), 1); err == nil || !strings.Contains(err.Error(), "replaced while in use") {
		t.Errorf("Apply to a replaced journal = %v, want an error that says so", err)
	}
	m.Close()
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	if _, err := OpenMany(dir, 10); !errors.Is(err, ErrDamaged) {
		t.Errorf("OpenMany of a removed journal = %v, want ErrDamaged", err)
	}
	m, aside, err := RenewMany(dir, 10)
	if err != nil || aside != "" || m.Len() != 0 {
		t.Fatalf("RenewMany of a removed journal = %v, %q, want an empty one", err, aside)
	}
	m.Close()
	place(t, dir, []byte("rubbish"))
	m, aside, err = RenewMany(dir, 10)
	if err != nil || m.Len() != 0 {
		t.Fatalf("RenewMany of a damaged journal = %v", err)
	}
	m.Close()
	if kept, err := os.ReadFile(aside); string(kept) != "rubbish" {
		t.Errorf("RenewMany has kept %q, %v, want the old content", kept, err)
	}
}

// decodeBefore is what programs of before many counters make of a line, in the words that matter here.
func decodeBefore(page []byte) error {
	line, _, ok := bytes.Cut(page[:min(len(page), maxLine)], []byte("\n"))
	if !ok || !strings.HasPrefix(string(line), intro) {
		return errors.New("it is not a counter")
	}
	var f int
	if _, err := fmt.Sscanf(string(line), intro+"%d:", &f); err == nil && f > 1 {
		return fmt.Errorf("%w, in format %d", ErrNewer, f)
	}
	return errors.New("the checksum does not match")
}

// Programs of before many counters refuse the file as that of a newer version.
func TestManyOlderProgram(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	mustOpenMany(t, dir, 10).Close()
	content, err := os.ReadFile(filepath.Join(dir, FileName))
	if err != nil {
		t.Fatal(err)
	}
	for i := range copies {
		if err := decodeBefore(content[i*pageSize:]); !errors.Is(err, ErrNewer) || !strings.Contains(err.Error(), "format 2") {
			t.Errorf("an older program says %v of copy %d, want ErrNewer", err, i)
		}
	}
}

// At every moment of the takeover the folder holds one counter or many, with the same value, also if a call fails.
func TestManyTakeoverCrash(t *testing.T) {
	t.Parallel()
	begin := newModel()
	j, err := open(begin, "d", &hub.Snapshot{})
	if err != nil {
		t.Fatal(err)
	}
	want := apply(t, j, 77)
	random := rand.New(rand.NewPCG(1, 2))
	known := map[uint64]bool{} // states that were checked
	check := func(after *model, what string) {
		t.Helper()
		h := after.hash()
		if known[h] {
			return
		}
		known[h] = true
		again := after.killedAlone()
		if m, err := openMany(again, "d", small(9), true); err != nil || m.slots[0].snapshot() != want || m.Len() != 0 {
			t.Fatalf("%s: OpenMany = %v, want %+v", what, err, want)
		}
		one, err := open(after, "d", nil)
		if err == nil && one.now != want || err != nil && !errors.Is(err, ErrMany) {
			t.Fatalf("%s: Open = %v, want %+v or ErrMany", what, err, want)
		}
	}
	crashes := 0
	for first := range 40 {
		kind := []fault{{short: 700}, {short: 1 << 20, flushed: true}}[first%2]
		m := begin.killed()
		m.fail = func(call int) *fault {
			if call == first {
				return &kind
			}
			return nil
		}
		what := fmt.Sprintf("call %d fails as %+v", first, kind)
		m.look = func() {
			crashes++
			check(m.killedAlone(), what)
			m.torn(2, random, func(after *model) { check(after, what) })
		}
		_, err := openMany(m, "d", small(9), true)
		if err != nil && !errors.Is(err, errDisk) {
			t.Fatalf("%s: OpenMany = %v", what, err)
		}
		m.look()
	}
	t.Logf("%d moments, %d states", crashes, len(known))
}

// A hundred thousand counters are stored, opened and listed. An idle one takes little memory.
func TestManyLarge(t *testing.T) { // not parallel: it measures the heap
	const n = 100_000
	dir := t.TempDir()
	m := mustOpenMany(t, dir, n)
	changes := make([]hub.Change, 0, n)
	for i := range n {
		changes = append(changes, add(fmt.Sprintf("counter-%06d", i), hub.Delta(i+1)))
	}
	m.ApplyAll(t.Context(), changes)
	for i := range changes {
		if changes[i].Err != nil {
			t.Fatal(changes[i].Err)
		}
	}
	changes = nil
	m.Close()
	heap := func() uint64 {
		runtime.GC()
		var s runtime.MemStats
		runtime.ReadMemStats(&s)
		return s.HeapAlloc
	}
	before, began := heap(), time.Now()
	again, err := ReopenMany(dir, n)
	if err != nil {
		t.Fatal(err)
	}
	defer again.Close()
	took := time.Since(began)
	each := (heap() - before) / n
	t.Logf("opened %d counters in %v; %d bytes of heap each", again.Len(), took.Round(time.Millisecond), each)
	if again.Len() != n || each > 300 {
		t.Errorf("%d counters of %d bytes, want %d of at most 300", again.Len(), each, n)
	}
	if got, _ := again.LoadCounter(t.Context(), "counter-054321"); got.Value != 54322 {
		t.Errorf("one of them is %+v", got)
	}
	if list, _ := again.List(t.Context(), "counter-09", "counter-099997", 5); len(list) != 2 || list[1].Counter != "counter-099999" {
		t.Errorf("List = %v", list)
	}
}

// No content makes a parser panic or read beyond the file.
func FuzzMany(f *testing.F) {
	m, err := openMany(osSystem{}, f.TempDir(), small(10), true)
	if err != nil {
		f.Fatal(err)
	}
	m.ApplyAll(f.Context(), []hub.Change{add("a", 1), add("b", 2)})
	content, err := os.ReadFile(m.path)
	if err != nil {
		f.Fatal(err)
	}
	m.Close()
	f.Add(content)
	f.Add(content[:len(content)/2])
	f.Add([]byte("plusminus counter, format 2: many counters, log 65536 sectors, crc32c 00000000\n"))
	f.Fuzz(func(t *testing.T, content []byte) {
		g, _, ok := parseLines(content)
		if !ok {
			return
		}
		img, err := g.read(bytes.NewReader(content), int64(len(content)))
		if err == nil && len(img.slots)*slotSize*copies > len(content) {
			t.Errorf("%d slots in %d bytes", len(img.slots), len(content))
		}
	})
}

func BenchmarkApplyAll(b *testing.B) {
	for _, n := range []int{1, 1000} {
		b.Run(fmt.Sprintf("counters=%d", n), func(b *testing.B) {
			m := mustOpenMany(b, b.TempDir(), n)
			changes := make([]hub.Change, n)
			for i := range changes {
				changes[i] = add(fmt.Sprint("c", i), 1)
			}
			b.ReportAllocs()
			for b.Loop() {
				applyAll(b, m, changes...)
			}
		})
	}
}
