package valkey

import (
	"errors"
	"strconv"
	"testing"
	"time"

	"plusminus/hub/valkey/redistest"
)

// lock takes a lock that must be free.
func lock(t *testing.T, f *Files, name string) (release func()) {
	t.Helper()
	release, ok, err := f.Lock(t.Context(), name)
	if err != nil || !ok {
		t.Fatalf("Lock(%q) = %v, %v, want true", name, ok, err)
	}
	return release
}

// Only the holder of a lock can store with it and release it.
func TestFilesLock(t *testing.T) {
	t.Parallel()
	srv := redistest.Start(t)
	a, b := newFiles(t, srv.Addr), newFiles(t, srv.Addr)
	ctx := t.Context()
	release := lock(t, a, "x")
	for _, f := range []*Files{a, b} {
		if _, ok, err := f.Lock(ctx, "x"); ok || err != nil {
			t.Errorf("Lock of a lock that is held = %v, %v, want false", ok, err)
		}
	}
	lock(t, b, "y")()
	if err := a.Put(ctx, "one", "x", []byte("a's"), 0); err != nil {
		t.Errorf("Put with the lock = %v, want nil", err)
	}
	for _, name := range []string{"x", "y"} {
		if err := b.Put(ctx, "one", name, []byte("b's"), 0); !errors.Is(err, ErrLockLost) {
			t.Errorf("Put without the lock %s = %v, want ErrLockLost", name, err)
		}
	}
	if data, _, err := b.Get(ctx, "one"); err != nil || string(data) != "a's" {
		t.Errorf("Get = %q, %v, want the data of the holder", data, err)
	}
	release()
	release() // a second call does nothing
	again := lock(t, b, "x")
	release()
	if _, ok, _ := a.Lock(ctx, "x"); ok {
		t.Error("the second call of release has released the lock of the next holder")
	}
	again()

	// A process that was cut off until it lost the lock does not overwrite the next holder's data.
	lock(t, a, "x")
	if got := srv.Do("EVAL", "redis.call('SELECT', 1); return redis.call('DEL', KEYS[1])", "1", a.lockKey("x")); got != "1" {
		t.Fatalf("DEL = %s", got)
	}
	lock(t, b, "x")
	if err := a.Put(ctx, "one", "x", []byte("late"), 0); !errors.Is(err, ErrLockLost) {
		t.Errorf("Put with a lost lock = %v, want ErrLockLost", err)
	}
}

// A lock lives as long as its holder, and is free within lockLife after the holder's end. In the
// short form the test shortens the rest of the lock's life on the server, so that the first beat
// must renew it, and so that it expires soon after Close.
func TestFilesLockLife(t *testing.T) {
	t.Parallel()
	srv := redistest.Start(t)
	a, b := newFiles(t, srv.Addr), newFiles(t, srv.Addr)
	lock(t, a, "x")
	life, expire := lockLife, func(time.Duration) {}
	if !*long {
		life = lockBeat + time.Second
		expire = func(d time.Duration) {
			t.Helper()
			ms := strconv.FormatInt(d.Milliseconds(), 10)
			if got := srv.Do("EVAL", "redis.call('SELECT', 1); return redis.call('PEXPIRE', KEYS[1], ARGV[1])", "1", a.lockKey("x"), ms); got != "1" {
				t.Fatalf("PEXPIRE = %s, want 1: the lock is not there", got)
			}
		}
	}
	expire(life)
	time.Sleep(life + 2*time.Second)
	if _, ok, err := b.Lock(t.Context(), "x"); ok || err != nil {
		t.Fatalf("Lock of a lock whose holder lives = %v, %v, want false", ok, err)
	}
	ttl := srv.Do("EVAL", "redis.call('SELECT', 1); return redis.call('PTTL', KEYS[1])", "1", a.lockKey("x"))
	if ms, err := strconv.ParseInt(ttl, 10, 64); err != nil || ms <= 0 || ms > lockLife.Milliseconds() {
		t.Errorf("the lock expires after %s ms, want at most %v", ttl, lockLife)
	}
	a.Close()
	expire(time.Second)
	deadline := time.Now().Add(life + 2*time.Second)
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
			t.Fatalf("the lock of a closed Files is not free after %v", life)
		}
		time.Sleep(100 * time.Millisecond)
	}
}
