package journal

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"plusminus/hub"
)

func mustOpen(t *testing.T, dir string) *Journal {
	t.Helper()
	j, err := Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { j.Close() })
	return j
}

func apply(t *testing.T, j *Journal, delta int64) hub.Snapshot {
	t.Helper()
	s, err := j.Apply(t.Context(), delta)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestReopen(t *testing.T) {
	dir := t.TempDir()
	j := mustOpen(t, dir)
	if s, _ := j.Load(t.Context()); s != (hub.Snapshot{}) {
		t.Errorf("a new journal holds %+v, want zero", s)
	}
	apply(t, j, 5)
	want := apply(t, j, -7)
	if want != (hub.Snapshot{Version: 2, Value: -2}) {
		t.Errorf("Apply = %+v, want version 2, value -2", want)
	}
	j.Close()
	if got, _ := mustOpen(t, dir).Load(t.Context()); got != want {
		t.Errorf("reopened, it holds %+v, want %+v", got, want)
	}
	info, err := os.Stat(filepath.Join(dir, FileName))
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("file mode %v, %v, want 0600", info.Mode(), err)
	}
}

// What was applied is in the file even if nobody closes it.
func TestWithoutClose(t *testing.T) {
	dir := t.TempDir()
	j := mustOpen(t, dir)
	want := apply(t, j, 3)
	copied := t.TempDir()
	data, err := os.ReadFile(filepath.Join(dir, FileName))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(copied, FileName), data, 0o600); err != nil {
		t.Fatal(err)
	}
	if got, _ := mustOpen(t, copied).Load(t.Context()); got != want {
		t.Errorf("a copy holds %+v, want %+v", got, want)
	}
}

func TestRange(t *testing.T) {
	j := mustOpen(t, t.TempDir())
	want := apply(t, j, -hub.MaxValue)
	if _, err := j.Apply(t.Context(), -1); !errors.Is(err, hub.ErrRange) {
		t.Errorf("Apply below the limit = %v, want ErrRange", err)
	}
	if got, _ := j.Load(t.Context()); got != want {
		t.Errorf("after ErrRange it holds %+v, want %+v", got, want)
	}
}

func TestSecondProcess(t *testing.T) {
	dir := t.TempDir()
	mustOpen(t, dir)
	for name, open := range map[string]func() error{
		"Open":  func() error { _, err := Open(dir); return err },
		"Value": func() error { _, err := Value(dir); return err },
		"Set":   func() error { _, err := Set(dir, 1); return err },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel() // each waits until it gives up
			if err := open(); !errors.Is(err, ErrInUse) || !strings.Contains(err.Error(), dir) {
				t.Errorf("%s of a journal that is open = %v, want ErrInUse and the folder", name, err)
			}
		})
	}
}

// Nothing is written to a file that is no longer the journal.
func TestRemoved(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, FileName)
	j := mustOpen(t, dir)
	apply(t, j, 3)
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	want := apply(t, j, 4)
	j.Close()
	j = mustOpen(t, dir)
	if got, _ := j.Load(t.Context()); got != want {
		t.Errorf("removed while in use, then opened: it holds %+v, want %+v", got, want)
	}

	copied := mustOpen(t, t.TempDir())
	if err := os.Rename(copied.path, path); err != nil {
		t.Fatal(err)
	}
	if _, err := j.Apply(t.Context(), 1); err == nil || !strings.Contains(err.Error(), "replaced while in use") {
		t.Errorf("Apply to a journal that was replaced = %v, want an error", err)
	}
}

// written returns what a file holds that had the values 0 to 6, and then value, and how a
// snapshot of that looks.
func written(t *testing.T, value int64) ([]byte, hub.Snapshot) {
	t.Helper()
	dir := t.TempDir()
	j := mustOpen(t, dir)
	for range 6 {
		apply(t, j, 1)
	}
	s := apply(t, j, value-6)
	j.Close()
	data, err := os.ReadFile(filepath.Join(dir, FileName))
	if err != nil {
		t.Fatal(err)
	}
	return data, s
}

// place puts content where a journal was.
func place(t *testing.T, dir string, content []byte) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(dir, FileName), content, 0o600); err != nil {
		t.Fatal(err)
	}
}

