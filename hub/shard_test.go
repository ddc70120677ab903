package hub

import (
	"net"
	"testing"
	"time"
)

// sinkConn is a socket that accepts all bytes and counts them.
type sinkConn struct {
	net.Conn
	writes, bytes int
}

func (c *sinkConn) Write(p []byte) (int, error) {
	c.writes++
	c.bytes += len(p)
	return len(p), nil
}

func (c *sinkConn) neverWait()          {}
func (c *sinkConn) blocked() bool       { return false }
func (c *sinkConn) flush() (int, error) { return 0, nil }
func (c *sinkConn) Abort()              {}
func (c *sinkConn) finish()             {}

func (c *sinkConn) expectAcks(time.Duration) {}

// newSinkShard returns a shard with n clients on one sink. Its goroutine does not run.
func newSinkShard(tb testing.TB, n int) (*shard, *sinkConn) {
	tb.Helper()
	h := &Hub{done: make(chan struct{}), cfg: Config{Shards: 1}}
	h.standard = newCounter(h, "")
	h.standard.published.push(Snapshot{}, nil)
	s := newShard(h, 0)
	sink := new(sinkConn)
	for range n {
		s.join(&client{hub: h, owner: s, first: watch{counter: h.standard}, wire: clientWire{Conn: sink, sock: sink}})
	}
	return s, sink
}

// sweepStandard sweeps the clients of the default counter.
func (s *shard) sweepStandard() {
	s.note(s.hub.standard)
	s.sweep()
}

// TestOneWrite checks that a client is sent users and state in one write, users first.
func TestOneWrite(t *testing.T) {
	s, sink := newSinkShard(t, 1)
	h := s.hub
	sink.writes, sink.bytes = 0, 0
	h.standard.published.users, h.standard.published.usersSeq = 2, 1
	h.standard.published.announced, h.standard.published.announcedSeq = 2, 1
	h.standard.published.push(Snapshot{Version: 1, Value: 1}, []action{+1})
	s.sweepStandard()
	want := len(inFrames.append(inFrames.append(nil, appendUsers(nil, 2)), appendState(nil, 1)))
	if sink.writes != 1 || sink.bytes != want {
		t.Errorf("%d bytes in %d writes, want %d in one", sink.bytes, sink.writes, want)
	}
	s.sweepStandard() // there is nothing to send
	if sink.writes != 1 {
		t.Errorf("%d writes, want still one", sink.writes)
	}
}

func TestSweepDoesNotAllocate(t *testing.T) {
	s, sink := newSinkShard(t, 100)
	h := s.hub
	s.sweepStandard() // allocates the buffers
	sink.writes = 0
	deltas := []action{+1, +1, -1}
	version := uint64(0)
	n := testing.AllocsPerRun(100, func() {
		version++
		h.standard.published.users++
		h.standard.published.usersSeq++
		h.standard.published.announced, h.standard.published.announcedSeq = h.standard.published.users, h.standard.published.usersSeq
		h.standard.published.push(Snapshot{Version: version, Value: int64(version)}, deltas)
		s.sweepStandard()
	})
	if n > 0 {
		t.Errorf("%v allocations a sweep, want none", n)
	}
	if want := 101 * 100; sink.writes != want { // AllocsPerRun makes one extra call
		t.Errorf("%d writes, want %d", sink.writes, want)
	}
}

func TestPush(t *testing.T) {
	var p publishedState
	p.push(Snapshot{Version: 7, Value: 3}, nil)
	if p.value() != 3 || p.stateSeq != 1 {
		t.Errorf("after the first value: %+v", p)
	}
	p.push(Snapshot{Version: 8, Value: 4}, []action{+1, +1, -1})
	if got := p.recent[recentValues-4:]; got[0] != 3 || got[1] != 4 || got[2] != 5 || got[3] != 4 || p.stateSeq != 4 {
		t.Errorf("recent values %v, seq %d, want 3 4 5 4 and 4", got, p.stateSeq)
	}
	long := make([]action, 1000)
	for i := range long {
		long[i] = +1
	}
	p.push(Snapshot{Version: 9, Value: 1004}, long)
	for i, v := range p.recent {
		if want := int64(1004 - recentValues + 1 + i); v != want {
			t.Errorf("recent[%d] = %d, want %d", i, v, want)
		}
	}
	if p.stateSeq != 1004 {
		t.Errorf("seq %d, want 1004", p.stateSeq)
	}
}

func BenchmarkSweep(b *testing.B) {
	s, _ := newSinkShard(b, 1000)
	b.ReportAllocs()
	for version := uint64(1); b.Loop(); version++ {
		s.hub.standard.published.push(Snapshot{Version: version, Value: int64(version)}, []action{+1})
		s.sweepStandard()
	}
}
