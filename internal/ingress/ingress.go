// Package ingress decides who gets in. It opens the sockets, and bounds what strangers may cost
// before they become clients of the hub:
//
//   - [Listen] opens the listeners, or takes those that systemd passes (activation_unix.go).
//   - [Ingress.Balanced] has PROXY protocol headers of trusted load balancers read (proxyproto.go).
//   - [Gate] caps the connections that have not joined the hub, limits how often an address
//     connects, and computes TLS handshakes a few at a time (gate.go, handshake.go).
//   - [Requests] limits how often an address asks, and turns a panic into the end of one
//     connection (requests.go).
//   - [Ingress.Forwarded] takes the client's address from X-Forwarded-For of trusted proxies
//     (forwarded.go).
//   - [Hosts] refuses requests for other hosts than ours (hosts.go).
//   - [Ingress.Watch] counts the requests that net/http refuses itself (answers.go).
//   - [Upgrades] refuses WebSocket handshakes that a proxy has spoiled, or that lack TLS (upgrades.go).
//
// A connection passes them in this order. What they refuse is counted and logged under the reasons
// in this file. The package starts one goroutine for each listener behind load balancers, and
// one for each header that such a listener waits for.
package ingress

import (
	"fmt"
	"log/slog"
	"net/netip"

	"plusminus/hub"
)

// Reasons to refuse a connection or request, beside those of package hub.
const (
	ReasonHost        hub.Reason = "host"         // 421: the Host is not one of ours
	ReasonAddressRate hub.Reason = "address_rate" // 429: the address asks too often

	// Answers of net/http itself.
	ReasonBadRequest    hub.Reason = "bad_request"     // 400, 417, 501 or 505: it cannot be parsed
	ReasonHeaderTooLong hub.Reason = "header_too_long" // 431: the header has more than MaxHeader bytes

	ReasonUpgradeStripped hub.Reason = "upgrade_stripped" // 426: a WebSocket opening handshake without its Upgrade
	ReasonUpgradePlain    hub.Reason = "upgrade_plain"    // 426: a WebSocket opening handshake without TLS, on a port for redirects

	// Before HTTP there is nothing to answer with, so the connection is closed.
	ReasonAddressConnections hub.Reason = "address_connections" // the address opens connections too often
	ReasonCrowded            hub.Reason = "crowded"             // too many connections have not joined the hub; this one made no progress for longest
	ReasonAcceptError        hub.Reason = "accept_error"        // the system has no file descriptor or memory for a connection

	// A PROXY protocol header. The connection is closed.
	ReasonProxyForeign hub.Reason = "proxy_header_foreign" // a header from an address that is not a trusted load balancer's
	ReasonProxyMissing hub.Reason = "proxy_header_missing" // no header from a trusted load balancer
	ReasonProxyBad     hub.Reason = "proxy_header_bad"     // a header that cannot be understood
)

// Refusals returns the reasons of this package with the level of their lines in the log, for
// [hub.EventsConfig].
func Refusals() map[hub.Reason]slog.Level {
	return map[hub.Reason]slog.Level{
		ReasonHost:               slog.LevelInfo,
		ReasonAddressRate:        slog.LevelInfo,
		ReasonBadRequest:         slog.LevelInfo,
		ReasonHeaderTooLong:      slog.LevelInfo,
		ReasonUpgradePlain:       slog.LevelInfo,
		ReasonAddressConnections: slog.LevelInfo,
		ReasonCrowded:            slog.LevelWarn,
		ReasonAcceptError:        slog.LevelError,

		// The proxy or load balancer and plusminus do not agree: every client behind it is refused.
		ReasonUpgradeStripped: slog.LevelWarn,
		ReasonProxyForeign:    slog.LevelWarn,
		ReasonProxyMissing:    slog.LevelWarn,
		ReasonProxyBad:        slog.LevelWarn,
	}
}

