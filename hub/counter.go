package hub

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"path"
	"slices"
	"strings"
	"sync/atomic"
	"time"
)

// counter is a counter that is in use: it has clients, or actions that the store has not answered yet. A counter that is not
// in use is only in the store. The default counter is always in use.
type counter struct {
	// Immutable after newCounter.
	name  string        // "" is the default counter
	known chan struct{} // closed by loop at the first news of a shared store; nil if the value is known from the start

	// Guarded by Hub.mu.
	published publishedState
	holds     int    // clients and calls that use it
	held      uint64 // how often it was held
	clients   int    // of holds, those by clients; not counted for the default counter
	noted     bool   // it is in Hub.changed

	// Owned by loop.
	snap       Snapshot  // the newest that the store has given
	waiting    *batch    // the next batch; nil if no action waits
	inFlight   *batch    // the batch that the store is working on, or nil
	announceAt time.Time // when the number of users may be announced next
	announcing int       // its index in loop's announcements, or -1
	queuedFor  time.Time // announceAt when it came there

	// Safe from any goroutine.
	missing atomic.Bool // the store has no such counter, and no action that makes it is on its way

	// in has the part of each shard.
	in []watchers
}

// watchers are the clients of one shard that watch one counter.
type watchers struct {
	all   []*watch // owned by shard.run
	dirty bool     // the counter is in shard.dirty. Guarded by shard.dirtyMu.
}

// A watch is what one client has been sent of one counter. Its shard owns it, but for counter and client, which are immutable.
type watch struct {
	client  *client
	counter *counter

	index    int    // in watchers.all; -1 if it is not there
	users    int    // the number of users that the client was sent last
	usersSeq uint64 // publishedState.usersSeq of the newest number that the client knows
	stateSeq uint64 // publishedState.stateSeq of the newest value that the client was sent
}

func newCounter(h *Hub, name string) *counter {
	return &counter{name: name, announcing: -1, in: make([]watchers, h.cfg.Shards)}
}

// manyOf returns the store of cfg if there are to be further counters, and nil otherwise. shared is the same store if it is
// shared, too.
func manyOf(cfg Config) (many Counters, shared SharedCounters, err error) {
	if len(cfg.Counters) == 0 {
		return nil, nil, nil
	}
	for _, pattern := range cfg.Counters {
		if err := ValidPattern(pattern); err != nil {
			return nil, nil, err
		}
	}
	many, ok := cfg.Store.(Counters)
	if _, isShared := cfg.Store.(Shared); ok && isShared {
		shared, ok = cfg.Store.(SharedCounters)
	}
	if !ok {
		return nil, nil, fmt.Errorf("hub: the store has one counter only")
	}
	return many, shared, nil
}

// maxName bounds the name of a counter in bytes.
const maxName = 64

// nameBytes are the bytes of names.
const nameBytes = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-"

// ValidName returns an error unless name can be the name of a counter: 1 to 64 letters of ASCII, digits, periods, underscores
// and hyphens, and not only periods. Names differ by case.
func ValidName(name string) error {
	switch {
	case name == "" || len(name) > maxName:
		return fmt.Errorf("a name has 1 to %d characters", maxName)
	case strings.ContainsFunc(name, func(r rune) bool { return !strings.ContainsRune(nameBytes, r) }):
		return errors.New("a name has letters, digits, periods, underscores and hyphens")
	case strings.Trim(name, ".") == "": // "." and ".." mean other things in a URL
		return errors.New("a name has more than periods")
	}
	return nil
}

// ValidPattern returns an error unless pattern is one of [path.Match] that can match a name.
func ValidPattern(pattern string) error {
	if _, err := path.Match(pattern, ""); err != nil || pattern == "" {
		return fmt.Errorf("%q is no pattern: use names, such as likes, with * for any characters, ? for one and [a-z] for one of some", pattern)
	}
	if strings.Contains(pattern, "/") {
		return fmt.Errorf("%q matches no name: names have no slash", pattern)
	}
	return nil
}

