package hub

import (
	"bytes"
	"encoding/json"
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
			t.Errorf("decode(%q) = %v, %v, and without the short cut %v, %v", p, delta, refused, d, r)
		}
		// The same, said differently: any decoder, a generic value.
		var v any
		action := ""
		isAction := false
		if json.Unmarshal(p, &v) == nil {
			if object, ok := v.(map[string]any); ok {
				action, isAction = object["action"].(string)
			}
		}
		want, wantRefused := int8(0), refusedJSON
		switch {
		case isAction && action == "plus":
			want, wantRefused = +1, nil
		case isAction && action == "minus":
			want, wantRefused = -1, nil
		case isAction:
			wantRefused = refusedAction
		}
		if delta != want || refused != wantRefused {
			t.Errorf("decode(%q) = %v, %v, want %v, %v", p, delta, refused, want, wantRefused)
		}
		if d, r := decode(websocket.MessageBinary, p); d != 0 || r != refusedBinary {
			t.Errorf("decode(binary %q) = %v, %v, want it refused", p, d, r)
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
