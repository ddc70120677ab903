package load

import (
	"bytes"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
)

// Opcodes. https://www.rfc-editor.org/rfc/rfc6455#section-5.2
const (
	opText  = 0x1
	opClose = 0x8
	opPing  = 0x9
	opPong  = 0xA

	finBit  = 0x80
	maskBit = 0x80
)

// maxFrame bounds the payload of a server's frame. The longest message of the protocol is an
// error of about 100 bytes.
const maxFrame = 1024

// nextFrame returns the first frame of p. size is its length with the header, or 0 if p has
// only a part of it.
func nextFrame(p []byte) (opcode byte, payload []byte, size int, err error) {
	if len(p) < 2 {
		return 0, nil, 0, nil
	}
	head, n := 2, int(p[1]&0x7f)
	switch {
	case p[0]&finBit == 0 || p[0]&0x70 != 0:
		return 0, nil, 0, fmt.Errorf("frame header %#x: fragments and extensions are not supported", p[0])
	case p[1]&maskBit != 0:
		// "A server MUST NOT mask any frames that it sends to the client."
		// https://www.rfc-editor.org/rfc/rfc6455#section-5.1
		return 0, nil, 0, errors.New("the server masked a frame")
	case n == 126:
		if len(p) < 4 {
			return 0, nil, 0, nil
		}
		head, n = 4, int(binary.BigEndian.Uint16(p[2:]))
	case n == 127:
		n = maxFrame + 1
	}
	if n > maxFrame {
		return 0, nil, 0, fmt.Errorf("a frame of more than %d bytes", maxFrame)
	}
	if len(p) < head+n {
		return 0, nil, 0, nil
	}
	return p[0] & 0xf, p[head : head+n], head + n, nil
}

// appendFrame appends a masked frame, as clients send it. payload has at most 125 bytes.
func appendFrame(dst []byte, opcode byte, payload []byte) []byte {
	var key [4]byte
	rand.Read(key[:]) // never fails
	dst = append(dst, finBit|opcode, maskBit|byte(len(payload)))
	dst = append(dst, key[:]...)
	for i, b := range payload {
		dst = append(dst, b^key[i%4])
	}
	return dst
}

// kind is the type of a server's message.
type kind byte

const (
	kindOther kind = iota
	kindUsers
	kindState
	kindError
)

// parseMessage returns the kind of a message, and its value or count if it has one. It does not
// allocate. It relies on the order of the fields; servers differ only in the spaces of their JSON.
func parseMessage(p []byte) (kind, int64) {
	_, rest, ok := bytes.Cut(p, []byte(`"type":`))
	if !ok {
		return kindOther, 0
	}
	k := kindOther
	switch rest = bytes.TrimLeft(rest, " "); {
	case bytes.HasPrefix(rest, []byte(`"state"`)):
		k = kindState
	case bytes.HasPrefix(rest, []byte(`"users"`)):
		k = kindUsers
	case bytes.HasPrefix(rest, []byte(`"error"`)):
		return kindError, 0
	default:
		return kindOther, 0
	}
	n, ok := parseInt(rest[bytes.LastIndexByte(rest, ':')+1:])
	if !ok {
		return kindOther, 0
	}
	return k, n
}

// parseInt parses an integer that ends at a closing brace or a space.
func parseInt(p []byte) (n int64, ok bool) {
	p = bytes.TrimLeft(p, " ")
	negative := len(p) > 0 && p[0] == '-'
	if negative {
		p = p[1:]
	}
	digits := 0
	for _, b := range p {
		switch {
		case b >= '0' && b <= '9' && digits < 18:
			n = n*10 + int64(b-'0')
			digits++
		case (b == '}' || b == ' ') && digits > 0:
			if negative {
				n = -n
			}
			return n, true
		default:
			return 0, false
		}
	}
	return 0, false
}
