// Package journal keeps a counter in a file, or many: it is a [hub.Store] without a database.
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
// # Many counters
//
// [OpenMany] keeps many counters in the same file, in a form of its own ([Many]). Its first line says "format 2", which an
// older program refuses:
//
//	the first line, in two copies, each in a page
//	the log:   sectors of 512 bytes; pages of two copies alternate
//	the table: slots of 256 bytes, one for each counter; likewise
//
// A commit of any number of counters is one record at the end of the log, written to both copies with one fsync. A sector
// belongs to one record, so no write touches an older commit. The log has a fixed size and begins again at its start.
// Before a record would overwrite one that is still needed, a checkpoint writes the slots that have changed to the table,
// with an fsync of its own. All space is written when the file is made or grows, so a full disk refuses new counters only.
//
// Each sector and each slot has a checksum. A sector holds the number of its record, so a gap in the log is seen: only the last
// record may be incomplete, and it was in flight. With two copies, any one damaged sector is read correctly and repaired by the
// next open. A sector or slot with both copies damaged makes OpenMany refuse the file.
//
// A record is a list of entries, each with a kind, a key and a payload, and a slot has a kind, too. Other kinds than counters
// can be added without changing the form. A program that does not know a kind refuses the file.
//
// # Why not a database
//
// The value was in go.etcd.io/bbolt before. A test cannot make the writes of a database fail. Here every system call can
// fail in a test: faults_test.go and manyfaults_test.go fail each one, and check every state that a crash may leave there.
// After a failed fsync, bbolt continues from pages that may not be on disk.
//
// bench/forms compares the file of many counters with databases. These are commits a second, relative to this package
// (6,764 of one counter, 1,964 of 1,000 counters), and what a reader gets when one of 3,000 bytes of the files of a killed
// process is inverted. The files have 100 counters, and "older" is the value of an earlier commit:
//
//	                      1 counter   1,000   right   error   older   0 or none   crash
//	journal                    1.00    1.00    3000       0       0           0       0
//	go.etcd.io/bbolt           0.78    0.92    1506     315      15        1159       5
//	modernc.org/sqlite         1.10    0.33       4       0    2985          11       0
//	cockroachdb/pebble/v2      1.08    1.02      14    1362    1624           0       0
//
// The ratios of three runs differed by up to 0.13. So this package is not faster: an fsync bounds all of them, and bbolt
// needs two. It is here for the right-hand columns.
// bbolt has no checksums on its pages. SQLite (in WAL mode with synchronous=FULL) and Pebble take a damaged commit in
// their log for the end of the log, and return what was before it. After SQLite has closed its files in order, they have no
// checksums: 1,326 of 2,162 inverted bytes gave 0 or none, and 200 gave a value that the counter never had.
//
// An append-only file would have to be shortened from time to time, and each change could
// meet a full disk. Its reader could not tell a torn last record from a damaged one.
package journal

import (
	"context"
	"errors"
	"fmt"

	"plusminus/hub"
)

// FileName is the name of the journal in its folder.
const FileName = "counter.db"

var (
	// ErrInUse is returned for a folder that another process has open.
	ErrInUse = errors.New("in use by another process")

	// ErrNone is what [Value], [Format] and [ReopenMany] return for a folder that never had a journal.
	ErrNone = errors.New("there is no counter yet")

	// ErrDamaged is returned for a journal without a trustworthy value, or for one that was
	// removed. [Set] makes a new one.
	ErrDamaged = errors.New("cannot be read")

	// ErrMany is returned by [Open], [Value] and [Set] for a folder that [OpenMany] has opened.
	ErrMany = errors.New("holds many counters")

	// ErrOne is what [ReopenMany] returns for a folder that [Open] has opened, and [OpenMany] never has.
	ErrOne = errors.New("holds one counter")

	// ErrNewer is returned for a journal that a later version of plusminus has written.
	ErrNewer = errors.New("was written by a newer version of plusminus")
)

// Journal is a counter in a file. It has no goroutine, and its methods are not safe for
// concurrent use: the goroutine that called [Open], or the hub's loop after it, is the only
// caller.
type Journal struct {
	folder

	// Owned by the caller's goroutine.
	now    hub.Snapshot // the newest that is on disk
	unsure bool         // a write has failed: the file may hold another snapshot than now
}

// Open opens the journal in folder dir, which must exist. If the folder never had a journal,
// Open makes one with the counter at 0. Until [Journal.Close], no other process can open
// the folder.
//
// If another process has it, Open waits up to 2 seconds and returns [ErrInUse]. If there is
// no trustworthy value, Open returns [ErrDamaged], [ErrMany] or [ErrNewer] and changes nothing.
func Open(dir string) (*Journal, error) { return open(osSystem{}, dir, &hub.Snapshot{}) }

// open opens the journal in dir. If the folder never had one, open makes one that holds
// first, or returns ErrNone if first is nil.
func open(sys system, dir string, first *hub.Snapshot) (*Journal, error) {
	f, err := openFolder(sys, dir, first != nil)
	if err != nil {
		return nil, err
	}
	j := &Journal{folder: f}
	if err := j.open(first); err != nil {
		return nil, errors.Join(err, j.Close())
	}
	return j, nil
}

// open does what the function open does, in a folder that is locked already.
func (j *Journal) open(first *hub.Snapshot) error {
	found, err := j.find()
	switch {
	case err != nil:
	case found:
		err = j.load()
	case first == nil:
		err = fmt.Errorf("%s: %w", j.path, ErrNone)
	default:
		err = j.create(*first)
	}
	if err != nil {
		return err
	}
	return j.settle()
}

// load opens the file and reads it.
func (j *Journal) load() error {
	content, err := j.openFile()
	if err != nil {
		return err
	}
	if j.now, err = parse(content); err != nil {
		return fmt.Errorf("%s %w", j.path, err)
	}
	// After a crash the copies may differ, and the kernel may return a line that was not on disk.
	return j.put(j.now)
}

// create makes the file with s in it. After a crash the file is there as a whole or not at all.
func (j *Journal) create(s hub.Snapshot) error {
	if err := j.replace(func(f diskFile) error { return put(f, s) }); err != nil {
		return err
	}
	j.now, j.unsure = s, false
	return nil
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
	if err := j.inPlace(func() error { return j.create(j.now) }); err != nil {
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
	if _, err := f.WriteAt(content, 0); err != nil {
		return pathless(err)
	}
	return pathless(f.Sync())
}
