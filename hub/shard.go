package hub

import (
	"math/rand/v2"
	"sync"
	"time"
)

// shard owns some of the clients. Its goroutine runs run, and is the only one that sends them users and
// state messages. It never waits for a client.
type shard struct {
	// Immutable after newShard. The channels are never closed. members and nowBlocked hold 128, so
	// that senders seldom wait for a sweep.
	hub        *Hub
	index      int             // in Hub.shards
	wake       chan struct{}   // loop -> run: dirty is not empty; 1, since one token is enough
	members    chan membership // serve -> run: each client's join, and then its leave
	nowBlocked chan *client    // serve, loop, commitLoop -> run: a write of theirs has blocked the client

	// Owned by run.
	clients  []*client
	blocked  []*client
	of       *counter                // whose state now is; nil before the first sweep
	now      publishedState          // what encoded has, or will have
	edition  uint64                  // how often now has changed
	encoded  [encodings]encodedState // only of encodings that are in use
	sweeping []*counter              // those of the present sweep; its memory is kept
	message  []byte                  // buffer for one message before it is encoded
	scratch  []byte                  // buffer for one write
	wheel    [wheelSlots][]*client   // the timing wheel: clients by the second of their next check
	slot     int                     // the present slot of wheel
	draining bool                    // beginDrain has been called
	aborting bool                    // abort has been called
	drain    shardDrain
	tally    shardCounts

	mu         sync.Mutex
	handedOver shardCounts // tally at the end of run's last turn. Guarded by mu.

	dirtyMu sync.Mutex
	dirty   []*counter // have a newer state than at the last sweep. Guarded by dirtyMu.

	// Safe from any goroutine.
	_      [64]byte // keeps counts out of the cache lines that run writes
	counts clientCounts
}

// membership is a client's join or leave. Both go through one channel, so that they keep their order.
type membership struct {
	member *client
	leaves bool
}

const (
	// A client that has sent nothing for pingEvery to pingEvery+pingJitter seconds is pinged. Some
	// mobile networks drop a connection that is idle for 30 seconds. The jitter is random and
	// avoids bursts of pings.
	pingEvery  = 20
	pingJitter = 5

	// pongTimeout is how many seconds a client may take to answer a ping.
	pongTimeout = 10

	// wheelSlots is the number of slots of the timing wheel, one for each second.
	wheelSlots = pingEvery + pingJitter + 1

	// longestPause bounds the pause between two sweeps that would follow each other at once. The
	// pause is as long as the first sweep took, so under load half of the time is left for
	// reading.
	longestPause = 25 * time.Millisecond

	// flushEvery is how often the shard tries to write the kept bytes of blocked clients.
	flushEvery = 50 * time.Millisecond
)

// newShard returns a shard of h without clients. The caller starts run.
func newShard(h *Hub, index int) *shard {
	s := &shard{
		hub:        h,
		index:      index,
		wake:       make(chan struct{}, 1),
		members:    make(chan membership, 128),
		nowBlocked: make(chan *client, 128),
	}
	s.tally.swept = h.standard.published.stateSeq // so no client is behind
	s.handOver()
	return s
}

// handOver copies tally to handedOver, for other goroutines.
func (s *shard) handOver() {
	s.tally.clients = len(s.hub.standard.in[s.index].all)
	s.mu.Lock()
	s.handedOver = s.tally
	s.mu.Unlock()
}

// lastTally returns tally at the end of run's last turn. Safe from any goroutine.
func (s *shard) lastTally() shardCounts {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.handedOver
}

