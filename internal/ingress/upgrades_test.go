package ingress

import (
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"plusminus/hub"
)

func TestStripped(t *testing.T) {
	const key = "Sec-WebSocket-Key"
	for _, tt := range []struct {
		name, method string
		minor        int // of HTTP/1
		header       map[string]string
		want         bool
	}{
		{"a whole handshake", "GET", 1, map[string]string{key: "x", "Upgrade": "websocket", "Connection": "keep-alive, Upgrade"}, false},
		{"in capitals", "GET", 1, map[string]string{key: "x", "Upgrade": "WebSocket", "Connection": "UPGRADE"}, false},
		{"nothing left but the key", "GET", 1, map[string]string{key: "x"}, true},
		{"no Upgrade", "GET", 1, map[string]string{key: "x", "Connection": "upgrade"}, true},
		{"another Upgrade", "GET", 1, map[string]string{key: "x", "Upgrade": "h2c", "Connection": "upgrade"}, true},
		{"no Connection", "GET", 1, map[string]string{key: "x", "Upgrade": "websocket"}, true},
		{"another Connection", "GET", 1, map[string]string{key: "x", "Upgrade": "websocket", "Connection": "close"}, true},
		{"HTTP/1.0", "GET", 0, map[string]string{key: "x", "Upgrade": "websocket", "Connection": "upgrade"}, true},
		{"no key", "GET", 1, map[string]string{"Upgrade": "websocket"}, false}, // the hub refuses it
		{"a page", "GET", 1, nil, false},
		{"a POST", "POST", 1, map[string]string{key: "x"}, false},
	} {
		events := hub.NewEvents(hub.EventsConfig{Refusals: Refusals()})
		r := httptest.NewRequest(tt.method, "/", nil)
		r.ProtoMinor = tt.minor
		for k, v := range tt.header {
			r.Header.Set(k, v)
		}
		w := httptest.NewRecorder()
		if got := New(Config{Events: events}).Upgrades.Stripped(w, r); got != tt.want {
			t.Errorf("%s: Stripped = %v, want %v", tt.name, got, tt.want)
		}
		if n := events.Counts().Refusals[ReasonUpgradeStripped]; (n == 1) != tt.want {
			t.Errorf("%s: %d refusals are counted, want one is %v", tt.name, n, tt.want)
		}
		if tt.want && (w.Code != http.StatusUpgradeRequired || w.Header().Get("Upgrade") != "websocket" ||
			!strings.Contains(w.Body.String(), "a proxy in front does not pass Upgrade on")) {
			t.Errorf("%s: %d %v %q, want 426 and what to do", tt.name, w.Code, w.Header(), w.Body)
		}
	}
}
