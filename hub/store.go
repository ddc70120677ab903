package hub

import (
	"context"
	"errors"
	"slices"
	"strings"
	"sync"
	"time"
)

// Snapshot is the value of a store at one moment.
type Snapshot struct {
	// Epoch grows when a [Shared] store has lost its data. Versions are comparable only within
	// an epoch. Each process counts epochs from 1. Stores that are not shared leave it 0.
	Epoch uint64

	Version uint64 // grows with each change of the value
	Value   Value
}

// newerThan reports whether s is later than t. Both are of the same store.
func (s Snapshot) newerThan(t Snapshot) bool {
	return s.Epoch > t.Epoch || s.Epoch == t.Epoch && s.Version > t.Version
}

// Store keeps the value. The hub calls Load once, and then Apply from one goroutine, one call at a
// time.
type Store interface {
	// Load returns the current snapshot.
	Load(ctx context.Context) (Snapshot, error)

	// Apply adds delta, the sum of a batch of actions, and returns when the result is as safe
	// as this store can make it. It returns [ErrRange] if the value would leave its range.
	// After any error the value is unchanged. delta may be 0: the hub then wants to know
	// whether the store can write.
	//
	// Apply must not return before the store knows whether delta was applied. If that takes
	// long, the hub refuses actions meanwhile. The hub cancels ctx only at the end of
	// [Hub.Shutdown]; then Apply may return an error although the outcome is unknown.
	Apply(ctx context.Context, delta Delta) (Snapshot, error)
}

// Counters is a [Store] of many counters. Each has a name; the name "" is that of the default counter, which Load and
// Apply are about. LoadCounter and List may be called while another call is in progress. LoadCounter does not wait, unless the
// store is a [Shared].
type Counters interface {
	Store

	// LoadCounter returns the snapshot of a counter. It is the zero Snapshot if the store has no such counter.
	LoadCounter(ctx context.Context, name string) (Snapshot, error)

	// ApplyAll makes all changes, which are of different counters, as safe as this store can make them, and then returns.
	// It sets Snapshot and Err of each. One change may fail while others succeed. What Apply says of delta, of errors and of
	// ctx holds for each change.
	ApplyAll(ctx context.Context, changes []Change)

	// List returns the counters whose names begin with prefix, and come after the name after, in the order of their names,
	// at most limit of them. The default counter is not among them.
	List(ctx context.Context, prefix, after string, limit int) ([]Entry, error)

	// Len returns the number of counters, without the default counter.
	Len() int
}

// A Change is what happens to one counter in one call of [Counters.ApplyAll].
type Change struct {
	Counter string // its name
	Delta   Delta  // is added to the value; if it is not 0, a counter that is not there is made

	// Set, if it is not nil, replaces the value before Delta is added. It gives a new version like any other, and makes a
	// counter that is not there.
	Set *Value

	// Remove removes the counter, and Snapshot is the zero Snapshot. The default counter becomes 0 instead.
	Remove bool

	// Set by ApplyAll.
	Snapshot Snapshot // of the counter, afterwards
	Err      error    // why nothing has changed, or nil
}

// An Entry is a counter in a list.
type Entry struct {
	Counter string
	Snapshot
}

var none Delta // changes nothing

// ErrFull is the error of a [Change] that would make a counter for which the store has no room.
var ErrFull = errors.New("hub: no room for another counter")

// Apply returns the snapshot that follows s by the change, which is not a removal. Set and a Delta that is not 0 give a new version.
func (c *Change) Apply(s Snapshot) (Snapshot, error) {
	from := s
	if c.Set != nil {
		from.Value = *c.Set
		if _, err := ParseValue(string(AppendValue(nil, from.Value))); err != nil {
			return s, ErrRange
		}
	}
	next, err := from.Add(c.Delta)
	if err != nil {
		return s, err
	}
	return next, nil
}

// Shared is a [Store] that several hubs use at once, each through a Shared of its own. It tells its
// hub the changes of the others as [News]. All methods are safe for concurrent use. A Shared that is a [Counters], too, must
// be a [SharedCounters].
//
// If Load fails, the hub starts nevertheless. It then refuses clients until the first News with a
// snapshot, since it does not know the value.
type Shared interface {
	Store

	// News returns a channel that holds the newest News until the hub receives it. It is always
	// the same channel, and is never closed.
	News() <-chan News

	// Announce tells the store how many clients of this hub watch a counter. It does not wait.
	Announce(counter string, clients int)

	// Pace returns the least time between the start of a commit of that many changes and the start of the next one.
	// Actions that arrive in between form one batch.
	Pace(changes int) time.Duration
}

