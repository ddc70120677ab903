package journal

import (
	"errors"
	"io"
	"io/fs"
	"os"
	"syscall"
)

// system is the part of the operating system that a journal uses. The tests replace it with
// a model in which every call can fail.
type system interface {
	OpenFile(path string, flag int) (diskFile, error) // with mode 0600
	Rename(from, to string) error
	Stat(path string) (fs.FileInfo, error)
	SameFile(a, b fs.FileInfo) bool
	SyncDir(path string) error // returns when the folder's entries are on disk
}

// diskFile is an open file.
type diskFile interface {
	io.ReaderAt
	io.WriterAt
	io.Closer
	Stat() (fs.FileInfo, error)
	Sync() error    // returns when the file's data is on disk
	TryLock() error // locks the file until Close, or returns EWOULDBLOCK
}

type osSystem struct{}

func (osSystem) OpenFile(path string, flag int) (diskFile, error) {
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

// TryLock uses flock(2). The lock excludes other processes, and other opens in this one. The
// kernel drops it when the process ends, even if the process is killed.
func (f osFile) TryLock() error {
	for {
		err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
		if err != syscall.EINTR {
			return err
		}
	}
}
