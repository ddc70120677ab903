//go:build unix

package hub

import (
	"container/list"
	"errors"
	"net"
	"net/netip"
	"runtime"
	"sync"
	"syscall"
	"time"
)

// GateConfig is what [NewGate] needs to know. Its zero value is a gate without caps.
type GateConfig struct {
	// Events are told of what is refused; nil tells nobody.
	Events *Events

	// MaxArrivals caps the connections that have not joined a hub: those in their TLS
	// handshake, between requests, or silent. One more takes the place of another. 0 is no cap:
	// then whoever opens enough connections takes all file descriptors.
	MaxArrivals int

	// Rates limits the connections that an address opens; nil does not. Those above it are
	// closed at once.
	Rates *Rates

	// Proxy reports whether an address is that of a proxy, whose connections are those of
	// many and are not limited. nil is no address.
	Proxy func(netip.Addr) bool
}

// A Gate is what all connections of strangers pass on their way to a hub. It makes sure that
// those who have not joined cannot stop those who have, nor each other:
//
//   - They are capped, and it is the one without progress for longest that has to go, of
//     those that have said nothing or of those that have been answered, whichever are more.
//     So silence holds no place, and neither does talk that leads nowhere: however many do
//     that, an honest peer needs a place for no longer than a round trip or two. Waiting for a
//     place would let them stop all others.
//   - TLS handshakes are computed a few at a time, in turn, on half of the processors. Those
//     that wait for their turn have sent their hello, and a turn has no part that waits for
//     a peer. While many wait, no connection is accepted: in the kernel's queue it costs
//     nothing, and after a restart all that come back are served as fast as can be. That is
//     the limit of new connections a second in all, and it needs no number.
//   - The connections that one address opens are limited before anything is spent on them.
//   - When the system is out of file descriptors, accepting goes on as soon as there are some.
//
// Its methods are safe from any goroutine.
type Gate struct {
	// Immutable after NewGate.
	cfg     GateConfig
	turns   chan struct{} // a token for each handshake that is being computed
	lookups chan struct{} // a token for each challenge that is being looked for

	mu sync.Mutex
	// Guarded by mu.
	silent  list.List  // of *arrival that were not answered yet, the oldest in front
	heard   list.List  // of all others, the one without progress for longest in front
	waiting int        // how many handshakes wait for their turn
	calm    *sync.Cond // waiting has become less than maxWaiting
}

// maxWaiting is how many handshakes may wait for their turn before accepting pauses: about
// 20 ms of work, less than anyone notices, and enough to keep the processors busy meanwhile.
const maxWaiting = 64

// NewGate returns a gate, which may have many listeners.
func NewGate(cfg GateConfig) *Gate {
	g := &Gate{
		cfg:     cfg,
		turns:   make(chan struct{}, max(1, runtime.GOMAXPROCS(0)/2)),
		lookups: make(chan struct{}, maxLookups),
	}
	g.calm = sync.NewCond(&g.mu)
	return g
}

// Arrivals returns how many connections have not joined a hub.
func (g *Gate) Arrivals() int {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.arrivalsLocked()
}

func (g *Gate) arrivalsLocked() int { return g.silent.Len() + g.heard.Len() }

// Listener returns a listener as [NewListener] does, whose connections pass the gate. ln must
// be TCP, and the addresses of its connections known without waiting for their first bytes.
func (g *Gate) Listener(ln net.Listener) net.Listener { return &gateListener{Listener: ln, gate: g} }

type gateListener struct {
	net.Listener
	gate *Gate
}

// longestAcceptPause bounds the time between two attempts to accept that fail.
const longestAcceptPause = time.Second

// Accept returns the next connection that passes. Its error is that the listener was closed,
// or is none.
func (l *gateListener) Accept() (net.Conn, error) {
	pause := 5 * time.Millisecond
	for {
		l.gate.waitForCalm()
		nc, err := l.Listener.Accept()
		if err != nil {
			if !passing(err) {
				return nil, err
			}
			l.gate.cfg.Events.Refused(ReasonAcceptError, "err", err, "arrivals", l.gate.Arrivals())
			l.gate.makeRoom() // what this frees is for whoever needs it first
			time.Sleep(pause)
			pause = min(2*pause, longestAcceptPause)
			continue
		}
		pause = 5 * time.Millisecond
		c := newConn(nc)
		if c == nil {
			return nc, nil
		}
		if l.gate.admit(c) {
			return c, nil
		}
	}
}

