package hub

import (
	"context"
	"errors"
	"net/http"
	"net/netip"
)

// ServeHTTP answers a WebSocket opening handshake on any path. The connection becomes a client with
// a goroutine of its own, and ServeHTTP returns at once.
//
// ServeHTTP refuses a request
//
//   - with 403 if it comes from a page whose origin is not allowed,
//   - with 429 and Retry-After if the address has [Config].MaxClientsPerIP clients,
//   - with 503 and Retry-After if the hub has MaxClients clients, is stopping, or has no value yet,
//   - with 400, 405 or 426 if it is not an opening handshake
//     (https://www.rfc-editor.org/rfc/rfc6455#section-4.2.2).
//
// ServeHTTP does not check the Host header. The caller has to.
func (h *Hub) ServeHTTP(w http.ResponseWriter, r *http.Request) { h.serve(w, r, inFrames, "") }

// ServeCounter is ServeHTTP for the counter called name, which must be one that [Hub.Allows].
func (h *Hub) ServeCounter(w http.ResponseWriter, r *http.Request, name string) {
	h.serve(w, r, inFrames, name)
}

// MaxNames is how many counters one WebSocket may be about.
const MaxNames = 32

// ServeCounters is ServeHTTP for 1 to [MaxNames] different counters, which must be ones that [Hub.Allows]. All messages, in both
// directions, have the name of their counter in the field "counter".
func (h *Hub) ServeCounters(w http.ResponseWriter, r *http.Request, names []string) {
	h.serve(w, r, inNamedFrames, names...)
}

func (h *Hub) serve(w http.ResponseWriter, r *http.Request, encoding messageEncoding, names ...string) {
	// "The |Origin| header field is used to protect against unauthorized cross-origin use
	// of a WebSocket server by scripts using the WebSocket API in a web browser."
	// https://www.rfc-editor.org/rfc/rfc6455#section-4.1
	// A browser sends exactly one. A client that sends none is not a browser, so no page can
	// misuse it.
	if !h.CheckOrigin(w, r) {
		return
	}
	// The bytes after the header are frames. With a body, a proxy in front and this server could
	// disagree about where the frames begin.
	if r.ContentLength != 0 || len(r.TransferEncoding) > 0 {
		w.Header().Set("Connection", "close")
		h.refuse(w, r, ReasonBadHandshake, http.StatusBadRequest, "an opening handshake has no body")
		return
	}
	c := h.newClient(w, r, names)
	if c == nil {
		return
	}
	c.encoding = encoding
	joined := false
	defer func() {
		if !joined { // the library refused the handshake, or panicked; net/http recovers
			h.release(c)
		}
	}()
	c.wire.owner = c
	if err := accept(w, r, &c.wire); err != nil {
		if errors.Is(err, errNotOurs) {
			h.log.Error("cannot serve WebSocket clients", "err", err)
			return
		}
		h.events.Refused(ReasonBadHandshake, "remote", c.remote, "err", err) // the library has answered
		return
	}
	// serve gets a new goroutine, since the stack of this one has grown during the TLS
	// handshake. When this one returns, net/http frees the memory of the request.
	joined = true
	go c.serve()
}

// newClient admits a client and returns it. If there is no room, newClient answers the request and
// returns nil. The caller must call release, or serve, which does.
func (h *Hub) newClient(w http.ResponseWriter, r *http.Request, names []string) *client {
	c := &client{hub: h, index: -1, remote: AddressOf(r.RemoteAddr)}
	if len(names) > 1 {
		c.more = make([]watch, len(names)-1)
	}
	if reason, text := h.admit(c); reason != "" {
		// The page's own delays are about that long, and more frequent attempts would only
		// load a full server.
		w.Header().Set("Retry-After", "10")
		status := http.StatusServiceUnavailable
		if reason == ReasonAddressFull {
			status = http.StatusTooManyRequests // only this address is over its limit
		}
		h.refuse(w, r, reason, status, text)
		return nil
	}
	if err := h.hold(r.Context(), c, names); err != nil {
		h.release(c)
		w.Header().Set("Retry-After", "10")
		h.refuse(w, r, ReasonNoValue, http.StatusServiceUnavailable, "the counter cannot be read right now")
		return nil
	}
	c.owner = h.shards[h.nextShard.Add(1)%uint32(len(h.shards))]
	return c
}

