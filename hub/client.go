package hub

import (
	"context"
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

// client is one WebSocket connection, or one event stream. Its goroutine runs serve.
type client struct {
	// Immutable after join.
	hub      *Hub
	owner    *shard
	ws       *websocket.Conn // nil for a stream
	remote   netip.Prefix    // what the cap per address counts it under
	encoding messageEncoding
	wire     clientWire // safe from any goroutine

	refusalsPending atomic.Bool // the client is owed refusals; set under pendingMu, read from anywhere

	pendingMu sync.Mutex
	pending   [len(refusals)]uint32 // how many of each. Guarded by pendingMu.

	ended atomic.Bool // why the connection ends has been noted

	// Owned by shard.
	index     int // in shard.clients; -1 when it is not there
	slot      int // of shard.wheel, and the place there
	slotIndex int
	blocked   bool   // is in shard.blocked
	pinged    bool   // a ping is on its way, and nothing was heard yet
	closing   bool   // a close frame was sent
	users     int    // the count that it was told last
	usersSeq  uint64 // the state of the hub that it was told last
	stateSeq  uint64
	stalledAt time.Time // when a blocked client last made progress

	// Owned by serve.
	left       bool
	limiter    *rate.Limiter // nil until the first action
	notActions int           // messages in a row that were no actions
	ignored    int           // bytes behind the request for a stream
}

// serve runs the client from its joining to the end of its connection.
func (c *client) serve() {
	h := c.hub
	defer h.release(c)
	h.arrive()
	sendTo(h, c.owner.members, membership{c, false})
	var err error
	if c.encoding == inStream {
		err = c.readStream()
	} else {
		err = c.readLoop()
	}
	c.leave() // the others are told first; then there is time for the closing handshake
	c.end(reasonOf(err), "err", err)
	c.close(err)
}

// leave takes the client out of the hub, once. It comes before each close frame that is
// sent from serve, so that a peer who has been said goodbye to is counted no more.
func (c *client) leave() {
	if c.left {
		return
	}
	c.left = true
	sendTo(c.hub, c.owner.members, membership{c, true})
	c.hub.leave()
}

// end notes why the connection ends, once: who ends it first knows best. Safe from any
// goroutine.
func (c *client) end(reason Reason, attrs ...any) {
	if !c.ended.Swap(true) {
		c.hub.events.closed(reason, append(attrs, "remote", c.remote)...)
	}
}

// writeFailed disconnects a client to which a write has failed. serve finds out, and leaves.
// Safe from any goroutine.
func (c *client) writeFailed(err error) {
	c.end(reasonOf(err), "err", err)
	c.wire.sock.Abort()
}

// reasonOf returns why a connection ends with err.
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

// A closeError ends a connection with a close frame that the peer is owed.
type closeError struct {
	reason Reason // and with it the status code
	text   string // for the peer; at most 123 bytes
}

func (e closeError) Error() string { return e.text }

// readLoop reads messages and passes actions on until the connection ends, which is
// the error that it returns.
func (c *client) readLoop() (err error) {
	// A bug that one client's message finds ends that client alone.
	defer func() {
		if p := recover(); p != nil {
			c.hub.events.Panicked(p, "remote", c.remote)
			err = closeError{ReasonPanic, textPanic}
			c.wire.frames.fail(err) // the library's state is anyone's guess
		}
	}()
	// No context with a deadline: the library would start a timer for each read. What a
	// dead peer costs is bounded by pings, what a closing one costs by a read deadline.
	ctx := context.Background()
	for {
		if err := c.readKnown(); err != nil {
			return err
		}
		typ, r, err := c.ws.Reader(ctx)
		if err != nil {
			return err
		}
		a, refused, err := readAction(typ, r)
		if err != nil {
			return err
		}
		c.owner.counts.received.Add(1)
		switch {
		case refused != nil:
			if err := c.refuseAndCount(refused); err != nil {
				return err
			}
			if !refused.notAnAction() {
				break
			}
			if c.notActions++; c.notActions == maxNotActions {
				return closeError{ReasonRubbish, textNotActions}
			}
		case !c.allowed():
			if err := c.refuseAndCount(refusedRate); err != nil {
				return err
			}
		default:
			c.act(actionRun{c, a, 1})
		}
	}
}

// act passes a run of actions on to the hub, or refuses it if the store does not answer.
func (c *client) act(r actionRun) {
	if r.count == 0 {
		return
	}
	c.notActions = 0
	if c.hub.storeOverdue.Load() {
		for range r.count {
			c.refuse(refusedStore)
		}
		return
	}
	sendTo(c.hub, c.hub.actions, r)
}

// allowed reports whether the client may send an action now, and counts it.
func (c *client) allowed() bool {
	cfg := &c.hub.cfg
	if cfg.ActionRate == 0 {
		return true
	}
	if c.limiter == nil { // most clients only watch
		c.limiter = rate.NewLimiter(rate.Limit(cfg.ActionRate), cfg.ActionBurst)
	}
	return c.limiter.Allow()
}

// messages holds buffers for one message each. An idle client holds none.
var messages = sync.Pool{New: func() any { return new([MaxMessage + 1]byte) }}

// readAction reads a message of at most MaxMessage bytes to its end.
func readAction(typ websocket.MessageType, r io.Reader) (action, *refusal, error) {
	buf := messages.Get().(*[MaxMessage + 1]byte)
	defer messages.Put(buf)
	n := 0
	for {
		// The read limit of the connection makes Read fail before buf could be full.
		m, err := r.Read(buf[n:])
		n += m
		if err == io.EOF {
			break
		}
		if err != nil {
			return 0, nil, err
		}
	}
	// "When an endpoint is to interpret a byte stream as UTF-8 but finds that the byte
	// stream is not, in fact, a valid UTF-8 stream, that endpoint MUST _Fail the
	// WebSocket Connection_." https://www.rfc-editor.org/rfc/rfc6455#section-8.1
	if typ == websocket.MessageText && !utf8.Valid(buf[:n]) {
		return 0, nil, closeError{ReasonNotUTF8, textNotUTF8}
	}
	a, refused := decode(typ, buf[:n])
	return a, refused, nil
}

// refuseAndCount refuses a message by the client's own fault. The error is that this happens too
// often.
func (c *client) refuseAndCount(r *refusal) error {
	c.refuse(r)
	return c.wire.frames.excess.add(time.Now())
}

// refuse tells the client why its message changed nothing; one that is blocked is told
// when it is blocked no more. Safe from any goroutine, but the shard's.
func (c *client) refuse(r *refusal) {
	c.owner.counts.refuse(r)
	if c.deferRefusal(r) {
		return
	}
	if _, err := c.wire.send(r.frame, false); err != nil {
		c.writeFailed(err)
	} else {
		c.owner.counts.errors.Add(1)
	}
	if c.wire.sock.blocked() {
		c.noteBlocked()
	}
}

// deferRefusal has the shard tell r if it cannot be told at once, and reports whether it is so: the
// client is blocked, or is owed others, which come first. A client that reads can be blocked
// for a moment, by the refusals of all that it sent while the store did not answer. They are
// counted, so that one that does not read costs no memory.
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

// appendPending appends frames of refusals that the client is owed, one write's worth, and
// takes them off. When there is none left it says so in refusalsPending. For the shard.
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

// maxPendingWrite bounds one write of refusals that are owed, in bytes: about what a sweep writes.
const maxPendingWrite = 1 << 10

// noteBlocked tells the shard that the client has become blocked by a write that was
// not the shard's. Not to be called by the shard itself.
func (c *client) noteBlocked() { sendTo(c.hub, c.owner.nowBlocked, c) }

// close ends the connection after readLoop has returned err.
func (c *client) close(err error) {
	defer func() {
		if p := recover(); p != nil {
			c.hub.events.Panicked(p, "remote", c.remote)
			c.wire.sock.Abort()
		}
	}()
	var ce closeError
	if c.ws != nil && errors.As(err, &ce) {
		c.closingHandshake(ce)
	}
	if c.ws == nil {
		_ = c.wire.Close()
	} else {
		_ = c.ws.CloseNow()
	}
}

// closingHandshake sends a close frame and waits for the peer's, or for the end of the connection.
// To close at once would reset the connection while the peer is still sending, and with it the
// close frame would be lost. So what comes is read, for a while.
//
// Where frames cannot be understood any more, there is no answer to wait for, either: "An
// endpoint MUST NOT continue to attempt to process data (including a responding Close frame)
// from the remote endpoint after being instructed to _Fail the WebSocket Connection_."
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
		// The shard has forgotten the client: nobody else sends what is kept.
		if _, err = w.sock.flush(); err != nil {
			return
		}
		until := end
		if blocked := time.Now().Add(flushEvery); w.sock.blocked() && blocked.Before(end) {
			until = blocked
		}
		_ = w.SetReadDeadline(until) // fails on a closed connection, as does Read
		var n int
		n, err = w.Conn.Read(buf[:])
		_, _ = w.frames.check(buf[:n]) // to see a close frame; all else has been said
		if errors.Is(err, os.ErrDeadlineExceeded) && time.Now().Before(end) {
			err = nil
		}
	}
}
