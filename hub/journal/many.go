package journal

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"slices"
	"sync"

	"plusminus/hub"
)

// Many is many counters in a file. It implements [hub.Counters]. It has no goroutine. Its methods are safe for concurrent
// use: changes wait for each other, and LoadCounter, List and Len wait for no disk.
type Many struct {
	folder // Its fields are guarded by writing.

	// Immutable after newMany.
	geometry
	max       int    // how many counters there may be
	growPages uint32 // by how many pages the table grows

	// writing is held during a change, also while the disk works. It is taken before mu.
	writing sync.Mutex
	// Guarded by writing.
	next        uint64              // the number of the log's next sector
	try         uint64              // of the last record that was written
	tail        uint64              // the start of the oldest record whose slots may not be in the table
	floor       uint64              // no counter that was removed had a higher version
	unsure      bool                // a write to the log has failed: it may hold a record at next, to be undone before anything else
	secondFirst bool                // if unsure: begin with the second copy
	dirty       map[uint32]struct{} // the pages of the table to write in the next checkpoint
	unused      []uint32            // the free slots

	mu sync.RWMutex
	// Changed with writing and mu held, read with either.
	slots []slot            // as they are on disk, in the table or in the log
	index map[string]uint32 // the slots of all counters but the default one
}

var _ hub.Counters = (*Many)(nil)

// standardGrowth is 512 KiB for 1024 counters.
const standardGrowth = 64

// OpenMany opens the journal in folder dir, which must exist, for up to maxCounters counters besides the default one. If
// the folder never had a journal, OpenMany makes one. If it has the journal of [Open], OpenMany converts it: the default
// counter keeps its value and version, and an older program refuses the folder from then on. A crash leaves the old
// journal or the new one, whole. If there are more than maxCounters counters, all remain, and no others can be made.
//
// Until [Many.Close], no other process can open the folder. If another process has it, OpenMany waits up to 2 seconds and
// returns [ErrInUse]. If the file is not trustworthy, it returns [ErrDamaged] or [ErrNewer] and changes nothing.
func OpenMany(dir string, maxCounters int) (*Many, error) {
	return openMany(osSystem{}, dir, newMany(maxCounters), true)
}

// ReopenMany is [OpenMany] for a folder that OpenMany has opened before. It makes and converts no file: it returns [ErrNone]
// for a folder that never had a journal, and [ErrOne] for one with the journal of [Open].
func ReopenMany(dir string, maxCounters int) (*Many, error) {
	return openMany(osSystem{}, dir, newMany(maxCounters), false)
}

// Format returns the format of the journal in folder dir: 1 for one counter, 2 for many. It does not read the counters.
// It returns [ErrNone] for a folder that never had a journal, and makes none. Its other errors are those of [OpenMany].
func Format(dir string) (int, error) { return formatOf(osSystem{}, dir) }

func formatOf(sys system, dir string) (n int, err error) {
	f, err := openFolder(sys, dir, false)
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	found, err := f.find()
	if err != nil {
		return 0, err
	}
	if !found {
		return 0, fmt.Errorf("%s: %w", f.path, ErrNone)
	}
	first, err := f.openFile()
	if err != nil {
		return 0, err
	}
	if _, _, ok := parseLines(first); ok {
		return formatMany, nil
	}
	if _, err := parseOne(first); err != nil {
		return 0, fmt.Errorf("%s %w", f.path, err)
	}
	return format, nil
}

// parseOne is parse for a file whose first line is not that of many counters.
func parseOne(content []byte) (hub.Snapshot, error) {
	s, err := parse(content)
	if errors.Is(err, ErrMany) {
		err = fmt.Errorf("%w: both copies of its first line are damaged", ErrDamaged)
	}
	return s, err
}

func newMany(maxCounters int) *Many {
	return &Many{geometry: standard, growPages: standardGrowth, max: maxCounters}
}

// openMany opens m in folder dir. mayMake says whether it may make or convert a file.
func openMany(sys system, dir string, m *Many, mayMake bool) (*Many, error) {
	var err error
	if m.folder, err = openFolder(sys, dir, mayMake); err != nil {
		return nil, err
	}
	if err := m.open(mayMake); err != nil {
		return nil, errors.Join(err, m.Close())
	}
	return m, nil
}

