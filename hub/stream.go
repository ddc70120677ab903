package hub

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"net/http"
	"strconv"
	"time"
)

// An event stream is for programs and networks that support HTTP but no WebSockets. It carries the
// same messages in the same order, from the same sweeps, but only from the hub to the client. A
// stream is a client like any other, except for its encoding, how it ends, and how the hub
// finds out that the peer has vanished.
// https://html.spec.whatwg.org/multipage/server-sent-events.html

// ServeStream answers a GET with a stream of server-sent events. The connection becomes a client that
// only listens, with a goroutine of its own, and ServeStream returns at once. The caller chooses
// the path. The data of each event is one message. Events have no id, and Last-Event-ID is
// ignored: a message says what the state is, not what has changed, so a client that
// reconnects misses nothing.
//
// The limits are those of [Hub.ServeHTTP], and so are the answers 403, 429 and 503. Pages of allowed
// origins may read the stream (CORS). ServeStream refuses other methods than GET and HEAD with
// 405, and a request with a body with 400.
func (h *Hub) ServeStream(w http.ResponseWriter, r *http.Request) { h.ServeStreamOf(w, r, "") }

// ServeStreamOf is ServeStream for the counter called name, which must be one that [Hub.Allows].
func (h *Hub) ServeStreamOf(w http.ResponseWriter, r *http.Request, name string) {
	header := w.Header()
	h.ShareWithOrigin(header, r)
	if !h.CheckOrigin(w, r) || !h.checkFetch(w, r) {
		return
	}
	if r.Method != http.MethodGet && r.Method != http.MethodHead {
		header.Set("Allow", "GET, HEAD")
		h.refuse(w, r, ReasonBadHandshake, http.StatusMethodNotAllowed, "only GET and HEAD are allowed")
		return
	}
	if r.ContentLength != 0 || len(r.TransferEncoding) > 0 {
		header.Set("Connection", "close")
		h.refuse(w, r, ReasonBadHandshake, http.StatusBadRequest, "a request for the event stream must not have a body")
		return
	}
	if r.Method == http.MethodHead {
		setStreamHeader(header)
		return // no client joins
	}
	c := h.newClient(w, r, []string{name})
	if c == nil {
		return
	}
	joined := false
	defer func() {
		if !joined {
			h.release(c)
		}
	}()
	c.encoding = inStream
	c.wire.owner = c
	nc, brw, err := http.NewResponseController(w).Hijack()
	if err == nil {
		err = c.wire.attach(nc)
	}
	if err != nil {
		h.log.Error("cannot serve event streams", "err", err)
		return
	}
	c.wire.sock.expectAcks(ackTimeout)
	setStreamHeader(header)
	_, _ = c.wire.send(appendStreamHead(header), false) // if it fails, serve's reads fail, too
	c.surplus = brw.Reader.Buffered()
	joined = true
	go c.serve()
}

// checkFetch reports whether r may read the stream, judged by its Sec-Fetch headers. It is for requests
// without an Origin header: a browser sends none for an <img> or <script> of a foreign page. If r
// may not, checkFetch answers 403.
// https://www.w3.org/TR/fetch-metadata/
func (h *Hub) checkFetch(w http.ResponseWriter, r *http.Request) bool {
	switch {
	case r.Header.Get("Origin") != "":
		return true // CheckOrigin has allowed it
	case r.Header.Get("Sec-Fetch-Dest") == "document":
		return true // a person opened the stream by a link, and sees it
	}
	switch site := r.Header.Get("Sec-Fetch-Site"); site {
	case "", "same-origin", "none": // not a browser; our own page; a person who typed the address
		return true
	default:
		h.refuse(w, r, ReasonOrigin, http.StatusForbidden, fmt.Sprintf("%s pages may not embed the stream", site))
		return false
	}
}

