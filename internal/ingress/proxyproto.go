package ingress

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"net"
	"os"
	"sync"
	"syscall"
	"time"

	"github.com/pires/go-proxyproto"

	"plusminus/hub"
)

// A proxyListener accepts connections from trusted load balancers. Each connection begins with a
// header that names the client's address, which becomes its RemoteAddr. The commands LOCAL and UNKNOWN
// mark connections of the balancer's own (health checks); these keep the balancer's address.
// https://www.haproxy.org/download/3.2/doc/proxy-protocol.txt
//
// A trusted load balancer has to send the header: without it all its clients would count as one
// address. A header from any other peer is refused, so no peer can choose an address for itself. A
// balancer that sends nothing, or connects and closes to see whether the port is open, costs one
// goroutine for at most proxyHeaderTimeout.
//
// Accept returns only connections whose header has been read, so the layers above never wait for one.
// After Close it still returns those that were accepted before.
type proxyListener struct {
	// Immutable after newProxyListener.
	net.Listener
	from   Networks
	events *hub.Events   // counts each connection that is refused
	conns  chan net.Conn // run and its readers -> Accept; unbuffered, so that connections wait in the kernel; never closed
	errs   chan error    // run -> Accept; likewise
	done   chan struct{} // closed by run when no more connections will come

	start sync.Once
}

const (
	// proxyHeaderTimeout is how long a balancer may take to send its header. It sends it with the TCP
	// handshake, or right after.
	proxyHeaderTimeout = 5 * time.Second

	// proxyHeaders bounds how many headers are awaited at once. Beyond that, accepting pauses.
	proxyHeaders = 4096

	// proxyBuffer holds the longest header that balancers send, with the extensions of Amazon's and
	// Microsoft's, in bytes. Longer headers are read in pieces.
	proxyBuffer = 256
)

// newProxyListener returns a listener on ln, which must be TCP, that trusts the networks from.
func newProxyListener(ln net.Listener, from Networks, events *hub.Events) *proxyListener {
	return &proxyListener{
		Listener: ln, from: from, events: events,
		conns: make(chan net.Conn), errs: make(chan error), done: make(chan struct{}),
	}
}

// Accept implements [net.Listener]. Its first call starts run. run ends after Close if Accept is
// called until it returns [net.ErrClosed], as net/http does.
func (l *proxyListener) Accept() (net.Conn, error) {
	l.start.Do(func() { go l.run() })
	select {
	case nc := <-l.conns:
		return nc, nil
	case err := <-l.errs:
		return nil, err
	case <-l.done:
		return nil, net.ErrClosed
	}
}

func (l *proxyListener) run() {
	defer close(l.done)
	var reading sync.WaitGroup
	defer reading.Wait()
	slots := make(chan struct{}, proxyHeaders) // one element for each header that is awaited
	for {
		nc, err := l.Listener.Accept()
		switch {
		case errors.Is(err, net.ErrClosed):
			return
		case err != nil:
			l.errs <- err
		case !l.from.Contains(addrOf(nc.RemoteAddr())):
			l.conns <- &directConn{tcpConn: tcpConn{nc}, listener: l}
		default:
			slots <- struct{}{}
			reading.Go(func() {
				defer func() { <-slots }()
				if passed := l.readHeader(nc); passed != nil {
					l.conns <- passed
				} else {
					nc.Close()
				}
			})
		}
	}
}

// readHeader reads the header of nc and returns the connection behind it, or nil if nc is to be
// closed.
func (l *proxyListener) readHeader(nc net.Conn) net.Conn {
	// SetReadDeadline fails only on a closed connection, as does the read.
	_ = nc.SetReadDeadline(time.Now().Add(proxyHeaderTimeout))
	in := bufio.NewReaderSize(nc, proxyBuffer)
	_, err := in.Peek(1)
	if err != nil && !errors.Is(err, os.ErrDeadlineExceeded) {
		return nil // the balancer only wanted to see whether the port is open
	}
	reason := ReasonProxyMissing
	var header *proxyproto.Header
	if err == nil {
		if header, err = proxyproto.Read(in); !errors.Is(err, proxyproto.ErrNoProxyProtocol) {
			reason = ReasonProxyBad
		}
	}
	if err != nil {
		l.events.Refused(reason, "remote", nc.RemoteAddr().String(), "err", err)
		return nil
	}
	_ = nc.SetReadDeadline(time.Time{})
	c := &passedConn{tcpConn: tcpConn{nc}, remote: nc.RemoteAddr()}
	if source, _, ok := header.TCPAddrs(); ok && !header.Command.IsLocal() {
		c.remote = source
	}
	if n := in.Buffered(); n > 0 {
		early, _ := in.Peek(n)
		c.early = bytes.Clone(early)
	}
	return c
}

// tcpConn is the TCP connection below a passedConn or directConn. It has only the methods that a
// [hub.Conn] needs for writing: other ways to read would bypass the Read of those two.
type tcpConn struct{ net.Conn }

func (c tcpConn) SyscallConn() (syscall.RawConn, error) { return c.Conn.(*net.TCPConn).SyscallConn() }
func (c tcpConn) CloseWrite() error                     { return c.Conn.(*net.TCPConn).CloseWrite() }
func (c tcpConn) SetLinger(seconds int) error           { return c.Conn.(*net.TCPConn).SetLinger(seconds) }
func (c tcpConn) SetWriteBuffer(bytes int) error        { return c.Conn.(*net.TCPConn).SetWriteBuffer(bytes) }

// passedConn is a connection that a load balancer passes on.
type passedConn struct {
	tcpConn
	remote net.Addr // the client's address. Immutable.
	early  []byte   // bytes that came right behind the header. Owned by the reader.
}

func (c *passedConn) RemoteAddr() net.Addr { return c.remote }

func (c *passedConn) Read(p []byte) (int, error) {
	if len(c.early) == 0 {
		return c.Conn.Read(p)
	}
	n := copy(p, c.early)
	if c.early = c.early[n:]; len(c.early) == 0 {
		c.early = nil // frees the memory
	}
	return n, nil
}

// directConn is a connection from any other peer. It may not begin with a header.
type directConn struct {
	tcpConn
	listener *proxyListener // nil after the first bytes. Owned by the reader.
}

func (c *directConn) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	if c.listener == nil || n == 0 {
		return n, err
	}
	l := c.listener
	c.listener = nil
	// A header that comes in pieces, the first too short to recognise, is not accepted either: what
	// follows takes it for bad TLS or bad HTTP.
	if bytes.HasPrefix(p[:n], []byte("PROXY ")) || bytes.HasPrefix(p[:n], proxyproto.SIGV2) {
		l.events.Refused(ReasonProxyForeign, "remote", c.RemoteAddr().String(), "believed", l.from.String())
		c.Close()
		return 0, fmt.Errorf("reading the first bytes: %w", net.ErrClosed)
	}
	return n, err
}
