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
	read := func() (counts, error) {
		g, _, ok := parseLines(content)
		if !ok {
			return nil, errors.New("no first line")
		}
		img, err := g.read(bytes.NewReader(content), int64(len(content)))
		if err != nil {
			return nil, err
		}
		got := counts{"": img.slots[0].value}
		for name, i := range img.index {
			got[name] = img.slots[i].value
		}
		return got, nil
	}
	step := 3 // the places of fields differ from page to page, so each field is met
	if *long {
		step = 1
	}
	for i := 0; i < len(content); i += step {
		content[i] ^= 0xff
		if got, err := read(); err != nil || !maps.Equal(got, want) {
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

// A folder of today is taken over. A crash during that leaves the old journal or the new one, whole.
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

	states := 0
	for first, done := 0, false; !done; first++ {
		sys := newModel()
		j, err := open(sys, "d", &hub.Snapshot{})
		if err != nil {
			t.Fatal(err)
		}
		for _, delta := range []hub.Delta{5, 2} {
			if _, err := j.Apply(t.Context(), delta); err != nil {
				t.Fatal(err)
			}
		}
		j.Close()
		began := sys.calls
		sys.fail = func(call int) *fault {
			if call >= began+first {
				return &fault{short: 700}
			}
			return nil
		}
		m, err := openMany(sys, "d", small(10), true)
		if done = err == nil; done {
			m.Close()
		}
		sys.fail = nil
		sys.torn(4, rand.New(rand.NewPCG(1, uint64(first))), func(after *model) {
			states++
			m, err := openMany(after, "d", small(10), true)
			if err != nil {
				t.Fatalf("after a crash at call %d of the takeover: %v", first, err)
			}
			defer m.Close()
			if got, _ := m.Load(t.Context()); got != was {
				t.Errorf("after a crash at call %d of the takeover: %+v, want %+v", first, got, was)
			}
		})
	}
	if states < 20 {
		t.Errorf("%d states were looked at", states)
	}
	t.Logf("%d states", states)
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
