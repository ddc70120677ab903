package hub

import (
	"encoding/binary"
	"fmt"
	"math"
	"time"
	"unicode/utf8"

	"github.com/coder/websocket"
)

// frameChecker checks the frames of a client before the WebSocket library reads them. It does what the
// library does not:
//
//   - It finds everything that RFC 6455 forbids. The library accepts lengths that are not in their
//     shortest form and close reasons that are not UTF-8, and answers some errors without a status
//     code.
//   - It limits the number of frames in a message, and of control frames.
//
// The library then gets only valid frames, unmasks and assembles them, and answers control frames.
// The client's serve owns the frameChecker.
type frameChecker struct {
	head   [maxFrameHead]byte // the header of the current frame
	have   uint8              // bytes in head; 0 between frames and within a payload
	open   bool               // a message has begun, and its final frame has not
	done   bool               // a close frame is complete: the library reads nothing after it
	count  uint8              // frames of the message
	size   uint16             // bytes of the message
	excess excessCounter
	rest   uint32  // bytes of the payload that are still to come
	last   *ending // nil until a close frame or an error ends the connection, to save memory
}

// ending is what a frameChecker needs only at the end of a connection.
type ending struct {
	failure error // why no more bytes are accepted, or nil

	// The payload of a close frame: its size, and the bytes that have arrived.
	size, have int
	payload    [maxShortPayload]byte
}

const (
	// maxFrameHead is the size of the longest frame header, with 64 bits of length and a masking
	// key.
	maxFrameHead = 2 + 8 + maskSize

	// maxFragments bounds the frames of a message. Empty fragments are permitted, so without this
	// bound one message could go on forever. 512 bytes in frames of 8 bytes do not exceed it.
	maxFragments = 64

	opContinuation = 0x0
	opBinary       = 0x2
	controlBit     = 0x8
	rsvBits        = 0x70
)

// check checks p, the next bytes from the client. It returns how many bytes of p the library may read.
// An error means that the connection has to end. If the error comes with all of p, the frames are
// valid but too many or too large. Otherwise check accepts neither the byte at n nor any
// later byte, and failed returns the error.
func (f *frameChecker) check(p []byte) (n int, err error) {
	if err := f.failed(); err != nil {
		return 0, err
	}
	if n, err = f.pass(p); n < len(p) {
		f.fail(err)
	}
	return n, err
}

// failed returns why no more bytes are accepted, or nil if they are.
func (f *frameChecker) failed() error {
	if f.last == nil {
		return nil
	}
	return f.last.failure
}

// fail makes check accept no more bytes, because of err.
func (f *frameChecker) fail(err error) {
	if f.last == nil {
		f.last = new(ending)
	}
	f.last.failure = err
}

// pass does the work of check, but does not record a failure.
func (f *frameChecker) pass(p []byte) (n int, err error) {
	for n < len(p) && !f.done {
		if f.rest > 0 {
			m := min(len(p)-n, int(f.rest))
			if f.last != nil {
				f.last.have += copy(f.last.payload[f.last.have:], p[n:n+m])
				if f.last.have == f.last.size {
					if err := f.checkClose(); err != nil {
						return n + m - 1, err // without its last byte the library does not handle the frame
					}
					f.done = true
				}
			}
			n += m
			f.rest -= uint32(m)
			continue
		}
		f.head[f.have] = p[n]
		f.have++
		size, forbidden := f.headSize()
		if forbidden != nil {
			return n, forbidden
		}
		if int(f.have) == size {
			f.have = 0
			excessive, forbidden := f.begin(size)
			if forbidden != nil {
				return n, forbidden
			}
			if err == nil {
				err = excessive
			}
		}
		n++
	}
	return len(p), err
}

// headSize returns the size of the frame header that begins with f.head[:f.have]. It
// returns 2 while only one byte is there, since the second byte determines the size. If the bytes
// violate the protocol, it returns an error.
// https://www.rfc-editor.org/rfc/rfc6455#section-5.2
func (f *frameChecker) headSize() (int, error) {
	opcode, control := f.head[0]&0xf, f.head[0]&controlBit != 0
	switch {
	case f.head[0]&rsvBits != 0:
		// "MUST be 0 unless an extension is negotiated that defines meanings for non-zero values."
		return 0, protocolError("a reserved bit is set")
	case opcode > opBinary && opcode < opClose || opcode > opPong:
		// "If an unknown opcode is received, the receiving endpoint MUST _Fail the WebSocket
		// Connection_."
		return 0, protocolError("the opcode is reserved")
	case control && f.head[0]&finBit == 0:
		// "All control frames MUST have a payload length of 125 bytes or less and MUST NOT be
		// fragmented." https://www.rfc-editor.org/rfc/rfc6455#section-5.5
		return 0, protocolError("a control frame is fragmented")
	case opcode == opContinuation && !f.open:
		return 0, protocolError("a message begins with a continuation frame")
	case !control && opcode != opContinuation && f.open:
		// "The fragments of one message MUST NOT be interleaved between the fragments of
		// another message". https://www.rfc-editor.org/rfc/rfc6455#section-5.4
		return 0, protocolError("a message begins within another one")
	case f.have < 2:
		return 2, nil
	case f.head[1]&maskBit == 0:
		// "The server MUST close the connection upon receiving a frame that is not masked. In
		// this case, a server MAY send a Close frame with a status code of 1002".
		// https://www.rfc-editor.org/rfc/rfc6455#section-5.1
		return 0, protocolError("a frame is not masked")
	}
	length := f.head[1] &^ maskBit
	switch {
	case control && length > maxShortPayload:
		return 0, protocolError("a control frame is longer than 125 bytes")
	case opcode == opClose && length == 1:
		// "If there is a body, the first two bytes of the body MUST be a 2-byte unsigned integer".
		// https://www.rfc-editor.org/rfc/rfc6455#section-5.5.1
		return 0, protocolError("a close frame holds half a status code")
	case length == 126:
		return 2 + 2 + maskSize, nil
	case length == 127:
		if f.have > 2 && f.head[2]&0x80 != 0 {
			// "the most significant bit MUST be 0"
			return 0, protocolError("a length has its most significant bit set")
		}
		return 2 + 8 + maskSize, nil
	}
	return 2 + maskSize, nil
}

