package hub

import (
	"errors"
	"maps"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/coder/websocket"
)

// kinds returns the number of messages that p has received since the last call of kinds or take, by type.
func (p *peer) kinds() map[string]uint64 {
	n := make(map[string]uint64)
	for _, m := range p.take() {
		kind, _, _ := strings.Cut(m, " ")
		n[kind]++
	}
	return n
}

// TestCountsOfMessages checks that each received and each sent message is counted once.
func TestCountsOfMessages(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newFakeHub(t, Config{ActionRate: 1, ActionBurst: 4})
		defer h.stop()
		a, b := h.join(), h.join()
		for range 5 {
			a.send(plus) // the fifth exceeds the rate
		}
		b.send(`{"action":"minus","by":"the library reads this one"}`)
		b.send(`{"action":"times"}`)
		b.send("x")
		b.send("x")
		if err := b.ws.Write(t.Context(), websocket.MessageBinary, []byte(plus)); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Second)
		got := a.kinds()
		for kind, n := range b.kinds() {
			got[kind] += n
		}
		c := h.Counts()
		if sent := map[string]uint64{"users": c.SentUsers, "state": c.SentStates, "error": c.SentErrors}; !maps.Equal(sent, got) {
			t.Errorf("sent %v, but clients received %v", sent, got)
		}
		if c.Joined != 2 || c.Received != 10 || c.Actions["counted"] != 5 || c.Undecided != 0 || c.Merged != 0 {
			t.Errorf("joined %d, received %d, counted %d, undecided %d, merged %d, want 2, 10, 5, 0 and 0", c.Joined, c.Received, c.Actions["counted"], c.Undecided, c.Merged)
		}
		refused := map[string]uint64{"bad_message": 2, "unknown_action": 1, "binary_message": 1, "rate_limited": 1, "out_of_range": 0, "store_unavailable": 0, "unknown_counter": 0, "making_limited": 0, "too_many_counters": 0}
		if !maps.Equal(c.Refused, refused) {
			t.Errorf("refused %v, want %v", c.Refused, refused)
		}
		actions := map[string]uint64{"counted": 5, "rate_limited": 1, "out_of_range": 0, "store_unavailable": 0, "unknown_counter": 0, "making_limited": 0, "too_many_counters": 0}
		if !maps.Equal(c.Actions, actions) {
			t.Errorf("actions %v, want %v", c.Actions, actions)
		}
		if got := h.Stats().Refused; got != 5 {
			t.Errorf("Stats().Refused = %d, want 5", got)
		}
		if c.Sweeps.Count() < 5 || c.Applies.Count() != 5 {
			t.Errorf("%d sweeps and %d calls of the store, want at least 5 and 5", c.Sweeps.Count(), c.Applies.Count())
		}
	})
}

// TestCountsOfMerging checks that a blocked client counts as behind from the first value that it is not sent
// until it is sent the newest. The values that it was not sent count as merged.
func TestCountsOfMerging(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newFakeHub(t, Config{Shards: 1, MaxClients: 3})
		defer h.stop()
		a := h.join()
		ws, _ := h.dial()
		synctest.Wait()
		for h.Stats().Blocked == 0 {
			a.send(plus)
		}
		if st := h.Stats(); st.Behind != 0 || st.Max != 3 {
			t.Errorf("%d behind of at most %d, want 0 of 3: a value that is kept for a client counts as sent", st.Behind, st.Max)
		}
		const more = 100
		a.send(plus)
		if got := h.Stats().Behind; got != 1 {
			t.Errorf("%d behind, want 1", got)
		}
		for range more - 1 {
			a.send(plus)
		}
		p := &peer{t: t, ws: ws}
		go p.read()
		time.Sleep(2 * flushEvery)
		c := h.Counts()
		if got := h.Stats().Behind; got != 0 || c.Merged != more-1 {
			t.Errorf("%d behind and %d values merged, want 0 and %d", got, c.Merged, more-1)
		}
		if got := a.kinds()["state"] + p.kinds()["state"]; c.SentStates != got {
			t.Errorf("%d values sent, but clients received %d", c.SentStates, got)
		}
	})
}

