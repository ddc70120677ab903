package server

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/netip"
	"net/url"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"plusminus/hub"
	"plusminus/internal/config"
	"plusminus/internal/ingress"
	"plusminus/internal/store"
	"plusminus/static"
)

// Making counters is limited by address: makingBurst at once, and then one each makingEvery.
const (
	makingBurst = 10
	makingEvery = 6 * time.Second
)

// actTimeout bounds how long a POST waits for the store. By then the hub has said that the outcome is open.
const actTimeout = 5 * time.Second

// counters serves the paths below /c, and POST /. It reports whether r is one of them; then it has answered.
//
// A segment of a path is a name after its percent-encoding is undone. A trailing slash makes another path.
func (s *routes) counters(w http.ResponseWriter, r *http.Request) bool {
	path := r.URL.EscapedPath()
	upgrade := ingress.HasUpgrade(r)
	switch {
	case path == "/c" && upgrade:
		s.several(w, r)
		return true
	case path == "/" && (r.Method == http.MethodPost || r.Method == http.MethodOptions) && !upgrade:
		s.act(w, r, "")
		return true
	}
	rest, ok := strings.CutPrefix(path, "/c/")
	if !ok {
		return false
	}
	escaped, rest, more := strings.Cut(rest, "/")
	name, err := url.PathUnescape(escaped)
	if err != nil || !s.allowed(w, r, name) {
		return true
	}
	switch {
	case upgrade && !more:
		s.hub.ServeCounter(w, r, name)
	case upgrade:
		return false // any other path is about the default counter
	case !more && (r.Method == http.MethodPost || r.Method == http.MethodOptions):
		s.act(w, r, name)
	case !more:
		s.hub.ShareWithOrigin(w.Header(), r)
		page := r.Clone(r.Context())
		page.URL.Path = static.CounterPage + name
		s.page.ServeHTTP(w, page)
	case rest == "state":
		s.hub.ShareWithOrigin(w.Header(), r)
		s.state(w, r, name)
	case rest == "history":
		s.hub.ShareWithOrigin(w.Header(), r)
		s.history(w, r, name)
	case rest == "badge.svg":
		s.badge(w, r, name)
	case rest == "events":
		s.hub.ServeStreamOf(w, r, name)
	default:
		http.Error(w, "a counter has /state, /events, /history and /badge.svg", http.StatusNotFound)
	}
	return true
}

// allowed reports whether there may be a counter called name. Otherwise it answers 400 or 404.
func (s *routes) allowed(w http.ResponseWriter, r *http.Request, name string) bool {
	if err := hub.ValidName(name); err != nil {
		s.refuse(w, r, hub.ReasonBadName, http.StatusBadRequest, err.Error())
		return false
	}
	if !s.hub.Allows(name) {
		s.refuse(w, r, hub.ReasonNoCounter, http.StatusNotFound, "there is no counter of that name here")
		return false
	}
	return true
}

// refuse answers a request that is refused, and counts the refusal. Pages of allowed origins may read the answer.
func (s *routes) refuse(w http.ResponseWriter, r *http.Request, reason hub.Reason, status int, text string) {
	s.events.Refused(reason, "remote", hub.AddressOf(r.RemoteAddr), "code", status, "err", text)
	s.hub.ShareWithOrigin(w.Header(), r)
	http.Error(w, text, status)
}

// several answers an upgrade on /c?name=a&name=b.
func (s *routes) several(w http.ResponseWriter, r *http.Request) {
	names := r.URL.Query()["name"]
	seen := make(map[string]bool)
	switch {
	case len(names) == 0:
		s.refuse(w, r, hub.ReasonBadName, http.StatusBadRequest, "name the counters: /c?name=a&name=b")
		return
	case len(names) > hub.MaxNames:
		s.refuse(w, r, hub.ReasonBadName, http.StatusBadRequest, fmt.Sprintf("a connection is about at most %d counters", hub.MaxNames))
		return
	}
	for _, name := range names {
		if !s.allowed(w, r, name) {
			return
		}
		if seen[name] {
			s.refuse(w, r, hub.ReasonBadName, http.StatusBadRequest, "each counter is named once")
			return
		}
		seen[name] = true
	}
	s.hub.ServeCounters(w, r, names)
}

