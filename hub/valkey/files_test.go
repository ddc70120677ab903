package valkey

import (
	"context"
	"errors"
	"io/fs"
	"strings"
	"testing"
	"time"

	"plusminus/hub/valkey/redistest"
)

func newFiles(t *testing.T, addr string) *Files {
	t.Helper()
	f := NewFiles(Config{Address: addr, DB: 1, Prefix: "test"})
	t.Cleanup(func() { f.Close() })
	return f
}

func TestFiles(t *testing.T) {
	srv := redistest.Start(t)
	a, b := newFiles(t, srv.Addr), newFiles(t, srv.Addr)
	other := NewFiles(Config{Address: srv.Addr, DB: 1, Prefix: "other"})
	t.Cleanup(func() { other.Close() })
	ctx := t.Context()
	missing := func(f *Files, name string) {
		t.Helper()
		if _, _, err := f.Get(ctx, name); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("Get(%q) = %v, want that it does not exist", name, err)
		}
		if v, err := f.Version(ctx, name); !errors.Is(err, fs.ErrNotExist) || v != "" {
			t.Errorf("Version(%q) = %q, %v, want that it does not exist", name, v, err)
		}
	}
	missing(a, "one")
	content := "\x00any\r\nbytes\xff" + strings.Repeat("x", 20_000)
	if err := a.Put(ctx, "one", "", []byte(content), 0); err != nil {
		t.Fatal(err)
	}
	data, first, err := b.Get(ctx, "one")
	if err != nil || string(data) != content {
		t.Fatalf("Get = %d bytes, %v, want %d", len(data), err, len(content))
	}
	missing(b, "two")
	missing(other, "one")
	if v, err := b.Version(ctx, "one"); err != nil || v != first {
		t.Errorf("Version = %q, %v, want %q as Get has it", v, err, first)
	}
	// The same again is another version: somebody has written.
	if err := b.Put(ctx, "one", "", []byte(content), 0); err != nil {
		t.Fatal(err)
	}
	if v, err := a.Version(ctx, "one"); err != nil || v == first {
		t.Errorf("Version after a second Put = %q, %v, want another one", v, err)
	}

	// What is for a while goes by itself, unless it is put again for good.
	for _, name := range []string{"brief", "kept"} {
		if err := a.Put(ctx, name, "", []byte("x"), 300*time.Millisecond); err != nil {
			t.Fatal(err)
		}
	}
	if err := a.Put(ctx, "kept", "", []byte("y"), 0); err != nil {
		t.Fatal(err)
	}
	time.Sleep(600 * time.Millisecond)
	missing(a, "brief")
	if data, _, err := a.Get(ctx, "kept"); err != nil || string(data) != "y" {
		t.Errorf("Get = %q, %v, want y", data, err)
	}
	for range 2 {
		if err := b.Delete(ctx, "one"); err != nil {
			t.Error(err)
		}
	}
	missing(a, "one")
}

func lock(t *testing.T, f *Files, name string) (release func()) {
	t.Helper()
	release, ok, err := f.Lock(t.Context(), name)
	if err != nil || !ok {
		t.Fatalf("Lock(%q) = %v, %v, want to have it", name, ok, err)
	}
	return release
}

func TestFilesLock(t *testing.T) {
	srv := redistest.Start(t)
	a, b := newFiles(t, srv.Addr), newFiles(t, srv.Addr)
	ctx := t.Context()
	release := lock(t, a, "x")
	for _, f := range []*Files{a, b} {
		if _, ok, err := f.Lock(ctx, "x"); ok || err != nil {
			t.Errorf("Lock of what is locked = %v, %v, want false", ok, err)
		}
	}
	lock(t, b, "y")()
	if err := a.Put(ctx, "one", "x", []byte("a's"), 0); err != nil {
		t.Errorf("Put with the lock: %v", err)
	}
	for _, lock := range []string{"x", "y"} {
		if err := b.Put(ctx, "one", lock, []byte("b's"), 0); !errors.Is(err, ErrLockLost) {
			t.Errorf("Put without the lock %s = %v, want ErrLockLost", lock, err)
		}
	}
	if data, _, err := b.Get(ctx, "one"); err != nil || string(data) != "a's" {
		t.Errorf("Get = %q, %v, want what was put with the lock", data, err)
	}
	release()
	release() // does not take away another's
	again := lock(t, b, "x")
	release()
	if _, ok, _ := a.Lock(ctx, "x"); ok {
		t.Error("a lock was released twice, and with it the next one's")
	}
	again()

	// Who was cut off so long that the lock went to somebody else does not write over that.
	lock(t, a, "x")
	srv.Do("SELECT", "1") // only that it answers
	if got := srv.Do("EVAL", "redis.call('SELECT', 1); return redis.call('DEL', KEYS[1])", "1", a.lockKey("x")); got != "1" {
		t.Fatalf("DEL = %s", got)
	}
	lock(t, b, "x")
	if err := a.Put(ctx, "one", "x", []byte("late"), 0); !errors.Is(err, ErrLockLost) {
		t.Errorf("Put with a lock that was lost = %v, want ErrLockLost", err)
	}
}