func (m *Many) open(mayMake bool) error {
	found, err := m.find()
	switch {
	case err != nil:
	case found:
		err = m.load(mayMake)
	case !mayMake:
		err = fmt.Errorf("%s: %w", m.path, ErrNone)
	default:
		err = m.begin(hub.Snapshot{})
	}
	if err != nil {
		return err
	}
	return m.settle()
}

// begin makes a file with the default counter alone.
func (m *Many) begin(s hub.Snapshot) error {
	m.slots = make([]slot, m.growPages*slotsPerPage)
	m.index = make(map[string]uint32)
	m.next = m.sectors // so that the fillers have numbers
	m.slots[0] = slot{stamp: m.next, version: s.Version, value: s.Value}
	m.findUnused()
	return m.create()
}

// load opens the file and reads it.
func (m *Many) load(mayConvert bool) error {
	first, err := m.openFile()
	if err != nil {
		return err
	}
	g, whole, ok := parseLines(first)
	if !ok {
		s, err := parseOne(first)
		switch {
		case err != nil:
			return fmt.Errorf("%s %w", m.path, err)
		case !mayConvert:
			return fmt.Errorf("%s %w", m.path, ErrOne)
		}
		m.closeFile()     // Windows replaces no open file
		return m.begin(s) // the old file stays until the new one is on disk
	}
	img, err := g.read(m.disk, m.info.Size())
	switch {
	case errors.Is(err, ErrDamaged), errors.Is(err, ErrNewer):
		return fmt.Errorf("%s %w", m.path, err)
	case err != nil:
		return fmt.Errorf("opening the counter: %w", err)
	}
	m.geometry = g
	last := img.log.last
	m.slots, m.index, m.dirty = img.slots, img.index, img.dirty
	m.next, m.try, m.tail, m.floor = last.end(), img.log.maxTry, last.tail, last.floor
	m.findUnused()
	if err := m.restore(img, whole); err != nil {
		return fmt.Errorf("writing %s: %w", m.path, err)
	}
	return nil
}

// restore writes to the disk what the kernel may have returned without it being there, and repairs what is damaged. The
// file then depends on no write of an earlier process that has failed, or that a crash has interrupted.
func (m *Many) restore(img *image, lineOK bool) error {
	// The last record may be one that was in flight, and may be on disk in parts. All older ones were followed by a
	// write, so an fsync had put them on disk. It goes before its slots, which must not be newer than the log. Sectors that
	// an incomplete record has left at next do no harm: they differ in try from those of the next record.
	list := m.chunks(img.log.last.start, img.log.last.encode())
	for i, p := range img.log.damaged {
		list = append(list, m.chunks(p, img.log.whole[i])...)
	}
	if !lineOK {
		list = append(list, chunk{0, m.firstPages()})
	}
	if _, err := m.write(list); err != nil {
		return err
	}
	return m.checkpoint()
}

// findUnused lists the free slots, the lowest last.
func (m *Many) findUnused() {
	m.unused = nil
	for i := uint32(len(m.slots)) - 1; i > 0; i-- {
		if m.slots[i].free(i) {
			m.unused = append(m.unused, i)
		}
	}
}

// pages is the size of the table.
func (m *Many) pages() uint32 { return uint32(len(m.slots) / slotsPerPage) }

func (m *Many) firstPages() []byte {
	content := make([]byte, fileSize)
	for i := range copies {
		m.appendLine(content[i*pageSize : i*pageSize])
	}
	return content
}

// create makes the file with all slots in it.
func (m *Many) create() error {
	err := m.replace(func(disk diskFile) error {
		if _, err := writeAll(disk, []chunk{{0, m.firstPages()}, {fileSize, m.fillers(m.next)}}); err != nil {
			return err
		}
		r := m.record(&record{})
		r.tail = r.start
		if _, err := writeAll(disk, m.chunks(r.start, r.encode())); err != nil {
			return err
		}
		all := func(yield func(uint32) bool) {
			for page := range m.pages() {
				if !yield(page) {
					return
				}
			}
		}
		if err := m.writePages(disk, m.slots, all); err != nil {
			return err
		}
		return pathless(disk.Sync())
	})
	if err != nil {
		return err
	}
	m.tail = m.next
	m.next++
	m.unsure, m.dirty = false, make(map[uint32]struct{})
	return nil
}

