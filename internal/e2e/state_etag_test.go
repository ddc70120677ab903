package e2e

import (
	"net/http"
	"strconv"
	"testing"
)

// TestStateETag checks that GET /state with the ETag of the last answer gets 304 until the state changes.
func TestStateETag(t *testing.T) {
	t.Parallel()
	s := start(t, "-store", "memory")
	ask := func(method, etag string) (*http.Response, string) {
		t.Helper()
		req, err := http.NewRequestWithContext(t.Context(), method, "https://localhost/state", nil)
		if err != nil {
			t.Fatal(err)
		}
		if etag != "" {
			req.Header.Set("If-None-Match", etag)
		}
		resp, body := s.do(req)
		if got := resp.Header.Get("Cache-Control"); got != "no-cache" {
			t.Errorf("%s /state: Cache-Control is %q, want no-cache", method, got)
		}
		return resp, body
	}
	// A strong entity tag. https://www.rfc-editor.org/rfc/rfc9110#section-8.8.3
	check := func(was, body string) string {
		t.Helper()
		resp, got := ask(http.MethodGet, was)
		etag := resp.Header.Get("ETag")
		if resp.StatusCode != http.StatusOK || got != body+"\n" || len(etag) < 3 || etag[0] != '"' || etag == was {
			t.Fatalf("GET /state, If-None-Match %s = %s %q, ETag %s, want 200, %s, and a strong ETag of its own", was, resp.Status, got, etag, body)
		}
		for _, method := range []string{http.MethodGet, http.MethodHead} {
			for _, known := range []string{etag, `"x", W/` + etag, "*"} {
				resp, got := ask(method, known)
				if resp.StatusCode != http.StatusNotModified || got != "" || resp.Header.Get("ETag") != etag {
					t.Errorf("%s /state, If-None-Match %s = %s %q, ETag %s, want 304 and the same ETag", method, known, resp.Status, got, resp.Header.Get("ETag"))
				}
			}
			if resp, _ := ask(method, ""); resp.Header.Get("Content-Length") != strconv.Itoa(len(body)+1) {
				t.Errorf("%s /state: Content-Length is %q, want %d", method, resp.Header.Get("Content-Length"), len(body)+1)
			}
		}
		return etag
	}

	empty := check("", `{"value":0,"users":0}`)
	ws := s.join("wss://localhost/")
	wantRead(t, ws, `{"count":1,"type":"users"}`, `{"type":"state","value":0}`)
	one := check(empty, `{"value":0,"users":1}`)
	send(t, ws, plus)
	wantRead(t, ws, `{"type":"state","value":1}`)
	check(one, `{"value":1,"users":1}`)
	send(t, ws, minus)
	wantRead(t, ws, `{"type":"state","value":0}`)
	if again := check("", `{"value":0,"users":1}`); again != one {
		t.Errorf("ETag of the same state = %s, want %s as before", again, one)
	}
}
