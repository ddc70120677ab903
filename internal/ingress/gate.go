package ingress

import (
	"bytes"
	"container/list"
	"errors"
	"log/slog"
	"net"
	"net/netip"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"plusminus/hub"
)

// GateConfig is what [NewGate] needs to know. Its zero value is a gate without caps.
type GateConfig struct {
	// Events counts and logs what is refused; nil discards it.
	Events *hub.Events

	// Logger gets a sample of failed TLS handshakes; nil discards them.
	Logger *slog.Logger

	// MaxArrivals caps the connections that have not joined a hub: those in their TLS handshake,
	// between requests, or silent. Beyond the cap, a new one replaces an old one. 0 is no cap: then
	// a peer that opens enough connections takes all file descriptors.
	MaxArrivals int

	// Hosts are those that a request without TLS on a TLS listener is redirected to; nil redirects none.
	Hosts *Hosts

	// Rates limits the connections that an address opens; nil does not. A connection over the limit
	// is closed at once.
	Rates *Rates

	// Proxy reports whether an address is that of a trusted proxy. Its connections carry many
	// clients and are not limited. nil means that no address is.
	Proxy func(netip.Addr) bool
}

// A Gate is what every connection from outside passes on its way to a hub. It keeps connections that
// have not joined (arrivals) from stopping those that have, and each other:
//
//   - The number of arrivals is capped. Beyond the cap, the gate closes the arrival without progress
//     for longest: a silent one if more arrivals are silent than not, else one that was answered.
//     So neither silence nor requests that never end in a join hold a place for long, and an honest
//     peer needs its place for a round trip or two. To make new arrivals wait instead would let an
//     attacker lock everybody out.
//   - A few TLS handshakes are computed at a time, in turn, on half of the processors. A handshake
//     waits for its turn only after its hello has arrived, and no part of a turn waits for the peer.
//     While many wait, the gate accepts no connection: in the kernel's queue it costs nothing. After
//     a restart all clients that come back are served as fast as the processors can. This bounds
//     new connections per second in all, without a number to configure.
//   - The connections of one address are limited before anything is spent on them.
//   - When the system has no file descriptor left, accepting resumes as soon as there is one.
//
// Its methods are safe from any goroutine.
type Gate struct {
	// Immutable after NewGate.
	cfg        GateConfig
	handshakes *hub.EventLog[Outcome]
	turns      chan struct{} // a token for each handshake that is being computed
	lookups    chan struct{} // a token for each challenge that is being looked up

	mu sync.Mutex
	// Guarded by mu.
	silent  list.List  // of *arrival that got no answer yet, the oldest in front
	heard   list.List  // of all other *arrival, the one without progress for longest in front
	waiting int        // handshakes that wait for their turn
	calm    *sync.Cond // signals that waiting has fallen below maxWaiting
}

// maxWaiting is how many handshakes may wait for their turn before accepting pauses: about 20 ms of
// work, which nobody notices, and enough to keep the processors busy meanwhile.
const maxWaiting = 64

