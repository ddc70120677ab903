package hub

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"net/http"
	"strconv"
	"time"
)

// An event stream is for programs and networks that know HTTP and no WebSockets: what the hub
// tells is the same, in the same order, from the same sweep, and nothing comes back. A client of
// the hub that is one differs in its encoding, in how it ends, and in how a peer is found that
// vanished.
// https://html.spec.whatwg.org/multipage/server-sent-events.html

// ServeStream takes a client in that only listens: it answers a GET, on whatever path the caller
// has for it, with a stream of server-sent events, and returns at once. Each event's data is a
// message. Events have no id, and Last-Event-ID is ignored: a message says what there is, and
// not what has changed, so that a newcomer misses nothing.
//
// The limits are those of [Hub.ServeHTTP], and so are the answers 403, 429 and 503. Pages that
// may connect are let read the stream (CORS). What is no GET, HEAD or has a body is refused with
// 405 or 400.
func (h *Hub) ServeStream(w http.ResponseWriter, r *http.Request) {
	header := w.Header()
	header.Add("Vary", "Origin")
	if !h.checkOrigin(w, r) || !h.checkFetch(w, r) {
		return
	}
	if origin := r.Header.Get("Origin"); origin != "" {
		// https://fetch.spec.whatwg.org/#http-access-control-allow-origin
		header.Set("Access-Control-Allow-Origin", origin)
	}
	if r.Method != http.MethodGet && r.Method != http.MethodHead {
		header.Set("Allow", "GET, HEAD")
		h.refuse(w, r, ReasonBadHandshake, http.StatusMethodNotAllowed, "only GET")
		return
	}
	if r.ContentLength != 0 || len(r.TransferEncoding) > 0 {
		header.Set("Connection", "close")
		h.refuse(w, r, ReasonBadHandshake, http.StatusBadRequest, "a request for the stream has no body")
		return
	}
	if r.Method == http.MethodHead {
		setStreamHeader(header)
		return // nobody joins
	}
	c := h.newClient(w, r)
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
		h.log.Error("cannot serve any stream", "err", err)
		return
	}
	c.wire.sock.expectAcks(ackTimeout)
	setStreamHeader(header)
	_, _ = c.wire.send(appendStreamHead(header), false) // if it fails, so does all else
	c.ignored = brw.Reader.Buffered()
	joined = true
	go c.serve()
}

// checkFetch reports whether r may come from a page as far as its browser tells without an
// Origin: an <img> or <script> of a foreign page sends none. If not it answers 403.
// https://www.w3.org/TR/fetch-metadata/
func (h *Hub) checkFetch(w http.ResponseWriter, r *http.Request) bool {
	switch {
	case r.Header.Get("Origin") != "":
		return true // was allowed, and an EventSource of another site sends it
	case r.Header.Get("Sec-Fetch-Dest") == "document":
		return true // a person who follows a link, and sees what comes
	}
	switch site := r.Header.Get("Sec-Fetch-Site"); site {
	case "", "same-origin", "none": // no browser, our own page, a person
		return true
	default:
		h.refuse(w, r, ReasonOrigin, http.StatusForbidden, fmt.Sprintf("%s pages may not embed the stream", site))
		return false
	}
}

// setStreamHeader sets what the answer with a stream says of it.
func setStreamHeader(h http.Header) {
	h.Set("Content-Type", "text/event-stream")
	h.Set("Cache-Control", "no-store, no-transform") // who compresses it, delays it
	h.Set("X-Accel-Buffering", "no")                 // has nginx pass on what comes at once
	h.Set("X-Content-Type-Options", "nosniff")
	// The stream ends with the connection, which needs no chunks.
	// https://www.rfc-editor.org/rfc/rfc9112#section-6.3, number 8
	h.Set("Connection", "close")
}

const (
	// A peer that has lost its stream comes back after retryLeast to retryMost, at random, so
	// that those of a server that fell over do not come all at once. Browsers' own choice is 3 or 5
	// seconds for all.
	retryLeast = 2 * time.Second
	retryMost  = 8 * time.Second

	// After a stop it is what status code 1012 asks of others (see codeStopping).
	restartLeast = 5 * time.Second
	restartMost  = 30 * time.Second
)

// ackTimeout is how long the peer's system may leave unacknowledged what it was sent, where that can
// be watched (Linux). One that vanished is found so at the next keepAlive. It is longer than
// stallTimeout, so that a peer that is there, and takes nothing, ends as such.
const ackTimeout = stallTimeout + 5*time.Second

// keepAlive is a comment, which keeps the connection from looking idle, as a ping does.
var keepAlive = []byte(":\n\n")

// appendStreamHead returns the head of the answer, and the first hint of when to come back.
func appendStreamHead(header http.Header) []byte {
	header.Set("Date", time.Now().UTC().Format(http.TimeFormat))
	var b bytes.Buffer
	b.WriteString("HTTP/1.1 200 OK\r\n")
	_ = header.Write(&b) // a bytes.Buffer takes all
	b.WriteString("\r\n")
	return appendRetry(b.Bytes(), retryLeast, retryMost)
}

// appendEvent appends an event whose data is a message, which has no line breaks.
func appendEvent(dst, message []byte) []byte {
	dst = append(dst, "data: "...)
	dst = append(dst, message...)
	return append(dst, "\n\n"...)
}

// appendRetry appends the hint to come back between two times after the stream has ended.
func appendRetry(dst []byte, least, most time.Duration) []byte {
	dst = append(dst, "retry: "...)
	dst = strconv.AppendInt(dst, (least + rand.N(most-least)).Milliseconds(), 10)
	return append(dst, "\n\n"...)
}

// readStream reads what the peer of a stream sends, for which there is no use, until the
// connection ends, which is the error that it returns.
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
	for buf := make([]byte, readBuffer); c.ignored <= MaxMessage; {
		n, err := c.wire.Conn.Read(buf)
		if err != nil {
			return err
		}
		c.ignored += n
	}
	return closeError{ReasonFlood, "too much behind the request for a stream"}
}

// endStream sends the end of a stream that a stop ends: when to come back and, over TLS, that
// this was all. For the shard.
func (c *client) endStream() {
	_, _ = c.wire.send(appendRetry(nil, restartLeast, restartMost), true)
	if t, ok := c.wire.Conn.(interface{ CloseWrite() error }); ok {
		_ = t.CloseWrite() // fails on a closed connection
	}
}

// finishStream ends the connection of a stream whose end has gone out. It does nothing for a
// WebSocket. For the shard.
func (c *client) finishStream() {
	if c.encoding == inStream {
		c.wire.sock.finish()
	}
}
