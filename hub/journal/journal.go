// Package journal keeps a counter in a file: it is a [hub.Store] without a database.
//
// A value that [Journal.Apply] has returned survives a crash of the process and of the
// machine. A damaged file is read correctly or refused. It never yields another value, and
// never 0.
//
// The package owns two files in the data folder: the journal itself and a lock file. It
// starts no goroutines.
//
// # The file
//
// The journal holds one line of text, in two copies, each at the start of a page of 4096
// bytes:
//
//	plusminus counter, format 1: version 12, value -3, crc32c 9d2a1c44
//
// A change overwrites both copies in place with one write and one fsync. The change is done
// when the fsync has returned. So the file never grows, and a change needs no free space on
// the disk.
//
// A disk writes a sector of 512 bytes as a whole or not at all. So a crash during a change
// leaves each copy with the old line or with the new one. The copy with the newer version
// counts: it holds the last change that was done, or the one in flight. [Open] makes both
// copies equal before it returns the value. From then on a copy that differs is damaged,
// never old, and the other copy has the value. If both are damaged, Open refuses the file.
//
// After a failed fsync the kernel's cache may differ from the disk, and reading the file
// does not show that. But each write covers the whole file. The next fsync that succeeds
// therefore vouches for all of it, and nothing depends on earlier ones.
//
// # Why not a database
//
// The value was in go.etcd.io/bbolt before. For a record of 70 bytes, bbolt needs two fsyncs
// per change in place of one. Its pages have no checksums. With one byte of a small file
// inverted it returned the value before the last one (64 of the bytes), returned 0 (at least
// 11), or ended the process with a fault that cannot be caught (5). After a failed fsync it
// continues from pages that may not be on disk. A test cannot make its writes fail. Here
// every system call can fail in a test: faults_test.go fails each one, and checks every
// state that a crash may leave there.
//
// An append-only file would have to be shortened from time to time, and each change could
// meet a full disk. Its reader could not tell a torn last record from a damaged one.
package journal

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"plusminus/hub"
)

// FileName is the name of the journal in its folder.
const FileName = "counter.db"

var (
	// ErrInUse is returned for a folder that another process has open.
	ErrInUse = errors.New("in use by another process")

	// ErrNone is what [Value] returns for a folder that never had a journal.
	ErrNone = errors.New("there is no counter yet")

	// ErrDamaged is returned for a journal without a trustworthy value, or for one that was
	// removed. [Set] makes a new one.
	ErrDamaged = errors.New("cannot be read")

	// ErrNewer is returned for a journal that a later version of plusminus has written.
	ErrNewer = errors.New("was written by a newer version of plusminus")
)

// Journal is a counter in a file. It has no goroutine, and its methods are not safe for
// concurrent use: the goroutine that called [Open], or the hub's loop after it, is the only
// caller.
type Journal struct {
	// Immutable after newJournal.
	sys  system
	dir  string
	path string
	lock lockFile

	// Owned by the caller's goroutine.
	disk    diskFile     // the open journal; nil after Close
	info    fs.FileInfo  // of disk
	now     hub.Snapshot // the newest that is on disk
	unsure  bool         // a write has failed: the file may hold another snapshot than now
	unnamed bool         // the folder entry of the file may not be on disk yet
}

// Open opens the journal in folder dir, which must exist. If the folder never had a journal,
// Open makes one with the counter at 0. Until [Journal.Close], no other process can open
// the folder.
//
// If another process has it, Open waits up to 2 seconds and returns [ErrInUse]. If there is
// no trustworthy value, Open returns [ErrDamaged] or [ErrNewer] and changes nothing.
func Open(dir string) (*Journal, error) { return open(osSystem{}, dir, &hub.Snapshot{}) }

// open opens the journal in dir. If the folder never had one, open makes one that holds
// first, or returns ErrNone if first is nil.
func open(sys system, dir string, first *hub.Snapshot) (*Journal, error) {
	path := filepath.Join(dir, FileName)
	if first == nil && missing(sys, path) && missing(sys, filepath.Join(dir, lockName)) {
		return nil, fmt.Errorf("%s: %w", path, ErrNone) // without making a lock file
	}
	lock, err := lockFolder(sys, dir)
	if err != nil {
		return nil, err
	}
	j := newJournal(sys, dir, lock)
	if err := j.open(first); err != nil {
		return nil, errors.Join(err, j.Close())
	}
	return j, nil
}

func newJournal(sys system, dir string, lock lockFile) *Journal {
	return &Journal{sys: sys, dir: dir, path: filepath.Join(dir, FileName), lock: lock}
}

func missing(sys system, path string) bool {
	_, err := sys.Stat(path)
	return errors.Is(err, fs.ErrNotExist)
}

// open does what the function open does, in a folder that is locked already.
func (j *Journal) open(first *hub.Snapshot) error {
	had, err := j.lock.marked()
	if err != nil {
		return fmt.Errorf("opening the counter: %w", err)
	}
	info, err := j.sys.Stat(j.path)
	switch {
	case errors.Is(err, fs.ErrNotExist) && had:
		return fmt.Errorf("%s %w: it is gone, and there was one", j.path, ErrDamaged)
	case errors.Is(err, fs.ErrNotExist) && first == nil:
		return fmt.Errorf("%s: %w", j.path, ErrNone)
	case errors.Is(err, fs.ErrNotExist):
		err = j.create(*first)
	case err != nil:
		err = fmt.Errorf("opening the counter: %w", err)
	case !info.Mode().IsRegular():
		err = fmt.Errorf("%s %w: it is not a regular file", j.path, ErrDamaged) // a read from a pipe would not end
	default:
		err = j.load()
	}
	if err != nil {
		return err
	}
	return j.settle()
}

