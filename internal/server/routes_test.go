package server

import (
	"bytes"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"plusminus/hub"
	"plusminus/internal/ingress"
)

// A panic of a handler ends its connection, and is logged once.
func TestHandlerPanics(t *testing.T) {
	var lines bytes.Buffer
	log := slog.New(slog.NewTextHandler(&lines, nil))
	events := hub.NewEvents(hub.EventsConfig{Logger: log})
	in := ingress.New(ingress.Config{Hosts: []string{"localhost"}, Events: events})
	broken := &routes{hosts: in.Hosts, upgrades: in.Upgrades, certs: noCertificates{}} // its page is a nil pointer
	srv := httptest.NewUnstartedServer(in.Requests.Limit(broken, joins))
	srv.Config.ErrorLog = slog.NewLogLogger(log.Handler(), slog.LevelWarn)
	srv.Start()
	defer srv.Close()
	for range 2 {
		req, err := http.NewRequest(http.MethodPost, srv.URL, nil) // the client does not repeat a POST
		if err != nil {
			t.Fatal(err)
		}
		req.Host = "localhost"
		if resp, err := srv.Client().Do(req); err == nil {
			t.Errorf("a handler that panics answers %s", resp.Status)
		}
	}
	srv.Close()
	if n := events.Counts().Panics; n != 2 {
		t.Errorf("%d panics are counted, want 2", n)
	}
	if got := lines.String(); strings.Count(got, "\n") != 1 || !strings.Contains(got, "level=ERROR") || !strings.Contains(got, "routes.go") {
		t.Errorf("the log has\n%s\nwant one line with the stack", got)
	}
}

// trusted are certificates that every browser trusts.
type trusted struct{ noCertificates }

func (trusted) PubliclyTrusted(string) bool { return true }

// HSTS is sent to visitors of a name on port 443, and never to those of an address.
// https://www.rfc-editor.org/rfc/rfc6797#section-8.1.1
func TestStrictTransportSecurity(t *testing.T) {
	hosts := []string{"counter.example.com", "192.0.2.1", "2001:db8::1"}
	in := ingress.New(ingress.Config{Hosts: hosts, Events: hub.NewEvents(hub.EventsConfig{Logger: slog.New(slog.DiscardHandler)})})
	page := http.HandlerFunc(func(http.ResponseWriter, *http.Request) {})
	h, err := hub.New(t.Context(), hub.Config{Store: new(hub.Memory)})
	if err != nil {
		t.Fatal(err)
	}
	defer h.Shutdown(t.Context())
	r := &routes{hosts: in.Hosts, upgrades: in.Upgrades, certs: trusted{}, hub: h, page: page}
	for host, want := range map[string]bool{
		"counter.example.com":      true,
		"counter.example.com:443":  true,
		"counter.example.com:8443": false,
		"192.0.2.1":                false,
		"[2001:db8::1]":            false,
		"[2001:db8::1]:443":        false,
	} {
		req := httptest.NewRequest(http.MethodGet, "/", nil)
		req.Host = host
		rec := httptest.NewRecorder()
		r.ServeHTTP(rec, req)
		if got := rec.Header().Get("Strict-Transport-Security") != ""; got != want || rec.Code != http.StatusOK {
			t.Errorf("%s: %d, HSTS %v, want %v", host, rec.Code, got, want)
		}
	}
}
