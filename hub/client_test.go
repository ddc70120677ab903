package hub

import "testing"

// TestActionDoesNotAllocate checks that an action allocates nothing on its whole way, through all
// goroutines, from the read of the client's bytes to the write of the new state.
func TestActionDoesNotAllocate(t *testing.T) {
	h := newFakeHub(t, Config{Shards: 1})
	defer h.stop()
	ws, conn := h.dial()
	defer ws.CloseNow()
	buf := make([]byte, 1<<10)
	act := func(frame []byte) {
		if _, err := conn.Write(frame); err != nil {
			t.Fatal(err)
		}
		if _, err := conn.Read(buf); err != nil {
			t.Fatal(err)
		}
	}
	up, down := maskedFrame(plus), maskedFrame(minus)
	if n := testing.AllocsPerRun(1000, func() {
		act(up)
		act(down)
	}); n > 0 {
		t.Errorf("%v allocations for two actions, want none", n)
	}
}
