package main

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

// A proxyListener accepts connections that load balancers pass on, each with a header in front
// that says whose it is. Their RemoteAddr is then what the header says; for LOCAL and UNKNOWN,
// which balancers send for connections of their own, it is the balancer's.
// https://www.haproxy.org/download/3.2/doc/proxy-protocol.txt
//
// Headers are believed from some networks only, and have to be there: a balancer that forgets
// them would have all its clients counted as one address. One that is silent, or connects and
// goes, as balancers do to see whether somebody listens, costs one goroutine for a while. From
// everywhere else a header is refused, and so nobody gets to choose an address.
//
// Accept returns connections whose address is known, so that what comes above never waits for
// one. After Close it goes on to return those that had been accepted.
type proxyListener struct {
	// Immutable after newProxyListener.
	net.Listener
	from   networks
	events *hub.Events   // told of each that is closed
	conns  chan net.Conn // run and its readers -> Accept; unbuffered, so that what nobody wants stays in the kernel; never closed
	errs   chan error    // run -> Accept; likewise
	done   chan struct{} // closed by run when no connection will come

	start sync.Once
}

const (
	// proxyHeaderTimeout is how long a balancer may take for its header, which it sends with or
	// right after the handshake of TCP.
	proxyHeaderTimeout = 5 * time.Second

	// proxyHeaders bounds how many headers are being waited for at once. Beyond that nobody is
	// accepted.
	proxyHeaders = 4096

	// proxyBuffer holds the longest header that balancers send, with what Amazon's and
	// Microsoft's add to it. Longer ones are read in pieces.
	proxyBuffer = 256
)

// newProxyListener returns a listener on ln, which must be TCP.
func newProxyListener(ln net.Listener, from networks, events *hub.Events) *proxyListener {
	return &proxyListener{
		Listener: ln, from: from, events: events,
		conns: make(chan net.Conn), errs: make(chan error), done: make(chan struct{}),
	}
}

// Accept implements [net.Listener]. Its first call starts run, which ends after Close if
// Accept is called until it says [net.ErrClosed], as net/http does.
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
	room := make(chan struct{}, proxyHeaders)
	for {
		nc, err := l.Listener.Accept()
		switch {
		case errors.Is(err, net.ErrClosed):
			return
		case err != nil:
			l.errs <- err
		case !l.from.contains(addrOf(nc.RemoteAddr())):
			l.conns <- &directConn{tcpConn: tcpConn{nc}, listener: l}
		default:
			room <- struct{}{}
			reading.Go(func() {
				defer func() { <-room }()
				if passed := l.readHeader(nc); passed != nil {
					l.conns <- passed
				} else {
					nc.Close()
				}
			})
		}
	}
}

// readHeader returns the connection that nc passes on, or nil if that is to be closed.
func (l *proxyListener) readHeader(nc net.Conn) net.Conn {
	// It can fail only on a closed connection, as does the read.
	_ = nc.SetReadDeadline(time.Now().Add(proxyHeaderTimeout))
	in := bufio.NewReaderSize(nc, proxyBuffer)
	_, err := in.Peek(1)
	if err != nil && !errors.Is(err, os.ErrDeadlineExceeded) {
		return nil // it has looked whether somebody listens
	}
	reason := hub.ReasonProxyMissing
	var header *proxyproto.Header
	if err == nil {
		if header, err = proxyproto.Read(in); !errors.Is(err, proxyproto.ErrNoProxyProtocol) {
			reason = hub.ReasonProxyBad
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

// tcpConn is a TCP connection below one of those that follow. Only what the hub needs to write
// to it is passed on: other ways to read would go around ours.
type tcpConn struct{ net.Conn }

func (c tcpConn) SyscallConn() (syscall.RawConn, error) { return c.Conn.(*net.TCPConn).SyscallConn() }
func (c tcpConn) SetLinger(seconds int) error           { return c.Conn.(*net.TCPConn).SetLinger(seconds) }
func (c tcpConn) SetWriteBuffer(bytes int) error        { return c.Conn.(*net.TCPConn).SetWriteBuffer(bytes) }

// passedConn is a connection that a balancer passes on.
type passedConn struct {
	tcpConn
	remote net.Addr // whose it is. Immutable.
	early  []byte   // what came right behind the header. Owned by the reader.
}

func (c *passedConn) RemoteAddr() net.Addr { return c.remote }

func (c *passedConn) Read(p []byte) (int, error) {
	if len(c.early) == 0 {
		return c.Conn.Read(p)
	}
	n := copy(p, c.early)
	if c.early = c.early[n:]; len(c.early) == 0 {
		c.early = nil // give the memory back
	}
	return n, nil
}

// directConn is a connection from elsewhere, which may not begin with a header.
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
	// One that comes in pieces, the first too short to tell, is not believed either: it is bad
	// TLS, or bad HTTP.
	if bytes.HasPrefix(p[:n], []byte("PROXY ")) || bytes.HasPrefix(p[:n], proxyproto.SIGV2) {
		l.events.Refused(hub.ReasonProxyForeign, "remote", c.RemoteAddr().String(), "believed", l.from.String())
		c.Close()
		return 0, fmt.Errorf("reading the first bytes: %w", net.ErrClosed)
	}
	return n, err
}
