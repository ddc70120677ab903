package hub

import (
	"container/heap"
	"context"
	"errors"
	"fmt"
	"math"
	"sync/atomic"
	"time"
)

// actionRun is one or more equal actions in a row from one sender on one counter.
type actionRun struct {
	from  sender
	of    *counter
	kind  action
	count int
}

// A sender is told which of its actions do not count.
type sender interface {
	// refuse is called once for each action. Safe from any goroutine except shard.run.
	refuse(why *refusal)

	// counted is called after the store has made the actions of one or more runs safe. value is the counter's then.
	counted(value Value)
}

// maxBatch bounds the number of actions in one commit. While that many are waiting for the
// store, loop takes no more, and clients that send more wait in sendTo.
const maxBatch = 4096

// batch is a series of actions on one counter that the store applies as one change. loop owns it. While a
// batch is in flight, loop and commitLoop only read it.
type batch struct {
	of         *counter
	order      *order      // what comes before the actions; nil if nothing does
	delta      Delta       // the sum of actions
	actions    []action    // the actions that stay within the range, in order
	runs       []actionRun // the same actions, with their senders
	outOfRange []actionRun // actions that would leave the range
}

// reset empties b and keeps its memory for reuse.
func (b *batch) reset() {
	clear(b.runs) // otherwise they would keep clients that left in memory
	clear(b.outOfRange)
	*b = batch{actions: b.actions[:0], runs: b.runs[:0], outOfRange: b.outOfRange[:0]}
}

// A commit is what the store makes safe at once: one batch for each of some counters. loop owns it, and commitLoop while it is
// in flight.
type commit struct {
	batches []*batch
	changes []Change // one for each batch, with its outcome

	// The goroutine that sets claimed tells the senders the outcome: commitLoop
	// when the store answers, or loop when the answer takes longer than storeTimeout.
	// Safe from any goroutine.
	claimed atomic.Bool
}

// storeTimeout is how long a commit may take before actions are refused. A slow disk under load
// takes a fraction of it, and a person does not wait much longer.
const storeTimeout = 1500 * time.Millisecond

// errNoAnswer is why the hub is not ready while a commit takes longer than storeTimeout.
var errNoAnswer = fmt.Errorf("no answer for more than %v", storeTimeout)

