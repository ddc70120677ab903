// Package hub is a broadcast hub: clients join it over WebSockets, act on one
// shared counter, and each is sent every new state of it. Who only wants to listen
// may do so over HTTP (stream.go).
//
// # Goroutines, and what each owns
//
//	readLoop    one a client: reads messages, decodes actions, answers refusals
//	loop        one: takes the actions that are waiting as one batch, publishes
//	commitLoop  one: carries a batch to the store, so that loop never waits for a disk
//	shard.run   one a processor: owns its clients and writes to them
//
// An action travels
//
//	readLoop --actions--> loop --commits--> commitLoop --committed--> loop
//
// and loop publishes the new state only then, when the store has it safe. To
// publish is to store the newest state under a mutex and to wake each shard
// through a channel that holds one token. The shard copies the state out and
// sweeps: one write to each client that is behind, with all that this client is
// due in one piece (one TLS record, one packet). A state that is published while
// a sweep runs is seen by the next sweep, so load merges values and never builds
// a backlog; there is no queue for a client anywhere. The newest few values are
// kept, so that a client that is only a little behind is sent each of them. Sweeps
// that would follow each other at once pause in between, to leave time for reading.
//
// # What an idle client costs
//
// One goroutine with a stack of 4 KB, which waits for the next frame in its own
// buffer (known.go says why there), the TLS connection, and the WebSocket library's
// state: 12 to 14 KB in all. No goroutine, queue, timer or context of its own: pings come
// from a timing wheel that each shard turns once a second.
//
// # Nobody waits for anybody
//
// Writes to a client never wait (see [NewListener]). What the socket does not
// take is kept beside it, at most a few kilobytes, and the client is blocked:
// sweeps skip it until the rest has drained, and then it is sent the refusals
// that it is owed, of which only the number is kept, and the newest state. One
// that makes no progress for 10 seconds is disconnected.
//
// Sends go one way: readLoops send to loop and to shards, loop sends to commitLoop,
// commitLoop sends its results back into a channel with room for them and tells
// shards of clients that an answer has blocked, and shards send to nobody. A send that
// might have to wait gives up when the hub has ended.
//
// Nobody waits for the store either. When it has worked on a batch for 1.5 seconds, what it
// has not been given is refused, the senders of the batch are told that its fate is open,
// and each readLoop refuses what comes, until the store has answered.
//
// # Strangers
//
// What strangers may cost is bounded at each step: connections by a [Gate], requests of an
// address by [Rates], clients by the caps of [Config], frames by frames.go, messages and
// actions by readLoop. What is over a bound is refused or closed under one of the names in
// events.go, which are counted and logged there. A panic in a client's goroutine ends that
// client.
//
// # The end
//
// [Hub.Shutdown] has the shards close their clients, streams too, in slices: each shard has one timer, and
// no client has any. Those whose turn has not come are served meanwhile.
//
// # Several hubs on one value
//
// A store may be shared ([Shared]): then its news come to loop beside the actions, and
// what other hubs did is published like our own. Versions put all of it in the store's order:
// what is older than what was published is dropped. Values that another hub published
// together are merged.
//
// # Replacing the counter
//
// message.go holds the protocol: what clients share, what they may do to it, and the messages. The
// rest moves values, deltas and actions and does not look into them. docs/extend.md walks through a change of it.
package hub
