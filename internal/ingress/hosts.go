package ingress

import (
	"fmt"
	"net"
	"net/http"
	"slices"

	"plusminus/hub"
)

// Hosts are the hosts that are served. A nil *Hosts has none. Its methods are safe from any goroutine.
type Hosts struct {
	// Immutable after New.
	names  []string
	events *hub.Events
}

// Of returns the host that r is for. If that is not one of ours, it answers 421 and reports
// false: this stops DNS rebinding, where the name of a foreign page resolves to this server.
// https://www.rfc-editor.org/rfc/rfc9110#section-15.5.20
func (h *Hosts) Of(w http.ResponseWriter, r *http.Request) (string, bool) {
	host := r.Host
	if name, _, err := net.SplitHostPort(host); err == nil {
		host = name
	}
	host, ok := h.canonical(host)
	if ok {
		return host, true
	}
	host = host[:min(len(host), 253)] // the longest name of RFC 1035
	h.events.Refused(ReasonHost, "remote", hub.AddressOf(r.RemoteAddr), "code", http.StatusMisdirectedRequest, "host", host)
	http.Error(w, fmt.Sprintf("this server is not %q; its -domain flag lists what it serves", host), http.StatusMisdirectedRequest)
	return "", false
}

// canonical returns a host without a port as [hub.CanonicalHost] does, and reports whether it is one of ours.
func (h *Hosts) canonical(host string) (string, bool) {
	host = hub.CanonicalHost(host)
	return host, h != nil && slices.Contains(h.names, host)
}
