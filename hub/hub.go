package hub

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"runtime"
	"slices"
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

	// Events are told of clients that are refused or disconnected, and of panics. nil makes some
	// that log to Logger.
	Events *Events

	// Origins lists the pages that may connect, as [ParseOrigin] understands them. A
	// handshake without an Origin header, which no browser sends, is let in. Without
	// any, no page may connect.
	Origins []Origin

	// MaxClients caps the clients in all: one more is refused with 503 and Retry-After.
	// MaxClientsPerIP caps those of one IPv4 address or IPv6 /64: one more is refused with 429.
	// 0 is no cap: then whoever opens enough connections takes all file descriptors.
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
	shared Shared // store, or nil if that is not shared
	log    *slog.Logger
	events *Events
	shards []*shard

	actions   chan run      // readLoops -> loop; 1024, so that a burst costs no handover; never closed
	presence  chan struct{} // serve -> loop: the number of clients changed; 1, a token is enough
	commits   chan *batch   // loop -> commitLoop; one batch is on its way at most; closed by loop
	committed chan result   // commitLoop -> loop; 1, so that commitLoop can end after loop; never closed
	draining  chan struct{} // closed by Shutdown, when drain is set: clients are being closed
	aborting  chan struct{} // closed by Shutdown: clients are disconnected
	done      chan struct{} // closed by Shutdown when no client is left

	clients sync.WaitGroup // the clients' goroutines
	running sync.WaitGroup // all others

	drain drain // immutable once draining is closed, and not to be read before

	giveUp context.CancelCauseFunc // ends the context of the store's calls

	nextShard atomic.Uint32
	away      atomic.Bool  // the store does not answer: actions are refused
	blocked   atomic.Int64 // clients that are blocked

	mu sync.Mutex
	// Guarded by mu.
	published published
	stopping  bool
	storeErr  error         // why the last commit failed; nil after one that succeeded
	newsErr   error         // why a shared store cannot be used, as it says itself
	unknown   bool          // no value has been known yet
	admitted  addressCounts // clients, from before their opening handshake to the end of their goroutine

	// Guarded by mu. For Counts.
	joined               uint64
	counted              uint64
	applies              Durations
	applyErrors, outages uint64
}

// recentValues is how many of the newest values are kept. A client that is at most so
// far behind is sent each, so that nothing is skipped when actions come close together;
// one that is further behind is sent the newest alone. All of them fit one packet.
const recentValues = 16

// published is the state that clients are sent. The two Seq fields only grow, and tell
// whether a client has been sent a thing.
type published struct {
	recent   [recentValues]Value // the newest values, oldest first
	stateSeq uint64              // how many values there have been
	epoch    uint64              // the store's epoch and version of the newest one
	version  uint64

	users    int    // clients right now
	others   int    // of these, those of other hubs
	hubs     int    // how many hubs use the store; 0 if it is not shared, or not known
	usersSeq uint64 // how often users has changed

	// What all have been told, or are being told: users, but at most ten times a second.
	announced    int
	announcedSeq uint64
}

func (p *published) value() Value { return p.recent[recentValues-1] }

// The least time between two announcements of the number of clients is usersEvery, or
// usersPace for each client if that is more. An announcement costs about 15 µs a client,
// so that it takes 3 % of a processor at most, and n arrivals at once cost O(n) and not n²
// messages.
const (
	usersEvery = 100 * time.Millisecond
	usersPace  = 500 * time.Microsecond
)

// run is an action from a client, or several of the same in a row.
type run struct {
	from   *client
	action action
	count  int
}

// maxBatch bounds how many actions one commit carries. When that many are waiting for
// the store, those who send more have to wait, too.
const maxBatch = 4096

// batch is a series of actions that the store gets as one change.
type batch struct {
	delta      Delta    // what the actions come to
	actions    []action // those that count, in order
	runs       []run    // the same
	outOfRange []run    // those that would leave the range

	// Who sets it tells the senders what became of the batch: commitLoop when the store
	// answers, or loop when it does not for too long.
	claimed atomic.Bool
}

func (b *batch) len() int { return len(b.actions) + len(b.outOfRange) }

