package hub

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"runtime"
	"sync"
	"sync/atomic"
	"time"
)

// Config configures a [Hub]. Only Store is required.
type Config struct {
	// Store keeps the value. The hub does not close it.
	Store Store

	// Logger gets lines for operators, and debug lines for each client. nil discards them.
	Logger *slog.Logger

	// Events counts and logs refused clients, disconnected clients and panics. nil makes
	// new Events that log to Logger.
	Events *Events

	// Origins lists the origins whose pages may connect; [ParseOrigin] makes them. If it is
	// empty, no page may connect. A handshake without an Origin header is always accepted:
	// browsers never send one.
	Origins []Origin

	// MaxClients caps the clients in total; the next one is refused with 503 and Retry-After.
	// MaxClientsPerIP caps the clients of one IPv4 address or IPv6 /64; the next one is refused
	// with 429. 0 means no cap: then one peer can use up all file descriptors. A client that watches more than 16 counters
	// counts twice.
	MaxClients      int
	MaxClientsPerIP int

	// ActionRate is how many actions a client may send per second in the long run.
	// ActionBurst, at least 1, is how many it may send at once. Actions over the limit are
	// refused. An ActionRate of 0 means no limit.
	ActionRate  float64
	ActionBurst int

	// Counters are patterns of the names of further counters, as of [path.Match]; see [ValidName]. If it is empty, there is
	// only the default counter. Otherwise Store must implement [Counters].
	Counters []string

	// MayMake is asked before an address, as [AddressOf] returns it, makes a counter; MayAct before each of its calls of
	// [Hub.Act]. Nil permits all. Both are called from any goroutine.
	MayMake, MayAct func(remote netip.Prefix) bool

	// Shards is the number of goroutines that write to clients; 0 means one for each processor.
	Shards int
}

// Hub is a broadcast hub. The package documentation lists its goroutines. The methods of Hub
// are safe from any goroutine.
type Hub struct {
	// Immutable after New.
	cfg    Config
	store  Store
	log    *slog.Logger
	events *Events
	shards []*shard
	named  []string // the names that Config.Counters lists in full, for CountersStats

	// The same store, as far as it is more than a Store; nil if it is not.
	shared     Shared
	many       Counters // nil if there is only the default counter
	sharedMany SharedCounters

	standard *counter // the default counter

	histories *histories // safe from any goroutine

	actions   chan actionRun // readLoops -> loop; 1024, so that a burst costs no goroutine switch; never closed
	orders    chan *order    // Set and Remove -> loop; never closed
	presence  chan struct{}  // serve and loop -> loop: changed is not empty; 1, since one token is enough; never closed
	commits   chan *commit   // loop -> commitLoop; at most one commit is in flight; closed by loop
	committed chan *commit   // commitLoop -> loop: the same commit, with its outcome; 1, so that commitLoop can end after loop; never closed
	draining  chan struct{}  // Shutdown -> shards: close your clients; closed by Shutdown, after it has set drain
	aborting  chan struct{}  // Shutdown -> shards: disconnect your clients; closed by Shutdown
	done      chan struct{}  // Shutdown -> all: no client is left; closed by Shutdown

	cancelStore context.CancelCauseFunc // cancels the context of the store's calls

	// Written by Shutdown before it closes draining; immutable and readable after that.
	drain drainPlan

	// Safe from any goroutine.
	clients      sync.WaitGroup // goroutines that run client.serve
	running      sync.WaitGroup // all other goroutines: loop, commitLoop, shard.run
	nextShard    atomic.Uint32
	storeOverdue atomic.Bool   // a commit has taken longer than storeTimeout: actions are refused
	blocked      atomic.Int64  // how many clients are blocked
	made         atomic.Uint64 // how many counters were made
	acts         clientCounts  // of calls of Act

	mu sync.Mutex
	// Guarded by mu.
	present  int                 // clients that have joined and not left
	counters map[string]*counter // those in use, without the default counter
	watched  int                 // how many of counters have clients
	changed  []*counter          // whose users or holds have changed since loop last looked
	stopping bool
	storeErr error         // why the last commit failed; nil after a commit that succeeded
	newsErr  error         // why a shared store cannot be used, from its last news
	unknown  bool          // the value has not been loaded yet
	admitted addressCounts // clients, from before the opening handshake to the end of serve

	// Guarded by mu. Counted for Counts.
	joined               uint64
	counted              uint64
	applies              Durations
	applyErrors, outages uint64
}

// New loads the value from cfg.Store and starts a hub. ctx bounds the loading only. New returns
// an error if cfg.Store is nil, or if the value cannot be loaded from a store that is not
// [Shared]. [Hub.Shutdown] ends the hub.
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
	many, sharedMany, err := manyOf(cfg)
	if err != nil {
		return nil, err
	}
	snap, err := cfg.Store.Load(ctx)
	if err != nil && shared == nil {
		return nil, fmt.Errorf("loading the counter: %w", err)
	}
	h := &Hub{
		cfg:        cfg,
		store:      cfg.Store,
		shared:     shared,
		many:       many,
		sharedMany: sharedMany,
		unknown:    err != nil,
		log:        cfg.Logger,
		events:     cfg.Events,
		named:      fullNames(cfg.Counters),
		actions:    make(chan actionRun, 1024),
		presence:   make(chan struct{}, 1),
		commits:    make(chan *commit),
		committed:  make(chan *commit, 1),
		draining:   make(chan struct{}),
		aborting:   make(chan struct{}),
		done:       make(chan struct{}),
		orders:     make(chan *order),
		counters:   make(map[string]*counter),
		histories:  newHistories(),
	}
	h.standard = newCounter(h, "")
	h.standard.snap = snap
	if err != nil {
		h.noteNews(err)
	} else {
		h.standard.published.push(snap, nil)
	}
	var commits context.Context
	commits, h.cancelStore = context.WithCancelCause(context.Background())
	for range cfg.Shards {
		h.shards = append(h.shards, newShard(h, len(h.shards)))
	}
	h.running.Add(2 + len(h.shards))
	go h.loop()
	go h.commitLoop(commits)
	for _, s := range h.shards {
		go s.run()
	}
	return h, nil
}

// sendTo sends v on ch. It reports false if the hub ended before v could be sent.
func sendTo[T any](h *Hub, ch chan<- T, v T) bool {
	select {
	case ch <- v: // much cheaper than the select below, and there is usually room
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

// Shutdown ends the hub. It must be called once.
//
// Shutdown refuses new clients with 503 and closes the others with status code 1012, so that they
// reconnect, here or elsewhere. Up to 25 clients are closed at once. More clients are closed at one
// each 2 ms, or faster, so that all are closed within seven tenths of the time that ctx leaves.
// A client is served until its turn, and then has two tenths of that time, at most 5 seconds, to
// answer the close frame. Then Shutdown waits for the store to finish the actions that were
// accepted, for at most another 1.5 seconds.
//
// If ctx ends before all clients have ended, Shutdown disconnects the remaining ones and returns
// ctx's cause. In every case all goroutines of the hub have ended when Shutdown returns.
func (h *Hub) Shutdown(ctx context.Context) error {
	h.mu.Lock()
	h.stopping = true
	h.drain = planDrain(ctx, h.present)
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
