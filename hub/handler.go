package hub

import (
	"errors"
	"fmt"
	"net/http"
	"net/netip"
	"net/url"
	"strings"

	"github.com/coder/websocket"
)

// ServeHTTP takes a client in: it answers a WebSocket opening handshake on any path,
// and returns at once; the client is served by a goroutine of its own.
//
// It refuses with 403 a page whose Origin may not connect, with 503 and Retry-After
// more clients than there may be, and with 400 or 426 what is no handshake
// (https://www.rfc-editor.org/rfc/rfc6455#section-4.2.2). Whether the Host is one of
// ours is for the caller to check.
func (h *Hub) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	// "The |Origin| header field is used to protect against unauthorized cross-origin use
	// of a WebSocket server by scripts using the WebSocket API in a web browser."
	// https://www.rfc-editor.org/rfc/rfc6455#section-4.1
	if origin := r.Header.Get("Origin"); origin != "" && !h.allows(origin) {
		h.refuseHandshake(w, r, http.StatusForbidden, fmt.Sprintf("pages of %q may not connect here", origin))
		return
	}
	c := &client{hub: h, index: -1, remote: addressOf(r.RemoteAddr)}
	if reason := h.admit(c); reason != "" {
		// Ten seconds: the page's own backoff is of that order, and a full server gains
		// nothing from being asked more often.
		w.Header().Set("Retry-After", "10")
		h.refuseHandshake(w, r, http.StatusServiceUnavailable, reason)
		return
	}
	c.shard = h.shards[int(h.nextShard.Add(1))%len(h.shards)]
	c.wire.onClose, c.wire.onBlock = c.leave, c.noteBlocked
	ws, err := websocket.Accept(&upgrade{w, &c.wire}, r, &websocket.AcceptOptions{
		InsecureSkipVerify: true, // the Origin was checked above, scheme and port included
		CompressionMode:    websocket.CompressionDisabled,
	})
	if err != nil {
		h.release(c)
		if errors.Is(err, errNotOurs) {
			h.log.Error("cannot serve any client", "err", err)
			return
		}
		h.log.Debug("opening handshake", "remote", c.remote, "err", err) // the library has answered
		return
	}
	ws.SetReadLimit(MaxMessage)
	c.ws = ws
	// Not in this goroutine: its stack has grown with the TLS handshake, and returning
	// lets net/http free all that the request took.
	go c.serve()
}

func (h *Hub) refuseHandshake(w http.ResponseWriter, r *http.Request, status int, reason string) {
	h.log.Debug("client refused", "remote", r.RemoteAddr, "code", status, "reason", reason)
	http.Error(w, reason, status)
}

// admit counts c in, or returns why there is no room. release undoes it.
func (h *Hub) admit(c *client) string {
	h.mu.Lock()
	defer h.mu.Unlock()
	switch {
	case h.stopping:
		return reasonStopping
	case h.unknown:
		return "the counter's store has not been reached yet"
	case h.cfg.MaxClients > 0 && h.admitted.total >= h.cfg.MaxClients:
		return "the server is full"
	case h.cfg.MaxClientsPerIP > 0 && h.admitted.of[c.remote] >= h.cfg.MaxClientsPerIP:
		return "too many connections from your address"
	}
	h.admitted.add(c.remote)
	h.clients.Add(1) // under mu, so that none is added after Shutdown has begun to wait
	return ""
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

// addressOf returns what the cap per address counts a peer under: an IPv4 address, or
// the /64 of an IPv6 address, since one host has all of that.
func addressOf(remote string) netip.Prefix {
	ap, err := netip.ParseAddrPort(remote)
	if err != nil {
		return netip.Prefix{} // not TCP; all such count as one
	}
	ip := ap.Addr().Unmap().WithZone("")
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

// Origin says which pages may connect. The zero value is none.
type Origin struct {
	any          bool
	scheme, host string // lower case
	port         string // "*" is any; the scheme's own is ""
}

// ParseOrigin understands "https://host", "https://host:port", "https://host:*" (any
// port), the same with http, and "*" (any page whatsoever).
// https://www.rfc-editor.org/rfc/rfc6454#section-6.2
func ParseOrigin(s string) (Origin, error) {
	if s == "*" {
		return Origin{any: true}, nil
	}
	base, anyPort := strings.CutSuffix(s, ":*")
	u, err := url.Parse(base)
	if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Hostname() == "" ||
		u.User != nil || strings.TrimSuffix(u.Path, "/") != "" || u.RawQuery != "" || u.Fragment != "" || anyPort && u.Port() != "" {
		return Origin{}, fmt.Errorf("%q is no origin: write https://host, https://host:port, https://host:* or *", s)
	}
	o := originOf(u)
	if anyPort {
		o.port = "*"
	}
	return o, nil
}

func originOf(u *url.URL) Origin {
	o := Origin{scheme: u.Scheme, host: strings.ToLower(u.Hostname()), port: u.Port()}
	if o.scheme == "https" && o.port == "443" || o.scheme == "http" && o.port == "80" {
		o.port = ""
	}
	return o
}

// allows reports whether a page of the given Origin header may connect.
func (h *Hub) allows(header string) bool {
	u, err := url.Parse(header)
	if err != nil {
		return false
	}
	page := originOf(u)
	for _, o := range h.cfg.Origins {
		if o.any || o.host == page.host && o.scheme == page.scheme && (o.port == "*" || o.port == page.port) {
			return true
		}
	}
	return false
}
