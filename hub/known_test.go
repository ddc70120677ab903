package hub

import (
	"testing"
	"testing/synctest"

	"github.com/coder/websocket"
)

// FuzzKnownFrame compares knownFrame with decode, and its results for a frame with those for the frame's first
// bytes.
func FuzzKnownFrame(f *testing.F) {
	masked := func(opcode byte, key [4]byte, text string) []byte {
		frame := append([]byte{finBit | opcode, maskBit | byte(len(text))}, key[:]...)
		for i := range len(text) {
			frame = append(frame, text[i]^key[i%4])
		}
		return frame
	}
	for _, key := range [][4]byte{{}, {1, 2, 3, 4}, {0xff, 0, 0x80, 0x7f}} {
		for _, text := range []string{"", plus, minus, `{"action": "plus"}`, `{"action": "minus"}`, `{"action":"times"}`} {
			f.Add(masked(opText, key, text))
			f.Add(masked(opPong, key, text))
		}
	}
	f.Add([]byte{finBit | opText, 17})
	f.Add([]byte{opText, maskBit | 17})
	f.Fuzz(func(t *testing.T, p []byte) {
		size, delta := knownFrame(p)
		// A result for the first bytes holds for the whole frame, too.
		for n := range p {
			part, d := knownFrame(p[:n])
			if d != 0 && n < part {
				t.Errorf("knownFrame(%x) = %d, %d: an action before the frame is complete", p[:n], part, d)
			}
			if part == 0 && size != 0 {
				t.Errorf("knownFrame(%x) = 0, but knownFrame(%x) is not", p[:n], p)
			}
		}
		if size == 0 || size > len(p) {
			return
		}
		// A known frame is complete and masked, and has the action that decode returns.
		if size != 6+int(p[1]&0x7f) || p[1]&0x80 == 0 {
			t.Fatalf("knownFrame(%x) = %d, %d: not the size of a masked frame", p, size, delta)
		}
		text := make([]byte, size-6)
		for i := range text {
			text[i] = p[6+i] ^ p[2+i%4]
		}
		switch p[0] {
		case 0x8a:
			if len(text) != 0 || delta != 0 {
				t.Errorf("knownFrame(%x) = %d, %d, want 0: a pong with a payload", p, size, delta)
			}
		case 0x81:
			if d, refused := decode(websocket.MessageText, text); refused != nil || d != delta || delta == 0 {
				t.Errorf("knownFrame(%x) = %d, %d, but decode(%q) = %d, %v", p, size, delta, text, d, refused)
			}
		default:
			t.Errorf("knownFrame(%x) = %d, %d: neither a pong nor a text message", p, size, delta)
		}
	})
}

// TestKnownAndOtherFrames checks that a mixture of known and other frames has the same effect in whatever
// pieces it arrives.
func TestKnownAndOtherFrames(t *testing.T) {
	stream := maskedFrame(plus)
	stream = append(stream, maskedFrame(`{"action":"plus","by":10}`)...) // goes to the library
	stream = append(stream, finBit|opPong, maskBit, 1, 2, 3, 4)
	stream = append(stream, maskedFrame(minus)...)
	stream = append(stream, maskedFrame(`{"action":"times"}`)...) // as long as a known frame
	stream = append(stream, finBit|opPong, maskBit|1, 0, 0, 0, 0, 'x')
	stream = append(stream, opText, maskBit|4, 0, 0, 0, 0, '{', '"', 'a', 'c') // a message in fragments,
	stream = append(stream, finBit|opPong, maskBit, 1, 2, 3, 4)                // with a pong between them
	rest := maskedFrame(plus[4:])
	rest[0] = finBit
	stream = append(stream, rest...)
	stream = append(stream, maskedFrame(`{"action": "plus"}`)...)
	for _, piece := range []int{1, 2, 3, 7, 30, len(stream)} {
		synctest.Test(t, func(t *testing.T) {
			h := newFakeHub(t, Config{})
			defer h.stop()
			ws, conn := h.dial()
			p := &peer{t: t, ws: ws}
			go p.read()
			p.want("users 1", "state 0")
			for rest := stream; len(rest) > 0; {
				n := min(piece, len(rest))
				if _, err := conn.Write(rest[:n]); err != nil {
					t.Fatal(err)
				}
				rest = rest[n:]
				synctest.Wait()
			}
			got := p.take()
			want := map[string]int{"state 1": 2, "state 2": 2, "error unknown_action": 1, "state 3": 1}
			for _, m := range got {
				want[m]--
			}
			for m, n := range want {
				if n != 0 {
					t.Errorf("in pieces of %d bytes: received %q, where %q is missing %d times", piece, got, m, n)
				}
			}
		})
	}
}
