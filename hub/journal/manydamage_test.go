package journal

import (
	"bytes"
	"errors"
	"maps"
	"math/rand/v2"
	"path/filepath"
	"slices"
	"testing"

	"plusminus/hub"
)

// manyWritten returns the content of a file with counters in the table and in the log, and the counters.
func manyWritten(t *testing.T) ([]byte, counts) {
	t.Helper()
	m := newModel()
	w, err := openMany(m, "d", small(100), true)
	if err != nil {
		t.Fatal(err)
	}
	for i := range 20 {
		applyAll(t, w, add("", 7), add("a", hub.Delta(i)), add("b", -1))
	}
	applyAll(t, w, longNames(9, 5)...)
	want, _ := contentOf(t, w)
	return slices.Clone(m.names[filepath.Join("d", FileName)].cache), want
}

// readCounts reads content as OpenMany does.
func readCounts(content []byte) (counts, error) {
	g, _, ok := parseLines(content)
	if !ok {
		_, err := parseOne(content)
		return nil, err
	}
	img, err := g.read(bytes.NewReader(content), int64(len(content)))
	if err != nil {
		return nil, err
	}
	got := counts{"": img.slots[0].value}
	for name, i := range img.index {
		got[name] = img.slots[i].value
	}
	return got, nil
}

// mustRefuse checks that content is refused.
func mustRefuse(t *testing.T, content []byte, what string, args ...any) {
	t.Helper()
	if got, err := readCounts(content); !errors.Is(err, ErrDamaged) {
		t.Errorf(what+": %v, %v, want ErrDamaged", append(args, got, err)...)
	}
}

// A file that was cut off anywhere is refused.
func TestManyTruncated(t *testing.T) {
	t.Parallel()
	whole, _ := manyWritten(t)
	for size := 0; size < len(whole); size += 128 {
		mustRefuse(t, whole[:size], "truncated to %d bytes", size)
	}
}

// A part of the file of which both copies are damaged in any way is refused. With one of them damaged it is read.
func TestManyDamagedSectors(t *testing.T) {
	t.Parallel()
	whole, want := manyWritten(t)
	p := slices.Clone(whole)
	for name, damage := range map[string]func(s []byte){
		"zeros":     func(s []byte) { clear(s) },
		"ones":      func(s []byte) { copy(s, bytes.Repeat([]byte{0xff}, len(s))) },
		"one bit":   func(s []byte) { s[9] ^= 4 },
		"last byte": func(s []byte) { s[len(s)-1]++ },
	} {
		for off := 0; off < len(whole); off += sector {
			if off < fileSize && (off%pageSize != 0 || name == "last byte") {
				continue // the rest of the first pages is not used
			}
			a, b := p[off:off+sector], []byte(nil)
			damage(a)
			if got, err := readCounts(p); err != nil || !maps.Equal(got, want) {
				t.Errorf("%s at %d: %v, %v, want %v", name, off, got, err, want)
			}
			if off%pairSize < pageSize {
				b = p[off+pageSize:][:sector]
				damage(b)
				mustRefuse(t, p, "%s at %d and in the other copy", name, off)
			}
			copy(p, whole)
		}
	}
}

// A sector in a wrong place is not taken for the one that belongs there.
func TestManyMisplacedSectors(t *testing.T) {
	t.Parallel()
	whole, want := manyWritten(t)
	table := int(small(1).table())
	for _, part := range []struct {
		name      string
		from, end int
	}{{"log", fileSize, table}, {"table", table, len(whole)}} {
		for from := part.from; from < part.end; from += sector {
			for to := part.from; to < part.end; to += sector {
				p := slices.Clone(whole)
				copy(p[to:], whole[from:from+sector])
				if got, err := readCounts(p); err != nil || !maps.Equal(got, want) {
					t.Fatalf("%s: %d copied to %d: %v, %v, want %v", part.name, from, to, got, err, want)
				}
				if other := to ^ pageSize; from != to && from != other {
					copy(p[other:], whole[from:from+sector])
					mustRefuse(t, p, "%s: %d copied to %d and %d", part.name, from, to, other)
				}
			}
		}
	}
}

