package acme

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	xacme "golang.org/x/crypto/acme"

	"plusminus/acme/internal/cahttp"
	"plusminus/acme/internal/certs"
	"plusminus/acme/internal/challenge"
	"plusminus/acme/internal/store"
)

// An issuer places orders with one CA directory, for one account. It is a [certifier].
type issuer struct {
	// Immutable after newIssuer.
	directory string
	profile   string
	email     string
	eab       *xacme.ExternalAccountBinding // nil if the CA needs none
	store     store.Store
	copies    *store.Folder // local copies, if store is shared; otherwise nil
	tokens    *challenge.Tokens
	conns     *http.Transport
	base      *cahttp.Bounded // over conns
	patience  time.Duration   // see the constant
	now       func() time.Time
	log       *slog.Logger

	// Safe from any goroutine.
	accounts  chan struct{} // one element while an attempt registers; never closed
	contacted atomic.Bool   // the CA knows the e-mail address

	mu sync.Mutex
	// Guarded by mu.
	key *ecdsa.PrivateKey // the account's; nil until it could be read
}

// newIssuer opens the state of the CA directory below the folder dir. It loads the account key, or makes one.
// If the shared store is away, the first attempt does that.
func newIssuer(ctx context.Context, cfg *Config, seal *store.Sealer, directory, dir string, tokens *challenge.Tokens) (*issuer, error) {
	st, copies, err := store.Open(cfg.Shared, seal, dir, store.DirectoryName(directory), cfg.now, cfg.Logger)
	if err != nil {
		return nil, err
	}
	conns := cahttp.NewTransport(cfg.RootCAs)
	is := &issuer{
		directory: directory,
		profile:   cfg.Profile,
		email:     cfg.Email,
		store:     st,
		copies:    copies,
		tokens:    tokens,
		conns:     conns,
		base:      &cahttp.Bounded{Base: conns, Timeout: cfg.requestTimeout},
		patience:  cfg.patience,
		now:       cfg.now,
		log:       cfg.Logger,
		accounts:  make(chan struct{}, 1),
	}
	if cfg.EABKeyID != "" {
		is.eab = &xacme.ExternalAccountBinding{KID: cfg.EABKeyID, Key: cfg.EABKey}
	}
	if _, err := is.accountKey(ctx); err != nil && !errors.Is(err, store.ErrAway) {
		return nil, fmt.Errorf("acme: account key: %w", err)
	}
	return is, nil
}

// accountKey returns the account key. The first call that succeeds reads it, or makes one.
func (is *issuer) accountKey(ctx context.Context) (*ecdsa.PrivateKey, error) {
	is.mu.Lock()
	defer is.mu.Unlock()
	if is.key != nil {
		return is.key, nil
	}
	return is.loadKeyLocked(ctx)
}

func (is *issuer) loadKeyLocked(ctx context.Context) (*ecdsa.PrivateKey, error) {
	key, err := loadAccountKey(ctx, is.store, is.knownKeyLocked, is.log)
	if err == nil {
		is.key = key
	}
	return key, err
}

// knownKeyLocked returns the account key from memory or from the local copy, or nil.
func (is *issuer) knownKeyLocked() *ecdsa.PrivateKey {
	if is.key != nil || is.copies == nil {
		return is.key
	}
	key, _ := store.Load(is.copies, store.AccountKey, certs.ParseKey)
	return key
}

// restoreAccount implements [certifier].
func (is *issuer) restoreAccount() error {
	if v, err := is.store.Version(store.AccountKey); err != nil || v != "" {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), openTimeout)
	defer cancel()
	is.mu.Lock()
	defer is.mu.Unlock()
	_, err := is.loadKeyLocked(ctx)
	return err
}

// replaceKey returns the key for a new account, since the CA has deactivated the one of the key old. It stores old under
// another name first. If another replica has replaced old, replaceKey returns that one's key.
func (is *issuer) replaceKey(ctx context.Context, old *ecdsa.PrivateKey, reason error) (*ecdsa.PrivateKey, error) {
	ctx, cancel := context.WithTimeout(ctx, openTimeout)
	defer cancel()
	is.mu.Lock()
	defer is.mu.Unlock()
	if !is.key.Equal(old) {
		return is.key, nil
	}
	release, err := store.WaitLock(ctx, is.store, store.AccountKey)
	if err != nil {
		return nil, err
	}
	defer release()
	stored, err := store.Load(is.store, store.AccountKey, certs.ParseKey)
	if err == nil && !stored.Equal(old) {
		is.key = stored
		return stored, nil
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	aside := store.AccountKey + ".deactivated-" + is.now().UTC().Format("20060102T150405.000")
	for _, e := range []struct {
		name string
		key  *ecdsa.PrivateKey
	}{{aside, old}, {store.AccountKey, key}, {store.AccountKeyBackup, key}} {
		data, err := certs.EncodeKey(e.key)
		if err == nil {
			err = is.store.Write(e.name, data)
		}
		if err != nil {
			return nil, err
		}
	}
	is.key = key
	is.log.Warn("account key set aside: the CA has deactivated its account, so a new account is made", "ca", is.directory,
		"file", is.store.Path(aside), "err", reason)
	return key, nil
}

// loadAccountKey returns the account key in st, or its backup, or what known returns, or a new key. To lose
// the key costs the limits that the CA counts by account, and the right to name a certificate as replaced.
func loadAccountKey(ctx context.Context, st store.Store, known func() *ecdsa.PrivateKey, log *slog.Logger) (*ecdsa.PrivateKey, error) {
	read := func() (key, backup *ecdsa.PrivateKey, err error) {
		key, err = store.Load(st, store.AccountKey, certs.ParseKey)
		backup, errBackup := store.Load(st, store.AccountKeyBackup, certs.ParseKey)
		for _, err := range []error{err, errBackup} {
			if err != nil && !errors.Is(err, fs.ErrNotExist) && key == nil && backup == nil {
				return nil, nil, err // there may be a key, and a new one would replace it
			}
		}
		return key, backup, nil
	}
	// Without a lock first: to take it, the disk must be writable.
	if key, backup, err := read(); err == nil && key != nil && backup != nil && key.Equal(backup) {
		return key, nil
	}
	release, err := store.WaitLock(ctx, st, store.AccountKey) // replicas that start together share one account
	if err != nil {
		return nil, err
	}
	defer release()
	key, backup, err := read()
	ok, okBackup := key != nil, backup != nil
	switch {
	case err != nil:
		return nil, err
	case ok && okBackup && key.Equal(backup):
		return key, nil
	case !ok && okBackup:
		key = backup
		log.Warn("account key restored from its copy", "file", st.Path(store.AccountKey))
	case !ok:
		if key = known(); key != nil {
			break
		}
		if key, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader); err != nil {
			return nil, err
		}
	}
	data, err := certs.EncodeKey(key)
	if err != nil {
		return nil, err
	}
	for _, name := range []string{store.AccountKey, store.AccountKeyBackup} {
		if err := st.Write(name, data); err != nil {
			if ok || okBackup { // one of the two is stored, which is enough for now
				log.Warn("account key not copied", "file", st.Path(name), "err", err)
				break
			}
			return nil, err
		}
	}
	return key, nil
}
