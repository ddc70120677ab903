package journal

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"plusminus/hub"
)

func TestValueAndSet(t *testing.T) {
	t.Parallel()
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
		t.Errorf("Value in an empty folder = %v, want ErrNone", err)
	}
	if left, err := os.ReadDir(dir); len(left) > 0 || err != nil {
		t.Errorf("Value has made %v, %v, want no files", left, err)
	}
	if c := mustSet(-5); c != (Change{}) {
		t.Errorf("Set in an empty folder = %+v, want zero", c)
	}
	if c := mustSet(hub.MaxValue); c != (Change{Was: -5, Had: true}) {
		t.Errorf("Set = %+v, want Was -5", c)
	}
	mustSet(-hub.MaxValue)
	for _, n := range []int64{hub.MaxValue + 1, -hub.MaxValue - 1} {
		if _, err := Set(dir, n); !errors.Is(err, hub.ErrRange) {
			t.Errorf("Set(%d) = %v, want ErrRange", n, err)
		}
	}
	j := mustOpen(t, dir)
	if s, _ := j.Load(t.Context()); s != (hub.Snapshot{Version: 3, Value: -hub.MaxValue}) {
		t.Errorf("after three calls of Set, Load = %+v, want version 3", s)
	}
	j.Close()

	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	if _, err := Value(dir); !errors.Is(err, ErrDamaged) {
		t.Errorf("Value of a removed journal = %v, want ErrDamaged", err)
	}
	if c := mustSet(8); c != (Change{}) {
		t.Errorf("Set of a removed journal = %+v, want zero", c)
	}
	place(t, dir, []byte("rubbish"))
	c := mustSet(9)
	if kept, err := os.ReadFile(c.Aside); string(kept) != "rubbish" || c.Had {
		t.Errorf("Set of a damaged journal = %+v, which holds %q, %v; want the old content", c, kept, err)
	}
	place(t, dir, []byte("plusminus counter, format 3: …\n"))
	if _, err := Set(dir, 10); !errors.Is(err, ErrNewer) {
		t.Errorf("Set of a newer journal = %v, want ErrNewer", err)
	}
}
