package hub

import (
	"context"
	"errors"
	"fmt"
	"math"
	"sync/atomic"
	"time"
)

// actionRun is one or more equal actions in a row from one client.
type actionRun struct {
	from  *client
	kind  action
	count int
}

// maxBatch bounds the number of actions in one commit. While that many are waiting for the
// store, loop takes no more, and clients that send more wait in sendTo.
const maxBatch = 4096

// batch is a series of actions that the store applies as one change. loop owns it. While a
// batch is in flight, loop and commitLoop only read it.
type batch struct {
	delta      Delta       // the sum of actions
	actions    []action    // the actions that stay within the range, in order
	runs       []actionRun // the same actions, with their senders
	outOfRange []actionRun // actions that would leave the range

	// The goroutine that sets claimed tells the senders the outcome of the batch: commitLoop
	// when the store answers, or loop when the answer takes longer than storeTimeout.
	// Safe from any goroutine.
	claimed atomic.Bool
}

// len returns the number of actions, those that are out of range included.
func (b *batch) len() int { return len(b.actions) + len(b.outOfRange) }

// reset empties b and keeps its memory for reuse.
func (b *batch) reset() {
	clear(b.runs) // otherwise they would keep clients that left in memory
	clear(b.outOfRange)
	*b = batch{actions: b.actions[:0], runs: b.runs[:0], outOfRange: b.outOfRange[:0]}
}

// result is the store's answer to a batch.
type result struct {
	given *batch // the batch that the store was given
	snap  Snapshot
	err   error
}

// storeTimeout is how long a commit may take before actions are refused. A slow disk under load
// takes a fraction of it, and a person does not wait much longer.
const storeTimeout = 1500 * time.Millisecond

// errNoAnswer is why the hub is not ready while a commit takes longer than storeTimeout.
var errNoAnswer = fmt.Errorf("no answer for more than %v", storeTimeout)

// loop owns the value. No other goroutine makes batches of actions or publishes states. snap is
// the snapshot that the store holds at the start.
func (h *Hub) loop(snap Snapshot) {
	defer h.running.Done()
	defer close(h.commits)

	var (
		waiting  = new(batch) // the next batch
		spare    = new(batch) // for reuse; nil while a batch is in flight
		inFlight *batch       // the batch that the store is working on, or nil
		commitAt time.Time    // when the next commit may begin; only for shared stores
		news     <-chan News  // nil if the store is not shared

		announceAt time.Time           // when users may be announced next
		announce   = newStoppedTimer() // runs until announceAt, if an announcement waits
		retry      = newStoppedTimer() // runs after a failed commit
		timeout    = newStoppedTimer() // runs while a batch is in flight
		pace       = newStoppedTimer() // runs until commitAt, if a commit waits
	)
	if h.shared != nil {
		news = h.shared.News()
	}
	commit := func(b *batch) {
		inFlight = b
		timeout.Reset(storeTimeout)
		if h.shared != nil {
			commitAt = time.Now().Add(h.shared.Pace())
		}
		h.commits <- b
	}

	for {
		if inFlight == nil && waiting.len() > 0 {
			if wait := h.untilCommit(commitAt); wait > 0 {
				pace.Reset(wait)
			} else {
				b := waiting
				waiting, spare = spare, nil
				commit(b)
			}
		}
		actions := h.actions
		if waiting.len() >= maxBatch {
			actions = nil
		}
		select {
		case r := <-actions:
			waiting.add(r, snap.Value, inFlight)
			h.takeActions(waiting, maxBatch, snap.Value, inFlight)
			if h.storeOverdue.Load() { // the actions were in the channel when it became overdue
				waiting.refuse()
			}

		case r := <-h.committed:
			timeout.Stop()
			if h.storeOverdue.Swap(false) {
				r.given.tell(r.err)
			}
			switch {
			case r.err != nil:
				retry.Reset(storeRetry)
			case h.shared == nil || r.snap.newerThan(snap):
				snap = r.snap
				h.publish(snap, r.given.actions)
				announceAt = h.nextAnnouncement()
			}
			inFlight, spare = nil, r.given
			spare.reset()

		case <-timeout.C:
			// The store has not been given the waiting actions, so they can be refused. It may
			// have applied the batch in flight, or may still do so.
			if inFlight.claimed.CompareAndSwap(false, true) {
				h.storeOverdue.Store(true)
				h.noteNoAnswer()
				tellAll(inFlight.runs, undecided)
				waiting.refuse()
			}

		case <-pace.C:

		case n := <-news:
			h.noteNews(n.Err)
			if n.Snapshot.newerThan(snap) {
				snap = n.Snapshot
				h.publish(snap, nil)
				announceAt = h.nextAnnouncement()
			}
			h.countOthers(n)

		case <-retry.C:
			// Test the store with an empty batch, since clients may send no action meanwhile. A
			// batch that is in flight tests the store, too.
			if inFlight == nil {
				b := spare
				spare = nil
				commit(b)
			}

		case <-h.presence:
			announce.Reset(time.Until(announceAt))
			if h.shared != nil {
				h.shared.Announce(h.Stats().Clients)
			}

		case <-announce.C:
			h.announceUsers()
			announceAt = h.nextAnnouncement()

		case <-h.done:
			// All clients have left. The actions that they sent still count.
			h.takeActions(waiting, math.MaxInt, snap.Value, inFlight)
			if inFlight != nil {
				<-h.committed
			}
			if waiting.len() > 0 {
				h.commits <- waiting
				<-h.committed
			}
			return
		}
	}
}

