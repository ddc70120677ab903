package hub

import (
	"context"
	"errors"
	"net/netip"

	"github.com/coder/websocket"
)

// A RefusedError says why an action by [Hub.Act] was refused.
type RefusedError struct {
	Code string // for programs, as in error messages
	JSON []byte // the error message; must not be changed
}

func (e *RefusedError) Error() string { return "hub: refused: " + e.Code }

// A call is one call of Act.
type call struct {
	hub     *Hub
	outcome chan callOutcome // tell and tellAll -> Act; 1, since only the first one counts; never closed
}

type callOutcome struct {
	value Value
	why   *refusal // nil if the action counts
}

// refuse and counted implement [sender].
func (c *call) refuse(why *refusal) {
	c.hub.acts.refuse(why)
	c.hub.acts.errors.Add(1)
	c.end(callOutcome{why: why})
}
func (c *call) counted(value Value) { c.end(callOutcome{value: value}) }

func (c *call) end(o callOutcome) {
	select {
	case c.outcome <- o:
	default:
	}
}

// Act does what a client's message does, without a client: it acts on the counter called name, which [Hub.Allows], or on the
// default counter if name is "". remote is the address that [Config].MayAct and MayMake are asked about. Act
// returns the counter's value when that is safe.
//
// The error is a *[RefusedError], or that of ctx; then the action may count. Safe from any goroutine.
func (h *Hub) Act(ctx context.Context, name string, remote netip.Prefix, message []byte) (Value, error) {
	var zero Value
	h.acts.received.Add(1)
	c := &call{hub: h, outcome: make(chan callOutcome, 1)}
	of, release, a, why := h.beginAct(ctx, name, remote, message)
	defer release()
	if why != nil {
		c.refuse(why)
	} else {
		sendTo(h, h.actions, actionRun{from: c, of: of, kind: a, count: 1}) // the hub does not end before release
	}
	select {
	case o := <-c.outcome:
		if o.why != nil {
			return zero, &RefusedError{Code: o.why.code, JSON: o.why.message}
		}
		return o.value, nil
	case <-ctx.Done():
		return zero, context.Cause(ctx)
	}
}

// beginAct returns the action in message and its counter, or why it is refused. The caller must call release in either case.
func (h *Hub) beginAct(ctx context.Context, name string, remote netip.Prefix, message []byte) (of *counter, release func(), a action, why *refusal) {
	release = func() {}
	a, why = decode(websocket.MessageText, message)
	if why == nil && h.cfg.MayAct != nil && !h.cfg.MayAct(remote) {
		why = refusedRate
	}
	if why != nil {
		return nil, release, a, why
	}
	of, done, err := h.use(ctx, name)
	if err != nil {
		return nil, release, a, refusedStore
	}
	if h.storeOverdue.Load() {
		return of, done, a, refusedStore
	}
	return of, done, a, h.mayMake(of, remote)
}

var errStopping = errors.New("stopping")

// use holds the counter called name for a call, and waits until its value is known. The hub does not end before release.
func (h *Hub) use(ctx context.Context, name string) (*counter, func(), error) {
	c, err := h.holdForCall(name)
	if err != nil {
		return nil, nil, err
	}
	release := func() {
		h.mu.Lock()
		h.releaseLocked(c)
		h.mu.Unlock()
		h.clients.Done()
	}
	if err := h.await(ctx, c); err != nil {
		release()
		return nil, nil, err
	}
	return c, release, nil
}

func (h *Hub) holdForCall(name string) (*counter, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	switch {
	case h.stopping:
		return nil, errStopping
	case h.unknown:
		return nil, errUnknown
	}
	c, err := h.holdLocked(name)
	if err == nil {
		h.clients.Add(1) // under mu, as in admit
	}
	return c, err
}

var errUnknown = errors.New("the counter's store has not been reached yet")

// errSuperseded is the answer to an order that another one has overwritten.
var errSuperseded = errors.New("another change of the counter came at the same time")

// ErrOne is the error of [Hub.Set] and [Hub.Remove] without [Config].Counters.
var ErrOne = errors.New("the server runs without -counters")

// An order is a change of one counter by an operator.
type order struct {
	of     *counter
	value  Value
	remove bool
	result chan orderResult // tell and loop -> Set and Remove; 1, since only the first one counts; never closed
}

type orderResult struct {
	snap Snapshot
	err  error
}

func (o *order) answer(snap Snapshot, err error) {
	select {
	case o.result <- orderResult{snap, err}:
	default:
	}
}

// Set sets the counter called name to value, and returns when that is safe. Clients are sent it like any other value.
// Without [Config].Counters there is only the default counter, "". The error is [ErrRange], [ErrFull], that of the store, or
// that of ctx. Safe from any goroutine.
func (h *Hub) Set(ctx context.Context, name string, value Value) (Snapshot, error) {
	return h.order(ctx, name, value, false)
}

// Remove removes the counter called name, and returns when that is safe. Its clients are sent the zero [Value]. The default
// counter is set to that.
func (h *Hub) Remove(ctx context.Context, name string) error {
	var zero Value
	_, err := h.order(ctx, name, zero, true)
	return err
}

func (h *Hub) order(ctx context.Context, name string, value Value, remove bool) (Snapshot, error) {
	if h.many == nil {
		return Snapshot{}, ErrOne
	}
	if _, err := ParseValue(string(AppendValue(nil, value))); err != nil {
		return Snapshot{}, ErrRange
	}
	of, release, err := h.use(ctx, name)
	if err != nil {
		return Snapshot{}, err
	}
	defer release()
	o := &order{of: of, value: value, remove: remove, result: make(chan orderResult, 1)}
	select {
	case h.orders <- o:
	case <-ctx.Done():
		return Snapshot{}, context.Cause(ctx)
	}
	select {
	case r := <-o.result:
		return r.snap, r.err
	case <-ctx.Done():
		return Snapshot{}, context.Cause(ctx)
	}
}

// List returns counters as [Counters.List] does. It returns none without [Config].Counters.
func (h *Hub) List(ctx context.Context, prefix, after string, limit int) ([]Entry, error) {
	if h.many == nil {
		return nil, nil
	}
	return h.many.List(ctx, prefix, after, limit)
}

// Len returns how many counters the store has, without the default one.
func (h *Hub) Len() int {
	if h.many == nil {
		return 0
	}
	return h.many.Len()
}

// Stored returns the snapshot that the store has of a counter. It is the zero Snapshot if the store has no such counter.
func (h *Hub) Stored(ctx context.Context, name string) (Snapshot, error) {
	if h.many == nil {
		return Snapshot{}, nil
	}
	return h.many.LoadCounter(ctx, name)
}
