// Package valkey is a [hub.Shared] store on a Valkey or Redis server: replicas of
// plusminus share one value.
//
// # How
//
// Each change is a call of a script, which the server runs as one piece (script.go). It
// carries the hub's id and a sequence number, and counts once however often it is sent:
// a call whose answer got lost is sent again until there is an answer. The server keeps
// the last number and result of each hub for a day.
//
// A hub has one connection, on which it also hears of the others' changes. What it hears
// is in the server's order. Every two seconds, and whenever its number of clients
// changes, it beats: one call says how many clients it has, reads the value and the sum
// of all clients, and so heals whatever messages were lost. A hub that was silent for
// ten seconds, by the server's clock, is taken out of the sum by whoever beats next.
//
// # Versions and epochs
//
// Each change has a version, one more than the last, and an epoch, which is a random id.
// A server that is empty, or that has lost changes that a hub has seen, begins a new epoch.
// Within an epoch hubs drop what is older than what they have. An epoch that they do
// not know is never believed from a message, but read.
//
// # Goroutines
//
// run makes a connection, beats, and makes another one when anything fails. While it has
// one, another goroutine receives messages. Apply runs in its caller's. Calls of scripts
// take turns, so that their answers are taken over in the server's order.
package valkey

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	mathrand "math/rand/v2"
	"net"
	"os"
	"strconv"
	"sync"
	"time"

	"github.com/valkey-io/valkey-go"

	"plusminus/hub"
)

const (
	// answerTimeout bounds each call. A server that takes longer is away.
	answerTimeout = 1500 * time.Millisecond

	// dialTimeout bounds the making of a connection, and then the login.
	dialTimeout = 2 * time.Second

	// beatEvery is how often a hub says that it lives, and reads what it may have missed.
	beatEvery = 2 * time.Second

	// silence is after what time without a beat a hub counts as gone. With the next hub's
	// beat, its clients are out of the sum within 12 seconds.
	silence = 10 * time.Second

	// remember is how long the last batch of a hub that is gone is kept. TCP may deliver
	// what a dead connection still held for a quarter of an hour.
	remember = 24 * time.Hour

	// giveUpAfter is how long a batch whose outcome is unknown is tried, far below remember.
	giveUpAfter = remember / 2

	// quiet is the least time between two messages about changes, whoever makes them: n hubs
	// get n × 100 messages a second at most, and not n² × the batches of each.
	quiet = 10 * time.Millisecond

	// flushAfter is how long a hub whose change was not worth a message waits for somebody
	// else's that includes it, before it asks for one. Under load there always is one.
	flushAfter = 2 * quiet

	// The least time between two calls of Apply is pace, or pacePerHub for each hub if that is
	// more, so that all hubs together make at most 20,000 a second. A script takes the server
	// about 20 µs.
	pace       = 5 * time.Millisecond
	pacePerHub = 50 * time.Microsecond

	// The least time between two beats is announceEvery, or announcePerHub for each hub.
	announceEvery  = 100 * time.Millisecond
	announcePerHub = 3 * time.Millisecond

	// The pause after a failed connection grows from the one to the other.
	firstPause, longestPause = 100 * time.Millisecond, time.Second

	// tryAgain is the pause before a batch is sent again to a server that refuses it.
	tryAgain = 250 * time.Millisecond

	// farewell bounds the last beat.
	farewell = time.Second
)

// Store is a counter on a server. Its methods are safe for concurrent use.
type Store struct {
	// Immutable after New.
	cfg     Config
	log     *slog.Logger
	id      string
	keys    []string // of applyScript; beatKeys for the other
	beat    []string
	channel string
	news    chan hub.News // holds the newest news; 1
	wake    chan struct{} // anyone -> run: see nextBeat; 1, a token is enough
	calls   chan struct{} // holds a token while a script is being called

	stopping context.Context // ended by Close
	stop     context.CancelFunc
	conns    context.Context // ended when connections are to be cut
	cut      context.CancelFunc
	running  sync.WaitGroup

	applying sync.Mutex
	seq      uint64 // of the last batch. Guarded by applying.

	mu sync.Mutex
	// Guarded by mu.
	client      valkey.Client // nil without a connection
	connected   chan struct{} // closed when client is there, then made anew
	tried       chan struct{} // closed when the first connection has been made, or has failed
	err         error         // why the server cannot be used
	epoch       string        // as the server has it
	candidate   string        // for the next new epoch
	now         hub.Snapshot  // the newest that is known
	own         uint64        // version of the newest that Apply has returned in this epoch
	foreign     hub.Snapshot  // the newest that came from elsewhere
	users       int           // of all hubs, and what that is a version of
	usersSeq    uint64
	hubs        int
	clients     int    // what Announce has said
	announced   int    // what the server has of that
	told        uint64 // newest version that there was a message of
	toldUsers   uint64 // the same of usersSeq
	untold      uint64 // what of each needs one, at flushAt
	untoldUsers uint64
	flushAt     time.Time
	beatAt      time.Time     // when the last beat was
	overdue     valkey.Client // has not answered in time, and is to be given up
	look        bool          // a message has named another epoch
}

