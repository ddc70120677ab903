// Package peers contains the servers that bench compares with plusminus. Each serves the same
// counter over TLS 1.3. Each is written as users of its library write it, with the library's
// defaults.
//
// "The usual hub" in a comment means: the hub delivers every change to every client. Each client
// has a queue and a goroutine that writes. The hub disconnects a client whose queue is full.
//
// The usual hub also sends the number of users to all clients when a client joins or leaves. So
// n arrivals cost n² messages, and 10,000 arrivals would take a quarter of an hour. The scenario
// arrival measures that (Config.Announce). The other scenarios turn it off, because there it
// would only delay the measurement.
package peers
