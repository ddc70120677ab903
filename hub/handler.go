package hub

import (
	"errors"
	"fmt"
	"net/http"
	"net/netip"
	"net/url"
	"strings"

	"github.com/coder/websocket"
	"golang.org/x/net/idna"
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
	c.wire.client = c
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

// checkOrigin reports whether the page that r comes from, if it comes from one, may connect. If
// not it answers 403.
func (h *Hub) checkOrigin(w http.ResponseWriter, r *http.Request) bool {
	origins := r.Header["Origin"]
	if len(origins) == 0 || len(origins) == 1 && h.allows(origins[0]) {
		return true
	}
	h.refuse(w, r, ReasonOrigin, http.StatusForbidden, fmt.Sprintf("pages of %q may not connect here", strings.Join(origins, ", ")))
	return false
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
	c.shard = h.shards[int(h.nextShard.Add(1))%len(h.shards)]
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
		return ReasonStopping, reasonStopping
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

// Origin says which pages may connect. The zero value is none.
type Origin struct {
	any          bool
	scheme, host string // as CanonicalHost has it
	below        bool   // every name below host, and not host itself
	port         string // "*" is any; the scheme's own is ""
}

// ParseOrigin understands "https://host", "https://host:port", "https://host:*" (any
// port), "https://*.host" (every name below host), the same with http, and "*" (any page
// whatsoever). The scheme counts as much as the host does: a page that came over http may be
// anybody's. https://www.rfc-editor.org/rfc/rfc6454#section-6.2
func ParseOrigin(s string) (Origin, error) {
	if s == "*" {
		return Origin{any: true}, nil
	}
	base, anyPort := strings.CutSuffix(strings.TrimSuffix(s, "/"), ":*")
	o, ok := parseOrigin(base)
	o.host, o.below = cutWildcard(o.host)
	ascii, err := idna.Lookup.ToASCII(o.host) // as browsers have it
	if _, noIP := netip.ParseAddr(o.host); noIP == nil {
		ascii, err = o.host, nil
	}
	if !ok || err != nil || strings.Contains(ascii, "*") || anyPort && o.port != "" {
		return Origin{}, fmt.Errorf("%q is no origin: write https://host, https://host:port, https://host:*, https://*.host or *", s)
	}
	o.host = ascii
	if anyPort {
		o.port = "*"
	}
	return o, nil
}

func cutWildcard(host string) (string, bool) { return strings.CutPrefix(host, "*.") }

// parseOrigin parses the origin of one page, as browsers send it.
// https://www.rfc-editor.org/rfc/rfc6454#section-7.1
func parseOrigin(s string) (Origin, bool) {
	u, err := url.Parse(s)
	if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Hostname() == "" ||
		u.User != nil || u.Path != "" || u.RawQuery != "" || u.ForceQuery || strings.Contains(s, "#") {
		return Origin{}, false
	}
	o := Origin{scheme: u.Scheme, host: CanonicalHost(u.Hostname()), port: u.Port()}
	if o.scheme == "https" && o.port == "443" || o.scheme == "http" && o.port == "80" {
		o.port = ""
	}
	return o, true
}

// CanonicalHost returns a host in lower case and without the trailing dot, and an IP address in its
// shortest form, without brackets. host has no port.
func CanonicalHost(host string) string {
	host = strings.ToLower(strings.TrimSuffix(host, "."))
	if ip, err := netip.ParseAddr(strings.Trim(host, "[]")); err == nil {
		return ip.Unmap().String()
	}
	return host
}

// allows reports whether a page of the given Origin header may connect.
func (h *Hub) allows(header string) bool {
	page, ok := parseOrigin(header)
	for _, o := range h.cfg.Origins {
		host := o.host == page.host
		if o.below {
			host = strings.HasSuffix(page.host, "."+o.host)
		}
		if o.any || ok && host && o.scheme == page.scheme && (o.port == "*" || o.port == page.port) {
			return true
		}
	}
	return false
}
