package load

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

const (
	// sources is the number of loopback addresses that clients connect from: 127.0.0.2 and up.
	// One address has about 28,000 ports, and a closed connection blocks its port for a minute.
	sources = 40

	// dialTimeout bounds the handshakes of one client. The last clients wait long if a server
	// sends users to all clients at each arrival.
	dialTimeout = 2 * time.Minute

	// maxBatch is the most actions that Flood writes at once. They fill two TLS records.
	maxBatch = 1024
)

// Crowd holds the clients of one server. Only one goroutine may call its methods. The
// exceptions are Misbehave and the methods that return counts: those are safe from any goroutine.
type Crowd struct {
	// Immutable after New.
	addr      string
	host      string // of requests
	tls       *tls.Config
	standard  *Counter // the default counter
	goingAway []byte   // a close frame with status code 1001
	plus      []byte   // maxBatch actions
	plusSize  int      // bytes of one action
	began     time.Time
	loop      *epollLoop

	dials    atomic.Uint32
	messages atomic.Int64 // text messages received
	refused  atomic.Int64 // error messages received
	joined   atomic.Int64 // clients that have received a state
	lost     atomic.Int64 // clients that the server disconnected
	lostSlow atomic.Int64 // slow ones that the server disconnected
	lostWhy  atomic.Value // string: the error of the first of them

	target  atomic.Int64   // the value that Round waits for
	missing atomic.Int64   // how many clients do not have it yet
	reached chan time.Time // loop -> Round: when the last client got it; capacity 1, never closed

	mu      sync.Mutex
	clients []*Client // Guarded by mu.
}

// New returns an empty crowd for the server at addr. Clients do not verify the certificate,
// because that costs CPU only in the client, which is not measured.
func New(addr string) (*Crowd, error) {
	l, err := newLoop()
	if err != nil {
		return nil, err
	}
	_, port, _ := net.SplitHostPort(addr)
	cr := &Crowd{
		addr:      addr,
		host:      "localhost:" + port,
		tls:       &tls.Config{InsecureSkipVerify: true, ServerName: "localhost", MinVersion: tls.VersionTLS13},
		standard:  &Counter{path: "/"},
		goingAway: appendFrame(nil, opClose, []byte{1001 >> 8, 1001 & 0xff}),
		began:     time.Now(),
		loop:      l,
		reached:   make(chan time.Time, 1),
	}
	one := appendFrame(nil, opText, []byte(`{"action":"plus"}`))
	cr.plus, cr.plusSize = bytes.Repeat(one, maxBatch), len(one)
	cr.target.Store(unknown)
	return cr, nil
}

// Messages returns how many text messages the clients have received so far.
func (cr *Crowd) Messages() int64 { return cr.messages.Load() }

// Refused returns how many actions the server has refused.
func (cr *Crowd) Refused() int64 { return cr.refused.Load() }

// Lost returns how many clients the server has disconnected, and how many of them were slow
// clients.
func (cr *Crowd) Lost() (all, slow int64) { return cr.lost.Load(), cr.lostSlow.Load() }

// Busy returns the time that the loop has spent with messages in all rounds so far.
func (cr *Crowd) Busy() time.Duration { return time.Duration(cr.loop.busy.Load()) }

// Joined returns how many clients have received a state.
func (cr *Crowd) Joined() int64 { return cr.joined.Load() }

// Connect adds n clients, with at most parallel handshakes at a time, and waits until each
// client has received the state. With slow the clients have a small receive buffer.
func (cr *Crowd) Connect(ctx context.Context, n, parallel int, slow bool) ([]*Client, error) {
	return cr.connect(ctx, n, parallel, func(int) joining { return joining{of: cr.standard, slow: slow} })
}

// joining says how a client joins.
type joining struct {
	of        *Counter
	forwarded string // a further header field of the opening handshake, or ""
	slow      bool   // the client has a small receive buffer
	acts      bool   // Flood and Round can use it
}

