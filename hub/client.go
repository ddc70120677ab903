package hub

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/netip"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
	"unicode/utf8"

	"github.com/coder/websocket"
	"golang.org/x/time/rate"
)

// client is one WebSocket connection, or one event stream. Its only goroutine runs serve.
type client struct {
	// Immutable once serve runs.
	hub      *Hub
	owner    *shard       // the shard that owns this client
	remote   netip.Prefix // the address, as AddressOf returns it
	encoding messageEncoding
	wire     clientWire // its methods for writing are safe from any goroutine

	// Written under pendingMu, read from any goroutine.
	refusalsPending atomic.Bool // some of pending may be above 0

	pendingMu sync.Mutex
	pending   [len(refusals)]uint32 // how many of each refusal are still to be sent. Guarded by pendingMu.

	// Safe from any goroutine.
	ended atomic.Bool // end has been called

	// Owned by shard.run.
	index     int       // in shard.clients; -1 if it is not there
	slot      int       // the slot of shard.wheel that has the client
	slotIndex int       // the index in that slot
	blocked   bool      // the client is in shard.blocked
	pinged    bool      // a ping was sent, and nothing has arrived since
	closing   bool      // a close frame, or the end of the stream, was sent
	first     watch     // of the only counter, or the first of several
	more      []watch   // of the others
	stalledAt time.Time // when a blocked client last made progress

	// Owned by serve.
	ws         *websocket.Conn // the library's; nil until library makes it, and for a stream
	left       bool            // leave has been called
	limiter    *rate.Limiter   // limits actions; nil until the first action
	notActions *rate.Limiter   // limits messages that are not actions; nil if there was none since the last action
	surplus    int             // bytes read after the request of a stream, or after a WebSocket was lost
}

// serve joins the hub, reads until the connection ends, and leaves.
func (c *client) serve() {
	h := c.hub
	defer h.release(c)
	h.arrive(c)
	sendTo(h, c.owner.members, membership{c, false})
	var err error
	if c.encoding == inStream {
		err = c.readStream()
	} else {
		err = c.readLoop()
	}
	c.leave() // before the closing handshake, which may take seconds
	c.end(reasonOf(err), "err", err)
	c.close(err)
}

// leave takes the client out of the hub; further calls do nothing. serve calls leave before it sends
// a close frame, so that a peer that receives one is no longer counted.
func (c *client) leave() {
	if c.left {
		return
	}
	c.left = true
	sendTo(c.hub, c.owner.members, membership{c, true})
	c.hub.leave(c)
}

// watches returns how many counters the client watches.
func (c *client) watches() int { return 1 + len(c.more) }

// watch returns the i-th of them.
func (c *client) watch(i int) *watch {
	if i == 0 {
		return &c.first
	}
	return &c.more[i-1]
}

// end records why the connection ends. Only the first call counts, since it has the cause; later
// reasons are consequences. Safe from any goroutine.
func (c *client) end(reason Reason, attrs ...any) {
	if !c.ended.Swap(true) {
		c.hub.events.closed(reason, append(attrs, "remote", c.remote)...)
	}
}

// writeFailed handles a failed write. If the peer has ended the connection, the client is lost: serve
// takes it out of the hub, reads what had arrived before, and ends. Otherwise writeFailed disconnects
// the client; serve's next read then fails. Safe from any goroutine.
func (c *client) writeFailed(err error) {
	if c.encoding == inStream || !peerEnded(err) {
		c.end(reasonOf(err), "err", err)
		c.wire.sock.Abort()
		return
	}
	// serve records the reason, since it may still read a close frame. Its reads do not wait, since the
	// system knows that no more bytes can arrive; the deadline bounds them all the same. For a client
	// whose end has begun, closeClient has set a deadline, or nothing more is read.
	if !c.wire.lost.Swap(true) && !c.ended.Load() {
		_ = c.wire.SetReadDeadline(time.Now().Add(lostTimeout)) // fails only on a closed connection
	}
}

