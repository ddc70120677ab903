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

// lock keeps out other replicas, on this machine or on others that share the folder. The kernel lets it
// go when the process ends, however that happens.
//
// It is flock(2), which Linux carries over NFS, too. A network file system that ignores it, or that
// refuses it, is no place for replicas; an error says so rather than two orders.
func (st *folder) lock(name string) (release func(), err error) {
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

// waitLock takes st's lock called name, but waits until it is free or ctx is done.
func waitLock(ctx context.Context, st store, name string) (release func(), err error) {
	for {
		release, err := st.lock(name)
		if !errors.Is(err, errLocked) {
			return release, err
		}
		select {
		case <-ctx.Done():
			return nil, fmt.Errorf("waiting for the lock of %s: %w", st.path(name), ctx.Err())
		case <-time.After(lockPoll):
		}
	}
}
