// Package valkey is a [hub.SharedCounters] store on a Valkey or Redis server, or a cluster of them: replicas of plusminus
// share their counters through it. [Files] stores what the replicas share beside the value, such
// as certificates, on the same server.
//
// The package owns the keys that begin with the prefix in its [Config], and the connections
// to the server.
//
// # Counters
//
// Each counter has keys of its own. The default counter has those that it had when there was no other. The others are in
// [buckets], each of which has the list of its counters' names. All keys of a bucket are in one hash slot: a script changes a
// counter and the list at once, and a cluster spreads the buckets over its nodes. A table of further data of a counter,
// such as the ids of actions, would be one more key in the same slot.
//
// # Batches
//
// Each change of a counter is one call of a script, which the server runs atomically (script.go). The
// call carries the hub's id and a sequence number, and counts once however often it is sent.
// A call whose answer was lost is sent again until there is an answer. The server keeps the
// last number and result of each hub for a day. The calls of a commit are sent together.
//
// # News
//
// A hub has one connection, on which it also receives messages about the changes of other
// hubs, in the server's order. To a cluster it has one to each node, and messages come in any order: versions give
// them theirs. For each counter that it watches a hub beats every two seconds, and whenever its number of
// clients changes. A beat is one call: it reports this hub's number of clients, and reads
// the value and the sum of all clients. So a beat makes up for lost messages. If a hub has
// not beaten for ten seconds by the server's clock, the next beat of any hub takes it out of
// the sum. A hub that watches thousands of counters beats less often for each of them but the default one, and says so.
//
// # Versions and epochs
//
// Each change of a counter has a version, one more than the last, and belongs to an epoch, which is a
// random id. A server that is empty, or has lost changes that a hub has seen, begins a new
// epoch, and so does the removal of the counter. Within an epoch hubs drop values that are older than their own. A message alone
// never introduces an epoch: the hub reads the server first.
//
// # Goroutines
//
// A [Store] has one goroutine, run, which connects, beats, and connects again after any
// failure. While there is a connection, a second goroutine receives messages; a third closes
// a connection that was given up. ApplyAll runs in its caller's goroutine. Calls of scripts take
// turns, so that the Store processes their answers in the server's order.
//
// [Files] have one goroutine for each lock that is held, and one for each connection that is
// closing.
package valkey

import (
	"context"
	"crypto/rand"
	"errors"
	"log/slog"
	"sync"
	"time"

	"github.com/valkey-io/valkey-go"

	"plusminus/hub"
)

const (
	// answerTimeout bounds each call. A server that takes longer counts as unreachable.
	answerTimeout = 1500 * time.Millisecond

	// dialTimeout bounds the TCP and TLS connection, and then the login.
	dialTimeout = 2 * time.Second

	// beatEvery is the longest time between two beats of a hub.
	beatEvery = 2 * time.Second

	// silence is the time without a beat after which a hub counts as gone. The next beat of
	// another hub removes its clients from the sum, so within 12 seconds.
	silence = 10 * time.Second

	// remember is how long the server keeps the last batch of a hub that is gone. TCP may
	// deliver what a dead connection still held for a quarter of an hour.
	remember = 24 * time.Hour

	// giveUpAfter is how long a batch with unknown outcome is sent again; far below remember.
	giveUpAfter = remember / 2

	// beatPerCounter is the least time between two beats of all hubs that watch many counters. So their beats cost the server
	// about 2,000 calls a second, however many counters there are. longestBeat bounds the time between two beats for one counter;
	// with it, linger is how long the server keeps what only serves hubs that watch a counter.
	beatPerCounter = 500 * time.Microsecond
	longestBeat    = time.Minute
	linger         = longestBeat*(silence/beatEvery) + silence

	// roundOf bounds the beats that are sent together.
	roundOf = 500

	// countEvery is the time between two counts of all counters. In between a hub counts those that it makes itself.
	countEvery = 2 * time.Second

	// lostEvery is the time between two log lines about lost changes.
	lostEvery = 2 * time.Second

	// quiet is the least time between two messages about changes of one counter, of all hubs together. So n
	// hubs receive at most n × 100 messages a second. A message for each batch would be n² ×
	// the batches of one hub.
	quiet = 10 * time.Millisecond

	// flushAfter is how long a hub waits for a message that includes its change when the change
	// came within quiet of the last message. Then the hub asks for one with a beat. Under load
	// another hub's message always comes first.
	flushAfter = 2 * quiet

	// The least time between two commits is pace, or pacePerHub for each hub and change if that is
	// more. So all hubs together make at most 20,000 calls a second. A script takes the server
	// about 20 µs.
	pace       = 5 * time.Millisecond
	pacePerHub = 50 * time.Microsecond

	// The least time between two beats is announceEvery, or announcePerHub for each hub if that
	// is more.
	announceEvery  = 100 * time.Millisecond
	announcePerHub = 3 * time.Millisecond

	// The pause after a failed connection grows from firstPause to longestPause.
	firstPause, longestPause = 100 * time.Millisecond, time.Second

	// tryAgain is the pause before a batch is sent again to a server that refuses it.
	tryAgain = 250 * time.Millisecond

	// farewell bounds the last beat of a hub.
	farewell = time.Second
)