// TestBehindDuringSweep checks that all clients of a shard count as behind until its sweep is over.
func TestBehindDuringSweep(t *testing.T) {
	s, _ := newSinkShard(t, 3)
	h := s.hub
	h.shards = []*shard{s}
	s.handOver()
	if got := h.behind(h.standard.published.stateSeq); got != 0 {
		t.Errorf("%d behind before the change, want 0", got)
	}
	h.standard.published.push(Snapshot{Version: 1, Value: 1}, []action{+1})
	if got := h.behind(h.standard.published.stateSeq); got != 3 {
		t.Errorf("%d behind before the sweep, want 3", got)
	}
	s.sweepStandard()
	s.handOver()
	if got := h.behind(h.standard.published.stateSeq); got != 0 {
		t.Errorf("%d behind after the sweep, want 0", got)
	}
}

// TestCountsOfStore checks the counts of a store that works, does not answer, fails, recovers, and is at its
// limit.
func TestCountsOfStore(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := &hangingStore{}
		h := newFakeHub(t, Config{Store: store})
		defer h.stop()
		a := h.join()
		a.send(plus)
		c := h.Counts()
		if c.Actions["counted"] != 1 || c.Applies.Count() != 1 || c.ApplyErrors != 0 || c.Outages != 0 {
			t.Errorf("after one action: %+v", c)
		}
		store.answers = make(chan error)
		a.send(plus)
		time.Sleep(storeTimeout)
		a.send(minus)
		c = h.Counts()
		if c.Actions["counted"] != 1 || c.Undecided != 1 || c.Outages != 1 || c.ApplyErrors != 0 || c.Refused["store_unavailable"] != 1 {
			t.Errorf("while the store does not answer: %+v", c)
		}
		store.answers <- errors.New("disk full")
		synctest.Wait()
		c = h.Counts()
		if c.Actions["counted"] != 1 || c.ApplyErrors != 1 || c.Outages != 1 || c.Refused["store_unavailable"] != 2 || c.Applies.Sum != storeTimeout {
			t.Errorf("after the store has failed: %+v", c)
		}
		close(store.answers)
		time.Sleep(storeRetry)
		a.send(plus)
		c = h.Counts()
		if c.Actions["counted"] != 2 || c.Outages != 1 || c.ApplyErrors != 1 {
			t.Errorf("after the store has recovered: %+v", c)
		}
	})
	synctest.Test(t, func(t *testing.T) {
		store := new(Memory)
		if _, err := store.Apply(t.Context(), MaxValue); err != nil {
			t.Fatal(err)
		}
		h := newFakeHub(t, Config{Store: store})
		defer h.stop()
		h.join().send(plus)
		if c := h.Counts(); c.Actions["counted"] != 0 || c.Refused["out_of_range"] != 1 || c.ApplyErrors != 0 || c.Outages != 0 {
			t.Errorf("at the limit: %+v, want one out_of_range and no failure of the store", c)
		}
	})
}

func TestDurations(t *testing.T) {
	var d Durations
	least, most := DurationBounds[0], DurationBounds[len(DurationBounds)-1]
	for _, took := range []time.Duration{0, least, least + 1, most, most + 1} {
		d.observe(took)
	}
	n := len(d.Counts)
	if d.Counts[0] != 2 || d.Counts[1] != 1 || d.Counts[n-2] != 1 || d.Counts[n-1] != 1 || d.Count() != 5 || d.Sum != 2*least+2*most+2 {
		t.Errorf("Durations = %+v, want counts of 2, 1 in the first two buckets and 1, 1 in the last two", d)
	}
	for i := 1; i < len(DurationBounds); i++ {
		if DurationBounds[i] <= DurationBounds[i-1] {
			t.Errorf("DurationBounds has %v after %v, want them to grow", DurationBounds[i], DurationBounds[i-1])
		}
	}
}
