package journal

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"maps"
	"slices"
	"strings"
)

// The layout of a file with many counters. All numbers in it are little-endian.
const (
	sectorSize = 512
	sectorHead = 24
	sectorData = sectorSize - sectorHead

	recordHead = 24

	perPage = pageSize / sectorSize
)

// geometry is what the first line of a file with many counters says of its layout.
type geometry struct {
	sectors uint64 // the size of each copy of the log, a multiple of perPage, 16 to 65,536
}

// standard is the geometry of new files: a commit of one counter takes one sector, so 2048 of them come between two
// checkpoints.
var standard = geometry{sectors: 4096}

// appendLine appends the first line of the file.
func (g geometry) appendLine(dst []byte) []byte {
	from := len(dst)
	dst = fmt.Appendf(dst, "%s%d: many counters, log %d sectors", intro, formatMany, g.sectors)
	return fmt.Appendf(dst, ", crc32c %08x\n", crc32.Checksum(dst[from:], castagnoli))
}

// parseLine parses the line at the start of page.
func parseLine(page []byte) (g geometry, ok bool) {
	fmt.Sscanf(string(page[:min(len(page), maxLine)]), intro+"2: many counters, log %d sectors", &g.sectors)
	ok = g.sectors >= 16 && g.sectors <= 1<<16 && g.sectors%perPage == 0
	return g, ok && strings.HasPrefix(string(page), string(g.appendLine(nil)))
}

// parseLines returns the geometry in either copy of the first line. whole reports whether both copies are undamaged.
func parseLines(content []byte) (g geometry, whole, ok bool) {
	a, okA := parseLine(content)
	b, okB := parseLine(content[min(len(content), pageSize):])
	if !okA {
		a = b
	}
	return a, okA && okB && a == b, (okA || okB) && (a == b || !okA || !okB)
}

// largest is the number of sectors that a record may have: half of the log.
func (g geometry) largest() uint64 { return g.sectors / 2 }

// room is the number of bytes that the entries of one record may have.
func (g geometry) room() int { return int(g.largest())*sectorData - recordHead }

// offset is where a copy of the sector with the number n lies. The copies are in different pages, one after the other.
func (g geometry) offset(n uint64, c int) int64 {
	p := n % g.sectors
	return fileSize + int64(p/perPage*copies+uint64(c))*pageSize + int64(p%perPage)*sectorSize
}

// table is the offset of the table.
func (g geometry) table() int64 { return fileSize + int64(g.sectors)*sectorSize*copies }

// A record is one commit.
//
// The log's sectors have numbers that only grow; number n lies at position n modulo the size of the log. A record takes
// one sector or several. A sector belongs to one record, so a write never touches a sector with an older commit in it.
type record struct {
	start uint64 // the number of its first sector
	try   uint64 // differs between all records that were ever written at the same start

	tail    uint64 // the start of the oldest record that has to be replayed: all older ones are in the table
	floor   uint64 // no counter that was removed had a higher version
	pages   uint32 // the pages of the table, each in two copies
	entries []byte
}

func sectorsOf(entries int) uint64 {
	return uint64((recordHead + entries + sectorData - 1) / sectorData)
}

func (r *record) count() uint64 { return sectorsOf(len(r.entries)) }
func (r *record) end() uint64   { return r.start + r.count() }

// encode returns the sectors of r.
func (r *record) encode() []byte {
	payload := make([]byte, recordHead, recordHead+len(r.entries))
	binary.LittleEndian.PutUint64(payload, r.tail)
	binary.LittleEndian.PutUint64(payload[8:], r.floor)
	binary.LittleEndian.PutUint32(payload[16:], r.pages)
	binary.LittleEndian.PutUint32(payload[20:], uint32(len(r.entries)))
	payload = append(payload, r.entries...)
	out := make([]byte, r.count()*sectorSize)
	for i := range r.count() {
		s := out[i*sectorSize:][:sectorSize]
		binary.LittleEndian.PutUint16(s[4:], uint16(i))
		binary.LittleEndian.PutUint16(s[6:], uint16(r.count()))
		binary.LittleEndian.PutUint64(s[8:], r.start)
		binary.LittleEndian.PutUint64(s[16:], r.try)
		copy(s[sectorHead:], payload[i*sectorData:])
		binary.LittleEndian.PutUint32(s, crc32.Checksum(s[4:], castagnoli))
	}
	return out
}

// decode sets the fields that payload holds.
func (r *record) decode(payload []byte) error {
	r.tail = binary.LittleEndian.Uint64(payload)
	r.floor = binary.LittleEndian.Uint64(payload[8:])
	r.pages = binary.LittleEndian.Uint32(payload[16:])
	size := binary.LittleEndian.Uint32(payload[20:])
	if uint64(size) > uint64(len(payload)-recordHead) || len(payload) != int(sectorsOf(int(size)))*sectorData || r.tail > r.start {
		return fmt.Errorf("%w: the record at %d contradicts itself", ErrDamaged, r.start)
	}
	r.entries = payload[recordHead:][:size]
	return nil
}

// piece is the head of a sector in the log.
type piece struct {
	start, try   uint64
	index, count uint16
}