// SharedCounters is a [Shared] store of many counters.
type SharedCounters interface {
	Shared
	Counters

	// Watch begins, and Unwatch ends, the news of a counter other than the default one. The first of them has its snapshot,
	// and comes as soon as the store has read that. The hub watches a counter while it is in use. They do not wait.
	Watch(counter string)
	Unwatch(counter string)
}

// News is the latest information of a [Shared] store about its counters and the other hubs.
type News struct {
	Counters []CounterNews // of the counters that have news, one each
	Hubs     int           // the number of hubs that use the store, this one included; 0 if unknown
	Err      error         // why the store cannot be used now, or nil
}

// CounterNews is the part of [News] about one counter.
type CounterNews struct {
	Counter  string
	Snapshot Snapshot // the newest known snapshot; Epoch is 0 if none is known
	Others   int      // how many clients of all other hubs watch the counter
}

// Add returns the snapshot that follows s when delta is applied. If the value would leave its range, it
// returns s and [ErrRange].
func (s Snapshot) Add(delta Delta) (Snapshot, error) {
	if !fits(s.Value, delta) {
		return s, ErrRange
	}
	return Snapshot{Epoch: s.Epoch, Version: s.Version + 1, Value: sum(s.Value, delta)}, nil
}

// Memory is a store that loses its values when the process ends. It implements [Counters]. The zero Memory holds the zero
// [Value]. It is safe for concurrent use.
type Memory struct {
	// Max is how many counters there may be, without the default counter; 0 is no limit. It does not change.
	Max int

	mu sync.Mutex
	// Guarded by mu.
	now    Snapshot            // of the default counter
	others map[string]Snapshot // of the others; nil until there is one
}

// Load returns the current snapshot. It does not fail.
func (m *Memory) Load(context.Context) (Snapshot, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.now, nil
}

// Apply adds delta. Its only error is [ErrRange].
func (m *Memory) Apply(_ context.Context, delta Delta) (Snapshot, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	next, err := m.now.Add(delta)
	if err == nil {
		m.now = next
	}
	return next, err
}

// LoadCounter returns the snapshot of a counter. It does not fail.
func (m *Memory) LoadCounter(_ context.Context, name string) (Snapshot, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.loadLocked(name), nil
}

func (m *Memory) loadLocked(name string) Snapshot {
	if name == "" {
		return m.now
	}
	return m.others[name]
}

// ApplyAll makes the changes. Their only errors are [ErrRange] and [ErrFull].
func (m *Memory) ApplyAll(_ context.Context, changes []Change) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for i := range changes {
		c := &changes[i]
		was := m.loadLocked(c.Counter)
		switch {
		case c.Remove && c.Counter != "":
			delete(m.others, c.Counter)
			c.Snapshot, c.Err = Snapshot{}, nil
			continue
		case c.Remove:
			c.Snapshot, c.Err = Snapshot{Version: was.Version + 1}, nil
		default:
			c.Snapshot, c.Err = c.Apply(was)
		}
		switch {
		case c.Err != nil:
		case c.Counter == "":
			m.now = c.Snapshot
		case was.Version == 0 && c.Set == nil && c.Delta == none: // a change of nothing makes nothing
			c.Snapshot = was
		case was.Version == 0 && m.Max > 0 && len(m.others) >= m.Max:
			c.Snapshot, c.Err = was, ErrFull
		default:
			if m.others == nil {
				m.others = make(map[string]Snapshot)
			}
			m.others[c.Counter] = c.Snapshot
		}
	}
}

// List lists counters. It does not fail.
func (m *Memory) List(_ context.Context, prefix, after string, limit int) ([]Entry, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return ListOf(m.others, func(s Snapshot) Snapshot { return s }, prefix, after, limit), nil
}

// Len returns the number of counters.
func (m *Memory) Len() int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return len(m.others)
}

// ListOf is [Counters.List] for a store that has its counters in a map. It looks at all names, and sorts only those that it
// returns: a store may hold a lock meanwhile.
func ListOf[T any](counters map[string]T, snapshot func(T) Snapshot, prefix, after string, limit int) []Entry {
	var names []string // the first in the order, at most 2*limit of them
	last := ""         // no name from this one on is among the first limit; "" if that is not known
	limit = max(limit, 0)
	cut := func() {
		slices.Sort(names)
		if len(names) > limit {
			last = names[limit]
			names = names[:limit]
		}
	}
	for name := range counters {
		if name == "" || name <= after || last != "" && name >= last || !strings.HasPrefix(name, prefix) {
			continue
		}
		if names = append(names, name); len(names)/2 > limit {
			cut()
		}
	}
	cut()
	entries := make([]Entry, 0, len(names))
	for _, name := range names {
		entries = append(entries, Entry{name, snapshot(counters[name])})
	}
	return entries
}
