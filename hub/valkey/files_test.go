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
	t.Parallel()
	srv := redistest.Start(t)
	a, b := newFiles(t, srv.Addr), newFiles(t, srv.Addr)
	other := NewFiles(Config{Address: srv.Addr, DB: 1, Prefix: "other"})
	t.Cleanup(func() { other.Close() })
	ctx := t.Context()
	missing := func(f *Files, name string) {
		t.Helper()
		if _, _, err := f.Get(ctx, name); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("Get(%q) = %v, want fs.ErrNotExist", name, err)
		}
		if v, err := f.Version(ctx, name); !errors.Is(err, fs.ErrNotExist) || v != "" {
			t.Errorf("Version(%q) = %q, %v, want fs.ErrNotExist", name, v, err)
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
		t.Errorf("Version = %q, %v, want %q as Get returns", v, err, first)
	}
	// The same data again is a new version.
	if err := b.Put(ctx, "one", "", []byte(content), 0); err != nil {
		t.Fatal(err)
	}
	if v, err := a.Version(ctx, "one"); err != nil || v == first {
		t.Errorf("Version after a second Put = %q, %v, want a new one", v, err)
	}

	// Data with a life expires, unless a second Put stores it without expiry.
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

// Each call returns soon while the server is unreachable. When the server is back, the next calls
// work.
func TestFilesAway(t *testing.T) {
	t.Parallel()
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
		t.Fatalf("Get from a killed server = %v, want an error", err)
	}
	if _, ok, err := f.Lock(ctx, "x"); ok || err == nil {
		t.Errorf("Lock on a killed server = %v, %v, want an error", ok, err)
	}
	srv.Restart()
	works()

	srv.Pause()
	if _, _, err := f.Get(ctx, "one"); err == nil || !strings.Contains(err.Error(), "no answer") {
		t.Errorf("Get from a paused server = %v, want no answer", err)
	}
	srv.Resume()
	works()

	// A caller that gives up does not end the connection.
	gone, cancel := context.WithCancel(ctx)
	cancel()
	if _, _, err := f.Get(gone, "one"); !errors.Is(err, context.Canceled) {
		t.Errorf("Get with a canceled context = %v, want Canceled", err)
	}
	works()

	srv.Do("CONFIG", "SET", "maxmemory", "1")
	if err := f.Put(ctx, "two", "", []byte("2"), 0); err == nil || !strings.Contains(err.Error(), "OOM") {
		t.Errorf("Put to a full server = %v, want the server's error", err)
	}
	works()
	srv.Do("CONFIG", "SET", "maxmemory", "0")
	if err := f.Close(); err != nil {
		t.Error(err)
	}
	if _, _, err := f.Get(ctx, "one"); err == nil || !strings.Contains(err.Error(), "closed") {
		t.Errorf("Get after Close = %v, want closed", err)
	}
}
