package hub

import (
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strconv"

	"github.com/coder/websocket"
)

// This file replaces hub/message.go and turns the counter into a poll: clients share the votes for three
// options, and an action is a vote. docs/extend.md describes it under "Replacing the counter", and
// TestReplacingTheCounter builds and runs the hub with it.

// options are what clients can vote for.
var options = [...]string{"tea", "coffee", "water"}

// Value is the value that all clients share: the votes for each option. It is comparable. Each state
// message has the whole value.
type Value = [len(options)]int64

// Delta is the effect of a batch of actions: it is added to the value.
type Delta = Value

// An action is a vote for options[action-1]. 0 is no action.
type action int8

// MaxValue bounds the votes for an option.
const MaxValue = 1<<53 - 1

// ErrRange is the error of [Store.Apply] for a delta that would take the value out of its range. The
// value is then unchanged.
var ErrRange = errors.New("hub: an option has all the votes that it can have")

// after returns v after n times a. If n is negative, it returns what v was before -n times a.
func after(v Value, a action, n int) Value {
	v[a-1] += int64(n)
	return v
}

// room returns how many times a can be applied to v without leaving the range, at most n. v is within
// the range.
func room(v Value, a action, n int) int { return int(min(int64(n), MaxValue-v[a-1])) }

// sum returns v with d added. The result may be out of the range.
func sum(v Value, d Delta) Value {
	for i := range v {
		v[i] += d[i]
	}
	return v
}

// fits reports whether v with d added is within the range. v is within the range; d can be anything.
func fits(v Value, d Delta) bool {
	for i := range v {
		if d[i] > MaxValue-v[i] || d[i] < -v[i] {
			return false
		}
	}
	return true
}

// AppendValue appends v as JSON without spaces and line breaks. Equal values have equal texts. Stores
// keep values in this form, too. The text is at most 128 bytes long, since recentValues of them
// are written at once and have to fit in maxTail.
func AppendValue(dst []byte, v Value) []byte {
	for i, n := range v {
		dst = strconv.AppendInt(append(dst, "[,"[min(i, 1)]), n, 10)
	}
	return append(dst, ']')
}

// ParseValue parses the text that AppendValue makes. It returns [ErrRange] for a value that is out of the
// range.
func ParseValue(s string) (v Value, err error) {
	var votes []int64
	if err := json.Unmarshal([]byte(s), &votes); err != nil || len(votes) != len(v) {
		return v, fmt.Errorf("%q are not votes for %d options", s, len(v))
	}
	copy(v[:], votes)
	if !fits(Value{}, v) {
		return Value{}, ErrRange
	}
	return v, nil
}

// MaxMessage is the length of the longest message that a client may send, in bytes. An action takes 39;
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
	refusedJSON   = newRefusal("bad_message", `Send a JSON object with a string "action", such as {"action":"vote","option":"tea"}.`)
	refusedAction = newRefusal("unknown_action", `Vote for "tea", "coffee" or "water".`)
	refusedBinary = newRefusal("binary_message", "Send text messages, not binary ones.")
	refusedRate   = newRefusal("rate_limited", "Too many votes at once: this one was not counted.")
	refusedRange  = newRefusal("out_of_range", "That option has all the votes that it can have: this one was not counted.")
	refusedStore  = newRefusal("store_unavailable", "Votes cannot be stored right now: this one was not counted.")

	refusedCounter = newRefusal("unknown_counter", `Name one of this connection's counters in "counter".`)
	refusedMaking  = newRefusal("making_limited", "Too many new counters from your address: this action was not counted.")
	refusedFull    = newRefusal("too_many_counters", "There is no room for another counter: this action was not counted.")

	// Not final: the store was given the action and has not answered yet. A state follows that
	// includes the action, or refusedRange or refusedStore.
	undecided = newRefusal("store_undecided", "The store has not answered yet. This vote counts when it does, or another error follows.")
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
	shortestKnown = len(`{"action":"vote","option":"tea"}`)
	longestKnown  = len(`{"action": "vote", "option": "coffee"}`)
)

// knownAction returns the action in p if p is exactly what JSON.stringify or Python's json.dumps makes of
// it, which needs no decoder. Otherwise it returns 0.
func knownAction(p []byte) action {
	switch string(p) {
	case `{"action":"vote","option":"tea"}`, `{"action": "vote", "option": "tea"}`:
		return 1
	case `{"action":"vote","option":"coffee"}`, `{"action": "vote", "option": "coffee"}`:
		return 2
	case `{"action":"vote","option":"water"}`, `{"action": "vote", "option": "water"}`:
		return 3
	}
	return 0
}

// decodeJSON is decode for any JSON text.
func decodeJSON(p []byte) (action, *refusal) {
	var fields map[string]any
	if err := json.Unmarshal(p, &fields); err != nil {
		return 0, refusedJSON
	}
	name, ok := fields["action"].(string)
	if !ok {
		return 0, refusedJSON
	}
	option, _ := fields["option"].(string)
	if i := slices.Index(options[:], option); name == "vote" && i >= 0 {
		return action(i + 1), nil
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
