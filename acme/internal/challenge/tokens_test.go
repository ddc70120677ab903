package challenge

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/crypto/acme/autocert"
)

// A token that one replica puts is found by another until it is deleted.
func TestTokens(t *testing.T) {
	t.Parallel()
	ctx, dir := t.Context(), filepath.Join(t.TempDir(), "tokens")
	one, err := InFolder(dir, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	two, err := InFolder(dir, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	for _, key := range []string{"counter.example.com+token", "evaGxfADs6pSRb2LAv9IZf17Dt3juxGJ-PCt92wr_oA+http-01"} {
		if err := one.Put(ctx, key, []byte("answer")); err != nil {
			t.Fatal(err)
		}
		for i, replica := range []*Tokens{one, two} {
			if got, err := replica.Get(ctx, key); err != nil || string(got) != "answer" {
				t.Errorf("replica %d: Get(%q) = %q, %v", i, key, got, err)
			}
		}
		if err := one.Delete(ctx, key); err != nil {
			t.Fatal(err)
		}
		if err := one.Delete(ctx, key); err != nil {
			t.Errorf("Delete of what is not there = %v", err)
		}
		for i, replica := range []*Tokens{one, two} {
			if _, err := replica.Get(ctx, key); !errors.Is(err, autocert.ErrCacheMiss) {
				t.Errorf("replica %d: Get(%q) after Delete = %v, want a miss", i, key, err)
			}
		}
	}
}

// Names come from strangers. None of them leads to another file.
func TestTokenNames(t *testing.T) {
	t.Parallel()
	ctx, dir := t.Context(), t.TempDir()
	for _, name := range []string{"secret", "x+http-01", "secret+http-01x"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte("secret"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	sub, err := InFolder(filepath.Join(dir, "tokens"), time.Now())
	if err != nil {
		t.Fatal(err)
	}
	for _, key := range []string{"", "+http-01", "../secret", "../x+http-01", "..+http-01", "a/../../x+http-01", "a\x00+http-01",
		"secret", "../secret+http-01x", strings.Repeat("a", maxTokenName) + "+http-01", "acme_account+key", "../x+token"} {
		if got, err := sub.Get(ctx, key); !errors.Is(err, autocert.ErrCacheMiss) {
			t.Errorf("Get(%q) = %q, %v, want a miss", key, got, err)
		}
		if err := sub.Put(ctx, key, []byte("x")); err == nil {
			t.Errorf("Put(%q) is accepted", key)
		}
		if err := sub.Delete(ctx, key); err != nil {
			t.Errorf("Delete(%q) = %v", key, err)
		}
	}
	if got, err := os.ReadFile(filepath.Join(dir, "x+http-01")); err != nil || string(got) != "secret" {
		t.Errorf("a file outside was touched: %q, %v", got, err)
	}
}

// A token that a crash left behind is deleted after a day.
func TestOldTokens(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	tk, err := InFolder(dir, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	if err := tk.Put(t.Context(), "left+http-01", []byte("x")); err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		after time.Duration
		want  int
	}{{tokenLife - time.Hour, 1}, {tokenLife + time.Hour, 0}} {
		if _, err := InFolder(dir, time.Now().Add(test.after)); err != nil {
			t.Fatal(err)
		}
		if entries, err := os.ReadDir(dir); err != nil || len(entries) != test.want {
			t.Errorf("%d tokens after %v, want %d", len(entries), test.after, test.want)
		}
	}
}

// A token of another replica is found at once.
func TestTokenOfAnother(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	a, err := InFolder(dir, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	b, err := InFolder(dir, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	const name = "x.example+token"
	for i, write := range []func() error{
		func() error { return a.Put(t.Context(), name, []byte("old")) },
		func() error { return b.Put(t.Context(), name, []byte("new")) },
		func() error { return b.Delete(t.Context(), name) },
	} {
		if err := write(); err != nil {
			t.Fatal(err)
		}
		got, _ := a.Get(t.Context(), name)
		if want := []string{"old", "new", ""}[i]; string(got) != want {
			t.Errorf("step %d: replica a answers %q, want %q", i, got, want)
		}
	}
}
