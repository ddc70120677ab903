package acme

import (
	"cmp"
	"context"
	"errors"
	"io/fs"
	"log/slog"
	"strings"
	"sync/atomic"
	"time"
)

// Shared is what replicas on several machines share in place of the data folder: small pieces of data,
// each with a name, and locks. Its methods are safe for concurrent use, and return within seconds.
type Shared interface {
	// Get returns what is stored under name, and its version, which differs from that of whatever was
	// there before. The error is [fs.ErrNotExist] if there is nothing.
	Get(ctx context.Context, name string) (data []byte, version string, err error)

	// Version returns the version alone, with the same error.
	Version(ctx context.Context, name string) (string, error)

	// Put stores data for as long as life; 0 is for good. If lock is not empty, it fails unless that is
	// a lock that is still held through this Shared.
	Put(ctx context.Context, name, lock string, data []byte, life time.Duration) error

	// Delete takes away what is stored under name. It is no error if there is nothing.
	Delete(ctx context.Context, name string) error

	// Lock takes the lock called name, or reports false if somebody else has it. It may be lost before
	// it is released, when this replica is cut off: then Put fails that names it.
	Lock(ctx context.Context, name string) (release func(), ok bool, err error)

	// String says where all this is, without secrets.
	String() string
}

// damagedLife is how long what was damaged can still be looked at.
const damagedLife = 30 * day

// errAway is wrapped around why what is shared cannot be had now.
var errAway = errors.New("the shared store cannot be used")

type awayError struct{ err error }

func (e awayError) Error() string        { return errAway.Error() + ": " + e.err.Error() }
func (e awayError) Unwrap() error        { return e.err }
func (e awayError) Is(target error) bool { return target == errAway }

// away marks err as one of what is shared, unless it says that something is not there.
func away(err error) error {
	if err == nil || errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return awayError{err}
}

// A sharedStore is a [store] that is part of what replicas share. All that is in it is sealed.
//
// It has a copy of its certificates and account key in a folder of our own, so that a replica that
// starts while the shared store is away can serve, and one that has lost everything gets it back. A
// folder that was in use before things were shared serves as one: what is in it is not ordered again.
type sharedStore struct {
	// Immutable after it is made.
	shared Shared
	seal   *sealer
	prefix string  // of names
	copies *folder // nil makes none
	now    func() time.Time
	log    *slog.Logger

	uncopied atomic.Bool // the last copy failed, which was logged
}

func (st *sharedStore) path(name string) string { return st.shared.String() + " " + st.prefix + name }

// copied reports whether name is of what there is a copy of: what is of use without the rest.
func copied(name string) bool {
	return !strings.Contains(name, "+") || name == accountKeyName
}

func (st *sharedStore) read(name string) ([]byte, error) {
	sealed, _, err := st.shared.Get(context.Background(), st.prefix+name)
	if err != nil {
		return nil, away(err)
	}
	data, err := st.seal.open(st.prefix+name, sealed)
	switch {
	case err == nil:
		st.copy(name, data)
		if st.seal.old(sealed) && strings.HasPrefix(name, accountKeyName) {
			st.reseal(name, data)
		}
	case !errors.Is(err, errDamaged):
		err = awayError{err} // not to be written over
	}
	return data, err
}

func (st *sharedStore) write(name string, data []byte) error {
	st.copy(name, data) // first of all: it may be all that is left of it
	sealed, err := st.seal.seal(st.prefix+name, data)
	if err != nil {
		return err
	}
	return away(st.shared.Put(context.Background(), st.prefix+name, lockOf(name), sealed, 0))
}

// reseal seals with the new key what was sealed with the old one. It is for what is never written again,
// and so needs no lock: whoever does it writes the same. All else is sealed anew with the next renewal.
func (st *sharedStore) reseal(name string, data []byte) {
	sealed, err := st.seal.seal(st.prefix+name, data)
	if err == nil {
		err = st.shared.Put(context.Background(), st.prefix+name, "", sealed, 0)
	}
	if err != nil {
		st.log.Warn("not sealed with the new key yet: keep the old one", "name", st.path(name), "err", err)
	}
}

// copy copies data, unless it is there already. A copy that fails costs nothing now.
func (st *sharedStore) copy(name string, data []byte) {
	if st.copies == nil || !copied(name) {
		return
	}
	if old, err := st.copies.read(name); err == nil && string(old) == string(data) {
		return
	}
	err := st.copies.write(name, data)
	if err != nil && !st.uncopied.Swap(true) {
		st.log.Warn("no copy in the data folder: a start while the shared store is away would find nothing to serve", "err", err)
	} else if err == nil {
		st.uncopied.Store(false)
	}
}

func (st *sharedStore) setAside(name string, reason error) {
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
		st.log.Warn("what is damaged in the shared store is ignored", "name", st.path(name), "err", reason, "rename_err", err)
		return
	}
	st.log.Warn("what is damaged in the shared store was set aside", "name", st.path(name), "now", aside, "err", reason)
}

func (st *sharedStore) remove(name string) error {
	return away(st.shared.Delete(context.Background(), st.prefix+name))
}

func (st *sharedStore) version(name string) (version, error) {
	v, err := st.shared.Version(context.Background(), st.prefix+name)
	if errors.Is(err, fs.ErrNotExist) {
		return "", nil
	}
	return version(v), away(err)
}

func (st *sharedStore) lock(name string) (release func(), err error) {
	release, ok, err := st.shared.Lock(context.Background(), lockOf(name))
	switch {
	case err != nil:
		return nil, away(err)
	case !ok:
		return nil, errLocked
	}
	return release, nil
}

// lockOf returns the lock under which name is written: the domain's, whatever the CA, for what is a
// domain's, and one for the account keys.
func lockOf(name string) string {
	subject, _, _ := strings.Cut(name, "+")
	return "acme/locks/" + cmp.Or(subject, name)
}

// useCopy has s serve the copy of a's certificate if the shared store has none, or is away, and s has
// nothing better.
func (p *Provider) useCopy(s *site, a *authority) {
	if a.copies == nil || a.certSeen != "" {
		return
	}
	cert, err := storedIn(a.copies, s.name)
	if err != nil || !p.better(s, a, cert, s.current.Load()) {
		return
	}
	p.install(s, cert, a)
	a.lost = true // or away: then it turns out when it is back
}