// NewGate returns a gate. It may have many listeners.
func NewGate(cfg GateConfig) *Gate {
	g := &Gate{
		cfg:        cfg,
		handshakes: hub.NewEventLog(cfg.Logger, outcomes()...),
		turns:      make(chan struct{}, max(1, runtime.GOMAXPROCS(0)/2)),
		lookups:    make(chan struct{}, maxLookups),
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

// Handshakes returns how often TLS handshakes have ended in each outcome.
func (g *Gate) Handshakes() map[Outcome]uint64 { return g.handshakes.Counts() }

// Listener returns a listener whose connections pass the gate, and which a hub can write to without
// waiting (see [hub.Conn]). ln must be TCP, and the addresses of its connections known without
// waiting for their first bytes.
func (g *Gate) Listener(ln net.Listener) net.Listener { return &gateListener{Listener: ln, gate: g} }

type gateListener struct {
	net.Listener
	gate *Gate
}

const (
	// The pause after an error of accept, which doubles while errors follow each other.
	firstAcceptPause   = 5 * time.Millisecond
	longestAcceptPause = time.Second
)

// Accept returns the next connection that passes. It returns an error only when the listener was
// closed, or never was one.
func (l *gateListener) Accept() (net.Conn, error) {
	pause := firstAcceptPause
	for {
		l.gate.waitForCalm()
		nc, err := l.Listener.Accept()
		if err != nil {
			if permanent(err) {
				return nil, err
			}
			l.gate.cfg.Events.Refused(ReasonAcceptError, "err", err, "arrivals", l.gate.Arrivals())
			l.gate.makeRoom() // frees a descriptor for what needs it first
			time.Sleep(pause)
			pause = min(2*pause, longestAcceptPause)
			continue
		}
		pause = firstAcceptPause
		hc := hub.NewConn(nc)
		if hc == nil {
			return nc, nil // not the system's: the hub refuses it, and pages are served all the same
		}
		if c := l.gate.admit(hc); c != nil {
			return c, nil
		}
	}
}

// permanent reports whether err is the end of the listener. All other errors may pass: "Linux
// accept() (and accept4()) passes already-pending network errors on the new socket as an error code
// from accept()" (accept(2)), and a resource that has run out may come back.
func permanent(err error) bool {
	return errors.Is(err, net.ErrClosed) || isAny(err, noListener)
}

// admit lets hc in, or closes it and returns nil.
func (g *Gate) admit(hc *hub.Conn) *conn {
	if addr := addrOf(hc.RemoteAddr()).Unmap(); addr.IsValid() && g.cfg.Rates != nil {
		if g.cfg.Proxy == nil || !g.cfg.Proxy(addr) {
			if address := hub.PrefixOf(addr); g.cfg.Rates.Take(address, 1) > 0 {
				g.cfg.Events.Refused(ReasonAddressConnections, "remote", address)
				hc.Abort()
				return nil
			}
		}
	}
	c := &conn{Conn: hc}
	a := &arrival{gate: g, conn: c}
	c.arrival.Store(a)
	g.mu.Lock()
	a.list = &g.silent
	a.place = a.list.PushBack(a)
	crowded := g.cfg.MaxArrivals > 0 && g.arrivalsLocked() > g.cfg.MaxArrivals
	g.mu.Unlock()
	if crowded {
		g.cfg.Events.Refused(ReasonCrowded, "arrivals", g.cfg.MaxArrivals)
		g.makeRoom()
	}
	return c
}

// makeRoom closes the arrival without progress for longest, of the more numerous list.
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

// waitForCalm waits while too many handshakes wait for their turn.
func (g *Gate) waitForCalm() {
	g.mu.Lock()
	defer g.mu.Unlock()
	for g.waiting >= maxWaiting {
		g.calm.Wait()
	}
}

// conn is a connection that has passed a gate. The gate keeps an arrival for it until it joins a hub
// or is closed. It is a [hub.Joiner].
type conn struct {
	*hub.Conn
	arrival atomic.Pointer[arrival] // nil once it has left the gate
	answers answers                 // without TLS; a tlsConn has its own

	// Owned by the reader. crypto/tls does not give back what it has read, if that is not TLS.
	first bool   // the next read is the first one of a TLS connection
	early []byte // what that read got, if it begins an HTTP request
}

// watch implements watched.
func (c *conn) watch() *answers { return &c.answers }

// Read implements net.Conn.
func (c *conn) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	if c.first && n > 0 {
		c.first = false
		if looksLikeHTTP(p[:n]) {
			c.early = bytes.Clone(p[:n])
		}
	}
	return n, err
}

// Write implements net.Conn.
func (c *conn) Write(p []byte) (int, error) {
	c.arrival.Load().answered()
	c.answers.written(c.RemoteAddr(), p)
	return c.Conn.Write(p)
}

// CloseWrite ends what is written to the peer. net/http calls it after an answer to a request that it has not read
// completely: without it, the answer is followed by a reset, and a proxy in front may drop it. It does nothing on a
// connection that has joined a hub, which writes to the end what it has kept before.
func (c *conn) CloseWrite() error {
	if c.arrival.Load() == nil {
		return nil
	}
	if w, ok := c.Conn.Conn.(interface{ CloseWrite() error }); ok {
		return w.CloseWrite()
	}
	return nil
}

// Close implements net.Conn.
func (c *conn) Close() error {
	c.Joined()
	return c.Conn.Close()
}

// Joined implements [hub.Joiner]: the connection leaves the gate.
func (c *conn) Joined() { c.arrival.Swap(nil).leave() }

// abort closes the connection with a reset.
func (c *conn) abort() {
	c.Joined()
	c.Abort()
}

// arrival is a connection that has not joined a hub yet. Its methods are safe from any goroutine,
// and do nothing on nil.
type arrival struct {
	// Immutable after admit.
	gate *Gate
	conn *conn

	// Guarded by gate.mu.
	list      *list.List    // gate.silent or gate.heard
	place     *list.Element // in list; nil once the arrival has left
	computing bool          // holds a token of gate.turns

	unknownName bool // the peer asks for a name that is not ours. Owned by the handshake.
}

// progressLocked moves the arrival to the back of the list of those that were heard.
func (a *arrival) progressLocked() {
	if a.place != nil {
		a.list.Remove(a.place)
		a.list = &a.gate.heard
		a.place = a.list.PushBack(a)
	}
}

// compute waits for the handshake's turn, which ends with answered. The answer to a hello is one
// write, so nothing in a turn waits for the peer. (After a hello retry request the second half is
// computed out of turn.) It reports false if the connection was closed meanwhile.
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

// answered notes that something is written to the peer, which ends the turn of its handshake.
func (a *arrival) answered() {
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
