package hub

import (
	"encoding/json"
	"strconv"

	"github.com/coder/websocket"
)

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

// rubbish reports whether the message was none that a client should ever send, so
// that one who goes on sending such is closed.
func (r *refusal) rubbish() bool {
	return r == refusedJSON || r == refusedAction || r == refusedBinary
}

// decode returns what a message from a client asks for, +1 or -1, or why it is
// refused. It does not keep p.
func decode(typ websocket.MessageType, p []byte) (int8, *refusal) {
	if typ != websocket.MessageText {
		return 0, refusedBinary
	}
	if delta := knownAction(p); delta != 0 {
		return delta, nil
	}
	return decodeJSON(p)
}

// knownAction returns +1 or -1 if p is an action in the very bytes that JSON.stringify or
// Python's json.dumps make, which need no decoder, and 0 if it is anything else.
func knownAction(p []byte) int8 {
	switch string(p) {
	case `{"action":"plus"}`, `{"action": "plus"}`:
		return +1
	case `{"action":"minus"}`, `{"action": "minus"}`:
		return -1
	}
	return 0
}

func decodeJSON(p []byte) (int8, *refusal) {
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
	var action string
	if err := json.Unmarshal(raw, &action); err != nil {
		return 0, refusedJSON
	}
	switch action {
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
func appendState(dst []byte, value int64) []byte {
	dst = append(dst, `{"type":"state","value":`...)
	dst = strconv.AppendInt(dst, value, 10)
	return append(dst, '}')
}
