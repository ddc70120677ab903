//go:build unix

package hub

import (
	"crypto/tls"
	"errors"
	"net"
	"sync"
	"syscall"
	"time"
)

// A Conn is a TCP connection that a [Hub] can write to without waiting. A server that passes
// upgrades to a Hub makes one of each connection that it accepts, and puts TLS on top of it:
//
//	nc, err := ln.Accept()
//	conn := tls.Server(hub.NewConn(nc), config)
//
// Until the connection joins a hub, a Conn behaves as the connection below it. From then on
// Write takes all that it is given, keeps what the kernel does not take (at most maxTail bytes),
// and never waits. The methods of [net.Conn] are safe from any goroutine.
//
// crypto/tls must not see a write fail half-way: "After a Write has timed out, the TLS state is
// corrupt" (its documentation of SetWriteDeadline). That is why waiting is taken out below TLS,
// where only whole bytes are known.
type Conn struct {
	// Immutable after NewConn.
	net.Conn
	raw syscall.RawConn

	mu sync.Mutex
	// Guarded by mu.
	async bool
	tail  []byte // ciphertext that the kernel has not taken yet
	err   error  // sticky: bytes are lost, nothing may follow them

	// Guarded by mu: arguments and results of writeFD, which is made a func value once,
	// so that a write does not allocate.
	writeFunc func(fd uintptr) bool
	p         []byte
	n         int
	errno     error
}

// NewConn returns a Conn on nc, which must be a TCP connection or have the SyscallConn,
// SetWriteBuffer and SetLinger of one. It returns nil if nc has no SyscallConn, or is closed.
func NewConn(nc net.Conn) *Conn {
	sc, ok := nc.(syscall.Conn)
	if !ok {
		return nil
	}
	raw, err := sc.SyscallConn()
	if err != nil {
		return nil
	}
	return &Conn{Conn: nc, raw: raw}
}

// A server may wrap a Conn, or the TLS connection on it, in types of its own. A Hub asks these
// types for the two optional interfaces.
type (
	// A Handshaker is a net.Conn whose TLS handshake is over. TLSConn returns the TLS connection
	// below it, which the hub uses in its place from then on.
	Handshaker interface{ TLSConn() *tls.Conn }

	// A Joiner embeds a *Conn. Joined is called once, when the connection has become a client's.
	Joiner interface{ Joined() }
)

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

	// Abort closes the connection with a reset: what is kept is not sent.
	Abort()
}

// tlsOf returns the TLS connection that nc is, or nil.
func tlsOf(nc net.Conn) *tls.Conn {
	switch c := nc.(type) {
	case *tls.Conn:
		return c
	case Handshaker:
		return c.TLSConn()
	}
	return nil
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

func (c *Conn) neverWait() {
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
func (c *Conn) Write(p []byte) (int, error) {
	c.mu.Lock()
	if !c.async {
		c.mu.Unlock()
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

func (c *Conn) blocked() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.tail) > 0
}

func (c *Conn) flush() (int, error) {
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

func (c *Conn) finish() {
	// It fails on a connection that is closed or reset, and there is nothing to finish.
	_ = c.raw.Control(func(fd uintptr) { _ = syscall.Shutdown(int(fd), syscall.SHUT_WR) })
}

// Abort closes the connection with a reset: what has not been sent is dropped, here and in the
// kernel.
func (c *Conn) Abort() {
	if tcp, ok := c.Conn.(interface{ SetLinger(int) error }); ok {
		_ = tcp.SetLinger(0) // fails on a closed connection, as does Close
	}
	_ = c.Close()
}

// tryWrite makes one write(2) and returns how much the kernel took, perhaps nothing.
func (c *Conn) tryWrite(p []byte) (int, error) {
	c.p, c.n, c.errno = p, 0, nil
	err := c.raw.Write(c.writeFunc)
	c.p = nil
	if err == nil {
		err = c.errno
	}
	return c.n, err
}

// writeFD always reports true: done, do not wait for the socket to become writable.
func (c *Conn) writeFD(fd uintptr) bool {
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
