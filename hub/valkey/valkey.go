// Package valkey is a [hub.Shared] store on a Valkey or Redis server: replicas of plusminus
// share one value through it. [Files] stores what the replicas share beside the value, such
// as certificates, on the same server.
//
// The package owns the keys that begin with the prefix in its [Config], and the connections
// to the server.
//
// # Batches
//
// Each change is one call of a script, which the server runs atomically (script.go). The
// call carries the hub's id and a sequence number, and counts once however often it is sent.
// A call whose answer was lost is sent again until there is an answer. The server keeps the
// last number and result of each hub for a day.
//
// # News
//
// A hub has one connection, on which it also receives messages about the changes of other
// hubs, in the server's order. A hub beats every two seconds, and whenever its number of
// clients changes. A beat is one call: it reports this hub's number of clients, and reads
// the value and the sum of all clients. So a beat makes up for lost messages. If a hub has
// not beaten for ten seconds by the server's clock, the next beat of any hub takes it out of
// the sum.
//
// # Versions and epochs
//
// Each change has a version, one more than the last, and belongs to an epoch, which is a
// random id. A server that is empty, or has lost changes that a hub has seen, begins a new
// epoch. Within an epoch hubs drop values that are older than their own. A message alone
// never introduces an epoch: the hub reads the server first.
//
// # Goroutines
//
// A [Store] has one goroutine, run, which connects, beats, and connects again after any
// failure. While there is a connection, a second goroutine receives messages; a third closes
// a connection that was given up. Apply runs in its caller's goroutine. Calls of scripts take
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
	"strconv"
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

	// quiet is the least time between two messages about changes, of all hubs together. So n
	// hubs receive at most n × 100 messages a second. A message for each batch would be n² ×
	// the batches of one hub.
	quiet = 10 * time.Millisecond

	// flushAfter is how long a hub waits for a message that includes its change when the change
	// came within quiet of the last message. Then the hub asks for one with a beat. Under load
	// another hub's message always comes first.
	flushAfter = 2 * quiet

	// The least time between two calls of Apply is pace, or pacePerHub for each hub if that is
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

// Store is a counter on a server. Its goroutine run keeps the connection. Its methods are
// safe for concurrent use.
type Store struct {
	// Immutable after New.
	cfg       Config
	log       *slog.Logger
	id        string // of this hub
	applyKeys []string
	beatKeys  []string
	channel   string
	news      chan hub.News // Store -> hub; 1: holds the newest news only; never closed
	wake      chan struct{} // any goroutine -> run: look at nextBeat again; 1: one token is enough
	calls     chan struct{} // 1: holds a token while a script runs

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
	epoch     string        // of the server
	candidate string        // the id that the next new epoch gets
	now       hub.Snapshot  // the newest known
	own       uint64        // the newest version that Apply has returned in this epoch
	foreign   hub.Snapshot  // the newest that another hub has made
	users     int           // the clients of all hubs
	usersSeq  uint64        // the version of users
	hubs      int
	clients   int // of this hub, as Announce was told
	announced int // of this hub, as the server has it

	published        uint64 // the newest version that a message was sent about
	publishedUsers   uint64 // the newest usersSeq that a message was sent about
	unpublished      uint64 // the version that needs a message at flushAt
	unpublishedUsers uint64 // the usersSeq that needs a message at flushAt
	flushAt          time.Time

	beatAt  time.Time     // the time of the last beat
	overdue valkey.Client // the connection that has not answered in time; session closes it
	reread  bool          // a message has named an unknown epoch: beat soon
}

// New returns a store and starts to connect. It does not wait for the server; Load does.
// [Store.Close] stops it.
func New(cfg Config) *Store {
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	s := &Store{
		cfg:       cfg,
		log:       cfg.Logger,
		id:        rand.Text()[:13], // 65 bits
		news:      make(chan hub.News, 1),
		wake:      make(chan struct{}, 1),
		calls:     make(chan struct{}, 1),
		connected: make(chan struct{}),
		tried:     make(chan struct{}),
		candidate: rand.Text(),
	}
	key := func(name string) string { return "{" + cfg.prefix() + "}:" + name }
	s.applyKeys = []string{key(keyCounter), key(keyBatches)}
	s.beatKeys = append(s.applyKeys[:2:2], key(keySeen), key(keyClients), key(keyAlive))
	s.channel = key("news." + strconv.Itoa(cfg.DB))
	s.stopping, s.stop = context.WithCancel(context.Background())
	s.conns, s.cut = context.WithCancel(context.Background())
	s.running.Go(s.run)
	return s
}

// Close takes this hub's clients out of the sum and closes the connection, within about a
// second. Apply must not be called after Close.
func (s *Store) Close() error {
	s.stop()
	slow := time.AfterFunc(farewell, s.cut)
	s.running.Wait()
	slow.Stop()
	s.cut()
	return nil
}

// Load returns the value. It waits for the first attempt to connect, up to 4 seconds. If
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
	if s.epoch == "" {
		return hub.Snapshot{}, s.err
	}
	return s.now, nil
}

// News implements [hub.Shared].
func (s *Store) News() <-chan hub.News { return s.news }

// Announce implements [hub.Shared]. The other hubs hear of it within 100 ms, or 3 ms for
// each hub if that is more.
func (s *Store) Announce(clients int) {
	s.mu.Lock()
	changed := s.clients != clients
	s.clients = clients
	s.mu.Unlock()
	if changed {
		s.wakeRun()
	}
}

// Pace implements [hub.Shared]: 5 ms, or 50 µs for each hub if that is more.
func (s *Store) Pace() time.Duration {
	s.mu.Lock()
	defer s.mu.Unlock()
	return max(pace, time.Duration(s.hubs)*pacePerHub)
}

func (s *Store) snapshot() hub.Snapshot {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.now
}
