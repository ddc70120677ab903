package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"plusminus/acme"
	"plusminus/hub"
)

// health knows how the server is.
type health struct {
	hub      *hub.Hub
	store    string         // what the counter lives in, without a password
	certs    *acme.Provider // nil without TLS of our own
	events   *hub.Events
	gate     *hub.Gate
	stopping atomic.Bool // the process is about to end
}

// newAdmin returns what answers on the admin listener, which is for operators and their tools.
func newAdmin(h *health) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /livez", func(w http.ResponseWriter, r *http.Request) { fmt.Fprintln(w, "alive") })
	mux.HandleFunc("GET /readyz", h.readyz)
	mux.HandleFunc("GET /status", h.status)
	mux.Handle("GET /metrics", newMetrics(h))
	mux.HandleFunc("POST /renew", h.renew)
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		http.Error(w, "there are GET /livez, /readyz, /status and /metrics, and POST /renew?domain=", http.StatusNotFound)
	})
	// A page that an operator looks at elsewhere must not be able to spend orders.
	guarded := http.NewCrossOriginProtection().Handler(mux)
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Cache-Control", "no-store")
		guarded.ServeHTTP(w, r)
	})
}

func (h *health) readyz(w http.ResponseWriter, r *http.Request) {
	if err := h.ready(); err != nil {
		http.Error(w, "not ready: "+err.Error(), http.StatusServiceUnavailable)
		return
	}
	fmt.Fprintln(w, "ready")
}

// ready returns nil if clients can be served, or else all that is in the way.
func (h *health) ready() error {
	if h.stopping.Load() {
		return errors.New("stopping")
	}
	err := h.hub.Ready()
	if h.certs != nil {
		err = errors.Join(err, h.certs.Ready())
	}
	return err
}

// storeStatus tells how it stands with what the counter lives in.
type storeStatus struct {
	Where string `json:"where"` // "file", "memory", or the URL of a server
	Up    bool   `json:"up"`
	Error string `json:"error,omitempty"` // why not up
}

func (h *health) status(w http.ResponseWriter, r *http.Request) {
	status := struct {
		Version      string        `json:"version"`
		Ready        bool          `json:"ready"`
		Reason       string        `json:"reason,omitempty"` // why not ready
		Certificates []acme.Status `json:"certificates"`
		Hub          hub.Stats     `json:"hub"`
		Store        storeStatus   `json:"store"`
		Arrivals     int           `json:"arrivals"` // connections that have not joined the hub
		Events       hub.Tallies   `json:"events"`
	}{
		Version: versionString(), Ready: true, Certificates: []acme.Status{}, Hub: h.hub.Stats(),
		Arrivals: h.gate.Arrivals(), Events: h.events.Tallies(),
	}
	status.Store = storeStatus{h.store, status.Hub.Store == "", status.Hub.Store}
	if err := h.ready(); err != nil {
		status.Ready, status.Reason = false, err.Error()
	}
	if h.certs != nil {
		status.Certificates = h.certs.Status()
	}
	w.Header().Set("Content-Type", "application/json")
	writeJSON(w, status)
}

// renew obtains a new certificate for a domain, and answers when that is done or has failed.
func (h *health) renew(w http.ResponseWriter, r *http.Request) {
	// It takes as long as the CA does, and not as long as we give to strangers.
	rc := http.NewResponseController(w)
	if err := errors.Join(rc.SetReadDeadline(time.Time{}), rc.SetWriteDeadline(time.Time{})); err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	domain, err := h.domainToRenew(r.URL.Query()["domain"])
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	var notYet *acme.NotYetError
	switch err := h.certs.Renew(r.Context(), domain); {
	case err == nil:
		for _, st := range h.certs.Status() {
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

// domainToRenew returns the one domain that is asked for, or the only one that there is.
func (h *health) domainToRenew(asked []string) (string, error) {
	if h.certs == nil {
		return "", errors.New("there is nothing to renew: -plain has no certificates")
	}
	var names []string
	for _, st := range h.certs.Status() {
		names = append(names, st.Domain)
	}
	switch {
	case len(asked) > 1:
		return "", errors.New("name one domain at a time")
	case len(asked) == 1 && asked[0] != "":
		return asked[0], nil
	case len(names) == 1:
		return names[0], nil
	}
	return "", errors.New("name the domain (?domain=): " + strings.Join(names, ", "))
}

// healthcheck asks the plusminus that runs with the same configuration whether it is
// ready, and returns an error if not.
func healthcheck(ctx context.Context, cfg *config, stdout io.Writer) error {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	return askAdmin(ctx, cfg, http.MethodGet, "/readyz", stdout)
}

// renew has the plusminus that runs with the same configuration renew certificates: those of the
// domains that were given, or the only one that there is. It tells how each went.
func renew(ctx context.Context, cfg *config, stdout io.Writer) error {
	if cfg.noDomain {
		return askAdmin(ctx, cfg, http.MethodPost, "/renew", stdout)
	}
	var errs []error
	for _, d := range cfg.domains {
		err := askAdmin(ctx, cfg, http.MethodPost, "/renew?domain="+url.QueryEscape(d.Name), stdout)
		if err != nil {
			err = fmt.Errorf("%s: %w", d.Name, err)
		}
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// askAdmin sends a request to the admin listener of the plusminus that runs with the same
// configuration. It prints the answer, or returns it as an error if it is not 200.
func askAdmin(ctx context.Context, cfg *config, method, target string, stdout io.Writer) error {
	if cfg.admin == "" {
		return errors.New("-admin is off: there is nobody to ask")
	}
	req, err := http.NewRequestWithContext(ctx, method, "http://"+dialable(cfg.admin)+target, nil)
	if err != nil {
		return err
	}
	client := &http.Client{Transport: &http.Transport{}} // no proxy in between
	defer client.CloseIdleConnections()
	resp, err := client.Do(req)
	if err != nil {
		return fmt.Errorf("asking the plusminus that should be running: %w", err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, 64<<10))
	if err != nil {
		return fmt.Errorf("asking the plusminus that should be running: %w", err)
	}
	text := strings.TrimSpace(string(body))
	if resp.StatusCode != http.StatusOK {
		return errors.New(text)
	}
	_, err = fmt.Fprintln(stdout, text)
	return err
}

// dialable returns an address that reaches a listener on addr from the same machine.
func dialable(addr string) string {
	host, port, err := net.SplitHostPort(addr)
	if err != nil {
		return addr
	}
	if ip, err := netip.ParseAddr(host); host == "" || err == nil && ip.IsUnspecified() {
		host = "localhost"
	}
	return net.JoinHostPort(host, port)
}
