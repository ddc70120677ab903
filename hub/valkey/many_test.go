package valkey

import (
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"plusminus/hub"
	"plusminus/hub/valkey/redistest"
)

// watch watches a counter and waits for its first news.
func (m *member) watch(counter string) {
	m.t.Helper()
	m.Watch(counter)
	await(m.t, "there is news of "+counter, 5*time.Second, func() bool { return m.newsOf(counter).Snapshot.Epoch > 0 })
}

// values returns the names and values of entries.
func values(entries []hub.Entry) (list []string) {
	for _, e := range entries {
		list = append(list, fmt.Sprint(e.Counter, " ", e.Value))
	}
	return list
}

// Members share each counter that they watch, and its users. The others are read when they are asked for.
func TestManyCounters(t *testing.T) {
	t.Parallel()
	srv := redistest.Start(t)
	a, b := newManyMember(t, on(srv.Addr), 100), newManyMember(t, on(srv.Addr), 100)
	a.awaitUp()
	b.awaitUp()
	a.watch("likes")
	b.watch("likes")
	if got := b.newsOf("likes").Snapshot; got != (hub.Snapshot{Epoch: 1}) {
		t.Errorf("the news of a counter that is not there is %+v, want the zero value", got)
	}
	if got := a.mustApplyTo("likes", 3); got != (hub.Snapshot{Epoch: 1, Version: 1, Value: 3}) {
		t.Errorf("ApplyAll = %+v, want version 1, value 3", got)
	}
	await(t, "b has the news", time.Second, func() bool { return b.newsOf("likes").Snapshot.Value == 3 })
	b.mustApplyTo("likes", -1)
	await(t, "a has the news", time.Second, func() bool { return a.newsOf("likes").Snapshot.Value == 2 })
	a.Announce("likes", 2)
	b.Announce("likes", 5)
	a.Announce("", 1)
	await(t, "both know the users", 5*time.Second, func() bool {
		return a.newsOf("likes").Others == 5 && b.newsOf("likes").Others == 2 && b.news().Others == 1
	})
	changes := []hub.Change{{Counter: "b", Delta: 1}, {Counter: "a.x", Delta: 2}, {Delta: 7}, {Counter: "a.y", Delta: 3}, {Counter: "none"}}
	a.ApplyAll(t.Context(), changes)
	for _, c := range changes {
		if c.Err != nil {
			t.Errorf("the change of %q = %v", c.Counter, c.Err)
		}
	}
	for _, tt := range []struct {
		prefix, after string
		limit         int
		want          []string
	}{
		{"", "", 10, []string{"a.x 2", "a.y 3", "b 1", "likes 2"}},
		{"a.", "", 10, []string{"a.x 2", "a.y 3"}},
		{"a.", "a.x", 10, []string{"a.y 3"}},
		{"", "a.y", 1, []string{"b 1"}},
		{"", "b", 0, nil},
		{"z", "", 5, nil},
	} {
		list, err := b.List(t.Context(), tt.prefix, tt.after, tt.limit)
		if got := values(list); err != nil || !slices.Equal(got, tt.want) {
			t.Errorf("List(%q, %q, %d) = %q, %v, want %q", tt.prefix, tt.after, tt.limit, got, err, tt.want)
		}
	}
	if snap, err := b.LoadCounter(t.Context(), "a.y"); err != nil || snap.Value != 3 || snap.Version != 1 {
		t.Errorf("LoadCounter = %+v, %v, want version 1, value 3", snap, err)
	}
	if snap, err := b.LoadCounter(t.Context(), "none"); err != nil || snap != (hub.Snapshot{}) {
		t.Errorf("LoadCounter of a counter that is not there = %+v, %v, want the zero value", snap, err)
	}
	await(t, "both have counted", 2*countEvery, func() bool { return a.Len() == 4 && b.Len() == 4 })
	if snap, err := b.Load(t.Context()); err != nil || snap.Value != 7 {
		t.Errorf("Load = %+v, %v, want 7: the default counter is as before", snap, err)
	}
}

