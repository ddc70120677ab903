package valkey

import (
	"context"
	"crypto/sha1"
	"encoding/hex"
	"errors"
	"fmt"
	"strconv"
	"strings"

	"github.com/valkey-io/valkey-go"

	"plusminus/hub"
)

// The keys of a counter, all with its prefix. That of the default counter is "{prefix}:", and those of the others are in
// counter.go:
//
//	counter  hash    epoch, version, value, users (of all hubs), usersseq (how often users
//	                 has changed), told (server time of the last message, ms)
//	batches  hash    hub -> "seq version value" of its last batch, or "seq range"
//	seen     zset    hub -> server time of its last beat or batch, ms; decides when its batch is deleted
//	clients  hash    hub -> its number of clients
//	alive    zset    hub -> server time of its last beat, ms; decides when it counts as gone
//
// A counter other than the default one is there if its version is above 0. Its name is then in the zset names, which the
// counters of a bucket share. The hash of one that is not there only serves hubs that watch it, and expires.
//
// A channel carries messages "epoch version value users usersseq hub", and the name of the counter after that unless it
// is the default one. The names of channels have the database's number, since all databases share the channels.
const (
	keyCounter = "counter"
	keyBatches = "batches"
	keySeen    = "seen"
	keyClients = "clients"
	keyAlive   = "alive"
	keyNames   = "names"
)

// removedMark begins the epoch of a counter that was removed. A hub that meets it knows that nothing was lost.
const removedMark = "-"

// prelude begins both scripts. Its keys are counter, batches, seen, clients and alive, and for a counter other than the default
// one names. Its arguments (ARGV) are:
//
//	1  the epoch that the hub knows
//	2  the newest version in it that the hub has seen
//	3  a random id for a new epoch
//	4  the channel
//	5  the hub's id
//	6  the least time between two messages, in ms
//	7  the counter's name
//	8  after how many ms without a beat or batch the last batch of a hub is deleted
//	9  after how many ms without a beat what only serves hubs that watch the counter is deleted
//
// A missing epoch means that the server is empty: new, flushed, or replaced. A version below
// the one that a hub has seen means that the server has lost changes, by a restart or a
// failover. In both cases a new epoch begins. Otherwise hubs would drop the versions that
// follow as old.
//
// Numbers are exact: Lua's are doubles, and all numbers here stay in ±2^53. The scripts format
// them with %.0f, since tostring keeps 14 digits only.
const prelude = `
local c = redis.call('HMGET', KEYS[1], 'epoch', 'version', 'value', 'users', 'usersseq', 'told')
local epoch, version, value, users, usersseq, told = c[1], tonumber(c[2] or 0), tonumber(c[3] or 0), tonumber(c[4] or 0), tonumber(c[5] or 0), tonumber(c[6] or 0)
if not (version and value and users and usersseq and told) then
	return redis.error_reply('PLUSMINUS the counter is damaged: ' .. KEYS[1] .. ' holds what is no number')
end
local t = redis.call('TIME')
local now = t[1] * 1000 + math.floor(t[2] / 1000)
local names, keep, linger = KEYS[6], tonumber(ARGV[8]), tonumber(ARGV[9])
local function store()
	redis.call('HSET', KEYS[1], 'epoch', epoch, 'version', string.format('%.0f', version), 'value', string.format('%.0f', value))
end
local function expire() -- unless the counter is there
	if names and version == 0 then redis.call('PEXPIRE', KEYS[1], linger) end
end
if not epoch or epoch == ARGV[1] and version < tonumber(ARGV[2]) then
	epoch = ARGV[3]
	store()
	expire()
end
local function publish()
	redis.call('HSET', KEYS[1], 'told', string.format('%.0f', now))
	local message = epoch .. string.format(' %.0f %.0f %.0f %.0f ', version, value, users, usersseq) .. ARGV[5]
	if names then message = message .. ' ' .. ARGV[7] end
	redis.call('PUBLISH', ARGV[4], message)
end
local function forget() -- the last batches of hubs that are gone
	for _, hub in ipairs(redis.call('ZRANGEBYSCORE', KEYS[3], '-inf', now - keep, 'LIMIT', 0, 100)) do
		redis.call('HDEL', KEYS[2], hub)
		redis.call('ZREM', KEYS[3], hub)
	end
end
local quiet = now >= told and now < told + tonumber(ARGV[6])
`

