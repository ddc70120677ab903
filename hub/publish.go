package hub

import (
	"slices"
	"time"
)

// recentValues is how many of the newest values are kept. A client that is at most so
// far behind is sent each, so that nothing is skipped when actions come close together;
// one that is further behind is sent the newest alone. All of them fit one packet.
const recentValues = 16

// publishedState is the state that clients are sent. The two Seq fields only grow, and tell
// whether a client has been sent a thing.
type publishedState struct {
	recent   [recentValues]Value // the newest values, oldest first
	stateSeq uint64              // how many values there have been
	epoch    uint64              // the store's epoch and version of the newest one
	version  uint64

	users    int    // clients right now
	others   int    // of these, those of other hubs
	hubs     int    // how many hubs use the store; 0 if it is not shared, or not known
	usersSeq uint64 // how often users has changed

	// What all have been told, or are being told: users, but at most ten times a second.
	announced    int
	announcedSeq uint64
}

func (p *publishedState) value() Value { return p.recent[recentValues-1] }

// The least time between two announcements of the number of clients is usersEvery, or
// usersPace for each client if that is more. An announcement costs about 15 µs a client,
// so that it takes 3 % of a processor at most, and n arrivals at once cost O(n) and not n²
// messages.
const (
	usersEvery = 100 * time.Millisecond
	usersPace  = 500 * time.Microsecond
)

// push appends the values that actions lead to, the last of which is snap's, which the
// store has just made of them.
func (p *publishedState) push(snap Snapshot, actions []action) {
	p.epoch, p.version = snap.Epoch, snap.Version
	p.stateSeq += uint64(max(len(actions), 1))
	// Only the last few are kept. Count back from the end, then forward.
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

// publish makes snap, the result of actions, what clients are sent.
func (h *Hub) publish(snap Snapshot, actions []action) {
	h.mu.Lock()
	h.unknown = false
	p := &h.published
	if len(actions) > 0 || snap.Value != p.value() {
		p.push(snap, actions)
	}
	p.epoch, p.version = snap.Epoch, snap.Version
	// All are being written to anyway, so that news of users cost no write now.
	p.announced, p.announcedSeq = p.users, p.usersSeq
	h.mu.Unlock()
	h.wakeShards()
}

// announceUsers tells all how many there are.
func (h *Hub) announceUsers() {
	h.mu.Lock()
	p := &h.published
	p.announced, p.announcedSeq = p.users, p.usersSeq
	h.mu.Unlock()
	h.wakeShards()
}

// nextAnnouncement returns when users may be announced again.
func (h *Hub) nextAnnouncement() time.Time {
	h.mu.Lock()
	defer h.mu.Unlock()
	return time.Now().Add(max(usersEvery, time.Duration(h.published.clients())*usersPace))
}

// clients returns how many clients this hub has.
func (p *publishedState) clients() int { return p.users - p.others }

// countOthers takes over what is known of other hubs.
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

func (h *Hub) wakeShards() {
	for _, s := range h.shards {
		wake(s.wake)
	}
}

// wake puts a token into ch unless one is there.
func wake(ch chan<- struct{}) {
	select {
	case ch <- struct{}{}:
	default:
	}
}

func (h *Hub) snapshot() publishedState {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.published
}

// arrive and leave count the clients. They do not go through loop, so that a newcomer
// is told a count that includes it.
func (h *Hub) arrive() { h.countUsers(+1) }
func (h *Hub) leave()  { h.countUsers(-1) }

func (h *Hub) countUsers(n int) {
	h.mu.Lock()
	h.published.users += n
	h.published.usersSeq++
	h.joined += uint64(max(n, 0))
	h.mu.Unlock()
	wake(h.presence)
}
