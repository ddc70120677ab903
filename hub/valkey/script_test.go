package valkey

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"testing"
	"time"

	"github.com/valkey-io/valkey-go"

	"plusminus/hub"
	"plusminus/hub/valkey/redistest"
)

// scripts calls the scripts as a number of hubs.
type scripts struct {
	t      *testing.T
	srv    *redistest.Server
	client valkey.Client
	epoch  string
}

func newScripts(t *testing.T) *scripts {
	t.Helper()
	s := &scripts{t: t, srv: redistest.Start(t)}
	client, err := valkey.NewClient(valkey.ClientOption{InitAddress: []string{s.srv.Addr}, ForceSingleClient: true, DisableCache: true})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(client.Close)
	s.client = client
	s.epoch = s.beat("a", 0, silence, remember).epoch
	return s
}

func (s *scripts) call(script *valkey.Lua, hub string, seen uint64, args ...string) (reply, error) {
	s.t.Helper()
	keys := []string{"{p}:counter", "{p}:batches", "{p}:seen", "{p}:clients", "{p}:alive"}
	if script == applyScript {
		keys = keys[:2]
	}
	args = append([]string{s.epoch, strconv.FormatUint(seen, 10), fmt.Sprintf("epoch-%d", time.Now().UnixNano()), "{p}:news.0", hub, "0"}, args...)
	return parseReply(script.Exec(context.Background(), s.client, keys, args))
}

func (s *scripts) apply(hub string, seq int, delta int64) reply {
	s.t.Helper()
	r, err := s.call(applyScript, hub, 0, strconv.Itoa(seq), strconv.FormatInt(delta, 10))
	if err != nil {
		s.t.Fatal(err)
	}
	return r
}

func (s *scripts) beat(hub string, clients int, silence, remember time.Duration) reply {
	s.t.Helper()
	r, err := s.call(beatScript, hub, 0, strconv.Itoa(clients), "0",
		strconv.FormatInt(silence.Milliseconds(), 10), strconv.FormatInt(remember.Milliseconds(), 10))
	if err != nil {
		s.t.Fatal(err)
	}
	return r
}

func (s *scripts) want(r reply, status string, version uint64, value int64) {
	s.t.Helper()
	if r.status != status || r.version != version || r.value != value {
		s.t.Errorf("%s, version %d, value %d; want %s, %d, %d", r.status, r.version, r.value, status, version, value)
	}
}

// Up to the limits every value is exact, and beyond them nothing changes.
func TestScriptRange(t *testing.T) {
	s := newScripts(t)
	const max = hub.MaxValue
	s.want(s.apply("a", 1, max), "ok", 1, max)
	s.want(s.apply("a", 2, 1), "range", 1, max)
	s.want(s.apply("a", 3, max), "range", 1, max)
	s.want(s.apply("a", 4, -1), "ok", 2, max-1)
	s.want(s.apply("a", 5, 1), "ok", 3, max)
	s.want(s.apply("a", 6, -max), "ok", 4, 0)
	s.want(s.apply("a", 7, -max), "ok", 5, -max)
	s.want(s.apply("a", 8, -1), "range", 5, -max)
	s.want(s.apply("a", 9, 2), "ok", 6, -max+2)
	if got, want := s.srv.Do("HGET", "{p}:counter", "value"), strconv.Itoa(-max+2); got != want {
		t.Errorf("the server holds %s, want %s", got, want)
	}
	// Beyond what Lua's tostring prints exactly.
	s.srv.Do("HSET", "{p}:counter", "version", "9007199254740000")
	s.want(s.apply("a", 10, 0), "ok", 9007199254740000, -max+2)
	s.want(s.apply("a", 11, 1), "ok", 9007199254740001, -max+3)
	s.want(s.apply("a", 11, 1), "ok", 9007199254740001, -max+3)
}

// A batch counts once, whatever happens between its copies, and its result stays what it was.
func TestScriptDuplicates(t *testing.T) {
	s := newScripts(t)
	s.want(s.apply("a", 1, 5), "ok", 1, 5)
	s.want(s.apply("a", 1, 5), "ok", 1, 5)
	s.want(s.apply("b", 1, 2), "ok", 2, 7) // another hub's first
	s.want(s.apply("a", 1, 5), "ok", 1, 5)
	s.want(s.apply("a", 2, -1), "ok", 3, 6)
	s.want(s.apply("a", 1, 5), "old", 3, 6) // held up in the network
	s.want(s.apply("a", 3, hub.MaxValue), "range", 3, 6)
	s.want(s.apply("a", 4, -6), "ok", 4, 0)
	s.want(s.apply("a", 3, hub.MaxValue), "old", 4, 0)
	s.want(s.apply("a", 5, -hub.MaxValue-1), "range", 4, 0)
	s.want(s.apply("b", 2, 1), "ok", 5, 1)
	s.want(s.apply("a", 5, -hub.MaxValue-1), "range", 5, 1) // now there would be room
	s.want(s.apply("a", 6, 0), "ok", 5, 1)                  // changes nothing, and is remembered
	s.srv.Do("SCRIPT", "FLUSH")
	s.want(s.apply("a", 7, 1), "ok", 6, 2)
}

