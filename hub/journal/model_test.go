package journal

import (
	"bytes"
	"errors"
	"fmt"
	"hash/maphash"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"time"
)

// model is a folder on a disk that can fail at each call, and of which can be told what any
// crash would leave. What is written is in memory, sector for sector, until Sync has put it
// on disk; names that were made or changed get there in their order, at the latest by
// SyncDir. A Sync that fails forgets what it was to write, as Linux does: the next one says
// that all is well.
type model struct {
	names   map[string]*inode // as processes see them
	onDisk  map[string]*inode // as they are after a power loss
	pending []func(map[string]*inode)

	calls int                   // of those that can fail, so far
	fail  func(call int) *fault // nil is none
	look  func()                // called where a crash may come
}

// inode is a file's content.
type inode struct {
	cache, disk []byte
	dirty       map[int]bool // sectors of cache that may not be on disk
}

// fault is how a call fails.
type fault struct {
	short   int  // of a write, how many bytes are written all the same; more than all is all
	flushed bool // of a Sync, all gets to the disk none the less
}

const sector = 512

var errDisk = errors.New("the disk fails")

func newModel() *model {
	return &model{names: map[string]*inode{}, onDisk: map[string]*inode{}}
}

// call counts a call, and returns how it is to fail.
func (m *model) call() *fault {
	m.calls++
	if m.fail == nil {
		return nil
	}
	return m.fail(m.calls - 1)
}

// mayCrash is called before anything is changed.
func (m *model) mayCrash() {
	if m.look != nil {
		m.look()
	}
}

func (m *model) rename(change func(map[string]*inode)) {
	change(m.names)
	m.pending = append(m.pending, change)
}

func (m *model) OpenFile(path string, flag int) (file, error) {
	m.mayCrash()
	if m.call() != nil {
		return nil, errDisk
	}
	ino := m.names[path]
	switch {
	case ino == nil && flag&os.O_CREATE == 0:
		return nil, fs.ErrNotExist
	case ino == nil || flag&os.O_TRUNC != 0:
		// A file that is cut to nothing may still be whole after a crash; that nobody reads
		// it makes a new one the same.
		ino = &inode{dirty: map[int]bool{}}
		m.rename(func(names map[string]*inode) { names[path] = ino })
	}
	return &modelFile{m, ino}, nil
}

func (m *model) Rename(from, to string) error {
	m.mayCrash()
	if m.call() != nil {
		return errDisk
	}
	ino := m.names[from]
	if ino == nil {
		return fs.ErrNotExist
	}
	m.rename(func(names map[string]*inode) { names[to] = ino; delete(names, from) })
	return nil
}

func (m *model) Stat(path string) (fs.FileInfo, error) {
	if m.call() != nil {
		return nil, errDisk
	}
	if ino := m.names[path]; ino != nil {
		return modelInfo{ino}, nil
	}
	return nil, fs.ErrNotExist
}

func (m *model) SameFile(a, b fs.FileInfo) bool { return a == b }

func (m *model) SyncDir(string) error {
	m.mayCrash()
	if m.call() != nil {
		return errDisk
	}
	for _, change := range m.pending {
		change(m.onDisk)
	}
	m.pending = nil
	return nil
}

// remove is what a person does.
func (m *model) remove(path string) {
	m.rename(func(names map[string]*inode) { delete(names, path) })
}

type modelFile struct {
	m   *model
	ino *inode
}

func (f *modelFile) ReadAt(p []byte, off int64) (int, error) {
	if f.m.call() != nil {
		return 0, errDisk
	}
	n := 0
	if off < int64(len(f.ino.cache)) {
		n = copy(p, f.ino.cache[off:])
	}
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}

func (f *modelFile) WriteAt(p []byte, off int64) (int, error) {
	f.m.mayCrash()
	fault := f.m.call()
	n := len(p)
	if fault != nil {
		n = min(fault.short, n)
	}
	// In pieces: a process may be killed between any two pages.
	for piece := range slices.Chunk(p[:n], pageSize) {
		end := off + int64(len(piece))
		if grow := end - int64(len(f.ino.cache)); grow > 0 {
			f.ino.cache = append(f.ino.cache, make([]byte, grow)...)
		}
		copy(f.ino.cache[off:], piece)
		for s := int(off) / sector; s*sector < int(end); s++ {
			f.ino.dirty[s] = true
		}
		off = end
		f.m.mayCrash()
	}
	if fault != nil {
		return n, errDisk
	}
	return n, nil
}