// parsePiece parses the sector at position p of a log.
func (g geometry) parsePiece(s []byte, p uint64) (piece, bool) {
	h := piece{
		start: binary.LittleEndian.Uint64(s[8:]),
		try:   binary.LittleEndian.Uint64(s[16:]),
		index: binary.LittleEndian.Uint16(s[4:]),
		count: binary.LittleEndian.Uint16(s[6:]),
	}
	ok := binary.LittleEndian.Uint32(s) == crc32.Checksum(s[4:], castagnoli) &&
		h.index < h.count && uint64(h.count) <= g.largest() && (h.start+uint64(h.index))%g.sectors == p
	return h, ok
}

// logImage is what the file's log holds.
type logImage struct {
	replay  []*record // the records to replay, in their order; at least one
	last    *record   // the last of them
	maxTry  uint64
	damaged []uint64 // positions of which one copy is damaged
	whole   [][]byte // the other copy of each
}

// errLog is the error for a log whose records do not follow each other.
var errLog = fmt.Errorf("%w: a commit is missing in its log", ErrDamaged)

// parseLog parses content, which begins at the start of the log. The records' entries share its memory.
func (g geometry) parseLog(content []byte) (*logImage, error) {
	sector := func(n uint64, c int) []byte { return content[g.offset(n, c)-fileSize:][:sectorSize] }
	img := &logImage{}
	pieces := make([][copies]piece, g.sectors) // the zero piece stands for a damaged sector
	for p := range g.sectors {
		good := -1
		for c := range copies {
			if h, ok := g.parsePiece(sector(p, c), p); ok {
				pieces[p][c], good = h, c
				img.maxTry = max(img.maxTry, h.try)
			}
		}
		switch {
		case good < 0:
			return nil, fmt.Errorf("%w: both copies of a part of its log are damaged", ErrDamaged)
		case pieces[p][1-good].count == 0:
			img.damaged = append(img.damaged, p)
			img.whole = append(img.whole, sector(p, good))
		}
	}
	records := map[uint64]*record{}
	for p := range pieces {
		for _, h := range pieces[p] {
			if h.count == 0 || h.index != 0 || records[h.start] != nil && records[h.start].try >= h.try {
				continue
			}
			data, ok := join(h, pieces, sector)
			if !ok {
				continue
			}
			r := &record{start: h.start, try: h.try}
			if err := r.decode(data); err != nil {
				return nil, err
			}
			records[r.start] = r
		}
	}
	if len(records) == 0 {
		return nil, errLog
	}
	img.last = records[slices.Max(slices.Collect(maps.Keys(records)))]
	for n := img.last.tail; ; {
		r := records[n]
		if r == nil {
			return nil, errLog
		}
		img.replay = append(img.replay, r)
		if n = r.end(); n >= img.last.end() {
			break
		}
	}
	if img.replay[len(img.replay)-1] != img.last {
		return nil, errLog
	}
	for p := range pieces {
		for _, h := range pieces[p] {
			// Only a commit that was in flight at a crash can be incomplete. It follows the last one.
			if h.start > img.last.start && h.start != img.last.end() {
				return nil, errLog
			}
		}
	}
	return img, nil
}

// join returns the data of the record that begins with head, if each of its sectors is there in either copy.
func join(head piece, pieces [][copies]piece, sector func(n uint64, c int) []byte) ([]byte, bool) {
	copyOf := func(i uint16) (n uint64, c int) {
		h := head
		h.index = i
		n = h.start + uint64(i)
		return n, slices.Index(pieces[n%uint64(len(pieces))][:], h)
	}
	for i := range head.count {
		if _, c := copyOf(i); c < 0 {
			return nil, false
		}
	}
	data := make([]byte, 0, int(head.count)*sectorData)
	for i := range head.count {
		data = append(data, sector(copyOf(i))[sectorHead:]...)
	}
	return data, true
}

// chunk is bytes at an offset of the file.
type chunk struct {
	off  int64
	data []byte
}

// chunks returns both copies of the sectors from the number start on, in as few chunks as there are gaps.
func (g geometry) chunks(start uint64, sectors []byte) []chunk {
	var list []chunk
	add := func(off int64, data []byte) {
		if n := len(list) - 1; n >= 0 && list[n].off+int64(len(list[n].data)) == off {
			list[n].data = append(list[n].data, data...)
			return
		}
		list = append(list, chunk{off, append(make([]byte, 0, len(data)+copies*(len(sectors)-len(data))), data...)})
	}
	for len(sectors) > 0 {
		n := min((perPage-start%perPage)*sectorSize, uint64(len(sectors))) // as far as the page goes
		for c := range copies {
			add(g.offset(start, c), sectors[:n])
		}
		start, sectors = start+n/sectorSize, sectors[n:]
	}
	return list
}

// fillers returns the sectors of a new log, as they lie in the file. Each is a record without entries, with a number
// before next. So a sector of zeros is damaged, never new.
func (g geometry) fillers(next uint64) []byte {
	content := make([]byte, g.table()-fileSize)
	for n := next - g.sectors; n < next; n++ {
		r := record{start: n, tail: n}
		for c := range copies {
			copy(content[g.offset(n, c)-fileSize:], r.encode())
		}
	}
	return content
}

var errShort = errors.New("it is cut off")