func (b *batch) reset() {
	clear(b.runs) // or clients that left would be kept alive
	clear(b.outOfRange)
	*b = batch{actions: b.actions[:0], runs: b.runs[:0], outOfRange: b.outOfRange[:0]}
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
	if cfg.Events == nil {
		cfg.Events = NewEvents(EventsConfig{Logger: cfg.Logger})
	}
	if cfg.Shards <= 0 {
		cfg.Shards = runtime.GOMAXPROCS(0)
	}
	shared, _ := cfg.Store.(Shared)
	snap, err := cfg.Store.Load(ctx)
	if err != nil && shared == nil {
		return nil, fmt.Errorf("loading the counter: %w", err)
	}
	h := &Hub{
		cfg:       cfg,
		store:     cfg.Store,
		shared:    shared,
		unknown:   err != nil,
		log:       cfg.Logger,
		events:    cfg.Events,
		actions:   make(chan run, 1024),
		presence:  make(chan struct{}, 1),
		commits:   make(chan *batch),
		committed: make(chan result, 1),
		draining:  make(chan struct{}),
		aborting:  make(chan struct{}),
		done:      make(chan struct{}),
	}
	if err != nil {
		h.noteNews(err)
	} else {
		h.published.push(snap, nil)
	}
	var commits context.Context
	commits, h.giveUp = context.WithCancelCause(context.Background())
	for range cfg.Shards {
		h.shards = append(h.shards, newShard(h))
	}
	h.running.Add(2 + len(h.shards))
	go h.loop(snap)
	go h.commitLoop(commits)
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

// storePatience is how long the store may work on a commit before actions are refused. A
// slow disk under load takes a fraction of it, and a person does not wait much longer.
const storePatience = 1500 * time.Millisecond

// errNoAnswer is why the hub is not ready while a commit takes longer than storePatience.
var errNoAnswer = fmt.Errorf("no answer for more than %v", storePatience)

// loop owns the value: it alone turns actions into batches and publishes what the
// store made of them. snap is what the store holds.
func (h *Hub) loop(snap Snapshot) {
	defer h.running.Done()
	defer close(h.commits)

	var (
		waiting  = new(batch) // what the next commit will carry
		spare    = new(batch)
		inFlight *batch    // what the store is working on
		commitAt time.Time // when the next commit may begin; for shared stores alone
		news     <-chan News

		announceAt time.Time // when users may be announced next
		announce   = newStoppedTimer()
		retry      = newStoppedTimer()
		patience   = newStoppedTimer() // runs while a batch is in flight
		pace       = newStoppedTimer() // runs until commitAt, if that is waited for
	)
	if h.shared != nil {
		news = h.shared.News()
	}
	commit := func(b *batch) {
		inFlight = b
		patience.Reset(storePatience)
		if h.shared != nil {
			commitAt = time.Now().Add(h.shared.Pace())
		}
		h.commits <- b
	}

	for {
		if inFlight == nil && waiting.len() > 0 {
			if wait := h.untilCommit(commitAt); wait > 0 {
				pace.Reset(wait)
			} else {
				b := waiting
				waiting, spare = spare, nil
				commit(b)
			}
		}
		actions := h.actions
		if waiting.len() >= maxBatch {
			actions = nil
		}
		select {
		case r := <-actions:
			waiting.add(r, snap.Value, inFlight)
			h.takeActions(waiting, maxBatch, snap.Value, inFlight)
			if h.away.Load() { // they were on their way when it turned out
				waiting.refuse()
			}

		case r := <-h.committed:
			patience.Stop()
			if h.away.Swap(false) {
				r.batch.tell(r.err)
			}
			switch {
			case r.err != nil:
				retry.Reset(storeRetry)
			case h.shared == nil || r.snap.newerThan(snap):
				snap = r.snap
				h.publish(snap, r.batch.actions)
				announceAt = h.nextAnnouncement()
			}
			inFlight, spare = nil, r.batch
			spare.reset()

		case <-patience.C:
			// What waits has not been given to the store, and so does not count. The store may
			// have done what it was given, or do it yet.
			if inFlight.claimed.CompareAndSwap(false, true) {
				h.away.Store(true)
				h.noteNoAnswer()
				tellAll(inFlight.runs, undecided)
				waiting.refuse()
			}

		case <-pace.C:

		case n := <-news:
			h.noteNews(n.Err)
			if n.Snapshot.newerThan(snap) {
				snap = n.Snapshot
				h.publish(snap, nil)
				announceAt = h.nextAnnouncement()
			}
			h.countOthers(n)

		case <-retry.C:
			// Nobody may be sending actions, since the store is away. See whether it is back.
			if inFlight == nil {
				b := spare
				spare = nil
				commit(b)
			}

		case <-h.presence:
			announce.Reset(time.Until(announceAt))
			if h.shared != nil {
				h.shared.Announce(h.Stats().Clients)
			}

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

func newStoppedTimer() *time.Timer {
	t := time.NewTimer(0)
	t.Stop()
	return t
}

// untilCommit returns how long a commit has to wait that may begin at commitAt.
func (h *Hub) untilCommit(commitAt time.Time) time.Duration {
	if h.shared == nil {
		return 0
	}
	return time.Until(commitAt)
}

// takeActions puts those actions behind b that have arrived already, up to limit.
func (h *Hub) takeActions(b *batch, limit int, value Value, inFlight *batch) {
	for b.len() < limit {
		select {
		case r := <-h.actions:
			b.add(r, value, inFlight)
		default:
			return
		}
	}
}

// storeRetry is how long after a failed commit the store is tried again, actions or not.
const storeRetry = time.Second

// add puts r behind the actions that are waiting, on top of value and inFlight.
func (b *batch) add(r run, value Value, inFlight *batch) {
	if inFlight != nil {
		value = sum(value, inFlight.delta)
	}
	refused := r
	r.count = room(sum(value, b.delta), r.action, r.count)
	if refused.count -= r.count; refused.count > 0 {
		b.outOfRange = append(b.outOfRange, refused)
	}
	if r.count == 0 {
		return
	}
	b.runs = append(b.runs, r)
	b.delta = after(b.delta, r.action, r.count)
	for range r.count {
		b.actions = append(b.actions, r.action)
	}
}

// commitLoop gives batches to the store, one at a time, and tells the senders of those
// actions that did not count.
func (h *Hub) commitLoop(ctx context.Context) {
	defer h.running.Done()
	for b := range h.commits {
		began := time.Now()
		snap, err := h.store.Apply(ctx, b.delta)
		h.noteApply(len(b.actions), time.Since(began), err)
		if b.claimed.CompareAndSwap(false, true) {
			b.tell(err)
		}
		h.committed <- result{b, snap, err}
	}
}

// tell tells the senders of those actions that did not count, when err is what the store
// has made of b.
func (b *batch) tell(err error) {
	tellAll(b.outOfRange, refusedRange)
	if errors.Is(err, ErrRange) {
		tellAll(b.runs, refusedRange)
	} else if err != nil {
		tellAll(b.runs, refusedStore)
	}
}

// refuse empties b of actions that the store was never given, and tells their senders.
func (b *batch) refuse() {
	tellAll(b.outOfRange, refusedRange)
	tellAll(b.runs, refusedStore)
	b.reset()
}

// tellAll tells the senders of actions why, once for each action.
func tellAll(runs []run, why *refusal) {
	for _, r := range runs {
		for range r.count {
			r.from.refuse(why)
		}
	}
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

// push appends the values that actions lead to, the last of which is snap's, which the
// store has just made of them.
func (p *published) push(snap Snapshot, actions []action) {
	p.epoch, p.version = snap.Epoch, snap.Version
	p.stateSeq += uint64(max(len(actions), 1))
	// Only the last few are kept. Count back from the end, then forward.
	actions = actions[max(0, len(actions)-recentValues):]
	value := snap.Value
	for _, a := range slices.Backward(actions) {
		value = after(value, a, -1)
	}
	n := max(len(actions), 1)
	copy(p.recent[:], p.recent[n:])
	for i := range n {
		if i < len(actions) {
			value = after(value, actions[i], 1)
		}
		p.recent[recentValues-n+i] = value
	}
}

// publish makes snap, the result of actions, what clients are sent.
func (h *Hub) publish(snap Snapshot, actions []action) {
	h.mu.Lock()
	h.unknown = false
	p := &h.published
	if len(actions) > 0 || snap.Value != p.value() {
		p.push(snap, actions)
	}
	p.epoch, p.version = snap.Epoch, snap.Version
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
	return time.Now().Add(max(usersEvery, time.Duration(h.published.clients())*usersPace))
}

// clients returns how many clients this hub has.
func (p *published) clients() int { return p.users - p.others }

// countOthers takes over what is known of other hubs.
func (h *Hub) countOthers(n News) {
	h.mu.Lock()
	p := &h.published
	p.hubs = n.Hubs
	changed := n.Others != p.others
	if changed {
		p.users += n.Others - p.others
		p.others = n.Others
		p.usersSeq++
	}
	h.mu.Unlock()
	if changed {
		wake(h.presence)
	}
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
	h.joined += uint64(max(n, 0))
	h.mu.Unlock()
	wake(h.presence)
}

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

// Shutdown ends the hub: new clients are refused with 503, and the others closed with status
// code 1012, so that they go elsewhere or come back. A few are closed at once, more of them
// one each 2 ms, or so much faster that seven tenths of what ctx leaves are enough; meanwhile
// those that are left are served. Each has two tenths, or 5 seconds, for its answer. Then all
// that the store has been given is done, or given up if it does not answer for another 1.5
// seconds. When ctx ends before, those that have not answered are disconnected and Shutdown
// returns ctx's error, with all goroutines ended none the less. It must be called once.
func (h *Hub) Shutdown(ctx context.Context) error {
	h.mu.Lock()
	h.stopping = true
	h.drain = planDrain(ctx, h.published.clients())
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
	impatient := time.AfterFunc(storePatience, func() { h.giveUp(errors.New("the hub is shutting down")) })
	h.running.Wait()
	impatient.Stop()
	h.giveUp(nil)
	return err
}
