package valkey

import (
	"context"
	"crypto/rand"
	"errors"
	"strconv"
	"sync"
	"time"

	"github.com/valkey-io/valkey-go"
)

const (
	// lockLife is the time after which the server frees the lock of a process that has died or is
	// cut off. The process that holds a lock renews it every lockBeat.
	lockLife = 15 * time.Second
	lockBeat = 4 * time.Second
)

// ErrLockLost is what [Files.Put] returns, changing nothing, if this Files does not hold the
// lock, or no longer holds it.
var ErrLockLost = errors.New("the lock was lost to another replica")

// These scripts renew and free the lock KEYS[1], if it still holds the secret ARGV[1].
var (
	keepLockScript = valkey.NewLuaScript(`return redis.call('GET', KEYS[1]) == ARGV[1] and redis.call('PEXPIRE', KEYS[1], ARGV[2]) or 0`)
	freeLockScript = valkey.NewLuaScript(`return redis.call('GET', KEYS[1]) == ARGV[1] and redis.call('DEL', KEYS[1]) or 0`)
)

// Lock takes the lock called name. If another process holds it, or another caller in this
// process, Lock reports false.
//
// The lock is held until release is called. It is lost earlier if the server is stopped, or
// cannot be reached, for 15 seconds; then [Files.Put] returns [ErrLockLost].
func (f *Files) Lock(ctx context.Context, name string) (release func(), ok bool, err error) {
	key, secret := f.lockKey(name), rand.Text()
	free := func() {
		// The caller's context has often ended: that is a common reason to release a lock.
		f.exec(context.WithoutCancel(ctx), freeLockScript, []string{key}, secret)
	}
	err = f.do(ctx, func(c valkey.Client) valkey.Completed {
		return c.B().Set().Key(key).Value(secret).Nx().Px(lockLife).Build()
	}).Error()
	if valkey.IsValkeyNil(err) {
		return nil, false, nil
	}
	if err != nil {
		if !certain(err) {
			free() // the answer was lost, and the server may have set the lock
		}
		return nil, false, err
	}
	f.mu.Lock()
	f.held[name] = secret
	f.mu.Unlock()
	holding, end := context.WithCancel(f.open)
	f.running.Go(func() { f.holdLock(holding, key, secret) })
	return sync.OnceFunc(func() {
		end()
		f.mu.Lock()
		if f.held[name] == secret {
			delete(f.held, name)
		}
		f.mu.Unlock()
		free()
	}), true, nil
}

// holdLock renews a lock until ctx ends or another process has the lock. It goes on after
// errors, so a short outage of the server loses no lock.
func (f *Files) holdLock(ctx context.Context, key, secret string) {
	beat := time.NewTicker(lockBeat)
	defer beat.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-beat.C:
		}
		held, err := f.exec(ctx, keepLockScript, []string{key}, secret, strconv.FormatInt(lockLife.Milliseconds(), 10))
		if err == nil && !held {
			return
		}
	}
}