// Operators set and remove counters. All members learn of it, and nothing was lost.
func TestManyOperated(t *testing.T) {
	t.Parallel()
	srv := redistest.Start(t)
	a, b := newManyMember(t, on(srv.Addr), 100), newManyMember(t, on(srv.Addr), 100)
	for _, m := range []*member{a, b} {
		m.awaitUp()
		m.watch("likes")
	}
	a.mustApplyTo("likes", 3)
	value := hub.Value(40)
	set := []hub.Change{{Counter: "likes", Set: &value, Delta: 2}}
	b.ApplyAll(t.Context(), set)
	if set[0].Err != nil || set[0].Snapshot != (hub.Snapshot{Epoch: 1, Version: 2, Value: 42}) {
		t.Errorf("setting = %+v, %v, want version 2, value 42", set[0].Snapshot, set[0].Err)
	}
	await(t, "a has the news", time.Second, func() bool { return a.newsOf("likes").Snapshot.Value == 42 })
	value = hub.MaxValue
	b.ApplyAll(t.Context(), set)
	if !errors.Is(set[0].Err, hub.ErrRange) {
		t.Errorf("setting beyond the range = %v, want ErrRange", set[0].Err)
	}
	remove := []hub.Change{{Counter: "likes", Remove: true}, {Remove: true}}
	a.mustApply(9)
	a.ApplyAll(t.Context(), remove)
	for _, c := range remove {
		if c.Err != nil || c.Snapshot.Value != 0 {
			t.Errorf("removing %q = %+v, %v, want 0", c.Counter, c.Snapshot, c.Err)
		}
	}
	await(t, "b has the news", time.Second, func() bool { return b.newsOf("likes").Snapshot == hub.Snapshot{Epoch: 2} })
	if list, err := b.List(t.Context(), "", "", 10); err != nil || len(list) != 0 {
		t.Errorf("List = %v, %v, want none", list, err)
	}
	if got := b.mustApplyTo("likes", 5); got != (hub.Snapshot{Epoch: 2, Version: 1, Value: 5}) {
		t.Errorf("ApplyAll after the removal = %+v, want version 1, value 5", got)
	}
	await(t, "a has the news", time.Second, func() bool { return a.newsOf("likes").Snapshot.Value == 5 })
	for _, m := range []*member{a, b} {
		if logs := m.logs.String(); strings.Contains(logs, "ERROR") {
			t.Errorf("a removal is logged as an error: %s", logs)
		}
	}
}

// There are never more counters than the limit, but for those that members make within two seconds. What is refused leaves nothing.
func TestManyLimit(t *testing.T) {
	t.Parallel()
	srv := redistest.Start(t)
	a, b := newManyMember(t, on(srv.Addr), 3), newManyMember(t, on(srv.Addr), 3)
	a.awaitUp()
	b.awaitUp()
	var changes []hub.Change
	for i := range 5 {
		changes = append(changes, hub.Change{Counter: "n" + strconv.Itoa(i), Delta: 1})
	}
	a.ApplyAll(t.Context(), changes)
	for i, c := range changes {
		if full := errors.Is(c.Err, hub.ErrFull); full != (i >= 3) {
			t.Errorf("change %d = %v, want room for three", i, c.Err)
		}
	}
	await(t, "b has counted", 2*countEvery, func() bool { return b.Len() == 3 })
	b.watch("new")
	changes = []hub.Change{{Counter: "new", Delta: 1}, {Counter: "n0", Remove: true}}
	b.ApplyAll(t.Context(), changes)
	if !errors.Is(changes[0].Err, hub.ErrFull) || changes[1].Err != nil {
		t.Errorf("ApplyAll = %v and %v, want ErrFull and nil", changes[0].Err, changes[1].Err)
	}
	b.watch("n1") // is there
	b.mustApplyTo("n1", 1)
	await(t, "b has counted", 2*countEvery, func() bool { return b.Len() == 2 })
	b.mustApplyTo("new", 1)
	for _, name := range []string{"n3", "n4"} {
		if got := srv.Do("EXISTS", b.cfg.counterKey(name, keyBatches), b.cfg.counterKey(name, keySeen)); got != "0" {
			t.Errorf("the server has %s keys of %s, which was refused", got, name)
		}
	}
}

