package valkey

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/valkey-io/valkey-go"

	"plusminus/hub"
	"plusminus/hub/valkey/redistest"
)

// scripts calls the scripts on behalf of several hubs.
type scripts struct {
	// Owned by the test's goroutine.
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

// testKeys are the keys of the default counter with the prefix p.
var testKeys = newCounter(&Config{Prefix: "p"}, "").keys

func (s *scripts) call(script *script, hub string, seen uint64, keep time.Duration, args ...string) (reply, error) {
	s.t.Helper()
	c := &scriptCall{keys: testKeys, args: append([]string{s.epoch, strconv.FormatUint(seen, 10), fmt.Sprintf("epoch-%d", time.Now().UnixNano()),
		"{p}:news.0", hub, "0", "", strconv.FormatInt(keep.Milliseconds(), 10), strconv.FormatInt(linger.Milliseconds(), 10)}, args...)}
	script.exec(context.Background(), s.client, []*scriptCall{c})
	return c.reply, c.err
}

func (s *scripts) apply(hub string, seq int, delta int64) reply {
	s.t.Helper()
	r, err := s.add(hub, 0, seq, delta)
	if err != nil {
		s.t.Fatal(err)
	}
	return r
}

// add is apply for a hub that has seen the version.
func (s *scripts) add(hub string, seen uint64, seq int, delta int64) (reply, error) {
	s.t.Helper()
	return s.call(applyScript, hub, seen, remember, strconv.Itoa(seq), "add", strconv.FormatInt(delta, 10), "0", "1")
}

func (s *scripts) beat(hub string, clients int, silence, keep time.Duration) reply {
	s.t.Helper()
	r, err := s.call(beatScript, hub, 0, keep, strconv.Itoa(clients), "0", strconv.FormatInt(silence.Milliseconds(), 10), "0")
	if err != nil {
		s.t.Fatal(err)
	}
	return r
}

func (s *scripts) want(r reply, status string, version uint64, value int64) {
	s.t.Helper()
	if r.status != status || r.version != version || r.value != value {
		s.t.Errorf("the reply is %s, version %d, value %d; want %s, %d, %d", r.status, r.version, r.value, status, version, value)
	}
}

// Every value within the limits is exact. A batch that would exceed them changes nothing.
func TestScriptRange(t *testing.T) {
	t.Parallel()
	s := newScripts(t)
	const limit = hub.MaxValue
	s.want(s.apply("a", 1, limit), "ok", 1, limit)
	s.want(s.apply("a", 2, 1), "range", 1, limit)
	s.want(s.apply("a", 3, limit), "range", 1, limit)
	s.want(s.apply("a", 4, -1), "ok", 2, limit-1)
	s.want(s.apply("a", 5, 1), "ok", 3, limit)
	s.want(s.apply("a", 6, -limit), "ok", 4, 0)
	s.want(s.apply("a", 7, -limit), "ok", 5, -limit)
	s.want(s.apply("a", 8, -1), "range", 5, -limit)
	s.want(s.apply("a", 9, 2), "ok", 6, -limit+2)
	if got, want := s.srv.Do("HGET", "{p}:counter", "value"), strconv.FormatInt(-limit+2, 10); got != want {
		t.Errorf("the server has %s, want %s", got, want)
	}
	// Lua's tostring would round this version.
	s.srv.Do("HSET", "{p}:counter", "version", "9007199254740000")
	s.want(s.apply("a", 10, 0), "ok", 9007199254740000, -limit+2)
	s.want(s.apply("a", 11, 1), "ok", 9007199254740001, -limit+3)
	s.want(s.apply("a", 11, 1), "ok", 9007199254740001, -limit+3)
}

// A batch counts once, whatever happens between its copies. Each copy has the same result.
func TestScriptDuplicates(t *testing.T) {
	t.Parallel()
	s := newScripts(t)
	s.want(s.apply("a", 1, 5), "ok", 1, 5)
	s.want(s.apply("a", 1, 5), "ok", 1, 5)
	s.want(s.apply("b", 1, 2), "ok", 2, 7) // the first batch of another hub
	s.want(s.apply("a", 1, 5), "ok", 1, 5)
	s.want(s.apply("a", 2, -1), "ok", 3, 6)
	s.want(s.apply("a", 1, 5), "old", 3, 6) // delayed in the network
	s.want(s.apply("a", 3, hub.MaxValue), "range", 3, 6)
	s.want(s.apply("a", 4, -6), "ok", 4, 0)
	s.want(s.apply("a", 3, hub.MaxValue), "old", 4, 0)
	s.want(s.apply("a", 5, -hub.MaxValue-1), "range", 4, 0)
	s.want(s.apply("b", 2, 1), "ok", 5, 1)
	s.want(s.apply("a", 5, -hub.MaxValue-1), "range", 5, 1) // now the value would stay in range
	s.want(s.apply("a", 6, 0), "ok", 5, 1)                  // changes nothing, and is recorded
	s.srv.Do("SCRIPT", "FLUSH")
	s.want(s.apply("a", 7, 1), "ok", 6, 2)
}

// A flushed server begins a new epoch, and so does one that has lost changes. No batch of the
// old epoch counts in the new one.
func TestScriptEpochs(t *testing.T) {
	t.Parallel()
	s := newScripts(t)
	s.want(s.apply("a", 1, 5), "ok", 1, 5)
	old := s.epoch
	s.srv.Do("FLUSHALL")
	r := s.apply("a", 2, 1)
	s.want(r, "epoch", 0, 0)
	if r.epoch == old || r.epoch == "" {
		t.Errorf("the epoch after %q is %q, want a new one", old, r.epoch)
	}
	s.epoch = r.epoch
	s.want(s.apply("a", 2, 1), "ok", 1, 1)
	s.epoch = old
	s.want(s.apply("a", 3, 1), "epoch", 1, 1) // delayed in the network
	s.epoch = r.epoch

	// Hub b has seen version 3, so the server must have lost changes.
	set, err := s.add("b", 3, 1, 1)
	if err != nil || set.status != "epoch" || set.epoch == s.epoch || set.value != 1 {
		t.Errorf("the reply is %+v, %v; want a new epoch with value 1", set, err)
	}
	s.want(s.apply("a", 4, 1), "epoch", 1, 1)
	s.epoch = set.epoch
	s.want(s.apply("a", 2, 1), "ok", 1, 1) // batches that the server still has do not count again
	s.want(s.apply("a", 4, 1), "ok", 2, 2)
}

// The sum follows the numbers that hubs report, and loses hubs that stop or do not beat. A wrong
// sum corrects itself.
func TestScriptUsers(t *testing.T) {
	t.Parallel()
	s := newScripts(t)
	want := func(r reply, users, hubs int) {
		t.Helper()
		if r.users != users || r.hubs != hubs {
			t.Errorf("the reply has %d users of %d hubs, want %d of %d", r.users, r.hubs, users, hubs)
		}
	}
	want(s.beat("a", 3, silence, remember), 3, 1)
	want(s.beat("b", 4, silence, remember), 7, 2)
	want(s.beat("a", 1, silence, remember), 5, 2)
	want(s.beat("b", -1, silence, remember), 1, 1) // stops
	want(s.beat("b", -1, silence, remember), 1, 1)
	want(s.beat("b", 10, silence, remember), 11, 2)
	time.Sleep(20 * time.Millisecond)
	want(s.beat("a", 1, 10*time.Millisecond, remember), 1, 1) // neither has beaten for 20 ms
	s.srv.Do("HSET", "{p}:counter", "users", "77")
	want(s.beat("c", 2, silence, remember), 3, 2) // the first beat of a hub adds up all clients
	// The server's clock was an hour ahead. These entries must not stay for an hour.
	ahead := strconv.FormatInt(time.Now().Add(time.Hour).UnixMilli(), 10)
	s.srv.Do("ZADD", "{p}:alive", ahead, "a", ahead, "c")
	want(s.beat("a", 1, silence, remember), 1, 1)
	want(s.beat("c", 2, silence, remember), 3, 2)
	s.srv.Do("DEL", "{p}:clients")
	want(s.beat("a", 1, silence, remember), 1, 2)
	want(s.beat("c", 2, silence, remember), 3, 2)
}

// The server deletes the last batches of hubs that are gone, and keeps those of others.
func TestScriptForgets(t *testing.T) {
	t.Parallel()
	s := newScripts(t)
	for i := range 300 {
		id := "gone-" + strconv.Itoa(i)
		s.beat(id, 1, silence, remember)
		s.want(s.apply(id, 1, 1), "ok", uint64(i+1), int64(i+1))
	}
	long := strconv.FormatInt(time.Now().Add(-remember-time.Second).UnixMilli(), 10)
	s.srv.Do("EVAL", `for _, hub in ipairs(redis.call('ZRANGE', KEYS[1], 0, -1)) do redis.call('ZADD', KEYS[1], ARGV[1], hub) end return 1`, "1", "{p}:seen", long)
	s.beat("here", 1, silence, remember) // each beat deletes a hundred, so that no beat takes long
	s.want(s.apply("here", 1, 1), "ok", 301, 301)
	for range 3 {
		s.beat("here", 1, silence, remember)
	}
	if got := s.srv.Do("HLEN", "{p}:batches"); got != "1" {
		t.Errorf("the server has batches of %s hubs, want 1", got)
	}
	if got := s.srv.Do("ZCARD", "{p}:seen"); got != "1" {
		t.Errorf("the server has beats of %s hubs, want 1", got)
	}
	s.want(s.apply("here", 1, 1), "ok", 301, 301)
}

// The scripts do not overwrite a key that holds something else.
func TestScriptDamage(t *testing.T) {
	t.Parallel()
	s := newScripts(t)
	s.srv.Do("HSET", "{p}:counter", "value", "many")
	if _, err := s.add("a", 0, 1, 1); err == nil {
		t.Error("applyScript on a value that is not a number = nil, want an error")
	}
	s.srv.Do("SET", "{p}:counter", "x")
	_, err := s.add("a", 0, 1, 1)
	if _, ok := errors.AsType[*valkey.ValkeyError](err); !ok {
		t.Errorf("applyScript on a string = %v, want the server's error", err)
	}
}

func TestParseMessage(t *testing.T) {
	t.Parallel()
	r, ok := parseMessage("e 3 -9007199254740991 5 6 hub likes")
	if r.name != "likes" {
		t.Errorf("parseMessage = %+v, want the name likes", r)
	}
	if !ok || r.epoch != "e" || r.version != 3 || r.value != -hub.MaxValue || r.users != 5 || r.usersSeq != 6 || r.from != "hub" {
		t.Errorf("parseMessage = %+v, %v", r, ok)
	}
	for _, s := range []string{"", "e 3 4 5 6", "e x 4 5 6 h", "e 3 9007199254740992 5 6 h", "e 3 4 5 -6 h"} {
		if r, ok := parseMessage(s); ok {
			t.Errorf("parseMessage(%q) = %+v, want none", s, r)
		}
	}
}

// A message that parses is the same after encoding and parsing it again.
func FuzzParseMessage(f *testing.F) {
	f.Add("e 3 -9007199254740991 5 6 hub")
	f.Add("e 3 4 5 6 hub likes")
	f.Add("e 3 4 5 -6 h")
	f.Add("")
	f.Fuzz(func(t *testing.T, s string) {
		r, ok := parseMessage(s)
		if !ok {
			return
		}
		text := fmt.Sprintf("%s %d %d %d %d %s", r.epoch, r.version, r.value, r.users, r.usersSeq, r.from)
		if strings.Count(s, " ") == 6 {
			text += " " + r.name
		}
		again, ok := parseMessage(text)
		if !ok || again != r {
			t.Errorf("parseMessage(%q) = %+v, and after encoding it again %+v", s, r, again)
		}
	})
}
