package hub

import (
	"context"
	"fmt"
	"log/slog"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"time"
)

// A Reason is why something that a peer wanted was refused, or why its connection ended. It
// is the value of the label in metrics and of the key in the log.
type Reason string

// Reasons to refuse a connection before it has joined, with what the peer is told.
const (
	ReasonHost         Reason = "host"          // 421: the Host is none of ours
	ReasonOrigin       Reason = "origin"        // 403: a page of that Origin may not connect
	ReasonBadHandshake Reason = "bad_handshake" // 400, 405 or 426: no opening handshake of RFC 6455, and no GET of a stream
	ReasonAddressRate  Reason = "address_rate"  // 429: the address asks too often
	ReasonAddressFull  Reason = "address_full"  // 429: the address has as many clients as it may
	ReasonFull         Reason = "full"          // 503: there are as many clients as there may be
	ReasonNoValue      Reason = "no_value"      // 503: the store has not been reached yet

	// Those of a PROXY protocol header in front of the connection, which is closed.
	ReasonProxyForeign Reason = "proxy_header_foreign" // there is one, from a network that is not believed
	ReasonProxyMissing Reason = "proxy_header_missing" // there is none, from a network that has to send it
	ReasonProxyBad     Reason = "proxy_header_bad"     // it cannot be understood

	// Before HTTP there is nothing to answer with: the connection is closed.
	ReasonAddressConnections Reason = "address_connections" // the address opens connections too often
	ReasonCrowded            Reason = "crowded"             // there are too many that have not joined, and it made no progress for longest
	ReasonAcceptError        Reason = "accept_error"        // the system has no file descriptor or memory for it
)

// ReasonStopping is why connections are refused (503) and clients closed (see codeStopping).
const ReasonStopping Reason = "stopping"

// Reasons why the connection of a client ended, whose status codes are in closeCodes.
const (
	ReasonPeer      Reason = "peer"           // the peer sent a close frame
	ReasonGone      Reason = "gone"           // the connection ended without one
	ReasonProtocol  Reason = "protocol_error" // a frame that RFC 6455 forbids
	ReasonNotUTF8   Reason = "not_utf8"       // text that is not UTF-8
	ReasonRubbish   Reason = "rubbish"        // too many messages in a row that are no actions
	ReasonFlood     Reason = "flood"          // too many control frames and refused messages in a short time, or too much sent on a stream
	ReasonFragments Reason = "fragments"      // a message in too many frames
	ReasonTooBig    Reason = "too_big"        // a message over MaxMessage
	ReasonStalled   Reason = "stalled"        // it took nothing for stallTimeout
	ReasonSilent    Reason = "silent"         // it did not answer a ping
	ReasonDeaf      Reason = "deaf"           // it sends and does not read, so that answers pile up
	ReasonPanic     Reason = "panic"          // a bug of ours
)

// An Outcome is what became of a TLS handshake.
type Outcome string

const (
	HandshakeOK            Outcome = "ok"
	HandshakeChallenge     Outcome = "challenge"      // a CA has validated a tls-alpn-01 challenge
	HandshakeTimeout       Outcome = "timeout"        // it was not over in time
	HandshakeGone          Outcome = "gone"           // the peer closed the connection, or we did to make room
	HandshakeUnknownName   Outcome = "unknown_name"   // the server name is none of ours
	HandshakeNoCertificate Outcome = "no_certificate" // there is none for the name yet
	HandshakeRejected      Outcome = "rejected"       // the peer sent an alert: it does not trust the certificate, for one
	HandshakeHTTP          Outcome = "http"           // HTTP without TLS
	HandshakeJunk          Outcome = "junk"           // neither TLS nor HTTP
	HandshakeOther         Outcome = "other"          // no version or cipher in common, for one: the log has the error
)

// levels are those that reasons to refuse are logged at; all others are at info.
var levels = map[Reason]slog.Level{
	ReasonAcceptError: slog.LevelError,
	ReasonFull:        slog.LevelWarn,
	ReasonCrowded:     slog.LevelWarn,
	ReasonPanic:       slog.LevelError,

	// A balancer that is set up otherwise than we are: all behind it are refused.
	ReasonProxyForeign: slog.LevelWarn,
	ReasonProxyMissing: slog.LevelWarn,
	ReasonProxyBad:     slog.LevelWarn,
}

// Events counts what peers bring about, and logs it so that no peer can fill the log: of
// each reason the first at once, and then at most one a minute, less and less often while it
// goes on, with the number of those in between. At debug level each is logged.
//
// Its methods are safe from any goroutine. A nil *Events does nothing.
type Events struct {
	// Immutable after NewEvents; what the pointers lead to is safe from any goroutine.
	log        *slog.Logger
	hints      map[Reason]string
	refusals   map[Reason]*event
	closes     map[Reason]*event
	handshakes map[Outcome]*event
	panics     event
}

// event counts one kind of event.
type event struct {
	n       atomic.Uint64
	sampler sampler
}

