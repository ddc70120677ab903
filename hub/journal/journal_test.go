package journal

import (
	"bytes"
	"errors"
	"flag"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"plusminus/hub"
)

var long = flag.Bool("long", false, "run the long forms of the trials, as CI does")

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
	t.Parallel()
	dir := t.TempDir()
	j := mustOpen(t, dir)
	if s, _ := j.Load(t.Context()); s != (hub.Snapshot{}) {
		t.Errorf("Load of a new journal = %+v, want zero", s)
	}
	apply(t, j, 5)
	want := apply(t, j, -7)
	if want != (hub.Snapshot{Version: 2, Value: -2}) {
		t.Errorf("Apply = %+v, want version 2, value -2", want)
	}
	j.Close()
	if got, _ := mustOpen(t, dir).Load(t.Context()); got != want {
		t.Errorf("after a second Open, Load = %+v, want %+v", got, want)
	}
	info, err := os.Stat(filepath.Join(dir, FileName))
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("file mode %v, %v, want 0600", info.Mode(), err)
	}
}

// A change is in the file even without Close.
func TestWithoutClose(t *testing.T) {
	t.Parallel()
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
		t.Errorf("Load of a copy = %+v, want %+v", got, want)
	}
}

func TestRange(t *testing.T) {
	t.Parallel()
	j := mustOpen(t, t.TempDir())
	want := apply(t, j, -hub.MaxValue)
	if _, err := j.Apply(t.Context(), -1); !errors.Is(err, hub.ErrRange) {
		t.Errorf("Apply(-1) at the lower limit = %v, want ErrRange", err)
	}
	if got, _ := j.Load(t.Context()); got != want {
		t.Errorf("after ErrRange, Load = %+v, want %+v", got, want)
	}
}

func TestSecondProcess(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	mustOpen(t, dir)
	for name, open := range map[string]func() error{
		"Open":  func() error { _, err := Open(dir); return err },
		"Value": func() error { _, err := Value(dir); return err },
		"Set":   func() error { _, err := Set(dir, 1); return err },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel() // each waits for lockTimeout
			if err := open(); !errors.Is(err, ErrInUse) || !strings.Contains(err.Error(), dir) {
				t.Errorf("%s of an open journal = %v, want ErrInUse and the folder's name", name, err)
			}
		})
	}
}

// Apply makes a removed file again, and does not write to one that was replaced.
func TestRemoved(t *testing.T) {
	t.Parallel()
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
		t.Errorf("removed while in use and opened again: Load = %+v, want %+v", got, want)
	}

	copied := mustOpen(t, t.TempDir())
	if err := os.Rename(copied.path, path); err != nil {
		t.Fatal(err)
	}
	if _, err := j.Apply(t.Context(), 1); err == nil || !strings.Contains(err.Error(), "replaced while in use") {
		t.Errorf("Apply to a replaced journal = %v, want an error that says so", err)
	}
}

// written makes a journal with the values 0 to 6 and then value. It returns the file's content
// and the last snapshot.
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

// place writes content to the journal's path in dir.
func place(t *testing.T, dir string, content []byte) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(dir, FileName), content, 0o600); err != nil {
		t.Fatal(err)
	}
}

// Open refuses an unreadable file and does not change it. Starting at 0 would lose the value.
func TestDamaged(t *testing.T) {
	t.Parallel()
	whole, _ := written(t, 7)
	newer := bytes.ReplaceAll(whole, []byte("format 1"), []byte("format 3"))
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
		{"short", []byte("x"), ErrDamaged, "it is not a counter"},
		{"zeros", make([]byte, fileSize), ErrDamaged, "it is not a counter"},
		{"foreign", []byte(strings.Repeat("not a counter\n", 2000)), ErrDamaged, "it is not a counter"},
		{"value", both("value 7", "value 8"), ErrDamaged, "checksum"},
		{"version", both("version 7", "version 9"), ErrDamaged, "checksum"},
		{"old format", both("format 1", "format 0"), ErrDamaged, "checksum"},
		{"spaces", both("value 7", "value  7"), ErrDamaged, "checksum"},
		{"out of range", outOfRange, ErrDamaged, "out of range"},
		{"contradiction", contradiction, ErrDamaged, "contradict"},
		{"newer", newer, ErrNewer, "format 3"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			dir := t.TempDir()
			place(t, dir, tt.content)
			_, err := Open(dir)
			if !errors.Is(err, tt.want) || !strings.Contains(err.Error(), tt.text) || !strings.Contains(err.Error(), dir) {
				t.Errorf("Open = %v, want %v, its path and %q", err, tt.want, tt.text)
			}
			if now, err := os.ReadFile(filepath.Join(dir, FileName)); err != nil || !bytes.Equal(now, tt.content) {
				t.Errorf("after Open the file holds %q, %v, want it unchanged", now, err)
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
	t.Run("removed", func(t *testing.T) {
		dir := t.TempDir()
		mustOpen(t, dir).Close()
		if err := os.Remove(filepath.Join(dir, FileName)); err != nil {
			t.Fatal(err)
		}
		if _, err := Open(dir); !errors.Is(err, ErrDamaged) || !strings.Contains(err.Error(), "it is gone") {
			t.Errorf("Open of a removed journal = %v, want ErrDamaged and its reason", err)
		}
	})
	t.Run("restored without the lock", func(t *testing.T) {
		dir := t.TempDir()
		place(t, dir, whole)
		if got, _ := mustOpen(t, dir).Load(t.Context()); got.Value != 7 {
			t.Errorf("Load = %+v, want 7", got)
		}
	})
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
