// Package acme gives a TLS server its certificates, and keeps them fresh for years without help.
//
// A certificate comes from one of three places: a CA that speaks ACME (RFC 8555), for public names;
// a small CA of our own in the data folder, for names that no public CA may certify; or a pair of
// PEM files that somebody else renews. [Provider] hides which.
//
// # Who serves, who orders, who answers
//
// Visitors are served from one atomic pointer for each domain. A handshake takes no lock, waits for
// nobody and never causes an order.
//
// Orders are placed with the client of golang.org/x/crypto/acme, which autocert is built on. autocert's
// own way to an order is a handshake: it cannot be asked for a renewal, tries again each minute, drops
// what the CA answered, forgets the key of an order when the process ends, and leaves timers behind. So
// the way from newOrder to the chain is ours (issuer), and so is the schedule (plan, keep).
//
// What autocert does as well as anybody is to answer: one autocert.Manager, the responder, which is
// never asked for a certificate, answers every challenge: tls-alpn-01 (RFC 8737) on the TLS listener,
// http-01 (RFC 8555 section 8.3) on the plain one. The two sides meet in the tokens, which replicas on
// one data folder share, so that any of them can answer for each.
//
// # The plan
//
// What must outlive the process is in the plan, a file for each domain and CA: how often in a row
// attempts failed and why, when the next one may be made, what the CA has counted, the order that is open
// with the key that it is for, and when the CA wants the certificate renewed. It is written before an
// attempt as if the attempt had failed, and corrected after it: a process that dies can be followed by
// any number of others that die, and the CA sees no more orders than of one that lived.
//
// # Goroutines
//
// New starts none. [Provider.Run] starts one for each domain that can be renewed here. It owns what is
// known of the domain: it looks at the folder, works out what is due and when, does that or sleeps, and
// publishes what it knows for [Provider.Status] and [Provider.Ready]. Before it orders it takes the
// domain's file lock, which is one for all CAs, and looks again: ten replicas that start together place
// one order, and the other nine adopt what came of it within seconds. With files, Run starts one goroutine
// that looks at them.
// Run returns when all of them have ended, and nothing is left behind.
//
// # The check
//
// [Check] finds out what would keep all this from working, before an order is spent. It answers its own
// probes, or has a server that runs on the same data folder answer them, through the tokens. It holds
// the domain's lock while it probes port 443, since there the answer to an order has the same name.
//
// # What replicas share
//
// Replicas on one data folder share what is in it. Those on several machines share the same things by the
// same names through a [Shared], whose locks are leases: so what is written under a lock is refused from
// who has lost it. All of it is sealed (sealer), since the server that holds it is not asked to keep
// secrets. Each replica has a copy of what it takes to serve in its own folder; one that starts while the
// shared store is away serves that, and one whose store has lost everything gives it back. Without the
// store there is no lock, and no order.
//
// # Files
//
//	<Dir>/acme/tokens/                    answers to challenges, while they are asked
//	<Dir>/acme/locks/<domain>+lock        for flock(2); always empty
//	<Dir>/acme/<CA>/acme_account+key      account key, one for each CA directory
//	<Dir>/acme/<CA>/acme_account+key.backup
//	<Dir>/acme/<CA>/<domain>              private key and chain of one domain
//	<Dir>/acme/<CA>/<domain>+plan         JSON
//	<Dir>/local-ca/root.pem               what clients of local domains are told to trust
//	<Dir>/local-ca/root-key.pem
//
// Folders are 0700, files 0600. A file is written whole or not at all; those of a CA begin with their
// checksum. One that is damaged is renamed, reported and treated as missing: a server that can get a new
// certificate must not stay down over an old one. One that cannot be read right now is left alone.
package acme