// A file that cannot be read is refused, and left as it is: to start at 0 would be to lose
// the value.
func TestDamaged(t *testing.T) {
	whole, _ := written(t, 7)
	newer := bytes.ReplaceAll(whole, []byte("format 1"), []byte("format 2"))
	both := func(old, new string) []byte { return bytes.ReplaceAll(whole, []byte(old), []byte(new)) }
	contradiction := slices.Clone(whole)
	copy(contradiction, encode(hub.Snapshot{Version: 7, Value: 8}))
	outOfRange := make([]byte, fileSize)
	copy(outOfRange, encode(hub.Snapshot{Version: 7, Value: hub.MaxValue + 1}))
	for _, tt := range []struct {
		name    string
		content []byte
		want    error
		text    string
	}{
		{"empty", nil, ErrDamaged, "it is empty"},
		{"short", []byte("x"), ErrDamaged, "it is no counter"},
		{"zeros", make([]byte, fileSize), ErrDamaged, "it is no counter"},
		{"foreign", []byte(strings.Repeat("not a counter\n", 2000)), ErrDamaged, "it is no counter"},
		{"value", both("value 7", "value 8"), ErrDamaged, "checksum"},
		{"version", both("version 7", "version 9"), ErrDamaged, "checksum"},
		{"old format", both("format 1", "format 0"), ErrDamaged, "checksum"},
		{"spaces", both("value 7", "value  7"), ErrDamaged, "checksum"},
		{"out of range", outOfRange, ErrDamaged, "out of range"},
		{"contradiction", contradiction, ErrDamaged, "contradict"},
		{"newer", newer, ErrNewer, "format 2"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			dir := t.TempDir()
			place(t, dir, tt.content)
			_, err := Open(dir)
			if !errors.Is(err, tt.want) || !strings.Contains(err.Error(), tt.text) || !strings.Contains(err.Error(), dir) {
				t.Errorf("Open = %v, want %v, its path and %q", err, tt.want, tt.text)
			}
			if now, err := os.ReadFile(filepath.Join(dir, FileName)); err != nil || !bytes.Equal(now, tt.content) {
				t.Errorf("Open has changed the file, or %v", err)
			}
		})
	}
	t.Run("folder", func(t *testing.T) {
		dir := t.TempDir()
		if err := os.Mkdir(filepath.Join(dir, FileName), 0o700); err != nil {
			t.Fatal(err)
		}
		if _, err := Open(dir); !errors.Is(err, ErrDamaged) {
			t.Errorf("Open = %v, want ErrDamaged", err)
		}
	})
	t.Run("gone", func(t *testing.T) {
		dir := t.TempDir()
		mustOpen(t, dir).Close()
		if err := os.Remove(filepath.Join(dir, FileName)); err != nil {
			t.Fatal(err)
		}
		if _, err := Open(dir); !errors.Is(err, ErrDamaged) || !strings.Contains(err.Error(), "it is gone") {
			t.Errorf("Open = %v, want ErrDamaged: a counter that was there is not", err)
		}
	})
	t.Run("restored without the lock", func(t *testing.T) {
		dir := t.TempDir()
		place(t, dir, whole)
		if got, _ := mustOpen(t, dir).Load(t.Context()); got.Value != 7 {
			t.Errorf("it holds %+v, want 7", got)
		}
	})
}

// Of two copies that a crash has left the newer one counts, wherever it is.
func TestNewerCopy(t *testing.T) {
	older, want := hub.Snapshot{Version: 9, Value: 1}, hub.Snapshot{Version: 10, Value: 0}
	for i := range copies {
		content := make([]byte, fileSize)
		copy(content[i*pageSize:], encode(want))
		copy(content[(1-i)*pageSize:], encode(older))
		if got, err := parse(content); got != want || err != nil {
			t.Errorf("newer as copy %d: %+v, %v, want %+v", i, got, err, want)
		}
	}
}

// A file that was cut off anywhere is refused, or holds what it held.
func TestCutOff(t *testing.T) {
	whole, want := written(t, 7)
	refused := 0
	for size := range len(whole) + 1 {
		got, err := parse(whole[:size])
		switch {
		case errors.Is(err, ErrDamaged):
			refused++
		case err != nil || got != want:
			t.Errorf("cut off at %d: %+v, %v, want %+v or ErrDamaged", size, got, err, want)
		}
	}
	if line := len(encode(want)); refused != line {
		t.Errorf("refused at %d sizes, want %d: all that are shorter than a line", refused, line)
	}
	dir := t.TempDir()
	place(t, dir, whole[:pageSize+9])
	if got, _ := mustOpen(t, dir).Load(t.Context()); got != want {
		t.Errorf("cut off, it holds %+v, want %+v", got, want)
	}
	if now, err := os.ReadFile(filepath.Join(dir, FileName)); err != nil || !bytes.Equal(now, whole) {
		t.Errorf("after Open the file is not whole again, or %v", err)
	}
}

