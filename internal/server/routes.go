package server

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"net"
	"net/http"
	"net/netip"
	"strconv"
	"strings"
	"time"

	"plusminus/hub"
	"plusminus/internal/config"
	"plusminus/internal/ingress"
)

// routes is what the public sees: the page, the state, the event stream, and the hub behind every path.
type routes struct {
	hosts    *ingress.Hosts
	upgrades *ingress.Upgrades
	certs    certificates
	hub      *hub.Hub
	events   *hub.Events
	page     http.Handler
	many     bool // there are counters besides the default one
}

func (s *routes) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	domain, ok := s.hosts.Of(w, r)
	if !ok {
		return
	}
	// From here on browsers refuse to bypass a broken certificate, so this has to wait for a
	// certificate that they trust. It holds for all ports of the host, and turns http:// on port 80
	// into https:// on port 443, so the server has to be there.
	// https://www.rfc-editor.org/rfc/rfc6797#section-7.2 and #section-8.3
	//
	// For an address the header has no meaning: "if the substring matching the host production […] syntactically matches the
	// IP-literal or IPv4address productions […], then the UA MUST NOT note this host as a Known HSTS Host."
	// https://www.rfc-editor.org/rfc/rfc6797#section-8.1.1
	_, err := netip.ParseAddr(domain)
	if err != nil && onPort443(r.Host) && s.certs.PubliclyTrusted(domain) {
		w.Header().Set("Strict-Transport-Security", "max-age=31536000")
	}
	switch {
	case s.upgrades.Stripped(w, r): // it has answered
	case s.many && s.counters(w, r): // likewise
	case ingress.HasUpgrade(r):
		s.hub.ServeHTTP(w, r)
	case r.URL.Path == streamPath:
		s.hub.ServeStream(w, r)
	case r.URL.Path == "/badge.svg":
		s.badge(w, r, "")
	default:
		// Pages of other origins import the page's modules, which read the state. Both are public.
		s.hub.ShareWithOrigin(w.Header(), r)
		switch r.URL.Path {
		case "/state":
			s.state(w, r, "")
		case "/history":
			s.history(w, r, "")
		default:
			s.page.ServeHTTP(w, r)
		}
	}
}

// streamPath is the path of the hub's event stream.
const streamPath = "/events"

// joins reports whether r asks to become a client of the hub.
func joins(r *http.Request) bool {
	stream := r.URL.Path == streamPath || strings.HasPrefix(r.URL.Path, "/c/") && strings.HasSuffix(r.URL.Path, streamPath)
	return ingress.HasUpgrade(r) || stream && r.Method == http.MethodGet
}

// onPort443 reports whether a client that sent this Host header over TLS used port 443. The port on
// this side of a container may be another.
func onPort443(header string) bool {
	_, port, err := net.SplitHostPort(header)
	return err != nil || port == "443"
}

// state answers GET /state, for the counter called name. A client that polls sends the ETag that it has, and gets 304 while nothing
// has changed.
func (s *routes) state(w http.ResponseWriter, r *http.Request, name string) {
	if !onlyGet(w, r) {
		return
	}
	value, users, ok := s.hub.State(r.Context(), name)
	if !ok {
		notKnown(w)
		return
	}
	body, err := json.Marshal(struct {
		Value hub.Value `json:"value"`
		Users int       `json:"users"`
	}{value, users})
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

// onlyGet reports whether r is a GET or HEAD. Otherwise it answers 405.
func onlyGet(w http.ResponseWriter, r *http.Request) bool {
	if r.Method == http.MethodGet || r.Method == http.MethodHead {
		return true
	}
	w.Header().Set("Allow", "GET, HEAD")
	http.Error(w, "only GET", http.StatusMethodNotAllowed)
	return false
}

// notKnown answers a request for a value that is not known.
func notKnown(w http.ResponseWriter) {
	w.Header().Set("Retry-After", "10")
	http.Error(w, "the counter's store has not been reached yet", http.StatusServiceUnavailable)
}

// history answers GET /history, for the counter called name: {"before":2,"points":[[-240,3],[0,5]]}. A point is an age in
// seconds and the value at the end of that second.
func (s *routes) history(w http.ResponseWriter, r *http.Request, name string) {
	if !onlyGet(w, r) {
		return
	}
	before, points, ok := s.hub.History(r.Context(), name)
	if !ok {
		notKnown(w)
		return
	}
	body := hub.AppendValue([]byte(`{"before":`), before)
	body = append(body, `,"points":[`...)
	for i, p := range points {
		if i > 0 {
			body = append(body, ',')
		}
		body = strconv.AppendInt(append(body, '['), int64(p.Age), 10)
		body = append(hub.AppendValue(append(body, ','), p.Value), ']')
	}
	body = append(body, "]}\n"...)
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Content-Length", strconv.Itoa(len(body)))
	w.Header().Set("Cache-Control", "no-cache")
	w.Header().Set("X-Content-Type-Options", "nosniff")
	if r.Method == http.MethodGet {
		_, _ = w.Write(body) // an error means that the client has gone
	}
}

// redirect sends plain requests for one of our domains to https, and refuses WebSocket clients.
type redirect struct {
	hosts    *ingress.Hosts
	upgrades *ingress.Upgrades
	port     string // ":8443", or "" for 443
}

func (h *redirect) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	domain, ok := h.hosts.Of(w, r)
	if !ok {
		return
	}
	target := "://" + config.URLHost(domain) + h.port + r.URL.RequestURI()
	if ingress.WantsWebSocket(r) {
		h.upgrades.WithoutTLS(w, r, "wss"+target)
		return
	}
	// 308 keeps the method. https://www.rfc-editor.org/rfc/rfc9110#section-15.4.9
	http.Redirect(w, r, "https"+target, http.StatusPermanentRedirect)
}

// httpsPort returns the port of a redirect to https, with its colon: "" if one of the addresses has
// port 443, else the port of the first one.
func httpsPort(addrs []string) string {
	first := ""
	for _, addr := range addrs {
		_, port, err := net.SplitHostPort(addr)
		switch {
		case err != nil:
		case port == "443":
			return ""
		case first == "":
			first = ":" + port
		}
	}
	return first
}

// pageURL returns the URL of the page, as far as it can be known here: a container's ports may be
// published as others.
func pageURL(cfg *config.Config, addrs ingress.Addresses) string {
	scheme, port := "https", httpsPort(addrs.HTTPS)
	if cfg.Plain {
		scheme, port = "http", ""
		if _, p, err := net.SplitHostPort(addrs.HTTP); err == nil && p != "80" {
			port = ":" + p
		}
	}
	return scheme + "://" + config.URLHost(cfg.Domains[0].Name) + port + "/"
}
