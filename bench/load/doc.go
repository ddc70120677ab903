// Package load is a lean load generator for servers that speak the counter protocol
// over WebSockets and TLS.
//
// A [Crowd] holds the clients of one server. One goroutine reads for all of them, with one
// system call and no allocation per message. This package writes the opening handshake and the
// frames itself. The load has only one core, and must use little of it: the server is measured,
// not the load.
package load
