package journal

import (
	"bytes"
	"errors"
	"fmt"
	"hash/maphash"
	"io"
	"io/fs"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"syscall"
	"time"
)

// model is a folder on a disk. Each of its calls can be made to fail, and it computes every
// state that a crash may leave.
//
// Written data stays in memory, sector by sector, until Sync has put it on disk. New and
// changed folder entries reach the disk in their order, at the latest in SyncDir. A failed
// Sync forgets the data that it had to write, as Linux does: the next Sync reports success.
type model struct {
	names   map[string]*inode         // the folder's entries as processes see them
	onDisk  map[string]*inode         // the entries after a power loss
	pending []func(map[string]*inode) // the changes of names that onDisk does not have yet

	calls int                   // the calls so far that could fail
	fail  func(call int) *fault // how a call fails; nil if none does
	look  func()                // called wherever a crash may come
	full  bool                  // a write that would make a file longer fails with ENOSPC
}

// inode is the content of a file.
type inode struct {
	cache  []byte // as processes see it
	disk   []byte // as it is after a power loss; replaced as a whole, never changed in place
	shared bool   // cache may be the same memory as another slice: copy it before a change

	dirty map[int]bool // sectors of cache that may not be on disk
}

// own makes cache safe to change in place.
func (ino *inode) own() {
	if ino.shared {
		ino.cache, ino.shared = slices.Clone(ino.cache), false
	}
}

// flip damages the byte at off.
func (ino *inode) flip(off int) {
	ino.own()
	ino.cache[off] ^= 1
}

// fault is how a call fails.
type fault struct {
	short   int  // a failed write still writes this many bytes, or all if there are fewer
	flushed bool // a failed Sync still puts all data on disk
}

const sector = 512

var errDisk = errors.New("the disk fails")

func newModel() *model {
	return &model{names: map[string]*inode{}, onDisk: map[string]*inode{}}
}

// call counts a call, and returns how it fails, or nil.
func (m *model) call() *fault {
	m.calls++
	if m.fail == nil {
		return nil
	}
	return m.fail(m.calls - 1)
}

// mayCrash is called before each change.
func (m *model) mayCrash() {
	if m.look != nil {
		m.look()
	}
}

func (m *model) rename(change func(map[string]*inode)) {
	change(m.names)
	m.pending = append(m.pending, change)
}

