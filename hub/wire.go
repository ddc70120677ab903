package hub

import (
	"bufio"
	"crypto/tls"
	"errors"
	"net"
	"sync"
	"sync/atomic"
)

// clientWire is the byte stream below one client. A WebSocket has two writers: the WebSocket library,
// which answers pings and close frames, and the hub, which writes frames that it has encoded once
// for many clients. Each call of Write or send has one or more whole frames, so frames never mix.
// send is safe from any goroutine.
type clientWire struct {
	// Immutable after attach.
	net.Conn         // TLS, or TCP behind a proxy that terminates TLS
	sock     socket  // the socket below Conn
	owner    *client // the client that has this wire

	// Safe from any goroutine.
	heard atomic.Bool // the peer has sent something since turnWheel last looked
	lost  atomic.Bool // a write has failed because the peer has ended the connection; see writeFailed

	// Owned by the client's serve.
	in     *bufio.Reader // the read buffer, which Read fills; the library reads from it, too
	frames frameChecker
	wrong  error // the error of frames, after which Read returns no more bytes

	mu        sync.Mutex
	closeSent bool // a close frame, or the end of a stream, was sent. Guarded by mu.
}

var errNotOurs = errors.New("hub: the connection is not a hub.Conn")

// attach makes nc, which net/http has handed over, the connection of w. From then on writes never wait.
// attach closes nc and returns errNotOurs if there is no socket below it.
func (w *clientWire) attach(nc net.Conn) error {
	if t := tlsOf(nc); t != nil {
		nc = t
	}
	w.Conn, w.sock = nc, socketOf(nc)
	if w.sock == nil {
		nc.Close()
		return errNotOurs
	}
	w.sock.neverWait()
	if j, ok := w.sock.(Joiner); ok {
		j.Joined()
	}
	if t, ok := nc.(*tls.Conn); ok {
		trimTLS(t)
	}
	return nil
}

// Read implements [net.Conn]. It returns only bytes that frameChecker accepts, and its closeError for
// the first byte that is wrong. It goes on when the client is lost, until all is read that had arrived.
func (w *clientWire) Read(p []byte) (int, error) {
	if w.wrong != nil {
		return 0, w.wrong
	}
	n, err := w.Conn.Read(p)
	if w.lost.Load() {
		if err := w.owner.readLost(n); err != nil {
			return 0, err
		}
	}
	if n > 0 {
		w.heard.Store(true)
		var passed int
		if passed, w.wrong = w.frames.check(p[:n]); w.wrong != nil {
			return passed, w.wrong
		}
	}
	return n, err
}

// Write implements [net.Conn] for the library. The library writes only control frames, from the client's
// own goroutine. It would stop reading if a pong could not be written, so Write reports success if the
// client is lost.
func (w *clientWire) Write(p []byte) (int, error) {
	isClose := p[0]&0xf == opClose
	if isClose {
		w.owner.leave() // before the peer receives the close frame
	}
	n, err := w.send(p, isClose)
	if peerEnded(err) {
		w.owner.writeFailed(err)
		return len(p), nil
	}
	if w.sock.blocked() {
		w.owner.noteBlocked()
	}
	return n, err
}

// send writes whole frames or events without waiting. isClose says that the last of them is a close
// frame, or the end of a stream. After that, send drops everything, even the library's answer to
// the peer's close frame. "The application MUST NOT send any more data frames after sending a Close
// frame." https://www.rfc-editor.org/rfc/rfc6455#section-5.5.1
func (w *clientWire) send(p []byte, isClose bool) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.closeSent {
		return len(p), nil
	}
	w.closeSent = isClose
	return w.Conn.Write(p)
}
