// Package store keeps the small files of package acme: account keys, certificates, plans, and locks.
//
// A [Store] is a [Folder] on this machine or a [SharedStore] that replicas on several machines share. Both
// write an entry whole or not at all, and both tell an entry that was damaged from one that is missing.
// The package starts no goroutine.
package store

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// Names of folders below the data folder.
const (
	ACME   = "acme"   // holds the other two, and one folder for each CA: see [DirectoryName]
	Tokens = "tokens" // answers to challenges
	Locks  = "locks"  // one lock for each domain
)

// Names of entries. A domain's certificate has the domain's name; no domain contains a plus sign.
const (
	AccountKey       = "acme_account+key" // autocert's caches use this name, too
	AccountKeyBackup = AccountKey + ".backup"
	PlanSuffix       = "+plan" // after the domain

	lockSuffix = "+lock" // after the name of what the lock protects
)

// A Store keeps small entries that must survive a crash. Its methods are safe for concurrent use.
type Store interface {
	// Read returns what was last written under name. The error is [fs.ErrNotExist] if there is no entry,
	// and [ErrDamaged] if the entry differs from what was written.
	Read(name string) ([]byte, error)

	// Write stores data under name, whole or not at all, and returns when the data survives a crash.
	Write(name string, data []byte) error

	// Remove deletes the entry.
	Remove(name string) error

	// SetAside renames a damaged entry, so that it can still be examined. It logs reason.
	SetAside(name string, reason error)

	// Version returns a value that changes with each write. It is empty if there is no entry. The error
	// says that the version cannot be read now.
	Version(name string) (Version, error)

	// Lock takes the lock called name and returns the function that releases it. It does not wait: the
	// error is [ErrLocked] if another replica, or another call in this process, holds the lock.
	Lock(name string) (release func(), err error)

	// Path returns the place of name for log lines and errors.
	Path(name string) string
}

// A Version tells two contents of an entry apart.
type Version string

// ErrDamaged is returned for an entry that differs from what was written.
var ErrDamaged = errors.New("checksum does not match")

// Seen returns the version of name, or "" if it cannot be read.
func Seen(st Store, name string) Version {
	v, err := st.Version(name)
	if err != nil {
		return ""
	}
	return v
}

// Open opens the folder called name in dir. With shared, it returns the entries that have the same name
// there, and copies is the folder, into which they are copied.
func Open(shared Shared, seal *Sealer, dir, name string, now func() time.Time, log *slog.Logger) (st Store, copies *Folder, err error) {
	f, err := OpenFolder(filepath.Join(dir, name), now, log)
	switch {
	case shared == nil:
		return f, nil, err
	case err != nil:
		log.Warn("no copies in the data folder: a start while the shared store is away would find nothing to serve", "err", err)
		f = NewFolder(filepath.Join(dir, name), now, log)
	}
	return NewShared(shared, seal, name, f, now, log), f, nil
}

// DirectoryName returns the name of the folder for a CA directory. The name is the URL's host, for people,
// and a part of the URL's hash, since one host can have several directories.
func DirectoryName(directoryURL string) string {
	sum := sha256.Sum256([]byte(directoryURL))
	host := "ca"
	if u, err := url.Parse(directoryURL); err == nil {
		host = strings.NewReplacer(":", "_", "[", "", "]", "", "/", "_").Replace(u.Host)
	}
	return host + "-" + hex.EncodeToString(sum[:4])
}

// A Folder is a [Store] of files. Each file begins with a line that holds the checksum of the rest. The
// checksum finds a flipped bit in the account key, which would silently make another account, and a chain
// that was cut between two certificates.
type Folder struct {
	// Immutable after NewFolder.
	dir string
	now func() time.Time
	log *slog.Logger
}

// OpenFolder returns a Folder on dir, which it makes if it is missing.
func OpenFolder(dir string, now func() time.Time, log *slog.Logger) (*Folder, error) {
	if err := MakeFolder(dir); err != nil {
		return nil, err
	}
	return NewFolder(dir, now, log), nil
}

// NewFolder returns a Folder on dir and makes nothing.
func NewFolder(dir string, now func() time.Time, log *slog.Logger) *Folder {
	return &Folder{dir: dir, now: now, log: log}
}

// Dir returns the path of the folder.
func (st *Folder) Dir() string { return st.dir }

