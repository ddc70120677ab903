package journal

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
	"time"
)

// system is what a journal needs of the operating system. Tests have one of their own, in
// which every call can fail.
type system interface {
	OpenFile(path string, flag int) (file, error) // with mode 0600
	Rename(from, to string) error
	Stat(path string) (fs.FileInfo, error)
	SameFile(a, b fs.FileInfo) bool
	SyncDir(path string) error // makes what was renamed and made in a folder safe
}

// file is an open file.
type file interface {
	io.ReaderAt
	io.WriterAt
	io.Closer
	Stat() (fs.FileInfo, error)
	Sync() error    // returns when what was written is on disk
	TryLock() error // takes the lock, which goes with Close, or returns EWOULDBLOCK
}

type osSystem struct{}

func (osSystem) OpenFile(path string, flag int) (file, error) {
	f, err := os.OpenFile(path, flag, 0o600)
	if err != nil {
		return nil, err
	}
	return osFile{f}, nil
}

func (osSystem) Rename(from, to string) error          { return os.Rename(from, to) }
func (osSystem) Stat(path string) (fs.FileInfo, error) { return os.Stat(path) }
func (osSystem) SameFile(a, b fs.FileInfo) bool        { return os.SameFile(a, b) }

func (osSystem) SyncDir(path string) error {
	d, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

type osFile struct{ *os.File }

// TryLock is flock(2): it holds between processes and within one, and goes when the process
// ends, however that happens.
func (f osFile) TryLock() error {
	for {
		err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
		if err != syscall.EINTR {
			return err
		}
	}
}

// lockFile is the open and locked file called lockName.
type lockFile struct{ file }

// lockFolder takes the lock of folder dir, or returns ErrInUse.
func lockFolder(sys system, dir string) (lockFile, error) {
	path := filepath.Join(dir, lockName)
	f, err := sys.OpenFile(path, os.O_RDWR|os.O_CREATE)
	if err != nil {
		return lockFile{}, fmt.Errorf("opening the counter: %w", err)
	}
	deadline := time.Now().Add(lockTimeout)
	for {
		err := f.TryLock()
		if err == nil {
			return lockFile{f}, nil
		}
		if errors.Is(err, syscall.EWOULDBLOCK) && time.Now().Before(deadline) {
			time.Sleep(20 * time.Millisecond)
			continue
		}
		if errors.Is(err, syscall.EWOULDBLOCK) {
			err = fmt.Errorf("%s is %w", filepath.Join(dir, FileName), ErrInUse)
		} else {
			err = fmt.Errorf("locking %s: %w", path, err)
		}
		return lockFile{}, errors.Join(err, f.Close())
	}
}

// marked reports whether there has been a journal.
func (l lockFile) marked() (bool, error) {
	n, err := l.ReadAt(make([]byte, 1), 0)
	if err == io.EOF {
		err = nil
	}
	return n > 0, err
}

// mark notes that there is one. It does so each time, since what is there may not be on disk.
func (l lockFile) mark() error {
	if _, err := l.WriteAt([]byte(lockText), 0); err != nil {
		return err
	}
	return l.Sync()
}
