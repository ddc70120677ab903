package hub

import (
	"bufio"
	"bytes"
	"io"
	"net"
	"net/http"

	"github.com/coder/websocket"
)

// The WebSocket library checks and answers each opening handshake, and later handles all frames that are
// not known frames (known.go). Its Conn takes 2 KB. Most clients send only known frames before
// their close frame, so the hub makes the Conn when another frame arrives.
//
// The library makes a Conn only in its Accept, so the hub calls Accept twice. The first Accept gets the
// client's request, and an unusedConn in place of the connection. The second gets lateRequest and the
// connection.

// acceptOptions are the options for both calls of Accept.
var acceptOptions = &websocket.AcceptOptions{
	InsecureSkipVerify: true, // Hub.serve has checked the Origin, scheme and port included
	CompressionMode:    websocket.CompressionDisabled,
}

// accept has the library check and answer the opening handshake r, and attaches the connection to wire. If
// the handshake is not valid, the library answers with an error.
func accept(w http.ResponseWriter, r *http.Request, wire *clientWire) error {
	ws, err := websocket.Accept(&upgrade{w, wire}, r, acceptOptions)
	if err != nil {
		return err
	}
	// CloseNow closes only the unusedConn, and does not fail. Without it the Conn would stay in memory for
	// ever, since it has a finalizer and refers to itself.
	_ = ws.CloseNow()
	return nil
}

// upgrade is the [http.ResponseWriter] of an opening handshake. Its Hijack attaches the connection to the
// wire, and gives the library an unusedConn. It has no Unwrap method, since the library would then
// use the ResponseWriter below it.
type upgrade struct {
	http.ResponseWriter
	wire *clientWire
}

// readBuffer is the size of a client's read buffer, in bytes. It has room for six actions. An idle
// client keeps this buffer; net/http's has 4 KB.
//
// A buffer of 128 bytes would cost 600 bytes of memory. Each TLS handshake makes about fifty SHA-256 states of 128 bytes,
// and Go allocates objects of one size from the same pages. A few buffers between the dead states
// would keep all these pages in use.
const readBuffer = 144

// Hijack implements [http.Hijacker].
func (u *upgrade) Hijack() (net.Conn, *bufio.ReadWriter, error) {
	nc, brw, err := http.NewResponseController(u.ResponseWriter).Hijack()
	if err != nil {
		return nil, nil, err
	}
	w := u.wire
	if err := w.attach(nc); err != nil {
		return nil, nil, err
	}

	// The client may have sent bytes right after its handshake, which net/http has read. They
	// have to be in the new reader's buffer: the library takes them only from there.
	early, _ := brw.Reader.Peek(brw.Reader.Buffered())
	n, wrong := w.frames.check(early)
	w.wrong = wrong
	var in io.Reader = w
	if n > 0 {
		in = io.MultiReader(bytes.NewReader(early[:n]), w)
	}
	w.in = bufio.NewReaderSize(in, max(readBuffer, n))
	if _, err := w.in.Peek(n); err != nil {
		return nil, nil, err
	}
	return unusedConn{}, brw, nil
}

// unusedConn is the connection of a Conn that is closed before it is used. It has no method but Close:
// a call of another one panics.
type unusedConn struct{ net.Conn }

// Close implements [net.Conn]. It does nothing.
func (unusedConn) Close() error { return nil }

// library returns the library's Conn of the client. The first call makes it, at the beginning of a frame.
// Only serve calls library.
func (c *client) library() (*websocket.Conn, error) {
	if c.ws == nil {
		ws, err := websocket.Accept(&lateUpgrade{wire: &c.wire, header: make(http.Header)}, lateRequest, acceptOptions)
		if err != nil {
			return nil, err
		}
		ws.SetReadLimit(MaxMessage) // frameChecker has the same limit, and finds a long message earlier
		c.ws = ws
	}
	return c.ws, nil
}

// lateRequest is a valid opening handshake. Its key does not matter, since lateUpgrade drops the answer.
var lateRequest = &http.Request{
	Method: http.MethodGet, ProtoMajor: 1, ProtoMinor: 1,
	Header: http.Header{
		"Connection":            {"Upgrade"},
		"Upgrade":               {"websocket"},
		"Sec-Websocket-Version": {"13"},
		"Sec-Websocket-Key":     {"AAAAAAAAAAAAAAAAAAAAAA=="},
	},
}

// lateUpgrade is the [http.ResponseWriter] for lateRequest. It drops the answer, which the peer got long ago.
type lateUpgrade struct {
	wire   *clientWire
	header http.Header
}

func (u *lateUpgrade) Header() http.Header         { return u.header }
func (u *lateUpgrade) Write(p []byte) (int, error) { return len(p), nil }
func (u *lateUpgrade) WriteHeader(int)             {}

// writeBuffer is the size of the library's write buffer, in bytes. It must have room for the largest
// frame that the library writes, a control frame of 127 bytes, so that clientWire.Write gets each
// frame in one piece.
const writeBuffer = 128

// Hijack implements [http.Hijacker].
func (u *lateUpgrade) Hijack() (net.Conn, *bufio.ReadWriter, error) {
	return u.wire, bufio.NewReadWriter(u.wire.in, bufio.NewWriterSize(u.wire, writeBuffer)), nil
}
