package acme

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"github.com/google/renameio/v2"
)

// A store keeps small files that must survive a crash: a [folder], or a [sharedStore].
type store interface {
	// read returns what was last written under name. The error is [fs.ErrNotExist] if nothing was, and
	// [errDamaged] if it is not what was written.
	read(name string) ([]byte, error)

	// write stores data under name, whole or not at all, and returns once it is safe.
	write(name string, data []byte) error

	remove(name string) error

	// setAside renames what is no good for the given reason, so that it is out of the way but can
	// still be looked at.
	setAside(name string, reason error)

	// version tells one content from the next without reading it. It is empty if there is none. The
	// error says that this cannot be told now.
	version(name string) (version, error)

	// lock takes the lock called name, and returns what lets it go, or [errLocked] at once if it is
	// taken, by another replica or by another call in this process.
	lock(name string) (release func(), err error)

	// path says where name is, to people.
	path(name string) string
}

// A version tells one content from the next.
type version string

// seen returns the version of name, or none if that cannot be told.
func seen(st store, name string) version {
	v, err := st.version(name)
	if err != nil {
		return ""
	}
	return v
}

// A folder is a [store] in a folder. Each file begins with the checksum of the rest. Without it a bit that
// flips in the account key would go unnoticed and silently make another account, and a chain that is cut
// off between two certificates would be served.
type folder struct {
	// Immutable after openFolder.
	dir string
	now func() time.Time
	log *slog.Logger
}

// errDamaged is returned for a file that is not what was written.
var errDamaged = errors.New("checksum does not match")

// openFolder makes dir if it is missing.
func openFolder(dir string, now func() time.Time, log *slog.Logger) (*folder, error) {
	if err := makeFolder(dir); err != nil {
		return nil, err
	}
	return &folder{dir: dir, now: now, log: log}, nil
}

func (st *folder) path(name string) string { return filepath.Join(st.dir, name) }

func (st *folder) read(name string) ([]byte, error) {
	data, err := os.ReadFile(st.path(name))
	if err != nil {
		return nil, err
	}
	header, data, _ := bytes.Cut(data, []byte("\n"))
	if !bytes.Equal(header, checksum(data)) {
		return nil, errDamaged
	}
	return data, nil
}

func (st *folder) write(name string, data []byte) error {
	return writeFile(st.path(name), append(append(checksum(data), '\n'), data...))
}

// checksum returns the first line of a file that holds data. What reads PEM skips it.
func checksum(data []byte) []byte {
	sum := sha256.Sum256(data)
	return []byte("sha256 " + hex.EncodeToString(sum[:]))
}

func (st *folder) remove(name string) error { return os.Remove(st.path(name)) }

func (st *folder) setAside(name string, reason error) {
	setAside(st.path(name), reason, st.now(), st.log)
}

// version goes by what a file has that no other has: one that is replaced has another inode.
func (st *folder) version(name string) (version, error) {
	info, err := os.Stat(st.path(name))
	if err != nil {
		return "", nil // reading it will tell
	}
	inode := uint64(0)
	if sys, ok := info.Sys().(*syscall.Stat_t); ok {
		inode = sys.Ino
	}
	return version(fmt.Sprintf("%d/%d/%d", inode, info.Size(), info.ModTime().UnixNano())), nil
}

// tryWrite writes and removes a file about the size of the one that name is going to be, and returns what
// goes wrong.
func tryWrite(st store, name string) error {
	name += "+probe" // no domain has a plus in it
	if err := st.write(name, make([]byte, 8<<10)); err != nil {
		return err
	}
	return st.remove(name)
}

// load reads name and hands it to parse. The error is [fs.ErrNotExist] if there is nothing of use: one
// that is damaged, or that parse refuses, is set aside with a warning. Any other error says that the
// file cannot be read now, which may pass: too many open files, a network file system.
func load[T any](st store, name string, parse func([]byte) (T, error)) (T, error) {
	data, err := st.read(name)
	if err == nil {
		var v T
		if v, err = parse(data); err == nil {
			return v, nil
		}
	} else if !errors.Is(err, errDamaged) {
		var zero T
		return zero, err
	}
	st.setAside(name, err)
	var zero T
	return zero, fmt.Errorf("%w: it was damaged", fs.ErrNotExist)
}

// setAside renames a file that is no good for the given reason, so that it is out of the way but can
// still be looked at.
func setAside(path string, reason error, now time.Time, log *slog.Logger) {
	aside := path + ".damaged-" + now.UTC().Format("20060102T150405.000")
	if err := os.Rename(path, aside); err != nil {
		log.Warn("damaged file ignored", "file", path, "err", reason, "rename_err", err)
		return
	}
	log.Warn("damaged file set aside", "file", path, "now", aside, "err", reason)
}

// encodePair returns key and then chain, in PEM.
func encodePair(key *ecdsa.PrivateKey, chain [][]byte) ([]byte, error) {
	b, err := encodeKey(key)
	if err != nil {
		return nil, err
	}
	for _, der := range chain {
		b = append(b, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})...)
	}
	return b, nil
}

func encodeKey(key *ecdsa.PrivateKey) ([]byte, error) {
	der, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		return nil, err
	}
	return pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: der}), nil
}

// parseKey returns the key in the first PEM block in data. It has to be one that we can sign with
// again (see transport), so only P-256 will do.
func parseKey(data []byte) (*ecdsa.PrivateKey, error) {
	block, _ := pem.Decode(data)
	if block == nil {
		return nil, errors.New("no PEM block")
	}
	key, err := x509.ParseECPrivateKey(block.Bytes)
	if err != nil {
		return nil, err
	}
	if key.Curve != elliptic.P256() {
		return nil, errors.New("not a P-256 key")
	}
	return key, nil
}

// makeFolder makes dir and its parents, mode 0700, and makes sure that a crash does not undo it. One
// that is there may be on a disk that cannot be written.
func makeFolder(dir string) error {
	if info, err := os.Stat(dir); err == nil && info.IsDir() {
		return nil
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("acme: data folder: %w", err)
	}
	return syncFolder(filepath.Dir(dir))
}

// writeFile replaces the file at path, mode 0600, whole or not at all. When it returns nil the new
// content survives a crash: renameio syncs the file before the rename, and the rename itself is safe
// once the folder is synced.
//
// Errors name path, and not the temporary file, whose name is another one each time.
func writeFile(path string, data []byte) error {
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

func replaceFile(path string, data []byte) error {
	dir := filepath.Dir(path)
	f, err := renameio.NewPendingFile(path, renameio.WithTempDir(dir), renameio.WithStaticPermissions(0o600))
	if err != nil {
		return err
	}
	defer f.Cleanup()
	if _, err := f.Write(data); err != nil {
		return err
	}
	if err := f.CloseAtomicallyReplace(); err != nil {
		return err
	}
	return syncFolder(dir)
}

func syncFolder(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}
