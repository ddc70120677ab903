package hub

import (
	"errors"
	"fmt"
	"time"
)

// Stats tells about a hub at one moment.
type Stats struct {
	Value   Value  `json:"value"`
	Unknown bool   `json:"unknown,omitempty"` // a shared store has not been reached yet: Value says nothing
	Epoch   uint64 `json:"epoch,omitempty"`   // of a shared store: 1, and one more each time that it has lost what it held
	Version uint64 `json:"version"`           // of the store
	Users   int    `json:"users"`             // clients of all hubs that share the store
	Clients int    `json:"clients"`           // clients that have joined this one
	Max     int    `json:"max,omitempty"`     // how many there may be; 0 is no cap
	Hubs    int    `json:"hubs,omitempty"`    // that share the store, this one included
	Behind  int    `json:"behind"`            // of Clients, how many have not been sent Value yet
	Blocked int64  `json:"blocked"`           // of Clients, how many do not take what they are sent
	Refused uint64 `json:"refused"`           // messages refused since the start
	Store   string `json:"store_error,omitempty"`
}

// Stats returns what there is to know right now.
func (h *Hub) Stats() Stats {
	h.mu.Lock()
	defer h.mu.Unlock()
	s := Stats{
		Value:   h.published.value(),
		Unknown: h.unknown,
		Epoch:   h.published.epoch,
		Version: h.published.version,
		Users:   h.published.users,
		Clients: h.published.clients(),
		Max:     h.cfg.MaxClients,
		Hubs:    h.published.hubs,
		Behind:  h.behind(h.published.stateSeq),
		Blocked: h.blocked.Load(),
		Refused: h.refused(),
	}
	if err := h.healthLocked(); err != nil {
		s.Store = err.Error()
	}
	return s
}

// Ready returns nil if actions are being taken, or else why not.
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

// noteApply remembers what became of the last commit, which was of n actions.
func (h *Hub) noteApply(n int, took time.Duration, err error) {
	outOfRange := errors.Is(err, ErrRange)
	if outOfRange {
		err = nil // an answer like any other
	}
	h.noteHealth(func() {
		h.storeErr = err
		h.applies.observe(took)
		switch {
		case err != nil:
			h.applyErrors++
		case !outOfRange:
			h.counted += uint64(n)
		}
	})
}

// noteNoAnswer remembers that the last commit takes too long.
func (h *Hub) noteNoAnswer() { h.noteHealth(func() { h.storeErr = errNoAnswer }) }

// noteNews remembers what a shared store says of itself.
func (h *Hub) noteNews(err error) { h.noteHealth(func() { h.newsErr = err }) }

// noteHealth has set change what is known of the store under mu, and logs if that matters.
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
		return h.newsErr // it knows more than that there was no answer
	}
	return h.storeErr
}
