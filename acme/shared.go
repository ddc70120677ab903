package acme

import "plusminus/acme/internal/store"

// Shared is a store that replicas on several machines use in place of the data folder: small entries, each
// with a name, and locks. An implementation needs these methods, which are safe for concurrent use and return
// within seconds:
//
//	// Get returns the entry and its version, which changes with each Put. The error is fs.ErrNotExist if
//	// there is no entry. Version returns only the version, with the same error.
//	Get(ctx context.Context, name string) (data []byte, version string, err error)
//	Version(ctx context.Context, name string) (string, error)
//
//	// Put stores data. The entry expires after life; 0 means never. If lock is not empty, Put fails
//	// unless this Shared still holds that lock.
//	Put(ctx context.Context, name, lock string, data []byte, life time.Duration) error
//
//	// Delete deletes the entry. A missing entry is no error.
//	Delete(ctx context.Context, name string) error
//
//	// Lock takes a lock, or returns ok false if another replica holds it. A replica that is cut off may
//	// lose the lock before it releases it; a Put that names the lock then fails.
//	Lock(ctx context.Context, name string) (release func(), ok bool, err error)
//
//	// String returns the address of the store, without secrets.
//	String() string
type Shared = store.Shared

// SealKeySize is the size in bytes of each key in [Config.SealKeys]: AES-256.
const SealKeySize = store.SealKeySize

// ParseSealKeys reads keys for [Config.SealKeys] from text. Each key is a line of 32 bytes in base64, as
// "openssl rand -base64 32" prints it. Empty lines and lines that begin with # are skipped. The errors
// contain no key.
func ParseSealKeys(text []byte) ([][]byte, error) { return store.ParseSealKeys(text) }
