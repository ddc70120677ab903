package hub

import (
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strconv"

	"github.com/coder/websocket"
)

// This file takes the place of hub/message.go and makes a poll of the counter: clients share the
// votes for three options, and an action is a vote. docs/extend.md walks through it under "Replacing
// the counter", and TestReplacingTheCounter builds and runs the hub with it.

// options are what there is to choose from.
var options = [...]string{"tea", "coffee", "water"}

// Value is what clients share: the votes for each option. It is comparable, and all of it is in
// each state message.
type Value = [len(options)]int64

// Delta is what a batch of actions does to a value: it is added to it.
type Delta = Value

// An action is a vote: for options[action-1]. 0 is none.
type action int8

// MaxValue bounds the votes for an option.
const MaxValue = 1<<53 - 1

// ErrRange is what [Store.Apply] returns, changing nothing, for a delta that would
// take the value out of its range.
var ErrRange = errors.New("hub: an option has all the votes that it can have")

// after returns what v is after a was done n times; after -n times, what it was before.
func after(v Value, a action, n int) Value {
	v[a-1] += int64(n)
	return v
}

// room returns how many of n times a can be done to v before it leaves the range. v is within.
func room(v Value, a action, n int) int { return int(min(int64(n), MaxValue-v[a-1])) }

// sum returns v with d added. The result may be out of range.
func sum(v Value, d Delta) Value {
	for i := range v {
		v[i] += d[i]
	}
	return v
}

// fits reports whether v, which is within the range, is so with d added, whatever d is.
func fits(v Value, d Delta) bool {
	for i := range v {
		if d[i] > MaxValue-v[i] || d[i] < -v[i] {
			return false
		}
	}
	return true
}

// AppendValue appends v as JSON without spaces and line breaks, of which there is one for each
// value. Stores keep values so, too. It is at most 128 bytes long: recentValues of them are
// written at once, and what is kept for a client (maxTail) has to have room for that.
func AppendValue(dst []byte, v Value) []byte {
	for i, n := range v {
		dst = strconv.AppendInt(append(dst, "[,"[min(i, 1)]), n, 10)
	}
	return append(dst, ']')
}

// ParseValue understands what AppendValue has written. It returns [ErrRange] for what is a
// value but out of range.
func ParseValue(s string) (v Value, err error) {
	var votes []int64
	if err := json.Unmarshal([]byte(s), &votes); err != nil || len(votes) != len(v) {
		return v, fmt.Errorf("%q are no votes for %d options", s, len(v))
	}
	copy(v[:], votes)
	if !fits(Value{}, v) {
		return Value{}, ErrRange
	}
	return v, nil
}

// MaxMessage is the longest message that a client may send, in bytes. An action
// takes 39; the rest is room for fields that are ignored. A longer message closes
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
	refusedJSON   = newRefusal("bad_message", `Send a JSON object with a string "action", such as {"action":"vote","option":"tea"}.`)
	refusedAction = newRefusal("unknown_action", `Vote for "tea", "coffee" or "water".`)
	refusedBinary = newRefusal("binary_message", "Send text messages, not binary ones.")
	refusedRate   = newRefusal("rate_limited", "Too many votes at once: this one was not counted.")
	refusedRange  = newRefusal("out_of_range", "That option has all the votes that it can have: this one was not counted.")
	refusedStore  = newRefusal("store_unavailable", "Votes cannot be stored right now: this one was not counted.")

	// Not the last word: the store was given the action and has not answered. It is followed by
	// the state, or by one of the two above.
	undecided = newRefusal("store_undecided", "The store does not answer: this vote counts when it does, or another error follows.")
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
	shortestKnown = len(`{"action":"vote","option":"tea"}`)
	longestKnown  = len(`{"action": "vote", "option": "coffee"}`)
)

// knownAction returns the action that p is in the very bytes that JSON.stringify or
// Python's json.dumps make, which need no decoder, and 0 if it is anything else.
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