// writePages writes pages of the table, which are in order.
func (m *Many) writePages(disk diskFile, slots []slot, pages func(func(uint32) bool)) error {
	var run chunk // of adjacent pages
	for page := range pages {
		off := m.table() + int64(page)*pairSize
		if len(run.data) > 0 && (off != run.off+int64(len(run.data)) || len(run.data) >= readBytes) {
			if _, err := writeAll(disk, []chunk{run}); err != nil {
				return err
			}
			run.data = run.data[:0]
		}
		if len(run.data) == 0 {
			run.off = off
		}
		n := len(run.data)
		run.data = slices.Grow(run.data, pairSize)[:n+pairSize]
		putPage(run.data[n:], slots, page)
	}
	_, err := writeAll(disk, []chunk{run})
	return err
}

// writeAll writes chunks, and returns the number of bytes written.
func writeAll(disk diskFile, list []chunk) (total int, err error) {
	for _, c := range list {
		n, err := disk.WriteAt(c.data, c.off)
		total += n
		if err != nil {
			return total, pathless(err)
		}
	}
	return total, nil
}

// write writes to the file and returns when that is on disk. The number is that of writeAll.
func (m *Many) write(list []chunk) (int, error) {
	n, err := writeAll(m.disk, list)
	if err == nil {
		err = pathless(m.disk.Sync())
	}
	return n, err
}

// checkpoint writes the slots of all records since the last checkpoint to the table. The next record says so, and the
// log before it may then be overwritten. After an error the log still has them, and the next checkpoint writes them again.
func (m *Many) checkpoint() error {
	if len(m.dirty) > 0 {
		if err := m.writePages(m.disk, m.slots, slices.Values(slices.Sorted(maps.Keys(m.dirty)))); err != nil {
			return err
		}
		if err := m.disk.Sync(); err != nil {
			return pathless(err)
		}
		clear(m.dirty)
	}
	m.tail = m.next
	return nil
}

// record sets all fields of r but its entries.
func (m *Many) record(r *record) *record {
	m.try++
	r.start, r.try, r.tail, r.floor, r.pages = m.next, m.try, m.tail, max(m.floor, r.floor), m.pages()
	return r
}

// append appends r to the log, and returns when it is on disk. If that fails, the log may hold r. A later record at the
// same place undoes it, since it overwrites its first sector in both copies.
func (m *Many) append(r *record) error {
	m.record(r)
	list := m.chunks(r.start, r.encode())
	if m.secondFirst {
		slices.Reverse(list)
	}
	n, err := m.write(list)
	if err != nil {
		// A write may end within a sector, which is damaged then. The next write goes to the same copy first, so that the
		// other copy stays whole.
		m.secondFirst = m.secondFirst != (n >= sectorSize)
		m.unsure = true
		return err
	}
	m.next, m.unsure, m.secondFirst = r.end(), false, false
	return nil
}

// store makes room in the log and appends r.
func (m *Many) store(r *record) error {
	if m.unsure {
		if err := m.append(&record{}); err != nil {
			return err
		}
	}
	// At most half of the log is in use after this. So the record, which is at most another half, overwrites nothing that
	// is needed as long as the tail on disk is that of the record before.
	if m.next+r.count()-m.tail > m.largest() {
		if err := m.checkpoint(); err != nil {
			return err
		}
	}
	err := m.append(r)
	if err != nil {
		m.append(&record{}) // if this fails, too, the next call of store does it
	}
	return err
}

// grow adds pages to the table until n slots are unused. The next record counts them.
func (m *Many) grow(n int) error {
	more := uint32((n - len(m.unused) + slotsPerPage - 1) / slotsPerPage)
	more = (more + m.growPages - 1) / m.growPages * m.growPages
	from := m.pages()
	slots := append(m.slots, make([]slot, more*slotsPerPage)...)
	added := func(yield func(uint32) bool) {
		for page := from; page < from+more; page++ {
			if !yield(page) {
				return
			}
		}
	}
	err := m.writePages(m.disk, slots, added)
	if err == nil {
		err = pathless(m.disk.Sync())
	}
	if err != nil {
		err = fmt.Errorf("making room in %s: %w", m.path, err)
		if noSpace(err) {
			err = fmt.Errorf("%w: %w", hub.ErrFull, err)
		}
		return err
	}
	m.mu.Lock()
	m.slots = slots
	m.mu.Unlock()
	m.findUnused()
	return nil
}

