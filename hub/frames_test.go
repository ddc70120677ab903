package hub

import (
	"strings"
	"testing"
	"time"
)

// FuzzFrames checks that the result of check does not depend on the pieces in which bytes arrive.
func FuzzFrames(f *testing.F) {
	for _, seed := range [][]byte{
		sent(finBit|opText, plus),
		join(sent(opText, ""), sent(finBit|opPing, "x"), sent(finBit|opContinuation, plus), closing(1000, "bye")),
		closing(1000, "\xff"),
		closing(1005, ""),
		sent(finBit|opClose, "x"),
		join(sent(finBit|opText, strings.Repeat("x", MaxMessage+1)), sent(0x3, "")),
		[]byte("\x81\xff\x7f\xff\xff\xff\xff\xff\xff\xff\x00\x00\x00\x00"),
		[]byte("\x81\xff\x80"),
		[]byte("\x81\xfe\x00\x7d\x00\x00\x00\x00"),
		[]byte("\x81\x00"),
	} {
		f.Add(seed, uint16(len(seed)/2), uint16(len(seed)-1))
	}
	f.Fuzz(func(t *testing.T, p []byte, a, b uint16) {
		i := min(int(a), len(p))
		j := min(max(i, int(b)), len(p))
		var whole, pieces frameChecker
		passed, err := whole.check(p)
		if err == nil && passed != len(p) {
			t.Errorf("check(%x) = %d, nil, want all bytes or an error", p, passed)
		}
		n := 0
		for _, piece := range [][]byte{p[:i], p[i:j], p[j:]} {
			m, _ := pieces.check(piece)
			n += m
		}
		if n != passed || pieces.failed() != whole.failed() {
			t.Errorf("check(%x) accepts %d bytes, then %v; in pieces %d, then %v", p, passed, whole.failed(), n, pieces.failed())
		}
		if m, err := whole.check([]byte{0}); whole.failed() != nil && (m != 0 || err == nil) {
			t.Errorf("%x: after an error check = %d, %v, want 0 and an error", p, m, err)
		}
	})
}

func TestExcess(t *testing.T) {
	var e excessCounter
	now := time.Unix(1<<31, 0)
	for range maxExcess {
		if err := e.add(now); err != nil {
			t.Fatal(err)
		}
	}
	if e.add(now.Add(excessTime-time.Second)) == nil {
		t.Errorf("more than %d within %v are permitted", maxExcess, excessTime)
	}
	if err := e.add(now.Add(excessTime)); err != nil {
		t.Errorf("after %v: %v", excessTime, err)
	}
}