// A file with several damaged bytes yields the right values or is refused. The short form has fewer trials.
func TestManyDamagedBytes(t *testing.T) {
	t.Parallel()
	whole, want := manyWritten(t)
	trials := 3000
	if *long {
		trials = 200_000
	}
	seed := rand.Uint64()
	random := rand.New(rand.NewPCG(seed, 0))
	p, refused := slices.Clone(whole), 0
	for range trials {
		var changed []int
		for range 1 + random.IntN(3) {
			off := random.IntN(len(p))
			if random.IntN(2) == 0 {
				off = random.IntN(2 * 100) // in the first line
			}
			other := off ^ pageSize // the same place in the other copy
			changed = append(changed, off, other)
			p[off], p[other] = byte(random.Uint32()), byte(random.Uint32())
		}
		got, err := readCounts(p)
		switch {
		case err == nil && !maps.Equal(got, want):
			t.Fatalf("seed %d: bytes %v changed: %v, want %v or an error", seed, changed, got, want)
		case err == nil:
		case errors.Is(err, ErrDamaged), errors.Is(err, ErrNewer):
			refused++
		default:
			t.Fatalf("seed %d: bytes %v changed: %v, want ErrDamaged", seed, changed, err)
		}
		for _, off := range changed {
			p[off] = whole[off]
		}
	}
	if refused == 0 {
		t.Error("nothing was refused")
	}
}

// Entries and slots of a kind that this version does not know are refused as newer, not misread.
func TestManyNewerKind(t *testing.T) {
	t.Parallel()
	whole, _ := manyWritten(t)
	g := small(1).geometry
	inSlot := slices.Clone(whole)
	s := inSlot[g.table()+3*slotSize:][:slotSize]
	s[12] = 2 // the kind
	putSum(s, 3)
	copy(inSlot[g.table()+pageSize+3*slotSize:], s)
	inRecord := slices.Clone(whole)
	img, err := g.read(bytes.NewReader(whole), int64(len(whole)))
	if err != nil {
		t.Fatal(err)
	}
	last := img.log.last
	r := record{start: last.end(), try: img.log.maxTry + 1, tail: last.tail, pages: last.pages, entries: []byte{3, 0, 0, 0, 2, 1, 1, 'k', 'p'}}
	for _, c := range g.chunks(r.start, r.encode()) {
		copy(inRecord[c.off:], c.data)
	}
	for name, content := range map[string][]byte{"slot": inSlot, "record": inRecord} {
		if got, err := readCounts(content); !errors.Is(err, ErrNewer) {
			t.Errorf("an unknown kind in a %s: %v, %v, want ErrNewer", name, got, err)
		}
	}
}

// A record that is missing between others is noticed, also where each sector is whole.
func TestManyMissingRecord(t *testing.T) {
	t.Parallel()
	whole, _ := manyWritten(t)
	g := small(1).geometry
	img, err := g.read(bytes.NewReader(whole), int64(len(whole)))
	if err != nil || len(img.log.replay) < 2 {
		t.Fatalf("%d records, %v, want at least 2", len(img.log.replay), err)
	}
	filler := record{start: img.log.replay[0].start - g.sectors}
	for _, r := range img.log.replay[:len(img.log.replay)-1] {
		p := slices.Clone(whole)
		filler.start = r.start - g.sectors // what was there one round before
		for _, c := range g.chunks(filler.start, filler.encode()) {
			copy(p[c.off:], c.data)
		}
		mustRefuse(t, p, "without the record at %d", r.start)
	}
	// A part of a record that does not follow the last one, and a slot that is newer than the log.
	last := img.log.last
	p := slices.Clone(whole)
	later := record{start: last.end() + 1, try: img.log.maxTry + 1, tail: last.tail, pages: last.pages, entries: make([]byte, sectorData)}
	for _, c := range g.chunks(later.start+1, later.encode()[sectorSize:]) {
		copy(p[c.off:], c.data)
	}
	mustRefuse(t, p, "with a part of a later record")
	p = slices.Clone(whole)
	s := img.slots[5]
	s.stamp = last.start + 1
	s.put(p[g.table()+5*slotSize:][:slotSize], 5)
	copy(p[g.table()+pageSize+5*slotSize:], p[g.table()+5*slotSize:][:slotSize])
	mustRefuse(t, p, "with a slot that is newer than the log")
}