// loop owns the values. No other goroutine makes batches of actions or publishes states.
func (h *Hub) loop() {
	defer h.running.Done()
	defer close(h.commits)

	var (
		pending  pendingActions // what waits for the next commit
		inFlight *commit        // what the store is working on, or nil
		spare    = new(commit)  // for reuse; nil while a commit is in flight
		commitAt time.Time      // when the next commit may begin; only for shared stores
		news     <-chan News    // nil if the store is not shared

		changed       []*counter          // for takeChanged
		announcements announcementQueue   // counters whose number of users is to be announced
		announce      = newStoppedTimer() // runs until the first announcement
		retry         = newStoppedTimer() // runs after a failed commit
		timeout       = newStoppedTimer() // runs while a commit is in flight
		pace          = newStoppedTimer() // runs until commitAt, if a commit waits
	)
	if h.shared != nil {
		news = h.shared.News()
	}
	begin := func() {
		inFlight, spare = spare, nil
		pending.moveTo(inFlight)
		if len(inFlight.batches) == 0 { // a test of the store
			inFlight.batches = append(inFlight.batches, pending.newBatch(h.standard))
		}
		for _, b := range inFlight.batches {
			b.of.inFlight = b
		}
		timeout.Reset(storeTimeout)
		if h.shared != nil {
			commitAt = time.Now().Add(h.shared.Pace(len(inFlight.batches)))
		}
		h.commits <- inFlight
	}

	for {
		if inFlight == nil && pending.count > 0 {
			if wait := h.untilCommit(commitAt); wait > 0 {
				pace.Reset(wait)
			} else {
				begin()
			}
		}
		actions := h.actions
		if pending.count >= maxBatch {
			actions = nil
		}
		select {
		case o := <-h.orders:
			if h.storeOverdue.Load() {
				o.answer(Snapshot{}, errNoAnswer)
			} else {
				pending.order(o)
			}

		case r := <-actions:
			pending.add(r)
			h.takeActions(&pending, maxBatch)
			if h.storeOverdue.Load() { // the actions were in the channel when it became overdue
				h.refuseAll(&pending)
			}

		case done := <-h.committed:
			timeout.Stop()
			overdue := h.storeOverdue.Swap(false)
			for i, b := range done.batches {
				outcome := &done.changes[i]
				if overdue {
					b.tell(outcome)
				}
				b.of.inFlight = nil
				switch {
				case outcome.Err != nil && !errors.Is(outcome.Err, ErrRange) && !errors.Is(outcome.Err, ErrFull):
					retry.Reset(storeRetry)
				case outcome.Err != nil:
				case h.shared == nil || outcome.Snapshot.newerThan(b.of.snap):
					h.noteMade(b.of, outcome.Snapshot)
					b.of.snap = outcome.Snapshot
					h.publish(b.of, outcome.Snapshot, b.actions)
				}
				h.settle(b.of)
			}
			inFlight, spare = nil, done
			pending.reuse(spare)

		case <-timeout.C:
			// The store has not been given the waiting actions, so they can be refused. It may
			// have applied the commit in flight, or may still do so.
			if inFlight.claimed.CompareAndSwap(false, true) {
				h.storeOverdue.Store(true)
				h.noteNoAnswer()
				for _, b := range inFlight.batches {
					tellAll(b.runs, undecided)
					if b.order != nil {
						b.order.answer(Snapshot{}, errNoAnswer)
					}
				}
				h.refuseAll(&pending)
			}

		case <-pace.C:

		case n := <-news:
			h.noteNews(n.Err)
			for i := range n.Counters {
				h.hear(&n.Counters[i])
			}
			h.noteHubs(n.Hubs)

		case <-retry.C:
			// Test the store with an empty batch, since clients may send no action meanwhile. A
			// commit that is in flight tests the store, too.
			if inFlight == nil {
				begin()
			}

		case <-h.presence:
			changed = h.takeChanged(changed)
			for _, c := range changed {
				announcements.add(c)
				h.announceOurs(c)
			}
			h.forget(changed, &pending)
			clear(changed)
			if h.storeOverdue.Load() { // as for actions above
				h.refuseAll(&pending)
			}
			if len(announcements) > 0 {
				announce.Reset(announcements.wait())
			}
		case <-announce.C:
			for _, c := range announcements.due() {
				h.announceUsers(c)
			}
			if len(announcements) > 0 {
				announce.Reset(announcements.wait())
			}

		case <-h.done:
			// All clients have left. The actions that they sent still count.
			h.takeActions(&pending, math.MaxInt)
			if inFlight != nil {
				pending.reuse(<-h.committed)
			}
			if pending.count > 0 {
				spare = new(commit)
				begin()
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

// takeActions adds the actions that have already arrived to p, until p has limit actions. It reports whether there were no more.
func (h *Hub) takeActions(p *pendingActions, limit int) bool {
	for p.count < limit {
		select {
		case r := <-h.actions:
			p.add(r)
		default:
			return true
		}
	}
	return false
}

// settle is called when actions on c have been committed or refused: c may be missing again, or idle.
func (h *Hub) settle(c *counter) {
	if c == h.standard {
		return
	}
	if c.waiting == nil {
		c.missing.Store(c.snap.Version == 0)
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if c.holds == 0 {
		h.noteLocked(c)
	}
}

// storeRetry is how long after a failed commit loop tries the store again.
const storeRetry = time.Second

// pendingActions are the actions that wait for the next commit: one batch for each counter that has some. loop owns them.
type pendingActions struct {
	batches []*batch
	count   int // actions in batches, those that are out of range included
	free    []*batch
}

// newBatch returns an empty batch for c.
func (p *pendingActions) newBatch(c *counter) *batch {
	if n := len(p.free); n > 0 {
		b := p.free[n-1]
		p.free[n-1] = nil
		p.free = p.free[:n-1]
		b.of = c
		return b
	}
	return &batch{of: c}
}

// maxFree bounds the batches that are kept for reuse.
const maxFree = 64

// recycle keeps b for reuse, unless there are enough, or it is large and not the only one.
func (p *pendingActions) recycle(b *batch) {
	b.of = nil
	b.reset()
	if len(p.free) < maxFree {
		p.free = append(p.free, b)
	}
}

// add adds r to the batch of its counter. The actions of r that would leave the range go to outOfRange: the batch is
// applied after the counter's batch in flight, and that one to its last snapshot.
func (p *pendingActions) add(r actionRun) {
	c := r.of
	b := p.batchOf(c)
	p.count += r.count
	value := c.snap.Value
	if c.inFlight != nil {
		value = sum(c.inFlight.from(value), c.inFlight.delta)
	}
	value = b.from(value)
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

// batchOf returns the waiting batch of c.
func (p *pendingActions) batchOf(c *counter) *batch {
	if c.waiting == nil {
		c.waiting = p.newBatch(c)
		p.batches = append(p.batches, c.waiting)
	}
	return c.waiting
}

// from returns the value that the actions of b are applied to. value is the one before b.
func (b *batch) from(value Value) Value {
	if b.order == nil {
		return value
	}
	return b.order.value
}

// order makes o a part of the next commit. The actions that wait for it count, and are overwritten.
func (p *pendingActions) order(o *order) {
	b := p.batchOf(o.of)
	if b.order != nil {
		b.order.answer(Snapshot{}, errSuperseded)
	}
	b.order, b.delta, b.actions = o, none, b.actions[:0]
	p.count++
}

// moveTo makes c the commit of all batches, and empties p.
func (p *pendingActions) moveTo(c *commit) {
	c.batches = append(c.batches[:0], p.batches...)
	for _, b := range p.batches {
		b.of.waiting = nil
	}
	p.clear()
}

// refuseAll refuses all actions of p, which the store was not given, and empties p.
func (h *Hub) refuseAll(p *pendingActions) {
	for _, b := range p.batches {
		tellAll(b.outOfRange, refusedRange)
		tellAll(b.runs, refusedStore)
		if b.order != nil {
			b.order.answer(Snapshot{}, errNoAnswer)
		}
		b.of.waiting = nil
		h.settle(b.of)
		p.recycle(b)
	}
	p.clear()
}

func (p *pendingActions) clear() {
	clear(p.batches)
	p.batches, p.count = p.batches[:0], 0
}

// reuse empties c, which is over, and keeps its batches for reuse.
func (p *pendingActions) reuse(c *commit) {
	for i, b := range c.batches {
		p.recycle(b)
		c.batches[i] = nil
	}
	clear(c.changes)
	c.batches, c.changes = c.batches[:0], c.changes[:0]
	c.claimed.Store(false)
}

// commitLoop gives commits to the store, one at a time, and refuses the actions that do not
// count. It ends when loop closes commits.
func (h *Hub) commitLoop(ctx context.Context) {
	defer h.running.Done()
	for c := range h.commits {
		for _, b := range c.batches {
			c.changes = append(c.changes, b.change())
		}
		began := time.Now()
		h.apply(ctx, c.changes)
		h.noteApply(c, time.Since(began))
		if c.claimed.CompareAndSwap(false, true) {
			for i, b := range c.batches {
				b.tell(&c.changes[i])
			}
		}
		h.committed <- c
	}
}

// apply makes changes in the store. A store of one counter gets only changes of that one.
func (h *Hub) apply(ctx context.Context, changes []Change) {
	if h.many != nil {
		h.many.ApplyAll(ctx, changes)
		return
	}
	for i := range changes {
		c := &changes[i]
		c.Snapshot, c.Err = h.store.Apply(ctx, c.Delta)
	}
}

// tell refuses the actions of b that do not count. outcome is the store's answer.
func (b *batch) tell(outcome *Change) {
	tellAll(b.outOfRange, refusedRange)
	if b.order != nil {
		b.order.answer(outcome.Snapshot, outcome.Err)
	}
	switch {
	case outcome.Err == nil:
		for _, r := range b.runs {
			r.from.counted(outcome.Snapshot.Value)
		}
	case errors.Is(outcome.Err, ErrRange):
		tellAll(b.runs, refusedRange)
	case errors.Is(outcome.Err, ErrFull):
		tellAll(b.runs, refusedFull)
	default:
		tellAll(b.runs, refusedStore)
	}
}

// change returns the change of b.
func (b *batch) change() Change {
	c := Change{Counter: b.of.name, Delta: b.delta}
	if b.order != nil {
		if c.Remove = b.order.remove && len(b.actions) == 0; !c.Remove {
			c.Set = &b.order.value
		}
	}
	return c
}

// tellAll sends the refusal why to the senders of runs, once for each action.
func tellAll(runs []actionRun, why *refusal) {
	for _, r := range runs {
		for range r.count {
			r.from.refuse(why)
		}
	}
}

// An announcementQueue is a heap of counters whose number of users is to be announced, by the time of that. loop owns it.
type announcementQueue []*counter

// add adds c, unless it is there.
func (q *announcementQueue) add(c *counter) {
	if c.announcing < 0 {
		heap.Push(q, c)
	}
}

// wait returns how long it is until the first announcement. The queue must not be empty.
func (q announcementQueue) wait() time.Duration { return time.Until(q[0].queuedFor) }

// due takes the counters out whose time has come.
func (q *announcementQueue) due() (due []*counter) {
	for now := time.Now(); len(*q) > 0 && !(*q)[0].queuedFor.After(now); {
		c := heap.Pop(q).(*counter)
		if c.announceAt.After(now) { // a state has been published meanwhile, with the number of users
			heap.Push(q, c)
			continue
		}
		due = append(due, c)
	}
	return due
}

// Len, Less, Swap, Push and Pop implement [heap.Interface].
func (q announcementQueue) Len() int           { return len(q) }
func (q announcementQueue) Less(i, j int) bool { return q[i].queuedFor.Before(q[j].queuedFor) }
func (q announcementQueue) Swap(i, j int) {
	q[i], q[j] = q[j], q[i]
	q[i].announcing, q[j].announcing = i, j
}

func (q *announcementQueue) Push(x any) {
	c := x.(*counter)
	c.announcing, c.queuedFor = len(*q), c.announceAt
	*q = append(*q, c)
}

func (q *announcementQueue) Pop() any {
	last := len(*q) - 1
	c := (*q)[last]
	(*q)[last] = nil
	*q = (*q)[:last]
	c.announcing = -1
	return c
}
