package valkey

import (
	"context"
	"errors"
	"strconv"
	"strings"
	"testing"
	"time"

	"plusminus/hub"
	"plusminus/hub/valkey/redistest"
)

// Members share one value. Each gets news of the others' changes and not of its own.
func TestSharedValue(t *testing.T) {
	t.Parallel()
	srv := redistest.Start(t)
	a, b := newMember(t, on(srv.Addr)), newMember(t, on(srv.Addr))
	if snap, err := a.Load(t.Context()); err != nil || snap != (hub.Snapshot{Epoch: 1}) {
		t.Fatalf("Load = %+v, %v, want epoch 1", snap, err)
	}
	b.awaitUp()
	if snap := a.mustApply(5); snap != (hub.Snapshot{Epoch: 1, Version: 1, Value: 5}) {
		t.Errorf("Apply(5) = %+v, want version 1, value 5", snap)
	}
	await(t, "b has the news", time.Second, func() bool { return b.news().Snapshot.Value == 5 })
	time.Sleep(2 * quiet)
	if got := a.news().Snapshot; got.Version != 0 {
		t.Errorf("a has news of its own change: %+v", got)
	}
	if snap := b.mustApply(-7); snap != (hub.Snapshot{Epoch: 1, Version: 2, Value: -2}) {
		t.Errorf("Apply(-7) = %+v, want version 2, value -2", snap)
	}
	await(t, "a has the news", time.Second, func() bool { return a.news().Snapshot.Value == -2 })
	a.mustApply(hub.MaxValue)
	a.mustApply(2)
	for _, delta := range []int64{hub.MaxValue + 1, -hub.MaxValue - 1} { // doubles would round these
		if _, err := a.Apply(t.Context(), delta); !errors.Is(err, hub.ErrRange) {
			t.Errorf("Apply(%d) = %v, want ErrRange", delta, err)
		}
	}
	if _, err := b.Apply(t.Context(), 1); !errors.Is(err, hub.ErrRange) {
		t.Errorf("Apply beyond the range = %v, want ErrRange", err)
	}
	// Many changes at once do not each have a message, and the last one does.
	a.mustApply(-hub.MaxValue)
	for range 50 {
		a.mustApply(1)
	}
	await(t, "b has the news of the last change", time.Second, func() bool { return b.news().Snapshot.Value == 50 })
	c := newMember(t, on(srv.Addr))
	if snap, err := c.Load(t.Context()); err != nil || snap.Value != 50 {
		t.Errorf("Load = %+v, %v, want 50", snap, err)
	}
	d := newMember(t, Config{Address: srv.Addr, DB: 3})
	e := newMember(t, Config{Address: srv.Addr, Prefix: "other"})
	for _, m := range []*member{d, e} {
		if snap, err := m.Load(t.Context()); err != nil || snap.Value != 0 {
			t.Errorf("Load of another database or prefix = %+v, %v, want 0", snap, err)
		}
	}
}

// The next beat makes up for a lost message.
func TestLostMessage(t *testing.T) {
	t.Parallel()
	srv := redistest.Start(t)
	a := newMember(t, on(srv.Addr))
	a.awaitUp()
	srv.Do("HSET", "{plusminus}:counter", "version", "7", "value", "-3") // without a message
	await(t, "a has read the value", 2*beatEvery, func() bool { return a.news().Snapshot == hub.Snapshot{Epoch: 1, Version: 7, Value: -3} })
	srv.Do("PUBLISH", "{plusminus}:news.0", a.standard.epoch+" 6 99 0 0 x") // an old version
	srv.Do("PUBLISH", "{plusminus}:news.0", "hello")
	srv.Do("PUBLISH", "{plusminus}:news.0", "another 100 99 0 0 x") // an unknown epoch
	time.Sleep(300 * time.Millisecond)
	if got := a.news().Snapshot; got.Value != -3 {
		t.Errorf("after messages that are old or wrong the news is %+v, want value -3", got)
	}
}

