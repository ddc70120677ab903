// Package load is a lean load generator for servers that speak the counter protocol
// over WebSockets and TLS.
//
// A [Crowd] is the clients of one server. One goroutine reads for all of them, with one
// system call and no allocation for a message, and the opening handshake and the frames
// are written by hand: the load has one core, and must not be what is measured.
package load