// load opens the file and reads it.
func (j *Journal) load() error {
	var content []byte
	err := func() (err error) {
		if j.disk, err = j.sys.OpenFile(j.path, os.O_RDWR); err != nil {
			return err
		}
		if j.info, err = j.disk.Stat(); err != nil {
			return err
		}
		content = make([]byte, fileSize)
		n, err := j.disk.ReadAt(content, 0)
		content = content[:n]
		if err == io.EOF {
			err = nil
		}
		return err
	}()
	if err != nil {
		return fmt.Errorf("opening the counter: %w", err)
	}
	if j.now, err = parse(content); err != nil {
		return fmt.Errorf("%s %w", j.path, err)
	}
	j.unnamed = true // this process has not synced the folder yet
	// After a crash the copies may differ, and the kernel may return a line that was not on disk.
	return j.put(j.now)
}

// create makes the file with s in it. After a crash the file is there as a whole or not at all.
func (j *Journal) create(s hub.Snapshot) error {
	var info fs.FileInfo
	f, err := j.sys.OpenFile(j.path+".new", os.O_RDWR|os.O_CREATE|os.O_TRUNC)
	if err != nil {
		return fmt.Errorf("making the counter: %w", err)
	}
	if err = put(f, s); err == nil {
		info, err = f.Stat()
	}
	if err == nil {
		err = j.sys.Rename(j.path+".new", j.path)
	}
	if err != nil {
		return errors.Join(fmt.Errorf("making %s: %w", j.path, err), f.Close())
	}
	j.closeFile() // the old file no longer has a name
	j.disk, j.info, j.now, j.unsure, j.unnamed = f, info, s, false, true
	return nil
}

// settle puts the folder entries and the lock file's text on disk. The next process then
// finds the journal, or notices that it is missing.
func (j *Journal) settle() error {
	// The folder goes first: a lock file that reports a journal which a crash has undone
	// would make every later Open fail.
	if err := j.syncName(); err != nil {
		return err
	}
	if err := j.lock.mark(); err != nil {
		return fmt.Errorf("writing %s: %w", lockName, err)
	}
	return nil
}

// syncName puts the file's folder entry on disk, if that is not certain yet. Without the
// entry a crash would lose the file and all that is in it.
func (j *Journal) syncName() error {
	if !j.unnamed {
		return nil
	}
	if err := j.sys.SyncDir(j.dir); err != nil {
		return fmt.Errorf("making %s: %w", j.path, err)
	}
	j.unnamed = false
	return nil
}

// Close closes the file and unlocks the folder.
func (j *Journal) Close() error {
	return errors.Join(j.closeFile(), j.lock.Close())
}

func (j *Journal) closeFile() error {
	if j.disk == nil {
		return nil
	}
	f := j.disk
	j.disk = nil
	return f.Close()
}

// Load returns the present value. It does not fail.
func (j *Journal) Load(context.Context) (hub.Snapshot, error) { return j.now, nil }

// Apply adds delta and returns once the result is on disk. If the value would leave its
// range, Apply returns [hub.ErrRange] and changes nothing. A delta of 0 is written, too:
// that shows whether the disk accepts writes.
//
// After any other error Apply writes the old value back at once. If that fails, too, the
// next call writes it back before anything else. A crash before then may leave the value
// with delta added.
func (j *Journal) Apply(_ context.Context, delta hub.Delta) (hub.Snapshot, error) {
	next, err := j.now.Add(delta)
	if err != nil {
		return j.now, err
	}
	if err := j.store(next); err != nil {
		return j.now, err
	}
	return next, nil
}

// store makes next the present value.
func (j *Journal) store(next hub.Snapshot) error {
	if err := j.inPlace(); err != nil {
		return err
	}
	if j.unsure {
		// Otherwise the two copies could hold different values with the same version.
		if err := j.put(j.now); err != nil {
			return err
		}
		j.unsure = false
	}
	if err := j.put(next); err != nil {
		j.unsure = j.put(j.now) != nil
		return err
	}
	j.now = next
	return nil
}

// inPlace checks that the path still leads to the open file. If the file was removed,
// inPlace makes it again: writes to a file without a name are lost when the process ends.
func (j *Journal) inPlace() error {
	info, err := j.sys.Stat(j.path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		err = j.create(j.now)
	case err != nil:
		err = fmt.Errorf("checking the counter: %w", err)
	case !j.sys.SameFile(info, j.info):
		err = fmt.Errorf("%s was replaced while in use: the new file counts from the next start", j.path)
	}
	if err != nil {
		return err
	}
	return j.syncName()
}

func (j *Journal) put(s hub.Snapshot) error {
	if err := put(j.disk, s); err != nil {
		return fmt.Errorf("writing %s: %w", j.path, err)
	}
	return nil
}

// put writes s to f and returns when it is on disk.
func put(f diskFile, s hub.Snapshot) error {
	content := make([]byte, fileSize)
	line := encode(s)
	for i := range copies {
		copy(content[i*pageSize:], line)
	}
	_, err := f.WriteAt(content, 0)
	if err == nil {
		err = f.Sync()
	}
	if e := (*fs.PathError)(nil); errors.As(err, &e) {
		return e.Err // its path may be the one before the rename; the caller adds the present one
	}
	return err
}
