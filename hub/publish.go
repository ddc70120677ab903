package hub

import (
	"slices"
	"time"
)

// recentValues is how many of the newest values the hub keeps. A client that is at most that many
// values behind is sent each of them, so that no value is skipped when actions come close together.
// A client that is further behind is sent only the newest. All recent values fit in one packet.
const recentValues = 16

// publishedState is what clients are sent: values and the number of users. Its Seq fields only
// grow. A client remembers the Seq that it was sent last, so it is behind if its Seq is lower.
type publishedState struct {
	recent   [recentValues]Value // the newest values, oldest first
	stateSeq uint64              // how many values there have been
	epoch    uint64              // the store's epoch at the newest value
	version  uint64              // the store's version of the newest value

	users    int    // clients of all hubs now
	others   int    // clients of other hubs, included in users
	hubs     int    // how many hubs use the store; 0 if it is not shared, or unknown
	usersSeq uint64 // how often users has changed

	// The users and usersSeq of the last announcement: at most ten a second, see usersEvery.
	announced    int
	announcedSeq uint64
}

// value returns the newest value.
func (p *publishedState) value() Value { return p.recent[recentValues-1] }

// Two announcements of the number of users are at least usersEvery apart, or usersPace for each
// client of this hub, if that is longer. An announcement costs about 15 µs a client, so
// announcements take at most 3 % of a processor. n arrivals at once cost O(n) messages, not O(n²).
const (
	usersEvery = 100 * time.Millisecond
	usersPace  = 500 * time.Microsecond
)

// push appends the values that actions lead to, one each. The last of them is the value of snap,
// which the store has made from actions. Without actions, push appends that value alone.
func (p *publishedState) push(snap Snapshot, actions []action) {
	p.epoch, p.version = snap.Epoch, snap.Version
	p.stateSeq += uint64(max(len(actions), 1))
	// Keep only the last few. Their first value follows from going back from the last one.
	actions = actions[max(0, len(actions)-recentValues):]
	value := snap.Value
	for _, a := range slices.Backward(actions) {
		value = after(value, a, -1)
	}
	n := max(len(actions), 1)
	copy(p.recent[:], p.recent[n:])
	for i := range n {
		if i < len(actions) {
			value = after(value, actions[i], 1)
		}
		p.recent[recentValues-n+i] = value
	}
}

// publish publishes snap, the result of actions, and wakes the shards. actions is nil if they were
// those of another hub.
func (h *Hub) publish(c *counter, snap Snapshot, actions []action) {
	h.mu.Lock()
	if c == h.standard {
		h.unknown = false
	}
	p := &c.published
	before, first := p.value(), p.stateSeq == 0
	if len(actions) > 0 || snap.Value != p.value() || p.stateSeq == 0 {
		p.push(snap, actions)
	}
	p.epoch, p.version = snap.Epoch, snap.Version
	// The sweep writes to every client anyway, so announcing users costs no extra write.
	p.announced, p.announcedSeq = p.users, p.usersSeq
	c.announceAt = p.nextAnnouncement()
	h.mu.Unlock()
	if !first && snap.Value != before {
		h.histories.add(c.name, before, snap.Value)
	}
	h.wakeShards(c)
}

// announceUsers announces the number of users to all clients of c.
func (h *Hub) announceUsers(c *counter) {
	h.mu.Lock()
	p := &c.published
	p.announced, p.announcedSeq = p.users, p.usersSeq
	c.announceAt = p.nextAnnouncement()
	h.mu.Unlock()
	h.wakeShards(c)
}

// nextAnnouncement returns the earliest time of the next announcement, if one is made now.
func (p *publishedState) nextAnnouncement() time.Time {
	return time.Now().Add(max(usersEvery, time.Duration(p.clients())*usersPace))
}

// clients returns the number of clients of this hub.
func (p *publishedState) clients() int { return p.users - p.others }

// hear publishes what other hubs have done to a counter. Only loop calls it.
func (h *Hub) hear(n *CounterNews) {
	h.mu.Lock()
	c := h.standard
	if n.Counter != "" {
		c = h.counters[n.Counter]
	}
	if c == nil { // it is not in use any more
		h.mu.Unlock()
		return
	}
	first := c.known != nil && c.published.stateSeq == 0
	p := &c.published
	if n.Others != p.others {
		p.users += n.Others - p.others
		p.others = n.Others
		p.usersSeq++
		h.noteLocked(c)
	}
	h.mu.Unlock()
	if !n.Snapshot.newerThan(c.snap) {
		return
	}
	c.snap = n.Snapshot
	if c.waiting == nil && c.inFlight == nil { // otherwise settle does it
		c.missing.Store(c.snap.Version == 0)
	}
	h.publish(c, n.Snapshot, nil)
	if first {
		close(c.known)
	}
}

// noteHubs records how many hubs share the store.
func (h *Hub) noteHubs(n int) {
	h.mu.Lock()
	h.standard.published.hubs = n
	h.mu.Unlock()
}

// announceOurs tells a shared store how many clients of this hub watch c.
func (h *Hub) announceOurs(c *counter) {
	if h.shared == nil {
		return
	}
	h.mu.Lock()
	clients := c.published.clients()
	h.mu.Unlock()
	h.shared.Announce(c.name, clients)
}

// wakeShards makes each shard sweep the clients of c.
func (h *Hub) wakeShards(c *counter) {
	for _, s := range h.shards {
		s.note(c)
	}
}

// wake puts a token into ch, unless ch already holds one.
func wake(ch chan<- struct{}) {
	select {
	case ch <- struct{}{}:
	default:
	}
}

// snapshot returns a copy of the published state of c.
func (h *Hub) snapshot(c *counter) publishedState {
	h.mu.Lock()
	defer h.mu.Unlock()
	return c.published
}

// arrive and leave count a client in and out of the counters that it watches. They do not go through loop, so a newcomer
// is always sent a count that includes it.
func (h *Hub) arrive(c *client) { h.countUsers(c, +1) }
func (h *Hub) leave(c *client)  { h.countUsers(c, -1) }

// countUsers adds n to the number of users of each counter that c watches, and wakes loop to announce it.
func (h *Hub) countUsers(c *client, n int) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for i := range c.watches() {
		of := c.watch(i).counter
		of.published.users += n
		of.published.usersSeq++
		h.noteLocked(of)
	}
	h.present += n
	h.joined += uint64(max(n, 0))
}

// noteLocked tells loop that the number of users of c has changed.
func (h *Hub) noteLocked(c *counter) {
	if c.noted {
		return
	}
	c.noted = true
	h.changed = append(h.changed, c)
	wake(h.presence)
}

// takeChanged returns the counters whose number of users has changed since the last call. It keeps dst's memory.
func (h *Hub) takeChanged(dst []*counter) []*counter {
	h.mu.Lock()
	defer h.mu.Unlock()
	dst = append(dst[:0], h.changed...)
	clear(h.changed)
	h.changed = h.changed[:0]
	for _, c := range dst {
		c.noted = false
	}
	return dst
}