// New returns a store, and starts to connect. It does not wait for the server: see Load.
// [Store.Close] ends it.
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
	s.keys = []string{key(keyCounter), key(keyBatches)}
	s.beat = append(s.keys[:2:2], key(keySeen), key(keyClients), key(keyAlive))
	s.channel = key("news." + strconv.Itoa(cfg.DB))
	s.stopping, s.stop = context.WithCancel(context.Background())
	s.conns, s.cut = context.WithCancel(context.Background())
	s.running.Go(s.run)
	return s
}

// Close takes this hub's clients out of the sum and ends the connection, within about a
// second. Apply must not be called any more.
func (s *Store) Close() error {
	s.stop()
	slow := time.AfterFunc(farewell, s.cut)
	s.running.Wait()
	slow.Stop()
	s.cut()
	return nil
}

// Load returns the value. If the server could not be reached at the first attempt, which
// takes up to 4 seconds, it returns why; the store goes on trying.
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

// Announce implements [hub.Shared]. The others hear of it within 100 ms, or 3 ms for each
// hub if that is more.
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

// Apply adds delta and returns once the server has it; how safe that is, is up to the
// server's persistence. A delta that is itself beyond ±[hub.MaxValue] is a [hub.ErrRange]. If there is no connection, or the server refuses, it returns why at
// once. If the connection breaks, or the server does not answer, delta may have counted: then
// Apply sends the same batch again until it has an answer. It returns without one, and logs
// that, only when ctx ends or after 12 hours.
func (s *Store) Apply(ctx context.Context, delta hub.Delta) (hub.Snapshot, error) {
	s.applying.Lock()
	defer s.applying.Unlock()
	argument, err := deltaArgument(delta)
	if err != nil {
		return s.snapshot(), err
	}
	s.seq++
	var unknown error   // why the outcome is unknown, since
	var since time.Time // the first attempt
	began := time.Now()
	for {
		client, err := s.connection(ctx, unknown != nil)
		var r reply
		if err == nil {
			r, err = s.call(ctx, client, applyScript, s.keys, strconv.FormatUint(s.seq, 10), argument)
		}
		switch {
		case err == nil && r.status == "ok":
			return s.returned(r), nil
		case err == nil && r.status == "range":
			return s.snapshot(), hub.ErrRange
		case err == nil && r.status == "epoch":
			continue // call has taken it over; an earlier attempt can count no more
		case err == nil:
			err = fmt.Errorf("the server has a later batch of ours than %d: %s", s.seq, r.status)
			s.log.Error("a batch is lost: another process has our id", "delta", delta, "err", err)
			return s.snapshot(), err
		case unknown == nil && certain(err):
			return s.snapshot(), err
		}
		if unknown == nil {
			unknown, since = err, began
		}
		if ctx.Err() != nil || time.Since(since) > giveUpAfter {
			s.log.Error("it will not be known whether the last actions have counted", "delta", delta, "err", unknown)
			return s.snapshot(), fmt.Errorf("no answer: %w", unknown)
		}
		pause(ctx, tryAgain)
	}
}

// certain reports whether err means that the script has not been run, and will not be.
func certain(err error) bool {
	if _, ok := valkey.IsValkeyErr(err); ok {
		return true // the server's own words; scripts check before they write
	}
	var op *net.OpError
	return errors.As(err, &op) && op.Op == "dial" || errors.Is(err, errNotSent)
}

var errNoAnswer = fmt.Errorf("no answer within %v", answerTimeout)

// noAnswer is why a call with ctx has timed out: the client has timeouts of its own, and theirs may be
// the first.
func noAnswer(ctx context.Context) error {
	if err := context.Cause(ctx); err != nil {
		return err
	}
	return errNoAnswer
}

// errNotSent is wrapped around what went wrong before a call.
var errNotSent = errors.New("not connected")

