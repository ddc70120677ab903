package valkey

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"time"

	"github.com/valkey-io/valkey-go"

	"plusminus/hub"
)

// count asks the server how many counters there are, unless the last count is recent.
func (s *Store) count(client valkey.Client) error {
	if !s.many {
		return nil
	}
	s.mu.Lock()
	wait := time.Until(s.countAt)
	s.mu.Unlock()
	if wait > 0 {
		return nil
	}
	ctx, cancel := context.WithTimeoutCause(s.conns, answerTimeout, errNoAnswer)
	defer cancel()
	if err := s.takeTurn(ctx); err != nil { // so that no counter is made meanwhile
		return err
	}
	defer s.endTurn()
	commands := make(valkey.Commands, 0, buckets)
	for i := range buckets {
		commands = append(commands, client.B().Zcard().Key(s.cfg.namesKey(i)).Build())
	}
	total := 0
	for _, result := range client.DoMulti(ctx, commands...) {
		n, err := result.AsInt64()
		if err != nil {
			return err
		}
		total += int(n)
	}
	s.mu.Lock()
	s.stored, s.countAt = total, time.Now().Add(countEvery)
	s.mu.Unlock()
	return nil
}

// Len returns the number of counters as the server had it within the last two seconds.
func (s *Store) Len() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.stored
}

// LoadCounter asks the server for the snapshot of a counter. Its Epoch is 0.
func (s *Store) LoadCounter(ctx context.Context, name string) (hub.Snapshot, error) {
	snaps, err := s.read(ctx, []string{name})
	if err != nil {
		return hub.Snapshot{}, err
	}
	return snaps[0], nil
}

// List implements [hub.Counters]. Counters that are made or removed meanwhile may be in the list or not.
func (s *Store) List(ctx context.Context, prefix, after string, limit int) ([]hub.Entry, error) {
	names, err := s.names(ctx, prefix, after, limit)
	if err != nil {
		return nil, err
	}
	snaps, err := s.read(ctx, names)
	if err != nil {
		return nil, err
	}
	entries := make([]hub.Entry, 0, len(names))
	for i, name := range names {
		if snaps[i].Version > 0 { // otherwise it has just been removed
			entries = append(entries, hub.Entry{Counter: name, Snapshot: snaps[i]})
		}
	}
	return entries, nil
}

// names returns the first names of List: each bucket is asked for that many.
func (s *Store) names(ctx context.Context, prefix, after string, limit int) ([]string, error) {
	if limit <= 0 {
		return nil, nil
	}
	first, last := "-", "+"
	if prefix != "" {
		first, last = "["+prefix, "("+prefix+"\xff" // no byte of a name is above
	}
	if after != "" && cmp.Compare(after, prefix) >= 0 {
		first = "(" + after
	}
	results, err := s.ask(ctx, buckets, func(b valkey.Builder, i int) valkey.Completed {
		return b.Zrangebylex().Key(s.cfg.namesKey(i)).Min(first).Max(last).Limit(0, int64(limit)).Build()
	})
	if err != nil {
		return nil, err
	}
	var names []string
	for _, result := range results {
		of, err := result.AsStrSlice()
		if err != nil {
			return nil, err
		}
		names = append(names, of...)
	}
	slices.Sort(names)
	return names[:min(limit, len(names))], nil
}

// read returns the snapshots of the counters with the names.
func (s *Store) read(ctx context.Context, names []string) ([]hub.Snapshot, error) {
	results, err := s.ask(ctx, len(names), func(b valkey.Builder, i int) valkey.Completed {
		return b.Hmget().Key(s.cfg.counterKey(names[i], keyCounter)).Field("version", "value").Build()
	})
	if err != nil {
		return nil, err
	}
	snaps := make([]hub.Snapshot, len(names))
	for i, result := range results {
		list, err := result.AsStrSlice()
		if err != nil {
			return nil, err
		}
		if len(list) != 2 || list[0] == "" {
			continue // it is not there
		}
		var errs [2]error
		snaps[i].Version, errs[0] = strconv.ParseUint(list[0], 10, 64)
		snaps[i].Value, errs[1] = hub.ParseValue(list[1])
		if err := errors.Join(errs[:]...); err != nil {
			return nil, fmt.Errorf("%s is damaged: %w", s.cfg.counterKey(names[i], keyCounter), err)
		}
	}
	return snaps, nil
}

// ask sends n commands that change nothing, and returns the answers.
func (s *Store) ask(ctx context.Context, n int, command func(b valkey.Builder, i int) valkey.Completed) ([]valkey.ValkeyResult, error) {
	if n == 0 {
		return nil, nil
	}
	client, err := s.connection(ctx, false)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeoutCause(ctx, answerTimeout, errNoAnswer)
	defer cancel()
	commands := make(valkey.Commands, 0, n)
	for i := range n {
		commands = append(commands, command(client.B(), i))
	}
	return client.DoMulti(ctx, commands...), nil
}
