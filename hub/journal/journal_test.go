package journal

import (
	"context"
	"errors"
	"os"
	"path/filepath"
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
	_, err := Open(dir)
	if err == nil || !strings.Contains(err.Error(), "in use by another process") {
		t.Errorf("Open of a journal that is open = %v, want it to say so", err)
	}
}

// A file that cannot be read is refused: to start at 0 would be to lose the value.
func TestDamaged(t *testing.T) {
	for _, tt := range []struct {
		name   string
		damage func([]byte) []byte
	}{
		{"foreign", func([]byte) []byte { return []byte(strings.Repeat("not a database\n", 2000)) }},
		{"short", func([]byte) []byte { return []byte("x") }},
		{"record", func(p []byte) []byte {
			for i := range p { // wherever the record's copies are
				if strings.HasPrefix(string(p[i:]), "counter\x01") {
					p[i+len("counter")+9] ^= 1
				}
			}
			return p
		}},
		{"format", func(p []byte) []byte {
			for i := range p {
				if strings.HasPrefix(string(p[i:]), "counter\x01") {
					p[i+len("counter")] = 2
				}
			}
			return p
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			dir := t.TempDir()
			j := mustOpen(t, dir)
			apply(t, j, 3)
			j.Close()
			path := filepath.Join(dir, FileName)
			data, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(path, tt.damage(data), 0o600); err != nil {
				t.Fatal(err)
			}
			if j, err := Open(dir); err == nil {
				s, _ := j.Load(context.Background())
				j.Close()
				t.Errorf("Open = nil and %+v, want an error", s)
			} else if !strings.Contains(err.Error(), "put back a copy") {
				t.Errorf("Open = %v, want it to say what to do", err)
			}
		})
	}
}

// A file that was cut off anywhere is refused, or holds what it held.
func TestCutOff(t *testing.T) {
	dir := t.TempDir()
	j := mustOpen(t, dir)
	apply(t, j, 3)
	want := apply(t, j, 4)
	j.Close()
	whole, err := os.ReadFile(filepath.Join(dir, FileName))
	if err != nil {
		t.Fatal(err)
	}
	refused := 0
	for size := 0; size <= len(whole); size += 512 {
		dir := t.TempDir()
		if err := os.WriteFile(filepath.Join(dir, FileName), whole[:size], 0o600); err != nil {
			t.Fatal(err)
		}
		j, err := Open(dir)
		if err != nil {
			refused++
			if !strings.Contains(err.Error(), "put back a copy") {
				t.Errorf("cut off at %d: Open = %v, want it to say what to do", size, err)
			}
			continue
		}
		if got, _ := j.Load(t.Context()); got != want {
			t.Errorf("cut off at %d: it holds %+v, want %+v or an error", size, got, want)
		}
		j.Close()
	}
	if refused == 0 {
		t.Error("a file that was cut off was never refused")
	}
}