// Path returns the file's path. The colons of an IPv6 address become underscores, since Windows does not permit colons in a
// file name. No host name that a CA certifies becomes the same, since it has a dot.
func (st *Folder) Path(name string) string {
	return filepath.Join(st.dir, strings.ReplaceAll(name, ":", "_"))
}

// Read implements [Store].
func (st *Folder) Read(name string) ([]byte, error) {
	data, err := os.ReadFile(st.Path(name))
	if err != nil {
		return nil, err
	}
	header, data, _ := bytes.Cut(data, []byte("\n"))
	if !bytes.Equal(header, checksum(data)) {
		return nil, ErrDamaged
	}
	return data, nil
}

// Write implements [Store].
func (st *Folder) Write(name string, data []byte) error {
	return WriteFile(st.Path(name), WithChecksum(data))
}

// WithChecksum returns the content of a file that holds data.
func WithChecksum(data []byte) []byte {
	return append(append(checksum(data), '\n'), data...)
}

// checksum returns the first line of a file that holds data. PEM readers skip that line.
func checksum(data []byte) []byte {
	sum := sha256.Sum256(data)
	return []byte("sha256 " + hex.EncodeToString(sum[:]))
}

// Remove implements [Store].
func (st *Folder) Remove(name string) error { return os.Remove(st.Path(name)) }

// SetAside implements [Store].
func (st *Folder) SetAside(name string, reason error) {
	SetAside(st.Path(name), reason, st.now(), st.log)
}

// Version implements [Store]. It compares inodes, since a file that was replaced has another one. It
// returns no error: Read finds out why a file cannot be opened.
func (st *Folder) Version(name string) (Version, error) {
	info, err := os.Stat(st.Path(name))
	if err != nil {
		return "", nil
	}
	return Version(fmt.Sprintf("%d/%d/%d", inodeOf(info), info.Size(), info.ModTime().UnixNano())), nil
}

// TryWrite writes and removes a file about the size of the one that name will be. It returns the error that
// the real write would meet.
func TryWrite(st Store, name string) error {
	name += "+probe"
	if err := st.Write(name, make([]byte, 8<<10)); err != nil {
		return err
	}
	return st.Remove(name)
}

// Load reads name and returns what parse makes of it. The error is [fs.ErrNotExist] if there is no usable
// entry: one that is damaged, or that parse refuses, is set aside with a warning. Any other error says that
// the entry cannot be read now, for example because of too many open files, and the entry stays.
func Load[T any](st Store, name string, parse func([]byte) (T, error)) (T, error) {
	data, err := st.Read(name)
	if err == nil {
		var v T
		if v, err = parse(data); err == nil {
			return v, nil
		}
	} else if !errors.Is(err, ErrDamaged) {
		var zero T
		return zero, err
	}
	st.SetAside(name, err)
	var zero T
	return zero, fmt.Errorf("%w: it was damaged", fs.ErrNotExist)
}

// SetAside renames a damaged file, so that it can still be examined, and logs reason.
func SetAside(path string, reason error, now time.Time, log *slog.Logger) {
	aside := path + ".damaged-" + now.UTC().Format("20060102T150405.000")
	if err := os.Rename(path, aside); err != nil {
		log.Warn("damaged file ignored", "file", path, "err", reason, "rename_err", err)
		return
	}
	log.Warn("damaged file set aside", "file", path, "now", aside, "err", reason)
}

// MakeFolder makes dir and its parents with mode 0700, and syncs, so that a crash does not undo it. It
// writes nothing if dir exists, since the disk may be read-only.
func MakeFolder(dir string) error {
	if info, err := os.Stat(dir); err == nil && info.IsDir() {
		return nil
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("acme: data folder: %w", err)
	}
	return syncFolder(filepath.Dir(dir))
}

// WriteFile replaces the file at path, mode 0600, whole or not at all. When it returns nil, the new content
// survives a crash.
//
// Errors name path rather than the temporary file, whose name changes each time.
func WriteFile(path string, data []byte) error {
	err := replaceFile(path, data)
	var pathErr *fs.PathError
	var linkErr *os.LinkError
	switch {
	case errors.As(err, &pathErr):
		err = pathErr.Err
	case errors.As(err, &linkErr):
		err = linkErr.Err
	case err == nil:
		return nil
	}
	return fmt.Errorf("writing %s: %w", path, err)
}
