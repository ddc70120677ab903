package valkey

import (
	"context"
	"crypto/rand"
	"errors"
	"io/fs"
	"strconv"
	"sync"
	"time"

	"github.com/valkey-io/valkey-go"
)

// Files are small pieces of data on the server, each with a name, and locks. Replicas on
// several machines share them in place of a folder. The data is not encrypted, and as safe as
// the server's persistence makes it.
//
// Methods are safe for concurrent use. Each returns within about 4 seconds, and at once for
// half a second after a failed connection. Names may have any characters.
type Files struct {
	// Immutable after NewFiles.
	cfg  Config
	name string // of this process, for CLIENT LIST

	open    context.Context // canceled by Close
	close   context.CancelFunc
	running sync.WaitGroup // goroutines that hold a lock or close a connection

	mu sync.Mutex
	// Guarded by mu.
	client valkey.Client     // nil without a connection
	err    error             // why there is no connection
	dialAt time.Time         // the earliest time of the next attempt to connect
	held   map[string]string // lock -> the secret that this process has stored under it
}

// NewFiles returns the files that all replicas with the server, DB and Prefix of cfg share. It
// does not use the network. [Files.Close] ends it.
func NewFiles(cfg Config) *Files {
	f := &Files{cfg: cfg, name: "plusminus-files-" + rand.Text()[:13], held: make(map[string]string)}
	f.open, f.close = context.WithCancel(context.Background())
	return f
}

// Close closes the connection. Locks that are still held expire within 15 seconds.
func (f *Files) Close() error {
	f.close()
	f.mu.Lock()
	f.dropLocked(f.client, errors.New("closed"))
	f.mu.Unlock()
	f.running.Wait()
	return nil
}

// String returns the URL of the server without user and password.
func (f *Files) String() string { return f.cfg.String() }

// The keys, all with the prefix in braces:
//
//	file:<name>  hash    version, data
//	lock:<name>  string  the secret of its holder
func (f *Files) fileKey(name string) string { return "{" + f.cfg.prefix() + "}:file:" + name }
func (f *Files) lockKey(name string) string { return "{" + f.cfg.prefix() + "}:lock:" + name }

// Get returns the data stored under name, and its version. Each Put makes a new version. The
// error is [fs.ErrNotExist] if nothing is stored.
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

// Version returns the version of the data stored under name. The error is [fs.ErrNotExist] if
// nothing is stored.
func (f *Files) Version(ctx context.Context, name string) (string, error) {
	v, err := f.do(ctx, func(c valkey.Client) valkey.Completed {
		return c.B().Hget().Key(f.fileKey(name)).Field("version").Build()
	}).ToString()
	if valkey.IsValkeyNil(err) {
		err = fs.ErrNotExist
	}
	return v, err
}

// putScript stores ARGV[2] as version ARGV[1] for ARGV[3] ms (0: without expiry). If ARGV[4] is
// not empty, it does so only while KEYS[2] holds that secret. So a process that was cut off for
// longer than its lock lives does not overwrite the data of the next holder.
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

// Put stores data under name for the time life; 0 means without expiry. If lock is not empty,
// Put stores only while this Files holds that lock, and returns [ErrLockLost] otherwise.
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

// Delete deletes the data stored under name. It is no error if nothing is stored.
func (f *Files) Delete(ctx context.Context, name string) error {
	return f.do(ctx, func(c valkey.Client) valkey.Completed { return c.B().Del().Key(f.fileKey(name)).Build() }).Error()
}
