package e2e

import (
	"net/http"
	"slices"
	"testing"
)

// Pages of an allowed origin may import the page's modules and read the state. All others get no permission.
// https://fetch.spec.whatwg.org/#cors-protocol-and-http-caches
func TestSharedWithOrigins(t *testing.T) {
	t.Parallel()
	s := start(t, "-origin", "https://other.example", "-origin", "capacitor://localhost")
	for _, path := range []string{"/", "/client.js", "/embed.js", "/app.js", "/plot.js", "/state", "/history", "/nothing"} {
		for _, tt := range []struct{ origin, want string }{
			{"https://other.example", "https://other.example"},
			{"capacitor://localhost", "capacitor://localhost"},
			{"https://localhost:8443", "https://localhost:8443"},
			{"https://evil.example", ""},
			{"null", ""},
			{"", ""},
		} {
			req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "https://localhost"+path, nil)
			if err != nil {
				t.Fatal(err)
			}
			if tt.origin != "" {
				req.Header.Set("Origin", tt.origin)
			}
			resp, _ := s.do(req)
			if path == "/embed.js" {
				tt.want = "*" // it says so if its page is not allowed
			}
			if got := resp.Header.Get("Access-Control-Allow-Origin"); got != tt.want {
				t.Errorf("GET %s from %q: Access-Control-Allow-Origin %q, want %q", path, tt.origin, got, tt.want)
			}
			if !slices.Contains(resp.Header["Vary"], "Origin") {
				t.Errorf("GET %s from %q: Vary %q, want Origin in any case", path, tt.origin, resp.Header["Vary"])
			}
			if resp.StatusCode == http.StatusOK && path == "/state" && resp.Header.Get("Etag") != "" && tt.want != "" {
				// A 304 needs the permission, too: the browser checks it again.
				req := req.Clone(t.Context())
				req.Header.Set("If-None-Match", resp.Header.Get("Etag"))
				resp, _ := s.do(req)
				if got := resp.Header.Get("Access-Control-Allow-Origin"); resp.StatusCode != http.StatusNotModified || got != tt.want {
					t.Errorf("GET %s from %q again: %s, Access-Control-Allow-Origin %q, want 304 and %q", path, tt.origin, resp.Status, got, tt.want)
				}
			}
		}
	}
}
