package valkey

import (
	"container/heap"
	"context"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/valkey-io/valkey-go"

	"plusminus/hub"
)

// restart makes all counters due, the default one first: a new connection begins with what the hub has missed.
func (s *Store) restart() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, c := range s.counters {
		c.beatAt = time.Time{}
		s.scheduleLocked(c)
	}
	s.standard.dueAt = time.Time{}
	heap.Fix(&s.due, s.standard.due)
	s.countAt = time.Time{}
}

// nextWake returns when something is to be done next.
func (s *Store) nextWake() time.Time {
	s.mu.Lock()
	defer s.mu.Unlock()
	at := s.due[0].dueAt
	if s.many && s.countAt.Before(at) {
		at = s.countAt
	}
	return at
}

// beat beats for the counters that are due, at most [roundOf] of them. The first successful one on a connection makes
// client the present connection.
func (s *Store) beat(client valkey.Client) error {
	calls := s.dueCalls(false)
	if len(calls) == 0 {
		return nil
	}
	if err := s.call(s.conns, client, beatScript, calls); err != nil {
		for _, c := range calls {
			c.err = err
		}
	}
	refused, err := s.recordBeats(calls)
	if err != nil {
		s.readOnly(client, refused)
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
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

// recordBeats records the replies to calls. If a call has failed, it returns the error of one, and the counters for which the server
// itself has refused it. A counter that is damaged is no failure: the others work.
func (s *Store) recordBeats(calls []*counterCall) (refused []*counter, failed error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, c := range calls {
		c.of.beating = false
		_, byServer := valkey.IsValkeyErr(c.err)
		switch {
		case c.err == nil:
			s.beatenLocked(c)
		case byServer && c.of.name != "" && strings.HasPrefix(c.err.Error(), damaged):
			s.noteDamageLocked(c)
		default:
			failed = c.err
			if byServer {
				refused = append(refused, c.of)
			}
		}
		s.scheduleLocked(c.of)
	}
	return refused, failed
}

// signOff takes this hub's clients out of all sums.
func (s *Store) signOff(client valkey.Client) error {
	for {
		calls := s.dueCalls(true)
		if len(calls) == 0 {
			return nil
		}
		if err := s.call(s.conns, client, beatScript, calls); err != nil {
			return err
		}
	}
}

// dueCalls returns the beats for counters that are due, or with last, for all that the server has numbers of.
func (s *Store) dueCalls(last bool) (calls []*counterCall) {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := time.Now()
	for len(s.due) > 0 && len(calls) < roundOf && (last || !s.due[0].dueAt.After(now)) {
		c := heap.Pop(&s.due).(*counter)
		clients := c.reports()
		if last {
			if c.name != "" && c.announced == 0 && !c.mustPublish() {
				continue
			}
			clients = -1
		}
		publish := "0"
		if c.mustPublish() {
			publish = "1"
		}
		c.beating, c.reread, c.beatAt = true, false, now
		c.unpublished, c.unpublishedUsers = 0, 0
		later := (s.intervalLocked(c) - beatEvery) * (silence / beatEvery)
		calls = append(calls, &counterCall{of: c, clients: clients, further: []string{strconv.Itoa(clients), publish,
			strconv.FormatInt(silence.Milliseconds(), 10), strconv.FormatInt(later.Milliseconds(), 10)}})
	}
	return calls
}

// beatenLocked records the reply to a beat.
func (s *Store) beatenLocked(c *counterCall) {
	c.of.announced = max(c.clients, 0)
	c.of.damaged = false
	if c.of == s.standard {
		s.hubs = c.reply.hubs
	}
	if c.reply.unpublished {
		s.unpublishedLocked(c.of, c.reply)
	}
	c.of.noteForeign(c.reply)
	s.sendNewsLocked(c.of)
}

// damaged begins the error of a script that finds a counter damaged.
const damaged = "PLUSMINUS"

// noteDamageLocked logs that the server has something else in the place of a counter, once. The other counters work.
func (s *Store) noteDamageLocked(c *counterCall) {
	if !c.of.damaged {
		c.of.damaged = true
		s.log.Error("a counter cannot be used", "counter", c.of.name, "err", c.err)
	}
}

// readOnly records the values of a server that refuses writes, such as a replica. Clients then
// see the newest values, though no action can count.
func (s *Store) readOnly(client valkey.Client, counters []*counter) {
	if len(counters) == 0 {
		return
	}
	ctx, cancel := context.WithTimeout(s.conns, answerTimeout)
	defer cancel()
	commands := make(valkey.Commands, 0, len(counters))
	for _, c := range counters {
		commands = append(commands, client.B().Hmget().Key(c.keys[0]).Field("epoch", "version", "value", "users", "usersseq").Build())
	}
	results := client.DoMulti(ctx, commands...)
	s.mu.Lock()
	defer s.mu.Unlock()
	for i, c := range counters {
		list, err := results[i].AsStrSlice()
		if err != nil || len(list) != 5 {
			continue
		}
		r, ok := parseMessage(fmt.Sprintf("%s %s %s %s %s -", list[0], list[1], list[2], orZero(list[3]), orZero(list[4])))
		if !ok || r.epoch == "" || c.epoch != "" && r.epoch != c.epoch {
			continue // the first beat that the server accepts switches to the new epoch, and logs that
		}
		s.recordLocked(c, r)
		c.noteForeign(r)
		s.sendNewsLocked(c)
	}
}

func orZero(s string) string {
	if s == "" {
		return "0"
	}
	return s
}

// noteForeign records the value of r as another hub's, if it is newer than all that this hub
// has made or heard of.
func (c *counter) noteForeign(r reply) {
	if r.version > c.own && r.version > c.foreign.Version {
		c.foreign = hub.Snapshot{Epoch: c.now.Epoch, Version: r.version, Value: r.value}
	}
}