// passing reports whether accepting may succeed later. Only an end of the listener does not
// pass: "Linux accept() (and accept4()) passes already-pending network errors on the new
// socket as an error code from accept()" (accept(2)), and what is out may come back.
func passing(err error) bool {
	return !errors.Is(err, net.ErrClosed) && !errors.Is(err, syscall.EBADF) && !errors.Is(err, syscall.EINVAL) && !errors.Is(err, syscall.ENOTSOCK)
}

// admit takes c in, or closes it and reports false.
func (g *Gate) admit(c *conn) bool {
	if ap, ok := c.RemoteAddr().(*net.TCPAddr); ok && g.cfg.Rates != nil {
		addr := ap.AddrPort().Addr().Unmap()
		if g.cfg.Proxy == nil || !g.cfg.Proxy(addr) {
			if address := prefixOf(addr); g.cfg.Rates.Take(address, 1) > 0 {
				g.cfg.Events.Refused(ReasonAddressConnections, "remote", address)
				c.abort()
				return false
			}
		}
	}
	a := &arrival{gate: g, conn: c}
	c.arrival = a // nobody else knows c yet
	g.mu.Lock()
	a.list = &g.silent
	a.place = a.list.PushBack(a)
	crowded := g.cfg.MaxArrivals > 0 && g.arrivalsLocked() > g.cfg.MaxArrivals
	g.mu.Unlock()
	if crowded {
		g.cfg.Events.Refused(ReasonCrowded, "arrivals", g.cfg.MaxArrivals)
		g.makeRoom()
	}
	return true
}

// makeRoom closes a connection that has not joined.
func (g *Gate) makeRoom() {
	g.mu.Lock()
	front := g.silent.Front()
	if g.heard.Len() > g.silent.Len() {
		front = g.heard.Front()
	}
	g.mu.Unlock()
	if front != nil {
		front.Value.(*arrival).conn.abort()
	}
}

// waitForCalm waits while many handshakes wait for their turn.
func (g *Gate) waitForCalm() {
	g.mu.Lock()
	defer g.mu.Unlock()
	for g.waiting >= maxWaiting {
		g.calm.Wait()
	}
}

// arrival is a connection that has not joined a hub yet. Its methods are safe from any
// goroutine, and do nothing on nil.
type arrival struct {
	// Immutable.
	gate *Gate
	conn *conn

	// Guarded by gate.mu.
	list      *list.List    // gate.silent or gate.heard
	place     *list.Element // in list; nil once it is not there
	computing bool          // it has a token in gate.turns

	unknownName bool // owned by the handshake: the peer asks for a name that is none of ours
}

// progressLocked moves the arrival behind those that have been heard.
func (a *arrival) progressLocked() {
	if a.place != nil {
		a.list.Remove(a.place)
		a.list = &a.gate.heard
		a.place = a.list.PushBack(a)
	}
}

// compute waits for the turn of the handshake, which ends with wrote: the answer to a hello
// comes in one piece, so that nothing in a turn waits for the peer. (After a hello retry request
// the second half is computed out of turn.) It reports false if the connection was closed
// meanwhile.
func (a *arrival) compute() bool {
	if a == nil {
		return true
	}
	g := a.gate
	g.mu.Lock()
	g.waiting++
	a.progressLocked()
	g.mu.Unlock()
	g.turns <- struct{}{}
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.waiting--; g.waiting == maxWaiting-1 {
		g.calm.Broadcast()
	}
	if a.place == nil {
		<-g.turns
		return false
	}
	a.progressLocked()
	a.computing = true
	return true
}

// wrote notes that there is an answer to the peer: its handshake's turn is over.
func (a *arrival) wrote() {
	if a == nil {
		return
	}
	a.gate.mu.Lock()
	defer a.gate.mu.Unlock()
	a.yieldLocked()
	a.progressLocked()
}

// leave takes the arrival off the gate.
func (a *arrival) leave() {
	if a == nil {
		return
	}
	a.gate.mu.Lock()
	defer a.gate.mu.Unlock()
	a.yieldLocked()
	if a.place != nil {
		a.list.Remove(a.place)
		a.place = nil
	}
}

func (a *arrival) yieldLocked() {
	if a.computing {
		a.computing = false
		<-a.gate.turns
	}
}
