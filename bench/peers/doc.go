// Package peers holds the servers that plusminus is measured beside. Each serves the
// same counter over TLS 1.3 and is written the way its users write it, with the
// defaults that they would leave alone. Where a comment says "the usual hub", it means:
// every change is delivered to every client, each client has a queue and a goroutine
// that writes, and one whose queue is full is disconnected.
//
// The usual hub also tells everyone when somebody comes or goes. That makes n arrivals
// cost n² messages, so that 10,000 clients would take a quarter of an hour to arrive.
// It is done where arrival is measured (Config.Announce), and left out elsewhere, where
// it would only delay the measurement.
package peers
