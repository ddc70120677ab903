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
func (h *Hub) publish(snap Snapshot, actions []action) {
	h.mu.Lock()
	h.unknown = false
	p := &h.published
	if len(actions) > 0 || snap.Value != p.value() {
		p.push(snap, actions)
	}
	p.epoch, p.version = snap.Epoch, snap.Version
	// The sweep writes to every client anyway, so announcing users costs no extra write.
	p.announced, p.announcedSeq = p.users, p.usersSeq
	h.mu.Unlock()
	h.wakeShards()
}

// announceUsers announces the number of users to all clients.
func (h *Hub) announceUsers() {
	h.mu.Lock()
	p := &h.published
	p.announced, p.announcedSeq = p.users, p.usersSeq
	h.mu.Unlock()
	h.wakeShards()
}

// nextAnnouncement returns the earliest time of the next announcement, if one is made now.
func (h *Hub) nextAnnouncement() time.Time {
	h.mu.Lock()
	defer h.mu.Unlock()
	return time.Now().Add(max(usersEvery, time.Duration(h.published.clients())*usersPace))
}

// clients returns the number of clients of this hub.
func (p *publishedState) clients() int { return p.users - p.others }

// countOthers updates the number of other hubs and of their clients from n.
func (h *Hub) countOthers(n News) {
	h.mu.Lock()
	p := &h.published
	p.hubs = n.Hubs
	changed := n.Others != p.others
	if changed {
		p.users += n.Others - p.others
		p.others = n.Others
		p.usersSeq++
	}
	h.mu.Unlock()
	if changed {
		wake(h.presence)
	}
}

// wakeShards makes each shard sweep.
func (h *Hub) wakeShards() {
	for _, s := range h.shards {
		wake(s.wake)
	}
}

// wake puts a token into ch, unless ch already holds one.
func wake(ch chan<- struct{}) {
	select {
	case ch <- struct{}{}:
	default:
	}
}

// snapshot returns a copy of the published state.
func (h *Hub) snapshot() publishedState {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.published
}

// arrive and leave count a client in and out. They do not go through loop, so a newcomer is
// always sent a count that includes it.
func (h *Hub) arrive() { h.countUsers(+1) }
func (h *Hub) leave()  { h.countUsers(-1) }

// countUsers adds n to the number of users, and wakes loop to announce it.
func (h *Hub) countUsers(n int) {
	h.mu.Lock()
	h.published.users += n
	h.published.usersSeq++
	h.joined += uint64(max(n, 0))
	h.mu.Unlock()
	wake(h.presence)
}
