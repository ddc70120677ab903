package acme

import (
	"context"
	"errors"
	"fmt"
	"os"
	"syscall"
	"time"
)

// errLocked is returned for a lock that somebody else holds.
var errLocked = errors.New("another replica is at it")

// lockSuffix makes a lock's file name from that of what it is for.
const lockSuffix = "+lock"

// lockPoll is how often a lock that is taken is tried again by who waits for it.
const lockPoll = 50 * time.Millisecond

// lock takes the lock called name, and returns what lets it go, or [errLocked] at once if it is taken.
// It keeps out other replicas, on this machine or on others that share the folder, and other calls in
// this process. The kernel lets it go when the process ends, however that happens.
//
// It is flock(2), which Linux carries over NFS, too. A network file system that ignores it, or that
// refuses it, is no place for replicas; an error says so rather than two orders.
func (st *store) lock(name string) (release func(), err error) {
	f, err := os.OpenFile(st.path(name+lockSuffix), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	for {
		switch err = syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err {
		case nil:
			return func() { f.Close() }, nil // the lock goes with the last descriptor
		case syscall.EINTR:
			continue
		case syscall.EWOULDBLOCK:
			f.Close()
			return nil, errLocked
		}
		f.Close()
		return nil, fmt.Errorf("locking %s: %w", f.Name(), err)
	}
}

// waitLock is lock, but waits until the lock is free or ctx is done.
func (st *store) waitLock(ctx context.Context, name string) (release func(), err error) {
	for {
		release, err := st.lock(name)
		if !errors.Is(err, errLocked) {
			return release, err
		}
		select {
		case <-ctx.Done():
			return nil, fmt.Errorf("waiting for the lock %s in %s: %w", name, st.dir, ctx.Err())
		case <-time.After(lockPoll):
		}
	}
}
