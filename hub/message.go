package hub

import (
	"encoding/json"
	"errors"
	"fmt"
	"strconv"

	"github.com/coder/websocket"
)

// This file has everything that the hub knows about the counter: its value, the actions on it, and the
// messages. docs/extend.md describes how to replace it.

// Value is the value that all clients share. It is comparable. Each state message has the whole value.
type Value = int64

// Delta is the effect of a batch of actions: it is added to the value.
type Delta = Value

// An action is +1 for plus or -1 for minus. 0 is no action.
type action int8

// MaxValue bounds the counter. The value stays within ±MaxValue, the integers that a browser represents
// exactly (ECMA-262, Number.MAX_SAFE_INTEGER).
const MaxValue = 1<<53 - 1

// ErrRange is the error of [Store.Apply] for a delta that would take the value out of ±[MaxValue]. The
// value is then unchanged.
var ErrRange = errors.New("hub: the counter is at its limit")

// after returns v after n times a. If n is negative, it returns what v was before -n times a.
func after(v Value, a action, n int) Value { return v + int64(a)*int64(n) }

// room returns how many times a can be applied to v without leaving the range, at most n. v is within
// the range.
func room(v Value, a action, n int) int { return int(min(int64(n), MaxValue-int64(a)*v)) }

// sum returns v with d added. The result may be out of the range.
func sum(v Value, d Delta) Value { return v + d }

// fits reports whether v with d added is within the range. v is within the range; d can be anything.
func fits(v Value, d Delta) bool { return d <= MaxValue-v && d >= -MaxValue-v }

// AppendValue appends v as JSON without spaces and line breaks. Equal values have equal texts. Stores
// keep values in this form, too. The text is at most 128 bytes long, since recentValues of them
// are written at once and have to fit in maxTail.
func AppendValue(dst []byte, v Value) []byte { return strconv.AppendInt(dst, v, 10) }

// ParseValue parses the text that AppendValue makes. It returns [ErrRange] for a value that is out of the
// range.
func ParseValue(s string) (Value, error) {
	v, err := strconv.ParseInt(s, 10, 64)
	switch {
	case errors.Is(err, strconv.ErrRange), v > MaxValue, v < -MaxValue:
		return 0, ErrRange
	case err != nil:
		return 0, fmt.Errorf("%q is not a counter value", s)
	}
	return v, nil
}

// MaxMessage is the length of the longest message that a client may send, in bytes. An action takes 18;
// the rest is room for fields that are ignored. A longer message closes the connection with
// status code 1009.
const MaxMessage = 512

// A refusal says why a message changed nothing. Only the sender of that message is told.
type refusal struct {
	code    string // for programs, and a label in metrics
	message []byte // the error message
	frame   []byte // the frame with it
	index   int    // in refusals
}

// refusals lists all refusals. A client that has several kinds of them pending is sent them in this order.
var refusals = [...]*refusal{refusedJSON, refusedAction, refusedBinary, refusedCounter, refusedRate, refusedMaking, refusedFull, undecided, refusedStore, refusedRange}

func init() {
	for i, r := range refusals {
		r.index = i
	}
}

// newRefusal returns a refusal with a code for programs and a message for people.
func newRefusal(code, message string) *refusal {
	payload, err := json.Marshal(struct {
		Type    string `json:"type"`
		Code    string `json:"code"`
		Message string `json:"message"`
	}{"error", code, message})
	if err != nil {
		panic(err) // three strings always marshal
	}
	return &refusal{code: code, message: payload, frame: appendFrame(nil, opText, payload)}
}

var (
	refusedJSON   = newRefusal("bad_message", `Send a JSON object with a string "action", such as {"action":"plus"}.`)
	refusedAction = newRefusal("unknown_action", `The actions are "plus" and "minus".`)
	refusedBinary = newRefusal("binary_message", "Send text messages, not binary ones.")
	refusedRate   = newRefusal("rate_limited", "Too many actions at once: this one was not counted.")
	refusedRange  = newRefusal("out_of_range", "The counter is at its limit: this action was not counted.")
	refusedStore  = newRefusal("store_unavailable", "The counter cannot be changed right now: this action was not counted.")

	refusedCounter = newRefusal("unknown_counter", `Name one of this connection's counters in "counter".`)
	refusedMaking  = newRefusal("making_limited", "Too many new counters from your address: this action was not counted.")
	refusedFull    = newRefusal("too_many_counters", "There is no room for another counter: this action was not counted.")

	// Not final: the store was given the action and has not answered yet. A state follows that
	// includes the action, or refusedRange or refusedStore.
	undecided = newRefusal("store_undecided", "The counter's store has not answered yet. This action counts when it does, or another error follows.")
)

// notAnAction reports whether the message was none of the protocol's actions. A correct client never sends
// such a message; a client that sends too many too fast is closed.
func (r *refusal) notAnAction() bool {
	return r == refusedJSON || r == refusedAction || r == refusedBinary
}

// decode returns the action in a message from a client, or why the message is refused. It does not
// keep p.
func decode(typ websocket.MessageType, p []byte) (action, *refusal) {
	if typ != websocket.MessageText {
		return 0, refusedBinary
	}
	if a := knownAction(p); a != 0 {
		return a, nil
	}
	return decodeJSON(p)
}

// The lengths of the shortest and the longest text that knownAction knows.
const (
	shortestKnown = len(`{"action":"plus"}`)
	longestKnown  = len(`{"action": "minus"}`)
)

// knownAction returns the action in p if p is exactly what JSON.stringify or Python's json.dumps makes of
// it, which needs no decoder. Otherwise it returns 0.
func knownAction(p []byte) action {
	switch string(p) {
	case `{"action":"plus"}`, `{"action": "plus"}`:
		return +1
	case `{"action":"minus"}`, `{"action": "minus"}`:
		return -1
	}
	return 0
}

// decodeJSON is decode for any JSON text.
func decodeJSON(p []byte) (action, *refusal) {
	// fields is a map, since encoding/json ignores case when it decodes to a struct. The
	// tutorial's server accepts only "action".
	var fields map[string]json.RawMessage
	if err := json.Unmarshal(p, &fields); err != nil {
		return 0, refusedJSON
	}
	raw := fields["action"]
	if len(raw) == 0 || raw[0] != '"' { // null would also decode to a string
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

// appendUsers appends the message with the number of users. It does not allocate if dst has room.
func appendUsers(dst []byte, count int) []byte {
	dst = append(dst, `{"type":"users","count":`...)
	dst = strconv.AppendInt(dst, int64(count), 10)
	return append(dst, '}')
}

// appendState appends the message with the value. It does not allocate if dst has room.
func appendState(dst []byte, value Value) []byte {
	dst = append(dst, `{"type":"state","value":`...)
	dst = AppendValue(dst, value)
	return append(dst, '}')
}