// run owns the shard until the hub has ended.
func (s *shard) run() {
	defer s.hub.running.Done()
	second := time.NewTicker(time.Second)
	defer second.Stop()
	flush := time.NewTicker(flushEvery)
	defer flush.Stop()
	flush.Stop() // until a client is blocked
	pause := time.NewTimer(0)
	defer pause.Stop()
	pause.Stop() // until two sweeps follow each other at once
	s.drain.next = newStoppedTimer()
	defer s.drain.next.Stop()

	wake := s.wake // nil during a pause
	for {
		blocked := len(s.blocked)
		drain, abort := s.hub.draining, s.hub.aborting
		if s.draining {
			drain = nil // already handled; a closed channel would be ready for ever
		}
		if s.aborting {
			abort = nil
		}
		select {
		case <-wake:
			began := time.Now()
			s.sweep()
			took := time.Since(began)
			s.tally.sweeps.observe(took)
			if len(s.wake) > 0 { // the state has changed again during the sweep
				wake = nil
				pause.Reset(min(took, longestPause))
			}
		case <-pause.C:
			wake = s.wake
		case m := <-s.members:
			if m.leaves {
				s.leave(m.member)
			} else {
				s.join(m.member)
			}
		case c := <-s.nowBlocked:
			s.noteBlocked(c)
		case <-second.C:
			s.turnWheel()
			if s.index == 0 {
				s.hub.histories.trim()
			}
		case <-flush.C:
			s.flushBlocked()
		case <-drain:
			s.beginDrain()
		case <-s.drain.next.C:
			s.drainSlice()
		case <-abort:
			s.abort()
		case <-s.hub.done:
			return
		}
		if now := len(s.blocked); now != blocked {
			s.hub.blocked.Add(int64(now - blocked))
			if blocked == 0 {
				flush.Reset(flushEvery)
			} else if now == 0 {
				flush.Stop()
			}
		}
		s.handOver()
	}
}

// join adds a client and sends it users and state at once. While the hub shuts down, join closes the
// client instead.
func (s *shard) join(c *client) {
	c.index = len(s.clients)
	s.clients = append(s.clients, c)
	for i := range c.watches() {
		w := c.watch(i)
		all := &w.counter.in[s.index].all
		w.client, w.index = c, len(*all)
		*all = append(*all, w)
	}
	switch {
	case s.aborting:
		c.wire.sock.Abort()
		return
	case s.draining:
		s.closeClient(c)
		return
	}
	s.schedule(c, pingEvery+rand.IntN(pingJitter+1))
	s.scratch = s.scratch[:0]
	for i := range c.watches() {
		w := c.watch(i)
		now := s.hub.snapshot(w.counter)
		// now.users includes the newcomer; now.announced may not yet.
		s.message = appendUsers(s.message[:0], now.users)
		s.scratch = c.encoding.appendOf(s.scratch, s.message, w.counter.name)
		s.message = appendState(s.message[:0], now.value())
		s.scratch = c.encoding.appendOf(s.scratch, s.message, w.counter.name)
		w.users, w.usersSeq, w.stateSeq = now.users, now.usersSeq, now.stateSeq
		s.tally.users++
		s.tally.states++
	}
	s.write(c, s.scratch)
}

// leave removes a client. It takes the client off the wheel, which would otherwise keep it in memory for
// half a minute. flushBlocked removes it from s.blocked within flushEvery.
func (s *shard) leave(c *client) {
	last := len(s.clients) - 1
	s.clients[c.index] = s.clients[last]
	s.clients[c.index].index = c.index
	s.clients[last] = nil
	s.clients = s.clients[:last]
	c.index = -1
	for i := range c.watches() {
		w := c.watch(i)
		all := &w.counter.in[s.index].all
		last := len(*all) - 1
		(*all)[w.index] = (*all)[last]
		(*all)[w.index].index = w.index
		(*all)[last] = nil
		*all = (*all)[:last]
		w.index = -1
	}
	s.unschedule(c)
}

// note makes the shard sweep the clients of c. Safe from any goroutine.
func (s *shard) note(c *counter) {
	s.dirtyMu.Lock()
	if in := &c.in[s.index]; !in.dirty {
		in.dirty = true
		s.dirty = append(s.dirty, c)
	}
	s.dirtyMu.Unlock()
	wake(s.wake)
}

