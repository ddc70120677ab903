package hub

import "testing"

func TestEncodings(t *testing.T) {
	users, state := appendUsers(nil, 3), appendState(nil, -MaxValue)
	for _, tt := range []struct {
		name string
		got  []byte
		want string
	}{
		{"frame", inFrames.append(nil, users), "\x81\x1a" + `{"type":"users","count":3}`},
		{"appended", inFrames.append(inFrames.append(nil, users), state), "\x81\x1a" + `{"type":"users","count":3}` + "\x81\x2a" + `{"type":"state","value":-9007199254740991}`},
		{"close", appendClose(nil, 1001, "bye"), "\x88\x05\x03\xe9bye"},
		{"ping", pingFrame, "\x89\x00"},
		// The length of a payload over 125 bytes is in two more bytes.
		// https://www.rfc-editor.org/rfc/rfc6455#section-5.2
		{"126 bytes", appendFrame(nil, opText, make([]byte, 126)), "\x81\x7e\x00\x7e" + string(make([]byte, 126))},

		// An event is "data: ", the message, and a blank line.
		// https://html.spec.whatwg.org/multipage/server-sent-events.html#event-stream-interpretation
		{"event", inStream.append(nil, users), `data: {"type":"users","count":3}` + "\n\n"},
		{"events", inStream.append(inStream.append(nil, users), state), `data: {"type":"users","count":3}` + "\n\n" + `data: {"type":"state","value":-9007199254740991}` + "\n\n"},
	} {
		if string(tt.got) != tt.want {
			t.Errorf("%s: %q, want %q", tt.name, tt.got, tt.want)
		}
	}
}