// connect does the work of Connect. how says how the i-th client joins.
func (cr *Crowd) connect(ctx context.Context, n, parallel int, how func(i int) joining) ([]*Client, error) {
	var (
		wg     sync.WaitGroup
		next   atomic.Int64
		failed = make(chan error, parallel)
		added  = make([]*Client, n)
	)
	want := cr.joined.Load() + int64(n)
	for range min(parallel, n) {
		wg.Go(func() {
			for i := next.Add(1) - 1; i < int64(n); i = next.Add(1) - 1 {
				c, err := cr.dial(ctx, how(int(i)))
				if err != nil {
					failed <- err
					return
				}
				added[i] = c
			}
		})
	}
	wg.Wait()
	cr.mu.Lock()
	for _, c := range added {
		if c != nil {
			cr.clients = append(cr.clients, c)
		}
	}
	cr.mu.Unlock()
	select {
	case err := <-failed:
		return nil, fmt.Errorf("connecting client %d: %w", next.Load(), err)
	default:
	}
	if err := cr.wait(ctx, dialTimeout, func() bool { return cr.joined.Load() >= want }); err != nil {
		return nil, fmt.Errorf("%d of %d clients received the state: %w", cr.joined.Load(), want, err)
	}
	return added, nil
}

// message processes a text message. The loop calls it.
func (cr *Crowd) message(c *Client, p []byte) {
	cr.messages.Add(1)
	k, n := parseMessage(p)
	switch k {
	case kindError:
		cr.refused.Add(1)
		c.of.refused.Add(1)
	case kindState:
		old := c.value.Load()
		if old == n {
			return
		}
		now := time.Now()
		c.at.Store(int64(now.Sub(cr.began))) // before value: a reader of value then sees its time
		c.value.Store(n)
		if old == unknown {
			cr.joined.Add(1)
		}
		if n == cr.target.Load() && !c.slow && cr.missing.Add(-1) == 0 {
			select {
			case cr.reached <- now:
			default:
			}
		}
		if c.progress != nil {
			select {
			case c.progress <- struct{}{}:
			default:
			}
		}
	}
}

// left counts a client that the server has disconnected. The loop calls it when a connection has ended.
func (cr *Crowd) left(c *Client, err error) {
	if c.leaving.Load() {
		return
	}
	cr.lostWhy.CompareAndSwap(nil, fmt.Sprint(err))
	cr.lost.Add(1)
	if c.slow {
		cr.lostSlow.Add(1)
	}
}

// quick returns the clients that rounds wait for.
func (cr *Crowd) quick() []*Client {
	cr.mu.Lock()
	defer cr.mu.Unlock()
	var list []*Client
	for _, c := range cr.clients {
		if !c.slow && !c.leaving.Load() {
			list = append(list, c)
		}
	}
	return list
}

// roundTimeout bounds one round.
const roundTimeout = 30 * time.Second

// Round sends one plus from actor. It returns the time from then until the last client that is
// not slow has the new value. All these clients must have the same value before.
//
// During a round the loop polls and does not sleep. On loopback, waking a sleeping reader costs
// the server a fifth of the CPU time of a message, and whether the reader sleeps would depend on
// how fast the server is.
func (cr *Crowd) Round(ctx context.Context, actor *Client) (time.Duration, error) {
	quick := cr.quick()
	select {
	case <-cr.reached:
	default:
	}
	cr.missing.Store(int64(len(quick)))
	cr.target.Store(actor.value.Load() + 1)
	defer cr.target.Store(unknown)
	cr.loop.awake.Store(true)
	defer cr.loop.awake.Store(false)
	sent := time.Now()
	if err := actor.Send(cr.plus[:cr.plusSize]); err != nil {
		return 0, err
	}
	timeout := time.NewTimer(roundTimeout)
	defer timeout.Stop()
	for {
		select {
		case last := <-cr.reached:
			return last.Sub(sent), nil
		case <-timeout.C:
			return 0, fmt.Errorf("%d of %d clients did not get the value in %v%s", cr.missing.Load(), len(quick), roundTimeout, cr.why())
		case <-ctx.Done():
			return 0, context.Cause(ctx)
		}
	}
}

