package valkey

import (
	"context"
	"fmt"
	"strconv"
	"time"

	"github.com/valkey-io/valkey-go"

	"plusminus/hub"
)

// nextBeat returns the time of the next beat.
func (s *Store) nextBeat() time.Time {
	s.mu.Lock()
	defer s.mu.Unlock()
	at := s.beatAt.Add(beatEvery)
	sooner := func(t time.Time) {
		if t.Before(at) {
			at = t
		}
	}
	if s.clients != s.announced {
		sooner(s.beatAt.Add(max(announceEvery, time.Duration(s.hubs)*announcePerHub)))
	}
	if s.mustPublishLocked() {
		sooner(s.flushAt)
	}
	if s.reread {
		sooner(s.beatAt.Add(announceEvery))
	}
	return at
}

// doBeat calls beatScript and records its reply. With last it signs this hub off. The first
// successful beat of a connection makes client the present connection.
func (s *Store) doBeat(client valkey.Client, last bool) error {
	s.mu.Lock()
	s.reread = false
	s.beatAt = time.Now()
	clients := s.clients
	if last {
		clients = -1
	}
	publish := "0"
	if s.mustPublishLocked() {
		publish = "1"
	}
	s.unpublished, s.unpublishedUsers = 0, 0
	s.mu.Unlock()
	r, err := s.call(s.conns, client, beatScript, s.beatKeys, strconv.Itoa(clients), publish,
		strconv.FormatInt(silence.Milliseconds(), 10), strconv.FormatInt(remember.Milliseconds(), 10))
	if last {
		return err
	}
	if err != nil {
		if _, ok := valkey.IsValkeyErr(err); ok {
			s.readOnly(client)
		}
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.announced = clients
	s.hubs = r.hubs
	if r.unpublished {
		s.unpublishedLocked(r)
	}
	s.foreignLocked(r)
	s.err = nil
	if s.client == nil {
		s.client = client
		close(s.connected)
		s.connected = make(chan struct{})
	}
	s.triedLocked()
	s.sendNewsLocked()
	return nil
}

// readOnly records the value of a server that refuses writes, such as a replica. Clients then
// see the newest value, though no action can count.
func (s *Store) readOnly(client valkey.Client) {
	ctx, cancel := context.WithTimeout(s.conns, answerTimeout)
	defer cancel()
	list, err := client.Do(ctx, client.B().Hmget().Key(s.applyKeys[0]).Field("epoch", "version", "value", "users", "usersseq").Build()).AsStrSlice()
	if err != nil || len(list) != 5 {
		return
	}
	r, ok := parseMessage(fmt.Sprintf("%s %s %s %s %s -", list[0], list[1], list[2], orZero(list[3]), orZero(list[4])))
	if !ok || r.epoch == "" {
		return
	}
	s.mu.Lock()
	usable := s.epoch == "" || r.epoch == s.epoch
	s.mu.Unlock()
	if !usable {
		return // the first beat that the server accepts switches to the new epoch, and logs that
	}
	s.record(r)
	s.mu.Lock()
	s.foreignLocked(r)
	s.mu.Unlock()
}

func orZero(s string) string {
	if s == "" {
		return "0"
	}
	return s
}

// foreignLocked records the value of r as another hub's, if it is newer than all that this hub
// has made or heard of.
func (s *Store) foreignLocked(r reply) {
	if r.version > s.own && r.version > s.foreign.Version {
		s.foreign = hub.Snapshot{Epoch: s.now.Epoch, Version: r.version, Value: r.value}
	}
}
