package journal

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"plusminus/hub"
)

// If a crash leaves two undamaged copies, the newer one counts, in either place.
func TestNewerCopy(t *testing.T) {
	t.Parallel()
	older, want := hub.Snapshot{Version: 9, Value: 1}, hub.Snapshot{Version: 10, Value: 0}
	for i := range copies {
		content := make([]byte, fileSize)
		copy(content[i*pageSize:], encode(want))
		copy(content[(1-i)*pageSize:], encode(older))
		if got, err := parse(content); got != want || err != nil {
			t.Errorf("with the newer copy at %d parse = %+v, %v, want %+v", i, got, err, want)
		}
	}
}

// A file that was truncated at any size is refused or yields its value.
func TestTruncated(t *testing.T) {
	t.Parallel()
	whole, want := written(t, 7)
	refused := 0
	for size := range len(whole) + 1 {
		got, err := parse(whole[:size])
		switch {
		case errors.Is(err, ErrDamaged):
			refused++
		case err != nil || got != want:
			t.Errorf("truncated to %d bytes: parse = %+v, %v, want %+v or ErrDamaged", size, got, err, want)
		}
	}
	if line := len(encode(want)); refused != line {
		t.Errorf("parse refused %d sizes, want %d: those shorter than a line", refused, line)
	}
	dir := t.TempDir()
	place(t, dir, whole[:pageSize+9])
	if got, _ := mustOpen(t, dir).Load(t.Context()); got != want {
		t.Errorf("after truncation Load = %+v, want %+v", got, want)
	}
	if now, err := os.ReadFile(filepath.Join(dir, FileName)); err != nil || !bytes.Equal(now, whole) {
		t.Errorf("after Open the file holds %q, %v, want both copies", now, err)
	}
}

// A file with any bytes damaged yields the right value or is refused. The short form has fewer
// random trials.
func TestDamagedBytes(t *testing.T) {
	t.Parallel()
	whole, want := written(t, -1234567)
	check := func(p []byte, mustRead bool, what string, args ...any) {
		t.Helper()
		got, err := parse(p)
		if err == nil && got != want || err != nil && mustRead {
			t.Errorf(what+": parse = %+v, %v, want %+v", append(args, got, err, want)...)
		}
	}
	p := slices.Clone(whole)
	line := len(encode(want))
	for i := range p { // one copy: the other one has the value
		for x := 1; x < 256; x *= 2 {
			p[i] ^= byte(x)
			check(p, true, "byte %d changed by %#x", i, x)
			p[i] = whole[i]
		}
	}
	for i := range line { // both copies at the same offset
		for x := range 255 {
			p[i] ^= byte(x + 1)
			p[pageSize+i] ^= byte(x + 1)
			check(p, false, "byte %d of both changed by %#x", i, x+1)
			p[i], p[pageSize+i] = whole[i], whole[i]
		}
	}
	seed := rand.Uint64()
	random := rand.New(rand.NewPCG(seed, 0))
	trials := 10_000
	if *long {
		trials = 100_000
	}
	for range trials { // several bytes, anywhere in both copies
		for range 1 + random.IntN(4) {
			p[random.IntN(line)] = byte(random.Uint32())
			p[pageSize+random.IntN(line)] = byte(random.Uint32())
		}
		check(p, false, "random bytes with seed %d, %q", seed, p[:line])
		copy(p, whole[:line])
		copy(p[pageSize:], whole[:line])
	}
}

// Any content is refused, or contains the line of the snapshot that parse returns.
func FuzzParse(f *testing.F) {
	f.Add([]byte{})
	f.Add(encode(hub.Snapshot{Version: 1, Value: -2}))
	f.Add(append(make([]byte, pageSize), encode(hub.Snapshot{Version: 1 << 63, Value: hub.MaxValue})...))
	f.Add([]byte("plusminus counter, format 3: whatever comes\n"))
	f.Fuzz(func(t *testing.T, content []byte) {
		s, err := parse(content)
		if err != nil {
			if !errors.Is(err, ErrDamaged) && !errors.Is(err, ErrMany) && !errors.Is(err, ErrNewer) {
				t.Errorf("parse = %v, want ErrDamaged, ErrMany or ErrNewer", err)
			}
			return
		}
		if s.Value > hub.MaxValue || s.Value < -hub.MaxValue || !bytes.Contains(content, encode(s)) {
			t.Errorf("parse = %+v, which the content does not hold", s)
		}
	})
}
