package valkey

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/valkey-io/valkey-go"

	"plusminus/hub"
)

// Apply adds delta to the default counter. It is [Store.ApplyAll] for that one change.
func (s *Store) Apply(ctx context.Context, delta hub.Delta) (hub.Snapshot, error) {
	changes := []hub.Change{{Delta: delta}}
	s.ApplyAll(ctx, changes)
	return changes[0].Snapshot, changes[0].Err
}

// A pendingChange is a change without an outcome.
type pendingChange struct {
	counterCall
	*hub.Change
	unknown error // why the outcome of an earlier attempt is unknown, or nil
}

// ApplyAll makes the changes and returns once the server has them. How safe the result is, depends on
// the server's persistence. A value beyond ±[hub.MaxValue] is a [hub.ErrRange].
//
// If there is no connection, or the server refuses a call, the error of the change is the reason.
// If the connection breaks, or the server does not answer, a change may have counted. Then ApplyAll
// sends the same call again until it has an answer. Only when ctx ends, or after 12 hours,
// does it return without one, and log that.
func (s *Store) ApplyAll(ctx context.Context, changes []hub.Change) {
	s.applying.Lock()
	defer s.applying.Unlock()
	s.seq++
	pending := s.prepare(changes)
	began := time.Now()
	for unknown := false; len(pending) > 0; {
		client, err := s.connection(ctx, unknown)
		if err == nil {
			calls := make([]*counterCall, 0, len(pending))
			for _, p := range pending {
				calls = append(calls, &p.counterCall)
			}
			err = s.call(ctx, client, applyScript, calls)
		}
		left := pending[:0]
		unknown = false
		for _, p := range pending {
			if err != nil {
				p.err = err
			}
			if s.outcome(p) {
				continue
			}
			left = append(left, p)
			unknown = unknown || p.unknown != nil
		}
		pending = left
		if !unknown {
			continue // those that are left are in a new epoch, in which an earlier attempt cannot count
		}
		if ctx.Err() != nil || time.Since(began) > giveUpAfter {
			s.giveUp(pending)
			return
		}
		pause(ctx, tryAgain)
	}
}

// prepare returns those of changes that are sent to the server, and sets the outcome of the others.
func (s *Store) prepare(changes []hub.Change) (pending []*pendingChange) {
	s.mu.Lock()
	defer s.mu.Unlock()
	room := s.limit - s.stored
	for i := range changes {
		c := &changes[i]
		of := s.counters[c.Counter]
		if of == nil { // the hub does not watch it
			of = newCounter(&s.cfg, c.Counter)
		}
		var from hub.Value
		op := "add"
		switch {
		case c.Remove && c.Counter != "":
			op = "remove"
		case c.Remove: // the default counter stays
			op = "set"
		case c.Set != nil:
			op, from = "set", *c.Set
		}
		delta, err := argument(c.Delta)
		base, errFrom := argument(from)
		if err != nil || errFrom != nil {
			c.Snapshot, c.Err = of.now, hub.ErrRange
			continue
		}
		// Copies of the call have the same answer to this, even if there is room later.
		mayMake := "1"
		if of.name != "" && of.now.Version == 0 {
			if room--; room < 0 {
				mayMake = "0"
			}
		}
		further := []string{strconv.FormatUint(s.seq, 10), op, delta, base, mayMake}
		pending = append(pending, &pendingChange{Change: c, counterCall: counterCall{of: of, further: further}})
	}
	return pending
}

// outcome reports whether the outcome of p is known, and sets it.
func (s *Store) outcome(p *pendingChange) bool {
	p.Err = nil
	switch {
	case p.err == nil && p.reply.status == "ok":
		p.Snapshot = s.applied(p.of, p.reply)
	case p.err == nil && p.reply.status == "range":
		p.Snapshot, p.Err = s.snapshot(p.of), hub.ErrRange
	case p.err == nil && p.reply.status == "full":
		p.Snapshot, p.Err = s.snapshot(p.of), hub.ErrFull
	case p.err == nil && p.reply.status == "epoch" && p.Remove && strings.HasSuffix(p.reply.epoch, p.candidate):
		p.Snapshot = s.applied(p.of, p.reply) // an earlier attempt has removed it
	case p.err == nil && p.reply.status == "epoch":
		// call has switched to the new epoch, in which an earlier attempt cannot count.
		p.unknown, p.candidate = nil, ""
		return false
	case p.err == nil:
		p.Snapshot, p.Err = s.snapshot(p.of), fmt.Errorf("the server has a later batch of this hub: %s", p.reply.status)
		s.log.Error("a batch is lost: another process uses this hub's id", "counter", p.of.name, "delta", p.Delta, "err", p.Err)
	case p.unknown == nil && certain(p.err):
		p.Snapshot, p.Err = s.snapshot(p.of), p.err
	default:
		if p.unknown == nil {
			p.unknown = p.err
		}
		return false
	}
	return true
}

// giveUp sets the outcome of changes whose outcome will not be known.
func (s *Store) giveUp(pending []*pendingChange) {
	undecided := 0
	var last *pendingChange
	for _, p := range pending {
		p.Snapshot, p.Err = s.snapshot(p.of), errNoAnswer // for a change that did not count before a new epoch
		if p.unknown != nil {
			undecided++
			last = p
			p.Err = fmt.Errorf("no answer: %w", p.unknown)
		}
	}
	s.log.Error("it will not be known whether the last actions have counted", "counter", last.of.name, "delta", last.Delta,
		"counters", undecided, "err", last.unknown)
}