// newStoppedTimer returns a timer that does not run until Reset.
func newStoppedTimer() *time.Timer {
	t := time.NewTimer(0)
	t.Stop()
	return t
}

// untilCommit returns how long a commit has to wait until commitAt. It is 0 or less if the commit
// may begin now, which is always so for a store that is not shared.
func (h *Hub) untilCommit(commitAt time.Time) time.Duration {
	if h.shared == nil {
		return 0
	}
	return time.Until(commitAt)
}

// takeActions adds the actions that have already arrived to b, until b has limit actions. value and
// inFlight are those of [batch.add].
func (h *Hub) takeActions(b *batch, limit int, value Value, inFlight *batch) {
	for b.len() < limit {
		select {
		case r := <-h.actions:
			b.add(r, value, inFlight)
		default:
			return
		}
	}
}

// storeRetry is how long after a failed commit loop tries the store again.
const storeRetry = time.Second

// add appends r to b. value is the published value, and inFlight the batch that the store is
// working on, or nil. The actions of r that would leave the range go to outOfRange: b is
// applied after inFlight, and inFlight to value.
func (b *batch) add(r actionRun, value Value, inFlight *batch) {
	if inFlight != nil {
		value = sum(value, inFlight.delta)
	}
	refused := r
	r.count = room(sum(value, b.delta), r.kind, r.count)
	if refused.count -= r.count; refused.count > 0 {
		b.outOfRange = append(b.outOfRange, refused)
	}
	if r.count == 0 {
		return
	}
	b.runs = append(b.runs, r)
	b.delta = after(b.delta, r.kind, r.count)
	for range r.count {
		b.actions = append(b.actions, r.kind)
	}
}

// commitLoop gives batches to the store, one at a time, and refuses the actions that do not
// count. It ends when loop closes commits.
func (h *Hub) commitLoop(ctx context.Context) {
	defer h.running.Done()
	for b := range h.commits {
		began := time.Now()
		snap, err := h.store.Apply(ctx, b.delta)
		h.noteApply(len(b.actions), time.Since(began), err)
		if b.claimed.CompareAndSwap(false, true) {
			b.tell(err)
		}
		h.committed <- result{b, snap, err}
	}
}

// tell refuses the actions of b that do not count. err is the store's answer.
func (b *batch) tell(err error) {
	tellAll(b.outOfRange, refusedRange)
	if errors.Is(err, ErrRange) {
		tellAll(b.runs, refusedRange)
	} else if err != nil {
		tellAll(b.runs, refusedStore)
	}
}

// refuse refuses all actions of b, which the store was not given, and empties b.
func (b *batch) refuse() {
	tellAll(b.outOfRange, refusedRange)
	tellAll(b.runs, refusedStore)
	b.reset()
}

// tellAll sends the refusal why to the senders of runs, once for each action.
func tellAll(runs []actionRun, why *refusal) {
	for _, r := range runs {
		for range r.count {
			r.from.refuse(why)
		}
	}
}