// users is the sum of all members' clients. A member that stops leaves the sum at once; one that
// was killed leaves it after silence. In the short form the test shortens the rest of that time
// on the server.
func TestPresence(t *testing.T) {
	t.Parallel()
	srv := redistest.Start(t)
	a, b, c := newMember(t, on(srv.Addr)), newMember(t, on(srv.Addr)), newMember(t, on(srv.Addr))
	for i, m := range []*member{a, b, c} {
		m.awaitUp()
		m.Announce("", 1<<i)
	}
	await(t, "all know the sum", time.Second, func() bool {
		return a.news().Others == 6 && b.news().Others == 5 && c.news().Others == 3
	})
	await(t, "all know the number of hubs", 2*beatEvery, func() bool { return a.news().Hubs == 3 && b.news().Hubs == 3 })
	c.Close()
	await(t, "a member that stopped is out of the sum", time.Second, func() bool { return a.news().Others == 2 && b.news().Others == 1 })
	b.kill()
	if !*long {
		srv.Do("ZINCRBY", "{plusminus}:alive", strconv.FormatInt(-(silence-time.Second).Milliseconds(), 10), b.id)
	}
	await(t, "a member that was killed is out of the sum", 15*time.Second, func() bool { return a.news().Others == 0 })
	a.Announce("", 50)
	d := newMember(t, on(srv.Addr))
	await(t, "a new member knows the sum", time.Second, func() bool { return d.news().Others == 50 })
}

// A server that comes back without its newest changes, or without any, begins a new epoch. All
// members take its value over and log that.
func TestLostChanges(t *testing.T) {
	for _, tt := range []struct {
		name string
		lose func(srv *redistest.Server)
		want int64
	}{
		{"flushed", func(srv *redistest.Server) { srv.Do("FLUSHALL") }, 0},
		{"set back", func(srv *redistest.Server) { srv.Kill(); srv.Restart() }, 10},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			srv := redistest.Start(t, "--appendonly", "no")
			a, b := newMember(t, on(srv.Addr)), newMember(t, on(srv.Addr))
			b.awaitUp()
			a.awaitUp()
			a.mustApply(10)
			srv.Do("SAVE")
			a.mustApply(5)
			b.Announce("", 2)
			await(t, "b has the news", time.Second, func() bool { return b.news().Snapshot.Value == 15 })
			tt.lose(srv)
			for _, m := range []*member{a, b} {
				await(t, "a member is in the new epoch", 10*time.Second, func() bool {
					return m.snapshot(m.standard) == hub.Snapshot{Epoch: 2, Version: m.snapshot(m.standard).Version, Value: tt.want}
				})
				if !strings.Contains(m.logs.String(), "level=ERROR msg=\"the store is not the one it was") {
					t.Errorf("the log does not say that changes were lost: %s", m.logs)
				}
			}
			await(t, "users are counted", 5*time.Second, func() bool { return a.news().Others == 2 })
			b.awaitUp()
			if got := b.mustApply(1); got.Value != tt.want+1 || got.Epoch != 2 {
				t.Errorf("Apply(1) = %+v, want epoch 2, value %d", got, tt.want+1)
			}
			await(t, "a has the news", 5*time.Second, func() bool { return a.news().Snapshot.Value == tt.want+1 })
		})
	}
}

// Without a server, Load and Apply return the reason soon. When the server starts, the store works.
func TestAwayAtStart(t *testing.T) {
	t.Parallel()
	srv := redistest.Start(t)
	srv.Kill()
	m := newMember(t, on(srv.Addr))
	if _, err := m.Apply(t.Context(), 1); err == nil {
		t.Error("Apply = nil before there was a connection, want an error")
	}
	if _, err := m.Load(t.Context()); err == nil || !strings.Contains(err.Error(), "refused") {
		t.Errorf("Load = %v, want the reason", err)
	}
	began := time.Now()
	if _, err := m.Apply(t.Context(), 1); err == nil || time.Since(began) > answerTimeout {
		t.Errorf("Apply = %v after %v, want an error within %v", err, time.Since(began), answerTimeout)
	}
	srv.Restart()
	await(t, "there is a value", 5*time.Second, func() bool { return m.news().Snapshot.Epoch == 1 })
	m.mustApply(1)
}

// Close does not wait for a server that hangs, and Apply waits only as long as its context.
func TestCloseWhileHanging(t *testing.T) {
	t.Parallel()
	srv := redistest.Start(t)
	m := newMember(t, on(srv.Addr))
	m.awaitUp()
	srv.Pause()
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	began := time.Now()
	if _, err := m.Apply(ctx, 1); err == nil {
		t.Error("Apply = nil without an answer, want an error")
	}
	if !strings.Contains(m.logs.String(), "will not be known") {
		t.Errorf("the log does not say that an outcome is unknown: %s", m.logs)
	}
	m.Close()
	if took := time.Since(began); took > 3*time.Second {
		t.Errorf("Apply and Close took %v, want 3s at most", took)
	}
	srv.Resume()
}
