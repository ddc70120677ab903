// Package acme gets TLS certificates for a server, renews them and serves them, unattended for years.
//
// A certificate has one of three sources:
//
//   - a CA that speaks ACME (RFC 8555), for public names and IP addresses;
//   - a small CA in the data folder, for names and addresses that no public CA certifies;
//   - a pair of PEM files that another program renews.
//
// A [Provider] serves all three. [New] reads what is stored, [Provider.TLSConfig] and [Provider.HTTPHandler]
// go to the listeners, and [Provider.Run] obtains and renews.
//
// # Serving, answering, ordering
//
// autocert fetches and renews; this package decides when, and says why when there is no certificate.
//
// Serving: each domain has an atomic pointer to its certificate. A handshake reads it. It takes no lock, waits
// for nothing and never causes an order.
//
// Answering: one autocert.Manager, the responder, answers the CA's challenges, tls-alpn-01 (RFC 8737) on the TLS
// listener and http-01 (RFC 8555 section 8.3) on the plain one. It is never asked for a certificate. It takes the
// answers from a store of tokens. All replicas share that store, so any replica can answer for any other.
//
// Ordering: for each attempt, an issuer asks an autocert.Manager of its own for the certificate. The Manager's HTTP
// transport makes it keep to the plan; the type transport lists how. By itself, a Manager orders during handshakes
// and by a timer, and throws away a certificate that is not valid at this moment. So the transport keeps the CA's
// chain, and gives the Manager a stand-in: a certificate for the same key that is valid for a century.
//
// Addresses: autocert does not order certificates for IP addresses (RFC 8738). The file address.go does that with an
// acme.Client, through the same transport, so everything else is the same for names and addresses. The responder answers
// tls-alpn-01 for addresses itself, since autocert refuses the answer.
//
// Judging: an attempt succeeds only with a certificate that is valid now and not due for renewal yet. All others are
// failures. One that is of some use, now or later, waits in the plan. A certificate is served only if it is better
// than the one before; the method better has the rule.
//
// What autocert costs: the key of a certificate is in memory until the certificate is stored, so a process that is
// killed after finalize loses that certificate, and a key cannot be kept across renewals. An attempt takes at most
// five minutes. A name is the certificate request's common name, too. Let's Encrypt ignores one of more than 64 bytes;
// another CA may refuse it.
//
// # The plan
//
// The plan is a file for each domain and CA. It holds what must survive the process: the failures in a row and
// the last reason, the earliest time of the next attempt, what counts against the CA's limits, the open order,
// and when the CA wants the certificate renewed.
//
// The plan is written before each attempt as if the attempt had failed, and corrected afterwards. If the process
// dies during the attempt, the next one finds the failure recorded. A crash loop therefore places no more
// orders than a process that keeps running.
//
// # Goroutines
//
// New starts none. Run starts one for each domain: keep for an ACME CA, keepLocal for the local CA. With
// certificate files, Run starts one that watches the files. Run returns when all of them have ended, and leaves
// none behind. autocert starts goroutines when an attempt has ended, which end at once, since the transport refuses
// their requests. A timer of each successful Manager stays, for a century.
//
// keep owns the state of its domain. It looks for what other replicas wrote, computes what is due next, does
// that or sleeps, and publishes the state for [Provider.Status] and [Provider.Ready]. Before an order it takes
// the domain's lock, which is the same for all CAs, and looks again. So of ten replicas that start together one
// places an order, and the other nine adopt its certificate within seconds.
//
// # Replicas
//
// Replicas on one data folder share everything in it. Replicas on several machines share the same entries
// through a [Shared]. Its locks are leases, so it refuses a write from a replica that has lost its lock. All
// entries are sealed, since the server that stores them need not keep secrets.
//
// Each replica copies certificates and the account key to its own folder. A replica that starts while the
// shared store is away serves the copies. A shared store that has lost its entries gets them back from the
// copies. Without the shared store there is no lock, and so no order.
//
// # Files
//
//	<Dir>/acme/tokens/                    answers to challenges, while an order is open
//	<Dir>/acme/locks/<domain>+lock        for flock(2); always empty
//	<Dir>/acme/<CA>/acme_account+key      account key, one for each CA directory
//	<Dir>/acme/<CA>/acme_account+key.backup
//	<Dir>/acme/<CA>/<domain>              private key and chain of one domain
//	<Dir>/acme/<CA>/<domain>+plan         JSON
//	<Dir>/local-ca/root.pem               the root that clients of local domains must trust
//	<Dir>/local-ca/root-key.pem
//
// In file names, the colons of an IPv6 address are underscores. Folders have mode 0700, files 0600. A file is written whole or not at all. Files of a CA begin with a
// checksum. A damaged file is renamed, reported and treated as missing: a server that can get a new certificate
// must not stay down because of an old one. A file that cannot be read at the moment is left alone.
//
// # Packages
//
// Package acme/check tells beforehand what would keep a server from its certificates. Package acme/export keeps the
// served certificates in files for other programs. Packages below acme/internal have what these need: storage,
// challenges, certificates, the local CA, the folder of certbot, and HTTP to a CA.
package acme
