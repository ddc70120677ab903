package challenge

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

	"plusminus/acme/internal/store"
)

// tokenLife is how long a token stays that no attempt deletes. A validation ends within minutes.
const tokenLife = 24 * time.Hour

// tokenNames matches the names under which autocert asks for tokens: "<token>+http-01" with a token from a
// request's URL, and "<domain>+token" with a domain from a server name. Both come from strangers.
//
// "token […] MUST NOT contain any characters outside the base64url alphabet"
// https://www.rfc-editor.org/rfc/rfc8555#section-8.3
var tokenNames = regexp.MustCompile(`^([A-Za-z0-9_-]+\+http-01|[a-z0-9_.-]+\+token)$`)

// maxTokenName is the length of the longest name, that of a domain with 253 characters. It is not part of
// tokenNames, since a counted repetition makes a regexp of 300 KB.
const maxTokenName = 253 + len("+token")

// isTokenName reports whether name is that of a token.
func isTokenName(name string) bool { return len(name) <= maxTokenName && tokenNames.MatchString(name) }

// sharedPrefix begins the names of tokens in a [store.Shared].
const sharedPrefix = "acme/tokens/"

// Tokens is the [autocert.Cache] of the responder. Attempts put answers into it, and the responders of all
// replicas on the same folder, or on the same [store.Shared], take them from it.
//
// Each Get reads the storage, since another replica may have written a newer token under the same name. A
// stranger's request to the challenge path thus costs one failed open(2), or one request to the shared store.
//
// The zero value holds tokens in memory. Tokens is safe for concurrent use.
type Tokens struct {
	// Immutable after it is made.
	dir    string       // "" for tokens in memory or in shared
	shared store.Shared // or nil
	seal   *store.Sealer

	// Safe from any goroutine.
	m sync.Map // string -> []byte; the tokens in memory
}

// InFolder returns Tokens in the folder dir. It makes dir if it is missing, and deletes tokens that a crash
// left there.
func InFolder(dir string, now time.Time) (*Tokens, error) {
	if err := store.MakeFolder(dir); err != nil {
		return nil, err
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	for _, e := range entries {
		if info, err := e.Info(); err == nil && now.Sub(info.ModTime()) > tokenLife {
			os.Remove(filepath.Join(dir, e.Name())) // a failure is repeated at the next start
		}
	}
	return &Tokens{dir: dir}, nil
}

// InShared returns Tokens in shared, sealed.
func InShared(shared store.Shared, seal *store.Sealer) *Tokens {
	return &Tokens{shared: shared, seal: seal}
}

// Get returns the token, or [autocert.ErrCacheMiss].
func (t *Tokens) Get(ctx context.Context, key string) ([]byte, error) {
	if !isTokenName(key) {
		return nil, autocert.ErrCacheMiss
	}
	switch {
	case t.shared != nil:
		sealed, _, err := t.shared.Get(ctx, sharedPrefix+key)
		if errors.Is(err, fs.ErrNotExist) {
			return nil, autocert.ErrCacheMiss
		}
		if err != nil {
			return nil, store.Away(err)
		}
		return t.seal.Open(sharedPrefix+key, sealed)
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
func (t *Tokens) Put(ctx context.Context, key string, data []byte) error {
	if !isTokenName(key) {
		return errors.New("acme: not the name of a token")
	}
	switch {
	case t.shared != nil:
		return store.Away(t.shared.Put(ctx, sharedPrefix+key, "", t.seal.Seal(sharedPrefix+key, data), tokenLife))
	case t.dir == "":
		t.m.Store(key, data)
		return nil
	}
	return store.WriteFile(filepath.Join(t.dir, key), data)
}

// Delete deletes the token. A missing token is no error.
func (t *Tokens) Delete(ctx context.Context, key string) error {
	if !isTokenName(key) {
		return nil
	}
	switch {
	case t.shared != nil:
		return store.Away(t.shared.Delete(ctx, sharedPrefix+key))
	case t.dir == "":
		t.m.Delete(key)
		return nil
	}
	if err := os.Remove(filepath.Join(t.dir, key)); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}
