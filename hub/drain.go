package hub

import (
	"context"
	"math/rand/v2"
	"time"
)

const (
	// drainPace is the time for each client over which a shutdown spreads its close frames, if
	// its context leaves enough time. Each client reconnects to some server, and the TLS handshake costs that server 0.6 ms of processor
	// time. At this pace a processor has two thirds of its time left for other clients.
	drainPace = 2 * time.Millisecond

	// drainSlice is the time between two slices of clients that a shard closes, plus or minus up
	// to half of it at random. So neither the shards nor several servers that stop together
	// close their slices at the same moments. If all clients fit one slice, they are closed at once.
	drainSlice = 50 * time.Millisecond
)

// A drainPlan says how a shutdown closes the clients.
type drainPlan struct {
	spread time.Duration // from the first close frame to the last; 0 means all at once
	answer time.Duration // how long each client has to answer
}

// planDrain returns the plan to close a number of clients before ctx ends. Close frames get at most
// seven tenths of the time, and the answer to the last one gets at most two tenths. The rest is
// for the store.
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

// A shardDrain is the progress of a shard that closes its clients. shard.run owns it.
type shardDrain struct {
	began time.Time
	total int // the number of clients when it began

	// All clients that have not been closed are in clients[:open]. Closed clients can be there,
	// too, since the last client takes the place of one that leaves.
	open int

	next *time.Timer // fires when the next slice is due
}

// beginDrain starts to close the clients. Clients that join later are closed at once.
func (s *shard) beginDrain() {
	s.draining = true
	s.drain.began, s.drain.total, s.drain.open = time.Now(), len(s.clients), len(s.clients)
	s.drainSlice()
}

// drainSlice closes the clients whose turn has come, beginning with the last one, and sets the timer
// for the next slice.
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