func (f *modelFile) Sync() error {
	f.m.mayCrash()
	fault := f.m.call()
	if fault == nil || fault.flushed {
		f.ino.disk = slices.Clone(f.ino.image(func(int) bool { return true }))
	}
	clear(f.ino.dirty)
	if fault != nil {
		return errDisk
	}
	return nil
}

func (f *modelFile) Stat() (fs.FileInfo, error) {
	if f.m.call() != nil {
		return nil, errDisk
	}
	return modelInfo{f.ino}, nil
}

func (f *modelFile) Close() error   { return nil }
func (f *modelFile) TryLock() error { return nil }

// image returns what is on disk once those sectors that are not there yet and that written
// picks have been written.
func (ino *inode) image(written func(i int) bool) []byte {
	img := slices.Clone(ino.disk)
	for i, s := range slices.Sorted(maps.Keys(ino.dirty)) {
		if !written(i) || s*sector >= len(ino.cache) {
			continue
		}
		from, to := s*sector, min((s+1)*sector, len(ino.cache))
		if len(img) < to {
			img = append(img, make([]byte, to-len(img))...)
		}
		copy(img[from:to], ino.cache[from:to])
	}
	return img
}

// killed returns what is there after the process was killed.
func (m *model) killed() *model {
	after := newModel()
	for name, ino := range m.names {
		after.add(name, ino.cache)
	}
	return after
}

// crashed calls f with each thing that may be there after a power loss: any of the names'
// changes that are not on disk, up to one of them, and any set of sectors of the journal.
func (m *model) crashed(f func(*model)) {
	for n := range len(m.pending) + 1 {
		names := maps.Clone(m.onDisk)
		for _, change := range m.pending[:n] {
			change(names)
		}
		for _, sectors := range m.sectorSets() {
			after := newModel()
			for name, ino := range names {
				after.add(name, ino.image(sectors))
			}
			f(after)
		}
	}
}

// sectorSets returns sets of dirty sectors. Of each page only the first sector holds
// anything, so that all is tried with four sets, beside those up to a sector.
func (m *model) sectorSets() []func(int) bool {
	perPage := pageSize / sector
	return []func(int) bool{
		func(i int) bool { return true },
		func(i int) bool { return false },
		func(i int) bool { return i%perPage != 0 },
		func(i int) bool { return i < perPage },
		func(i int) bool { return i >= perPage },
		func(i int) bool { return i == 0 },
		func(i int) bool { return i == perPage },
	}
}

func (m *model) add(name string, content []byte) {
	ino := &inode{cache: slices.Clone(content), disk: slices.Clone(content), dirty: map[int]bool{}}
	m.names[name], m.onDisk[name] = ino, ino
}

// hash tells what processes see from anything else.
func (m *model) hash() uint64 {
	var h maphash.Hash
	h.SetSeed(seed)
	for _, name := range slices.Sorted(maps.Keys(m.names)) {
		fmt.Fprintf(&h, "%s %d ", name, len(m.names[name].cache))
		h.Write(m.names[name].cache)
	}
	return h.Sum64()
}

var seed = maphash.MakeSeed()

// content is for messages.
func (m *model) content() string {
	var b bytes.Buffer
	for _, name := range slices.Sorted(maps.Keys(m.names)) {
		fmt.Fprintf(&b, "%s (%d bytes)", filepath.Base(name), len(m.names[name].cache))
		for page := range slices.Chunk(m.names[name].cache, pageSize) {
			fmt.Fprintf(&b, " %q", bytes.TrimRight(page[:min(len(page), 100)], "\x00"))
		}
		b.WriteByte('\n')
	}
	return b.String()
}

type modelInfo struct{ ino *inode }

func (i modelInfo) Name() string       { return "" }
func (i modelInfo) Size() int64        { return int64(len(i.ino.cache)) }
func (i modelInfo) Mode() fs.FileMode  { return 0o600 }
func (i modelInfo) ModTime() time.Time { return time.Time{} }
func (i modelInfo) IsDir() bool        { return false }
func (i modelInfo) Sys() any           { return nil }
