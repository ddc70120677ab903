package hub

import (
	"encoding/binary"
	"fmt"
	"math"
	"time"
	"unicode/utf8"

	"github.com/coder/websocket"
)

// frameChecker looks at what a client sends, frame by frame, before the WebSocket library does. It
// finds what RFC 6455 forbids, of which the library lets some pass (lengths that are not in
// their shortest form, close reasons that are not UTF-8) and answers some without a status
// code; and it counts what nobody else does: frames in a message, and control frames. The
// library is left with frames that are right, to unmask, assemble and answer them.
type frameChecker struct {
	head   [maxFrameHead]byte // of the frame that begins
	have   uint8              // bytes in head; 0 between frames, and while a payload passes
	open   bool               // a message has begun, and its last frame has not come
	done   bool               // a close frame has come: the library ends, and looks at nothing more
	count  uint8              // frames of the message
	size   uint16             // bytes of the message
	excess excessCounter
	rest   uint32  // bytes of the payload that are to come
	last   *ending // nil until the connection ends: most clients are far from that
}

// ending is what there is to know when a connection ends.
type ending struct {
	failure error // why nothing that comes can be understood any more

	// The payload of a close frame: its size, and what has come of it.
	size, have int
	payload    [maxShortPayload]byte
}

const (
	// maxFrameHead is the size of the longest frame header: 64 bits of length, and a mask.
	maxFrameHead = 2 + 8 + maskSize

	// maxFragments bounds the frames of a message. Fragments of no bytes at all are
	// permitted, so that without it one message could go on forever. 512 bytes in frames of 8
	// are below it.
	maxFragments = 64

	opContinuation = 0x0
	opBinary       = 0x2
	controlBit     = 0x8
	rsvBits        = 0x70
)

// check looks at p, which comes next. It returns how many bytes of it may pass, and why the
// connection has to end, if it has to. If not all of p may pass, what follows cannot be
// understood, and failed says so from there on.
func (f *frameChecker) check(p []byte) (n int, err error) {
	if err := f.failed(); err != nil {
		return 0, err
	}
	if n, err = f.pass(p); n < len(p) {
		f.fail(err)
	}
	return n, err
}

// failed returns why nothing that comes can be understood any more, or nil.
func (f *frameChecker) failed() error {
	if f.last == nil {
		return nil
	}
	return f.last.failure
}

// fail makes err what failed returns.
func (f *frameChecker) fail(err error) {
	if f.last == nil {
		f.last = new(ending)
	}
	f.last.failure = err
}

func (f *frameChecker) pass(p []byte) (n int, err error) {
	for n < len(p) && !f.done {
		if f.rest > 0 {
			m := min(len(p)-n, int(f.rest))
			if f.last != nil {
				f.last.have += copy(f.last.payload[f.last.have:], p[n:n+m])
				if f.last.have == f.last.size {
					if err := f.checkClose(); err != nil {
						return n + m - 1, err // without its last byte the library sees no frame
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

// headSize returns the size of the frame header of which f.head[:f.have] is the beginning, as
// far as that can be told, or what is wrong with it.
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

// begin begins the frame whose header is f.head[:size]. It returns what the frame has too much
// of, and what is forbidden in it.
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
		return nil, errTooBig // nobody waits for the end of that
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
		f.count = 0 // once is enough
		return closeError{ReasonFragments, "a message is in too many fragments"}, nil
	}
	if uint32(f.size)+f.rest > MaxMessage {
		f.size = 0
		return errTooBig, nil
	}
	f.size += uint16(f.rest)
	return nil, nil
}

// checkClose checks the payload of a close frame, of which f.head begins with the mask.
// https://www.rfc-editor.org/rfc/rfc6455#section-7.4
func (f *frameChecker) checkClose() error {
	p := f.last.payload[:f.last.size]
	for i := range p {
		p[i] ^= f.head[i%maskSize]
	}
	if code := websocket.StatusCode(binary.BigEndian.Uint16(p)); !sendable(code) {
		return protocolError("the status code of a close frame is none that may be sent")
	}
	// "Following the 2-byte integer, the body MAY contain UTF-8-encoded data", and what is to be
	// that and is not fails the connection, too.
	// https://www.rfc-editor.org/rfc/rfc6455#section-5.5.1 and #section-8.1
	if !utf8.Valid(p[2:]) {
		return closeError{ReasonNotUTF8, "the reason of a close frame is not UTF-8"}
	}
	return nil
}

// sendable reports whether a close frame may have the code: one that is registered for that,
// or one of 3000 to 4999. https://www.rfc-editor.org/rfc/rfc6455#section-7.4.2 and
// https://www.iana.org/assignments/websocket/websocket.xhtml#close-code-number
func sendable(code websocket.StatusCode) bool {
	switch code {
	case 1004, websocket.StatusNoStatusRcvd, websocket.StatusAbnormalClosure, websocket.StatusTLSHandshake:
		return false
	}
	return websocket.StatusNormalClosure <= code && code <= websocket.StatusBadGateway || 3000 <= code && code <= 4999
}

var errTooBig = closeError{ReasonTooBig, fmt.Sprintf("a message is longer than %d bytes", MaxMessage)}

func protocolError(text string) error { return closeError{ReasonProtocol, text} }

// excessCounter counts what a client may send, and should send seldom: control frames, and messages
// that are refused. Its zero value has counted nothing.
type excessCounter struct {
	since uint32 // seconds since 1970
	count uint16
}

const (
	// maxExcess is how many there may be in excessTime. Ten times as many pings as any library
	// sends are below it, and so is a person whose mouse clicks 100 times a second. One costs
	// about 10 µs, since it is answered: a thousandth of a processor for each client.
	maxExcess  = 1000
	excessTime = 10 * time.Second
)

// add counts one more, and returns an error if that is too many.
func (e *excessCounter) add(now time.Time) error {
	if t := uint32(now.Unix()); t-e.since >= uint32(excessTime/time.Second) {
		*e = excessCounter{since: t}
	}
	if e.count++; e.count > maxExcess {
		e.count = maxExcess // and no overflow
		return closeError{ReasonFlood, "too many control frames and refused messages"}
	}
	return nil
}
