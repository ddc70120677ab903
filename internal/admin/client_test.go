package admin

import (
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
)

func TestDialable(t *testing.T) {
	for addr, want := range map[string]string{
		":9180":          "localhost:9180",
		"0.0.0.0:9180":   "localhost:9180",
		"[::]:9180":      "localhost:9180",
		"127.0.0.1:9180": "127.0.0.1:9180",
		"[::1]:9180":     "[::1]:9180",
		"admin:9180":     "admin:9180",
	} {
		if got := Dialable(addr); got != want {
			t.Errorf("Dialable(%q) = %q, want %q", addr, got, want)
		}
	}
}

func TestAsk(t *testing.T) {
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/livez" {
			http.Error(w, "not ready: stopping", http.StatusServiceUnavailable)
			return
		}
		w.Write([]byte("alive\n"))
	}))
	addr := strings.TrimPrefix(srv.URL, "http://")
	if text, err := Ask(t.Context(), addr, http.MethodGet, "/livez"); err != nil || text != "alive" {
		t.Errorf("Ask /livez = %q, %v, want alive", text, err)
	}
	if _, err := Ask(t.Context(), addr, http.MethodGet, "/readyz"); err == nil || err.Error() != "not ready: stopping" {
		t.Errorf("Ask /readyz = %v, want the text of the answer", err)
	}
	if !Alive(t.Context(), addr) {
		t.Error("Alive = false while the server runs")
	}
	srv.Close()
	if Alive(t.Context(), addr) {
		t.Error("Alive = true after the server has ended")
	}
	if _, err := Ask(t.Context(), "", http.MethodGet, "/livez"); err == nil || !strings.Contains(err.Error(), "-admin is off") {
		t.Errorf("Ask without an address = %v, want that -admin is off", err)
	}
}