// connection returns the present connection. If there is none it returns why, or waits
// for one until ctx ends.
func (s *Store) connection(ctx context.Context, wait bool) (valkey.Client, error) {
	for {
		s.mu.Lock()
		client, connected, err := s.client, s.connected, s.err
		s.mu.Unlock()
		switch {
		case client != nil:
			return client, nil
		case !wait && err == nil:
			return nil, notSentError{errors.New("there is no connection yet")}
		case !wait:
			return nil, notSentError{err}
		}
		select {
		case <-connected:
		case <-ctx.Done():
			return nil, notSentError{context.Cause(ctx)}
		}
	}
}

// notSentError is err, and an errNotSent.
type notSentError struct{ err error }

func (e notSentError) Error() string        { return e.err.Error() }
func (e notSentError) Unwrap() error        { return e.err }
func (e notSentError) Is(target error) bool { return target == errNotSent }

func pause(ctx context.Context, d time.Duration) {
	select {
	case <-time.After(d):
	case <-ctx.Done():
	}
}

// call calls a script and takes over what it returns.
func (s *Store) call(ctx context.Context, client valkey.Client, script *valkey.Lua, keys []string, args ...string) (reply, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, answerTimeout, errNoAnswer)
	defer cancel()
	select {
	case s.calls <- struct{}{}:
	case <-ctx.Done():
		return reply{}, notSentError{context.Cause(ctx)}
	}
	defer func() { <-s.calls }()
	s.mu.Lock()
	args = append([]string{s.epoch, strconv.FormatUint(s.now.Version, 10), s.candidate, s.channel, s.id,
		strconv.FormatInt(quiet.Milliseconds(), 10)}, args...)
	s.mu.Unlock()
	r, err := parseReply(script.Exec(ctx, client, keys, args))
	if err != nil {
		if errors.Is(err, context.DeadlineExceeded) {
			err = noAnswer(ctx)
			s.mu.Lock()
			s.overdue = client
			s.mu.Unlock()
			s.wakeRun()
		}
		return r, err
	}
	s.take(r)
	if script == applyScript && r.status == "ok" {
		// Before the next call, whose answer may have the same version: it is no news.
		s.mu.Lock()
		s.own = max(s.own, r.version)
		s.mu.Unlock()
	}
	return r, nil
}

// take takes over what a script has returned. Only one at a time may.
func (s *Store) take(r reply) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if r.epoch != s.epoch {
		if s.epoch != "" {
			s.log.Error("the store is not the one it was: it was replaced or flushed, or has lost changes. Its value is taken over",
				"value", r.value, "version", r.version, "was_value", s.now.Value, "was_version", s.now.Version, "epoch", s.now.Epoch+1)
		}
		s.epoch = r.epoch
		s.now = hub.Snapshot{Epoch: s.now.Epoch + 1, Version: r.version, Value: r.value}
		s.foreign = s.now
		s.own, s.usersSeq = 0, 0
		s.told, s.toldUsers, s.untold, s.untoldUsers = 0, 0, 0, 0
		s.look = true // there we have no clients yet
		s.wakeRun()
		if r.epoch == s.candidate {
			s.candidate = rand.Text()
		}
	}
	s.takeNewerLocked(r)
}

// takeNewerLocked takes over what r has that is newer, in the present epoch.
func (s *Store) takeNewerLocked(r reply) {
	if r.version > s.now.Version {
		s.now.Version, s.now.Value = r.version, r.value
	}
	if r.usersSeq >= s.usersSeq {
		s.usersSeq, s.users = r.usersSeq, r.users
	}
}

// returned notes that Apply is about to return r, and returns it as a snapshot.
func (s *Store) returned(r reply) hub.Snapshot {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !r.untold {
		s.told = max(s.told, r.version)
	} else {
		s.untoldLocked(r)
	}
	return hub.Snapshot{Epoch: s.now.Epoch, Version: r.version, Value: r.value}
}

// untoldLocked notes that the others have to be told of r.
func (s *Store) untoldLocked(r reply) {
	if !s.owesLocked() {
		s.flushAt = time.Now().Add(flushAfter)
		s.wakeRun()
	}
	s.untold, s.untoldUsers = max(s.untold, r.version), max(s.untoldUsers, r.usersSeq)
}

// owesLocked reports whether the others have not been told of something by anybody.
func (s *Store) owesLocked() bool {
	return s.untold > s.told || s.untoldUsers > s.toldUsers
}

func (s *Store) snapshot() hub.Snapshot {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.now
}

