package hub

import (
	"context"
	"sync"
	"time"
)

// Snapshot is the value at one moment.
type Snapshot struct {
	// Epoch grows when a [Shared] store has lost what it held: versions of two epochs do
	// not compare. It counts from 1 in each process. Stores that are not shared leave it 0.
	Epoch uint64

	Version uint64 // grows with each change that a store has made
	Value   Value
}

// newerThan reports whether s is a later moment of the same store than t.
func (s Snapshot) newerThan(t Snapshot) bool {
	return s.Epoch > t.Epoch || s.Epoch == t.Epoch && s.Version > t.Version
}

// Store is where the value lives. The hub calls Load once and then Apply from one
// goroutine, never two at a time.
type Store interface {
	// Load returns the present value.
	Load(ctx context.Context) (Snapshot, error)

	// Apply adds delta, the sum of a batch of actions, and returns once the result is
	// as safe as this store makes it. It returns [ErrRange] if the value would leave its
	// range. After any error the value is what it was. delta may be 0: the store
	// then shows that it can write at all.
	//
	// As long as a store does not know whether delta has counted it must not return; the
	// hub refuses actions meanwhile. ctx ends when the hub gives up, at the end of
	// [Hub.Shutdown]; only then may the outcome stay unknown.
	Apply(ctx context.Context, delta Delta) (Snapshot, error)
}

// Shared is a [Store] that several hubs use at once, each through a Shared of its own, so
// that there is news of the others. All methods are safe for concurrent use.
//
// If Load fails, the hub starts all the same: it lets nobody in before the first news that
// has a snapshot, since nobody knows the value.
type Shared interface {
	Store

	// News returns a channel that holds the newest news, if it has not been taken yet. It
	// is always the same one, and never closed.
	News() <-chan News

	// Announce says how many clients this hub has. It does not wait.
	Announce(clients int)

	// Pace returns the least time between the beginnings of two calls of Apply. Actions
	// that arrive meanwhile are merged.
	Pace() time.Duration
}

// News is what a [Shared] store has heard.
type News struct {
	Snapshot Snapshot // the newest that is known; Epoch is 0 if none is
	Others   int      // the clients of all other hubs
	Hubs     int      // how many hubs use the store, this one included; 0 if that is not known
	Err      error    // why the store cannot be used now, or nil
}

// Add returns the snapshot that follows s when delta is applied, or [ErrRange].
func (s Snapshot) Add(delta Delta) (Snapshot, error) {
	if !fits(s.Value, delta) {
		return s, ErrRange
	}
	return Snapshot{Epoch: s.Epoch, Version: s.Version + 1, Value: sum(s.Value, delta)}, nil
}

// Memory is a [Store] that forgets its value when the process ends. The zero value
// holds the zero [Value]. It is safe for concurrent use.
type Memory struct {
	mu  sync.Mutex
	now Snapshot // Guarded by mu.
}

// Load returns the present value. It does not fail.
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