// setStreamHeader sets the header fields of an answer that is a stream.
func setStreamHeader(h http.Header) {
	h.Set("Content-Type", "text/event-stream")
	h.Set("Cache-Control", "no-store, no-transform") // a proxy that compresses the stream delays it
	h.Set("X-Accel-Buffering", "no")                 // nginx passes each event on at once
	h.Set("X-Content-Type-Options", "nosniff")
	// The stream ends with the connection, so it needs no chunked encoding.
	// https://www.rfc-editor.org/rfc/rfc9112#section-6.3, number 8
	h.Set("Connection", "close")
}

const (
	// A peer that loses its stream is asked to reconnect after a random time between retryLeast and
	// retryMost, so that after a crash not all peers reconnect at once. Without this, all peers
	// of one browser wait equally long: 3 or 5 seconds.
	retryLeast = 2 * time.Second
	retryMost  = 8 * time.Second

	// After a shutdown the times are those of status code 1012, see codeStopping.
	restartLeast = 5 * time.Second
	restartMost  = 30 * time.Second
)

// ackTimeout is how long the peer's system may take to acknowledge bytes, on Linux. So a peer that
// vanished is found after the next keepAlive. ackTimeout is longer than stallTimeout, so that a
// peer that is still there but does not read ends for ReasonStalled.
const ackTimeout = stallTimeout + 5*time.Second

// keepAlive is a comment. Like a ping, it keeps proxies and networks from closing the connection as
// idle.
var keepAlive = []byte(":\n\n")

// appendStreamHead returns the status line and header of the answer, followed by the first retry field.
func appendStreamHead(header http.Header) []byte {
	header.Set("Date", time.Now().UTC().Format(http.TimeFormat))
	var b bytes.Buffer
	b.WriteString("HTTP/1.1 200 OK\r\n")
	_ = header.Write(&b) // a bytes.Buffer does not fail
	b.WriteString("\r\n")
	return appendRetry(b.Bytes(), retryLeast, retryMost)
}

// appendEvent appends an event whose data is message. Messages have no line breaks.
func appendEvent(dst, message []byte) []byte {
	dst = append(dst, "data: "...)
	dst = append(dst, message...)
	return append(dst, "\n\n"...)
}

// appendRetry appends a retry field: it asks the peer to reconnect after a random time between least and
// most once the stream has ended.
func appendRetry(dst []byte, least, most time.Duration) []byte {
	dst = append(dst, "retry: "...)
	dst = strconv.AppendInt(dst, (least + rand.N(most-least)).Milliseconds(), 10)
	return append(dst, "\n\n"...)
}

// readStream reads and drops the bytes that the peer of a stream sends, until the connection ends. It
// returns the error that ended the connection, or a closeError if there are more than MaxMessage.
func (c *client) readStream() (err error) {
	defer func() {
		if p := recover(); p != nil {
			c.hub.events.Panicked(p, "remote", c.remote)
			err = closeError{ReasonPanic, textPanic}
		}
	}()
	// "A server that sends a "close" connection option MUST initiate closure of the connection
	// ... after it sends the final response", and "MUST NOT process any further requests received
	// on that connection." https://www.rfc-editor.org/rfc/rfc9112#section-9.6
	for buf := make([]byte, readBuffer); c.surplus <= MaxMessage; {
		n, err := c.wire.Conn.Read(buf)
		if err != nil {
			return err
		}
		c.surplus += n
	}
	return closeError{ReasonFlood, "too many bytes after the request for an event stream"}
}

// endStream sends the end of a stream during a shutdown: when to reconnect and, over TLS, the
// close_notify alert. Only shard.run calls it.
func (c *client) endStream() {
	_, _ = c.wire.send(appendRetry(nil, restartLeast, restartMost), true)
	if t, ok := c.wire.Conn.(interface{ CloseWrite() error }); ok {
		_ = t.CloseWrite() // fails only on a closed connection
	}
}

// finishStream closes the connection of a stream for writing, after its end was written. It does
// nothing for a WebSocket. Only shard.run calls it.
func (c *client) finishStream() {
	if c.encoding == inStream {
		c.wire.sock.finish()
	}
}
