package hub

import (
	"context"
	"fmt"
	"log/slog"
	"maps"
	"net/netip"
	"runtime/debug"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// A Reason says why a connection or request was refused, or why a client's connection ended. It is a
// label in metrics, and the value of "reason" in the log.
type Reason string

// Reasons to refuse a request, with the HTTP status of the answer.
const (
	ReasonOrigin       Reason = "origin"        // 403: pages of that origin may not connect
	ReasonBadHandshake Reason = "bad_handshake" // 400, 405 or 426: neither an opening handshake nor a GET of the event stream
	ReasonAddressFull  Reason = "address_full"  // 429: the address has MaxClientsPerIP clients
	ReasonFull         Reason = "full"          // 503: the hub has MaxClients clients
	ReasonNoValue      Reason = "no_value"      // 503: the value is unknown, since the store has not been reached yet
	ReasonBadName      Reason = "bad_name"      // 400: the name of a counter is no name, or there are too many
	ReasonNoCounter    Reason = "no_counter"    // 404: no pattern of Config.Counters matches the name
)

// Reasons why an action makes no counter. Each is the code of the error that the sender is told.
const (
	ReasonMakingLimited   Reason = "making_limited"    // Config.MayMake refused the address
	ReasonTooManyCounters Reason = "too_many_counters" // the store has no room for another counter
)

// ReasonStopping is the reason why requests are refused (503), and clients are closed (1012), while
// the hub shuts down.
const ReasonStopping Reason = "stopping"

// Reasons why a client's connection ended. [Reason.StatusCode] returns the status code.
const (
	ReasonPeer      Reason = "peer"           // the peer sent a close frame
	ReasonGone      Reason = "gone"           // the connection ended without a close frame
	ReasonProtocol  Reason = "protocol_error" // the peer sent a frame that RFC 6455 forbids
	ReasonNotUTF8   Reason = "not_utf8"       // the peer sent text that is not UTF-8
	ReasonRubbish   Reason = "rubbish"        // the peer sent 16 messages at once that are not actions, or more than one a second for long
	ReasonFlood     Reason = "flood"          // the peer sent too many control frames and refused messages, or too many bytes on an event stream
	ReasonFragments Reason = "fragments"      // the peer sent a message in too many frames
	ReasonTooBig    Reason = "too_big"        // the peer sent a message over MaxMessage
	ReasonStalled   Reason = "stalled"        // the client was blocked and made no progress for 10 seconds
	ReasonSilent    Reason = "silent"         // the peer did not answer a ping, or its system acknowledged nothing
	ReasonDeaf      Reason = "deaf"           // the peer sends but does not read, so more than 4 KB of answers are kept for it
	ReasonPanic     Reason = "panic"          // a bug in the hub: a panic ended this connection
)

// EventsConfig configures [Events]. The zero value works.
type EventsConfig struct {
	// Logger gets the log lines; nil discards them.
	Logger *slog.Logger

	// Refusals has the caller's own reasons for [Events.Refused], each with the level of its log
	// lines. The hub's reasons are added to them.
	Refusals map[Reason]slog.Level

	// Hints says for some reasons what an operator can do. The hint is logged with the reason.
	Hints map[Reason]string

	// HintFor returns more to say about a refusal of the address remote, or ""; nil says nothing more.
	HintFor func(reason Reason, remote netip.Prefix) string
}

// Events counts refused connections, counters that were not made, closed clients and panics, and logs a sample of them (see
// [EventLog]). Its methods are safe from any goroutine. Except for Counts, they do nothing on a
// nil *Events.
type Events struct {
	// Immutable after NewEvents. Each EventLog is safe from any goroutine.
	hints    map[Reason]string
	hintFor  func(Reason, netip.Prefix) string // nil says nothing
	levels   map[Reason]slog.Level
	refusals *EventLog[Reason]
	makings  *EventLog[Reason]
	closes   *EventLog[Reason]
	panics   *EventLog[Reason]
}

// NewEvents returns Events whose counts are 0.
func NewEvents(cfg EventsConfig) *Events {
	levels := map[Reason]slog.Level{
		ReasonOrigin:       slog.LevelInfo,
		ReasonBadHandshake: slog.LevelInfo,
		ReasonAddressFull:  slog.LevelInfo,
		ReasonFull:         slog.LevelWarn,
		ReasonNoValue:      slog.LevelInfo,
		ReasonBadName:      slog.LevelInfo,
		ReasonNoCounter:    slog.LevelInfo,
		ReasonStopping:     slog.LevelInfo,
	}
	maps.Copy(levels, cfg.Refusals)
	return &Events{
		hints:    cfg.Hints,
		hintFor:  cfg.HintFor,
		levels:   levels,
		refusals: NewEventLog(cfg.Logger, slices.Collect(maps.Keys(levels))...),
		makings:  NewEventLog(cfg.Logger, ReasonMakingLimited, ReasonTooManyCounters),
		closes:   NewEventLog(cfg.Logger, slices.Collect(maps.Keys(closeCodes))...),
		panics:   NewEventLog(cfg.Logger, ReasonPanic),
	}
}

// Refused counts a connection or request that was refused. reason must be one of the hub's reasons, or
// one of [EventsConfig].Refusals. attrs are like those of [slog.Logger.Log].
func (e *Events) Refused(reason Reason, attrs ...any) {
	if e == nil {
		return
	}
	hint := e.hints[reason]
	if i := slices.Index(attrs, any("remote")); e.hintFor != nil && i >= 0 && i+1 < len(attrs) {
		if remote, ok := attrs[i+1].(netip.Prefix); ok {
			if more := e.hintFor(reason, remote); more != "" {
				hint = strings.TrimPrefix(hint+"; "+more, "; ")
			}
		}
	}
	attrs = append(attrs, "reason", reason)
	if hint != "" {
		attrs = append(attrs, "hint", hint)
	}
	e.refusals.Note(reason, e.levels[reason], "connection refused", attrs...)
}

// notMade counts a refused attempt to make a counter.
func (e *Events) notMade(reason Reason, attrs ...any) {
	if e == nil {
		return
	}
	level := slog.LevelInfo
	if reason == ReasonTooManyCounters {
		level = slog.LevelWarn // all visitors are refused, and an operator can make room
	}
	attrs = append(attrs, "reason", reason)
	if hint := e.hints[reason]; hint != "" {
		attrs = append(attrs, "hint", hint)
	}
	e.makings.Note(reason, level, "counter not made", attrs...)
}

// closed counts a client whose connection ends.
func (e *Events) closed(reason Reason, attrs ...any) {
	if e == nil {
		return
	}
	level := slog.LevelInfo
	switch reason {
	case ReasonPeer, ReasonGone, ReasonStopping:
		level = slog.LevelDebug // normal and frequent
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
	e.panics.Note(ReasonPanic, slog.LevelError, "a bug: a panic ended one connection, all others continue",
		append(attrs, "err", fmt.Errorf("panic: %v", p), "stack", string(debug.Stack()))...)
}

// EventCounts has the number of events since the start. Events that have not happened are included
// with 0.
type EventCounts struct {
	Refusals map[Reason]uint64 `json:"refusals"`
	Closes   map[Reason]uint64 `json:"closes"`
	Panics   uint64            `json:"panics"`
}

// Counts returns the number of events of each reason.
func (e *Events) Counts() EventCounts {
	return EventCounts{e.refusals.Counts(), e.closes.Counts(), e.panics.Counts()[ReasonPanic]}
}

// An EventLog counts events by kind and logs a sample of them, so that no peer can fill the log. The
// first event of a kind is logged at once, then at most one a minute. While a kind continues,
// its lines become rarer, down to one an hour. Each line says how many earlier events had no line
// ("suppressed"). At debug level every event is logged.
//
// Its methods are safe from any goroutine.
type EventLog[K ~string] struct {
	// Immutable after NewEventLog. Each event is safe from any goroutine.
	log    *slog.Logger
	events map[K]*event
}

// event is the state of one kind of events. It is safe from any goroutine.
type event struct {
	n       atomic.Uint64 // how many have happened
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

// Count counts an event without logging it. kind must be one of those given to [NewEventLog].
func (l *EventLog[K]) Count(kind K) { l.events[kind].n.Add(1) }

// Note counts an event, and logs it unless the log has a recent line of its kind. kind must be one of
// those given to [NewEventLog].
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

// Counts returns the number of events of each kind.
func (l *EventLog[K]) Counts() map[K]uint64 {
	counts := make(map[K]uint64, len(l.events))
	for k, e := range l.events {
		counts[k] = e.n.Load()
	}
	return counts
}

// A logSampler decides which events of a kind get a line in the log.
type logSampler struct {
	mu sync.Mutex
	// Guarded by mu.
	next       time.Time     // the earliest time of the next line
	every      time.Duration // the time from the last line to next
	suppressed uint64        // events since the last line
}

// The least time between two lines is sampleEvery. It doubles with each line while the series
// continues, up to sampleLongest.
const (
	sampleEvery   = time.Minute
	sampleLongest = time.Hour
)

// take reports whether an event at the time now gets a line. If so, it returns the number of events
// without a line since the last line.
func (s *logSampler) take(now time.Time) (suppressed uint64, ok bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if now.Before(s.next) {
		s.suppressed++
		return 0, false
	}
	if now.Sub(s.next) < s.every { // the series continues
		s.every = min(2*s.every, sampleLongest)
	} else {
		s.every = sampleEvery
	}
	s.next = now.Add(s.every)
	suppressed, s.suppressed = s.suppressed, 0
	return suppressed, true
}