// peerEnded reports whether a write failed because the peer has reset the connection, or closed it.
// Systems keep the bytes that had arrived before the reset for the reader.
func peerEnded(err error) bool {
	return errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE)
}

// readLost is called after each read of n bytes from a lost client. It takes the client out of the hub
// before its last messages are handled, and returns an error for bytes beyond maxLostRead.
func (c *client) readLost(n int) error {
	c.leave()
	if c.surplus += n; c.surplus > maxLostRead {
		return errLostRead
	}
	return nil
}

var errLostRead = errors.New("hub: the peer has left, and too many bytes had arrived before")

// reasonOf returns the reason for a connection that ends with err.
func reasonOf(err error) Reason {
	var ce closeError
	switch {
	case errors.As(err, &ce):
		return ce.reason
	case errors.Is(err, errTailFull):
		return ReasonDeaf
	case websocket.CloseStatus(err) != -1:
		return ReasonPeer
	case errors.Is(err, syscall.ETIMEDOUT): // see socket.expectAcks
		return ReasonSilent
	}
	return ReasonGone
}

// A closeError ends a connection. The peer is sent a close frame with its code and text.
type closeError struct {
	reason Reason // closeCodes has the status code
	text   string // the reason in the close frame; at most 123 bytes
}

func (e closeError) Error() string { return e.text }

// readLoop reads messages and sends their actions to the hub's loop until the connection ends. It
// returns the error that ended the connection.
func (c *client) readLoop() (err error) {
	// A panic ends only this client.
	defer func() {
		if p := recover(); p != nil {
			c.hub.events.Panicked(p, "remote", c.remote)
			err = closeError{ReasonPanic, textPanic}
			c.wire.frames.fail(err) // the state of the library is unknown
		}
	}()
	// ctx has no deadline, since the library would start a timer for each read. Pings find a
	// peer that vanished, and closeClient sets a read deadline.
	ctx := context.Background()
	for {
		if err := c.readKnown(); err != nil {
			return err
		}
		ws, err := c.library()
		if err != nil {
			return err
		}
		typ, r, err := ws.Reader(ctx)
		if err != nil {
			return err
		}
		w, a, refused, err := c.readAction(typ, r)
		if err != nil {
			return err
		}
		c.owner.counts.received.Add(1)
		switch {
		case refused != nil:
			if err := c.refuseAndCount(c, refused); err != nil {
				return err
			}
			if !refused.notAnAction() {
				break
			}
			if !c.tolerated() {
				return closeError{ReasonRubbish, textNotActions}
			}
		case !c.allowed():
			if err := c.refuseAndCount(c.senderOf(w), refusedRate); err != nil {
				return err
			}
		default:
			c.act(actionRun{from: c.senderOf(w), of: w.counter, kind: a, count: 1})
		}
	}
}

// act sends r to the hub's loop, or refuses its actions while the store is overdue. It does nothing
// if r is empty.
func (c *client) act(r actionRun) {
	if r.count == 0 {
		return
	}
	c.notActions = nil // only messages since the last action count
	why := refusedStore
	if !c.hub.storeOverdue.Load() {
		why = c.hub.mayMake(r.of, c.remote)
	}
	if why != nil {
		tellAll([]actionRun{r}, why)
		return
	}
	sendTo(c.hub, c.hub.actions, r)
}

// allowed reports whether the client's rate permits an action now, and counts the action.
func (c *client) allowed() bool {
	cfg := &c.hub.cfg
	if cfg.ActionRate == 0 {
		return true
	}
	if c.limiter == nil { // made late, since most clients send no actions
		c.limiter = rate.NewLimiter(rate.Limit(cfg.ActionRate), cfg.ActionBurst)
	}
	return c.limiter.Allow()
}