// why returns a text about the disconnected clients that are not slow, or "" if there are none.
func (cr *Crowd) why() string {
	all, slow := cr.Lost()
	if all == slow {
		return ""
	}
	return fmt.Sprintf("; the server disconnected %d, the first with %q", all-slow, cr.lostWhy.Load())
}

// FloodResult is the result of a Flood.
type FloodResult struct {
	Rate      float64       // actions per second that the server accepted, after the warm-up
	AfterSend time.Duration // from the last action until all clients had the final value
	AfterAck  time.Duration // from the first client with the final value until all had it
	Converged bool          // all clients had the final value in time
	Behind    int           // clients that did not
	Lost      int64         // clients that the server disconnected during the flood
	Refused   int64         // refused actions
}

const (
	floodWarmUp = time.Second

	// ConvergeTimeout is how long after a flood clients have to get the final value.
	ConvergeTimeout = 20 * time.Second
)

// Flood makes the actors send plus for d as fast as the server accepts it, and waits until all
// clients have the final value of their counter. Each client's counter must have an actor. Each actor has at most two batches in flight.
//
// A batch has the given number of actions, at most 1024. If batch is 0, each actor adapts the size of its batches so that
// the server is always busy but still answers soon: the size doubles while an answer takes less
// than 50 ms, and halves when one takes more than 150 ms. So a server that accepts 100 actions
// per second gets batches of one action, and no large backlog.
func (cr *Crowd) Flood(ctx context.Context, actors []*Client, batch int, d time.Duration) (FloodResult, error) {
	quick := cr.quick()
	lost0, slow0 := cr.Lost()
	refused0 := cr.refused.Load()
	counters := startFlood(actors)
	ctx, cancel := context.WithTimeout(ctx, d+floodWarmUp)
	defer cancel()
	began := time.Now()
	var wg sync.WaitGroup
	errs := make(chan error, len(actors))
	for _, a := range actors {
		wg.Go(func() { errs <- cr.act(ctx, a, batch) })
	}
	// Actions during the warm-up do not count.
	time.Sleep(floodWarmUp)
	warm, warmAt := newest(counters), time.Since(cr.began)
	wg.Wait()
	stopped := time.Since(cr.began)
	for range actors {
		if err := <-errs; err != nil {
			return FloodResult{}, fmt.Errorf("an actor's connection: %w%s", err, cr.why())
		}
	}

	var r FloodResult
	for {
		var final, first, last int64 // first is when each counter had a client with its final value
		for _, of := range counters {
			of.final, of.first = of.sent.Load()-(of.refused.Load()-of.refused0), never
			final += of.final
		}
		behind := 0
		for _, c := range quick {
			if c.value.Load() != c.of.final {
				behind++
				continue
			}
			c.of.first, last = min(c.of.first, c.at.Load()), max(last, c.at.Load())
		}
		for _, of := range counters {
			first = max(first, of.first)
		}
		if lost, slow := cr.Lost(); behind == 0 || lost-slow > lost0-slow0 || time.Since(began) > d+floodWarmUp+ConvergeTimeout {
			r.Converged, r.Behind = behind == 0, behind
			if first < never {
				r.AfterSend, r.AfterAck = max(0, time.Duration(last)-stopped), time.Duration(last-first)
				r.Rate = float64(final-warm) / (time.Duration(first) - warmAt).Seconds()
			} else {
				r.Rate = float64(newest(counters)-warm) / (time.Since(cr.began) - warmAt).Seconds()
			}
			r.Lost = lost - slow - (lost0 - slow0)
			r.Refused = cr.refused.Load() - refused0
			return r, nil
		}
		time.Sleep(2 * time.Millisecond)
	}
}

// never is later than any time.
const never = 1 << 62

// startFlood returns the counters of the actors, ready for a flood. All clients of a counter must have the same value.
func startFlood(actors []*Client) []*Counter {
	var counters []*Counter
	for _, a := range actors {
		a.of.actor = nil
	}
	for _, a := range actors {
		if a.of.actor == nil {
			a.of.actor, a.of.refused0 = a, a.of.refused.Load()
			a.of.sent.Store(a.value.Load())
			counters = append(counters, a.of)
		}
	}
	return counters
}

