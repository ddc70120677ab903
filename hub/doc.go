// Package hub is a broadcast hub. Clients join it over WebSockets, and watch and change a shared
// counter. The hub sends each client every new state of the counter. A client that only
// listens can join over plain HTTP instead (stream.go). There is the default counter and, if
// [Config] says so, others with names.
//
// # Goroutines, and what each owns
//
//	readLoop    one a client: reads messages, decodes actions, sends refusals
//	loop        one: owns the values, makes batches of actions, publishes states
//	commitLoop  one: gives commits to the store, so that loop never waits for a disk
//	shard.run   one a processor: owns some of the clients, and sends them states
//
// There is no writer goroutine and no queue for a client.
//
// # The way of an action
//
//	readLoop --actions--> loop --commits--> commitLoop --committed--> loop
//
// loop takes all actions on a counter that are waiting as one batch, and the batches of all
// counters as one commit. It publishes the new states only after the store has the commit safe. To
// publish, loop stores the states under a mutex, notes their counters for each shard, and wakes
// the shards through channels that hold one token.
//
// A shard that wakes copies the states and sweeps the clients of those counters. Each client that is
// behind gets one write with everything that it has to be sent of a counter: one TLS record, one
// packet. A state that is published during a sweep is sent by the next sweep. So load merges values,
// and no backlog builds up.
//
// The hub keeps the newest few values, so a client that is only a little behind is sent each of
// them. Between two sweeps that follow each other at once a shard pauses, to leave processor
// time for reading.
//
// # Nobody waits
//
// A write to a client never waits (see [Conn]). The connection keeps the bytes that the kernel does
// not take, at most a few kilobytes, and the client is then blocked. Sweeps skip a blocked client
// until those bytes are written. Then the client is sent its pending refusals and the newest state.
// Of pending refusals only the number is kept. A blocked client without progress for 10 seconds
// is disconnected.
//
// A write also shows that a peer has left. The client then leaves the hub, and reads what had arrived
// before, within the bounds of close.go: an action counts even if its sender leaves at once.
//
// Channel sends go one way, so there is no cycle that could deadlock. readLoops send to loop and
// to shards. loop sends to commitLoop. commitLoop sends results to loop, through a channel that
// has room for them. Both tell shards about clients that a refusal has blocked. Shards send to no
// goroutine. A send that may wait ends when the hub has ended.
//
// No client waits for the store either. If the store has worked on a commit for 1.5 seconds, the
// hub refuses all actions that it has not yet given to the store. It tells the senders of the
// commit that the outcome is open. Until the store answers, each readLoop refuses new actions.
//
// # Limits
//
// What a client can cost is bounded at each step: the number of clients by the caps of [Config],
// frames by frames.go, messages and actions by readLoop. Limits on connections and requests
// before they reach the hub are the caller's. A request or client over a limit is refused or
// closed for a [Reason], which events.go counts and logs. A panic in a client's goroutine ends
// only that client.
//
// An idle client costs about 11 KB: a goroutine with a stack of 4 KB that waits for the next frame, and
// the TLS connection. known.go explains how the stack stays that small, and library.go when a
// client gets a Conn of the WebSocket library. A client that sends pings costs 17 to 18 KB,
// since it then waits within the library. An idle client has no timer: each shard turns a timing
// wheel once a second, which says which clients to ping.
//
// # Counters
//
// A counter is in use while it has clients, or actions that the store has not answered. Then it has
// its state, its waiting batch, and a list of its clients in each shard. A counter that is not in use
// is only in the store ([Counters]), and costs the hub nothing: loop forgets it. The default counter
// is always in use. A store that is shared tells the value of a counter some time after the hub has
// begun to use it ([SharedCounters]). Clients and calls wait for that in their own goroutines.
//
// history.go keeps the changes of the last five minutes of each counter, whether it is in use or
// not. loop adds a change when it publishes a state.
//
// [Hub.Act] does what a client's message does. [Hub.Set] and [Hub.Remove] are for operators. Their
// changes go the way of actions.
//
// # The end
//
// [Hub.Shutdown] makes the shards close their clients in slices, event streams included. Each
// shard has one timer for this. Clients whose turn has not come are served until then. The hub ends
// when the last client and the last call have their outcome.
//
// # Several hubs on one store
//
// Several hubs can share a store ([Shared]). The store then sends loop its news, and loop
// publishes the changes of other hubs like its own. Versions give all changes the store's order:
// loop drops a snapshot that is older than the published one. Values that another hub published
// between two snapshots are merged.
//
// # Replacing the counter
//
// message.go defines the value, the actions on it, and the messages. All other files move values,
// deltas and actions without looking into them. docs/extend.md describes how to replace message.go.
package hub