// tolerated counts a message that was not an action. It reports false if the client has sent too many of
// them since its last action: see maxNotActions.
func (c *client) tolerated() bool {
	if c.notActions == nil { // made late, since most clients send no such message
		c.notActions = rate.NewLimiter(rate.Every(notActionsEvery), maxNotActions-1)
	}
	return c.notActions.Allow()
}

// messages is a pool of buffers for one message each. An idle client holds none of them.
var messages = sync.Pool{New: func() any { return new([MaxMessage + 1]byte) }}

// readAction reads a message of at most MaxMessage bytes to its end and decodes it. It returns the
// action and what it is about, or why the message is refused, or the error that ends the connection.
func (c *client) readAction(typ websocket.MessageType, r io.Reader) (*watch, action, *refusal, error) {
	buf := messages.Get().(*[MaxMessage + 1]byte)
	defer messages.Put(buf)
	n := 0
	for {
		// The read limit of the connection makes Read fail before buf is full.
		m, err := r.Read(buf[n:])
		n += m
		if err == io.EOF {
			break
		}
		if err != nil {
			return nil, 0, nil, err
		}
	}
	// "When an endpoint is to interpret a byte stream as UTF-8 but finds that the byte
	// stream is not, in fact, a valid UTF-8 stream, that endpoint MUST _Fail the
	// WebSocket Connection_." https://www.rfc-editor.org/rfc/rfc6455#section-8.1
	if typ == websocket.MessageText && !utf8.Valid(buf[:n]) {
		return nil, 0, nil, closeError{ReasonNotUTF8, textNotUTF8}
	}
	a, refused := decode(typ, buf[:n])
	w := &c.first
	if refused == nil && c.encoding == inNamedFrames {
		if w = c.named(buf[:n]); w == nil {
			refused = refusedCounter
		}
	}
	return w, a, refused, nil
}

// named returns the watch of the counter that message, a JSON object, names, or nil if there is none.
func (c *client) named(message []byte) *watch {
	var fields map[string]json.RawMessage // and not a struct, for which encoding/json ignores case
	var name string
	if json.Unmarshal(message, &fields) != nil || json.Unmarshal(fields["counter"], &name) != nil {
		return nil
	}
	for i := range c.watches() {
		if w := c.watch(i); w.counter.name == name {
			return w
		}
	}
	return nil
}

// senderOf returns the sender of an action on w's counter. For a client that watches several counters it is w, so that an error
// message names the counter.
func (c *client) senderOf(w *watch) sender {
	if c.encoding == inNamedFrames {
		return w
	}
	return c
}

// refuseAndCount refuses a message of from, c or one of its watches, that the client should not have sent. It returns a
// closeError if the client sends too many of them.
func (c *client) refuseAndCount(from sender, r *refusal) error {
	from.refuse(r)
	return c.wire.frames.excess.add(time.Now())
}

// refuse sends the client the refusal r, or makes it pending if the client is blocked. Safe from any
// goroutine except shard.run.
func (c *client) refuse(r *refusal) { c.refuseWith(r, r.frame) }

// refuse implements [sender] for a client that watches several counters. The error message names the counter, unless it has to
// wait.
func (w *watch) refuse(r *refusal) {
	w.client.refuseWith(r, inNamedFrames.appendOf(nil, r.message, w.counter.name))
}

// counted implements [sender].
func (w *watch) counted(Value) {}

// refuseWith is refuse with a frame that has the error message.
func (c *client) refuseWith(r *refusal, frame []byte) {
	c.owner.counts.refuse(r)
	if c.deferRefusal(r) {
		return
	}
	if _, err := c.wire.send(frame, false); err != nil {
		c.writeFailed(err)
	} else {
		c.owner.counts.errors.Add(1)
	}
	if c.wire.sock.blocked() {
		c.noteBlocked()
	}
}

// counted implements [sender]. A client sees its own actions in the states that follow.
func (c *client) counted(Value) {}

