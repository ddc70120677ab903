package hub

import (
	"context"
	"fmt"
	"log/slog"
	"maps"
	"runtime/debug"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// A Reason says why a connection or a request was refused, or why a client's connection ended.
// It is a label in metrics and a key in the log.
type Reason string

// Reasons to refuse a request before a client has joined, with the status that the peer gets.
const (
	ReasonOrigin       Reason = "origin"        // 403: a page of that Origin may not connect
	ReasonBadHandshake Reason = "bad_handshake" // 400, 405 or 426: neither an opening handshake of RFC 6455 nor a GET of a stream
	ReasonAddressFull  Reason = "address_full"  // 429: the address has as many clients as it may have
	ReasonFull         Reason = "full"          // 503: the hub has as many clients as it may have
	ReasonNoValue      Reason = "no_value"      // 503: the store has not been reached yet
)

// ReasonStopping is why requests are refused (503) and clients closed (see codeStopping) during
// a stop.
const ReasonStopping Reason = "stopping"

// Reasons why the connection of a client ended. closeCodes has their status codes.
const (
	ReasonPeer      Reason = "peer"           // the peer sent a close frame
	ReasonGone      Reason = "gone"           // the connection ended without a close frame
	ReasonProtocol  Reason = "protocol_error" // a frame that RFC 6455 forbids
	ReasonNotUTF8   Reason = "not_utf8"       // text that is not UTF-8
	ReasonRubbish   Reason = "rubbish"        // too many messages in a row that are not actions
	ReasonFlood     Reason = "flood"          // too many control frames and refused messages in a short time, or too much sent on a stream
	ReasonFragments Reason = "fragments"      // a message in too many frames
	ReasonTooBig    Reason = "too_big"        // a message over MaxMessage
	ReasonStalled   Reason = "stalled"        // a blocked client made no progress for stallTimeout
	ReasonSilent    Reason = "silent"         // no answer to a ping
	ReasonDeaf      Reason = "deaf"           // the peer sends and does not read, so that answers pile up
	ReasonPanic     Reason = "panic"          // a bug of the hub
)

// EventsConfig is what [NewEvents] needs to know. Its zero value works.
type EventsConfig struct {
	// Logger gets the lines; nil discards them.
	Logger *slog.Logger

	// Refusals are reasons of the caller's own for [Events.Refused], each with the level of its
	// lines in the log. The hub's own reasons are always there.
	Refusals map[Reason]slog.Level

	// Hints say what an operator can do about a reason. They are logged with it.
	Hints map[Reason]string
}

// Events counts what peers cause, and logs a sample of it (see [EventLog]).
// Its methods are safe from any goroutine. A nil *Events does nothing.
type Events struct {
	// Immutable after NewEvents; what the pointers lead to is safe from any goroutine.
	hints    map[Reason]string
	levels   map[Reason]slog.Level
	refusals *EventLog[Reason]
	closes   *EventLog[Reason]
	panics   *EventLog[Reason]
}

// NewEvents returns Events that have counted nothing.
func NewEvents(cfg EventsConfig) *Events {
	levels := map[Reason]slog.Level{
		ReasonOrigin:       slog.LevelInfo,
		ReasonBadHandshake: slog.LevelInfo,
		ReasonAddressFull:  slog.LevelInfo,
		ReasonFull:         slog.LevelWarn,
		ReasonNoValue:      slog.LevelInfo,
		ReasonStopping:     slog.LevelInfo,
	}
	maps.Copy(levels, cfg.Refusals)
	return &Events{
		hints:    cfg.Hints,
		levels:   levels,
		refusals: NewEventLog(cfg.Logger, slices.Collect(maps.Keys(levels))...),
		closes:   NewEventLog(cfg.Logger, slices.Collect(maps.Keys(closeCodes))...),
		panics:   NewEventLog(cfg.Logger, ReasonPanic),
	}
}

// Refused counts a connection or request that was refused for one of the hub's reasons or one of
// [EventsConfig].Refusals. attrs are those of [slog.Logger.Log].
func (e *Events) Refused(reason Reason, attrs ...any) {
	if e == nil {
		return
	}
	attrs = append(attrs, "reason", reason)
	if hint := e.hints[reason]; hint != "" {
		attrs = append(attrs, "hint", hint)
	}
	e.refusals.Note(reason, e.levels[reason], "connection refused", attrs...)
}

// closed counts a client whose connection has ended.
func (e *Events) closed(reason Reason, attrs ...any) {
	if e == nil {
		return
	}
	level := slog.LevelInfo
	switch reason {
	case ReasonPeer, ReasonGone, ReasonStopping:
		level = slog.LevelDebug // this happens all day
	case ReasonPanic:
		level = slog.LevelError
	}
	e.closes.Note(reason, level, "client disconnected", append(attrs, "code", closeCodes[reason], "reason", reason)...)
}

// Panicked counts a panic, and logs the stack of the calling goroutine.
func (e *Events) Panicked(p any, attrs ...any) {
	if e == nil {
		return
	}
	e.panics.Note(ReasonPanic, slog.LevelError, "a bug: a panic ended one connection, the others are served on",
		append(attrs, "err", fmt.Errorf("panic: %v", p), "stack", string(debug.Stack()))...)
}

// EventCounts says how often each event has happened since the start. Events that have not
// happened are there with 0.
type EventCounts struct {
	Refusals map[Reason]uint64 `json:"refusals"`
	Closes   map[Reason]uint64 `json:"closes"`
	Panics   uint64            `json:"panics"`
}

// Counts returns how often each event has happened.
func (e *Events) Counts() EventCounts {
	return EventCounts{e.refusals.Counts(), e.closes.Counts(), e.panics.Counts()[ReasonPanic]}
}

// An EventLog counts events by kind, and logs them so that no peer can fill the log: of each
// kind the first event at once, and then at most one a minute. While a kind goes on, its lines
// become rarer, down to one an hour. Each line says how many events before it had none
// ("suppressed"). At debug level every event is logged.
//
// Its methods are safe from any goroutine.
type EventLog[K ~string] struct {
	// Immutable after NewEventLog; what the pointers lead to is safe from any goroutine.
	log    *slog.Logger
	events map[K]*event
}

// event counts the events of one kind.
type event struct {
	n       atomic.Uint64
	sampler logSampler
}

// NewEventLog returns an EventLog for the given kinds. A nil logger discards the lines.
func NewEventLog[K ~string](log *slog.Logger, kinds ...K) *EventLog[K] {
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	l := &EventLog[K]{log, make(map[K]*event, len(kinds))}
	for _, k := range kinds {
		l.events[k] = new(event)
	}
	return l
}

// Count counts an event that is not worth a line. kind must be one of those of [NewEventLog].
func (l *EventLog[K]) Count(kind K) { l.events[kind].n.Add(1) }

// Note counts an event, and logs it if it is that one's turn. kind must be one of those of
// [NewEventLog].
func (l *EventLog[K]) Note(kind K, level slog.Level, msg string, attrs ...any) {
	l.Count(kind)
	ctx := context.Background()
	if !l.log.Enabled(ctx, level) {
		return
	}
	suppressed, ok := l.events[kind].sampler.take(time.Now())
	if !ok && !l.log.Enabled(ctx, slog.LevelDebug) {
		return
	}
	if ok && suppressed > 0 {
		attrs = append(attrs, "suppressed", suppressed)
	}
	l.log.Log(ctx, level, msg, attrs...)
}

// Counts returns how often each kind has happened.
func (l *EventLog[K]) Counts() map[K]uint64 {
	counts := make(map[K]uint64, len(l.events))
	for k, e := range l.events {
		counts[k] = e.n.Load()
	}
	return counts
}

// A logSampler says which events of a series get a line in the log.
type logSampler struct {
	mu sync.Mutex
	// Guarded by mu.
	next       time.Time     // the earliest time of the next line
	every      time.Duration // between the last line and next
	suppressed uint64        // events since the last line
}

const (
	sampleEvery   = time.Minute
	sampleLongest = time.Hour
)

// take reports whether an event that happens now gets a line, and how many events have had none
// since the last line.
func (s *logSampler) take(now time.Time) (suppressed uint64, ok bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if now.Before(s.next) {
		s.suppressed++
		return 0, false
	}
	if now.Sub(s.next) < s.every { // the series goes on
		s.every = min(2*s.every, sampleLongest)
	} else {
		s.every = sampleEvery
	}
	s.next = now.Add(s.every)
	suppressed, s.suppressed = s.suppressed, 0
	return suppressed, true
}
