package hub

// Nearly all frames that clients send are one of five: a known action, or the answer to
// a ping. They are taken here, straight out of the buffer, and all others are left to
// the WebSocket library. That is not only quicker. The library reads some 1 KB deeper in
// the stack, and there the decryption of a record needs a little more than 4 KB: with
// its first pong the stack of each client would grow to 8 KB for good.

const (
	maskSize = 4

	// The sizes of the frames of known actions.
	shortestKnownFrame = 2 + maskSize + shortestKnown
	longestKnownFrame  = 2 + maskSize + longestKnown

	// emptyPongSize is the size of what a client answers to pingFrame: "A Pong frame sent in
	// response to a Ping frame must have identical "Application data" as found in the message
	// body of the Ping frame being replied to."
	// https://www.rfc-editor.org/rfc/rfc6455#section-5.5.3
	emptyPongSize = 2 + maskSize
)

// knownFrame looks at the frame that begins at p[0]. It returns its size, and the action
// that it is or 0 for a pong. A size greater than len(p) means: look again when p is so
// long. A size of 0 means that the frame is for the library.
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

// readKnown takes known frames, and waits for more, until a frame begins that is for the
// library. It is to be called where a frame begins.
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

// takeKnown takes the known frames at the beginning of p and passes their actions on, those
// of one kind together. It returns how many bytes it has taken, and how many it needs to
// go on: 0 if what comes then is for the library. The error is that the client is refused too
// often.
func (c *client) takeKnown(p []byte) (n, need int, err error) {
	same := actionRun{from: c}
	actions := uint64(0)
	for {
		size, a := knownFrame(p[n:])
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
			// A pong. That it came is all that it says, and Read has noted and counted that.
		case !c.allowed():
			if err := c.refuseAndCount(refusedRate); err != nil {
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