// Load returns the snapshot of the default counter. It does not fail.
func (m *Many) Load(ctx context.Context) (hub.Snapshot, error) { return m.LoadCounter(ctx, "") }

// LoadCounter returns the snapshot of a counter. It does not fail.
func (m *Many) LoadCounter(_ context.Context, name string) (hub.Snapshot, error) {
	m.mu.RLock()
	defer m.mu.RUnlock()
	if i, ok := m.index[name]; ok || name == "" {
		return m.slots[i].snapshot(), nil
	}
	return hub.Snapshot{}, nil
}

// List lists counters. It does not fail. It reads all names, and sorts those that begin with prefix.
func (m *Many) List(_ context.Context, prefix, after string, limit int) ([]hub.Entry, error) {
	m.mu.RLock()
	defer m.mu.RUnlock()
	return hub.ListOf(m.index, func(i uint32) hub.Snapshot { return m.slots[i].snapshot() }, prefix, after, limit), nil
}

// Len returns the number of counters, without the default counter.
func (m *Many) Len() int {
	m.mu.RLock()
	defer m.mu.RUnlock()
	return len(m.index)
}

// Apply adds delta to the default counter, as [Many.ApplyAll] does.
func (m *Many) Apply(ctx context.Context, delta hub.Delta) (hub.Snapshot, error) {
	change := []hub.Change{{Delta: delta}}
	m.ApplyAll(ctx, change)
	return change[0].Snapshot, change[0].Err
}

// ApplyAll makes the changes and returns once they are on disk. It ignores ctx. All of them are one commit, unless their
// entries are longer than half of the log, which has room for about 20,000.
//
// The errors of one change are [hub.ErrRange], [hub.ErrFull] for a counter beyond the limit or the free space of the disk,
// and errors that name a counter with a name or value that is too long. Any other error is of the disk, and all changes of
// its commit have it. ApplyAll then undoes the commit on disk at once. If that fails, too, the next call undoes it before
// anything else. A crash before then may leave all changes of the commit made.
func (m *Many) ApplyAll(_ context.Context, changes []hub.Change) {
	m.writing.Lock()
	defer m.writing.Unlock()
	for len(changes) > 0 {
		changes = changes[m.commit(changes):]
	}
}

// commit makes the first n changes, as many as one record can have.
func (m *Many) commit(changes []hub.Change) (n int) {
	b := batch{m: m, record: record{floor: m.floor}, live: len(m.index)}
	if len(changes) > 1 {
		b.staged = make(map[string]int, len(changes))
		b.edits = make([]edit, 0, len(changes))
		b.entries = make([]byte, 0, min(m.room(), len(changes)*maxEntry/2)) // most names and values are short
	}
	err := m.ready()
	if b.growErr = err; err == nil {
		b.growErr = m.prepare(changes)
	}
	for n < len(changes) && len(b.entries)+maxEntry <= m.room() {
		b.add(&changes[n])
		n++
	}
	if err == nil && len(b.edits) > 0 {
		if err = m.store(&b.record); err != nil {
			err = fmt.Errorf("writing %s: %w", m.path, err)
		}
	}
	if err != nil {
		b.refuse(err)
		return n
	}
	m.floor = b.floor
	m.mu.Lock()
	defer m.mu.Unlock()
	for i := range b.edits {
		m.publishLocked(&b.edits[i], b.start)
	}
	return n
}

// ready checks that the file can be written.
func (m *Many) ready() error {
	if m.disk == nil {
		return fmt.Errorf("writing %s: %w", m.path, fs.ErrClosed)
	}
	return m.inPlace(m.create)
}

// prepare makes room in the table for the counters that the changes may make.
func (m *Many) prepare(changes []hub.Change) error {
	n := 0
	for i := range changes {
		if _, ok := m.index[changes[i].Counter]; !ok && changes[i].Counter != "" && makes(&changes[i]) {
			n++
		}
	}
	if n = min(n, m.max-len(m.index)); n <= len(m.unused) {
		return nil
	}
	return m.grow(n)
}

var none hub.Delta // changes nothing

// makes reports whether c makes a counter that is not there.
func makes(c *hub.Change) bool { return !c.Remove && (c.Set != nil || c.Delta != none) }

