package hub

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"runtime"
	"sync"
	"sync/atomic"
	"time"
)

// Config is what [New] needs to know. Only Store is required.
type Config struct {
	// Store is where the value lives. The hub does not close it.
	Store Store

	// Logger gets a line for each thing that an operator should know, and debug lines
	// for each client. nil discards them.
	Logger *slog.Logger

	// Origins lists the pages that may connect, as [ParseOrigin] understands them. A
	// handshake without an Origin header, which no browser sends, is let in. Without
	// any, no page may connect.
	Origins []Origin

	// MaxClients caps the clients in all, and MaxClientsPerIP those of one IPv4 address or
	// IPv6 /64. One more is refused with 503 and Retry-After. 0 is no cap: then whoever
	// opens enough connections takes all file descriptors.
	MaxClients      int
	MaxClientsPerIP int

	// ActionRate is how many actions a client may send a second in the long run, and
	// ActionBurst, at least 1, how many at once. One more is refused. A rate of 0 is no
	// limit.
	ActionRate  float64
	ActionBurst int

	// Shards is how many goroutines write to clients; 0 is one for each processor.
	Shards int
}

// Hub is a broadcast hub. Its methods are safe from any goroutine.
type Hub struct {
	// Immutable after New.
	cfg    Config
	store  Store
	log    *slog.Logger
	shards []*shard

	actions   chan action   // readLoops -> loop; 1024, so that a burst costs no handover; never closed
	presence  chan struct{} // serve -> loop: the number of clients changed; 1, a token is enough
	commits   chan *batch   // loop -> commitLoop; one batch is on its way at most; closed by loop
	committed chan result   // commitLoop -> loop; 1, so that commitLoop can end after loop; never closed
	draining  chan struct{} // closed by Shutdown: clients are being closed
	aborting  chan struct{} // closed by Shutdown: clients are disconnected
	done      chan struct{} // closed by Shutdown when no client is left

	clients sync.WaitGroup // the clients' goroutines
	running sync.WaitGroup // all others

	nextShard atomic.Uint32
	blocked   atomic.Int64  // clients that are blocked
	refusals  atomic.Uint64 // messages that were refused
	stalled   atomic.Uint64 // clients disconnected since they took nothing
	silent    atomic.Uint64 // clients disconnected since they did not answer a ping

	mu sync.Mutex
	// Guarded by mu.
	published published
	stopping  bool
	storeErr  error         // why the last commit failed; nil after one that succeeded
	admitted  addressCounts // clients, from before their opening handshake to the end of their goroutine
}

// recentValues is how many of the newest values are kept. A client that is at most so
// far behind is sent each, so that nothing is skipped when actions come close together;
// one that is further behind is sent the newest alone. All of them fit one packet.
const recentValues = 16

// published is the state that clients are sent. The two Seq fields only grow, and tell
// whether a client has been sent a thing.
type published struct {
	recent   [recentValues]int64 // the newest values, oldest first
	stateSeq uint64              // how many values there have been
	version  uint64              // the store's version of the newest one

	users    int    // clients right now
	usersSeq uint64 // how often users has changed

	// What all have been told, or are being told: users, but at most ten times a second.
	announced    int
	announcedSeq uint64
}

func (p *published) value() int64 { return p.recent[recentValues-1] }

// The least time between two announcements of the number of clients is usersEvery, or
// usersPace for each client if that is more. An announcement costs about 15 µs a client,
// so that it takes 3 % of a processor at most, and n arrivals at once cost O(n) and not n²
// messages.
const (
	usersEvery = 100 * time.Millisecond
	usersPace  = 500 * time.Microsecond
)

// action is +1 or -1 from a client, or several of the same in a row.
type action struct {
	from  *client
	delta int8
	count int
}

// maxBatch bounds how many actions one commit carries. When that many are waiting for
// the store, those who send more have to wait, too.
const maxBatch = 4096

// batch is a series of actions that the store gets as one change.
type batch struct {
	delta      int64    // the sum of deltas
	deltas     []int8   // one for each action that counts, in order
	actions    []action // the same
	outOfRange []action // those that would leave ±MaxValue
}

func (b *batch) len() int { return len(b.deltas) + len(b.outOfRange) }

func (b *batch) reset() {
	clear(b.actions) // or clients that left would be kept alive
	clear(b.outOfRange)
	*b = batch{deltas: b.deltas[:0], actions: b.actions[:0], outOfRange: b.outOfRange[:0]}
}

// result is what became of a batch.
type result struct {
	batch *batch
	snap  Snapshot
	err   error
}

