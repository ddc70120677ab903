package store

import (
	"cmp"
	"context"
	"crypto/rand"
	"errors"
	"io/fs"
	"log/slog"
	"strings"
	"sync/atomic"
	"time"
)

// Shared holds entries and locks for replicas on several machines. Its methods are safe for concurrent use
// and return within seconds.
type Shared interface {
	// Get returns the entry called name and its version, which changes with each Put. The error is
	// [fs.ErrNotExist] if there is no entry.
	Get(ctx context.Context, name string) (data []byte, version string, err error)

	// Version returns only the version, with the same error.
	Version(ctx context.Context, name string) (string, error)

	// Put stores data. The entry expires after life; 0 means never. If lock is not empty, Put fails unless
	// this Shared still holds that lock.
	Put(ctx context.Context, name, lock string, data []byte, life time.Duration) error

	// Delete deletes the entry called name. A missing entry is no error.
	Delete(ctx context.Context, name string) error

	// Lock takes the lock called name, or returns ok false if another replica holds it. A replica that is
	// cut off may lose the lock before it releases it; a Put that names the lock then fails.
	Lock(ctx context.Context, name string) (release func(), ok bool, err error)

	// String returns the address of the store, without secrets.
	String() string
}

// damagedLife is how long a damaged entry stays for examination.
const damagedLife = 30 * 24 * time.Hour

// ErrAway is wrapped by each error that says that the shared store cannot be used now.
var ErrAway = errors.New("the shared store cannot be used")

type awayError struct{ err error }

func (e awayError) Error() string        { return ErrAway.Error() + ": " + e.err.Error() }
func (e awayError) Unwrap() error        { return e.err }
func (e awayError) Is(target error) bool { return target == ErrAway }

// Away wraps err, an error of a [Shared], as [ErrAway]. It returns nil and [fs.ErrNotExist] unchanged.
func Away(err error) error {
	if err == nil || errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return awayError{err}
}

// A SharedStore is a [Store] in a [Shared]. All of its entries are sealed.
//
// It copies certificates and the account key to a local folder. A replica that starts while the shared store
// is away serves the copies, and a shared store that has lost its entries gets them back. A folder that was
// used before the replicas began to share becomes the folder of the copies, so nothing is ordered twice.
type SharedStore struct {
	// Immutable after NewShared.
	shared Shared
	seal   *Sealer
	prefix string  // of the names of all entries
	copies *Folder // nil makes no copies
	now    func() time.Time
	log    *slog.Logger

	// Safe from any goroutine.
	uncopied atomic.Bool // the last copy failed, and that was logged
}

// NewShared returns the store called name in shared. A nil copies makes no copies.
func NewShared(shared Shared, seal *Sealer, name string, copies *Folder, now func() time.Time, log *slog.Logger) *SharedStore {
	return &SharedStore{shared: shared, seal: seal, prefix: "acme/" + name + "/", copies: copies, now: now, log: log}
}

// Path implements [Store].
func (st *SharedStore) Path(name string) string { return st.shared.String() + " " + st.prefix + name }

// copied reports whether name is mirrored to the local folder: certificates and the account key.
func copied(name string) bool {
	return !strings.Contains(name, "+") || name == AccountKey
}

// Read implements [Store]. An entry that was sealed with another key cannot be read now; it is not damaged.
func (st *SharedStore) Read(name string) ([]byte, error) {
	sealed, _, err := st.shared.Get(context.Background(), st.prefix+name)
	if err != nil {
		return nil, Away(err)
	}
	data, err := st.seal.Open(st.prefix+name, sealed)
	switch {
	case err == nil:
		st.copy(name, data)
		if st.seal.old(sealed) && strings.HasPrefix(name, AccountKey) {
			st.reseal(name, data)
		}
	case !errors.Is(err, ErrDamaged):
		err = awayError{err}
	}
	return data, err
}

// Write implements [Store]. It makes the copy first: if the shared store fails, the copy is all there is.
func (st *SharedStore) Write(name string, data []byte) error {
	st.copy(name, data)
	return Away(st.shared.Put(context.Background(), st.prefix+name, lockOf(name), st.seal.Seal(st.prefix+name, data), 0))
}

