package hub

import (
	"context"
	"math/rand/v2"
	"time"
)

const (
	// drainPace is the least time between two close frames of a hub that is shut down.
	// Whoever is told to come back costs the server that it comes back to a TLS handshake,
	// 0.6 ms of a processor, so that at this pace the others have two thirds of one left.
	drainPace = 2 * time.Millisecond

	// drainSlice is the time between two slices, give or take half of it at random, so that
	// neither shards nor several servers that are stopped together keep step. Fewer clients
	// than fit one are closed at once.
	drainSlice = 50 * time.Millisecond
)

// A drainPlan is how the clients of a hub that is shut down are closed.
type drainPlan struct {
	spread time.Duration // from the first close frame to the last; 0 is all at once
	answer time.Duration // what each client has for its answer
}

// planDrain returns how to close a number of clients before ctx ends: seven tenths of the
// time are for the close frames, if the pace needs as much, and two tenths for the answer to
// the last of them. What is left is for the store.
func planDrain(ctx context.Context, clients int) drainPlan {
	d := drainPlan{spread: time.Duration(clients) * drainPace, answer: closeTimeout}
	if deadline, ok := ctx.Deadline(); ok {
		left := max(time.Until(deadline), 0)
		d.spread = min(d.spread, left*7/10)
		d.answer = min(d.answer, left*2/10)
	}
	if d.spread <= drainSlice {
		d.spread = 0
	}
	return d
}

// A shardDrain is how far a shard has come with closing its clients. Its zero value is a
// shard that has not begun.
type shardDrain struct {
	began time.Time
	total int // how many clients there were then

	// Those that have not been closed are all in clients[:open], where some may be that have:
	// a client that leaves gives its place to the last one.
	open int

	next *time.Timer // the next slice
}

// beginDrain starts closing the clients. Those that join from here on are closed at once.
func (s *shard) beginDrain() {
	s.draining = true
	s.drain.began, s.drain.total, s.drain.open = time.Now(), len(s.clients), len(s.clients)
	s.drainSlice()
}

// drainSlice closes those whose turn has come, from the last one on, and sets the timer for
// the next slice.
func (s *shard) drainSlice() {
	d, spread := &s.drain, s.hub.drain.spread
	left := max(spread-time.Since(d.began), 0)
	keep := 0
	if left > 0 {
		keep = int(int64(d.total) * int64(left) / int64(spread))
	}
	for d.open = min(d.open, len(s.clients)); d.open > keep; d.open-- {
		if c := s.clients[d.open-1]; !c.closing {
			s.closeClient(c)
		}
	}
	if d.open > 0 {
		d.next.Reset(min(left, drainSlice/2+rand.N(drainSlice)))
	}
}
