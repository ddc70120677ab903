// Package admin serves the admin listener, which is for operators and their tools: health, status,
// metrics, counters, and the renewal of certificates. It also has the client that asks a running server. It
// starts no goroutine.
package admin

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"net"
	"net/http"
	"net/netip"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"plusminus/acme"
	"plusminus/acme/export"
	"plusminus/hub"
	"plusminus/internal/ingress"
)

// Certificates are the certificates of the server. [acme.Provider] implements it.
type Certificates interface {
	// Ready returns nil when at least one domain has a valid certificate, or else why not.
	Ready() error

	// Complete returns nil when every domain has a valid certificate, or else why not.
	Complete() error

	// Status returns the state of each domain's certificate.
	Status() []acme.Status

	// Renew obtains a new certificate for a domain, see [acme.Provider.Renew].
	Renew(ctx context.Context, domain string) error
}

// Config is what [New] needs to know. All fields but Export and LinesLost are required.
type Config struct {
	Version      string
	Hub          *hub.Hub
	Store        string // where the counters live, without a password
	Data         string // the absolute path of the data folder, if they live there; otherwise empty
	Certificates Certificates
	Export       *export.Exporter // nil exports nothing
	Events       *hub.Events
	Gate         *ingress.Gate
	LinesLost    func() uint64 // how many lines of the log have been lost; nil counts none

	// MaxCounters is how many counters the store may have besides the default one; 0 if there are no others, or no limit.
	MaxCounters int

	// Host is the host that the flag -admin names, or "". Requests may name it besides IP addresses and localhost.
	Host string
}

// Admin is the handler of the admin listener. Its methods are safe from any goroutine.
type Admin struct {
	// Immutable after New.
	cfg     Config
	handler http.Handler

	stopping atomic.Bool
}

// New returns the handler of the admin listener.
func New(cfg Config) *Admin {
	a := &Admin{cfg: cfg}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /livez", func(w http.ResponseWriter, r *http.Request) { fmt.Fprintln(w, "alive") })
	mux.HandleFunc("GET /readyz", a.readyz)
	mux.Handle("GET /metrics", newMetrics(a))
	// The paths above change nothing, and tools ask for them by many names.
	mux.HandleFunc("GET /status", a.named(a.status))
	mux.HandleFunc("POST /renew", a.named(a.renew))
	mux.HandleFunc("GET /counters", a.named(a.counters))
	for _, method := range []string{"GET", "PUT", "DELETE"} {
		mux.HandleFunc(method+" /counter", a.named(a.counter))
	}
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		http.Error(w, "this listener has GET /livez, /readyz, /status, /metrics and /counters, POST /renew?domain=, and GET, PUT and DELETE /counter?name=", http.StatusNotFound)
	})
	// A web page that an operator has open must not be able to spend orders.
	a.handler = http.NewCrossOriginProtection().Handler(mux)
	return a
}

// named lets requests pass to h whose Host is an IP address, localhost, or the host of -admin. All others get 421.
//
// A web page can make a name of its own lead to this listener (DNS rebinding). Its requests then have the page's own origin,
// and only their Host shows whose they are. A request without a Host is no browser's.
func (a *Admin) named(h http.HandlerFunc) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		host := r.Host
		if name, _, err := net.SplitHostPort(host); err == nil {
			host = name
		}
		host = hub.CanonicalHost(host)
		if _, err := netip.ParseAddr(host); err != nil && r.Host != "" && host != "localhost" && host != hub.CanonicalHost(a.cfg.Host) {
			http.Error(w, fmt.Sprintf("not for the host %.80q: ask by IP address or as localhost, or name the host in -admin", host), http.StatusMisdirectedRequest)
			return
		}
		h(w, r)
	}
}

// ServeHTTP implements [http.Handler].
func (a *Admin) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Cache-Control", "no-store")
	a.handler.ServeHTTP(w, r)
}

// Stopping makes the server not ready from now on.
func (a *Admin) Stopping() { a.stopping.Store(true) }

func (a *Admin) readyz(w http.ResponseWriter, r *http.Request) {
	if err := a.Ready(); err != nil {
		http.Error(w, "not ready: "+err.Error(), http.StatusServiceUnavailable)
		return
	}
	if err := a.cfg.Certificates.Complete(); err != nil {
		fmt.Fprintln(w, "ready, but not for all domains: "+err.Error())
		return
	}
	fmt.Fprintln(w, "ready")
}

