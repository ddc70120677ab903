package hub

import (
	"iter"
	"slices"
	"sync/atomic"
	"time"
)

// What the hub counts for [Hub.Stats] and [Hub.Counts]. Counting must be cheap beside a write to a
// socket, and must cost no memory for a client. So shard.run counts in plain integers, and copies
// them for other goroutines once a turn. The clients' goroutines count in atomic integers of
// their shard, at most once for each message.

// shardCounts is what shard.run counts. shard.run owns shard.tally; the copy for others is guarded by shard.mu.
type shardCounts struct {
	clients int    // clients of the shard
	behind  int    // clients that have not been sent the state of the last sweep
	swept   uint64 // stateSeq of the last sweep

	users, states uint64 // messages sent, of these types
	merged        uint64 // values that a client was not sent, because it was sent a newer one
	sweeps        Durations
}

// clientCounts is what the goroutines of a shard's clients count, or all calls of Act. It is safe from any goroutine.
type clientCounts struct {
	received atomic.Uint64 // messages
	errors   atomic.Uint64 // error messages sent
	refused  [len(refusals)]atomic.Uint64
}

// refuse counts a message that was refused with r.
func (t *clientCounts) refuse(r *refusal) { t.refused[r.index].Add(1) }

// Counts says how often things have happened in a hub since its start.
type Counts struct {
	Joined uint64 // clients that joined

	// Messages received and sent, those of [Hub.Act] included. SentUsers and SentStates include messages that are kept for a
	// blocked client. SentErrors does not include refusals that are pending.
	Received                          uint64
	SentUsers, SentStates, SentErrors uint64

	// Merged counts values that a client was not sent because it was sent a newer one, once for
	// each client. Values from before a client joined, or after it left, do not count.
	Merged uint64

	// Refused has the number of refused messages by the code that the sender was told. Actions
	// has the number of actions by outcome: one of these codes, or "counted". Undecided is the
	// number of actions that the store did not answer within 1.5 seconds; once it has answered,
	// Actions includes them.
	Refused   map[string]uint64
	Actions   map[string]uint64
	Undecided uint64

	Sweeps Durations // a sweep is over the clients of one shard

	// Applies has the calls of [Store.Apply]; ApplyErrors is how many of them failed. Outages is
	// how often the store became unusable: a call failed or took too long, or a shared
	// store reported an error.
	Applies     Durations
	ApplyErrors uint64
	Outages     uint64
}

// Counts returns the counts until now, without those of sweeps that are running.
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
	}
	for t := range h.clientCounts() {
		c.Received += t.received.Load()
		c.SentErrors += t.errors.Load()
		for i, r := range refusals {
			n := t.refused[i].Load()
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

// refused returns the number of refused messages.
func (h *Hub) refused() (n uint64) {
	for t := range h.clientCounts() {
		for i, r := range refusals {
			if r != undecided {
				n += t.refused[i].Load()
			}
		}
	}
	return n
}

// clientCounts returns the counts of all shards' clients, and those of Act.
func (h *Hub) clientCounts() iter.Seq[*clientCounts] {
	return func(yield func(*clientCounts) bool) {
		for _, s := range h.shards {
			if !yield(&s.counts) {
				return
			}
		}
		yield(&h.acts)
	}
}

// behind returns how many clients have not been sent the value with the given stateSeq. Until a shard
// has finished its sweep, all of its clients count.
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

// DurationBounds are the upper bounds of the buckets of [Durations]. The shortest fit a sweep over few
// clients or the fsync of a fast disk. The longest are for a store that does not answer. The 1.5
// seconds after which actions are refused are one of the bounds.
var DurationBounds = [...]time.Duration{
	25 * time.Microsecond, 50 * time.Microsecond, 100 * time.Microsecond, 250 * time.Microsecond, 500 * time.Microsecond,
	time.Millisecond, 2500 * time.Microsecond, 5 * time.Millisecond, 10 * time.Millisecond, 25 * time.Millisecond, 50 * time.Millisecond,
	100 * time.Millisecond, 250 * time.Millisecond, 500 * time.Millisecond, time.Second, storeTimeout, 2500 * time.Millisecond, 10 * time.Second,
}

// Durations is a histogram of the durations of an operation.
type Durations struct {
	// Counts[i] is the number of operations that took at most DurationBounds[i], and more than
	// the bound before. The last element counts those longer than all bounds.
	Counts [len(DurationBounds) + 1]uint64
	Sum    time.Duration // of all durations
}

// Count returns the number of operations.
func (d *Durations) Count() uint64 {
	n := uint64(0)
	for _, c := range d.Counts {
		n += c
	}
	return n
}

// observe adds an operation that took the given time.
func (d *Durations) observe(took time.Duration) {
	i, _ := slices.BinarySearch(DurationBounds[:], took)
	d.Counts[i]++
	d.Sum += took
}

// add adds the operations of e.
func (d *Durations) add(e *Durations) {
	for i := range d.Counts {
		d.Counts[i] += e.Counts[i]
	}
	d.Sum += e.Sum
}
