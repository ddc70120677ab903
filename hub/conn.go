//go:build unix

package hub

import (
	"errors"
	"net"
	"sync"
	"syscall"
	"time"
)

// NewListener returns a listener whose connections a [Hub] can write to without ever
// waiting. A server that passes upgrades to a Hub must accept from such a listener;
// TLS goes on top of it:
//
//	ln, err := net.Listen("tcp", ":443")
//	srv.Serve(tls.NewListener(hub.NewListener(ln), config))
//
// The connections of ln are TCP connections, or have their SyscallConn, SetWriteBuffer and
// SetLinger. Until one joins a hub it behaves as ln made it. A listener that strangers reach
// should be a [Gate]'s.
func NewListener(ln net.Listener) net.Listener {
	return listener{ln}
}

type listener struct{ net.Listener }

func (l listener) Accept() (net.Conn, error) {
	nc, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	if c := newConn(nc); c != nil {
		return c, nil
	}
	return nc, nil // the hub refuses it by name, and pages are served all the same
}

// newConn returns nc as a socket, or nil if it is not the system's.
func newConn(nc net.Conn) *conn {
	sc, ok := nc.(syscall.Conn)
	if !ok {
		return nil
	}
	raw, err := sc.SyscallConn()
	if err != nil {
		return nil // closed already: the first read says so
	}
	return &conn{Conn: nc, raw: raw}
}

// A socket is a connection that can be told never to wait in Write. All methods are
// safe from any goroutine.
type socket interface {
	net.Conn

	// neverWait ends waiting: from here on, Write takes all that it is given, keeps what
	// the network does not take, and fails if more than maxTail bytes were kept.
	neverWait()

	// blocked reports whether bytes are kept.
	blocked() bool

	// flush tries to write the kept bytes, and returns how many went out.
	flush() (int, error)

	// finish ends what is sent, and leaves what comes: the peer sees the end of the stream. It
	// is to be called when nothing is kept.
	finish()

	// expectAcks has the connection fail with ETIMEDOUT when the peer's system has not
	// acknowledged for so long what it was sent, where the system can do that: Linux.
	expectAcks(within time.Duration)

	// abort closes the connection without sending what is kept, here and in the kernel.
	abort()
}

// socketOf returns the socket below nc, through TLS, or nil.
func socketOf(nc net.Conn) socket {
	if t := tlsOf(nc); t != nil {
		nc = t.NetConn()
	}
	s, _ := nc.(socket)
	return s
}

const (
	// maxTail bounds what is kept for a blocked client. A sweep writes at most about
	// 1 KB and skips those that are blocked, and errors wait until they are not, so that
	// only pongs can add to it: one that sends pings and does not read is cut off.
	maxTail = 4 << 10

	// sendBuffer is the kernel's share for one client (Linux doubles it for its own
	// bookkeeping). By default it grows to megabytes, which a peer that does not read
	// would pin, filled with values that nobody will want any more.
	sendBuffer = 16 << 10
)

var errTailFull = errors.New("hub: the peer sends but does not read")

// conn is a socket over a TCP connection.
//
// crypto/tls must not see a write fail half-way: "After a Write has timed out, the
// TLS state is corrupt" (its documentation of SetWriteDeadline). So waiting is taken
// out below TLS, where only whole bytes are known.
type conn struct {
	// Immutable after Accept.
	net.Conn
	raw syscall.RawConn

	mu sync.Mutex
	// Guarded by mu.
	arrival *arrival // what its gate knows of it until it joins a hub or is closed; nil without a gate
	async   bool
	tail    []byte // ciphertext that the kernel has not taken yet
	err     error  // sticky: bytes are lost, nothing may follow them

	// Guarded by mu: arguments and results of writeFD, which is made a func value once,
	// so that a write does not allocate.
	writeFunc func(fd uintptr) bool
	p         []byte
	n         int
	errno     error
}

func (c *conn) neverWait() {
	c.leaveGate() // it is the hub's now
	c.mu.Lock()
	defer c.mu.Unlock()
	c.async = true
	c.writeFunc = c.writeFD
	if tcp, ok := c.Conn.(interface{ SetWriteBuffer(int) error }); ok {
		// Without it the client is blocked later, that is all.
		_ = tcp.SetWriteBuffer(sendBuffer)
	}
}

// Write implements net.Conn.
func (c *conn) Write(p []byte) (int, error) {
	c.mu.Lock()
	if !c.async {
		a := c.arrival
		c.mu.Unlock()
		a.wrote()
		return c.Conn.Write(p)
	}
	defer c.mu.Unlock()
	if c.err != nil {
		return 0, c.err
	}
	n := 0
	if len(c.tail) == 0 {
		if n, c.err = c.tryWrite(p); c.err != nil {
			return n, c.err
		}
	}
	if len(c.tail)+len(p)-n > maxTail {
		c.err = errTailFull
		return n, c.err
	}
	c.tail = append(c.tail, p[n:]...)
	return len(p), nil
}

func (c *conn) blocked() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.tail) > 0
}

func (c *conn) flush() (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.err != nil || len(c.tail) == 0 {
		return 0, c.err
	}
	n, err := c.tryWrite(c.tail)
	if c.err = err; err != nil {
		return n, err
	}
	if n == len(c.tail) {
		c.tail = nil // most clients are never blocked again: give the memory back
	} else {
		c.tail = append(c.tail[:0], c.tail[n:]...)
	}
	return n, nil
}

// Close implements net.Conn.
func (c *conn) Close() error {
	c.leaveGate()
	return c.Conn.Close()
}

// leaveGate has the gate, if there is one, forget the connection.
func (c *conn) leaveGate() {
	c.mu.Lock()
	a := c.arrival
	c.arrival = nil
	c.mu.Unlock()
	a.leave()
}

func (c *conn) finish() {
	// It fails on a connection that is closed or reset, and there is nothing to finish.
	_ = c.raw.Control(func(fd uintptr) { _ = syscall.Shutdown(int(fd), syscall.SHUT_WR) })
}

func (c *conn) abort() {
	if tcp, ok := c.Conn.(interface{ SetLinger(int) error }); ok {
		_ = tcp.SetLinger(0) // fails on a closed connection, as does Close
	}
	_ = c.Close()
}

// tryWrite makes one write(2) and returns how much the kernel took, perhaps nothing.
func (c *conn) tryWrite(p []byte) (int, error) {
	c.p, c.n, c.errno = p, 0, nil
	err := c.raw.Write(c.writeFunc)
	c.p = nil
	if err == nil {
		err = c.errno
	}
	return c.n, err
}

// writeFD always reports true: done, do not wait for the socket to become writable.
func (c *conn) writeFD(fd uintptr) bool {
	for {
		n, err := syscall.Write(int(fd), c.p)
		switch err {
		case nil:
			c.n = n
		case syscall.EINTR:
			continue
		case syscall.EAGAIN:
		default:
			c.errno = err
		}
		return true
	}
}