// Hints returns what an operator can do about each reason, the hub's included, where there is
// something to do.
func Hints() map[hub.Reason]string {
	return map[hub.Reason]string{
		ReasonHost:                "-domain names the hosts that are served",
		hub.ReasonOrigin:          "-origin allows pages of other origins",
		ReasonAddressRate:         "-connection-rate limits how often an address may ask",
		ReasonHeaderTooLong:       fmt.Sprintf("a request header may have %d KB; cookies of other services under the same domain are the usual cause", MaxHeader>>10),
		ReasonUpgradeStripped:     "a proxy in front does not pass Upgrade on; docs/run.md has a setup for nginx",
		ReasonUpgradePlain:        "a client connects with ws://: give it the wss:// URL",
		ReasonAddressConnections:  "-connection-rate limits how often an address may connect",
		hub.ReasonAddressFull:     "-max-clients-per-ip limits the clients of an address",
		hub.ReasonFull:            "-max-clients, or else the file limit and the memory, limits the clients: raise it, or add a replica",
		hub.ReasonTooManyCounters: "-max-counters limits the counters, and the patterns of -counters which ones there may be",
		ReasonCrowded:             "many connections never join the hub; a higher file limit (ulimit -n) leaves room for more",
		ReasonAcceptError:         "raise the file limit (ulimit -n, docker --ulimit nofile, systemd LimitNOFILE), or find what else uses up the system's files",
	}
}

// Config is what [New] needs to know.
type Config struct {
	// Hosts are the domains that are served, as [hub.CanonicalHost] writes them.
	Hosts []string

	// LoadBalancers are trusted to send PROXY protocol headers, and have to. TrustedProxies are
	// trusted to append to X-Forwarded-For. None are trusted by default.
	LoadBalancers, TrustedProxies Networks

	// MaxArrivals caps the connections that have not joined the hub; 0 is no cap (see GateConfig).
	MaxArrivals int

	// ConnectionRate is how many WebSocket connections and streams an address may open a second in
	// the long run; 0 is no limit. The burst is what MaxClientsPerIP lets in at once, since after a
	// restart all clients of an address come back together; 0 there means no cap.
	ConnectionRate  float64
	MaxClientsPerIP int

	// Events gets what is refused; nil discards it.
	Events *hub.Events

	// Logger gets a sample of failed TLS handshakes; nil discards them.
	Logger *slog.Logger
}

const (
	// uncappedBurst is how many WebSocket connections and streams an address may open at once when
	// no cap limits its clients. leastBurst is the least in any case: a person reloads the page.
	uncappedBurst, leastBurst = 64, 10

	// connectionsPerJoin is how many TCP connections an address may open for each WebSocket
	// connection or stream. A browser opens up to six to load the page, and keeps them, so a
	// classroom behind one address gets in at once. Nobody needs more.
	connectionsPerJoin = 4
)

// Ingress is what connections and requests of strangers pass. Its fields are immutable after New.
type Ingress struct {
	Gate     *Gate
	Requests *Requests
	Hosts    *Hosts
	Upgrades *Upgrades

	loadBalancers, trustedProxies Networks
	events                        *hub.Events
}

// New returns an Ingress with the limits of cfg.
func New(cfg Config) *Ingress {
	in := &Ingress{
		Requests:       &Requests{events: cfg.Events},
		Hosts:          &Hosts{names: cfg.Hosts, events: cfg.Events},
		Upgrades:       &Upgrades{events: cfg.Events},
		loadBalancers:  cfg.LoadBalancers,
		trustedProxies: cfg.TrustedProxies,
		events:         cfg.Events,
	}
	gate := GateConfig{
		Events:      cfg.Events,
		Logger:      cfg.Logger,
		MaxArrivals: cfg.MaxArrivals,
		Hosts:       in.Hosts,
		Proxy: func(a netip.Addr) bool {
			return cfg.LoadBalancers.Contains(a) || cfg.TrustedProxies.Contains(a)
		},
	}
	if cfg.ConnectionRate > 0 {
		burst := max(cfg.MaxClientsPerIP, leastBurst)
		if cfg.MaxClientsPerIP == 0 {
			burst = uncappedBurst
		}
		in.Requests.rates = NewRates(joinCost*cfg.ConnectionRate, joinCost*burst)
		gate.Rates = NewRates(connectionsPerJoin*cfg.ConnectionRate, connectionsPerJoin*burst)
	}
	in.Gate = NewGate(gate)
	return in
}