// Allows reports whether there may be a counter called name: it is a name, and one of [Config].Counters matches it.
func (h *Hub) Allows(name string) bool {
	if ValidName(name) != nil {
		return false
	}
	return slices.ContainsFunc(h.cfg.Counters, func(pattern string) bool {
		ok, _ := path.Match(pattern, name) // New has checked the patterns
		return ok
	})
}

// holdLocked returns the counter called name, and keeps it in use until release. Its value may not be known yet: see await.
func (h *Hub) holdLocked(name string) (*counter, error) {
	c := h.standard
	if name != "" {
		if c = h.counters[name]; c == nil {
			c = newCounter(h, name)
			if h.sharedMany != nil {
				c.known = make(chan struct{})
				h.sharedMany.Watch(name)
			} else {
				snap, err := h.many.LoadCounter(context.Background(), name)
				if err != nil {
					return nil, err
				}
				c.snap = snap
				c.missing.Store(snap.Version == 0)
				c.published.push(snap, nil)
			}
			h.counters[name] = c
		}
	}
	c.holds++
	c.held++
	return c, nil
}

// await waits until the value of c, which the caller holds, is known. The error says that it is not known in time, that the
// hub is stopping, or that ctx has ended.
func (h *Hub) await(ctx context.Context, c *counter) error {
	if c.known == nil {
		return nil
	}
	select {
	case <-c.known: // usually
		return nil
	default:
	}
	late := time.NewTimer(storeTimeout)
	defer late.Stop()
	select {
	case <-c.known:
		return nil
	case <-late.C:
		return errUnknown
	case <-h.draining:
		return errStopping
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// releaseLocked ends a hold of c. If it was the last one, loop forgets c.
func (h *Hub) releaseLocked(c *counter) {
	if c.holds--; c.holds == 0 {
		h.noteLocked(c)
	}
}

// forget takes those of changed out of use that nothing holds and that have no action left. Only loop calls it.
func (h *Hub) forget(changed []*counter, p *pendingActions) {
	var idle []*counter
	var held []uint64
	h.mu.Lock()
	for _, c := range changed {
		if c != h.standard && c.holds == 0 {
			idle, held = append(idle, c), append(held, c.held)
		}
	}
	h.mu.Unlock()
	if len(idle) == 0 {
		return
	}
	// All actions of those that have held the counters are in the channel by now.
	emptied := h.takeActions(p, maxBatch)
	h.mu.Lock()
	defer h.mu.Unlock()
	for i, c := range idle {
		switch {
		case c.held != held[i]: // it is in use again, and the next release notes it
		case !emptied:
			h.noteLocked(c)
		case c.waiting == nil && c.inFlight == nil: // otherwise the end of the commit notes it
			delete(h.counters, c.name)
			if h.sharedMany != nil {
				h.sharedMany.Unwatch(c.name)
			}
		}
	}
}

// mayMake returns why remote may not act on c, or nil. The first action on a missing counter makes it. Those that follow before
// the store has made it are free.
func (h *Hub) mayMake(c *counter, remote netip.Prefix) *refusal {
	if !c.missing.Load() {
		return nil
	}
	if h.cfg.MayMake != nil && !h.cfg.MayMake(remote) {
		h.events.notMade(ReasonMakingLimited, "counter", c.name, "remote", remote)
		return refusedMaking
	}
	c.missing.Store(false) // until loop knows better
	return nil
}

// State returns the value of a counter and the number of its users. ok is false if the value is not known. ctx bounds the
// wait for a shared store.
func (h *Hub) State(ctx context.Context, name string) (value Value, users int, ok bool) {
	h.mu.Lock()
	c := h.standard
	if name != "" {
		c = h.counters[name]
	}
	if c != nil {
		defer h.mu.Unlock()
		return c.published.value(), c.published.users, c.published.stateSeq > 0
	}
	h.mu.Unlock()
	snap, err := h.many.LoadCounter(ctx, name)
	return snap.Value, 0, err == nil
}
