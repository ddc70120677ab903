package hub

import (
	"math/rand/v2"
	"sync"
	"time"
)

// shard owns some of the clients and is the only one that sends them users and state.
// Its goroutine is run. Nothing that it does waits for a client.
type shard struct {
	// Immutable after newShard.
	hub        *Hub
	wake       chan struct{}   // loop -> run: there is a newer state; 1, a token is enough
	members    chan membership // serve -> run: each client's join, and then its leave; 128, since a sweep may be on; never closed
	nowBlocked chan *client    // serve and commitLoop -> run: a write that was not the shard's blocked the client; likewise

	// Owned by run.
	clients  []*client
	blocked  []*client
	now      publishedState          // what encoded says
	encoded  [encodings]encodedState // of those that there are clients of
	using    [encodings]int          // how many of clients have the encoding
	message  []byte                  // one message, before it is encoded
	scratch  []byte                  // what one client is written
	wheel    [wheelSlots][]*client
	slot     int
	draining bool
	aborting bool
	drain    shardDrain
	tally    shardCounts

	mu         sync.Mutex
	handedOver shardCounts // tally as of the last turn. Guarded by mu.

	_      [64]byte     // so that what clients count is in no cache line that run uses
	counts clientCounts // safe from any goroutine
}

// membership is a client's join or leave. Both go through one channel, so that they
// keep their order.
type membership struct {
	member *client
	leaves bool
}

const (
	// A client from which nothing came for pingEvery to pingEvery+pingJitter seconds is
	// pinged: below the 30 seconds after which the shortest-tempered mobile networks
	// forget an idle connection, and spread out so that pings never come in bursts.
	pingEvery  = 20
	pingJitter = 5

	// pongTimeout is how many seconds a pinged client may stay silent.
	pongTimeout = 10

	// wheelSlots is the size of the timing wheel, whose slots are a second apart.
	wheelSlots = pingEvery + pingJitter + 1

	// longestPause bounds the pause between two sweeps that would follow each other at once.
	// It is as long as the first one was, so that under load half of the time is left for
	// reading.
	longestPause = 25 * time.Millisecond

	// flushEvery is how often the kept bytes of blocked clients are tried again.
	flushEvery = 50 * time.Millisecond
)

func newShard(h *Hub) *shard {
	s := &shard{
		hub:        h,
		wake:       make(chan struct{}, 1),
		members:    make(chan membership, 128),
		nowBlocked: make(chan *client, 128),
	}
	s.tally.swept = h.published.stateSeq // nobody is behind
	s.handOver()
	return s
}

// handOver lets others see what was counted.
func (s *shard) handOver() {
	s.tally.clients = len(s.clients)
	s.mu.Lock()
	s.handedOver = s.tally
	s.mu.Unlock()
}

// lastTally returns what was counted up to the last turn of run. Safe from any goroutine.
func (s *shard) lastTally() shardCounts {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.handedOver
}

