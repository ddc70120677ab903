package hub

import (
	"context"
	"errors"
	"sync"
)

// MaxValue bounds the counter: it stays in ±MaxValue, the integers that a browser
// holds exactly (ECMA-262, Number.MAX_SAFE_INTEGER).
const MaxValue = 1<<53 - 1

// ErrRange is what [Store.Apply] returns, changing nothing, for a delta that would
// take the value out of ±[MaxValue].
var ErrRange = errors.New("hub: the counter is at its limit")

// Snapshot is the counter at one moment.
type Snapshot struct {
	Version uint64 // grows with each change that a store has made
	Value   int64
}

// Store is where the value lives. The hub calls Load once and then Apply from one
// goroutine, never two at a time.
type Store interface {
	// Load returns the present value.
	Load(ctx context.Context) (Snapshot, error)

	// Apply adds delta, the sum of a batch of actions, and returns once the result is
	// as safe as this store makes it. It returns [ErrRange] if the value would leave
	// ±[MaxValue]. After any error the value is what it was. delta may be 0: the store
	// then shows that it can write at all.
	Apply(ctx context.Context, delta int64) (Snapshot, error)
}

// Add returns the snapshot that follows s when delta is applied, or [ErrRange].
func (s Snapshot) Add(delta int64) (Snapshot, error) {
	// |s.Value| <= MaxValue, so that neither difference can overflow.
	if delta > MaxValue-s.Value || delta < -MaxValue-s.Value {
		return s, ErrRange
	}
	return Snapshot{Version: s.Version + 1, Value: s.Value + delta}, nil
}

// Memory is a [Store] that forgets its value when the process ends. The zero value
// holds 0. It is safe for concurrent use.
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
func (m *Memory) Apply(_ context.Context, delta int64) (Snapshot, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	next, err := m.now.Add(delta)
	if err == nil {
		m.now = next
	}
	return next, err
}
