package hub

import (
	"slices"
	"sync/atomic"
	"time"
)

// What the hub counts for [Stats]. Counting must cost nothing that can be seen beside a write to
// a socket, and no memory for a client: a shard's goroutine counts in plain integers of its own
// and hands them over once a turn. What the clients' goroutines count, once a message at most, are
// atomics of their shard.

// shardCounts is what a shard's goroutine counts.
type shardCounts struct {
	clients int    // how many there are
	behind  int    // of these, those that the last sweep could not bring up to its state
	swept   uint64 // stateSeq of the last sweep

	users, states uint64 // messages sent
	merged        uint64 // values that a client was not sent, because a newer one was
	sweeps        Durations
}

// clientCounts is what the goroutines of a shard's clients count.
type clientCounts struct {
	received atomic.Uint64 // messages
	errors   atomic.Uint64 // messages sent
	refused  [len(refusals)]atomic.Uint64
}

func (t *clientCounts) refuse(r *refusal) { t.refused[r.index].Add(1) }

// Counts is what has happened in a hub since its start.
type Counts struct {
	Joined uint64 // clients

	// Messages. SentUsers and SentStates count those that a client was written, or that are
	// kept for it while it is blocked; SentErrors leaves out those that a blocked client is
	// still owed.
	Received                          uint64
	SentUsers, SentStates, SentErrors uint64

	// Merged counts the values that a client was not sent because a newer one was, once for each
	// client. What a client did not see since it had left, or not come yet, is not among them.
	Merged uint64

	// Refused is how many messages were refused, actions or not, by the code that the sender was
	// told. Actions has the actions by outcome: that code, or "counted". Undecided is how many
	// the store had not answered in time; when it has, Actions has them, too.
	Refused   map[string]uint64
	Actions   map[string]uint64
	Undecided uint64

	Sweeps Durations // one is over the clients of one shard

	// Applies are the calls of [Store.Apply], and ApplyErrors those of them that failed. Outages
	// is how often the store became unusable, be it that a call failed, that one had no
	// answer for too long, or that a shared store said so.
	Applies     Durations
	ApplyErrors uint64
	Outages     uint64
}

// Counts returns what has happened until now. A sweep that is on is not among it.
func (h *Hub) Counts() Counts {
	c := Counts{Refused: make(map[string]uint64), Actions: make(map[string]uint64)}
	h.mu.Lock()
	c.Joined = h.joined
	c.Actions["counted"] = h.counted
	c.Applies, c.ApplyErrors, c.Outages = h.applies, h.applyErrors, h.outages
	h.mu.Unlock()
	for _, s := range h.shards {
		t := s.lastTally()
		c.SentUsers += t.users
		c.SentStates += t.states
		c.Merged += t.merged
		c.Sweeps.add(&t.sweeps)
		c.Received += s.counts.received.Load()
		c.SentErrors += s.counts.errors.Load()
		for i, r := range refusals {
			n := s.counts.refused[i].Load()
			if r == undecided {
				c.Undecided += n
				continue
			}
			c.Refused[r.code] += n
			if !r.notAnAction() {
				c.Actions[r.code] += n
			}
		}
	}
	return c
}

// refused returns how many messages were refused.
func (h *Hub) refused() (n uint64) {
	for _, s := range h.shards {
		for i, r := range refusals {
			if r != undecided {
				n += s.counts.refused[i].Load()
			}
		}
	}
	return n
}

// behind returns how many clients have not been sent the value whose stateSeq is given. All
// clients of a shard count until its sweep is over.
func (h *Hub) behind(stateSeq uint64) (n int) {
	for _, s := range h.shards {
		if t := s.lastTally(); t.swept < stateSeq {
			n += t.clients
		} else {
			n += t.behind
		}
	}
	return n
}

// DurationBounds are the upper bounds of what [Durations] sorts durations into: from a sweep over
// a handful of clients, or a fast disk's fsync, to a store that has long been given up on.
// storeTimeout is one of them.
var DurationBounds = [...]time.Duration{
	25 * time.Microsecond, 50 * time.Microsecond, 100 * time.Microsecond, 250 * time.Microsecond, 500 * time.Microsecond,
	time.Millisecond, 2500 * time.Microsecond, 5 * time.Millisecond, 10 * time.Millisecond, 25 * time.Millisecond, 50 * time.Millisecond,
	100 * time.Millisecond, 250 * time.Millisecond, 500 * time.Millisecond, time.Second, storeTimeout, 2500 * time.Millisecond, 10 * time.Second,
}

// Durations says how long something has taken, each time that it was done.
type Durations struct {
	Counts [len(DurationBounds) + 1]uint64 // Counts[i] took at most DurationBounds[i], and more than the bound before
	Sum    time.Duration
}

// Count returns how often it was done.
func (d *Durations) Count() uint64 {
	n := uint64(0)
	for _, c := range d.Counts {
		n += c
	}
	return n
}

func (d *Durations) observe(took time.Duration) {
	i, _ := slices.BinarySearch(DurationBounds[:], took)
	d.Counts[i]++
	d.Sum += took
}

func (d *Durations) add(e *Durations) {
	for i := range d.Counts {
		d.Counts[i] += e.Counts[i]
	}
	d.Sum += e.Sum
}
