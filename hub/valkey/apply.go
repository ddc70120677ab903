package valkey

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"strconv"
	"time"

	"github.com/valkey-io/valkey-go"

	"plusminus/hub"
)

// Apply adds delta and returns once the server has it. How safe the result is, depends on
// the server's persistence. A delta beyond ±[hub.MaxValue] is a [hub.ErrRange].
//
// If there is no connection, or the server refuses the call, Apply returns the reason at once.
// If the connection breaks, or the server does not answer, delta may have counted. Then Apply
// sends the same batch again until it has an answer. Only when ctx ends, or after 12 hours,
// does it return without one, and log that.
func (s *Store) Apply(ctx context.Context, delta hub.Delta) (hub.Snapshot, error) {
	s.applying.Lock()
	defer s.applying.Unlock()
	argument, err := deltaArgument(delta)
	if err != nil {
		return s.snapshot(), err
	}
	s.seq++
	var unknown error   // why the outcome is unknown, or nil
	var since time.Time // when it became unknown: the start of the first attempt
	began := time.Now()
	for {
		client, err := s.connection(ctx, unknown != nil)
		var r reply
		if err == nil {
			r, err = s.call(ctx, client, applyScript, s.applyKeys, strconv.FormatUint(s.seq, 10), argument)
		}
		switch {
		case err == nil && r.status == "ok":
			return s.applied(r), nil
		case err == nil && r.status == "range":
			return s.snapshot(), hub.ErrRange
		case err == nil && r.status == "epoch":
			continue // call has switched to the new epoch, in which an earlier attempt cannot count
		case err == nil:
			err = fmt.Errorf("the server has a later batch of this hub than %d: %s", s.seq, r.status)
			s.log.Error("a batch is lost: another process uses this hub's id", "delta", delta, "err", err)
			return s.snapshot(), err
		case unknown == nil && certain(err):
			return s.snapshot(), err
		}
		if unknown == nil {
			unknown, since = err, began
		}
		if ctx.Err() != nil || time.Since(since) > giveUpAfter {
			s.log.Error("it will not be known whether the last actions have counted", "delta", delta, "err", unknown)
			return s.snapshot(), fmt.Errorf("no answer: %w", unknown)
		}
		pause(ctx, tryAgain)
	}
}

// applied records the reply to a batch and returns its snapshot.
func (s *Store) applied(r reply) hub.Snapshot {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !r.unpublished {
		s.published = max(s.published, r.version)
	} else {
		s.unpublishedLocked(r)
	}
	return hub.Snapshot{Epoch: s.now.Epoch, Version: r.version, Value: r.value}
}

// call calls a script and records its reply.
func (s *Store) call(ctx context.Context, client valkey.Client, script *valkey.Lua, keys []string, args ...string) (reply, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, answerTimeout, errNoAnswer)
	defer cancel()
	select {
	case s.calls <- struct{}{}:
	case <-ctx.Done():
		return reply{}, notSentError{context.Cause(ctx)}
	}
	defer func() { <-s.calls }()
	s.mu.Lock()
	args = append([]string{s.epoch, strconv.FormatUint(s.now.Version, 10), s.candidate, s.channel, s.id,
		strconv.FormatInt(quiet.Milliseconds(), 10)}, args...)
	s.mu.Unlock()
	r, err := parseReply(script.Exec(ctx, client, keys, args))
	if err != nil {
		if errors.Is(err, context.DeadlineExceeded) {
			err = noAnswer(ctx)
			s.mu.Lock()
			s.overdue = client
			s.mu.Unlock()
			s.wakeRun()
		}
		return r, err
	}
	s.record(r)
	if script == applyScript && r.status == "ok" {
		// This comes before the next call: a beat that reads this version must not report it as
		// another hub's.
		s.mu.Lock()
		s.own = max(s.own, r.version)
		s.mu.Unlock()
	}
	return r, nil
}

// record stores the reply of a script. Its callers take turns.
func (s *Store) record(r reply) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if r.epoch != s.epoch {
		if s.epoch != "" {
			s.log.Error("the store is not the one it was: it was replaced or flushed, or has lost changes. Its value is taken over",
				"value", r.value, "version", r.version, "was_value", s.now.Value, "was_version", s.now.Version, "epoch", s.now.Epoch+1)
		}
		s.epoch = r.epoch
		s.now = hub.Snapshot{Epoch: s.now.Epoch + 1, Version: r.version, Value: r.value}
		s.foreign = s.now
		s.own, s.usersSeq = 0, 0
		s.published, s.publishedUsers, s.unpublished, s.unpublishedUsers = 0, 0, 0, 0
		s.reread = true // the new epoch does not have this hub's clients yet
		s.wakeRun()
		if r.epoch == s.candidate {
			s.candidate = rand.Text()
		}
	}
	s.recordNewerLocked(r)
}

// recordNewerLocked stores those parts of r that are newer than the known ones. r must be of
// the present epoch.
func (s *Store) recordNewerLocked(r reply) {
	if r.version > s.now.Version {
		s.now.Version, s.now.Value = r.version, r.value
	}
	if r.usersSeq >= s.usersSeq {
		s.usersSeq, s.users = r.usersSeq, r.users
	}
}
