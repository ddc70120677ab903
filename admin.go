package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"time"

	"plusminus/acme"
	"plusminus/hub"
)

// health answers on the admin listener, which is for operators and their tools.
type health struct {
	hub   *hub.Hub
	certs *acme.Provider // nil without TLS of our own
}

func (h *health) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if r.Method != http.MethodGet && r.Method != http.MethodHead {
		w.Header().Set("Allow", "GET, HEAD")
		http.Error(w, "only GET", http.StatusMethodNotAllowed)
		return
	}
	w.Header().Set("Cache-Control", "no-store")
	switch r.URL.Path {
	case "/livez":
		fmt.Fprintln(w, "alive")
	case "/readyz":
		if err := h.ready(); err != nil {
			http.Error(w, "not ready: "+err.Error(), http.StatusServiceUnavailable)
			return
		}
		fmt.Fprintln(w, "ready")
	case "/status":
		h.status(w)
	default:
		http.Error(w, "there are /livez, /readyz and /status", http.StatusNotFound)
	}
}

// ready returns nil if clients can be served, or else all that is in the way.
func (h *health) ready() error {
	err := h.hub.Ready()
	if h.certs != nil {
		err = errors.Join(err, h.certs.Ready())
	}
	return err
}

func (h *health) status(w http.ResponseWriter) {
	status := struct {
		Version      string        `json:"version"`
		Ready        bool          `json:"ready"`
		Reason       string        `json:"reason,omitempty"` // why not ready
		Certificates []acme.Status `json:"certificates"`
		Hub          hub.Stats     `json:"hub"`
	}{Version: versionString(), Ready: true, Certificates: []acme.Status{}, Hub: h.hub.Stats()}
	if err := h.ready(); err != nil {
		status.Ready, status.Reason = false, err.Error()
	}
	if h.certs != nil {
		status.Certificates = h.certs.Status()
	}
	w.Header().Set("Content-Type", "application/json")
	writeJSON(w, status)
}

// healthcheck asks the plusminus that runs with the same configuration whether it is
// ready, and returns an error if not.
func healthcheck(ctx context.Context, cfg *config, stdout io.Writer) error {
	if cfg.admin == "" {
		return errors.New("-admin is off: there is nobody to ask")
	}
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+dialable(cfg.admin)+"/readyz", nil)
	if err != nil {
		return err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return fmt.Errorf("asking whether plusminus is ready: %w", err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, 4<<10))
	if err != nil {
		return fmt.Errorf("asking whether plusminus is ready: %w", err)
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
