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
