package peers

import "testing"

// masked returns a frame as a client sends it.
func masked(opcode byte, payload string) []byte {
	key := [4]byte{1, 2, 3, 4}
	f := append([]byte{0x80 | opcode, 0x80 | byte(len(payload))}, key[:]...)
	for i := range len(payload) {
		f = append(f, payload[i]^key[i%4])
	}
	return f
}

func TestCountActions(t *testing.T) {
	plus, minus := masked(1, `{"action":"plus"}`), masked(1, `{"action": "minus"}`)
	join := func(frames ...[]byte) (all []byte) {
		for _, f := range frames {
			all = append(all, f...)
		}
		return all
	}
	for _, tt := range []struct {
		name  string
		in    []byte
		used  int
		delta int64
		open  bool
	}{
		{"nothing", nil, 0, 0, true},
		{"plus", plus, len(plus), 1, true},
		{"several", join(plus, plus, minus), 2*len(plus) + len(minus), 1, true},
		{"part of one", plus[:10], 0, 0, true},
		{"one and a part", join(plus, minus[:3]), len(plus), 1, true},
		{"something else", masked(1, "hello"), 11, 0, true},
		{"close", join(plus, masked(8, "")), len(plus), 1, false},
		{"not masked", append([]byte{0x81, 17}, `{"action":"plus"}`...), 0, 0, false},
		{"too long", []byte{0x81, 0xfe, 0, 200, 0, 0, 0, 0}, 0, 0, false},
	} {
		if used, delta, open := countActions(tt.in); used != tt.used || delta != tt.delta || open != tt.open {
			t.Errorf("%s: countActions = %d, %d, %t, want %d, %d, %t", tt.name, used, delta, open, tt.used, tt.delta, tt.open)
		}
	}
}