// applyScript changes the counter. Its further arguments are:
//
//	10  the batch's sequence number
//	11  add, set or remove
//	12  what is added
//	13  the value that this is added to, for set
//	14  1 if a counter that is not there may be made, else 0
//
// A batch counts once for each hub and sequence number, and only in the epoch that the
// hub knows. So a copy that was delayed in the network cannot count after a later batch or in
// a later epoch.
//
// A batch that is out of range is recorded, too. Otherwise a delayed copy of it could count
// once the value has changed.
//
// A removal begins a new epoch, in which the counter is not there.
//
// Not each change is worth a message to all hubs. If the last message is less than ARGV[6] old,
// the script sends none and returns untold = 1. Then the hub sees to it that a message follows.
var applyScript = newScript(prelude + `
if epoch ~= ARGV[1] then
	return {'epoch', epoch, version, value, users, usersseq, 0}
end
local seq, op, delta, from = tonumber(ARGV[10]), ARGV[11], tonumber(ARGV[12]), value
local last = redis.call('HGET', KEYS[2], ARGV[5])
if last then
	local lastseq, lastversion, lastvalue = string.match(last, '^(%d+) (%S+) ?(%S*)$')
	if seq < tonumber(lastseq) then
		return {'old', epoch, version, value, users, usersseq, 0}
	end
	if seq == tonumber(lastseq) then
		if lastversion == 'range' then
			return {'range', epoch, version, value, users, usersseq, 0}
		end
		return {'ok', epoch, tonumber(lastversion), tonumber(lastvalue), users, usersseq, 1}
	end
end
if op == 'remove' then
	if version > 0 then
		epoch, version, value = '` + removedMark + `' .. ARGV[3], 0, 0
		store()
		expire()
		redis.call('ZREM', names, ARGV[7])
		redis.call('DEL', KEYS[2], KEYS[3])
		publish()
	end
	return {'ok', epoch, version, value, users, usersseq, 0}
end
local changes = op == 'set' or delta ~= 0
if names and version == 0 then
	if not changes then return {'ok', epoch, version, value, users, usersseq, 0} end
	if ARGV[14] == '0' then return {'full', epoch, version, value, users, usersseq, 0} end
end
if op == 'set' then from = tonumber(ARGV[13]) end
local function record(result)
	redis.call('HSET', KEYS[2], ARGV[5], ARGV[10] .. result)
	redis.call('ZADD', KEYS[3], now, ARGV[5])
	if not last then forget() end
	redis.call('PEXPIRE', KEYS[2], keep)
	redis.call('PEXPIRE', KEYS[3], keep)
end
if from + delta > 9007199254740991 or from + delta < -9007199254740991 then
	record(' range')
	return {'range', epoch, version, value, users, usersseq, 0}
end
local untold = 0
if changes then
	if names and version == 0 then
		redis.call('ZADD', names, 0, ARGV[7])
		redis.call('PERSIST', KEYS[1])
	end
	version, value = version + 1, from + delta
	store()
end
record(string.format(' %.0f %.0f', version, value))
if changes then
	if quiet then untold = 1 else publish() end
end
return {'ok', epoch, version, value, users, usersseq, untold}
`)

// argument returns n as an argument of applyScript, or [hub.ErrRange] if Lua's doubles
// would round it.
func argument(n hub.Value) (string, error) {
	s := string(hub.AppendValue(nil, n))
	_, err := hub.ParseValue(s)
	return s, err
}

// beatScript records a beat of a hub, removes hubs that are gone, and returns the value and the
// sum of all clients. Its further arguments are:
//
//	10  the hub's number of clients, or -1 if the hub stops, or has none and the counter is not the default one
//	11  1 if a message is to be sent
//	12  after how many ms without a beat a hub counts as gone
//	13  how many ms the hub's next beat may come later than those of most hubs
//
// Its cost does not depend on the number of hubs, except for the first beat of each hub, which
// adds up all clients again.
var beatScript = newScript(prelude + `
local clients, silence, later = tonumber(ARGV[10]), tonumber(ARGV[12]), tonumber(ARGV[13])
local total = users
local function gone(list)
	for _, hub in ipairs(list) do
		total = total - tonumber(redis.call('HGET', KEYS[4], hub) or 0)
		redis.call('HDEL', KEYS[4], hub)
		redis.call('ZREM', KEYS[5], hub)
	end
end
gone(redis.call('ZRANGEBYSCORE', KEYS[5], '-inf', now - silence))
gone(redis.call('ZRANGEBYSCORE', KEYS[5], now + linger, '+inf')) -- the clock was set back; who lives comes again
local had = redis.call('HGET', KEYS[4], ARGV[5])
if not had then
	total = 0
	for _, n in ipairs(redis.call('HVALS', KEYS[4])) do total = total + tonumber(n) end
end
total = total - tonumber(had or 0)
if clients < 0 then
	redis.call('HDEL', KEYS[4], ARGV[5])
	redis.call('ZREM', KEYS[5], ARGV[5])
else
	total = total + clients
	redis.call('HSET', KEYS[4], ARGV[5], ARGV[10])
	redis.call('ZADD', KEYS[5], now + later, ARGV[5])
	redis.call('PEXPIRE', KEYS[4], linger)
	redis.call('PEXPIRE', KEYS[5], linger)
end
if not names or redis.call('HGET', KEYS[2], ARGV[5]) then
	redis.call('ZADD', KEYS[3], now, ARGV[5])
	redis.call('PEXPIRE', KEYS[2], keep)
	redis.call('PEXPIRE', KEYS[3], keep)
end
forget()
local untold = 0
if total ~= users then
	users, usersseq = total, usersseq + 1
	redis.call('HSET', KEYS[1], 'users', string.format('%.0f', users), 'usersseq', string.format('%.0f', usersseq))
	untold = 1
end
expire()
if ARGV[11] == '1' then untold = 1 end
if untold == 1 and (clients < 0 or not quiet) then
	publish()
	untold = 0
end
return {'ok', epoch, version, value, users, usersseq, untold, redis.call('ZCARD', KEYS[5])}
`)