func (s *Store) wakeRun() {
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

// heard takes over a message.
func (s *Store) heard(m valkey.PubSubMessage) {
	r, ok := parseMessage(m.Message)
	if !ok {
		return // somebody else's
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if r.epoch != s.epoch {
		s.look = true
		s.wakeRun()
		return
	}
	s.told, s.toldUsers = max(s.told, r.version), max(s.toldUsers, r.usersSeq)
	s.takeNewerLocked(r)
	// Our own changes are what Apply returns: as news they would come without the values
	// in between, and perhaps earlier.
	if r.from != s.id && r.version > s.foreign.Version {
		s.foreign = hub.Snapshot{Epoch: s.now.Epoch, Version: r.version, Value: r.value}
	}
	s.tellLocked()
}

// tellLocked makes what is known the news.
func (s *Store) tellLocked() {
	n := hub.News{Snapshot: s.foreign, Others: max(0, s.users-s.announced), Hubs: s.hubs, Err: s.err}
	select {
	case <-s.news:
	default:
	}
	s.news <- n // there is room: only we send, under mu
}

// run keeps a connection until Close.
func (s *Store) run() {
	wait := firstPause
	for {
		began := time.Now()
		err := s.session()
		if s.stopping.Err() != nil {
			return
		}
		if _, ok := valkey.IsValkeyErr(err); !ok && time.Since(began) > beatEvery {
			wait = firstPause // it worked for a while
		}
		s.disconnected(err)
		// Hubs that lost the same server do not all come back at once.
		pause(s.stopping, wait/2+mathrand.N(wait))
		wait = min(2*wait, longestPause)
	}
}

// disconnected notes that there is no connection, and why.
func (s *Store) disconnected(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.client = nil
	s.err = fmt.Errorf("%s: %w", s.cfg.Address, why(err))
	s.triedLocked()
	s.tellLocked()
}

func (s *Store) triedLocked() {
	select {
	case <-s.tried:
	default:
		close(s.tried)
	}
}

// session makes a connection and uses it until something fails, which is what it returns.
func (s *Store) session() error {
	client, err := s.dial()
	if client != nil {
		defer s.running.Go(client.Close) // may take a second if the server is silent
	}
	if err != nil {
		return err
	}
	receiving, end := context.WithCancel(context.Background())
	defer end()
	subscribed := make(chan struct{}, 1)
	ended := make(chan error, 1)
	s.running.Go(func() {
		ctx := valkey.WithOnSubscriptionHook(receiving, func(valkey.PubSubSubscription) {
			select {
			case subscribed <- struct{}{}:
			default:
			}
		})
		ended <- client.Receive(ctx, client.B().Subscribe().Channel(s.channel).Build(), s.heard)
	})
	select {
	case <-subscribed:
	case err := <-ended:
		return lost(err)
	case <-time.After(answerTimeout):
		return errNoAnswer
	case <-s.stopping.Done():
		return nil
	}
	next := time.NewTimer(0) // the first beat reads what was missed
	defer next.Stop()
	for {
		select {
		case <-next.C:
			if err := s.doBeat(client, false); err != nil {
				return err
			}
		case <-s.wake:
			s.mu.Lock()
			overdue := s.overdue == client
			s.mu.Unlock()
			if overdue {
				return errNoAnswer
			}
		case err := <-ended:
			return lost(err)
		case <-s.stopping.Done():
			return s.doBeat(client, true)
		}
		next.Reset(time.Until(s.nextBeat()))
	}
}

func lost(err error) error {
	if err == nil {
		return errors.New("the subscription has ended")
	}
	if _, ok := valkey.IsValkeyErr(err); ok {
		return err
	}
	return fmt.Errorf("connection lost: %w", err)
}

// why says what a timeout of the network's is.
func why(err error) error {
	if errors.Is(err, os.ErrDeadlineExceeded) || errors.Is(err, context.DeadlineExceeded) {
		return fmt.Errorf("no answer: %w", err)
	}
	return err
}

// nextBeat returns when to beat next.
func (s *Store) nextBeat() time.Time {
	s.mu.Lock()
	defer s.mu.Unlock()
	at := s.beatAt.Add(beatEvery)
	sooner := func(t time.Time) {
		if t.Before(at) {
			at = t
		}
	}
	if s.clients != s.announced {
		sooner(s.beatAt.Add(max(announceEvery, time.Duration(s.hubs)*announcePerHub)))
	}
	if s.owesLocked() {
		sooner(s.flushAt)
	}
	if s.look {
		sooner(s.beatAt.Add(announceEvery))
	}
	return at
}

// doBeat calls beatScript: see there.
func (s *Store) doBeat(client valkey.Client, last bool) error {
	s.mu.Lock()
	s.look = false
	s.beatAt = time.Now()
	clients := s.clients
	if last {
		clients = -1
	}
	owes := "0"
	if s.owesLocked() {
		owes = "1"
	}
	s.untold, s.untoldUsers = 0, 0
	s.mu.Unlock()
	r, err := s.call(s.conns, client, beatScript, s.beat, strconv.Itoa(clients), owes,
		strconv.FormatInt(silence.Milliseconds(), 10), strconv.FormatInt(remember.Milliseconds(), 10))
	if last {
		return err
	}
	if err != nil {
		if _, ok := valkey.IsValkeyErr(err); ok {
			s.read(client)
		}
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.announced = clients
	s.hubs = r.hubs
	if r.untold {
		s.untoldLocked(r)
	}
	s.foundLocked(r)
	s.err = nil
	if s.client == nil {
		s.client = client
		close(s.connected)
		s.connected = make(chan struct{})
	}
	s.triedLocked()
	s.tellLocked()
	return nil
}

// foundLocked notes a value that was read.
func (s *Store) foundLocked(r reply) {
	if r.version > s.own && r.version > s.foreign.Version {
		s.foreign = hub.Snapshot{Epoch: s.now.Epoch, Version: r.version, Value: r.value}
	}
}

// read takes over the value of a server that takes no writes.
func (s *Store) read(client valkey.Client) {
	ctx, cancel := context.WithTimeout(s.conns, answerTimeout)
	defer cancel()
	list, err := client.Do(ctx, client.B().Hmget().Key(s.keys[0]).Field("epoch", "version", "value", "users", "usersseq").Build()).AsStrSlice()
	if err != nil || len(list) != 5 {
		return
	}
	r, ok := parseMessage(fmt.Sprintf("%s %s %s %s %s -", list[0], list[1], list[2], orZero(list[3]), orZero(list[4])))
	if !ok || r.epoch == "" {
		return
	}
	s.mu.Lock()
	unknown := s.epoch == "" || r.epoch == s.epoch
	s.mu.Unlock()
	if !unknown {
		return // it will be told when it can be acted upon
	}
	s.take(r)
	s.mu.Lock()
	s.foundLocked(r)
	s.mu.Unlock()
}

func orZero(s string) string {
	if s == "" {
		return "0"
	}
	return s
}

// dial makes a connection and logs in. The client is to be closed even if there is an error.
func (s *Store) dial() (valkey.Client, error) {
	return s.cfg.dial("plusminus-"+s.id, func(ctx context.Context, addr string, dialer *net.Dialer, config *tls.Config) (net.Conn, error) {
		return dialConn(ctx, s.conns, addr, dialer, config)
	})
}

// dial makes a connection with dialConn and logs in. name is for CLIENT LIST. The client is to be closed
// even if there is an error.
func (c *Config) dial(name string, dialConn func(context.Context, string, *net.Dialer, *tls.Config) (net.Conn, error)) (valkey.Client, error) {
	password, err := c.password()
	if err != nil {
		return nil, err
	}
	return valkey.NewClient(valkey.ClientOption{
		InitAddress:       []string{c.Address},
		ForceSingleClient: true,
		TLSConfig:         c.TLS,
		Username:          c.Username,
		Password:          password,
		ClientName:        name,
		SelectDB:          c.DB,
		// What is sent again, and when, is decided here.
		DisableRetry: true,
		DisableCache: true,
		// One connection, so that messages and answers come in the server's order, with buffers for
		// short lines.
		PipelineMultiplex:   -1,
		RingScaleEachConn:   8,
		ReadBufferEachConn:  8 << 10,
		WriteBufferEachConn: 8 << 10,
		// A ping after each second without an answer; the connection ends if none comes.
		Dialer:           net.Dialer{Timeout: dialTimeout, KeepAlive: time.Second},
		ConnWriteTimeout: answerTimeout,
		DialCtxFn:        dialConn,
	})
}

// dialConn makes a connection that ends with until.
func dialConn(ctx, until context.Context, addr string, dialer *net.Dialer, config *tls.Config) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, dialTimeout)
	defer cancel()
	defer context.AfterFunc(until, cancel)()
	var conn net.Conn
	var err error
	if config != nil {
		conn, err = (&tls.Dialer{NetDialer: dialer, Config: config}).DialContext(ctx, "tcp", addr)
	} else {
		conn, err = dialer.DialContext(ctx, "tcp", addr)
	}
	if err != nil {
		return nil, err
	}
	return &cutConn{conn, context.AfterFunc(until, func() { conn.Close() })}, nil
}

// cutConn is a connection with something to undo when it is closed.
type cutConn struct {
	net.Conn
	forget func() bool
}

func (c *cutConn) Close() error {
	c.forget()
	return c.Conn.Close()
}