// sweep sends the newest states of the counters that have changed to each of their clients that is behind.
func (s *shard) sweep() {
	s.dirtyMu.Lock()
	s.sweeping, s.dirty = s.dirty, s.sweeping[:0]
	for _, c := range s.sweeping {
		c.in[s.index].dirty = false
	}
	s.dirtyMu.Unlock()
	for i, c := range s.sweeping {
		s.sweeping[i] = nil
		if all := c.in[s.index].all; len(all) > 0 || c == s.hub.standard {
			s.setNow(c)
			for _, w := range all {
				s.deliver(w)
			}
		}
		if c == s.hub.standard {
			s.tally.swept = s.now.stateSeq
		}
	}
	s.countBehind()
}

// countBehind counts the clients that have not been sent the last value of the default counter that was swept. All of
// them are blocked.
func (s *shard) countBehind() {
	s.tally.behind = 0
	for _, c := range s.blocked {
		if c.index >= 0 && !c.closing && c.first.counter == s.hub.standard && c.first.stateSeq < s.tally.swept {
			s.tally.behind++
		}
	}
}

// setNow makes now the newest state of c.
func (s *shard) setNow(c *counter) {
	now := s.hub.snapshot(c)
	if c != s.of || now.stateSeq != s.now.stateSeq || now.announcedSeq != s.now.announcedSeq {
		s.edition++
	}
	s.of, s.now = c, now
}

// messages returns the messages of now in the encoding e. They are made once, and only if a client has that encoding.
func (s *shard) messages(e messageEncoding) *encodedState {
	b := &s.encoded[e]
	if b.edition != s.edition {
		b.edition = s.edition
		b.encode(e, s.of.name, &s.now, &s.message)
	}
	return b
}

// deliver sends w's client everything of s.now that it has not been sent, in one write.
func (s *shard) deliver(w *watch) {
	usersDue := w.usersSeq < s.now.announcedSeq && w.users != s.now.announced
	stateDue := w.stateSeq < s.now.stateSeq
	c := w.client
	if !usersDue && !stateDue || c.closing {
		return
	}
	if c.blocked || c.wire.sock.blocked() || c.refusalsPending.Load() {
		s.noteBlocked(c)
		return // flushBlocked delivers later
	}
	e := s.messages(c.encoding)
	var due []byte
	if stateDue {
		// All values that the client has not been sent, or only the newest if they are too many.
		n := s.now.stateSeq - w.stateSeq
		if n > recentValues {
			s.tally.merged += n - 1
			n = 1
		}
		due = e.states[e.offsets[recentValues-n]:]
		w.stateSeq = s.now.stateSeq
		s.tally.states += n
	}
	if usersDue {
		s.scratch = append(append(s.scratch[:0], e.users...), due...)
		due = s.scratch
		w.users = s.now.announced
		s.tally.users++
	}
	w.usersSeq = max(w.usersSeq, s.now.announcedSeq)
	s.write(c, due)
}

// write sends encoded messages to a client that is not blocked.
func (s *shard) write(c *client, encoded []byte) {
	if _, err := c.wire.send(encoded, false); err != nil {
		c.writeFailed(err)
		return
	}
	if c.wire.sock.blocked() {
		s.noteBlocked(c)
	}
}

// noteBlocked adds c to the blocked clients, unless it is one already or has left.
func (s *shard) noteBlocked(c *client) {
	if c.blocked || c.index < 0 {
		return
	}
	c.blocked = true
	c.stalledAt = time.Now()
	s.blocked = append(s.blocked, c)
}

// flushBlocked tries to write the kept bytes of blocked clients. A client without kept bytes is no longer
// blocked, and is sent its pending refusals and the newest state. A client without progress for
// stallTimeout is disconnected.
func (s *shard) flushBlocked() {
	blocked := s.blocked
	s.blocked = s.blocked[:0]
	for _, c := range blocked {
		c.blocked = false
		if c.index < 0 {
			continue
		}
		n, err := c.wire.sock.flush()
		switch {
		case err != nil:
			c.writeFailed(err)
		case !c.wire.sock.blocked():
			if c.closing {
				c.finishStream()
			} else if s.sendPending(c) {
				s.catchUp(c)
			}
		case n == 0 && time.Since(c.stalledAt) >= stallTimeout:
			c.end(ReasonStalled)
			c.wire.sock.Abort()
		default:
			if n > 0 {
				c.stalledAt = time.Now()
			}
			c.blocked = true
			s.blocked = append(s.blocked, c)
		}
	}
	clear(blocked[len(s.blocked):])
	s.countBehind()
}