// A counter that no member watches is one hash on the server, a name in the list, and what is deleted after a day. One that
// nobody has acted on leaves nothing.
func TestManyIdle(t *testing.T) {
	t.Parallel()
	srv := redistest.Start(t)
	a := newManyMember(t, on(srv.Addr), 100)
	a.awaitUp()
	for _, name := range []string{"acted", "watched"} {
		a.watch(name)
		a.Announce(name, 3)
	}
	a.mustApplyTo("acted", 1)
	key := a.cfg.counterKey
	await(t, "the server has the users", 5*time.Second, func() bool {
		users, err := srv.TryDo("HGET", key("watched", keyCounter), "users")
		return err == nil && users == "3"
	})
	for _, name := range []string{"acted", "watched"} {
		a.Announce(name, 0)
		a.Unwatch(name)
	}
	await(t, "the member has forgotten the counters", 5*time.Second, func() bool {
		a.Store.mu.Lock()
		defer a.Store.mu.Unlock()
		return len(a.counters) == 1 && len(a.due) <= 1
	})
	for _, name := range []string{"acted", "watched"} {
		if got := srv.Do("EXISTS", key(name, keyClients), key(name, keyAlive)); got != "0" {
			t.Errorf("the server has %s keys of clients of %s, want none", got, name)
		}
	}
	ttl := func(key string) time.Duration {
		ms, err := strconv.ParseInt(srv.Do("PTTL", key), 10, 64)
		if err != nil {
			t.Fatal(err)
		}
		return time.Duration(ms) * time.Millisecond
	}
	for key, most := range map[string]time.Duration{
		key("acted", keyBatches): remember, key("acted", keySeen): remember, key("watched", keyCounter): linger,
	} {
		if got := ttl(key); got <= 0 || got > most {
			t.Errorf("%s lives for %v, want at most %v", key, got, most)
		}
	}
	if got := ttl(key("acted", keyCounter)); got > 0 {
		t.Errorf("the counter lives for %v, want for ever", got)
	}
	srv.Do("DEL", key("acted", keyBatches), key("acted", keySeen)) // as after a day
	a.watch("acted")
	if got := a.mustApplyTo("acted", 1); got.Value != 2 {
		t.Errorf("after a day the counter is %+v, want 2", got)
	}
}

// A counter that is watched again has a later epoch than any news of it from before.
func TestManyWatchedAgain(t *testing.T) {
	t.Parallel()
	srv := redistest.Start(t)
	a := newManyMember(t, on(srv.Addr), 100)
	a.awaitUp()
	a.watch("likes")
	a.mustApplyTo("likes", 1)
	remove := []hub.Change{{Counter: "likes", Remove: true}}
	a.ApplyAll(t.Context(), remove)
	if got := remove[0].Snapshot; remove[0].Err != nil || got != (hub.Snapshot{Epoch: 2}) {
		t.Fatalf("removing = %+v, %v, want epoch 2", got, remove[0].Err)
	}
	a.Unwatch("likes")
	await(t, "the member has forgotten the counter", 5*time.Second, func() bool {
		a.Store.mu.Lock()
		defer a.Store.mu.Unlock()
		return a.counters["likes"] == nil
	})
	a.Watch("likes")
	await(t, "there is news with a later epoch", 5*time.Second, func() bool { return a.newsOf("likes").Snapshot.Epoch > 2 })
	if got := a.mustApplyTo("likes", 1); got.Epoch <= 2 || got.Value != 1 {
		t.Errorf("ApplyAll = %+v, want 1 in a later epoch than 2", got)
	}
}