// A flushed server, and one that has lost changes, begins a new epoch, in which nothing of
// the old one counts.
func TestScriptEpochs(t *testing.T) {
	s := newScripts(t)
	s.want(s.apply("a", 1, 5), "ok", 1, 5)
	old := s.epoch
	s.srv.Do("FLUSHALL")
	r := s.apply("a", 2, 1)
	s.want(r, "epoch", 0, 0)
	if r.epoch == old || r.epoch == "" {
		t.Errorf("epoch %q after %q", r.epoch, old)
	}
	s.epoch = r.epoch
	s.want(s.apply("a", 2, 1), "ok", 1, 1)
	s.epoch = old
	s.want(s.apply("a", 3, 1), "epoch", 1, 1) // held up in the network
	s.epoch = r.epoch

	// Somebody has seen version 3 of it: the server must have been set back.
	set, err := s.call(applyScript, "b", 3, "1", "1")
	if err != nil || set.status != "epoch" || set.epoch == s.epoch || set.value != 1 {
		t.Errorf("%+v, %v; want a new epoch with value 1", set, err)
	}
	s.want(s.apply("a", 4, 1), "epoch", 1, 1)
	s.epoch = set.epoch
	s.want(s.apply("a", 2, 1), "ok", 1, 1) // the batches that are left are remembered
	s.want(s.apply("a", 4, 1), "ok", 2, 2)
}

// The sum follows what hubs say, drops those that fall silent or stop, and mends itself.
func TestScriptUsers(t *testing.T) {
	s := newScripts(t)
	want := func(r reply, users, hubs int) {
		t.Helper()
		if r.users != users || r.hubs != hubs {
			t.Errorf("%d users of %d hubs, want %d of %d", r.users, r.hubs, users, hubs)
		}
	}
	want(s.beat("a", 3, silence, remember), 3, 1)
	want(s.beat("b", 4, silence, remember), 7, 2)
	want(s.beat("a", 1, silence, remember), 5, 2)
	want(s.beat("b", -1, silence, remember), 1, 1) // stops
	want(s.beat("b", -1, silence, remember), 1, 1)
	want(s.beat("b", 10, silence, remember), 11, 2)
	time.Sleep(20 * time.Millisecond)
	want(s.beat("a", 1, 10*time.Millisecond, remember), 1, 1) // b was silent, and so was a
	s.srv.Do("HSET", "{p}:counter", "users", "77")
	want(s.beat("c", 2, silence, remember), 3, 2) // who joins adds up all anew
	// The server's clock was an hour ahead: those entries would live for an hour.
	ahead := strconv.FormatInt(time.Now().Add(time.Hour).UnixMilli(), 10)
	s.srv.Do("ZADD", "{p}:alive", ahead, "a", ahead, "c")
	want(s.beat("a", 1, silence, remember), 1, 1)
	want(s.beat("c", 2, silence, remember), 3, 2)
	s.srv.Do("DEL", "{p}:clients")
	want(s.beat("a", 1, silence, remember), 1, 2)
	want(s.beat("c", 2, silence, remember), 3, 2)
}

// Batches of hubs that are gone are forgotten, and those of others are not.
func TestScriptForgets(t *testing.T) {
	s := newScripts(t)
	for i := range 300 {
		id := "gone-" + strconv.Itoa(i)
		s.beat(id, 1, silence, remember)
		s.want(s.apply(id, 1, 1), "ok", uint64(i+1), int64(i+1))
	}
	time.Sleep(50 * time.Millisecond)
	s.beat("here", 1, silence, remember)
	s.want(s.apply("here", 1, 1), "ok", 301, 301)
	for range 3 { // a hundred at a time, so that no beat takes long
		s.beat("here", 1, silence, 40*time.Millisecond)
	}
	s.beat("here", 1, silence, 40*time.Millisecond)
	if got := s.srv.Do("HLEN", "{p}:batches"); got != "1" {
		t.Errorf("batches of %s hubs are kept, want 1", got)
	}
	if got := s.srv.Do("ZCARD", "{p}:seen"); got != "1" {
		t.Errorf("%s hubs are remembered, want 1", got)
	}
	s.want(s.apply("here", 1, 1), "ok", 301, 301)
}

// What is no counter is not overwritten.
func TestScriptDamage(t *testing.T) {
	s := newScripts(t)
	s.srv.Do("HSET", "{p}:counter", "value", "many")
	if _, err := s.call(applyScript, "a", 0, "1", "1"); err == nil {
		t.Error("a value that is no number was added to")
	}
	s.srv.Do("SET", "{p}:counter", "x")
	_, err := s.call(applyScript, "a", 0, "1", "1")
	if _, ok := errors.AsType[*valkey.ValkeyError](err); !ok {
		t.Errorf("err = %v, want the server's", err)
	}
}

func TestParseMessage(t *testing.T) {
	r, ok := parseMessage("e 3 -9007199254740991 5 6 hub")
	if !ok || r.epoch != "e" || r.version != 3 || r.value != -hub.MaxValue || r.users != 5 || r.usersSeq != 6 || r.from != "hub" {
		t.Errorf("%+v, %v", r, ok)
	}
	for _, s := range []string{"", "e 3 4 5 6", "e x 4 5 6 h", "e 3 9007199254740992 5 6 h", "e 3 4 5 -6 h"} {
		if r, ok := parseMessage(s); ok {
			t.Errorf("parseMessage(%q) = %+v", s, r)
		}
	}
}
