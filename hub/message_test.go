package hub

import (
	"bytes"
	"encoding/json"
	"math"
	"strings"
	"testing"

	"github.com/coder/websocket"
)

func TestMessages(t *testing.T) {
	for _, tt := range []struct {
		name string
		got  []byte
		want string
	}{
		{"users", appendUsers(nil, 3), `{"type":"users","count":3}`},
		{"state", appendState(nil, -12), `{"type":"state","value":-12}`},
		{"longest state", appendState(nil, -MaxValue), `{"type":"state","value":-9007199254740991}`},
	} {
		if string(tt.got) != tt.want {
			t.Errorf("%s: message %s, want %s", tt.name, tt.got, tt.want)
		}
	}
}

func TestRefusalFrames(t *testing.T) {
	for _, r := range []*refusal{refusedJSON, refusedAction, refusedBinary, refusedRate, refusedRange, refusedStore} {
		_, payload, ok := bytes.Cut(r.frame, []byte("{"))
		var m map[string]string
		if err := json.Unmarshal(append([]byte("{"), payload...), &m); !ok || err != nil {
			t.Errorf("%s: frame %q: %v", r.code, r.frame, err)
		}
		if m["type"] != "error" || m["code"] != r.code || m["message"] == "" || len(m) != 3 {
			t.Errorf("%s: message %v, want type error, the code and a message", r.code, m)
		}
	}
}

// TestArithmetic checks the counter's arithmetic at its limits, also for deltas that overflow an int64.
func TestArithmetic(t *testing.T) {
	for _, tt := range []struct {
		v       Value
		a       action
		n, room int
	}{
		{0, +1, 5, 5},
		{MaxValue - 3, +1, 5, 3},
		{MaxValue, +1, 5, 0},
		{MaxValue, -1, 5, 5},
		{-MaxValue, -1, 5, 0},
		{-MaxValue + 3, -1, 5, 3},
		{-MaxValue, +1, 5, 5},
	} {
		if got := room(tt.v, tt.a, tt.n); got != tt.room {
			t.Errorf("room(%d, %d, %d) = %d, want %d", tt.v, tt.a, tt.n, got, tt.room)
		}
		v := after(tt.v, tt.a, tt.room)
		if back := after(v, tt.a, -tt.room); back != tt.v {
			t.Errorf("after(%d, %d, %d) and back = %d", tt.v, tt.a, tt.room, back)
		}
		d := after(0, tt.a, tt.room)
		if !fits(tt.v, d) || sum(tt.v, d) != v {
			t.Errorf("value %d, delta %d: fits = %v, sum = %d, want true, %d", tt.v, d, fits(tt.v, d), sum(tt.v, d), v)
		}
		if tt.room < tt.n && fits(tt.v, after(d, tt.a, 1)) {
			t.Errorf("fits(%d, %d) = true, want false", tt.v, after(d, tt.a, 1))
		}
	}
	for _, d := range []Delta{math.MaxInt64, math.MinInt64} {
		for _, v := range []Value{MaxValue, 0, -MaxValue} {
			if fits(v, d) {
				t.Errorf("fits(%d, %d) = true, want false", v, d)
			}
		}
	}
}

func FuzzParseValue(f *testing.F) {
	for _, seed := range []string{"0", "-3", "+3", "007", "-0", "9007199254740991", "9007199254740992", "-9007199254740992", "99999999999999999999", "", "1.0", "1 2"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, s string) {
		v, err := ParseValue(s)
		if err != nil {
			return
		}
		text := string(AppendValue(nil, v))
		again, err := ParseValue(text)
		if err != nil || again != v || !fits(v, 0) || !fits(0, v) || strings.ContainsAny(text, " \n") || len(text) > 128 || !json.Valid([]byte(text)) {
			t.Errorf("ParseValue(%q) = %d, which is written %q and parsed as %d, %v", s, v, text, again, err)
		}
	})
}

func FuzzDecode(f *testing.F) {
	for _, seed := range []string{
		plus, minus, `{"action": "plus"}`, `{"action":"times"}`, `{"\u0061ction": "pl\u0075s"}`,
		` {` + "\n" + ` "action" :` + "\t" + `"plus" } `, `{"action":"plus","by":10}`, `{"action":"minus","action":"plus"}`,
		`["plus"]`, `{"act":"plus"}`, `{"action":null}`, `{"ACTION":"plus"}`, `plus`, ``, `{`, "\xff",
	} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, p []byte) {
		delta, refused := decode(websocket.MessageText, p)
		if d, r := decodeJSON(p); d != delta || r != refused {
			t.Errorf("decode(%q) = %v, %v, but decodeJSON = %v, %v", p, delta, refused, d, r)
		}
		// The same decision, made from a generic JSON value.
		var v any
		name := ""
		isAction := false
		if json.Unmarshal(p, &v) == nil {
			if object, ok := v.(map[string]any); ok {
				name, isAction = object["action"].(string)
			}
		}
		want, wantRefused := action(0), refusedJSON
		switch {
		case isAction && name == "plus":
			want, wantRefused = +1, nil
		case isAction && name == "minus":
			want, wantRefused = -1, nil
		case isAction:
			wantRefused = refusedAction
		}
		if delta != want || refused != wantRefused {
			t.Errorf("decode(%q) = %v, %v, want %v, %v", p, delta, refused, want, wantRefused)
		}
		if d, r := decode(websocket.MessageBinary, p); d != 0 || r != refusedBinary {
			t.Errorf("decode(binary %q) = %v, %v, want refusedBinary", p, d, r)
		}
	})
}

func TestDecodeDoesNotAllocate(t *testing.T) {
	p := []byte(plus)
	if n := testing.AllocsPerRun(100, func() { decode(websocket.MessageText, p) }); n != 0 {
		t.Errorf("%v allocations, want none", n)
	}
}

func BenchmarkDecode(b *testing.B) {
	for _, text := range []string{plus, `{"action":"plus","by":1}`} {
		b.Run(text, func(b *testing.B) {
			b.ReportAllocs()
			p := []byte(text)
			for b.Loop() {
				decode(websocket.MessageText, p)
			}
		})
	}
}
