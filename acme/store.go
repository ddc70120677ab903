package acme

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"time"

	"github.com/google/renameio/v2"
)

// A store is a folder of small files that must survive a crash, each of which begins with the
// checksum of the rest. Without it a bit that flips in the account key would go unnoticed and silently
// make another account, and a chain that is cut off between two certificates would be served.
type store struct {
	// Immutable after openStore.
	dir string
	now func() time.Time
	log *slog.Logger
}

// errDamaged is returned for a file that is not what was written.
var errDamaged = errors.New("checksum does not match")

// openStore makes dir if it is missing.
func openStore(dir string, now func() time.Time, log *slog.Logger) (*store, error) {
	if err := makeFolder(dir); err != nil {
		return nil, err
	}
	return &store{dir: dir, now: now, log: log}, nil
}

// read returns what was last written under name. The error is [fs.ErrNotExist] if nothing was, and
// [errDamaged] if it is not what was written.
func (st *store) read(name string) ([]byte, error) {
	data, err := os.ReadFile(filepath.Join(st.dir, name))
	if err != nil {
		return nil, err
	}
	header, data, _ := bytes.Cut(data, []byte("\n"))
	if !bytes.Equal(header, checksum(data)) {
		return nil, errDamaged
	}
	return data, nil
}

// write stores data under name, whole or not at all, and returns once it is safe on the disk.
func (st *store) write(name string, data []byte) error {
	return writeFile(filepath.Join(st.dir, name), append(append(checksum(data), '\n'), data...))
}

// checksum returns the first line of a file that holds data. What reads PEM skips it.
func checksum(data []byte) []byte {
	sum := sha256.Sum256(data)
	return []byte("sha256 " + hex.EncodeToString(sum[:]))
}

// probe writes and removes a file about the size of the one that name is going to be, and returns what
// goes wrong.
func (st *store) probe(name string) error {
	name += "+probe" // no domain has a plus in it
	if err := st.write(name, make([]byte, 8<<10)); err != nil {
		return err
	}
	return os.Remove(filepath.Join(st.dir, name))
}

// load reads name and hands it to parse. A file that is missing gives the zero T and false; one that
// cannot be read or parsed does too, but is set aside first, with a warning.
func load[T any](st *store, name string, parse func([]byte) (T, error)) (T, bool) {
	data, err := st.read(name)
	if err == nil {
		var v T
		if v, err = parse(data); err == nil {
			return v, true
		}
	}
	if !errors.Is(err, fs.ErrNotExist) {
		setAside(filepath.Join(st.dir, name), err, st.now(), st.log)
	}
	var zero T
	return zero, false
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

// makeFolder makes dir and its parents, mode 0700, and makes sure that a crash does not undo it.
func makeFolder(dir string) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("acme: data folder: %w", err)
	}
	return syncFolder(filepath.Dir(dir))
}

// writeFile replaces the file at path, mode 0600, whole or not at all. When it returns nil the new
// content survives a crash: renameio syncs the file before the rename, and the rename itself is safe
// once the folder is synced.
func writeFile(path string, data []byte) error {
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