// batch is the changes of one commit.
type batch struct {
	record
	m       *Many
	live    int   // how many counters there will be
	growErr error // why there are no more free slots
	edits   []edit
	staged  map[string]int // the last edit of each counter, by its name; nil if there is one change
}

// edit is what a change does to a slot.
type edit struct {
	change *hub.Change
	was    hub.Snapshot
	i      uint32
	made   bool // the slot was free
	slot   slot
}

// find returns the slot of a counter as the edits so far leave it.
func (b *batch) find(name string) (i uint32, s slot, ok bool) {
	if at, ok := b.staged[name]; ok {
		e := &b.edits[at]
		return e.i, e.slot, !e.slot.free(e.i)
	}
	i, ok = b.m.index[name]
	if ok || name == "" {
		return i, b.m.slots[i], true
	}
	return 0, slot{}, false
}

// add adds the change c, or sets its error.
func (b *batch) add(c *hub.Change) {
	i, was, ok := b.find(c.Counter)
	c.Snapshot, c.Err = was.snapshot(), nil
	if !ok {
		c.Snapshot = hub.Snapshot{}
	}
	e := edit{change: c, was: c.Snapshot, i: i}
	switch {
	case !ok && !makes(c):
		return // nothing becomes of nothing
	case len(c.Counter) > maxName:
		c.Err = fmt.Errorf("the name of the counter %q is longer than %d bytes", c.Counter, maxName)
		return
	case c.Remove && c.Counter != "":
		b.floor = max(b.floor, was.version)
		b.live--
		c.Snapshot = hub.Snapshot{}
	case c.Remove:
		var zero hub.Value
		c.Snapshot = hub.Snapshot{Version: was.version + 1, Value: zero}
		e.slot = slot{version: c.Snapshot.Version, value: zero}
	default:
		from := e.was
		if !ok {
			from.Version = b.floor // a counter of this name may have had this version
		}
		next, err := c.Apply(from)
		if err == nil {
			err = b.fits(c.Counter, next.Value)
		}
		if err == nil && !ok {
			e.i, err = b.take()
			e.made = true
		}
		if err != nil {
			c.Err = err
			return
		}
		c.Snapshot = next
		e.slot = slot{name: c.Counter, version: next.Version, value: next.Value}
	}
	b.entries = appendEntry(b.entries, e.i, &e.slot)
	b.edits = append(b.edits, e)
	if b.staged != nil {
		b.staged[c.Counter] = len(b.edits) - 1
	}
}

func (b *batch) fits(name string, v hub.Value) error {
	if n := len(hub.AppendValue(nil, v)); n > maxValue {
		return fmt.Errorf("the value of the counter %q takes %d bytes, more than %d", name, n, maxValue)
	}
	return nil
}

// take takes a free slot.
func (b *batch) take() (uint32, error) {
	n := len(b.m.unused) - 1
	switch {
	case b.live >= b.m.max:
		return 0, hub.ErrFull
	case n < 0 && b.growErr != nil:
		return 0, b.growErr
	case n < 0:
		return 0, hub.ErrFull
	}
	i := b.m.unused[n]
	b.m.unused = b.m.unused[:n]
	b.live++
	return i, nil
}

// refuse sets the error of all changes that have none, and gives back their free slots.
func (b *batch) refuse(err error) {
	for _, e := range slices.Backward(b.edits) {
		e.change.Snapshot, e.change.Err = e.was, err
		if e.made {
			b.m.unused = append(b.m.unused, e.i)
		}
	}
}

// publishLocked makes the edit visible. Its record began at start.
func (m *Many) publishLocked(e *edit, start uint64) {
	if was := m.slots[e.i].name; was != e.slot.name && was != "" {
		delete(m.index, was)
	}
	e.slot.stamp = start
	m.slots[e.i] = e.slot
	m.dirty[e.i/slotsPerPage] = struct{}{}
	switch {
	case e.slot.free(e.i):
		m.unused = append(m.unused, e.i)
	case e.i != 0:
		m.index[e.slot.name] = e.i
	}
}

// Close closes the file and unlocks the folder. The changes after it fail.
func (m *Many) Close() error {
	m.writing.Lock()
	defer m.writing.Unlock()
	return m.folder.Close()
}