// newest returns the sum of the values of counters, each as one of its actors knows it.
func newest(counters []*Counter) (total int64) {
	for _, of := range counters {
		total += of.actor.value.Load()
	}
	return total
}

// act sends batches from one actor until ctx is done, and adds their actions to sent of its counter.
func (cr *Crowd) act(ctx context.Context, a *Client, batch int) error {
	const soon, late = 50 * time.Millisecond, 150 * time.Millisecond
	var before, mark int64 // the values that include the batch before the last one, and the last one
	var beforeAt, markAt time.Time
	before, mark = a.value.Load(), a.value.Load()
	beforeAt, markAt = time.Now(), time.Now()
	for n := max(batch, 1); ctx.Err() == nil; {
		for a.value.Load() < before {
			select {
			case <-a.progress:
			case <-a.done:
				return errors.New("disconnected")
			case <-ctx.Done():
				return nil
			}
		}
		switch took := time.Since(beforeAt); {
		case batch > 0:
		case took < soon:
			n = min(n*2, maxBatch)
		case took > late:
			n = max(n/2, 1)
		}
		before, beforeAt = mark, markAt
		mark, markAt = a.of.sent.Add(int64(n)), time.Now()
		if err := a.Send(cr.plus[:n*cr.plusSize]); err != nil {
			return err
		}
	}
	return nil
}

// ConnectActors adds n clients that Flood and Round can use.
func (cr *Crowd) ConnectActors(ctx context.Context, n int) ([]*Client, error) {
	actors := make([]*Client, n)
	for i := range actors {
		c, err := cr.dial(ctx, joining{of: cr.standard, acts: true})
		if err != nil {
			return nil, fmt.Errorf("connecting actor %d: %w", i, err)
		}
		actors[i] = c
		if err := cr.wait(ctx, dialTimeout, func() bool { return c.Value() != unknown }); err != nil {
			return nil, fmt.Errorf("actor %d did not receive the state: %w", i, err)
		}
	}
	cr.mu.Lock()
	cr.clients = append(cr.clients, actors...)
	cr.mu.Unlock()
	return actors, nil
}

// Leave starts the closing handshake of the given clients at once, or of all clients if none are
// given, and waits until the server has closed each connection.
func (cr *Crowd) Leave(ctx context.Context, clients ...*Client) error {
	cr.mu.Lock()
	if len(clients) == 0 {
		clients, cr.clients = cr.clients, nil
	} else {
		cr.clients = slices.DeleteFunc(cr.clients, func(c *Client) bool { return slices.Contains(clients, c) })
	}
	cr.mu.Unlock()
	for _, c := range clients {
		c.leave()
	}
	ctx, cancel := context.WithTimeout(ctx, dialTimeout)
	defer cancel()
	for i, c := range clients {
		select {
		case <-c.done:
		case <-ctx.Done():
			return fmt.Errorf("%d of %d connections were not closed", len(clients)-i, len(clients))
		}
	}
	return nil
}

// Abandon drops all connections without a closing handshake, and stops the loop.
func (cr *Crowd) Abandon() {
	cr.mu.Lock()
	clients := cr.clients
	cr.clients = nil
	cr.mu.Unlock()
	for _, c := range clients {
		c.leaving.Store(true)
		select {
		case <-c.done:
		default:
			c.sock.shut()
			_ = c.Resume() // a paused client is not watched, so the loop would not notice
		}
	}
	timeout := time.After(dialTimeout)
	for _, c := range clients {
		select {
		case <-c.done:
		case <-timeout:
		}
	}
	cr.loop.close()
}

// wait polls until ok returns true. After d it returns an error.
func (cr *Crowd) wait(ctx context.Context, d time.Duration, ok func() bool) error {
	deadline := time.Now().Add(d)
	for !ok() {
		switch {
		case ctx.Err() != nil:
			return context.Cause(ctx)
		case time.Now().After(deadline):
			return fmt.Errorf("not done within %v%s", d, cr.why())
		}
		time.Sleep(time.Millisecond)
	}
	return nil
}