func (m *model) OpenFile(path string, flag int) (diskFile, error) {
	m.mayCrash()
	if m.call() != nil {
		return nil, errDisk
	}
	ino := m.names[path]
	switch {
	case ino == nil && flag&os.O_CREATE == 0:
		return nil, fs.ErrNotExist
	case ino == nil || flag&os.O_TRUNC != 0:
		// After a crash a truncated file may still have its old content. A new inode stands for
		// both, since no process reads the old content.
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

// remove removes a file, as a person might.
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
	failure := f.m.call()
	n := len(p)
	if failure != nil {
		n = min(failure.short, n)
	}
	space := len(f.ino.cache) - int(off)
	full := f.m.full && n > space
	if full {
		n = max(space, 0)
	}
	// The write goes page by page: a process may be killed between any two pages.
	for piece := range slices.Chunk(p[:n], pageSize) {
		f.ino.own()
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
	switch {
	case failure != nil:
		return n, errDisk
	case full:
		return n, syscall.ENOSPC
	}
	return n, nil
}

func (f *modelFile) Sync() error {
	f.m.mayCrash()
	failure := f.m.call()
	if failure == nil || failure.flushed {
		f.ino.disk = f.ino.image(func(int) bool { return true })
	}
	clear(f.ino.dirty)
	if failure != nil {
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

// image returns the disk's content after the dirty sectors that written picks have reached
// it. The caller must not change the result.
func (ino *inode) image(written func(i int) bool) []byte {
	img, copied := ino.disk, false
	for i, s := range slices.Sorted(maps.Keys(ino.dirty)) {
		if !written(i) || s*sector >= len(ino.cache) {
			continue
		}
		if !copied {
			img, copied = slices.Clone(img), true
		}
		from, to := s*sector, min((s+1)*sector, len(ino.cache))
		if len(img) < to {
			img = append(img, make([]byte, to-len(img))...)
		}
		copy(img[from:to], ino.cache[from:to])
	}
	return img
}

// killed returns the folder after the process was killed.
func (m *model) killed() *model {
	after := newModel()
	for name, ino := range m.names {
		ino.shared = true
		after.add(name, ino.cache)
	}
	return after
}

// crashed calls f with each state that a power loss may leave: the pending changes of the
// entries up to any one of them, and any set of dirty sectors.
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

// killedAlone returns the folder after the process was killed. Unlike the result of killed, it still has what the kernel
// holds in memory and the disk does not.
func (m *model) killedAlone() *model {
	after := newModel()
	for name, ino := range m.names {
		ino.shared = true
		again := *ino
		again.dirty = maps.Clone(ino.dirty)
		after.names[name], after.onDisk[name] = &again, &again
	}
	return after
}

// hidden reports whether a file on disk lacks what processes see, and no Sync will put it there.
func (m *model) hidden() bool {
	for _, ino := range m.names {
		for s := range (len(ino.cache) + sector - 1) / sector {
			if !ino.dirty[s] && !bytes.Equal(ino.at(ino.cache, s), ino.at(ino.disk, s)) {
				return true
			}
		}
	}
	return false
}

// torn calls f with states that a power loss may leave: the pending changes of the entries up to any one of them, and any
// set of the sectors whose write is not certain. If there are more than most of them, f gets a random selection of the sets.
func (m *model) torn(most int, random *rand.Rand, f func(*model)) {
	type place struct {
		ino *inode
		s   int
	}
	for n := range len(m.pending) + 1 {
		names := maps.Clone(m.onDisk)
		for _, change := range m.pending[:n] {
			change(names)
		}
		var places []place // whose old and new content differ
		for _, name := range slices.Sorted(maps.Keys(names)) {
			ino := names[name]
			for _, s := range slices.Sorted(maps.Keys(ino.dirty)) {
				if !bytes.Equal(ino.at(ino.cache, s), ino.at(ino.disk, s)) {
					places = append(places, place{ino, s})
				}
			}
		}
		tries := 1 << min(len(places), most)
		for try := range tries {
			set := uint64(try)
			if len(places) > most {
				switch try {
				case 0:
				case 1:
					set = ^uint64(0)
				default:
					set = random.Uint64() // of more than 64 sectors, those 64 apart share a fate
				}
			}
			chosen := map[place]bool{}
			for i, p := range places {
				chosen[p] = set>>(i%64)&1 == 1
			}
			after := newModel()
			for name, ino := range names {
				sectors := slices.Sorted(maps.Keys(ino.dirty))
				after.add(name, ino.image(func(i int) bool { return chosen[place{ino, sectors[i]}] }))
			}
			f(after)
		}
	}
}

// at returns sector s of content, which is as long as the content goes.
func (*inode) at(content []byte, s int) []byte {
	return content[min(s*sector, len(content)):min((s+1)*sector, len(content))]
}

// sectorSets returns sets of dirty sectors. Only the first sector of a page holds text, so
// these sets try every combination of texts. written's argument counts the dirty sectors.
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

// add adds a file whose content is on disk.
func (m *model) add(name string, content []byte) {
	ino := &inode{cache: content, disk: content, shared: true, dirty: map[int]bool{}}
	m.names[name], m.onDisk[name] = ino, ino
}

// hash is a hash of all names and contents.
func (m *model) hash() uint64 {
	var h maphash.Hash
	h.SetSeed(seed)
	for _, name := range slices.Sorted(maps.Keys(m.names)) {
		fmt.Fprintf(&h, "%s %d ", name, len(m.names[name].cache))
		h.Write(m.names[name].cache)
		h.Write(m.names[name].disk)
	}
	return h.Sum64()
}

var seed = maphash.MakeSeed()

// content describes the files for failure texts.
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
