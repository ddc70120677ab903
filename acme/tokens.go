package acme

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"sync"
	"time"

	"golang.org/x/crypto/acme/autocert"
)

// tokenLife is how long a token is kept that nobody took away: longer than any validation, which ends
// within minutes.
const tokenLife = day

// tokenNames are the names under which autocert asks for tokens: "<token>+http-01", where the token
// is whatever a stranger put into a URL, and "<domain>+token", where the domain is a server name.
//
// "token […] MUST NOT contain any characters outside the base64url alphabet"
// https://www.rfc-editor.org/rfc/rfc8555#section-8.3
var tokenNames = regexp.MustCompile(`^([A-Za-z0-9_-]{1,200}\+http-01|[a-z0-9_.-]{1,253}\+token)$`)

// tokens is what the responder answers challenges with: an [autocert.Cache] into which those who order
// put and from which the responder takes, in this replica and in all others on the same folder, or on what
// they share otherwise. That is looked into each time, since another replica may have put a newer one under
// the same name; it costs a stranger's request to the challenge path one failed open(2), or one question
// to the shared store.
type tokens struct {
	// Immutable after they are opened.
	dir    string // empty is memory, if they are not shared
	shared Shared // or nil
	seal   *sealer

	m sync.Map // string -> []byte; if they are in memory. Safe from any goroutine.
}

// sharedTokens begins the names of tokens that are shared.
const sharedTokens = "acme/tokens/"

// openTokens makes dir if it is missing, and takes away what a crash left in it.
func openTokens(dir string, now time.Time) (*tokens, error) {
	if err := makeFolder(dir); err != nil {
		return nil, err
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	for _, e := range entries {
		if info, err := e.Info(); err == nil && now.Sub(info.ModTime()) > tokenLife {
			os.Remove(filepath.Join(dir, e.Name())) // if not now, then at the next start
		}
	}
	return &tokens{dir: dir}, nil
}

// Get returns the token, or [autocert.ErrCacheMiss].
func (t *tokens) Get(ctx context.Context, key string) ([]byte, error) {
	if !tokenNames.MatchString(key) {
		return nil, autocert.ErrCacheMiss
	}
	switch {
	case t.shared != nil:
		sealed, _, err := t.shared.Get(ctx, sharedTokens+key)
		if errors.Is(err, fs.ErrNotExist) {
			return nil, autocert.ErrCacheMiss
		}
		if err != nil {
			return nil, away(err)
		}
		return t.seal.open(sharedTokens+key, sealed)
	case t.dir == "":
		if v, ok := t.m.Load(key); ok {
			return v.([]byte), nil
		}
		return nil, autocert.ErrCacheMiss
	}
	data, err := os.ReadFile(filepath.Join(t.dir, key))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, autocert.ErrCacheMiss
	}
	return data, err
}

// Put stores the token, whole or not at all.
func (t *tokens) Put(ctx context.Context, key string, data []byte) error {
	if !tokenNames.MatchString(key) {
		return errors.New("acme: not the name of a token")
	}
	switch {
	case t.shared != nil:
		sealed, err := t.seal.seal(sharedTokens+key, data)
		if err != nil {
			return err
		}
		return away(t.shared.Put(ctx, sharedTokens+key, "", sealed, tokenLife))
	case t.dir == "":
		t.m.Store(key, data)
		return nil
	}
	return writeFile(filepath.Join(t.dir, key), data)
}

// Delete takes the token away. It is no error if there is none.
func (t *tokens) Delete(ctx context.Context, key string) error {
	if !tokenNames.MatchString(key) {
		return nil
	}
	switch {
	case t.shared != nil:
		return away(t.shared.Delete(ctx, sharedTokens+key))
	case t.dir == "":
		t.m.Delete(key)
		return nil
	}
	if err := os.Remove(filepath.Join(t.dir, key)); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}
