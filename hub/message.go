package hub

import (
	"encoding/json"
	"errors"
	"fmt"
	"strconv"

	"github.com/coder/websocket"
)

// What clients share, what they may do to it, and what is said about it: all that the hub knows of
// the counter is in this file. docs/extend.md says what else there is to do.

// Value is what clients share. It is comparable, and all of it is in each state message.
type Value = int64

// Delta is what a batch of actions does to a value: it is added to it.
type Delta = Value

// An action is what a client asks for: +1 or -1. 0 is none.
type action int8

// MaxValue bounds the counter: it stays in ±MaxValue, the integers that a browser
// holds exactly (ECMA-262, Number.MAX_SAFE_INTEGER).
const MaxValue = 1<<53 - 1

// ErrRange is what [Store.Apply] returns, changing nothing, for a delta that would
// take the value out of ±[MaxValue].
var ErrRange = errors.New("hub: the counter is at its limit")

// after returns what v is after a was done n times; after -n times, what it was before.
func after(v Value, a action, n int) Value { return v + int64(a)*int64(n) }

// room returns how many of n times a can be done to v before it leaves the range. v is within.
func room(v Value, a action, n int) int { return int(min(int64(n), MaxValue-int64(a)*v)) }

// sum returns v with d added. The result may be out of range.
func sum(v Value, d Delta) Value { return v + d }

// fits reports whether v, which is within the range, is so with d added, whatever d is.
func fits(v Value, d Delta) bool { return d <= MaxValue-v && d >= -MaxValue-v }

// AppendValue appends v as JSON without spaces and line breaks, of which there is one for each
// value. Stores keep values so, too. It is at most 128 bytes long: recentValues of them are
// written at once, and what is kept for a client (maxTail) has to have room for that.
func AppendValue(dst []byte, v Value) []byte { return strconv.AppendInt(dst, v, 10) }

// ParseValue understands what AppendValue has written. It returns [ErrRange] for what is a
// value but out of range.
func ParseValue(s string) (Value, error) {
	v, err := strconv.ParseInt(s, 10, 64)
	switch {
	case errors.Is(err, strconv.ErrRange), v > MaxValue, v < -MaxValue:
		return 0, ErrRange
	case err != nil:
		return 0, fmt.Errorf("%q is no value of a counter", s)
	}
	return v, nil
}

// MaxMessage is the longest message that a client may send, in bytes. An action
// takes 18; the rest is room for fields that are ignored. A longer message closes
// the connection with status code 1009.
const MaxMessage = 512

// A refusal tells the sender, and nobody else, why its message changed nothing.
type refusal struct {
	code  string // constant, for programs and counters
	frame []byte // the error message, ready to be written
	index int    // in refusals
}

// refusals are all of them, in the order in which a client is told of several that it is owed.
var refusals = [...]*refusal{refusedJSON, refusedAction, refusedBinary, refusedRate, undecided, refusedStore, refusedRange}

func init() {
	for i, r := range refusals {
		r.index = i
	}
}

// newRefusal makes the refusal that tells programs code and people message.
func newRefusal(code, message string) *refusal {
	payload, err := json.Marshal(struct {
		Type    string `json:"type"`
		Code    string `json:"code"`
		Message string `json:"message"`
	}{"error", code, message})
	if err != nil {
		panic(err) // three strings always marshal
	}
	return &refusal{code: code, frame: appendFrame(nil, opText, payload)}
}

var (
	refusedJSON   = newRefusal("bad_message", `Send a JSON object with a string "action", such as {"action":"plus"}.`)
	refusedAction = newRefusal("unknown_action", `The actions are "plus" and "minus".`)
	refusedBinary = newRefusal("binary_message", "Send text messages, not binary ones.")
	refusedRate   = newRefusal("rate_limited", "Too many actions at once: this one was not counted.")
	refusedRange  = newRefusal("out_of_range", "The counter is at its limit: this action was not counted.")
	refusedStore  = newRefusal("store_unavailable", "The counter cannot be changed right now: this action was not counted.")

	// Not the last word: the store was given the action and has not answered. It is followed by
	// the state, or by one of the two above.
	undecided = newRefusal("store_undecided", "The counter's store does not answer: this action counts when it does, or another error follows.")
)

// notAnAction reports whether the message was none that a client should ever send, so
// that one who goes on sending such is closed.
func (r *refusal) notAnAction() bool {
	return r == refusedJSON || r == refusedAction || r == refusedBinary
}

// decode returns what a message from a client asks for, or why it is refused. It does
// not keep p.
func decode(typ websocket.MessageType, p []byte) (action, *refusal) {
	if typ != websocket.MessageText {
		return 0, refusedBinary
	}
	if a := knownAction(p); a != 0 {
		return a, nil
	}
	return decodeJSON(p)
}

// The sizes of what knownAction knows.
const (
	shortestKnown = len(`{"action":"plus"}`)
	longestKnown  = len(`{"action": "minus"}`)
)

// knownAction returns the action that p is in the very bytes that JSON.stringify or
// Python's json.dumps make, which need no decoder, and 0 if it is anything else.
func knownAction(p []byte) action {
	switch string(p) {
	case `{"action":"plus"}`, `{"action": "plus"}`:
		return +1
	case `{"action":"minus"}`, `{"action": "minus"}`:
		return -1
	}
	return 0
}

func decodeJSON(p []byte) (action, *refusal) {
	// A map and not a struct: encoding/json matches a struct's fields whatever their
	// case, and the tutorial's server takes "action" alone.
	var fields map[string]json.RawMessage
	if err := json.Unmarshal(p, &fields); err != nil {
		return 0, refusedJSON
	}
	raw := fields["action"]
	if len(raw) == 0 || raw[0] != '"' { // null would decode into a string, too
		return 0, refusedJSON
	}
	var name string
	if err := json.Unmarshal(raw, &name); err != nil {
		return 0, refusedJSON
	}
	switch name {
	case "plus":
		return +1, nil
	case "minus":
		return -1, nil
	}
	return 0, refusedAction
}

// appendUsers appends the message that tells how many clients there are, and does not allocate
// if dst has room.
func appendUsers(dst []byte, count int) []byte {
	dst = append(dst, `{"type":"users","count":`...)
	dst = strconv.AppendInt(dst, int64(count), 10)
	return append(dst, '}')
}

// appendState appends the message that tells the value, likewise.
func appendState(dst []byte, value Value) []byte {
	dst = append(dst, `{"type":"state","value":`...)
	dst = AppendValue(dst, value)
	return append(dst, '}')
}
