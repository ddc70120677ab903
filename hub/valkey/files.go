package valkey

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"strconv"
	"sync"
	"time"

	"github.com/valkey-io/valkey-go"
)

const (
	// lockLife is after what time a lock is free again whose holder has died or is cut off. The
	// holder says that it lives every lockBeat.
	lockLife = 15 * time.Second
	lockBeat = 4 * time.Second

	// redialAfter is the pause after a failed connection, in which calls fail at once.
	redialAfter = 500 * time.Millisecond
)

// ErrLockLost is what [Files.Put] returns, changing nothing, if the lock that it names is not, or no
// longer, held by this Files.
var ErrLockLost = errors.New("the lock was lost to another replica")

// Files are small pieces of data on the server, each with a name, and locks: what replicas on
// several machines share in place of a folder. They are not encrypted, and as safe as the server's
// persistence makes them.
//
// Methods are safe for concurrent use. Each returns within about 4 seconds, and at once while the
// server is known to be away. Names may have any characters.
type Files struct {
	// Immutable after NewFiles.
	cfg  Config
	name string // of this process, for CLIENT LIST

	open    context.Context // ended by Close
	close   context.CancelFunc
	running sync.WaitGroup // what holds locks, and closes connections

	mu sync.Mutex
	// Guarded by mu.
	client valkey.Client     // nil without a connection
	err    error             // why there is none
	dialAt time.Time         // no sooner again
	held   map[string]string // lock -> the secret that says that it is ours
}

// NewFiles returns the files of those replicas that have cfg's server, DB and Prefix. It does not use
// the network. [Files.Close] ends it.
func NewFiles(cfg Config) *Files {
	f := &Files{cfg: cfg, name: "plusminus-files-" + rand.Text()[:13], held: make(map[string]string)}
	f.open, f.close = context.WithCancel(context.Background())
	return f
}

// Close ends the connection. Locks that are held are free again after 15 seconds.
func (f *Files) Close() error {
	f.close()
	f.mu.Lock()
	f.dropLocked(f.client, errors.New("closed"))
	f.mu.Unlock()
	f.running.Wait()
	return nil
}

// String returns where the files are, without a password.
func (f *Files) String() string { return f.cfg.String() }

// The keys, all with the prefix in braces:
//
//	file:<name>  hash    version, data
//	lock:<name>  string  the secret of who holds it
func (f *Files) fileKey(name string) string { return "{" + f.cfg.prefix() + "}:file:" + name }
func (f *Files) lockKey(name string) string { return "{" + f.cfg.prefix() + "}:lock:" + name }

// Get returns what was put under name, and a version that differs from that of whatever was there
// before. The error is [fs.ErrNotExist] if there is nothing.
func (f *Files) Get(ctx context.Context, name string) (data []byte, version string, err error) {
	list, err := f.do(ctx, func(c valkey.Client) valkey.Completed {
		return c.B().Hmget().Key(f.fileKey(name)).Field("version", "data").Build()
	}).AsStrSlice()
	switch {
	case err != nil:
		return nil, "", err
	case len(list) != 2 || list[0] == "":
		return nil, "", fs.ErrNotExist
	}
	return []byte(list[1]), list[0], nil
}

// Version returns the version of what is stored under name. The error is [fs.ErrNotExist] if there is
// nothing.
func (f *Files) Version(ctx context.Context, name string) (string, error) {
	v, err := f.do(ctx, func(c valkey.Client) valkey.Completed {
		return c.B().Hget().Key(f.fileKey(name)).Field("version").Build()
	}).ToString()
	if valkey.IsValkeyNil(err) {
		err = fs.ErrNotExist
	}
	return v, err
}

// putScript stores ARGV[2] as version ARGV[1] for ARGV[3] ms (0 is for good). With an ARGV[4] it does
// so only if that is what KEYS[2] holds: who was cut off for longer than its lock lives does not
// write over what the next one wrote.
var putScript = valkey.NewLuaScript(`
if ARGV[4] ~= '' and redis.call('GET', KEYS[2]) ~= ARGV[4] then
	return 0
end
redis.call('HSET', KEYS[1], 'version', ARGV[1], 'data', ARGV[2])
if ARGV[3] == '0' then
	redis.call('PERSIST', KEYS[1])
else
	redis.call('PEXPIRE', KEYS[1], ARGV[3])
end
return 1
`)

// Put stores data under name for as long as life; 0 is for good. If lock is not empty, it does so only
// while that is held, or else returns [ErrLockLost].
func (f *Files) Put(ctx context.Context, name, lock string, data []byte, life time.Duration) error {
	secret, keys := "", []string{f.fileKey(name)}
	if lock != "" {
		f.mu.Lock()
		secret = f.held[lock]
		f.mu.Unlock()
		if secret == "" {
			return ErrLockLost
		}
		keys = append(keys, f.lockKey(lock))
	}
	stored, err := f.exec(ctx, putScript, keys, rand.Text()[:13], string(data), strconv.FormatInt(life.Milliseconds(), 10), secret)
	if err == nil && !stored {
		err = ErrLockLost
	}
	return err
}