// act answers a POST whose body is an action on the counter called name, with its value once that is safe, and the
// preflight request for it.
func (s *routes) act(w http.ResponseWriter, r *http.Request, name string) {
	header := w.Header()
	s.hub.ShareWithOrigin(header, r)
	header.Set("Cache-Control", "no-store")
	header.Set("X-Content-Type-Options", "nosniff")
	if !s.hub.CheckOrigin(w, r) {
		return
	}
	if r.Method == http.MethodOptions {
		header.Set("Allow", "GET, HEAD, POST, OPTIONS")
		header.Set("Access-Control-Allow-Methods", "POST")
		header.Set("Access-Control-Allow-Headers", "Content-Type")
		header.Set("Access-Control-Max-Age", "86400")
		w.WriteHeader(http.StatusNoContent)
		return
	}
	body, err := io.ReadAll(io.LimitReader(r.Body, hub.MaxMessage+1))
	if err != nil { // the peer has left, or is too slow
		http.Error(w, "the message has not arrived in time", http.StatusRequestTimeout)
		return
	}
	if len(body) > hub.MaxMessage {
		body = nil // is refused as no message
	}
	ctx, cancel := context.WithTimeout(r.Context(), actTimeout)
	defer cancel()
	value, err := s.hub.Act(ctx, name, hub.AddressOf(r.RemoteAddr), body)
	header.Set("Content-Type", "application/json")
	var refused *hub.RefusedError
	switch {
	case err == nil:
		answer := hub.AppendValue([]byte(`{"value":`), value)
		_, _ = w.Write(append(answer, "}\n"...)) // an error means that the client has gone
	case errors.As(err, &refused):
		status := statusOf(refused.Code)
		if status == http.StatusTooManyRequests || status == http.StatusServiceUnavailable {
			header.Set("Retry-After", "10")
		}
		w.WriteHeader(status)
		_, _ = w.Write(slices.Concat(refused.JSON, []byte("\n"))) // JSON is shared with other calls
	default:
		header.Set("Retry-After", "10")
		w.WriteHeader(http.StatusServiceUnavailable)
		_ = json.NewEncoder(w).Encode(map[string]string{"type": "error", "code": "store_undecided", "message": "The counter's store has not answered in time. The action may count."})
	}
}

// statusOf returns the HTTP status for the code of a refusal.
func statusOf(code string) int {
	switch code {
	case "out_of_range":
		return http.StatusConflict
	case "rate_limited", "making_limited":
		return http.StatusTooManyRequests
	case "store_unavailable", "store_undecided", "too_many_counters":
		return http.StatusServiceUnavailable
	}
	return http.StatusBadRequest
}

// permits returns a function that takes one token of an address from rates, and reports whether there was one.
func permits(rates *ingress.Rates) func(netip.Prefix) bool {
	return func(remote netip.Prefix) bool { return rates.Take(remote, 1) == 0 }
}

// actRate limits the actions of an address without a client like those of one client.
func actRate(cfg *config.Config) func(netip.Prefix) bool {
	if cfg.ActionRate == 0 {
		return nil
	}
	return permits(ingress.NewRates(cfg.ActionRate, cfg.ActionBurst))
}

// maxCounters returns how many counters there may be besides the default one; 0 if there are none, or no limit.
func maxCounters(cfg *config.Config) int {
	if len(cfg.Counters) == 0 {
		return 0
	}
	return cfg.MaxCounters
}

// openStore opens the place of the counter, or of many with -counters.
func openStore(cfg *config.Config, spec store.Spec, log *slog.Logger) (hub.Store, func() error, error) {
	if len(cfg.Counters) == 0 {
		return spec.Open(cfg.Data, log)
	}
	return spec.OpenMany(cfg.Data, cfg.MaxCounters, log)
}

// dataOf returns the absolute path of the data folder if the counters live there, or "".
func dataOf(cfg *config.Config, spec store.Spec) string {
	if !spec.UsesData() {
		return ""
	}
	path, err := filepath.Abs(cfg.Data)
	if err != nil {
		return ""
	}
	return path
}
