package journal

import (
	"io"
	"io/fs"
	"os"
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
	f, err := openFile(path, flag)
	if err != nil {
		return nil, err
	}
	return osFile{f}, nil
}

func (osSystem) Rename(from, to string) error          { return os.Rename(from, to) }
func (osSystem) Stat(path string) (fs.FileInfo, error) { return os.Stat(path) }
func (osSystem) SameFile(a, b fs.FileInfo) bool        { return os.SameFile(a, b) }

type osFile struct{ *os.File }
