package hub

import (
	"encoding/binary"

	"github.com/coder/websocket"
)

// A messageEncoding is the form in which a client is sent messages. A shard encodes each message once
// for all of its clients with the same encoding.
type messageEncoding uint8

const (
	inFrames      messageEncoding = iota // a message is a text frame of a WebSocket
	inStream                             // a message is an event of an event stream
	inNamedFrames                        // as inFrames; each message names its counter
	encodings                            // the number of encodings
)

// appendOf is append for a message about the counter called name.
func (e messageEncoding) appendOf(dst, message []byte, name string) []byte {
	if e != inNamedFrames {
		return e.append(dst, message)
	}
	return e.append(dst, appendNamed(make([]byte, 0, len(message)+len(name)+len(`"counter":"",`)), message, name))
}

// appendNamed appends message, a JSON object with at least one field, with the name of its counter as its first field.
func appendNamed(dst, message []byte, name string) []byte {
	dst = append(append(dst, `{"counter":"`...), name...) // no character of a name needs an escape
	dst = append(dst, `",`...)
	return append(dst, message[1:]...)
}

// append appends the encoded message, which has at most 65,535 bytes. It does not allocate if dst has
// room.
func (e messageEncoding) append(dst, message []byte) []byte {
	if e == inStream {
		return appendEvent(dst, message)
	}
	return appendFrame(dst, opText, message)
}

// The opcodes of the frames that the hub writes itself.
// https://www.rfc-editor.org/rfc/rfc6455#section-5.2
const (
	opText  = 0x1
	opClose = 0x8
	opPing  = 0x9
	opPong  = 0xA

	finBit  = 0x80
	maskBit = 0x80
)

// maxShortPayload is the longest payload whose length fits the second byte of a frame header. It is
// also the longest payload of a control frame.
// https://www.rfc-editor.org/rfc/rfc6455#section-5.2
const maxShortPayload = 125

// pingFrame is a ping without application data.
var pingFrame = []byte{finBit | opPing, 0}

// appendFrame appends a final frame with the given payload of at most 65,535 bytes.
//
// "A server MUST NOT mask any frames that it sends to the client."
// https://www.rfc-editor.org/rfc/rfc6455#section-5.1
func appendFrame(dst []byte, opcode byte, payload []byte) []byte {
	dst = append(dst, finBit|opcode)
	if len(payload) <= maxShortPayload {
		dst = append(dst, byte(len(payload)))
	} else {
		dst = binary.BigEndian.AppendUint16(append(dst, 126), uint16(len(payload)))
	}
	return append(dst, payload...)
}

// appendClose appends a close frame. reason is at most 123 bytes of UTF-8.
// https://www.rfc-editor.org/rfc/rfc6455#section-5.5.1
func appendClose(dst []byte, code websocket.StatusCode, reason string) []byte {
	payload := binary.BigEndian.AppendUint16(make([]byte, 0, maxShortPayload), uint16(code))
	return appendFrame(dst, opClose, append(payload, reason...))
}

// encodedState is the messages of a publishedState in one encoding. shard.run owns it.
type encodedState struct {
	edition uint64            // the shard's at the last call of encode
	users   []byte            // the users message with the announced number
	states  []byte            // a state message for each recent value, oldest first
	offsets [recentValues]int // where each of them begins
}

// encode makes b the messages of p, the state of the counter called name, in the encoding e. It keeps its buffers, and scratch, for the next
// call.
func (b *encodedState) encode(e messageEncoding, name string, p *publishedState, scratch *[]byte) {
	*scratch = appendUsers((*scratch)[:0], p.announced)
	b.users = e.appendOf(b.users[:0], *scratch, name)
	b.states = b.states[:0]
	for i, v := range p.recent {
		b.offsets[i] = len(b.states)
		*scratch = appendState((*scratch)[:0], v)
		b.states = e.appendOf(b.states, *scratch, name)
	}
}
