package valkey

import (
	"time"

	"github.com/valkey-io/valkey-go"

	"plusminus/hub"
)

// receive handles a message of another hub, or of this one.
func (s *Store) receive(m valkey.PubSubMessage) {
	r, ok := parseMessage(m.Message)
	if !ok {
		return // another program has sent it
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	c := s.counters[r.name]
	if c == nil {
		return
	}
	if r.epoch != c.epoch {
		c.reread = true
		s.scheduleLocked(c)
		return
	}
	c.published, c.publishedUsers = max(c.published, r.version), max(c.publishedUsers, r.usersSeq)
	c.recordNewer(r)
	// ApplyAll returns this hub's own changes. As news they would come without the values in
	// between, and perhaps before ApplyAll has returned.
	if r.from != s.id && r.version > c.foreign.Version {
		c.foreign = hub.Snapshot{Epoch: c.now.Epoch, Version: r.version, Value: r.value}
	}
	s.sendNewsLocked(c)
	s.scheduleLocked(c)
}

// sendNewsLocked adds the present state of the counters to the news that the hub has not received.
func (s *Store) sendNewsLocked(counters ...*counter) {
	var n hub.News
	select {
	case n = <-s.news:
	default: // the hub has received the last news
		s.newsOf++
	}
	n.Hubs, n.Err = s.hubs, s.err
	for _, c := range counters {
		of := hub.CounterNews{Counter: c.name, Snapshot: c.foreign, Others: max(0, c.users-c.announced)}
		if c.newsOf == s.newsOf {
			n.Counters[c.newsAt] = of
			continue
		}
		c.newsOf, c.newsAt = s.newsOf, len(n.Counters)
		n.Counters = append(n.Counters, of)
	}
	s.news <- n // does not block: this is the only sender, under mu
}

// unpublishedLocked records that the other hubs need a message about r.
func (s *Store) unpublishedLocked(c *counter, r reply) {
	if !c.mustPublish() {
		c.flushAt = time.Now().Add(flushAfter)
	}
	c.unpublished, c.unpublishedUsers = max(c.unpublished, r.version), max(c.unpublishedUsers, r.usersSeq)
	s.scheduleLocked(c)
}
