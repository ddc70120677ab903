package hub

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"
)

// Stats describes a hub at one moment. Value to Users, Hubs and Behind are those of the default counter.
type Stats struct {
	Value   Value  `json:"value"`
	Unknown bool   `json:"unknown,omitempty"`     // a shared store has not been reached yet, so Value means nothing
	Epoch   uint64 `json:"epoch,omitempty"`       // see [Snapshot]; 0 unless the store is shared
	Version uint64 `json:"version"`               // see [Snapshot]
	Users   int    `json:"users"`                 // clients of all hubs that share the store
	Clients int    `json:"clients"`               // clients of this hub, of all counters
	Max     int    `json:"max,omitempty"`         // [Config].MaxClients; 0 means no cap
	Hubs    int    `json:"hubs,omitempty"`        // hubs that share the store, this one included; 0 if not known
	Behind  int    `json:"behind"`                // clients of this hub that have not been sent Value yet
	Blocked int64  `json:"blocked"`               // clients of this hub whose connection took less than the hub wrote
	Refused uint64 `json:"refused"`               // messages refused since the start
	Store   string `json:"store_error,omitempty"` // why the store cannot be used; "" if it can
}

// Stats returns the present numbers of the hub.
func (h *Hub) Stats() Stats {
	h.mu.Lock()
	defer h.mu.Unlock()
	p := &h.standard.published
	s := Stats{
		Value:   p.value(),
		Unknown: h.unknown,
		Epoch:   p.epoch,
		Version: p.version,
		Users:   p.users,
		Clients: h.present,
		Max:     h.cfg.MaxClients,
		Hubs:    p.hubs,
		Behind:  h.behind(p.stateSeq),
		Blocked: h.blocked.Load(),
		Refused: h.refused(),
	}
	if err := h.healthLocked(); err != nil {
		s.Store = err.Error()
	}
	return s
}

// CountersStats describes the counters besides the default one, at one moment.
type CountersStats struct {
	Stored  int               // how many the store has
	Watched int               // how many have clients of this hub; a counter that is not stored counts, too
	Made    uint64            // how many were made since the start
	NotMade map[Reason]uint64 // attempts to make one that were refused since the start, by reason

	// Named are the counters that [Config].Counters lists in full, without those whose value is not known.
	Named []CounterStats
}

// CounterStats describes one counter.
type CounterStats struct {
	Name  string
	Value Value // the zero Value if the store has no such counter
	Users int   // clients that watch it
}

// CountersStats returns nil without [Config].Counters. It asks the store for the counters of Named that are not in use, without a
// lock of the hub, for at most 1.5 seconds in total. It does not ask a shared store that cannot be used.
func (h *Hub) CountersStats(ctx context.Context) *CountersStats {
	if h.many == nil {
		return nil
	}
	s := &CountersStats{Stored: h.many.Len(), Made: h.made.Load(), NotMade: h.events.makings.Counts()}
	var idle []string
	h.mu.Lock()
	s.Watched = h.watched
	for _, name := range h.named {
		switch c := h.counters[name]; {
		case c == nil:
			idle = append(idle, name)
		case c.published.stateSeq > 0: // otherwise a shared store has not told its value yet
			s.Named = append(s.Named, CounterStats{name, c.published.value(), c.published.users})
		}
	}
	usable := h.newsErr == nil
	h.mu.Unlock()
	if !usable {
		return s
	}
	ctx, cancel := context.WithTimeout(ctx, storeTimeout)
	defer cancel()
	for _, name := range idle {
		snap, err := h.many.LoadCounter(ctx, name)
		if err != nil { // the others would take as long
			break
		}
		s.Named = append(s.Named, CounterStats{Name: name, Value: snap.Value})
	}
	return s
}

// fullNames returns the names among patterns, in order, each once. A name has no character that means anything in a pattern.
func fullNames(patterns []string) []string {
	var names []string
	for _, pattern := range patterns {
		if ValidName(pattern) == nil {
			names = append(names, pattern)
		}
	}
	slices.Sort(names)
	return slices.Compact(names)
}

// countClientsLocked adds n, which is 1 or -1, to the clients that watch c.
func (h *Hub) countClientsLocked(c *counter, n int) {
	if c == h.standard {
		return
	}
	if c.clients == 0 {
		h.watched++
	}
	if c.clients += n; c.clients == 0 {
		h.watched--
	}
}

// noteMade counts c if the store had no such counter before snap. Only loop calls it.
func (h *Hub) noteMade(c *counter, snap Snapshot) {
	if c != h.standard && c.snap.Version == 0 && snap.Version != 0 {
		h.made.Add(1)
	}
}

// Ready returns nil if the hub accepts actions. Otherwise the error says why not: the hub is
// stopping, or its store cannot be used.
func (h *Hub) Ready() error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.stopping {
		return errors.New("stopping")
	}
	if err := h.healthLocked(); err != nil {
		return fmt.Errorf("store: %w", err)
	}
	return nil
}

// noteApply records the outcome of c.
func (h *Hub) noteApply(c *commit, took time.Duration) {
	var failed error
	counted := 0
	for i := range c.changes {
		switch err := c.changes[i].Err; {
		case err == nil:
			counted += len(c.batches[i].actions)
		case errors.Is(err, ErrFull): // the store works
			h.events.notMade(ReasonTooManyCounters, "counter", c.batches[i].of.name, "err", err)
		case !errors.Is(err, ErrRange): // likewise
			failed = err
		}
	}
	h.noteHealth(func() {
		h.storeErr = failed
		h.applies.observe(took)
		h.counted += uint64(counted)
		if failed != nil {
			h.applyErrors++
		}
	})
}

// noteNoAnswer records that the commit in flight takes longer than storeTimeout.
func (h *Hub) noteNoAnswer() { h.noteHealth(func() { h.storeErr = errNoAnswer }) }

// noteNews records whether a shared store can be used, from its news.
func (h *Hub) noteNews(err error) { h.noteHealth(func() { h.newsErr = err }) }

// noteHealth calls set, which may change storeErr and newsErr, under mu. It counts an outage if the
// store became unusable, and logs if the store became unusable or usable again.
func (h *Hub) noteHealth(set func()) {
	h.mu.Lock()
	was := h.healthLocked()
	set()
	err := h.healthLocked()
	if err != nil && was == nil {
		h.outages++
	}
	h.mu.Unlock()
	switch {
	case err != nil && was == nil:
		h.log.Error("the store fails: actions are refused, the last value is served", "err", err)
	case err == nil && was != nil:
		h.log.Info("the store works again")
	}
}

// healthLocked returns why the store cannot be used, or nil.
func (h *Hub) healthLocked() error {
	if h.newsErr != nil {
		return h.newsErr // more precise than errNoAnswer
	}
	return h.storeErr
}
