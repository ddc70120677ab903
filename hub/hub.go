package hub

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
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

	actions   chan actionRun // readLoops -> loop; 1024, so that a burst costs no handover; never closed
	presence  chan struct{}  // serve -> loop: the number of clients changed; 1, a token is enough
	commits   chan *batch    // loop -> commitLoop; one batch is on its way at most; closed by loop
	committed chan result    // commitLoop -> loop; 1, so that commitLoop can end after loop; never closed
	draining  chan struct{}  // closed by Shutdown, when drain is set: clients are being closed
	aborting  chan struct{}  // closed by Shutdown: clients are disconnected
	done      chan struct{}  // closed by Shutdown when no client is left

	clients sync.WaitGroup // the clients' goroutines
	running sync.WaitGroup // all others

	drain drainPlan // immutable once draining is closed, and not to be read before

	cancelStore context.CancelCauseFunc // ends the context of the store's calls

	nextShard    atomic.Uint32
	storeOverdue atomic.Bool  // the store does not answer: actions are refused
	blocked      atomic.Int64 // clients that are blocked

	mu sync.Mutex
	// Guarded by mu.
	published publishedState
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
		actions:   make(chan actionRun, 1024),
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
	commits, h.cancelStore = context.WithCancelCause(context.Background())
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
	giveUpTimer := time.AfterFunc(storeTimeout, func() { h.cancelStore(errors.New("the hub is shutting down")) })
	h.running.Wait()
	giveUpTimer.Stop()
	h.cancelStore(nil)
	return err
}
