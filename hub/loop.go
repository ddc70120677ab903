package hub

import (
	"context"
	"errors"
	"fmt"
	"math"
	"sync/atomic"
	"time"
)

// actionRun is an action from a client, or several of the same in a row.
type actionRun struct {
	from  *client
	kind  action
	count int
}

// maxBatch bounds how many actions one commit carries. When that many are waiting for
// the store, those who send more have to wait, too.
const maxBatch = 4096

// batch is a series of actions that the store gets as one change.
type batch struct {
	delta      Delta       // what the actions come to
	actions    []action    // those that count, in order
	runs       []actionRun // the same
	outOfRange []actionRun // those that would leave the range

	// Who sets it tells the senders what became of the batch: commitLoop when the store
	// answers, or loop when it does not for too long.
	claimed atomic.Bool
}

func (b *batch) len() int { return len(b.actions) + len(b.outOfRange) }

func (b *batch) reset() {
	clear(b.runs) // or clients that left would be kept alive
	clear(b.outOfRange)
	*b = batch{actions: b.actions[:0], runs: b.runs[:0], outOfRange: b.outOfRange[:0]}
}

// result is what became of a batch.
type result struct {
	given *batch
	snap  Snapshot
	err   error
}

// storeTimeout is how long the store may work on a commit before actions are refused. A
// slow disk under load takes a fraction of it, and a person does not wait much longer.
const storeTimeout = 1500 * time.Millisecond

// errNoAnswer is why the hub is not ready while a commit takes longer than storeTimeout.
var errNoAnswer = fmt.Errorf("no answer for more than %v", storeTimeout)

// loop owns the value: it alone turns actions into batches and publishes what the
// store made of them. snap is what the store holds.
func (h *Hub) loop(snap Snapshot) {
	defer h.running.Done()
	defer close(h.commits)

	var (
		waiting  = new(batch) // what the next commit will carry
		spare    = new(batch)
		inFlight *batch    // what the store is working on
		commitAt time.Time // when the next commit may begin; for shared stores alone
		news     <-chan News

		announceAt time.Time // when users may be announced next
		announce   = newStoppedTimer()
		retry      = newStoppedTimer()
		timeout    = newStoppedTimer() // runs while a batch is in flight
		pace       = newStoppedTimer() // runs until commitAt, if that is waited for
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
			if h.storeOverdue.Load() { // they were on their way when it turned out
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
			// What waits has not been given to the store, and so does not count. The store may
			// have done what it was given, or do it yet.
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
			// Nobody may be sending actions, since the store is away. See whether it is back.
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
			// The clients have gone. What they sent counts all the same.
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

func newStoppedTimer() *time.Timer {
	t := time.NewTimer(0)
	t.Stop()
	return t
}

// untilCommit returns how long a commit has to wait that may begin at commitAt.
func (h *Hub) untilCommit(commitAt time.Time) time.Duration {
	if h.shared == nil {
		return 0
	}
	return time.Until(commitAt)
}

// takeActions puts those actions behind b that have arrived already, up to limit.
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

// storeRetry is how long after a failed commit the store is tried again, actions or not.
const storeRetry = time.Second

// add puts r behind the actions that are waiting, on top of value and inFlight.
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

// commitLoop gives batches to the store, one at a time, and tells the senders of those
// actions that did not count.
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

// tell tells the senders of those actions that did not count, when err is what the store
// has made of b.
func (b *batch) tell(err error) {
	tellAll(b.outOfRange, refusedRange)
	if errors.Is(err, ErrRange) {
		tellAll(b.runs, refusedRange)
	} else if err != nil {
		tellAll(b.runs, refusedStore)
	}
}

// refuse empties b of actions that the store was never given, and tells their senders.
func (b *batch) refuse() {
	tellAll(b.outOfRange, refusedRange)
	tellAll(b.runs, refusedStore)
	b.reset()
}

// tellAll tells the senders of actions why, once for each action.
func tellAll(runs []actionRun, why *refusal) {
	for _, r := range runs {
		for range r.count {
			r.from.refuse(why)
		}
	}
}
