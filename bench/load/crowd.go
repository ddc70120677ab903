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
	// sources is how many loopback addresses clients connect from, 127.0.0.2 and up. One
	// has about 28,000 ports, of which closed connections hold theirs for a minute.
	sources = 40

	// dialTimeout bounds the handshakes of one client. Servers that tell everyone of each
	// arrival keep the last ones waiting for long.
	dialTimeout = 2 * time.Minute

	// maxBatch is how many actions Flood writes at once at most: two TLS records.
	maxBatch = 1024
)

// Crowd is the clients of one server. Its methods are for one goroutine, unless they
// say otherwise.
type Crowd struct {
	// Immutable after New.
	addr      string
	tls       *tls.Config
	request   []byte // the opening handshake
	goingAway []byte // a close frame with status code 1001
	plus      []byte // maxBatch actions
	plusSize  int    // bytes of one action
	began     time.Time
	loop      *loop

	dials    atomic.Uint32
	messages atomic.Int64 // text messages received
	refused  atomic.Int64 // of those, how many were errors
	joined   atomic.Int64 // clients that have been told a state
	lost     atomic.Int64 // clients that the server disconnected
	lostSlow atomic.Int64 // slow ones that the server disconnected
	lostWhy  atomic.Value // string: why the first one was

	target  atomic.Int64   // the value that Round waits for
	missing atomic.Int64   // how many clients have yet to get it
	reached chan time.Time // loop -> Round: the last one has got it; 1, never closed

	mu      sync.Mutex
	clients []*Client // Guarded by mu.
}