// NewEvents returns Events that log to log; nil discards the lines. hints say what an operator
// can do about a reason, and are logged with it.
func NewEvents(log *slog.Logger, hints map[Reason]string) *Events {
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	e := &Events{
		log:        log,
		hints:      hints,
		refusals:   make(map[Reason]*event),
		closes:     make(map[Reason]*event),
		handshakes: make(map[Outcome]*event),
	}
	for _, r := range []Reason{
		ReasonHost, ReasonOrigin, ReasonBadHandshake, ReasonAddressRate, ReasonAddressFull, ReasonFull,
		ReasonNoValue, ReasonProxyForeign, ReasonProxyMissing, ReasonProxyBad,
		ReasonAddressConnections, ReasonCrowded, ReasonAcceptError, ReasonStopping,
	} {
		e.refusals[r] = new(event)
	}
	for r := range closeCodes {
		e.closes[r] = new(event)
	}
	for _, o := range []Outcome{
		HandshakeOK, HandshakeChallenge, HandshakeTimeout, HandshakeGone, HandshakeUnknownName,
		HandshakeNoCertificate, HandshakeRejected, HandshakeHTTP, HandshakeJunk, HandshakeOther,
	} {
		e.handshakes[o] = new(event)
	}
	return e
}

// Refused notes that a connection was refused. attrs are those of [slog.Logger.Log].
func (e *Events) Refused(reason Reason, attrs ...any) {
	if e == nil {
		return
	}
	attrs = append(attrs, "reason", reason)
	if hint := e.hints[reason]; hint != "" {
		attrs = append(attrs, "hint", hint)
	}
	msg := "connection refused"
	if reason == ReasonAcceptError {
		msg = "no connection can be accepted, trying on"
	}
	e.note(e.refusals[reason], levels[reason], msg, attrs)
}

// closed notes that the connection of a client ended.
func (e *Events) closed(reason Reason, attrs ...any) {
	if e == nil {
		return
	}
	level := levels[reason]
	if reason == ReasonPeer || reason == ReasonGone || reason == ReasonStopping {
		level = slog.LevelDebug // clients come and go
	}
	e.note(e.closes[reason], level, "client disconnected", append(attrs, "code", closeCodes[reason], "reason", reason))
}

// handshake notes what became of a TLS handshake, with its error if it failed.
func (e *Events) handshake(outcome Outcome, attrs ...any) {
	if e == nil {
		return
	}
	if outcome == HandshakeOK || outcome == HandshakeChallenge {
		e.handshakes[outcome].n.Add(1)
		return
	}
	e.note(e.handshakes[outcome], slog.LevelInfo, "TLS handshake failed", append(attrs, "reason", outcome))
}

// Panicked notes a panic, with the stack of the calling goroutine.
func (e *Events) Panicked(p any, attrs ...any) {
	if e == nil {
		return
	}
	e.note(&e.panics, slog.LevelError, "a bug: a panic ended one connection, the others are served on",
		append(attrs, "err", fmt.Errorf("panic: %v", p), "stack", string(debug.Stack())))
}

func (e *Events) note(ev *event, level slog.Level, msg string, attrs []any) {
	ev.n.Add(1)
	ctx := context.Background()
	if !e.log.Enabled(ctx, level) {
		return
	}
	suppressed, ok := ev.sampler.take(time.Now())
	if !ok && !e.log.Enabled(ctx, slog.LevelDebug) {
		return
	}
	if ok && suppressed > 0 {
		attrs = append(attrs, "suppressed", suppressed)
	}
	e.log.Log(ctx, level, msg, attrs...)
}

// Tallies are how often each thing has happened since the start. Those that have not are
// there, too.
type Tallies struct {
	Refusals   map[Reason]uint64  `json:"refusals"`
	Closes     map[Reason]uint64  `json:"closes"`
	Handshakes map[Outcome]uint64 `json:"handshakes"`
	Panics     uint64             `json:"panics"`
}

// Tallies returns how often each thing has happened.
func (e *Events) Tallies() Tallies {
	return Tallies{countsOf(e.refusals), countsOf(e.closes), countsOf(e.handshakes), e.panics.n.Load()}
}

func countsOf[K comparable](events map[K]*event) map[K]uint64 {
	out := make(map[K]uint64, len(events))
	for k, ev := range events {
		out[k] = ev.n.Load()
	}
	return out
}

// A sampler says when something that may happen all the time is worth a line.
type sampler struct {
	mu sync.Mutex
	// Guarded by mu.
	next       time.Time     // before which there is no line
	every      time.Duration // between the last line and next
	suppressed uint64
}

const (
	sampleEvery   = time.Minute
	sampleLongest = time.Hour
)

// take reports whether there is to be a line now, and how many things had none since the
// last one.
func (s *sampler) take(now time.Time) (suppressed uint64, ok bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if now.Before(s.next) {
		s.suppressed++
		return 0, false
	}
	if now.Sub(s.next) < s.every { // it goes on
		s.every = min(2*s.every, sampleLongest)
	} else {
		s.every = sampleEvery
	}
	s.next = now.Add(s.every)
	suppressed, s.suppressed = s.suppressed, 0
	return suppressed, true
}
