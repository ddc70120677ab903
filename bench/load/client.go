package load

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"math"
	"net"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Client is one WebSocket connection.
type Client struct {
	// Immutable after Connect.
	crowd *Crowd
	of    *Counter
	sock  *socket
	conn  *tls.Conn
	slow  bool // it has a small receive buffer, and rounds do not wait for it

	// Owned by the loop.
	first bool   // the loop has not read from it yet
	rest  []byte // the start of a frame whose end has not arrived

	// Safe from any goroutine.
	value    atomic.Int64  // the newest state; unknown before the first
	at       atomic.Int64  // when value arrived, in nanoseconds since Crowd.began
	progress chan struct{} // loop -> Flood: a new state has arrived; capacity 1, never closed; nil for watchers
	leaving  atomic.Bool
	done     chan struct{} // closed by the loop when the connection has ended
}

// unknown is the value of a client that has not received a state.
const unknown = math.MinInt64

const (
	// smallBuffer is the receive buffer of a slow client in bytes. Linux doubles it.
	smallBuffer = 2048

	// smallSegment is the segment size of a slow client. The server's kernel sizes its send
	// buffer by it. With the 64 KB of loopback, the kernel would accept megabytes before the
	// server notices that the client does not read.
	smallSegment = 536
)

// The key and the accept value of the example in RFC 6455, section 1.3. A server's answer to
// a constant key costs as much as to a random one.
const (
	handshakeKey    = "dGhlIHNhbXBsZSBub25jZQ=="
	handshakeAccept = "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="
)

// dialTCP connects from one of several loopback addresses, so that ports do not run out. small
// is for slow clients.
func (cr *Crowd) dialTCP(ctx context.Context, small bool) (*net.TCPConn, error) {
	n := cr.dials.Add(1)
	d := net.Dialer{
		LocalAddr: &net.TCPAddr{IP: net.IPv4(127, 0, 0, byte(2+n%sources))},
		KeepAlive: -1,
		Control: func(_, _ string, rc syscall.RawConn) error {
			var err error
			ctl := rc.Control(func(fd uintptr) {
				// The kernel chooses the port at connect, when it knows the server's address.
				// So it can use a port that is in TIME_WAIT with another address.
				err = unix.SetsockoptInt(int(fd), unix.IPPROTO_IP, unix.IP_BIND_ADDRESS_NO_PORT, 1)
				if err == nil && small {
					err = errors.Join(
						unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUF, smallBuffer),
						unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_MAXSEG, smallSegment))
				}
			})
			return errors.Join(ctl, err)
		},
	}
	nc, err := d.DialContext(ctx, "tcp", cr.addr)
	if err != nil {
		return nil, err
	}
	return nc.(*net.TCPConn), nil
}

// dial makes a connection, does the TLS and opening handshakes, and passes the client to the
// loop.
func (cr *Crowd) dial(ctx context.Context, how joining) (*Client, error) {
	ctx, cancel := context.WithTimeout(ctx, dialTimeout)
	defer cancel()
	tcp, err := cr.dialTCP(ctx, how.slow)
	if err != nil {
		return nil, err
	}
	sock := &socket{Conn: tcp}
	c := &Client{crowd: cr, of: how.of, sock: sock, conn: tls.Client(sock, cr.tls), slow: how.slow, done: make(chan struct{})}
	if how.acts {
		c.progress = make(chan struct{}, 1)
	}
	c.value.Store(unknown)
	early, err := c.handshake(ctx, how.forwarded)
	if err == nil {
		err = sock.takeOver(tcp)
	}
	tcp.Close()
	if err != nil {
		return nil, err
	}
	if err := cr.loop.add(c, early); err != nil {
		return nil, err
	}
	return c, nil
}

// handshake does the TLS and opening handshakes. header has further header fields of the request. handshake returns the
// bytes that came after the server's response.
func (c *Client) handshake(ctx context.Context, header string) ([]byte, error) {
	deadline, _ := ctx.Deadline()
	if err := c.conn.SetDeadline(deadline); err != nil {
		return nil, err
	}
	if err := c.conn.HandshakeContext(ctx); err != nil {
		return nil, fmt.Errorf("TLS: %w", err)
	}
	request := fmt.Appendf(nil, "GET %s HTTP/1.1\r\nHost: %s\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"+
		"Sec-WebSocket-Key: %s\r\nSec-WebSocket-Version: 13\r\n%s\r\n", c.of.path, c.crowd.host, handshakeKey, header)
	if _, err := c.conn.Write(request); err != nil {
		return nil, err
	}
	buf, end := make([]byte, 2048), 0
	for {
		n, err := c.conn.Read(buf[end:])
		if err != nil {
			return nil, fmt.Errorf("opening handshake: %w", err)
		}
		end += n
		head, early, ok := bytes.Cut(buf[:end], []byte("\r\n\r\n"))
		switch {
		case ok && bytes.HasPrefix(head, []byte("HTTP/1.1 101 ")) && bytes.Contains(head, []byte(handshakeAccept)):
			return early, nil
		case ok:
			line, _, _ := bytes.Cut(head, []byte("\r\n"))
			return nil, fmt.Errorf("opening handshake: the server answered %q", line)
		case end == len(buf):
			return nil, errors.New("opening handshake: the answer is too long")
		}
	}
}