// begin begins the frame with the header f.head[:size]. excessive says which limit the frame exceeds, and
// forbidden what is wrong with the header.
func (f *frameChecker) begin(size int) (excessive, forbidden error) {
	opcode, control := f.head[0]&0xf, f.head[0]&controlBit != 0
	// "Note that in all cases, the minimal number of bytes MUST be used to encode the length"
	length := uint64(f.head[1] &^ maskBit)
	switch length {
	case 126:
		if length = uint64(binary.BigEndian.Uint16(f.head[2:])); length <= maxShortPayload {
			return nil, protocolError("a length is not in its shortest form")
		}
	case 127:
		if length = binary.BigEndian.Uint64(f.head[2:]); length <= math.MaxUint16 {
			return nil, protocolError("a length is not in its shortest form")
		}
	}
	if length > math.MaxInt32 {
		return nil, errTooBig // treated as forbidden, so that the payload is not read
	}
	f.rest = uint32(length)
	switch {
	case opcode == opClose:
		f.last = &ending{size: int(f.rest)}
		f.done = f.rest == 0
		copy(f.head[:maskSize], f.head[size-maskSize:size])
		return nil, nil
	case control:
		return f.excess.add(time.Now()), nil
	case opcode != opContinuation:
		f.count, f.size = 0, 0
	}
	f.open = f.head[0]&finBit == 0
	f.count++
	if f.count > maxFragments {
		f.count = 0 // report it once
		return closeError{ReasonFragments, "a message is in too many fragments"}, nil
	}
	if uint32(f.size)+f.rest > MaxMessage {
		f.size = 0
		return errTooBig, nil
	}
	f.size += uint16(f.rest)
	return nil, nil
}

// checkClose checks the payload of a close frame. f.head begins with its masking key.
// https://www.rfc-editor.org/rfc/rfc6455#section-7.4
func (f *frameChecker) checkClose() error {
	p := f.last.payload[:f.last.size]
	for i := range p {
		p[i] ^= f.head[i%maskSize]
	}
	if code := websocket.StatusCode(binary.BigEndian.Uint16(p)); !sendable(code) {
		return protocolError("a close frame has a status code that must not be sent")
	}
	// "Following the 2-byte integer, the body MAY contain UTF-8-encoded data". As in messages,
	// data that is not UTF-8 fails the connection.
	// https://www.rfc-editor.org/rfc/rfc6455#section-5.5.1 and #section-8.1
	if !utf8.Valid(p[2:]) {
		return closeError{ReasonNotUTF8, "the reason of a close frame is not UTF-8"}
	}
	return nil
}

// sendable reports whether a close frame may have the code: it is registered for close frames, or from
// 3000 to 4999. https://www.rfc-editor.org/rfc/rfc6455#section-7.4.2 and
// https://www.iana.org/assignments/websocket/websocket.xhtml#close-code-number
func sendable(code websocket.StatusCode) bool {
	switch code {
	case 1004, websocket.StatusNoStatusRcvd, websocket.StatusAbnormalClosure, websocket.StatusTLSHandshake:
		return false
	}
	return websocket.StatusNormalClosure <= code && code <= websocket.StatusBadGateway || 3000 <= code && code <= 4999
}

var errTooBig = closeError{ReasonTooBig, fmt.Sprintf("a message is longer than %d bytes", MaxMessage)}

// protocolError returns a closeError for a frame that violates RFC 6455.
func protocolError(text string) error { return closeError{ReasonProtocol, text} }

// excessCounter counts what a client may send only rarely: control frames, and messages that are refused.
// The zero value is ready to use.
type excessCounter struct {
	since uint32 // start of the present period of excessTime, in seconds since 1970
	count uint16 // how many there were in it
}

const (
	// maxExcess is how many of them a client may send in excessTime. Libraries send less than a
	// tenth as many pings, and 100 refused clicks a second stay within it, too. Each costs about
	// 10 µs, since it is answered. So a client can cost a thousandth of a processor.
	maxExcess  = 1000
	excessTime = 10 * time.Second
)

// add counts one more, and returns a closeError if there are more than maxExcess.
func (e *excessCounter) add(now time.Time) error {
	if t := uint32(now.Unix()); t-e.since >= uint32(excessTime/time.Second) {
		*e = excessCounter{since: t}
	}
	if e.count++; e.count > maxExcess {
		e.count = maxExcess // must not overflow
		return closeError{ReasonFlood, "too many control frames and refused messages"}
	}
	return nil
}
