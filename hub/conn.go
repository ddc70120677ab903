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
// WebSocket upgrades to a Hub wraps each connection that it accepts, and puts TLS on top:
//
//	nc, err := ln.Accept()
//	conn := tls.Server(hub.NewConn(nc), config)
//
// Until the connection joins a hub, a Conn behaves like the connection below it. From then on Write
// never waits: it accepts all bytes, and keeps those that the kernel does not take. It fails if
// it would keep more than 4 KB. The exported methods are safe from any goroutine.
//
// The Conn is below TLS because crypto/tls must not see a partial write: "After a Write has timed
// out, the TLS state is corrupt" (documentation of [tls.Conn.SetWriteDeadline]).
type Conn struct {
	// Immutable after NewConn.
	net.Conn
	raw syscall.RawConn

	mu sync.Mutex
	// Guarded by mu.
	async bool   // neverWait has been called
	tail  []byte // the kept bytes: ciphertext that the kernel has not taken yet
	err   error  // the first error of a write; bytes are lost, so all later writes fail, too

	// Guarded by mu. Arguments and results of writeFD, which makes the system call. writeFunc is
	// that method as a func value, made once so that a write does not allocate.
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

// A server may wrap a Conn, or the TLS connection on it, in its own types. These types may have
// the methods of two optional interfaces, which a Hub looks for.
type (
	// A Handshaker wraps a TLS connection whose TLS handshake is complete. TLSConn returns that
	// connection, and the hub uses it instead of the Handshaker.
	Handshaker interface{ TLSConn() *tls.Conn }

	// A Joiner embeds a *Conn. The hub calls Joined once, when the connection has become a client.
	Joiner interface{ Joined() }
)

// A socket is a connection whose Write can be made never to wait: a [Conn], a type that embeds one,
// or a fake in tests. All methods are safe from any goroutine.
type socket interface {
	net.Conn

	// neverWait makes Write never wait from now on: Write accepts all bytes, keeps those that the
	// kernel does not take, and fails if it would keep more than maxTail bytes.
	neverWait()

	// blocked reports whether bytes are kept.
	blocked() bool

	// flush tries to write the kept bytes, and returns how many the kernel took.
	flush() (int, error)

	// finish closes the connection for writing only, so that the peer reads the end of the
	// stream. No bytes may be kept when it is called.
	finish()

	// expectAcks makes the connection fail with ETIMEDOUT if the peer's system does not
	// acknowledge sent bytes within the given time. It works on Linux only.
	expectAcks(within time.Duration)

	// Abort closes the connection with a reset. Kept bytes are dropped.
	Abort()
}

// tlsOf returns the TLS connection that nc is or wraps, or nil.
func tlsOf(nc net.Conn) *tls.Conn {
	switch c := nc.(type) {
	case *tls.Conn:
		return c
	case Handshaker:
		return c.TLSConn()
	}
	return nil
}

// socketOf returns the socket that nc is, or that is below its TLS connection, or nil.
func socketOf(nc net.Conn) socket {
	if t := tlsOf(nc); t != nil {
		nc = t.NetConn()
	}
	s, _ := nc.(socket)
	return s
}

const (
	// maxTail bounds the bytes that are kept for a blocked client. A sweep writes at most about
	// 1 KB and skips blocked clients, and refusals are pending while a client is blocked. So only
	// pongs can reach this limit: a peer that sends pings without reading is disconnected.
	maxTail = 4 << 10

	// sendBuffer is the size of the kernel's send buffer of one client (Linux doubles it for its
	// own bookkeeping). The default grows to megabytes, and a peer that does not read would
	// fill them with outdated values.
	sendBuffer = 16 << 10
)

var errTailFull = errors.New("hub: the peer sends but does not read")

// neverWait implements socket.
func (c *Conn) neverWait() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.async = true
	c.writeFunc = c.writeFD
	c.prepare()
	if tcp, ok := c.Conn.(interface{ SetWriteBuffer(int) error }); ok {
		// If it fails, the client is only blocked later.
		_ = tcp.SetWriteBuffer(sendBuffer)
	}
}

// Write implements [net.Conn].
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

// blocked implements socket.
func (c *Conn) blocked() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.tail) > 0
}

// flush implements socket.
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
		c.tail = nil // free the memory, since most clients are never blocked again
	} else {
		c.tail = append(c.tail[:0], c.tail[n:]...)
	}
	return n, nil
}

// finish implements socket.
func (c *Conn) finish() {
	// It fails only on a connection that is closed or reset already.
	_ = c.raw.Control(func(fd uintptr) { _ = shutdownWrite(fd) })
}

// Abort closes the connection with a reset. Bytes that were not sent are dropped, those in the
// kernel, too.
func (c *Conn) Abort() {
	if tcp, ok := c.Conn.(interface{ SetLinger(int) error }); ok {
		_ = tcp.SetLinger(0) // fails only on a closed connection
	}
	_ = c.Close()
}

// tryWrite makes one system call and returns how many bytes the kernel took, possibly 0. c.mu is held.
func (c *Conn) tryWrite(p []byte) (int, error) {
	c.p, c.n, c.errno = p, 0, nil
	err := c.raw.Write(c.writeFunc)
	c.p = nil
	if err == nil {
		err = c.errno
	}
	return c.n, err
}
