package hub

import (
	"errors"
	"fmt"
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
		case !errors.Is(err, ErrRange) && !errors.Is(err, ErrFull): // with these two the store works
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