// Store is the counters on a server. Its goroutine run keeps the connection. Its methods are
// safe for concurrent use.
type Store struct {
	// Immutable after New.
	cfg   Config
	log   *slog.Logger
	id    string // of this hub
	many  bool   // whether there are other counters than the default one
	limit int    // how many of them there may be

	news  chan hub.News // Store -> hub; 1: holds the newest news only; never closed
	wake  chan struct{} // any goroutine -> run: look at due again; 1: one token is enough
	calls chan struct{} // 1: holds a token while scripts run

	stopping context.Context // canceled by Close
	stop     context.CancelFunc
	conns    context.Context // canceled to close all connections
	cut      context.CancelFunc
	running  sync.WaitGroup

	applying sync.Mutex
	// Guarded by applying.
	seq uint64 // of the last batch

	mu sync.Mutex
	// Guarded by mu.
	client    valkey.Client // nil without a connection
	connected chan struct{} // closed when client is set, then replaced
	tried     chan struct{} // closed when the first connection has succeeded or failed
	err       error         // why the server cannot be used, or nil
	overdue   valkey.Client // the connection that has not answered in time; session closes it
	lost      lostChanges
	nodes     []string // addresses of the nodes of a cluster, from the last connection
	candidate string   // the id that the next new epoch gets
	hubs      int
	stored    int       // how many counters the server has, without the default one
	countAt   time.Time // when they are to be counted

	standard *counter            // the default counter
	counters map[string]*counter // those that the hub watches, and the default one
	due      schedule            // the same, but for those whose beat is on its way
	newsOf   uint64              // the number of the news in the channel

	// The highest epoch of a counter that was forgotten. If the hub watches the counter again, its epoch is higher: news from
	// before may still be on their way, and must not look newer than all that follow.
	forgotten uint64
}

// New returns a store of one counter and starts to connect. It does not wait for the server; Load does.
// [Store.Close] stops it.
func New(cfg Config) *Store { return newStore(cfg, false, 0) }

// NewMany is New for many counters. limit bounds how many there may be besides the default one. Hubs can go over it together by
// those that they make within two seconds.
func NewMany(cfg Config, limit int) *Store { return newStore(cfg, true, limit) }

func newStore(cfg Config, many bool, limit int) *Store {
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	s := &Store{
		cfg:       cfg,
		log:       cfg.Logger,
		id:        rand.Text()[:13], // 65 bits
		many:      many,
		limit:     limit,
		news:      make(chan hub.News, 1),
		wake:      make(chan struct{}, 1),
		calls:     make(chan struct{}, 1),
		connected: make(chan struct{}),
		tried:     make(chan struct{}),
		candidate: rand.Text(),
	}
	s.standard = newCounter(&s.cfg, "")
	s.counters = map[string]*counter{"": s.standard}
	s.scheduleLocked(s.standard)
	s.stopping, s.stop = context.WithCancel(context.Background())
	s.conns, s.cut = context.WithCancel(context.Background())
	s.running.Go(s.run)
	return s
}

// Close takes this hub's clients out of the sums and closes the connection, within about a
// second. ApplyAll must not be called after Close.
func (s *Store) Close() error {
	s.stop()
	slow := time.AfterFunc(farewell, s.cut)
	s.running.Wait()
	slow.Stop()
	s.cut()
	return nil
}

// Load returns the value of the default counter. It waits for the first attempt to connect, up to 4 seconds. If
// that fails, Load returns the reason, and the store goes on trying.
func (s *Store) Load(ctx context.Context) (hub.Snapshot, error) {
	select {
	case <-s.tried:
	case <-ctx.Done():
		return hub.Snapshot{}, context.Cause(ctx)
	case <-s.stopping.Done():
		return hub.Snapshot{}, errors.New("closed")
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.standard.epoch == "" {
		return hub.Snapshot{}, s.err
	}
	return s.standard.now, nil
}

// News implements [hub.Shared].
func (s *Store) News() <-chan hub.News { return s.news }

// Pace implements [hub.Shared]: 5 ms, or 50 µs for each hub and change if that is more.
func (s *Store) Pace(changes int) time.Duration {
	s.mu.Lock()
	defer s.mu.Unlock()
	return max(pace, time.Duration(s.hubs*changes)*pacePerHub)
}
