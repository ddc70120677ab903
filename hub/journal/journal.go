// Package journal is a [hub.Store] in a file. A value that it has returned survives a
// crash of the process and of the machine. A file that was damaged is read right or
// refused: it never gives another value, and never 0.
//
// # The file
//
// It holds one line of text, in two copies, each at the start of a page of 4096 bytes:
//
//	plusminus counter, format 1: version 12, value -3, crc32c 9d2a1c44
//
// A change overwrites both in place, with one write and one fsync, and is done when that
// has returned. So the file is as large as it will ever be from the first day, and takes
// no more room when the disk is full.
//
// A crash in between leaves each copy as it was or as it was to be, for a disk writes a
// sector of 512 bytes whole or not at all; the newer one counts, which is the last change
// that was done, or the one that was on its way. [Open] makes both alike again before
// anybody is told. From then on a copy that is damaged differs from one that is old, since
// there are no old ones: the other copy has the value. If both are damaged, Open refuses.
//
// What the kernel has after an fsync that failed need not be what the disk has, and asking
// again does not tell. But each write is of all there is, so that the next fsync that
// succeeds vouches for the whole file, and nothing rests on those before.
//
// # Why not a database
//
// The value was in go.etcd.io/bbolt before. For a record of 70 bytes that is two fsyncs a
// change in place of one. bbolt's pages have no checksums: with one byte of a small file
// inverted it gave the value before the last one (64 of the bytes), gave 0 (at least 11),
// or ended the process with a fault that cannot be caught (5). After an fsync that failed it
// goes on from pages that may not be on disk. And its writes cannot be made to fail in a
// test. Here every call can, and faults_test.go tries all of them, and all that a crash
// may leave at each.
//
// An append-only file would need to be cut short from time to time, could meet a full disk
// at each change, and could not tell a last record that is torn from one that is damaged.
package journal

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"plusminus/hub"
)

// FileName is the name of the journal in its folder.
const FileName = "counter.db"

// lockName is the file whose lock keeps a second process out. It stays, and is empty until
// a journal has been made: so it tells a folder that has lost its journal from a new one.
const lockName = "counter.lock"

// lockText is what it holds from then on.
const lockText = "There is a plusminus counter in " + FileName + " beside this file. Without it plusminus does not start at 0.\n"

// lockTimeout is how long [Open] waits for another process to let go of the folder. A
// process that is being replaced needs a moment to end.
const lockTimeout = 2 * time.Second

var (
	// ErrInUse is for a folder that another process has.
	ErrInUse = errors.New("in use by another process")

	// ErrNone is what [Value] returns for a folder without a journal that never had one.
	ErrNone = errors.New("there is no counter yet")

	// ErrDamaged is for a journal that holds no value that can be trusted, or that is gone.
	// [Set] begins a new one.
	ErrDamaged = errors.New("cannot be read")

	// ErrNewer is for a journal that a later version of plusminus has written.
	ErrNewer = errors.New("was written by a newer version of plusminus")
)

// Journal is a counter in a file. Its methods are not safe for concurrent use.
type Journal struct {
	// Immutable after newJournal.
	sys  system
	dir  string
	path string
	lock lockFile

	file    file
	info    fs.FileInfo  // of file
	now     hub.Snapshot // the last that is safe
	unsure  bool         // the file may hold another, since writing it failed
	unnamed bool         // its name may not be on disk
}

// Open opens the journal in folder dir, which must exist, and makes it if there never was
// one: then the counter starts at 0. Until [Journal.Close] no other process can open it;
// if one has it, Open waits up to 2 seconds and returns [ErrInUse]. Where there is no
// value to be trusted it returns [ErrDamaged] or [ErrNewer], and changes nothing.
func Open(dir string) (*Journal, error) { return open(osSystem{}, dir, &hub.Snapshot{}) }

// Value returns the value in the journal in folder dir. It returns [ErrNone] if there is
// none, and makes none. Its other errors are those of [Open].
func Value(dir string) (hub.Value, error) { return value(osSystem{}, dir) }

func value(sys system, dir string) (v hub.Value, err error) {
	j, err := open(sys, dir, nil)
	if err != nil {
		return v, err
	}
	return j.now.Value, j.Close()
}

// Change is what [Set] has done.
type Change struct {
	Was   hub.Value // the value before, if there was one
	Had   bool      // there was one
	Aside string    // where a journal that could not be read has been moved; "" if there was none
}

// Set makes the value in the journal in folder dir what it is told, which is in
// its range, or else it returns [hub.ErrRange]. It makes a journal if there is none or
// it is gone, and in place of one that is damaged, which it keeps under another name. It
// returns [ErrInUse] if a process has the folder, and [ErrNewer] as [Open] does.
func Set(dir string, value hub.Value) (Change, error) { return set(osSystem{}, dir, value) }