// deferRefusal makes r pending, and reports true, if r cannot be sent now: the client is blocked, or
// has pending refusals, which go first. The shard sends pending refusals when the client is no
// longer blocked.
//
// Even a client that reads can be blocked for a moment, when all the actions that it sent while the
// store did not answer are refused at once. Only the number of pending refusals is kept, so a
// client that never reads costs no memory.
func (c *client) deferRefusal(r *refusal) bool {
	c.pendingMu.Lock()
	first := !c.refusalsPending.Load()
	if first && !c.wire.sock.blocked() {
		c.pendingMu.Unlock()
		return false
	}
	c.pending[r.index]++
	c.refusalsPending.Store(true)
	c.pendingMu.Unlock()
	if first {
		c.noteBlocked()
	}
	return true
}

// appendPending appends frames of pending refusals to dst, as many as fit one write, and counts them
// as sent. If there are none, it clears refusalsPending. Only shard.run calls it.
func (c *client) appendPending(dst []byte) []byte {
	c.pendingMu.Lock()
	defer c.pendingMu.Unlock()
	for i, r := range refusals {
		for c.pending[i] > 0 {
			if len(dst)+len(r.frame) > maxPendingWrite {
				return dst
			}
			dst = append(dst, r.frame...)
			c.pending[i]--
			c.owner.counts.errors.Add(1)
		}
	}
	if len(dst) == 0 {
		c.refusalsPending.Store(false)
	}
	return dst
}

// maxPendingWrite bounds one write of pending refusals, in bytes. A sweep writes about as much.
const maxPendingWrite = 1 << 10

// noteBlocked tells the shard that a write from another goroutine has blocked the client. shard.run
// must not call it: it would wait for itself.
func (c *client) noteBlocked() { sendTo(c.hub, c.owner.nowBlocked, c) }

// close ends the connection after readLoop or readStream has returned err. A WebSocket is sent a close frame
// if err is a closeError.
func (c *client) close(err error) {
	defer func() {
		if p := recover(); p != nil {
			c.hub.events.Panicked(p, "remote", c.remote)
			c.wire.sock.Abort()
		}
	}()
	var ce closeError
	if c.encoding != inStream && errors.As(err, &ce) {
		c.closingHandshake(ce)
	}
	if c.ws == nil {
		_ = c.wire.Close()
	} else {
		_ = c.ws.CloseNow()
	}
}

// closingHandshake sends a close frame and reads until the peer's close frame arrives, the
// connection ends, or closeTimeout passes. Closing at once could reset the connection while the peer
// is still sending, and the peer would then lose our close frame.
//
// After a frame that violates the protocol, later frames are not parsed, so the peer's close frame is
// not recognized. Then the wait is only failTimeout: "An endpoint MUST NOT continue to attempt to
// process data (including a responding Close frame) from the remote endpoint after being instructed
// to _Fail the WebSocket Connection_."
// https://www.rfc-editor.org/rfc/rfc6455#section-7.1.7
func (c *client) closingHandshake(ce closeError) {
	w := &c.wire
	end := time.Now().Add(closeTimeout)
	if w.frames.failed() != nil {
		end = time.Now().Add(failTimeout)
	}
	_, err := w.send(appendClose(nil, closeCodes[ce.reason], ce.text), true)
	buf := messages.Get().(*[MaxMessage + 1]byte)
	defer messages.Put(buf)
	for err == nil && !w.frames.done {
		// The client has left its shard, so only this goroutine writes the kept bytes.
		if _, err = w.sock.flush(); err != nil {
			return
		}
		until := end
		if blocked := time.Now().Add(flushEvery); w.sock.blocked() && blocked.Before(end) {
			until = blocked
		}
		_ = w.SetReadDeadline(until) // fails only on a closed connection, and then Read fails, too
		var n int
		n, err = w.Conn.Read(buf[:])
		_, _ = w.frames.check(buf[:n]) // only to see a close frame
		if errors.Is(err, os.ErrDeadlineExceeded) && time.Now().Before(end) {
			err = nil
		}
	}
}
