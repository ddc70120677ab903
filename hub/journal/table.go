package journal

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"

	"plusminus/hub"
)

const (
	// slotSize is enough for a name of maxName bytes and a value of maxValue bytes, which is what [hub.AppendValue]
	// may append. A slot lies within a sector.
	slotSize = 256
	maxName  = 64
	maxValue = 128

	slotsPerPage = pageSize / slotSize
	pairSize     = copies * pageSize // both copies of a page

	entryHead = 7
	maxEntry  = entryHead + maxName + 8 + maxValue
)

// The kinds of slots and entries. A file with any other kind is of a newer version.
const (
	kindFree    = 0
	kindCounter = 1 // key: its name; payload: its version, and its value as hub.AppendValue makes it
)

// slot is a slot of the table: a counter, or free. Slot 0 is the default counter's.
type slot struct {
	name    string // "" if it is free
	stamp   uint64 // the start of the record that wrote it; 0 if none has
	version uint64
	value   hub.Value
}

// free reports whether slot i holds no counter.
func (s *slot) free(i uint32) bool { return s.name == "" && i != 0 }

func (s *slot) snapshot() hub.Snapshot { return hub.Snapshot{Version: s.version, Value: s.value} }

// appendBody appends what a slot and an entry have in common: kind, sizes, key, payload.
func (s *slot) appendBody(dst []byte, i uint32) []byte {
	if s.free(i) {
		return append(dst, kindFree, 0, 0)
	}
	at := len(dst)
	dst = append(dst, kindCounter, byte(len(s.name)), 0)
	dst = append(dst, s.name...)
	dst = binary.LittleEndian.AppendUint64(dst, s.version)
	dst = hub.AppendValue(dst, s.value)
	dst[at+2] = byte(len(dst) - at - 3 - len(s.name))
	return dst
}

// parseBody parses what appendBody has appended, at the start of p, and returns its size.
func (s *slot) parseBody(p []byte, i uint32) (int, error) {
	bad := fmt.Errorf("%w: slot %d has no valid counter", ErrDamaged, i)
	if len(p) < 3 || len(p) < 3+int(p[1])+int(p[2]) {
		return 0, bad
	}
	key, payload := p[3:][:p[1]], p[3+int(p[1]):][:p[2]]
	size := 3 + len(key) + len(payload)
	switch p[0] {
	case kindFree:
		if i == 0 || size != 3 {
			return 0, bad
		}
		*s = slot{stamp: s.stamp}
		return size, nil
	case kindCounter:
	default:
		return 0, fmt.Errorf("%w: it holds more than counters", ErrNewer)
	}
	if len(key) > maxName || (len(key) == 0) != (i == 0) || len(payload) < 8 {
		return 0, bad
	}
	s.name, s.version = string(key), binary.LittleEndian.Uint64(payload)
	text := string(payload[8:])
	value, err := hub.ParseValue(text)
	if errors.Is(err, hub.ErrRange) {
		return 0, fmt.Errorf("%w: value %s is out of range", ErrDamaged, text)
	}
	if err != nil {
		return 0, bad
	}
	s.value = value
	return size, nil
}

// appendEntry appends the entry of a record that sets slot i to s.
func appendEntry(dst []byte, i uint32, s *slot) []byte {
	return s.appendBody(binary.LittleEndian.AppendUint32(dst, i), i)
}

// put encodes slot i into p, which has slotSize bytes.
func (s *slot) put(p []byte, i uint32) {
	clear(p)
	binary.LittleEndian.PutUint64(p[4:], s.stamp)
	s.appendBody(p[:12], i)
	putSum(p, i)
}

func putSum(p []byte, i uint32) { binary.LittleEndian.PutUint32(p, slotSum(p, i)) }

// slotSum is the checksum of slot i. It covers i, so that a slot in a wrong place is damaged.
func slotSum(p []byte, i uint32) uint32 {
	var at [4]byte
	binary.LittleEndian.PutUint32(at[:], i)
	return crc32.Update(crc32.Checksum(p[4:slotSize], castagnoli), castagnoli, at[:])
}

// parse parses the two copies of slot i. whole reports whether they are undamaged and equal.
func (s *slot) parse(a, b []byte, i uint32) (whole bool, err error) {
	okA := binary.LittleEndian.Uint32(a) == slotSum(a, i)
	if bytes.Equal(a, b) {
		b = a
	} else if okB := binary.LittleEndian.Uint32(b) == slotSum(b, i); okB {
		stampA, stampB := binary.LittleEndian.Uint64(a[4:]), binary.LittleEndian.Uint64(b[4:])
		if okA && stampA == stampB {
			return false, fmt.Errorf("%w: the copies of slot %d contradict each other", ErrDamaged, i)
		}
		if !okA || stampB > stampA {
			a, b, okA = b, a, true
		}
	}
	if !okA {
		return false, fmt.Errorf("%w: both copies of slot %d are damaged", ErrDamaged, i)
	}
	s.stamp = binary.LittleEndian.Uint64(a[4:])
	_, err = s.parseBody(a[12:slotSize], i)
	return &a[0] == &b[0], err
}