// New starts a hub on the value that cfg.Store holds. ctx bounds the loading of it.
// [Hub.Shutdown] ends the hub.
func New(ctx context.Context, cfg Config) (*Hub, error) {
	if cfg.Store == nil {
		return nil, errors.New("hub: Config.Store is missing")
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	if cfg.Shards <= 0 {
		cfg.Shards = runtime.GOMAXPROCS(0)
	}
	snap, err := cfg.Store.Load(ctx)
	if err != nil {
		return nil, fmt.Errorf("loading the counter: %w", err)
	}
	h := &Hub{
		cfg:       cfg,
		store:     cfg.Store,
		log:       cfg.Logger,
		actions:   make(chan action, 1024),
		presence:  make(chan struct{}, 1),
		commits:   make(chan *batch),
		committed: make(chan result, 1),
		draining:  make(chan struct{}),
		aborting:  make(chan struct{}),
		done:      make(chan struct{}),
	}
	h.published.push(snap, nil)
	for range cfg.Shards {
		h.shards = append(h.shards, newShard(h))
	}
	h.running.Add(2 + len(h.shards))
	go h.loop(snap)
	go h.commitLoop()
	for _, s := range h.shards {
		go s.run()
	}
	return h, nil
}

// sendTo sends v on ch, and reports false if the hub has ended instead.
func sendTo[T any](h *Hub, ch chan<- T, v T) bool {
	select {
	case ch <- v: // far cheaper than a choice, and there mostly is room
		return true
	default:
	}
	select {
	case ch <- v:
		return true
	case <-h.done:
		return false
	}
}

// loop owns the value: it alone turns actions into batches and publishes what the
// store made of them. snap is what the store holds.
func (h *Hub) loop(snap Snapshot) {
	defer h.running.Done()
	defer close(h.commits)

	var (
		waiting  = new(batch) // what the next commit will carry
		spare    = new(batch)
		inFlight *batch // what the store is working on

		announceAt time.Time // when users may be announced next
		announce   = time.NewTimer(0)
		retry      = time.NewTimer(0)
	)
	announce.Stop()
	retry.Stop()

	for {
		if inFlight == nil && waiting.len() > 0 {
			inFlight, waiting = waiting, spare
			h.commits <- inFlight
		}
		actions := h.actions
		if waiting.len() >= maxBatch {
			actions = nil
		}
		select {
		case a := <-actions:
			waiting.add(a, snap.Value, inFlight)
			h.takeActions(waiting, maxBatch, snap.Value, inFlight)

		case r := <-h.committed:
			if r.err == nil {
				snap = r.snap
				h.publish(snap, r.batch.deltas)
				announceAt = h.nextAnnouncement()
			} else {
				retry.Reset(storeRetry)
			}
			inFlight, spare = nil, r.batch
			spare.reset()

		case <-retry.C:
			// Nobody may be sending actions, since the store is away. See whether it is back.
			if inFlight == nil {
				inFlight = spare
				h.commits <- inFlight
			}

		case <-h.presence:
			announce.Reset(time.Until(announceAt))

		case <-announce.C:
			h.announceUsers()
			announceAt = h.nextAnnouncement()

		case <-h.done:
			// The clients have gone. What they sent counts all the same.
			h.takeActions(waiting, math.MaxInt, snap.Value, inFlight)
			if inFlight != nil {
				<-h.committed
			}
			if waiting.len() > 0 {
				h.commits <- waiting
				<-h.committed
			}
			return
		}
	}
}

// takeActions puts those actions behind b that have arrived already, up to limit.
func (h *Hub) takeActions(b *batch, limit int, value int64, inFlight *batch) {
	for b.len() < limit {
		select {
		case a := <-h.actions:
			b.add(a, value, inFlight)
		default:
			return
		}
	}
}

// storeRetry is how long after a failed commit the store is tried again, actions or not.
const storeRetry = time.Second

// add puts a behind the actions that are waiting, on top of value and inFlight.
func (b *batch) add(a action, value int64, inFlight *batch) {
	if inFlight != nil {
		value += inFlight.delta
	}
	room := MaxValue - int64(a.delta)*(value+b.delta) // before it leaves the range
	refused := a
	a.count = int(min(int64(a.count), room))
	if refused.count -= a.count; refused.count > 0 {
		b.outOfRange = append(b.outOfRange, refused)
	}
	if a.count == 0 {
		return
	}
	b.actions = append(b.actions, a)
	b.delta += int64(a.delta) * int64(a.count)
	for range a.count {
		b.deltas = append(b.deltas, a.delta)
	}
}

// commitLoop gives batches to the store, one at a time, and tells the senders of those
// actions that did not count.
func (h *Hub) commitLoop() {
	defer h.running.Done()
	for b := range h.commits {
		// The store bounds its own waiting; a commit is never given up half-way.
		snap, err := h.store.Apply(context.Background(), b.delta)
		h.noteStore(err)
		refuseAll(b.outOfRange, refusedRange)
		if errors.Is(err, ErrRange) {
			refuseAll(b.actions, refusedRange)
		} else if err != nil {
			refuseAll(b.actions, refusedStore)
		}
		h.committed <- result{b, snap, err}
	}
}

// refuseAll tells the senders of actions that they did not count, for each one.
func refuseAll(actions []action, r *refusal) {
	for _, a := range actions {
		for range a.count {
			a.from.refuse(r)
		}
	}
}

// noteStore remembers whether the store works, and logs when that changes.
func (h *Hub) noteStore(err error) {
	if errors.Is(err, ErrRange) {
		err = nil // an answer like any other
	}
	h.mu.Lock()
	was := h.storeErr
	h.storeErr = err
	h.mu.Unlock()
	switch {
	case err != nil && was == nil:
		h.log.Error("the store fails: actions are refused, the last value is served", "err", err)
	case err == nil && was != nil:
		h.log.Info("the store works again")
	}
}

// push appends the values that deltas lead to, the last of which is snap's, which the
// store has just made of them.
func (p *published) push(snap Snapshot, deltas []int8) {
	p.version = snap.Version
	p.stateSeq += uint64(max(len(deltas), 1))
	// Only the last few are kept. Count back from the end, then forward.
	deltas = deltas[max(0, len(deltas)-recentValues):]
	value := snap.Value
	for _, d := range deltas {
		value -= int64(d)
	}
	n := max(len(deltas), 1)
	copy(p.recent[:], p.recent[n:])
	for i := range n {
		if i < len(deltas) {
			value += int64(deltas[i])
		}
		p.recent[recentValues-n+i] = value
	}
}

// publish makes snap, the result of deltas, what clients are sent.
func (h *Hub) publish(snap Snapshot, deltas []int8) {
	h.mu.Lock()
	p := &h.published
	if len(deltas) > 0 || snap.Value != p.value() {
		p.push(snap, deltas)
	}
	// All are being written to anyway, so that news of users cost no write now.
	p.announced, p.announcedSeq = p.users, p.usersSeq
	h.mu.Unlock()
	h.wakeShards()
}

// announceUsers tells all how many there are.
func (h *Hub) announceUsers() {
	h.mu.Lock()
	p := &h.published
	p.announced, p.announcedSeq = p.users, p.usersSeq
	h.mu.Unlock()
	h.wakeShards()
}

// nextAnnouncement returns when users may be announced again.
func (h *Hub) nextAnnouncement() time.Time {
	h.mu.Lock()
	defer h.mu.Unlock()
	return time.Now().Add(max(usersEvery, time.Duration(h.published.users)*usersPace))
}

func (h *Hub) wakeShards() {
	for _, s := range h.shards {
		wake(s.wake)
	}
}

// wake puts a token into ch unless one is there.
func wake(ch chan<- struct{}) {
	select {
	case ch <- struct{}{}:
	default:
	}
}

func (h *Hub) snapshot() published {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.published
}

// arrive and leave count the clients. They do not go through loop, so that a newcomer
// is told a count that includes it.
func (h *Hub) arrive() { h.countUsers(+1) }
func (h *Hub) leave()  { h.countUsers(-1) }

func (h *Hub) countUsers(n int) {
	h.mu.Lock()
	h.published.users += n
	h.published.usersSeq++
	h.mu.Unlock()
	wake(h.presence)
}

// Stats tells about a hub at one moment.
type Stats struct {
	Value   int64  `json:"value"`
	Version uint64 `json:"version"` // of the store
	Users   int    `json:"users"`   // clients that have joined
	Blocked int64  `json:"blocked"` // of those, how many do not take what they are sent
	Refused uint64 `json:"refused"` // messages refused since the start
	Stalled uint64 `json:"stalled"` // clients disconnected since they took nothing for 10 seconds
	Silent  uint64 `json:"silent"`  // clients disconnected since they did not answer a ping
	Store   string `json:"store_error,omitempty"`
}

// Stats returns what there is to know right now.
func (h *Hub) Stats() Stats {
	h.mu.Lock()
	defer h.mu.Unlock()
	s := Stats{
		Value:   h.published.value(),
		Version: h.published.version,
		Users:   h.published.users,
		Blocked: h.blocked.Load(),
		Refused: h.refusals.Load(),
		Stalled: h.stalled.Load(),
		Silent:  h.silent.Load(),
	}
	if h.storeErr != nil {
		s.Store = h.storeErr.Error()
	}
	return s
}

// Ready returns nil if actions are being taken, or else why not.
func (h *Hub) Ready() error {
	h.mu.Lock()
	defer h.mu.Unlock()
	switch {
	case h.stopping:
		return errors.New("stopping")
	case h.storeErr != nil:
		return fmt.Errorf("store: %w", h.storeErr)
	}
	return nil
}

// Shutdown ends the hub: new clients are refused with 503, the others are closed with
// status code 1001 and have 5 seconds to answer, then all that the store has been given
// is done. When ctx ends before, those that have not answered are disconnected and
// Shutdown returns ctx's error, with all goroutines ended none the less. It must be
// called once.
func (h *Hub) Shutdown(ctx context.Context) error {
	h.mu.Lock()
	h.stopping = true
	h.mu.Unlock()
	close(h.draining)

	gone := make(chan struct{})
	go func() {
		h.clients.Wait()
		close(gone)
	}()
	var err error
	select {
	case <-gone:
	case <-ctx.Done():
		err = context.Cause(ctx)
		close(h.aborting)
		<-gone
	}
	close(h.done)
	h.running.Wait()
	return err
}
