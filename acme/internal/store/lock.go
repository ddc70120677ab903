package store

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"
)

// ErrLocked is returned for a lock that another replica or another call holds.
var ErrLocked = errors.New("another replica is working on this domain")

// lockPoll is how often WaitLock tries again.
const lockPoll = 50 * time.Millisecond

// Lock implements [Store]. It keeps out other replicas on this machine, and on other machines that share
// the folder. The kernel releases the lock when the process ends.
//
// The lock is flock(2), which Linux carries over NFS, too. Where a network file system refuses it, Lock
// returns an error. Replicas cannot use a file system that ignores it.
func (st *Folder) Lock(name string) (release func(), err error) {
	f, err := os.OpenFile(st.Path(name+lockSuffix), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	if err := tryLock(f); err != nil {
		f.Close()
		if err == ErrLocked {
			return nil, err
		}
		return nil, fmt.Errorf("locking %s: %w", f.Name(), err)
	}
	return func() { f.Close() }, nil // closing the last descriptor releases the lock
}

// LockPath returns the place of the lock called name for log lines.
func LockPath(st Store, name string) string { return st.Path(name + lockSuffix) }

// WaitLock takes the lock called name. It waits until the lock is free or ctx is done.
func WaitLock(ctx context.Context, st Store, name string) (release func(), err error) {
	for {
		release, err := st.Lock(name)
		if !errors.Is(err, ErrLocked) {
			return release, err
		}
		select {
		case <-ctx.Done():
			return nil, fmt.Errorf("waiting for the lock of %s: %w", st.Path(name), ctx.Err())
		case <-time.After(lockPoll):
		}
	}
}