// New returns an empty crowd for the server at addr. The certificate is not verified:
// that is work for the client alone, which is not what is measured.
func New(addr string) (*Crowd, error) {
	l, err := newLoop()
	if err != nil {
		return nil, err
	}
	_, port, _ := net.SplitHostPort(addr)
	cr := &Crowd{
		addr: addr,
		tls:  &tls.Config{InsecureSkipVerify: true, ServerName: "localhost", MinVersion: tls.VersionTLS13},
		request: fmt.Appendf(nil, "GET / HTTP/1.1\r\nHost: localhost:%s\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"+
			"Sec-WebSocket-Key: %s\r\nSec-WebSocket-Version: 13\r\n\r\n", port, handshakeKey),
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

// Messages returns how many text messages have come so far.
func (cr *Crowd) Messages() int64 { return cr.messages.Load() }

// Refused returns how many actions the server has refused.
func (cr *Crowd) Refused() int64 { return cr.refused.Load() }

// Lost returns how many clients the server has disconnected, and how many of those
// were slow ones.
func (cr *Crowd) Lost() (all, slow int64) { return cr.lost.Load(), cr.lostSlow.Load() }

// Busy returns how long the loop was occupied with messages in all rounds so far.
func (cr *Crowd) Busy() time.Duration { return time.Duration(cr.loop.busy.Load()) }

// Joined returns how many clients have been told a state.
func (cr *Crowd) Joined() int64 { return cr.joined.Load() }

// Connect adds n clients, at most parallel of them in a handshake at a time, and waits
// until each has been told the state. Slow ones have a small receive buffer.
func (cr *Crowd) Connect(ctx context.Context, n, parallel int, slow bool) ([]*Client, error) {
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
				c, err := cr.dial(ctx, slow, false)
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
		return nil, fmt.Errorf("%d of %d clients were told the state: %w", cr.joined.Load(), want, err)
	}
	return added, nil
}

// message is called by the loop for each text message.
func (cr *Crowd) message(c *Client, p []byte) {
	cr.messages.Add(1)
	k, n := parseMessage(p)
	switch k {
	case kindError:
		cr.refused.Add(1)
	case kindState:
		old := c.value.Load()
		if old == n {
			return
		}
		now := time.Now()
		c.at.Store(int64(now.Sub(cr.began))) // before the value: who sees that one sees its time
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

// left is called by the loop when a connection has ended.
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

// Round has actor send one plus, and returns how long it took from there until the last
// client, the slow ones aside, had the new value. All must be at the same value before.
//
// Meanwhile the loop polls and does not sleep. Otherwise the servers would be charged for
// waking it, or not, as it happens to be quicker or slower than they are: on loopback
// that is a fifth of what a message costs.
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

func (cr *Crowd) why() string {
	all, slow := cr.Lost()
	if all == slow {
		return ""
	}
	return fmt.Sprintf("; the server disconnected %d, the first with %q", all-slow, cr.lostWhy.Load())
}

// FloodResult is what became of a Flood.
type FloodResult struct {
	Rate      float64       // actions a second that the server took, after the warm-up
	AfterSend time.Duration // from the last action sent until all were at the final value
	AfterAck  time.Duration // from the moment at which the first client was there
	Converged bool          // all were there in time
	Behind    int           // clients that were not
	Lost      int64         // clients that were disconnected meanwhile
	Refused   int64         // actions that were refused
}

const (
	floodWarmUp = time.Second

	// ConvergeTimeout is how long after a flood all may take to be at the final value.
	ConvergeTimeout = 20 * time.Second
)

// Flood has the actors send plus as fast as the server takes it. Each writes batches,
// of which two are on their way at most, and finds the size at which the server is
// always busy and yet answers soon: the batch doubles while an answer takes less than
// 50 ms, and halves when one takes more than 150 ms. So a server that takes 100 actions
// a second gets one at a time from each, and is not buried.
func (cr *Crowd) Flood(ctx context.Context, actors []*Client, d time.Duration) (FloodResult, error) {
	quick := cr.quick()
	base := actors[0].value.Load()
	lost0, slow0 := cr.Lost()
	refused0 := cr.refused.Load()

	var sent atomic.Int64
	sent.Store(base)
	ctx, cancel := context.WithTimeout(ctx, d+floodWarmUp)
	defer cancel()
	began := time.Now()
	var wg sync.WaitGroup
	errs := make(chan error, len(actors))
	for _, a := range actors {
		wg.Go(func() { errs <- cr.act(ctx, a, &sent) })
	}
	// What was taken in the warm-up does not count.
	time.Sleep(floodWarmUp)
	warmValue, warmAt := actors[0].value.Load(), time.Since(cr.began)
	wg.Wait()
	stopped := time.Since(cr.began)
	for range actors {
		if err := <-errs; err != nil {
			return FloodResult{}, fmt.Errorf("an actor's connection: %w%s", err, cr.why())
		}
	}

	var r FloodResult
	for {
		final := sent.Load() - (cr.refused.Load() - refused0)
		behind := 0
		var first, last int64 = 1 << 62, 0
		for _, c := range quick {
			if c.value.Load() != final {
				behind++
				continue
			}
			first, last = min(first, c.at.Load()), max(last, c.at.Load())
		}
		if lost, slow := cr.Lost(); behind == 0 || lost-slow > lost0-slow0 || time.Since(began) > d+floodWarmUp+ConvergeTimeout {
			r.Converged, r.Behind = behind == 0, behind
			if behind < len(quick) {
				r.AfterSend, r.AfterAck = max(0, time.Duration(last)-stopped), time.Duration(last-first)
				r.Rate = float64(final-warmValue) / (time.Duration(first) - warmAt).Seconds()
			} else {
				newest := actors[0].value.Load()
				r.Rate = float64(newest-warmValue) / (time.Since(cr.began) - warmAt).Seconds()
			}
			r.Lost = lost - slow - (lost0 - slow0)
			r.Refused = cr.refused.Load() - refused0
			return r, nil
		}
		time.Sleep(2 * time.Millisecond)
	}
}

// act is one actor of a flood.
func (cr *Crowd) act(ctx context.Context, a *Client, sent *atomic.Int64) error {
	const soon, late = 50 * time.Millisecond, 150 * time.Millisecond
	var before, mark int64 // the value that includes the batch before the last one, and the last one
	var beforeAt, markAt time.Time
	before, mark = a.value.Load(), a.value.Load()
	beforeAt, markAt = time.Now(), time.Now()
	for n := 1; ctx.Err() == nil; {
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
		case took < soon:
			n = min(n*2, maxBatch)
		case took > late:
			n = max(n/2, 1)
		}
		before, beforeAt = mark, markAt
		mark, markAt = sent.Add(int64(n)), time.Now()
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
		c, err := cr.dial(ctx, false, true)
		if err != nil {
			return nil, fmt.Errorf("connecting actor %d: %w", i, err)
		}
		actors[i] = c
		if err := cr.wait(ctx, dialTimeout, func() bool { return c.Value() != unknown }); err != nil {
			return nil, fmt.Errorf("actor %d was not told the state: %w", i, err)
		}
	}
	cr.mu.Lock()
	cr.clients = append(cr.clients, actors...)
	cr.mu.Unlock()
	return actors, nil
}

// Leave has clients go at once, all if none is named, and waits until the server has
// closed each.
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

// Abandon drops all connections and ends the crowd.
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
			_ = c.Resume() // or the loop would not be told
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

// wait polls until ok, and gives up after d.
func (cr *Crowd) wait(ctx context.Context, d time.Duration, ok func() bool) error {
	deadline := time.Now().Add(d)
	for !ok() {
		switch {
		case ctx.Err() != nil:
			return context.Cause(ctx)
		case time.Now().After(deadline):
			return fmt.Errorf("nothing more in %v%s", d, cr.why())
		}
		time.Sleep(time.Millisecond)
	}
	return nil
}
