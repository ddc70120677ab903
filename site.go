package main

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"time"

	"golang.org/x/net/http/httpguts"

	"plusminus/acme"
	"plusminus/hub"
)

// site is what the public sees: the page, the state, the stream, and the hub behind every path.
type site struct {
	domains []acme.Domain
	certs   *acme.Provider // nil without TLS of our own
	hub     *hub.Hub
	page    http.Handler
	events  *hub.Events
}

func (s *site) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	domain, ok := s.host(w, r)
	if !ok {
		return
	}
	// From here on browsers will refuse to go around a broken certificate, so that this
	// has to wait for a certificate that they trust. It holds for all ports of the host, and
	// turns http:// on port 80 into https:// on 443: so that is where we have to be.
	// https://www.rfc-editor.org/rfc/rfc6797#section-7.2 and #section-8.3
	if s.certs != nil && onPort443(r.Host) && s.certs.PubliclyTrusted(domain) {
		w.Header().Set("Strict-Transport-Security", "max-age=31536000")
	}
	switch {
	case isUpgrade(r):
		s.hub.ServeHTTP(w, r)
	case r.URL.Path == streamPath:
		s.hub.ServeStream(w, r)
	case r.URL.Path == "/state":
		s.state(w, r)
	default:
		s.page.ServeHTTP(w, r)
	}
}

// streamPath is where the hub is to be had as an event stream.
const streamPath = "/events"

// joins reports whether r wants to become a client of the hub.
func joins(r *http.Request) bool {
	return isUpgrade(r) || r.URL.Path == streamPath && r.Method == http.MethodGet
}

// isUpgrade reports whether r wants to be a WebSocket.
func isUpgrade(r *http.Request) bool {
	return httpguts.HeaderValuesContainsToken(r.Header["Upgrade"], "websocket")
}

// host returns the domain that r is for. If that is none of ours it answers 421, and
// reports false: a page of somebody's own name that resolves to us (DNS rebinding) gets
// nothing. https://www.rfc-editor.org/rfc/rfc9110#section-15.5.20
func (s *site) host(w http.ResponseWriter, r *http.Request) (string, bool) {
	host := hostOf(r.Host)
	for _, d := range s.domains {
		if d.Name == host {
			return d.Name, true
		}
	}
	host = host[:min(len(host), 253)] // the longest name that there is
	s.events.Refused(hub.ReasonHost, "remote", hub.AddressOf(r.RemoteAddr), "code", http.StatusMisdirectedRequest, "host", host)
	http.Error(w, fmt.Sprintf("this server is not %q; its -domain flag says what it serves", host), http.StatusMisdirectedRequest)
	return "", false
}

// hostOf returns the host of a Host header as domains are written: without the port and
// the trailing dot, lower case, IP addresses in canonical form.
func hostOf(header string) string {
	host := header
	if h, _, err := net.SplitHostPort(header); err == nil {
		host = h
	}
	host = strings.ToLower(strings.TrimSuffix(host, "."))
	if ip, err := netip.ParseAddr(strings.Trim(host, "[]")); err == nil {
		return ip.Unmap().String()
	}
	return host
}

// onPort443 reports whether a client that sent this Host header over TLS came to port 443, whatever
// the port is called on this side of a container's.
func onPort443(header string) bool {
	_, port, err := net.SplitHostPort(header)
	return err != nil || port == "443"
}

// state answers GET /state. Whoever asks again and again sends the ETag that it has, and is told
// with 304 that nothing has changed.
func (s *site) state(w http.ResponseWriter, r *http.Request) {
	if r.Method != http.MethodGet && r.Method != http.MethodHead {
		w.Header().Set("Allow", "GET, HEAD")
		http.Error(w, "only GET", http.StatusMethodNotAllowed)
		return
	}
	stats := s.hub.Stats()
	if stats.Unknown {
		w.Header().Set("Retry-After", "10")
		http.Error(w, "the counter's store has not been reached yet", http.StatusServiceUnavailable)
		return
	}
	body, err := json.Marshal(struct {
		Value hub.Value `json:"value"`
		Users int       `json:"users"`
	}{stats.Value, stats.Users})
	if err != nil {
		panic(err) // numbers always marshal
	}
	sum := sha256.Sum256(body)
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Cache-Control", "no-cache") // keep a copy, but ask each time
	w.Header().Set("ETag", `"`+hex.EncodeToString(sum[:16])+`"`)
	w.Header().Set("X-Content-Type-Options", "nosniff")
	http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(append(body, '\n')))
}

// writeJSON writes v. An error means that the client has gone.
func writeJSON(w http.ResponseWriter, v any) {
	_ = json.NewEncoder(w).Encode(v)
}

// redirect sends plain requests for one of our domains to https.
type redirect struct {
	site *site
	port string // ":8443", or "" for 443
}

func (h *redirect) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	domain, ok := h.site.host(w, r)
	if !ok {
		return
	}
	// 308 keeps the method. https://www.rfc-editor.org/rfc/rfc9110#section-15.4.9
	http.Redirect(w, r, "https://"+urlHost(domain)+h.port+r.URL.RequestURI(), http.StatusPermanentRedirect)
}
