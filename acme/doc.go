// Package acme gives a TLS server its certificates, and keeps them fresh for years without help.
//
// A certificate comes from one of three places: a CA that speaks ACME (RFC 8555), for public names;
// a small CA of our own in the data folder, for names that no public CA may certify; or a pair of
// PEM files that somebody else renews. [Provider] hides which.
//
// # Who serves, who orders, who answers
//
// Visitors are served from the provider's own store: one atomic pointer for each domain. A handshake
// takes no lock, waits for nobody and never causes an order.
//
// golang.org/x/crypto/acme/autocert speaks ACME. It has no way to be asked for a renewal, so each
// order is placed by an autocert.Manager made for it alone and retired for good afterwards, whatever
// came of it. One more Manager, the responder, lives as long as the provider, is never asked for a
// certificate, and answers every challenge: tls-alpn-01 (RFC 8737) on the TLS listener, http-01 (RFC
// 8555 section 8.3) on the plain one. The two sides meet in the tokens, a cache in memory.
//
// # Goroutines
//
// New starts none. [Provider.Run] starts one for each domain that can be renewed here; it sleeps
// until the domain is due, obtains, installs, and sleeps again. It is the only one that orders for
// its name, which is the lock that tls-alpn-01 needs: two orders for one name at once would overwrite
// each other's token. With files, Run starts one goroutine that looks at them instead. Run returns
// when all of them have ended. autocert leaves timers and short housekeeping behind; the transport of
// a retired attempt refuses them a new order, and refuses everything once Run's context is done.
//
// # Files
//
//	<Dir>/acme/<CA>/acme_account+key   account key, one for each CA directory
//	<Dir>/acme/<CA>/<domain>           private key and chain of one domain
//	<Dir>/local-ca/root.pem            what clients of local domains are told to trust
//	<Dir>/local-ca/root-key.pem
//
// Folders are 0700, files 0600. A file is written whole or not at all. One that is damaged is renamed,
// reported and treated as missing: a server that can get a new certificate must not stay down over an
// old one.
package acme
