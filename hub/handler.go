package hub

import (
	"errors"
	"net/http"
	"net/netip"

	"github.com/coder/websocket"
)

// ServeHTTP takes a client in: it answers a WebSocket opening handshake on any path,
// and returns at once; the client is served by a goroutine of its own.
//
// It refuses with 403 a page whose Origin may not connect, with 429 more clients than the
// address may have, with 503 more than there may be in all, both with Retry-After, and with
// 400, 405 or 426 what is no handshake (https://www.rfc-editor.org/rfc/rfc6455#section-4.2.2).
// Whether the Host is one of ours is for the caller to check.
func (h *Hub) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	// "The |Origin| header field is used to protect against unauthorized cross-origin use
	// of a WebSocket server by scripts using the WebSocket API in a web browser."
	// https://www.rfc-editor.org/rfc/rfc6455#section-4.1
	// A browser sends exactly one. Without any it is no browser, and nothing that it could do
	// depends on whose page sent it.
	if !h.checkOrigin(w, r) {
		return
	}
	// What follows the header are frames. To a proxy in front a body would be something else.
	if r.ContentLength != 0 || len(r.TransferEncoding) > 0 {
		w.Header().Set("Connection", "close")
		h.refuse(w, r, ReasonBadHandshake, http.StatusBadRequest, "an opening handshake has no body")
		return
	}
	c := h.newClient(w, r)
	if c == nil {
		return
	}
	joined := false
	defer func() {
		if !joined { // refused by the library, or a panic, which net/http takes
			h.release(c)
		}
	}()
	c.wire.owner = c
	ws, err := websocket.Accept(&upgrade{w, &c.wire}, r, &websocket.AcceptOptions{
		InsecureSkipVerify: true, // the Origin was checked above, scheme and port included
		CompressionMode:    websocket.CompressionDisabled,
	})
	if err != nil {
		if errors.Is(err, errNotOurs) {
			h.log.Error("cannot serve any client", "err", err)
			return
		}
		h.events.Refused(ReasonBadHandshake, "remote", c.remote, "err", err) // the library has answered
		return
	}
	ws.SetReadLimit(MaxMessage) // frames has the same limit, and knows earlier
	c.ws = ws
	// Not in this goroutine: its stack has grown with the TLS handshake, and returning
	// lets net/http free all that the request took.
	joined = true
	go c.serve()
}

// newClient returns a client that was counted in, or answers the request and returns nil.
func (h *Hub) newClient(w http.ResponseWriter, r *http.Request) *client {
	c := &client{hub: h, index: -1, remote: AddressOf(r.RemoteAddr)}
	if reason, text := h.admit(c); reason != "" {
		// Ten seconds: the page's own backoff is of that order, and a full server gains
		// nothing from being asked more often.
		w.Header().Set("Retry-After", "10")
		status := http.StatusServiceUnavailable
		if reason == ReasonAddressFull {
			status = http.StatusTooManyRequests // the server is well, and others are let in
		}
		h.refuse(w, r, reason, status, text)
		return nil
	}
	c.owner = h.shards[int(h.nextShard.Add(1))%len(h.shards)]
	return c
}

func (h *Hub) refuse(w http.ResponseWriter, r *http.Request, reason Reason, status int, text string) {
	h.events.Refused(reason, "remote", AddressOf(r.RemoteAddr), "code", status, "err", text)
	http.Error(w, text, status)
}

// admit counts c in, or returns why there is no room, and what to tell the peer. release
// undoes it.
func (h *Hub) admit(c *client) (Reason, string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	switch {
	case h.stopping:
		return ReasonStopping, textStopping
	case h.unknown:
		return ReasonNoValue, "the counter's store has not been reached yet"
	case h.cfg.MaxClients > 0 && h.admitted.total >= h.cfg.MaxClients:
		return ReasonFull, "the server is full"
	case h.cfg.MaxClientsPerIP > 0 && h.admitted.of[c.remote] >= h.cfg.MaxClientsPerIP:
		return ReasonAddressFull, "too many connections from your address"
	}
	h.admitted.add(c.remote)
	h.clients.Add(1) // under mu, so that none is added after Shutdown has begun to wait
	return "", ""
}

func (h *Hub) release(c *client) {
	h.mu.Lock()
	h.admitted.remove(c.remote)
	h.mu.Unlock()
	h.clients.Done()
}

// addressCounts counts clients by address.
type addressCounts struct {
	total int
	of    map[netip.Prefix]int
}

func (a *addressCounts) add(p netip.Prefix) {
	if a.of == nil {
		a.of = make(map[netip.Prefix]int)
	}
	a.total++
	a.of[p]++
}

func (a *addressCounts) remove(p netip.Prefix) {
	a.total--
	if a.of[p]--; a.of[p] == 0 {
		delete(a.of, p)
	}
}

// AddressOf returns what limits per address count a peer under, whose address has a port: an
// IPv4 address, or the /64 of an IPv6 address, since one host has all of that.
func AddressOf(remote string) netip.Prefix {
	ap, err := netip.ParseAddrPort(remote)
	if err != nil {
		return netip.Prefix{} // not TCP; all such count as one
	}
	return PrefixOf(ap.Addr())
}

// PrefixOf returns the prefix that limits per address count ip under, see [AddressOf].
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
