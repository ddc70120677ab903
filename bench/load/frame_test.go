package load

import (
	"bytes"
	"testing"
)

func TestNextFrame(t *testing.T) {
	text := append([]byte{0x81, 5}, "hello"...)
	long := append([]byte{0x81, 126, 0, 200}, bytes.Repeat([]byte("x"), 200)...)
	for _, tt := range []struct {
		name    string
		in      []byte
		opcode  byte
		payload string
		size    int
		fails   bool
	}{
		{"text", text, opText, "hello", 7, false},
		{"text and the start of another", append(bytes.Clone(text), 0x81), opText, "hello", 7, false},
		{"nothing", nil, 0, "", 0, false},
		{"half a header", text[:1], 0, "", 0, false},
		{"all but a byte", text[:6], 0, "", 0, false},
		{"empty ping", []byte{0x89, 0}, opPing, "", 2, false},
		{"long", long, opText, string(long[4:]), 204, false},
		{"half a long header", long[:3], 0, "", 0, false},
		{"all of a long one but a byte", long[:203], 0, "", 0, false},
		{"longest", append([]byte{0x81, 126, 4, 0}, make([]byte, maxFrame)...), opText, string(make([]byte, maxFrame)), maxFrame + 4, false},
		{"too long", []byte{0x81, 126, 4, 1}, 0, "", 0, true},
		{"64-bit length", []byte{0x81, 127, 0, 0, 0, 0, 0, 0, 0, 1, 'x'}, 0, "", 0, true},
		{"fragment", []byte{0x01, 0}, 0, "", 0, true},
		{"compressed", []byte{0xc1, 0}, 0, "", 0, true},
		{"masked", []byte{0x81, 0x80, 1, 2, 3, 4}, 0, "", 0, true},
	} {
		opcode, payload, size, err := nextFrame(tt.in)
		if opcode != tt.opcode || string(payload) != tt.payload || size != tt.size || (err != nil) != tt.fails {
			t.Errorf("%s: nextFrame = %#x, %q, %d, %v, want %#x, %q, %d, fails: %t",
				tt.name, opcode, payload, size, err, tt.opcode, tt.payload, tt.size, tt.fails)
		}
	}
}

// TestAppendFrame unmasks the frame and compares its payload.
func TestAppendFrame(t *testing.T) {
	const want = `{"action":"plus"}`
	f := appendFrame([]byte("before"), opText, []byte(want))[len("before"):]
	if f[0] != 0x81 || f[1] != 0x80|byte(len(want)) {
		t.Fatalf("header = %#x, want a masked text frame", f[:2])
	}
	key, payload := f[2:6], f[6:]
	for i := range payload {
		payload[i] ^= key[i%4]
	}
	if string(payload) != want {
		t.Errorf("payload = %q, want %q", payload, want)
	}
}

func TestParseMessage(t *testing.T) {
	for _, tt := range []struct {
		in   string
		want kind
		n    int64
	}{
		{`{"type":"state","value":0}`, kindState, 0},
		{`{"type":"state","value":-12}`, kindState, -12},
		{`{"type": "state", "value": 345}`, kindState, 345},
		{`{"type":"state","value":9007199254740991}`, kindState, 1<<53 - 1},
		{`{"type":"users","count":7}`, kindUsers, 7},
		{`{"type":"error","code":"rate_limited","message":"a: b"}`, kindError, 0},
		{`{"type":"state","value":}`, kindOther, 0},
		{`{"type":"state","value":-}`, kindOther, 0},
		{`{"type":"state","value":1`, kindOther, 0},
		{`{"type":"state","value":1234567890123456789}`, kindOther, 0},
		{`{"type":"other"}`, kindOther, 0},
		{`rubbish`, kindOther, 0},
		{``, kindOther, 0},
	} {
		if k, n := parseMessage([]byte(tt.in)); k != tt.want || n != tt.n {
			t.Errorf("parseMessage(%s) = %d, %d, want %d, %d", tt.in, k, n, tt.want, tt.n)
		}
	}
}

// TestParse splits a stream of two frames at each position and passes both pieces to a client.
func TestParse(t *testing.T) {
	stream := append([]byte{0x81, 26}, `{"type":"state","value":1}`...)
	stream = append(append(stream, 0x81, 26), `{"type":"state","value":2}`...)
	for cut := range len(stream) + 1 {
		c := &Client{crowd: &Crowd{}}
		c.value.Store(unknown)
		for _, piece := range [][]byte{stream[:cut], stream[cut:]} {
			if err := c.parse(piece); err != nil {
				t.Fatal(err)
			}
		}
		if got := c.crowd.Messages(); got != 2 || c.Value() != 2 || len(c.rest) != 0 {
			t.Errorf("cut at %d: %d messages, value %d, %d bytes left, want 2, 2, 0", cut, got, c.Value(), len(c.rest))
		}
	}
}

func TestMessageDoesNotAllocate(t *testing.T) {
	c := &Client{crowd: &Crowd{}}
	frame := append([]byte{0x81, 26}, `{"type":"state","value":1}`...)
	if n := testing.AllocsPerRun(100, func() { _ = c.parse(frame) }); n != 0 {
		t.Errorf("%v allocations per message, want 0", n)
	}
}

func FuzzNextFrame(f *testing.F) {
	f.Add([]byte{0x81, 2, '{', '}'})
	f.Add([]byte{0x81, 126, 0, 200})
	f.Add([]byte{0x89, 0})
	f.Fuzz(func(t *testing.T, p []byte) {
		_, payload, size, err := nextFrame(p)
		if size > len(p) || len(payload) > size || err != nil && size != 0 {
			t.Errorf("nextFrame(%x) = %d bytes of payload, size %d, %v, want them within the input, and size 0 with an error", p, len(payload), size, err)
		}
		parseMessage(payload)
	})
}
