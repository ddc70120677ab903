package main

import (
	"math"
	"net/http"
	"net/netip"
	"strconv"
	"time"

	"plusminus/hub"
)

// door is what strangers have to pass before they are served: the gate with their
// connections, and a limit to what each address may ask for.
type door struct {
	events *hub.Events
	gate   *hub.Gate
	rates  *hub.Rates // of requests; nil is no limit
}

// refusalHints are what an operator can do, if there is something.
var refusalHints = map[hub.Reason]string{
	hub.ReasonHost:               "-domain names what is served",
	hub.ReasonOrigin:             "-origin lets pages of other origins in",
	hub.ReasonAddressRate:        "-connection-rate is how often an address may ask",
	hub.ReasonAddressConnections: "-connection-rate is how often an address may ask",
	hub.ReasonAddressFull:        "-max-clients-per-ip is how many clients an address may have",
	hub.ReasonFull:               "-max-clients, or else the file limit and the memory, is how many there may be: raise it, or add a replica",
	hub.ReasonCrowded:            "many connections do not get as far as to join; with a higher file limit (ulimit -n) there is room for more",
	hub.ReasonAcceptError:        "raise the file limit (ulimit -n, docker --ulimit nofile, systemd LimitNOFILE), or look what else uses up the system's",
}

const (
	// defaultBurst is how many WebSocket connections and streams an address may open at once if no cap says
	// how many it may have, and leastBurst how many in any case: a person reloads the page.
	defaultBurst, leastBurst = 64, 10

	// joinCost is how many other requests a WebSocket connection, or a stream, counts for. The page takes
	// five, and nobody needs more of them than of connections.
	joinCost = 10

	// connectionsPerJoin is how many TCP connections an address may open for each WebSocket
	// connection or stream. A browser that loads the page opens up to six and keeps them, so that a
	// classroom behind one address comes in at once; who opens more has no use for an answer.
	connectionsPerJoin = 4
)

// door returns what cfg has to be passed. The burst is what the cap of clients of an address
// lets in at once, since after a restart all of them come back together.
func (c *config) door(events *hub.Events) *door {
	d := &door{events: events}
	gate := hub.GateConfig{
		Events:      events,
		MaxArrivals: c.maxArrivals,
		Proxy:       func(a netip.Addr) bool { return c.proxyProtocol.contains(a) || c.trustedProxies.contains(a) },
	}
	if c.connectionRate > 0 {
		burst := max(c.maxClientsPerIP, leastBurst)
		if c.maxClientsPerIP == 0 {
			burst = defaultBurst
		}
		d.rates = hub.NewRates(joinCost*c.connectionRate, joinCost*burst)
		gate.Rates = hub.NewRates(connectionsPerJoin*c.connectionRate, connectionsPerJoin*burst)
	}
	d.gate = hub.NewGate(gate)
	return d
}

// handler returns next behind the door: an address that asks too often gets 429, and a panic of
// next is a bug that ends one connection, and is told with the others.
func (d *door) handler(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		defer d.catch(r)
		if d.allow(w, r) {
			next.ServeHTTP(w, r)
		}
	})
}

// allow reports whether the peer may ask for this now. If not it answers 429.
func (d *door) allow(w http.ResponseWriter, r *http.Request) bool {
	cost := 1
	if joins(r) {
		cost = joinCost
	}
	address := hub.AddressOf(r.RemoteAddr)
	wait := d.rates.Take(address, cost)
	if wait == 0 {
		return true
	}
	d.events.Refused(hub.ReasonAddressRate, "remote", address, "code", http.StatusTooManyRequests, "wait", wait.Round(time.Millisecond).String())
	w.Header().Set("Retry-After", strconv.Itoa(int(math.Ceil(wait.Seconds()))))
	w.Header().Set("Connection", "close") // the next request on it would be as cheap to send
	http.Error(w, "too many requests from your address", http.StatusTooManyRequests)
	return false
}

// catch is deferred by handler.
func (d *door) catch(r *http.Request) {
	switch p := recover(); p {
	case nil:
	case http.ErrAbortHandler:
		panic(p)
	default:
		d.events.Panicked(p, "remote", hub.AddressOf(r.RemoteAddr))
		panic(http.ErrAbortHandler) // net/http closes the connection, and has no more to say
	}
}
