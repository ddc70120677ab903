package hub

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"time"
	"unicode/utf8"

	"github.com/coder/websocket"
	"golang.org/x/time/rate"
)

// client is one WebSocket connection. Its goroutine runs serve.
type client struct {
	// Immutable after join.
	hub    *Hub
	shard  *shard
	ws     *websocket.Conn
	remote netip.Prefix // what the cap per address counts it under
	wire   wire         // safe from any goroutine

	owes atomic.Bool // the client is owed refusals; set under owing, read from anywhere

	owing sync.Mutex
	owed  [len(refusals)]uint32 // how many of each. Guarded by owing.

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
	left    bool
	limiter *rate.Limiter // nil until the first action
	rubbish int           // messages in a row that were no actions
}

// serve runs the client from its joining to the end of its connection.
func (c *client) serve() {
	h := c.hub
	defer h.release(c)
	h.arrive()
	sendTo(h, c.shard.members, membership{c, false})
	err := c.readLoop()
	c.leave() // the others are told first; then there is time for the closing handshake
	c.close(err)
	h.log.Debug("client left", "remote", c.remote, "reason", err)
}

// leave takes the client out of the hub, once. It comes before each close frame that is
// sent from serve, so that a peer who has been said goodbye to is counted no more.
func (c *client) leave() {
	if c.left {
		return
	}
	c.left = true
	sendTo(c.hub, c.shard.members, membership{c, true})
	c.hub.leave()
}

// A closeError ends readLoop with a status code that the peer is owed.
type closeError struct {
	code   websocket.StatusCode
	reason string
}

func (e closeError) Error() string { return e.reason }

// readLoop reads messages and passes actions on until the connection ends, which is
// the error that it returns.
func (c *client) readLoop() (err error) {
	// A bug that one client's message finds ends that client alone.
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("panic: %v", p)
			c.hub.log.Error("panic in a client's goroutine", "err", err, "stack", string(debug.Stack()))
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
		delta, refused, err := readAction(typ, r)
		if err != nil {
			return err
		}
		c.shard.counts.received.Add(1)
		switch {
		case refused != nil:
			c.refuse(refused)
			if !refused.rubbish() {
				break
			}
			if c.rubbish++; c.rubbish == maxRubbish {
				return closeError{codeRubbish, reasonRubbish}
			}
		case !c.allowed():
			c.refuse(refusedRate)
		default:
			c.act(action{c, delta, 1})
		}
	}
}

// act passes a run of actions on to the hub, or refuses it if the store does not answer.
func (c *client) act(run action) {
	if run.count == 0 {
		return
	}
	c.rubbish = 0
	if c.hub.away.Load() {
		for range run.count {
			c.refuse(refusedStore)
		}
		return
	}
	sendTo(c.hub, c.hub.actions, run)
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
func readAction(typ websocket.MessageType, r io.Reader) (int8, *refusal, error) {
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
		return 0, nil, closeError{codeNotUTF8, reasonNotUTF8}
	}
	delta, refused := decode(typ, buf[:n])
	return delta, refused, nil
}

// refuse tells the client why its message changed nothing; one that is blocked is told
// when it is blocked no more. Safe from any goroutine, but the shard's.
func (c *client) refuse(r *refusal) {
	c.shard.counts.refuse(r)
	if c.owe(r) {
		return
	}
	if _, err := c.wire.send(r.frame, false); err != nil {
		c.wire.sock.abort() // readLoop finds out
	} else {
		c.shard.counts.errors.Add(1)
	}
	if c.wire.sock.blocked() {
		c.noteBlocked()
	}
}

// owe has the shard tell r if it cannot be told at once, and reports whether it is so: the
// client is blocked, or is owed others, which come first. A client that reads can be blocked
// for a moment, by the refusals of all that it sent while the store did not answer. They are
// counted, so that one that does not read costs no memory.
func (c *client) owe(r *refusal) bool {
	c.owing.Lock()
	first := !c.owes.Load()
	if first && !c.wire.sock.blocked() {
		c.owing.Unlock()
		return false
	}
	c.owed[r.index]++
	c.owes.Store(true)
	c.owing.Unlock()
	if first {
		c.noteBlocked()
	}
	return true
}

// appendOwed appends frames of refusals that the client is owed, one write's worth, and
// takes them off. When there is none left it says so in owes. For the shard.
func (c *client) appendOwed(dst []byte) []byte {
	c.owing.Lock()
	defer c.owing.Unlock()
	for i, r := range refusals {
		for c.owed[i] > 0 {
			if len(dst)+len(r.frame) > owedAtOnce {
				return dst
			}
			dst = append(dst, r.frame...)
			c.owed[i]--
			c.shard.counts.errors.Add(1)
		}
	}
	if len(dst) == 0 {
		c.owes.Store(false)
	}
	return dst
}

// owedAtOnce bounds one write of refusals that are owed, in bytes: about what a sweep writes.
const owedAtOnce = 1 << 10

// noteBlocked tells the shard that the client has become blocked by a write that was
// not the shard's. Not to be called by the shard itself.
func (c *client) noteBlocked() { sendTo(c.hub, c.shard.stuck, c) }

// close ends the connection after readLoop has returned err.
func (c *client) close(err error) {
	var ce closeError
	tooBig := errors.Is(err, websocket.ErrMessageTooBig) // the library has sent 1009
	if errors.As(err, &ce) || tooBig {
		// To close at once would reset the connection while the peer is still sending, and
		// with it the close frame would be lost. So the rest is read, for a while.
		_ = c.wire.SetReadDeadline(time.Now().Add(closeTimeout))
		_ = c.ws.Close(ce.code, ce.reason) // the peer may have gone; there is nobody to tell
		return
	}
	_ = c.ws.CloseNow()
}