// hold makes c watch the counters with the names, and waits until their values are known. release ends that, even after an error.
func (h *Hub) hold(ctx context.Context, c *client, names []string) error {
	h.mu.Lock()
	for i, name := range names {
		of, err := h.holdLocked(name)
		if err != nil {
			h.mu.Unlock()
			return err
		}
		c.watch(i).counter = of
		h.countClientsLocked(of, +1)
	}
	h.mu.Unlock()
	for i := range names {
		if err := h.await(ctx, c.watch(i).counter); err != nil {
			return err
		}
	}
	return nil
}

// refuse answers a request that the hub refuses, and counts the refusal.
func (h *Hub) refuse(w http.ResponseWriter, r *http.Request, reason Reason, status int, text string) {
	h.events.Refused(reason, "remote", AddressOf(r.RemoteAddr), "code", status, "err", text)
	http.Error(w, text, status)
}

// namesPerPlace is how many counters a client may watch for one place. A counter that nobody else watches takes 700 bytes,
// so this many take almost as much memory as a client.
const namesPerPlace = 16

// places returns how many places c takes.
func (c *client) places() int { return (c.watches()-1)/namesPerPlace + 1 }

// admit reserves the places for c. If there are too few, admit returns the reason, and a text for the peer.
// release frees them.
func (h *Hub) admit(c *client) (Reason, string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	switch {
	case h.stopping:
		return ReasonStopping, textStopping
	case h.unknown:
		return ReasonNoValue, "the counter's store has not been reached yet"
	case h.cfg.MaxClients > 0 && h.admitted.total+c.places() > h.cfg.MaxClients:
		return ReasonFull, "the server is full"
	case h.cfg.MaxClientsPerIP > 0 && h.admitted.of[c.remote]+c.places() > h.cfg.MaxClientsPerIP:
		return ReasonAddressFull, "too many connections from your address"
	}
	h.admitted.add(c.remote, c.places())
	h.clients.Add(1) // under mu, so that no client is added after Shutdown has begun to wait
	return "", ""
}

// release frees the places that admit has reserved for c.
func (h *Hub) release(c *client) {
	h.mu.Lock()
	h.admitted.remove(c.remote, c.places())
	for i := range c.watches() {
		if of := c.watch(i).counter; of != nil {
			h.countClientsLocked(of, -1)
			h.releaseLocked(of)
		}
	}
	h.mu.Unlock()
	h.clients.Done()
}

// ClientsOf returns how many places of clients the address has, as [AddressOf] returns it, and how many all have.
func (h *Hub) ClientsOf(address netip.Prefix) (clients, total int) {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.admitted.of[address], h.admitted.total
}

// addressCounts counts the places of clients, in total and by address.
type addressCounts struct {
	total int
	of    map[netip.Prefix]int // as AddressOf returns them; nil until the first client
}

func (a *addressCounts) add(p netip.Prefix, n int) {
	if a.of == nil {
		a.of = make(map[netip.Prefix]int)
	}
	a.total += n
	a.of[p] += n
}

func (a *addressCounts) remove(p netip.Prefix, n int) {
	a.total -= n
	if a.of[p] -= n; a.of[p] == 0 {
		delete(a.of, p)
	}
}

// AddressOf returns the prefix under which limits per address count a peer: the /32 of an IPv4
// address, or the /64 of an IPv6 address, since one host usually has a whole /64. remote is
// the peer's address with a port, as in [http.Request].RemoteAddr.
func AddressOf(remote string) netip.Prefix {
	ap, err := netip.ParseAddrPort(remote)
	if err != nil {
		return netip.Prefix{} // not a TCP address; all such peers count as one
	}
	return PrefixOf(ap.Addr())
}

// PrefixOf is [AddressOf] for an address without a port.
func PrefixOf(ip netip.Addr) netip.Prefix {
	ip = ip.Unmap().WithZone("")
	bits := 64
	if ip.Is4() {
		bits = 32
	}
	p, err := ip.Prefix(bits)
	if err != nil {
		return netip.Prefix{}
	}
	return p
}
