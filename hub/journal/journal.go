// Package journal is a [hub.Store] in a file: a value that it has returned survives a
// crash of the process and of the machine.
//
// The file is a bbolt database (https://pkg.go.dev/go.etcd.io/bbolt) with one record.
// Each change is a transaction of its own: copy on write, fsync, and a checksummed page
// that makes it the present one, so that a crash at any moment leaves either the old
// value or the new.
package journal

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io/fs"
	"os"
	"path/filepath"
	"runtime/debug"
	"syscall"
	"time"

	"go.etcd.io/bbolt"
	bolterrors "go.etcd.io/bbolt/errors"

	"plusminus/hub"
)

// FileName is the name of the journal in its folder.
const FileName = "counter.db"

// lockTimeout is how long [Open] waits for another process to let go of the file. A
// process that is being replaced needs a moment to end.
const lockTimeout = 2 * time.Second

var (
	bucket = []byte("plusminus")
	record = []byte("counter")
)

// Journal is a counter in a file. Its methods are not safe for concurrent use.
type Journal struct {
	db  *bbolt.DB
	now hub.Snapshot // what the file holds
}

// Open opens the journal in folder dir, which must exist, and makes it if there is
// none: then the counter starts at 0. While it is open no other process can open it.
// A file that is damaged is an error that says what to do, never a counter at 0.
func Open(dir string) (*Journal, error) {
	path := filepath.Join(dir, FileName)
	// bbolt takes an empty file for a new one.
	if info, err := os.Stat(path); err == nil && info.Size() == 0 {
		return nil, damaged(path, errors.New("it is empty"))
	}
	j, err := open(path)
	switch {
	case errors.Is(err, bolterrors.ErrTimeout):
		return nil, fmt.Errorf("%s is in use by another process: give each its own -data folder", path)
	case errors.Is(err, fs.ErrPermission), errors.Is(err, syscall.EROFS), errors.Is(err, syscall.ENOSPC):
		return nil, fmt.Errorf("opening the counter: %w", err)
	case err != nil:
		return nil, damaged(path, err)
	}
	// A file whose name is not safe yet would be lost with all that is in it.
	if err := syncDir(dir); err != nil {
		j.Close()
		return nil, fmt.Errorf("opening the counter: %w", err)
	}
	return j, nil
}

// open opens the file, checks all of it, and reads the counter.
func open(path string) (j *Journal, err error) {
	// bbolt maps the file into memory, and panics on some pages that make no sense. Where
	// the file has been cut off, the first read beyond its end would end the process.
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer func() {
		if p := recover(); p != nil {
			j, err = nil, fmt.Errorf("%v", p)
		}
	}()
	db, err := bbolt.Open(path, 0o600, &bbolt.Options{Timeout: lockTimeout})
	if err != nil {
		return nil, err
	}
	j = &Journal{db: db}
	err = db.View(func(tx *bbolt.Tx) error {
		if err := j.load(tx); err != nil {
			return err
		}
		// Last, since it reads in a goroutine of its own, where a fault could not be caught.
		for err := range tx.Check() {
			return err
		}
		return nil
	})
	if err != nil {
		return nil, errors.Join(err, db.Close())
	}
	return j, nil
}

func damaged(path string, err error) error {
	return fmt.Errorf("%s holds no counter that can be read (%w): put back a copy, or move it away to start at 0", path, err)
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}

// Close lets go of the file.
func (j *Journal) Close() error { return j.db.Close() }

// Load returns the present value. It does not fail.
func (j *Journal) Load(context.Context) (hub.Snapshot, error) { return j.now, nil }

// Apply adds delta and returns once the result is on disk. It returns [hub.ErrRange],
// and changes nothing, if the value would leave ±[hub.MaxValue]. It writes even if delta
// is 0, which shows that it can.
func (j *Journal) Apply(_ context.Context, delta int64) (hub.Snapshot, error) {
	next, err := j.now.Add(delta)
	if err != nil {
		return j.now, err
	}
	err = j.db.Update(func(tx *bbolt.Tx) error {
		b, err := tx.CreateBucketIfNotExists(bucket)
		if err != nil {
			return err
		}
		return b.Put(record, encode(next))
	})
	if err != nil {
		return j.now, fmt.Errorf("writing the counter: %w", err)
	}
	j.now = next
	return next, nil
}

func (j *Journal) load(tx *bbolt.Tx) error {
	b := tx.Bucket(bucket)
	if b == nil {
		return nil // new
	}
	var err error
	j.now, err = decode(b.Get(record))
	return err
}

// A record is its format, the version, the value and a checksum (CRC-32C) of those:
// bbolt checks its own pages' structure and not what they hold.
const (
	format     = 1
	recordSize = 1 + 8 + 8 + 4
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

func encode(s hub.Snapshot) []byte {
	p := make([]byte, 0, recordSize)
	p = append(p, format)
	p = binary.BigEndian.AppendUint64(p, s.Version)
	p = binary.BigEndian.AppendUint64(p, uint64(s.Value))
	return binary.BigEndian.AppendUint32(p, crc32.Checksum(p, castagnoli))
}

func decode(p []byte) (hub.Snapshot, error) {
	if len(p) > 0 && p[0] != format {
		return hub.Snapshot{}, fmt.Errorf("written by another version of plusminus, format %d", p[0])
	}
	if len(p) != recordSize {
		return hub.Snapshot{}, fmt.Errorf("a record of %d bytes in place of %d", len(p), recordSize)
	}
	body, sum := p[:recordSize-4], p[recordSize-4:]
	if crc32.Checksum(body, castagnoli) != binary.BigEndian.Uint32(sum) {
		return hub.Snapshot{}, errors.New("checksum does not match")
	}
	s := hub.Snapshot{
		Version: binary.BigEndian.Uint64(body[1:]),
		Value:   int64(binary.BigEndian.Uint64(body[9:])),
	}
	if s.Value > hub.MaxValue || s.Value < -hub.MaxValue {
		return hub.Snapshot{}, fmt.Errorf("value %d is out of range", s.Value)
	}
	return s, nil
}
