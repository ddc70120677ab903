package hub

import (
	"context"
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

// Shared is a [Store] that several hubs use at once, each through a Shared of its own. It tells its
// hub the changes of the others as [News]. All methods are safe for concurrent use.
//
// If Load fails, the hub starts nevertheless. It then refuses clients until the first News with a
// snapshot, since it does not know the value.
type Shared interface {
	Store

	// News returns a channel that holds the newest News until the hub receives it. It is always
	// the same channel, and is never closed.
	News() <-chan News

	// Announce tells the store how many clients this hub has. It does not wait.
	Announce(clients int)

	// Pace returns the least time between the starts of two calls of Apply. Actions that arrive
	// in between form one batch.
	Pace() time.Duration
}

// News is the latest information of a [Shared] store about the value and the other hubs.
type News struct {
	Snapshot Snapshot // the newest known snapshot; Epoch is 0 if none is known
	Others   int      // the number of clients of all other hubs
	Hubs     int      // the number of hubs that use the store, this one included; 0 if unknown
	Err      error    // why the store cannot be used now, or nil
}

// Add returns the snapshot that follows s when delta is applied. If the value would leave its range, it
// returns s and [ErrRange].
func (s Snapshot) Add(delta Delta) (Snapshot, error) {
	if !fits(s.Value, delta) {
		return s, ErrRange
	}
	return Snapshot{Epoch: s.Epoch, Version: s.Version + 1, Value: sum(s.Value, delta)}, nil
}

// Memory is a [Store] that loses its value when the process ends. The zero Memory holds the zero
// [Value]. It is safe for concurrent use.
type Memory struct {
	mu  sync.Mutex
	now Snapshot // Guarded by mu.
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