// putPage encodes a page of slots, both copies, into p, which has pairSize bytes.
func putPage(p []byte, slots []slot, page uint32) {
	for k := range uint32(slotsPerPage) {
		i := page*slotsPerPage + k
		slots[i].put(p[k*slotSize:][:slotSize], i)
	}
	copy(p[pageSize:], p[:pageSize])
}

// image is the content of a file with many counters.
type image struct {
	geometry
	log   *logImage
	slots []slot
	index map[string]uint32   // the slots of all counters but the default one
	dirty map[uint32]struct{} // pages of the table that differ from slots
}

// readBytes is how much of the table is read or written at once: a whole number of pairs.
const readBytes = 1 << 20

// read reads a file of the given size. Its errors wrap [ErrDamaged] or [ErrNewer], or are errors of r.
func (g geometry) read(r io.ReaderAt, size int64) (*image, error) {
	if size < g.table() {
		return nil, fmt.Errorf("%w: %w", ErrDamaged, errShort)
	}
	content := make([]byte, g.table()-fileSize)
	if err := readFull(r, content, fileSize); err != nil {
		return nil, err
	}
	var err error
	img := &image{geometry: g, dirty: map[uint32]struct{}{}}
	if img.log, err = g.parseLog(content); err != nil {
		return nil, err
	}
	last := img.log.last
	if last.pages < 1 || int64(last.pages) > (size-g.table())/pairSize {
		return nil, fmt.Errorf("%w: %w", ErrDamaged, errShort)
	}
	if err := img.readTable(r); err != nil {
		return nil, err
	}
	for i := range img.slots {
		// A crash leaves no such slot: the record is on disk before its slots are written.
		if img.slots[i].stamp > last.start {
			return nil, errLog
		}
	}
	for _, r := range img.log.replay {
		if err := img.apply(r); err != nil {
			return nil, err
		}
	}
	img.index = make(map[string]uint32, len(img.slots))
	for i := range img.slots {
		s := &img.slots[i]
		if s.free(uint32(i)) || i == 0 {
			continue
		}
		if _, ok := img.index[s.name]; ok {
			return nil, fmt.Errorf("%w: it holds the counter %q twice", ErrDamaged, s.name)
		}
		img.index[s.name] = uint32(i)
	}
	return img, nil
}

func (img *image) readTable(r io.ReaderAt) error {
	pages := img.log.last.pages
	img.slots = make([]slot, pages*slotsPerPage)
	buf := make([]byte, min(readBytes, int64(pages)*pairSize))
	for page := uint32(0); page < pages; {
		part := buf[:min(int64(len(buf)), int64(pages-page)*pairSize)]
		if err := readFull(r, part, img.table()+int64(page)*pairSize); err != nil {
			return err
		}
		for ; len(part) > 0; part, page = part[pairSize:], page+1 {
			for k := range uint32(slotsPerPage) {
				i := page*slotsPerPage + k
				whole, err := img.slots[i].parse(part[k*slotSize:][:slotSize], part[pageSize+k*slotSize:][:slotSize], i)
				if err != nil {
					return err
				}
				if !whole {
					img.dirty[page] = struct{}{}
				}
			}
		}
	}
	return nil
}

// apply replays r. A slot that a checkpoint has written after r is of a later record, which is replayed, too.
func (img *image) apply(r *record) error {
	for p := r.entries; len(p) > 0; {
		if len(p) < entryHead {
			return fmt.Errorf("%w: the record at %d has no valid entries", ErrDamaged, r.start)
		}
		i := binary.LittleEndian.Uint32(p)
		if uint64(i) >= uint64(len(img.slots)) {
			return fmt.Errorf("%w: the record at %d has no valid entries", ErrDamaged, r.start)
		}
		s := slot{stamp: r.start}
		n, err := s.parseBody(p[4:], i)
		if err != nil {
			return err
		}
		img.slots[i] = s
		img.dirty[i/slotsPerPage] = struct{}{}
		p = p[4+n:]
	}
	return nil
}

func readFull(r io.ReaderAt, p []byte, off int64) error {
	n, err := r.ReadAt(p, off)
	switch {
	case n == len(p):
		return nil
	case err == io.EOF:
		return fmt.Errorf("%w: %w", ErrDamaged, errShort)
	}
	return err
}