// read processes everything that has arrived. It returns the error that ends the connection, or nil.
func (c *Client) read(buf []byte) error {
	c.sock.ready = true
	for {
		n, err := c.conn.Read(buf)
		if n > 0 {
			if err := c.parse(buf[:n]); err != nil {
				return err
			}
		}
		if err == errNothingYet {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

// parse processes all complete frames of rest and p, and keeps an incomplete one in rest.
func (c *Client) parse(p []byte) error {
	if len(c.rest) > 0 {
		p = append(c.rest, p...)
	}
	for {
		opcode, payload, size, err := nextFrame(p)
		if err != nil {
			return err
		}
		if size == 0 {
			c.rest = append(c.rest[:0], p...)
			return nil
		}
		p = p[size:]
		if err := c.take(opcode, payload); err != nil {
			return err
		}
	}
}

// take processes one frame.
func (c *Client) take(opcode byte, payload []byte) error {
	switch opcode {
	case opText:
		c.crowd.message(c, payload)
	case opPing:
		return c.Send(appendFrame(nil, opPong, payload))
	case opClose:
		if !c.leaving.Load() {
			_ = c.Send(appendFrame(nil, opClose, payload)) // the server may have closed the connection already
		}
		return io.EOF
	}
	return nil
}

// Send writes complete frames. It is safe from any goroutine.
func (c *Client) Send(frames []byte) error {
	_, err := c.conn.Write(frames)
	return err
}

// leave starts the closing handshake with 1001, as a browser does when it closes a page.
func (c *Client) leave() {
	c.leaving.Store(true)
	if err := c.Send(c.crowd.goingAway); err != nil {
		c.sock.shut()
	}
}

// Value returns the newest state that c has received.
func (c *Client) Value() int64 { return c.value.Load() }

// Pause makes c stop reading. c may still read what has arrived by now.
func (c *Client) Pause() error { return c.crowd.loop.watch(c, unix.EPOLL_CTL_DEL, 0) }

// Resume makes c read again.
func (c *Client) Resume() error { return c.crowd.loop.watch(c, unix.EPOLL_CTL_ADD, unix.EPOLLIN) }

// socket is the transport below TLS. During the handshakes it is a connection of package net.
// After takeOver it is only a file descriptor, which the loop reads.
type socket struct {
	net.Conn // until takeOver

	// Set by takeOver.
	fd   int
	mine bool // fd is in use, not Conn

	// After close the kernel may give the same fd to another connection, so fd is used under a
	// lock only. Writers, which may wait for the server, hold writing. shut holds ending. close
	// holds both, locked in this order.
	writing, ending sync.Mutex
	closed          bool // Read under either lock, set under both.

	// Owned by the loop.
	ready bool // epoll has reported data, so one read is allowed
}

// errNothingYet means that a read would block. After a temporary error crypto/tls allows more
// reads.
var errNothingYet net.Error = nothingYet{}

type nothingYet struct{}

func (nothingYet) Error() string   { return "nothing to read yet" }
func (nothingYet) Timeout() bool   { return true }
func (nothingYet) Temporary() bool { return true }

// takeOver duplicates the file descriptor of tcp, so that tcp may be closed. Package net would
// make two system calls per message: the second one only finds that there is no more data.
func (s *socket) takeOver(tcp *net.TCPConn) error {
	rc, err := tcp.SyscallConn()
	if err != nil {
		return err
	}
	var dup error
	ctl := rc.Control(func(fd uintptr) {
		s.fd, dup = unix.FcntlInt(fd, unix.F_DUPFD_CLOEXEC, 0)
	})
	s.mine = true
	return errors.Join(ctl, dup)
}

func (s *socket) Read(p []byte) (int, error) {
	if !s.mine {
		return s.Conn.Read(p)
	}
	if !s.ready {
		return 0, errNothingYet
	}
	s.ready = false
	for {
		n, err := unix.Read(s.fd, p)
		switch {
		case err == unix.EINTR:
			continue
		case err == unix.EAGAIN:
			return 0, errNothingYet
		case err != nil:
			return 0, err
		case n == 0:
			return 0, io.EOF
		}
		return n, nil
	}
}

// writeTimeout is how long a write may wait for a server that reads nothing.
const writeTimeout = 30 * time.Second

func (s *socket) Write(p []byte) (int, error) {
	if !s.mine {
		return s.Conn.Write(p)
	}
	s.writing.Lock()
	defer s.writing.Unlock()
	if s.closed {
		return 0, net.ErrClosed
	}
	done := 0
	for done < len(p) {
		n, err := unix.Write(s.fd, p[done:])
		done += max(n, 0)
		switch err {
		case nil, unix.EINTR:
		case unix.EAGAIN:
			fds := []unix.PollFd{{Fd: int32(s.fd), Events: unix.POLLOUT}}
			if n, err := unix.Poll(fds, int(writeTimeout.Milliseconds())); n == 0 && err == nil {
				return done, fmt.Errorf("the server has read nothing for %v", writeTimeout)
			}
		default:
			return done, err
		}
	}
	return done, nil
}

// shut ends the connection. The loop then notices that and closes the file descriptor. shut
// does not wait for a blocked writer; the writer returns with an error.
func (s *socket) shut() {
	s.ending.Lock()
	defer s.ending.Unlock()
	if !s.closed {
		_ = unix.Shutdown(s.fd, unix.SHUT_RDWR) // the server may have ended it first
	}
}

// close closes the file descriptor. Only the loop calls it, because only the loop reads from fd.
func (s *socket) close() {
	s.writing.Lock()
	defer s.writing.Unlock()
	s.ending.Lock()
	defer s.ending.Unlock()
	s.closed = true
	_ = unix.Close(s.fd)
}