// Opening repairs what is damaged in one copy: each part of the file has two whole copies again.
func TestManyRepairs(t *testing.T) {
	t.Parallel()
	whole, want := manyWritten(t)
	g := small(1).geometry
	for name, off := range map[string]int64{"first line": 20, "its copy": pageSize + 20, "log": g.offset(3, 0) + 50, "table": g.table() + 15*slotSize} {
		m := newModel()
		damaged := slices.Clone(whole)
		damaged[off] ^= 1
		m.add(filepath.Join("d", FileName), damaged)
		file := m.names[filepath.Join("d", FileName)]
		w, err := openMany(m, "d", small(100), true)
		if err != nil {
			t.Fatalf("%s: OpenMany = %v", name, err)
		}
		if got, _ := contentOf(t, w); !maps.Equal(got, want) || file.disk[off] != whole[off] {
			t.Errorf("%s: after OpenMany the byte is %#x, want %#x, and the counters %v", name, file.disk[off], whole[off], got)
		}
	}
}

// Of two undamaged copies of a slot the newer one counts, in either place. Equally new ones must be equal.
func TestManySlotCopies(t *testing.T) {
	t.Parallel()
	encode := func(s slot) []byte {
		p := make([]byte, slotSize)
		s.put(p, 7)
		return p
	}
	older, newer := slot{name: "a", stamp: 5, version: 3, value: 30}, slot{name: "a", stamp: 6, version: 4, value: 40}
	same := newer
	same.value++
	for _, pair := range [][2]slot{{older, newer}, {newer, older}} {
		var got slot
		if whole, err := got.parse(encode(pair[0]), encode(pair[1]), 7); got != newer || whole || err != nil {
			t.Errorf("of %+v parse = %+v, %t, %v, want the newer one, to be repaired", pair, got, whole, err)
		}
	}
	var got slot
	if _, err := got.parse(encode(newer), encode(same), 7); !errors.Is(err, ErrDamaged) {
		t.Errorf("of two slots that contradict each other parse = %+v, %v, want ErrDamaged", got, err)
	}
}

// A file whose log claims more than the file has is refused, without memory for it.
func TestManyClaims(t *testing.T) {
	t.Parallel()
	whole, _ := manyWritten(t)
	g := small(1).geometry
	img, err := g.read(bytes.NewReader(whole), int64(len(whole)))
	if err != nil {
		t.Fatal(err)
	}
	last := img.log.last
	for name, r := range map[string]record{
		"pages":   {pages: 1 << 27},
		"no page": {},
		"slot":    {pages: last.pages, entries: []byte{0xff, 0xff, 0xff, 0x0f, kindFree, 0, 0}},
		"entry":   {pages: last.pages, entries: []byte{1, 0, 0, 0, kindCounter, 200, 200}},
		"kind":    {pages: last.pages, entries: []byte{1, 0, 0}},
		"default": {pages: last.pages, entries: []byte{0, 0, 0, 0, kindFree, 0, 0}},
	} {
		r.start, r.try, r.tail = last.end(), img.log.maxTry+1, last.tail
		p := slices.Clone(whole)
		for _, c := range g.chunks(r.start, r.encode()) {
			copy(p[c.off:], c.data)
		}
		mustRefuse(t, p, "%s", name)
	}
}
