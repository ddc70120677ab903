package store

import (
	"bytes"
	"encoding/base64"
	"errors"
	"strings"
	"testing"
)

// testSealKey returns a key that differs for each n.
func testSealKey(n byte) []byte { return bytes.Repeat([]byte{n}, SealKeySize) }

func newTestSealer(t testing.TB, keys ...byte) *Sealer {
	t.Helper()
	var all [][]byte
	for _, n := range keys {
		all = append(all, testSealKey(n))
	}
	s, err := NewSealer(all)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestSeal(t *testing.T) {
	one, two := newTestSealer(t, 1), newTestSealer(t, 2)
	data := []byte("-----BEGIN EC PRIVATE KEY-----")
	seal := func(s *Sealer) []byte { return s.Seal("name", data) }
	sealed := seal(one)
	if bytes.Contains(sealed, []byte("PRIVATE")) {
		t.Error("what is sealed can be read")
	}
	if bytes.Equal(sealed, seal(one)) {
		t.Error("the same is sealed to the same twice: the nonce is not random")
	}
	if got, err := one.Open("name", sealed); err != nil || !bytes.Equal(got, data) {
		t.Errorf("open = %q, %v, want what was sealed", got, err)
	}
	if _, err := one.Open("other", sealed); !errors.Is(err, ErrDamaged) {
		t.Errorf("open under another name = %v, want ErrDamaged", err)
	}
	if _, err := two.Open("name", sealed); !errors.Is(err, ErrOtherKey) {
		t.Errorf("open with another key = %v, want ErrOtherKey", err)
	}
	for i := range sealed {
		changed := bytes.Clone(sealed)
		changed[i] ^= 1
		if _, err := one.Open("name", changed); err == nil {
			t.Fatalf("open accepts it with byte %d changed", i)
		}
		if _, err := one.Open("name", sealed[:i]); err == nil {
			t.Fatalf("open accepts the first %d bytes", i)
		}
	}

	// A key is replaced in three steps. After each step, every replica can open what any replica has sealed.
	steps := [][2]*Sealer{
		{newTestSealer(t, 1), newTestSealer(t, 1, 2)},
		{newTestSealer(t, 1, 2), newTestSealer(t, 2, 1)},
		{newTestSealer(t, 2, 1), newTestSealer(t, 2)},
	}
	for i, step := range steps {
		for _, from := range step {
			for _, to := range step {
				if i == 2 && from == step[1] {
					continue // the old key is removed only when nothing is sealed with it
				}
				if _, err := to.Open("name", seal(from)); err != nil {
					t.Errorf("step %d: %v", i, err)
				}
			}
		}
	}
	if _, err := NewSealer(nil); err == nil {
		t.Error("NewSealer accepts no keys")
	}
	if _, err := NewSealer([][]byte{make([]byte, 16)}); err == nil {
		t.Error("NewSealer accepts a key of 16 bytes")
	}
}

func TestParseSealKeys(t *testing.T) {
	one, two := base64.StdEncoding.EncodeToString(testSealKey(1)), base64.StdEncoding.EncodeToString(testSealKey(2))
	keys, err := ParseSealKeys([]byte("# new\r\n" + two + "\r\n\n  " + one))
	if err != nil || len(keys) != 2 || !bytes.Equal(keys[0], testSealKey(2)) || !bytes.Equal(keys[1], testSealKey(1)) {
		t.Errorf("ParseSealKeys = %v, %v, want both keys in order", keys, err)
	}
	for _, bad := range []string{"", "# none\n", one[:40], one + "x", "secret passphrase of 44 characters, not base64", one + "\n" + one[:43]} {
		_, err := ParseSealKeys([]byte(bad))
		if err == nil {
			t.Errorf("ParseSealKeys accepts %q", bad)
		} else if bad != "" && strings.Contains(err.Error(), strings.TrimSpace(bad)) {
			t.Errorf("the error %q tells a key", err)
		}
	}
}

// Open returns the sealed data or an error, whatever its input.
func FuzzOpen(f *testing.F) {
	s := newTestSealer(f, 1, 2)
	sealed := s.Seal("name", []byte("data"))
	f.Add(sealed)
	f.Add(sealed[:len(SealMagic)])
	f.Add([]byte(SealMagic + "too short"))
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, b []byte) {
		if data, err := s.Open("name", b); err == nil && string(data) != "data" {
			t.Errorf("open(%q) = %q, which nobody has sealed", b, data)
		}
	})
}