// Delete takes away what is stored under name. It is no error if there is nothing.
func (f *Files) Delete(ctx context.Context, name string) error {
	return f.do(ctx, func(c valkey.Client) valkey.Completed { return c.B().Del().Key(f.fileKey(name)).Build() }).Error()
}

// The scripts of who holds the lock KEYS[1] with the secret ARGV[1].
var (
	keepLockScript = valkey.NewLuaScript(`return redis.call('GET', KEYS[1]) == ARGV[1] and redis.call('PEXPIRE', KEYS[1], ARGV[2]) or 0`)
	freeLockScript = valkey.NewLuaScript(`return redis.call('GET', KEYS[1]) == ARGV[1] and redis.call('DEL', KEYS[1]) or 0`)
)

// Lock takes the lock called name, unless somebody has it, which may be another caller in this process:
// then it reports false. It is ours until release is called, or until we were cut off from the server,
// or the server was stopped, for 15 seconds; [Files.Put] tells.
func (f *Files) Lock(ctx context.Context, name string) (release func(), ok bool, err error) {
	key, secret := f.lockKey(name), rand.Text()
	free := func() {
		// Not with the caller's context: that it has ended is a common reason to let go.
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
			free() // it may have been taken, and the answer was lost
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

// holdLock says that we live, until ctx ends or the lock is somebody else's. A server that is away for
// a moment costs nothing.
func (f *Files) holdLock(ctx context.Context, key, secret string) {
	beat := time.NewTicker(lockBeat)
	defer beat.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-beat.C:
		}
		ours, err := f.exec(ctx, keepLockScript, []string{key}, secret, strconv.FormatInt(lockLife.Milliseconds(), 10))
		if err == nil && !ours {
			return
		}
	}
}

// exec runs a script that returns 1 or 0.
func (f *Files) exec(ctx context.Context, script *valkey.Lua, keys []string, args ...string) (bool, error) {
	return f.call(ctx, func(ctx context.Context, c valkey.Client) valkey.ValkeyResult {
		return script.Exec(ctx, c, keys, args)
	}).AsBool()
}

func (f *Files) do(ctx context.Context, command func(valkey.Client) valkey.Completed) result {
	return f.call(ctx, func(ctx context.Context, c valkey.Client) valkey.ValkeyResult { return c.Do(ctx, command(c)) })
}

// A result is the server's, or why there is none.
type result struct {
	valkey.ValkeyResult
	err error
}

func (r result) Error() error {
	if r.err != nil {
		return r.err
	}
	return r.ValkeyResult.Error()
}

func (r result) AsStrSlice() ([]string, error) {
	if r.err != nil {
		return nil, r.err
	}
	return r.ValkeyResult.AsStrSlice()
}

func (r result) ToString() (string, error) {
	if r.err != nil {
		return "", r.err
	}
	return r.ValkeyResult.ToString()
}

func (r result) AsBool() (bool, error) {
	if r.err != nil {
		return false, r.err
	}
	return r.ValkeyResult.AsBool()
}

// call makes a connection if there is none, and one call. After an error the next call makes a new
// connection: a name may lead to another server by then.
func (f *Files) call(ctx context.Context, call func(context.Context, valkey.Client) valkey.ValkeyResult) result {
	client, err := f.connection()
	if err != nil {
		return result{err: fmt.Errorf("%s: %w", f.cfg.Address, why(err))}
	}
	callCtx, cancel := context.WithTimeoutCause(ctx, answerTimeout, errNoAnswer)
	defer cancel()
	res := call(callCtx, client)
	err = res.Error()
	if err == nil || valkey.IsValkeyNil(err) {
		return result{ValkeyResult: res}
	}
	if ctx.Err() != nil {
		return result{err: context.Cause(ctx)} // that says nothing of the server
	}
	if errors.Is(err, context.DeadlineExceeded) {
		err = noAnswer(callCtx)
	}
	f.mu.Lock()
	f.dropLocked(client, err)
	f.mu.Unlock()
	return result{err: fmt.Errorf("%s: %w", f.cfg.Address, why(err))}
}

// connection returns the present connection, or makes one. Callers wait for each other meanwhile.
func (f *Files) connection() (valkey.Client, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	switch {
	case f.open.Err() != nil:
		return nil, notSentError{errors.New("closed")}
	case f.client != nil:
		return f.client, nil
	case time.Now().Before(f.dialAt):
		return nil, notSentError{f.err}
	}
	client, err := f.cfg.dial(f.name, f.dialConn)
	if err != nil {
		f.dialAt = time.Now().Add(redialAfter)
		f.dropLocked(client, err)
		return nil, notSentError{err}
	}
	f.client, f.err = client, nil
	return client, nil
}

// dropLocked gives up client, and notes why. Another one may have taken its place.
func (f *Files) dropLocked(client valkey.Client, err error) {
	f.err = err
	if client == nil {
		return
	}
	if f.client == client {
		f.client = nil
	}
	f.running.Go(client.Close) // may take a second if the server is silent
}

func (f *Files) dialConn(ctx context.Context, addr string, dialer *net.Dialer, config *tls.Config) (net.Conn, error) {
	return dialConn(ctx, f.open, addr, dialer, config)
}
