package hub

import (
	"context"
	"sync"
	"time"
)

const (
	// historyLength is how far back the history of a counter goes, in seconds. It has at most one point for each of them.
	historyLength = 300

	// maxPoints bounds the points of all histories together: 32 bytes each, so 8 MB. They are enough for 870 counters that
	// change every second. A power of two. Over it the oldest points of all are dropped, and histories become shorter than historyLength.
	maxPoints = 1 << 18
)

// A Point is a value in the history of a counter.
type Point struct {
	Age   int   // in seconds; 0 or negative
	Value Value // at the end of that second, or now if Age is 0
}

// History returns how the value of a counter has changed in the last 300 seconds: a point for each second in which it has,
// the oldest first. before is the value before the first point, or the present value if there is no point. ok
// is false if the value is not known. ctx bounds the wait for a shared store. Safe from any goroutine.
//
// A history is that of this hub. It begins when the hub starts, and has the changes by other hubs only while the counter
// is in use here.
func (h *Hub) History(ctx context.Context, name string) (before Value, points []Point, ok bool) {
	before, points = h.histories.read(name)
	value, _, ok := h.State(ctx, name)
	if len(points) == 0 {
		before = value
	}
	return before, points, ok
}

// histories has the history of each counter that has changed in the last 300 seconds, whether it is in use or not. Other
// counters cost nothing. All methods are safe from any goroutine, and take constant
// time on average, except read.
type histories struct {
	began time.Time // when seconds are counted from; immutable

	mu sync.Mutex
	// Guarded by mu.
	of map[string]*history // by the counter's name; each has at least one point
	// The points of all histories are numbered in the order of their seconds. ring has those from oldest to next-1, each at
	// its number modulo the length of ring, which is 0 or a power of two.
	ring         []point
	oldest, next uint64
}

// history is where the points of one counter are.
type history struct {
	name        string
	before      Value // before first
	first, last uint64
}

type point struct {
	of     *history
	value  Value
	next   uint64 // the next point of the same history, unless this is its last one
	second uint32
}

func newHistories() *histories {
	return &histories{began: time.Now(), of: make(map[string]*history)}
}

// second returns the number of the present second.
func (h *histories) second() uint32 { return uint32(time.Since(h.began) / time.Second) }

// add notes that the counter called name has changed from one value to another. It does not allocate for a counter
// that changes all the time.
func (h *histories) add(name string, from, to Value) {
	h.mu.Lock()
	defer h.mu.Unlock()
	now := h.second()
	h.dropOld(now)
	c := h.of[name]
	if c != nil {
		if last := h.at(c.last); last.second == now {
			last.value = to
			return
		}
	}
	if h.next-h.oldest == uint64(len(h.ring)) {
		if len(h.ring) < maxPoints {
			h.resize(max(2*len(h.ring), minRing))
		} else if h.drop(); h.of[name] == nil { // that was its only point
			c = nil
		}
	}
	if c == nil {
		c = &history{name: name, before: from, first: h.next}
		h.of[name] = c
	} else {
		h.at(c.last).next = h.next
	}
	c.last = h.next
	*h.at(h.next) = point{of: c, value: to, second: now}
	h.next++
}

// read returns a copy of the history of a counter.
func (h *histories) read(name string) (before Value, points []Point) {
	h.mu.Lock()
	defer h.mu.Unlock()
	now := h.second()
	h.dropOld(now)
	c := h.of[name]
	if c == nil {
		return before, nil
	}
	for n := c.first; ; n = h.at(n).next {
		p := h.at(n)
		points = append(points, Point{int(p.second) - int(now), p.value})
		if n == c.last {
			return c.before, points
		}
	}
}

// trim drops what is too old, so that an idle hub keeps nothing.
func (h *histories) trim() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.dropOld(h.second())
}

func (h *histories) at(n uint64) *point { return &h.ring[n&uint64(len(h.ring)-1)] }

// dropOld drops the points that are historyLength seconds old at the second now.
func (h *histories) dropOld(now uint32) {
	for h.oldest < h.next && now-h.at(h.oldest).second >= historyLength {
		h.drop()
	}
	// A quarter, not a half: otherwise a few points more and less would resize it each time.
	if n := int(h.next - h.oldest); n == 0 {
		h.ring = nil
	} else if n <= len(h.ring)/4 && len(h.ring) > minRing {
		h.resize(len(h.ring) / 2)
	}
}

// drop drops the oldest point, which exists.
func (h *histories) drop() {
	p := h.at(h.oldest)
	c := p.of
	if c.first == c.last {
		delete(h.of, c.name)
	} else {
		c.before, c.first = p.value, p.next
	}
	*p = point{}
	h.oldest++
}

// minRing is the least number of points that there is room for, unless there is none.
const minRing = 64

// resize makes ring n points long, which is a power of two and enough.
func (h *histories) resize(n int) {
	ring := make([]point, n)
	for i := h.oldest; i < h.next; i++ {
		ring[i&uint64(n-1)] = *h.at(i)
	}
	h.ring = ring
}