func set(sys system, dir string, value hub.Value) (c Change, err error) {
	if _, err := hub.ParseValue(string(hub.AppendValue(nil, value))); err != nil {
		return c, err
	}
	lock, err := lockFolder(sys, dir)
	if err != nil {
		return c, err
	}
	j := newJournal(sys, dir, lock)
	defer func() { err = errors.Join(err, j.Close()) }()
	switch err := j.open(nil); {
	case err == nil:
		c.Was, c.Had = j.now.Value, true
		return c, j.store(hub.Snapshot{Version: j.now.Version + 1, Value: value})
	case errors.Is(err, ErrDamaged):
		if c.Aside, err = j.moveAside(); err != nil {
			return c, err
		}
	case !errors.Is(err, ErrNone):
		return c, err
	}
	if err := j.create(hub.Snapshot{Version: 1, Value: value}); err != nil {
		return c, err
	}
	return c, j.settle()
}

// moveAside gives what cannot be read another name, and returns that, or "" if nothing is
// there.
func (j *Journal) moveAside() (string, error) {
	name := j.path + time.Now().UTC().Format(".damaged-20060102T150405Z")
	err := j.sys.Rename(j.path, name)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return "", nil
	case err != nil:
		return "", fmt.Errorf("moving the counter away: %w", err)
	}
	return name, nil
}

// open opens the journal in dir. Where there never was one it makes one that holds first,
// or returns ErrNone if first is nil.
func open(sys system, dir string, first *hub.Snapshot) (*Journal, error) {
	path := filepath.Join(dir, FileName)
	if first == nil && missing(sys, path) && missing(sys, filepath.Join(dir, lockName)) {
		return nil, fmt.Errorf("%s: %w", path, ErrNone) // and leave no lock behind
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

// open is open, for a folder that is locked.
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
		err = fmt.Errorf("%s %w: it is no file", j.path, ErrDamaged) // reading a pipe would not end
	default:
		err = j.load()
	}
	if err != nil {
		return err
	}
	return j.settle()
}

// settle makes sure that the next process finds the file, or misses it.
func (j *Journal) settle() error {
	// The names first: a lock that tells of a file that a crash has undone would keep us out.
	if err := j.syncName(); err != nil {
		return err
	}
	if err := j.lock.mark(); err != nil {
		return fmt.Errorf("writing %s: %w", lockName, err)
	}
	return nil
}

// load opens the file and reads it.
func (j *Journal) load() error {
	var content []byte
	err := func() (err error) {
		if j.file, err = j.sys.OpenFile(j.path, os.O_RDWR); err != nil {
			return err
		}
		if j.info, err = j.file.Stat(); err != nil {
			return err
		}
		content = make([]byte, fileSize)
		n, err := j.file.ReadAt(content, 0)
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
	j.unnamed = true // by us
	// The copies may differ after a crash, and what was read may not have been on disk.
	return j.put(j.now)
}

// create makes the file, which holds s: it is there whole or not at all.
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
	j.closeFile() // which is no longer there
	j.file, j.info, j.now, j.unsure, j.unnamed = f, info, s, false, true
	return nil
}

// syncName makes sure that the file is found again: one whose name is not on disk would be
// lost with all that is in it.
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

// Close lets go of the folder.
func (j *Journal) Close() error {
	return errors.Join(j.closeFile(), j.lock.Close())
}

func (j *Journal) closeFile() error {
	if j.file == nil {
		return nil
	}
	f := j.file
	j.file = nil
	return f.Close()
}

// Load returns the present value. It does not fail.
func (j *Journal) Load(context.Context) (hub.Snapshot, error) { return j.now, nil }

// Apply adds delta and returns once the result is on disk. It returns [hub.ErrRange],
// and changes nothing, if the value would leave its range. It writes even if delta
// is 0, which shows that it can. After another error the old value is put back at once; if
// that fails too, it is put back before anything else is written, and a crash before then
// may leave the value with delta.
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
		// Two different changes of the same version must never stand beside each other.
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

// inPlace makes sure that the file is the one of its name: what is written to a file that
// was removed would be lost with the process.
func (j *Journal) inPlace() error {
	info, err := j.sys.Stat(j.path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		err = j.create(j.now)
	case err != nil:
		err = fmt.Errorf("looking at the counter: %w", err)
	case !j.sys.SameFile(info, j.info):
		err = fmt.Errorf("%s was replaced while in use: only the next start takes what it holds", j.path)
	}
	if err != nil {
		return err
	}
	return j.syncName()
}

func (j *Journal) put(s hub.Snapshot) error {
	if err := put(j.file, s); err != nil {
		return fmt.Errorf("writing %s: %w", j.path, err)
	}
	return nil
}

// put writes s to f, and returns when it is on disk.
func put(f file, s hub.Snapshot) error {
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
		return e.Err // the path may be the one that it had when it was made
	}
	return err
}