// A script is a Lua script of the server.
type script struct {
	text string
	sha1 string // its name in EVALSHA
}

func newScript(text string) *script {
	sum := sha1.Sum([]byte(text))
	return &script{text, hex.EncodeToString(sum[:])}
}

// A scriptCall is one call of a script, about one counter.
type scriptCall struct {
	keys, args []string

	// Set by exec.
	reply reply
	err   error
}

// exec runs the script once for each of calls, which are about different counters.
func (s *script) exec(ctx context.Context, client valkey.Client, calls []*scriptCall) {
	s.execBy(ctx, client, calls, func(c *scriptCall) valkey.Completed {
		return client.B().Evalsha().Sha1(s.sha1).Numkeys(int64(len(c.keys))).Key(c.keys...).Arg(c.args...).Build()
	})
	var unknown []*scriptCall
	for _, c := range calls {
		if err, ok := valkey.IsValkeyErr(c.err); ok && err.IsNoScript() {
			unknown = append(unknown, c)
		}
	}
	if len(unknown) > 0 {
		s.execBy(ctx, client, unknown, func(c *scriptCall) valkey.Completed {
			return client.B().Eval().Script(s.text).Numkeys(int64(len(c.keys))).Key(c.keys...).Arg(c.args...).Build()
		})
	}
}

func (s *script) execBy(ctx context.Context, client valkey.Client, calls []*scriptCall, command func(*scriptCall) valkey.Completed) {
	commands := make(valkey.Commands, 0, len(calls))
	for _, c := range calls {
		commands = append(commands, command(c))
	}
	for i, result := range client.DoMulti(ctx, commands...) {
		calls[i].reply, calls[i].err = parseReply(result)
	}
}

// reply is the result of a script, or the content of a message.
type reply struct {
	// status is "ok", or says why nothing was changed: "range"; "full", if the counter is not there and may not be made;
	// "epoch", if the hub knows another epoch than the present one, which the reply has; or "old", if the hub has sent a
	// later batch before.
	status string

	epoch       string
	version     uint64
	value       hub.Value
	users       int    // the clients of all hubs
	usersSeq    uint64 // how often users has changed in this epoch
	unpublished bool   // there was no message about all of this yet
	hubs        int    // of beatScript only
	from        string // of messages only: the hub that has sent it
	name        string // of messages only: the counter
}

// parseReply returns the result of a script.
func parseReply(res valkey.ValkeyResult) (reply, error) {
	list, err := res.ToArray()
	if err != nil {
		return reply{}, err
	}
	if len(list) < 7 {
		return reply{}, fmt.Errorf("a script has returned %d values", len(list))
	}
	var r reply
	var errs [4]error
	r.status, errs[0] = list[0].ToString()
	r.epoch, errs[1] = list[1].ToString()
	r.value, errs[2] = parseValue(list[3])
	var n [6]int64
	for i := range min(len(list)-2, len(n)) {
		if i == 1 {
			continue // the value
		}
		if n[i], err = list[2+i].AsInt64(); err != nil {
			errs[3] = err
		}
	}
	r.version, r.users, r.usersSeq = uint64(n[0]), int(n[2]), uint64(n[3])
	r.unpublished, r.hubs = n[4] == 1, int(n[5])
	return r, errors.Join(errs[:]...)
}

// parseValue parses a value in the result of a script: a number or text.
func parseValue(m valkey.ValkeyMessage) (v hub.Value, err error) {
	var s string
	if m.IsInt64() {
		var n int64
		n, err = m.AsInt64()
		s = strconv.FormatInt(n, 10)
	} else {
		s, err = m.ToString()
	}
	if err != nil {
		return v, err
	}
	return hub.ParseValue(s)
}

// parseMessage returns the content of a message, and reports whether s is one.
func parseMessage(s string) (reply, bool) {
	f := strings.Split(s, " ")
	if len(f) != 6 && len(f) != 7 {
		return reply{}, false
	}
	var errs [4]error
	r := reply{status: "ok", epoch: f[0], from: f[5]}
	r.version, errs[0] = strconv.ParseUint(f[1], 10, 64)
	r.value, errs[1] = hub.ParseValue(f[2])
	r.users, errs[2] = strconv.Atoi(f[3])
	r.usersSeq, errs[3] = strconv.ParseUint(f[4], 10, 64)
	if len(f) == 7 {
		r.name = f[6]
	}
	return r, errors.Join(errs[:]...) == nil
}
