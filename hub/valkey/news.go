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
	if r.epoch != s.epoch {
		s.reread = true
		s.wakeRun()
		return
	}
	s.published, s.publishedUsers = max(s.published, r.version), max(s.publishedUsers, r.usersSeq)
	s.recordNewerLocked(r)
	// Apply returns this hub's own changes. As news they would come without the values in
	// between, and perhaps before Apply has returned.
	if r.from != s.id && r.version > s.foreign.Version {
		s.foreign = hub.Snapshot{Epoch: s.now.Epoch, Version: r.version, Value: r.value}
	}
	s.sendNewsLocked()
}

// sendNewsLocked replaces the content of news by the present state.
func (s *Store) sendNewsLocked() {
	n := hub.News{Snapshot: s.foreign, Others: max(0, s.users-s.announced), Hubs: s.hubs, Err: s.err}
	select {
	case <-s.news:
	default:
	}
	s.news <- n // does not block: this is the only sender, under mu
}

// unpublishedLocked records that the other hubs need a message about r.
func (s *Store) unpublishedLocked(r reply) {
	if !s.mustPublishLocked() {
		s.flushAt = time.Now().Add(flushAfter)
		s.wakeRun()
	}
	s.unpublished, s.unpublishedUsers = max(s.unpublished, r.version), max(s.unpublishedUsers, r.usersSeq)
}

// mustPublishLocked reports whether no hub has sent a message yet about a change of this hub.
func (s *Store) mustPublishLocked() bool {
	return s.unpublished > s.published || s.unpublishedUsers > s.publishedUsers
}
