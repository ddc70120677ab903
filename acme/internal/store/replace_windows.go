package store

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
)

// replaceFile does what [WriteFile] does, but after a power failure the old file may be back, and it fails while
// another program has the file at path open. renameio exports no functions on Windows, "as it is not possible to
// provide a correct implementation". https://github.com/google/renameio#windows-support
func replaceFile(path string, data []byte) error {
	f, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+"*")
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		os.Remove(f.Name())
	}
	return err
}

// syncFolder does nothing: Windows cannot sync a folder.
func syncFolder(string) error { return nil }

// inodeOf returns 0: the size and the time of the file tell two contents apart.
func inodeOf(fs.FileInfo) uint64 { return 0 }