// A lock lives as long as its holder, and is free some time after.
func TestFilesLockLife(t *testing.T) {
	if testing.Short() {
		t.Skip("takes 30 s")
	}
	t.Parallel()
	srv := redistest.Start(t)
	a, b := newFiles(t, srv.Addr), newFiles(t, srv.Addr)
	lock(t, a, "x")
	time.Sleep(lockLife + 2*time.Second)
	if _, ok, err := b.Lock(t.Context(), "x"); ok || err != nil {
		t.Fatalf("Lock of what somebody holds who lives = %v, %v, want false", ok, err)
	}
	a.Close()
	deadline := time.Now().Add(lockLife + 2*time.Second)
	for {
		release, ok, err := b.Lock(t.Context(), "x")
		if err != nil {
			t.Fatal(err)
		}
		if ok {
			release()
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("the lock of one who is gone is not free after %v", lockLife)
		}
		time.Sleep(100 * time.Millisecond)
	}
}

// A server that is away costs each call little time, and none of it is felt once it is back.
func TestFilesAway(t *testing.T) {
	srv := redistest.Start(t)
	f := newFiles(t, srv.Addr)
	ctx := t.Context()
	if err := f.Put(ctx, "one", "", []byte("1"), 0); err != nil {
		t.Fatal(err)
	}
	works := func() {
		t.Helper()
		for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(20 * time.Millisecond) {
			data, _, err := f.Get(ctx, "one")
			if err == nil && string(data) == "1" {
				return
			}
			if time.Now().After(deadline) {
				t.Fatalf("Get = %q, %v, want 1 again", data, err)
			}
		}
	}

	srv.Kill()
	if _, _, err := f.Get(ctx, "one"); err == nil || errors.Is(err, fs.ErrNotExist) {
		t.Fatalf("Get from a server that was killed = %v, want an error", err)
	}
	if _, ok, err := f.Lock(ctx, "x"); ok || err == nil {
		t.Errorf("Lock from a server that was killed = %v, %v, want an error", ok, err)
	}
	srv.Restart()
	works()

	srv.Pause()
	if _, _, err := f.Get(ctx, "one"); err == nil || !strings.Contains(err.Error(), "no answer") {
		t.Errorf("Get from a server that was paused = %v, want that there was no answer", err)
	}
	srv.Resume()
	works()

	// That a caller gives up says nothing about the server.
	gone, cancel := context.WithCancel(ctx)
	cancel()
	if _, _, err := f.Get(gone, "one"); !errors.Is(err, context.Canceled) {
		t.Errorf("Get of one who has given up = %v, want Canceled", err)
	}
	works()

	srv.Do("CONFIG", "SET", "maxmemory", "1")
	if err := f.Put(ctx, "two", "", []byte("2"), 0); err == nil || !strings.Contains(err.Error(), "OOM") {
		t.Errorf("Put to a full server = %v, want its own words", err)
	}
	works()
	srv.Do("CONFIG", "SET", "maxmemory", "0")
	if err := f.Close(); err != nil {
		t.Error(err)
	}
	if _, _, err := f.Get(ctx, "one"); err == nil || !strings.Contains(err.Error(), "closed") {
		t.Errorf("Get after Close = %v", err)
	}
}
