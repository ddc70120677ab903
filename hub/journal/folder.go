package journal

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
)

// folder is a data folder that this process has locked, and the journal's file in it.
type folder struct {
	// Immutable after openFolder.
	sys  system
	dir  string
	path string // of the file
	lock lockFile

	// Owned by the goroutine that opens the file, and then by the one that writes to it.
	disk    diskFile    // the open file; nil after Close
	info    fs.FileInfo // of disk
	unnamed bool        // the folder entry of the file may not be on disk yet
}

// openFolder locks the folder dir. If it has no file and no lock file, and may not be given any, openFolder returns
// ErrNone and makes none.
func openFolder(sys system, dir string, mayMake bool) (folder, error) {
	f := folder{sys: sys, dir: dir, path: filepath.Join(dir, FileName)}
	if !mayMake && missing(sys, f.path) && missing(sys, filepath.Join(dir, lockName)) {
		return f, fmt.Errorf("%s: %w", f.path, ErrNone)
	}
	var err error
	f.lock, err = lockFolder(sys, dir)
	return f, err
}

func missing(sys system, path string) bool {
	_, err := sys.Stat(path)
	return errors.Is(err, fs.ErrNotExist)
}

// find reports whether there is a file. It returns ErrDamaged if there was one.
func (f *folder) find() (bool, error) {
	had, err := f.lock.marked()
	if err != nil {
		return false, fmt.Errorf("opening the counter: %w", err)
	}
	info, err := f.sys.Stat(f.path)
	switch {
	case errors.Is(err, fs.ErrNotExist) && had:
		return false, fmt.Errorf("%s %w: it is gone, and there was one", f.path, ErrDamaged)
	case errors.Is(err, fs.ErrNotExist):
		return false, nil
	case err != nil:
		return false, fmt.Errorf("opening the counter: %w", err)
	case !info.Mode().IsRegular():
		return false, fmt.Errorf("%s %w: it is not a regular file", f.path, ErrDamaged) // a read from a pipe would not end
	}
	return true, nil
}

// openFile opens the file and returns its first fileSize bytes, or fewer if it is shorter.
func (f *folder) openFile() ([]byte, error) {
	var content []byte
	err := func() (err error) {
		if f.disk, err = f.sys.OpenFile(f.path, os.O_RDWR); err != nil {
			return err
		}
		if f.info, err = f.disk.Stat(); err != nil {
			return err
		}
		content = make([]byte, fileSize)
		n, err := f.disk.ReadAt(content, 0)
		content = content[:n]
		if err == io.EOF {
			err = nil
		}
		return err
	}()
	if err != nil {
		return nil, fmt.Errorf("opening the counter: %w", err)
	}
	f.unnamed = true // this process has not synced the folder yet
	return content, nil
}

// replace makes the file, in place of the present one if there is one. write writes the content and returns when it is
// on disk. After a crash the file is there as a whole or not at all.
func (f *folder) replace(write func(diskFile) error) error {
	var info fs.FileInfo
	disk, err := f.sys.OpenFile(f.path+".new", os.O_RDWR|os.O_CREATE|os.O_TRUNC)
	if err != nil {
		return fmt.Errorf("making the counter: %w", err)
	}
	if err = write(disk); err == nil {
		info, err = disk.Stat()
	}
	if err == nil {
		err = f.sys.Rename(f.path+".new", f.path)
	}
	if err != nil {
		return errors.Join(fmt.Errorf("making %s: %w", f.path, err), disk.Close())
	}
	f.closeFile() // the old file no longer has a name
	f.disk, f.info, f.unnamed = disk, info, true
	return nil
}

// settle puts the folder entries and the lock file's text on disk. The next process then
// finds the journal, or notices that it is missing.
func (f *folder) settle() error {
	// The folder goes first: a lock file that reports a journal which a crash has undone
	// would make every later Open fail.
	if err := f.syncName(); err != nil {
		return err
	}
	if err := f.lock.mark(); err != nil {
		return fmt.Errorf("writing %s: %w", lockName, err)
	}
	return nil
}

// syncName puts the file's folder entry on disk, if that is not certain yet. Without the
// entry a crash would lose the file and all that is in it.
func (f *folder) syncName() error {
	if !f.unnamed {
		return nil
	}
	if err := f.sys.SyncDir(f.dir); err != nil {
		return fmt.Errorf("making %s: %w", f.path, err)
	}
	f.unnamed = false
	return nil
}

// inPlace checks that the path still leads to the open file. If the file was removed,
// inPlace makes it again by create: writes to a file without a name are lost when the process ends.
func (f *folder) inPlace(create func() error) error {
	info, err := f.sys.Stat(f.path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		err = create()
	case err != nil:
		err = fmt.Errorf("checking the counter: %w", err)
	case !f.sys.SameFile(info, f.info):
		err = fmt.Errorf("%s was replaced while in use: the new file counts from the next start", f.path)
	}
	if err != nil {
		return err
	}
	return f.syncName()
}

// Close closes the file and unlocks the folder.
func (f *folder) Close() error {
	return errors.Join(f.closeFile(), f.lock.Close())
}

func (f *folder) closeFile() error {
	if f.disk == nil {
		return nil
	}
	disk := f.disk
	f.disk = nil
	return disk.Close()
}

// pathless removes the path from an error of a file: it may be the one before the rename. The caller adds the present one.
func pathless(err error) error {
	if e := (*fs.PathError)(nil); errors.As(err, &e) {
		return e.Err
	}
	return err
}