func (s *shard) run() {
	defer s.hub.running.Done()
	second := time.NewTicker(time.Second)
	defer second.Stop()
	flush := time.NewTicker(flushEvery)
	defer flush.Stop()
	flush.Stop() // runs while there are blocked clients
	pause := time.NewTimer(0)
	defer pause.Stop()
	pause.Stop() // runs between two sweeps
	s.drain.next = newStoppedTimer()
	defer s.drain.next.Stop()

	wake := s.wake // nil between two sweeps
	for {
		blocked := len(s.blocked)
		drain, abort := s.hub.draining, s.hub.aborting
		if s.draining {
			drain = nil // closed, and obeyed
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
			if len(s.wake) > 0 { // the state changes faster than all can be told
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

// join takes a client in and sends it the present users and state at once.
func (s *shard) join(c *client) {
	c.index = len(s.clients)
	s.clients = append(s.clients, c)
	s.using[c.encoding]++
	switch {
	case s.aborting:
		c.wire.sock.Abort()
		return
	case s.draining:
		s.closeClient(c)
		return
	}
	s.schedule(c, pingEvery+rand.IntN(pingJitter+1))
	now := s.hub.snapshot()
	// The count that includes the newcomer may not have been announced to all yet.
	s.message = appendUsers(s.message[:0], now.users)
	s.scratch = c.encoding.append(s.scratch[:0], s.message)
	s.message = appendState(s.message[:0], now.value())
	s.scratch = c.encoding.append(s.scratch, s.message)
	c.users, c.usersSeq, c.stateSeq = now.users, now.usersSeq, now.stateSeq
	s.tally.users++
	s.tally.states++
	s.write(c, s.scratch)
}

// leave forgets a client. The list of blocked ones drops it within flushEvery; the wheel
// would keep its memory for half a minute.
func (s *shard) leave(c *client) {
	last := len(s.clients) - 1
	s.clients[c.index] = s.clients[last]
	s.clients[c.index].index = c.index
	s.clients[last] = nil
	s.clients = s.clients[:last]
	c.index = -1
	s.using[c.encoding]--
	s.unschedule(c)
}

// sweep brings each client that is behind up to the newest state.
func (s *shard) sweep() {
	s.encode(s.hub.snapshot())
	for _, c := range s.clients {
		s.deliver(c)
	}
	s.tally.swept = s.now.stateSeq
	s.countBehind()
}

// countBehind counts those that a sweep could not bring up to its state. They are blocked.
func (s *shard) countBehind() {
	s.tally.behind = 0
	for _, c := range s.blocked {
		if c.index >= 0 && !c.closing && c.stateSeq < s.now.stateSeq {
			s.tally.behind++
		}
	}
}

// encode makes what a sweep sends, once for all clients of an encoding.
func (s *shard) encode(now publishedState) {
	s.now = now
	for e := range encodings {
		if s.using[e] > 0 {
			s.encoded[e].encode(e, &s.now, &s.message)
		}
	}
}

// deliver sends c what it is due of s.now in one write.
func (s *shard) deliver(c *client) {
	usersDue := c.usersSeq < s.now.announcedSeq && c.users != s.now.announced
	stateDue := c.stateSeq < s.now.stateSeq
	if !usersDue && !stateDue || c.closing {
		return
	}
	if c.blocked || c.wire.sock.blocked() || c.refusalsPending.Load() {
		s.noteBlocked(c)
		return // flushBlocked delivers
	}
	e := &s.encoded[c.encoding]
	var due []byte
	if stateDue {
		// Each value that it has not seen if they are few, or else the newest alone.
		n := s.now.stateSeq - c.stateSeq
		if n > recentValues {
			s.tally.merged += n - 1
			n = 1
		}
		due = e.states[e.offsets[recentValues-n]:]
		c.stateSeq = s.now.stateSeq
		s.tally.states += n
	}
	if usersDue {
		s.scratch = append(append(s.scratch[:0], e.users...), due...)
		due = s.scratch
		c.users = s.now.announced
		s.tally.users++
	}
	c.usersSeq = max(c.usersSeq, s.now.announcedSeq)
	s.write(c, due)
}

// write sends messages that are encoded for it to a client that is not blocked.
func (s *shard) write(c *client, encoded []byte) {
	if _, err := c.wire.send(encoded, false); err != nil {
		c.writeFailed(err)
		return
	}
	if c.wire.sock.blocked() {
		s.noteBlocked(c)
	}
}

func (s *shard) noteBlocked(c *client) {
	if c.blocked || c.index < 0 {
		return
	}
	c.blocked = true
	c.stalledAt = time.Now()
	s.blocked = append(s.blocked, c)
}

// flushBlocked tries the blocked clients again. Those whose kept bytes have gone out
// are sent the refusals that they are owed and the newest state; those that stall are disconnected.
func (s *shard) flushBlocked() {
	s.encode(s.hub.snapshot())
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
				s.deliver(c)
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

// sendPending sends the refusals that c is owed, and reports false if it is blocked by that.
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

// schedule has turnWheel look at c in the given number of seconds, which is above 0 and
// below wheelSlots.
func (s *shard) schedule(c *client, seconds int) {
	c.slot = (s.slot + seconds) % wheelSlots
	c.slotIndex = len(s.wheel[c.slot])
	s.wheel[c.slot] = append(s.wheel[c.slot], c)
}

// unschedule takes c off the wheel.
func (s *shard) unschedule(c *client) {
	slot := s.wheel[c.slot]
	if c.slotIndex >= len(slot) || slot[c.slotIndex] != c {
		return // it never was there: it joined while the hub was draining
	}
	last := len(slot) - 1
	slot[c.slotIndex] = slot[last]
	slot[c.slotIndex].slotIndex = c.slotIndex
	slot[last] = nil
	s.wheel[c.slot] = slot[:last]
}

// turnWheel pings those clients whose turn it is, and disconnects those that were
// silent after a ping: a peer that vanished without a FIN is found in no other way. Streams,
// whose peers answer nothing, are only kept alive: see socket.expectAcks.
func (s *shard) turnWheel() {
	s.slot = (s.slot + 1) % wheelSlots
	due := s.wheel[s.slot]
	s.wheel[s.slot] = due[:0]
	for i, c := range due {
		due[i] = nil
		heard := c.wire.heard.Swap(false)
		switch {
		case c.closing: // has a deadline already
		case c.encoding == inStream:
			if !c.blocked {
				s.write(c, keepAlive)
			}
			s.schedule(c, pingEvery+rand.IntN(pingJitter+1))
		case heard || c.blocked: // flushBlocked looks after those that are blocked
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

// closeClient starts the closing handshake of a client of a hub that is shut down. serve
// ends it when the peer's close frame comes, or at the read deadline. A stream has no such
// handshake: it ends, and so does what the peer sends.
func (s *shard) closeClient(c *client) {
	c.closing = true
	c.end(ReasonStopping)
	// It can fail only on a closed connection, as can the write.
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

// abort disconnects every client, those that join later included.
func (s *shard) abort() {
	s.aborting = true
	for _, c := range s.clients {
		c.end(ReasonStopping)
		c.wire.sock.Abort()
	}
}