// catchUp sends c the newest state of each counter that it watches, until it is blocked again.
func (s *shard) catchUp(c *client) {
	for i := 0; i < c.watches() && !c.blocked; i++ {
		w := c.watch(i)
		s.setNow(w.counter)
		s.deliver(w)
	}
}

// sendPending sends the pending refusals of c. It reports false if that blocks c.
func (s *shard) sendPending(c *client) bool {
	for c.refusalsPending.Load() {
		if s.scratch = c.appendPending(s.scratch[:0]); len(s.scratch) > 0 {
			s.write(c, s.scratch)
		}
		if c.blocked {
			return false
		}
	}
	return true
}

// schedule makes turnWheel check c after the given number of seconds, which is above 0 and below
// wheelSlots.
func (s *shard) schedule(c *client, seconds int) {
	c.slot = (s.slot + seconds) % wheelSlots
	c.slotIndex = len(s.wheel[c.slot])
	s.wheel[c.slot] = append(s.wheel[c.slot], c)
}

// unschedule takes c off the wheel.
func (s *shard) unschedule(c *client) {
	slot := s.wheel[c.slot]
	if c.slotIndex >= len(slot) || slot[c.slotIndex] != c {
		return // c was never scheduled, since it joined while the hub was shutting down
	}
	last := len(slot) - 1
	slot[c.slotIndex] = slot[last]
	slot[c.slotIndex].slotIndex = c.slotIndex
	slot[last] = nil
	s.wheel[c.slot] = slot[:last]
}

// turnWheel checks the clients that are due this second. It pings a client that has sent nothing since its
// last check, and disconnects one that has not answered a ping: nothing else shows that a peer
// has vanished without a FIN. The peer of a stream answers nothing, so a stream is only sent a
// comment; see socket.expectAcks.
func (s *shard) turnWheel() {
	s.slot = (s.slot + 1) % wheelSlots
	due := s.wheel[s.slot]
	s.wheel[s.slot] = due[:0]
	for i, c := range due {
		due[i] = nil
		heard := c.wire.heard.Swap(false)
		switch {
		case c.closing: // closeClient has set a deadline
		case c.encoding == inStream:
			if !c.blocked {
				s.write(c, keepAlive)
			}
			s.schedule(c, pingEvery+rand.IntN(pingJitter+1))
		case heard || c.blocked: // flushBlocked checks blocked clients
			c.pinged = false
			s.schedule(c, pingEvery+rand.IntN(pingJitter+1))
		case c.pinged:
			c.end(ReasonSilent)
			c.wire.sock.Abort()
		default:
			c.pinged = true
			s.write(c, pingFrame)
			s.schedule(c, pongTimeout)
		}
	}
}

// closeClient starts the closing handshake of a client during a shutdown. serve ends it when the peer's
// close frame arrives, or at the read deadline. A stream has no closing handshake: the shard
// ends the stream, and the peer then closes the connection.
func (s *shard) closeClient(c *client) {
	c.closing = true
	c.end(ReasonStopping)
	// This and the write fail only on a closed connection.
	_ = c.wire.SetReadDeadline(time.Now().Add(s.hub.drain.answer))
	if c.encoding == inStream {
		c.endStream()
	} else {
		_, _ = c.wire.send(appendClose(nil, codeStopping, textStopping), true)
	}
	if c.wire.sock.blocked() {
		s.noteBlocked(c)
	} else {
		c.finishStream()
	}
}

// abort disconnects all clients. Clients that join later are disconnected at once.
func (s *shard) abort() {
	s.aborting = true
	for _, c := range s.clients {
		c.end(ReasonStopping)
		c.wire.sock.Abort()
	}
}