// applied records the reply to a change and returns its snapshot.
func (s *Store) applied(c *counter, r reply) hub.Snapshot {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !r.unpublished {
		c.published = max(c.published, r.version)
	} else {
		s.unpublishedLocked(c, r)
	}
	return hub.Snapshot{Epoch: c.now.Epoch, Version: r.version, Value: r.value}
}

func (s *Store) snapshot(c *counter) hub.Snapshot {
	s.mu.Lock()
	defer s.mu.Unlock()
	return c.now
}

// A counterCall is one call of a script about a counter.
type counterCall struct {
	scriptCall
	of      *counter
	further []string // the arguments after those of prelude
	clients int      // of a beat: what it reports

	// Set by call.
	candidate string // the id of a new epoch; the same for all copies of a call
	was       uint64 // the version before
}

// call calls the script for each of calls, which are about different counters, and records the replies. The error says that
// none was sent.
func (s *Store) call(ctx context.Context, client valkey.Client, script *script, calls []*counterCall) error {
	ctx, cancel := context.WithTimeoutCause(ctx, answerTimeout, errNoAnswer)
	defer cancel()
	if err := s.takeTurn(ctx); err != nil {
		return err
	}
	defer s.endTurn()
	sent := make([]*scriptCall, 0, len(calls))
	s.mu.Lock()
	for _, c := range calls {
		c.keys, c.was = c.of.keys, c.of.now.Version
		if c.candidate == "" {
			c.candidate = s.candidate
		}
		c.args = append([]string{c.of.epoch, strconv.FormatUint(c.was, 10), c.candidate, c.of.channel, s.id,
			strconv.FormatInt(quiet.Milliseconds(), 10), c.of.name,
			strconv.FormatInt(remember.Milliseconds(), 10), strconv.FormatInt(linger.Milliseconds(), 10)}, c.further...)
		sent = append(sent, &c.scriptCall)
	}
	s.mu.Unlock()
	script.exec(ctx, client, sent)
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, c := range calls {
		switch {
		case errors.Is(c.err, context.DeadlineExceeded):
			c.err = noAnswer(ctx)
			s.overdue = client
			s.wakeRun()
		case c.err == nil:
			s.recordLocked(c.of, c.reply)
			if script == applyScript && c.reply.status == "ok" {
				// This comes before the next call: a beat that reads this version must not report it as
				// another hub's.
				c.of.own = max(c.of.own, c.reply.version)
				s.countLocked(c)
			}
		}
	}
	s.logLostLocked()
	return nil
}

// takeTurn waits until no call is in progress. endTurn lets the next one begin.
func (s *Store) takeTurn(ctx context.Context) error {
	select {
	case s.calls <- struct{}{}:
		return nil
	case <-ctx.Done():
		return notSentError{context.Cause(ctx)}
	}
}

func (s *Store) endTurn() { <-s.calls }

// countLocked counts the counter that c has made or removed.
func (s *Store) countLocked(c *counterCall) {
	switch {
	case c.of == s.standard:
	case c.was == 0 && c.reply.version == 1:
		s.stored++
	case c.was > 0 && c.reply.version == 0:
		s.stored = max(0, s.stored-1)
	}
}

// recordLocked stores the reply of a script about c. Its callers take turns.
func (s *Store) recordLocked(c *counter, r reply) {
	if r.epoch != c.epoch {
		removed := strings.HasPrefix(r.epoch, removedMark)
		if c.epoch != "" && !removed && (c.name == "" || c.now.Version > 0) {
			s.lost.add(c, r)
		}
		c.epoch = r.epoch
		c.now = hub.Snapshot{Epoch: c.now.Epoch + 1, Version: r.version, Value: r.value}
		c.foreign = c.now
		c.own, c.usersSeq = 0, 0
		c.published, c.publishedUsers, c.unpublished, c.unpublishedUsers = 0, 0, 0, 0
		c.reread = true // the new epoch does not have this hub's clients yet
		s.scheduleLocked(c)
		if strings.TrimPrefix(r.epoch, removedMark) == s.candidate {
			s.candidate = rand.Text()
		}
	}
	c.recordNewer(r)
}

// recordNewer stores those parts of r that are newer than the known ones. r must be of
// the present epoch.
func (c *counter) recordNewer(r reply) {
	if r.version > c.now.Version {
		c.now.Version, c.now.Value = r.version, r.value
	}
	if r.usersSeq >= c.usersSeq {
		c.usersSeq, c.users = r.usersSeq, r.users
	}
}

// lostChanges are counters of which the server has lost changes, and that no log line has told of.
type lostChanges struct {
	counters int
	first    []any     // attributes of the first of them
	logAt    time.Time // the earliest time of the next log line
}

// add adds c. r has the new epoch.
func (l *lostChanges) add(c *counter, r reply) {
	if l.counters++; l.counters > 1 {
		return
	}
	l.first = []any{"value", r.value, "version", r.version, "was_value", c.now.Value, "was_version", c.now.Version, "epoch", c.now.Epoch + 1}
	if c.name != "" {
		l.first = append([]any{"counter", c.name}, l.first...)
	}
}

// logLostLocked logs the lost changes, at most every [lostEvery]. A line has the values of one counter only, since all may have
// lost changes.
func (s *Store) logLostLocked() {
	l := &s.lost
	now := time.Now()
	if l.counters == 0 || now.Before(l.logAt) {
		return
	}
	if l.counters > 1 {
		l.first = append(l.first, "counters", l.counters)
	}
	s.log.Error("the store is not the one it was: it was replaced or flushed, or has lost changes. Its value is taken over", l.first...)
	*l = lostChanges{logAt: now.Add(lostEvery)}
}