// reseal seals an account key with the newest sealing key. Account keys are never written again, while
// everything else is sealed anew with the next renewal. It needs no lock, since all replicas write the same.
func (st *SharedStore) reseal(name string, data []byte) {
	err := st.shared.Put(context.Background(), st.prefix+name, "", st.seal.Seal(st.prefix+name, data), 0)
	if err != nil {
		st.log.Warn("not sealed with the new key yet: keep the old one", "name", st.Path(name), "err", err)
	}
}

// copy writes data to the local folder unless the folder has it. It logs the first failure of several.
func (st *SharedStore) copy(name string, data []byte) {
	if st.copies == nil || !copied(name) {
		return
	}
	if old, err := st.copies.Read(name); err == nil && string(old) == string(data) {
		return
	}
	err := st.copies.Write(name, data)
	if err != nil && !st.uncopied.Swap(true) {
		st.log.Warn("no copy in the data folder: a start while the shared store is away would find nothing to serve", "err", err)
	} else if err == nil {
		st.uncopied.Store(false)
	}
}

// SetAside implements [Store]. The renamed entry expires after damagedLife.
func (st *SharedStore) SetAside(name string, reason error) {
	aside := name + ".damaged-" + st.now().UTC().Format("20060102T150405.000")
	ctx := context.Background()
	data, _, err := st.shared.Get(ctx, st.prefix+name)
	if err == nil {
		err = st.shared.Put(ctx, st.prefix+aside, "", data, damagedLife)
	}
	if err == nil {
		err = st.shared.Delete(ctx, st.prefix+name)
	}
	if err != nil {
		st.log.Warn("damaged entry of the shared store ignored", "name", st.Path(name), "err", reason, "rename_err", err)
		return
	}
	st.log.Warn("damaged entry of the shared store set aside", "name", st.Path(name), "now", aside, "err", reason)
}

// Remove implements [Store].
func (st *SharedStore) Remove(name string) error {
	return Away(st.shared.Delete(context.Background(), st.prefix+name))
}

// Version implements [Store].
func (st *SharedStore) Version(name string) (Version, error) {
	v, err := st.shared.Version(context.Background(), st.prefix+name)
	if errors.Is(err, fs.ErrNotExist) {
		return "", nil
	}
	return Version(v), Away(err)
}

// Lock implements [Store].
func (st *SharedStore) Lock(name string) (release func(), err error) {
	release, ok, err := st.shared.Lock(context.Background(), lockOf(name))
	switch {
	case err != nil:
		return nil, Away(err)
	case !ok:
		return nil, ErrLocked
	}
	return release, nil
}

// lockOf returns the lock under which name is written. All entries of a domain have one lock, whatever the
// CA, and the account keys have another.
func lockOf(name string) string {
	subject, _, _ := strings.Cut(name, "+")
	return "acme/locks/" + cmp.Or(subject, name)
}

// TryShared writes, reads and deletes a probe that nothing else reads. Then it reads the account key of the
// CA at directoryURL, if there is one. The error is [ErrOtherKey] if seal cannot open that key.
func TryShared(ctx context.Context, shared Shared, seal *Sealer, directoryURL string) error {
	probe := "acme/check/" + rand.Text()
	if err := shared.Put(ctx, probe, "", seal.Seal(probe, make([]byte, 8<<10)), time.Minute); err != nil {
		return err
	}
	sealed, _, err := shared.Get(ctx, probe)
	if err == nil {
		_, err = seal.Open(probe, sealed)
	}
	if err := errors.Join(err, shared.Delete(ctx, probe)); err != nil {
		return err
	}
	account := "acme/" + DirectoryName(directoryURL) + "/" + AccountKey
	if sealed, _, err = shared.Get(ctx, account); err == nil {
		_, err = seal.Open(account, sealed)
	}
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, ErrDamaged) {
		return nil // the server makes a new key, or sets the damaged one aside
	}
	return err
}
