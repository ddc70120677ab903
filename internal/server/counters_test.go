package server

import (
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"testing"
	"testing/iotest"

	"plusminus/hub"
)

// A POST whose body does not arrive counts nothing, and its sender is told so.
func TestPostWithoutBody(t *testing.T) {
	h, err := hub.New(t.Context(), hub.Config{Store: new(hub.Memory)})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = h.Shutdown(t.Context()) }()
	var zero hub.Value
	r := httptest.NewRequest(http.MethodPost, "/", iotest.ErrReader(&net.OpError{Op: "read", Err: os.ErrDeadlineExceeded}))
	w := httptest.NewRecorder()
	(&routes{hub: h}).act(w, r, "")
	if w.Code != http.StatusRequestTimeout || h.Stats().Value != zero {
		t.Errorf("act without a body answers %d %q, and the value is %v, want %d and %v", w.Code, w.Body, h.Stats().Value, http.StatusRequestTimeout, zero)
	}
}