// A counter that something else has overwritten is refused, with a line in the log. The others work.
func TestManyDamage(t *testing.T) {
	t.Parallel()
	srv := redistest.Start(t)
	a := newManyMember(t, on(srv.Addr), 100)
	a.awaitUp()
	a.watch("good")
	srv.Do("HSET", a.cfg.counterKey("bad", keyCounter), "epoch", "x", "version", "1", "value", "many")
	a.Watch("bad")
	await(t, "the damage is logged", 5*time.Second, func() bool {
		return strings.Contains(a.logs.String(), `msg="a counter cannot be used" counter=bad`)
	})
	changes := []hub.Change{{Counter: "bad", Delta: 1}, {Counter: "good", Delta: 1}}
	a.ApplyAll(t.Context(), changes)
	if changes[0].Err == nil || changes[1].Err != nil || !a.up() {
		t.Errorf("ApplyAll = %v and %v, want an error for the damaged counter only", changes[0].Err, changes[1].Err)
	}
	if _, err := a.LoadCounter(t.Context(), "bad"); err == nil || !strings.Contains(err.Error(), "damaged") {
		t.Errorf("LoadCounter = %v, want an error that says damaged", err)
	}
}

// A server that was flushed begins new epochs. One line in the log tells of all counters.
func TestManyFlushed(t *testing.T) {
	t.Parallel()
	srv := redistest.Start(t)
	a := newManyMember(t, on(srv.Addr), 100)
	a.awaitUp()
	for i := range 20 {
		name := "n" + strconv.Itoa(i)
		a.watch(name)
		a.mustApplyTo(name, 5)
	}
	srv.Do("FLUSHALL")
	await(t, "the member is in the new epochs", 5*time.Second, func() bool {
		for i := range 20 {
			if a.newsOf("n"+strconv.Itoa(i)).Snapshot != (hub.Snapshot{Epoch: 2}) {
				return false
			}
		}
		return true
	})
	if n := strings.Count(a.logs.String(), "level=ERROR"); n == 0 || n > 5 {
		t.Errorf("%d lines for 20 counters, want at most one each two seconds: %s", n, a.logs)
	}
	if got := a.mustApplyTo("n3", 1); got != (hub.Snapshot{Epoch: 2, Version: 1, Value: 1}) {
		t.Errorf("ApplyAll = %+v, want version 1, value 1", got)
	}
}

// A cluster spreads the counters. When a node ends and its replica takes over, each action has counted once, and actions
// count again, even if the node's address is the configured one.
func TestCluster(t *testing.T) {
	t.Parallel()
	cluster := redistest.StartCluster(t, 3)
	members := []*member{newManyMember(t, on(cluster.Nodes[0].Addr), 1000), newManyMember(t, on(cluster.Nodes[0].Addr), 1000)}
	for i := range 60 {
		name := "n" + strconv.Itoa(i)
		for _, m := range members {
			m.awaitUp()
			m.watch(name)
		}
		members[i%2].mustApplyTo(name, int64(i+1))
	}
	for i, node := range cluster.Nodes {
		if n := node.Do("DBSIZE"); n == "0" {
			t.Errorf("node %d has no keys", i)
		}
	}
	names := []string{"", "likes", "door.a", "door.b", "crowd"}
	c := newCrowdOf(t, names, members...)
	time.Sleep(200 * time.Millisecond)
	c.pause()
	cluster.Copied(t)
	cluster.Nodes[0].Kill()
	c.resume()
	c.healedWithin("a node was killed", 20*time.Second)
	c.wantExactOn(func(counter string) string {
		snap, err := members[1].LoadCounter(t.Context(), counter)
		if err != nil {
			t.Fatal(err)
		}
		return strconv.FormatInt(snap.Value, 10)
	})
	list, err := members[0].List(t.Context(), "n", "", 1000)
	if err != nil || len(list) != 60 {
		t.Errorf("List has %d counters, %v, want 60", len(list), err)
	}
	for _, e := range list {
		if "n"+strconv.FormatInt(e.Value-1, 10) != e.Counter {
			t.Errorf("%s is %d", e.Counter, e.Value)
		}
	}
	for _, m := range members {
		if strings.Contains(m.logs.String(), "not the one it was") {
			t.Errorf("changes were lost: %s", m.logs)
		}
		await(t, "all counters have the same value again", 10*time.Second, func() bool {
			for i := range 60 {
				name := "n" + strconv.Itoa(i)
				m.Store.mu.Lock()
				of := m.counters[name]
				known := of.now.Value
				m.Store.mu.Unlock()
				if known != int64(i+1) {
					return false
				}
			}
			return true
		})
	}
}
