package hub

// Nearly all frames that clients send are known frames: one of four texts of an action (see
// knownAction), or the answer to a ping. The hub handles known frames itself, directly from the
// read buffer. All other frames go to the WebSocket library.
//
// This is faster, and it saves memory. The library reads about 1 KB deeper in the stack. There the
// decryption of a TLS record needs a little more than 4 KB, so the first pong would grow the
// stack of each client to 8 KB for good.

const (
	maskSize = 4 // of a masking key

	// The sizes of the frames of known actions.
	shortestKnownFrame = 2 + maskSize + shortestKnown
	longestKnownFrame  = 2 + maskSize + longestKnown

	// emptyPongSize is the size of the answer to pingFrame: "A Pong frame sent in
	// response to a Ping frame must have identical "Application data" as found in the message
	// body of the Ping frame being replied to."
	// https://www.rfc-editor.org/rfc/rfc6455#section-5.5.3
	emptyPongSize = 2 + maskSize
)

// knownFrame returns the size of the known frame at the beginning of p, and its action, or 0 for a pong.
// If p is too short to tell, it returns a size greater than len(p): the caller needs that many
// bytes. If the frame is not a known one, it returns the size 0.
func knownFrame(p []byte) (size int, a action) {
	if len(p) < 2 {
		return 2, 0
	}
	size = 2 + maskSize + int(p[1]&^maskBit)
	isAction := p[0] == finBit|opText && shortestKnownFrame <= size && size <= longestKnownFrame
	isPong := p[0] == finBit|opPong && size == emptyPongSize
	if p[1]&maskBit == 0 || !isAction && !isPong {
		return 0, 0
	}
	if isPong || len(p) < size {
		return size, 0
	}
	// "Octet i of the transformed data ("transformed-octet-i") is the XOR of octet i of the
	// original data ("original-octet-i") with octet at index i modulo 4 of the masking key"
	// https://www.rfc-editor.org/rfc/rfc6455#section-5.3
	var text [longestKnownFrame]byte
	mask, masked := p[2:2+maskSize], p[2+maskSize:size]
	for i, b := range masked {
		text[i] = b ^ mask[i%maskSize]
	}
	if a = knownAction(text[:len(masked)]); a == 0 {
		return 0, 0
	}
	return size, a
}

// readKnown reads and handles known frames until another frame begins, which is for the library. The
// next byte must be the first byte of a frame.
func (c *client) readKnown() error {
	in := c.wire.in
	for need := 2; need > 0; {
		if _, err := in.Peek(need); err != nil {
			return err
		}
		p, err := in.Peek(in.Buffered())
		if err != nil {
			return err
		}
		n := 0
		if n, need, err = c.takeKnown(p); err != nil {
			return err
		}
		if _, err := in.Discard(n); err != nil {
			return err
		}
	}
	return nil
}

// takeKnown handles the known frames at the beginning of p. Equal actions in a row go to the hub as one
// actionRun. takeKnown returns how many bytes of p it has handled, and how many bytes it needs to
// continue: 0 if the next frame is for the library. It returns a closeError if too many of the
// client's messages are refused.
func (c *client) takeKnown(p []byte) (n, need int, err error) {
	same := actionRun{from: c, of: c.first.counter}
	actions := uint64(0)
	for {
		size, a := knownFrame(p[n:])
		if a != 0 && c.encoding == inNamedFrames {
			size = 0 // an action without the name of its counter
		}
		if size == 0 || n+size > len(p) {
			if actions > 0 {
				c.owner.counts.received.Add(actions)
			}
			c.act(same)
			return n, size, nil
		}
		n += size
		if a != 0 {
			actions++
		}
		switch {
		case a == 0:
			// A pong. clientWire.Read has already set heard and counted it.
		case !c.allowed():
			if err := c.refuseAndCount(c, refusedRate); err != nil {
				c.act(same)
				return n, 0, err
			}
		case a == same.kind:
			same.count++
		default:
			c.act(same)
			same.kind, same.count = a, 1
		}
	}
}