// Whatever bytes are damaged, a file gives the right value or is refused.
func TestFlips(t *testing.T) {
	whole, want := written(t, -1234567)
	check := func(p []byte, mustRead bool, what string, args ...any) {
		t.Helper()
		got, err := parse(p)
		if err == nil && got != want || err != nil && mustRead {
			t.Errorf(what+": %+v, %v, want %+v", append(args, got, err, want)...)
		}
	}
	p := slices.Clone(whole)
	line := len(encode(want))
	for i := range p { // one copy is enough
		for x := 1; x < 256; x *= 2 {
			p[i] ^= byte(x)
			check(p, true, "byte %d changed by %#x", i, x)
			p[i] = whole[i]
		}
	}
	for i := range line { // both copies, at the same place
		for x := range 255 {
			p[i] ^= byte(x + 1)
			p[pageSize+i] ^= byte(x + 1)
			check(p, false, "byte %d of both changed by %#x", i, x+1)
			p[i], p[pageSize+i] = whole[i], whole[i]
		}
	}
	seed := rand.Uint64()
	random := rand.New(rand.NewPCG(seed, 0))
	for range 100_000 { // several, anywhere in both
		for range 1 + random.IntN(4) {
			p[random.IntN(line)] = byte(random.Uint32())
			p[pageSize+random.IntN(line)] = byte(random.Uint32())
		}
		check(p, false, "seed %d, %q", seed, p[:line])
		copy(p, whole[:line])
		copy(p[pageSize:], whole[:line])
	}
}

// Any content is refused, or written again as it was understood.
func FuzzParse(f *testing.F) {
	f.Add([]byte{})
	f.Add(encode(hub.Snapshot{Version: 1, Value: -2}))
	f.Add(append(make([]byte, pageSize), encode(hub.Snapshot{Version: 1 << 63, Value: hub.MaxValue})...))
	f.Add([]byte("plusminus counter, format 2: whatever comes\n"))
	f.Fuzz(func(t *testing.T, content []byte) {
		s, err := parse(content)
		if err != nil {
			if !errors.Is(err, ErrDamaged) && !errors.Is(err, ErrNewer) {
				t.Errorf("parse = %v, want ErrDamaged or ErrNewer", err)
			}
			return
		}
		if s.Value > hub.MaxValue || s.Value < -hub.MaxValue || !bytes.Contains(content, encode(s)) {
			t.Errorf("parse = %+v, which is not what the content says", s)
		}
	})
}

func TestValueAndSet(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, FileName)
	wantValue := func(want int64) {
		t.Helper()
		if got, err := Value(dir); got != want || err != nil {
			t.Fatalf("Value = %d, %v, want %d", got, err, want)
		}
	}
	mustSet := func(value int64) Change {
		t.Helper()
		c, err := Set(dir, value)
		if err != nil {
			t.Fatal(err)
		}
		wantValue(value)
		return c
	}
	if _, err := Value(dir); !errors.Is(err, ErrNone) {
		t.Errorf("Value of nothing = %v, want ErrNone", err)
	}
	if left, err := os.ReadDir(dir); len(left) > 0 || err != nil {
		t.Errorf("Value of nothing has made %v, %v", left, err)
	}
	if c := mustSet(-5); c != (Change{}) {
		t.Errorf("Set of nothing = %+v, want zero", c)
	}
	if c := mustSet(hub.MaxValue); c != (Change{Was: -5, Had: true}) {
		t.Errorf("Set = %+v, want that it was -5", c)
	}
	mustSet(-hub.MaxValue)
	for _, n := range []int64{hub.MaxValue + 1, -hub.MaxValue - 1} {
		if _, err := Set(dir, n); !errors.Is(err, hub.ErrRange) {
			t.Errorf("Set(%d) = %v, want ErrRange", n, err)
		}
	}
	j := mustOpen(t, dir)
	if s, _ := j.Load(t.Context()); s != (hub.Snapshot{Version: 3, Value: -hub.MaxValue}) {
		t.Errorf("after three times Set it holds %+v, want version 3", s)
	}
	j.Close()

	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	if _, err := Value(dir); !errors.Is(err, ErrDamaged) {
		t.Errorf("Value of what is gone = %v, want ErrDamaged", err)
	}
	if c := mustSet(8); c != (Change{}) {
		t.Errorf("Set of what is gone = %+v, want zero", c)
	}
	place(t, dir, []byte("rubbish"))
	c := mustSet(9)
	if kept, err := os.ReadFile(c.Aside); string(kept) != "rubbish" || c.Had {
		t.Errorf("Set of a damaged one = %+v, and it is kept as %q, %v", c, kept, err)
	}
	place(t, dir, []byte("plusminus counter, format 2: …\n"))
	if _, err := Set(dir, 10); !errors.Is(err, ErrNewer) {
		t.Errorf("Set of a newer one = %v, want ErrNewer", err)
	}
}

func BenchmarkApply(b *testing.B) {
	j, err := Open(b.TempDir())
	if err != nil {
		b.Fatal(err)
	}
	defer j.Close()
	b.ReportAllocs()
	for b.Loop() {
		if _, err := j.Apply(b.Context(), 1); err != nil {
			b.Fatal(err)
		}
	}
}