// Ready returns nil if clients can be served for at least one domain, or else every reason why not.
func (a *Admin) Ready() error {
	if a.stopping.Load() {
		return errors.New("stopping")
	}
	return errors.Join(a.cfg.Hub.Ready(), a.cfg.Certificates.Ready())
}

// storeStatus is the state of the store.
type storeStatus struct {
	Where string `json:"where"`          // "file", "memory", or the URL of a server
	Data  string `json:"data,omitempty"` // the data folder of "file"
	Up    bool   `json:"up"`
	Error string `json:"error,omitempty"` // why not up
}

// eventCounts are the counts of the hub's and of the gate's events.
type eventCounts struct {
	hub.EventCounts
	Handshakes map[ingress.Outcome]uint64 `json:"handshakes"`
}

func (a *Admin) status(w http.ResponseWriter, r *http.Request) {
	stats := a.cfg.Hub.Stats()
	status := struct {
		Version      string        `json:"version"`
		Ready        bool          `json:"ready"`
		Reason       string        `json:"reason,omitempty"` // why not ready
		Certificates []acme.Status `json:"certificates"`
		Hub          hub.Stats     `json:"hub"`
		Store        storeStatus   `json:"store"`
		Arrivals     int           `json:"arrivals"` // connections that have not joined the hub
		Events       eventCounts   `json:"events"`
	}{
		Version:      a.cfg.Version,
		Ready:        true,
		Certificates: a.cfg.Certificates.Status(),
		Hub:          stats,
		Store:        storeStatus{a.cfg.Store, a.cfg.Data, stats.Store == "", stats.Store},
		Arrivals:     a.cfg.Gate.Arrivals(),
		Events:       eventCounts{a.cfg.Events.Counts(), a.cfg.Gate.Handshakes()},
	}
	if err := a.Ready(); err != nil {
		status.Ready, status.Reason = false, err.Error()
	}
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(status) // an error means that the client has gone
}

// renew obtains a new certificate for a domain, and answers when that is done or has failed.
func (a *Admin) renew(w http.ResponseWriter, r *http.Request) {
	// It takes as long as the CA does, which may be longer than the server's time limits.
	rc := http.NewResponseController(w)
	if err := errors.Join(rc.SetReadDeadline(time.Time{}), rc.SetWriteDeadline(time.Time{})); err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	domain, err := a.domainToRenew(r.URL.Query()["domain"])
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	var notYet *acme.NotYetError
	switch err := a.cfg.Certificates.Renew(r.Context(), domain); {
	case err == nil:
		for _, st := range a.cfg.Certificates.Status() {
			if st.Domain == domain {
				fmt.Fprintf(w, "renewed: %s, serial %s, expires %s\n", domain, st.Serial, st.NotAfter.UTC().Format(time.RFC3339))
			}
		}
	case errors.Is(err, acme.ErrUnknownDomain):
		http.Error(w, err.Error(), http.StatusNotFound)
	case errors.Is(err, acme.ErrFromFiles):
		http.Error(w, err.Error(), http.StatusConflict)
	case errors.As(err, &notYet):
		wait := max(time.Until(notYet.Until), time.Second)
		w.Header().Set("Retry-After", strconv.Itoa(int(math.Ceil(wait.Seconds()))))
		http.Error(w, "not renewed: "+err.Error(), http.StatusTooManyRequests)
	default:
		http.Error(w, "not renewed: "+err.Error(), http.StatusBadGateway)
	}
}

// domainToRenew returns the domain that a request names, or the only one of the server.
func (a *Admin) domainToRenew(named []string) (string, error) {
	var domains []string
	for _, st := range a.cfg.Certificates.Status() {
		domains = append(domains, st.Domain)
	}
	switch {
	case len(domains) == 0:
		return "", errors.New("nothing to renew: with -plain the proxy in front has the certificate")
	case len(named) > 1:
		return "", errors.New("name one domain at a time")
	case len(named) == 1 && named[0] != "":
		return hub.CanonicalHost(named[0]), nil // an IPv6 address may have brackets
	case len(domains) == 1:
		return domains[0], nil
	}
	return "", errors.New("name the domain (?domain=): " + strings.Join(domains, ", "))
}
