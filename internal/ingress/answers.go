package ingress

import (
	"bytes"
	"context"
	"errors"
	"net"
	"net/http"
	"strconv"
	"sync/atomic"

	"plusminus/hub"
)

// MaxHeader is how many bytes a request line and header may have together, the empty line at the end included. It
// has room for a browser's cookies of other services under the same domain, which browsers limit to a few times
// 4 KB. A request with a longer header gets 431.
const MaxHeader = 16 << 10

// headerSlack is what net/http adds to [http.Server].MaxHeaderBytes.
const headerSlack = 4 << 10

// Watch gives srv the limit MaxHeader, and counts and logs what net/http answers itself, before any handler
// runs: 400 to a request that it cannot parse, 431 to a header that is too long, 505 and others. net/http has
// no hook for these answers. Watch sees them as they are written: a response with a status of 400 or more that
// begins while no handler runs. Watch must be called after the Handler and ConnState of srv are set, and before
// it serves. The listeners have to be those of a [Gate].
func (in *Ingress) Watch(srv *http.Server) {
	srv.MaxHeaderBytes = MaxHeader - headerSlack
	handler, connState := srv.Handler, srv.ConnState
	srv.ConnContext = func(ctx context.Context, nc net.Conn) context.Context {
		w, ok := nc.(watched)
		if !ok {
			return ctx
		}
		a := w.watch()
		a.events = in.events
		return context.WithValue(ctx, answersKey{}, a)
	}
	srv.Handler = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if a, ok := r.Context().Value(answersKey{}).(*answers); ok {
			a.handling.Store(true)
		}
		handler.ServeHTTP(w, r)
	})
	srv.ConnState = func(nc net.Conn, state http.ConnState) {
		// The response is written completely, and net/http reads the next request.
		if w, ok := nc.(watched); ok && state == http.StateIdle {
			w.watch().handling.Store(false)
		}
		if connState != nil {
			connState(nc, state)
		}
	}
}

// watched is a connection of a gate's listener.
type watched interface{ watch() *answers }

// answersKey is the key of the connection's *answers in the context of a request.
type answersKey struct{}

// answers finds the answers of net/http itself in what is written to a connection.
type answers struct {
	events   *hub.Events // nil counts nothing. Immutable after ConnContext.
	handling atomic.Bool // from the beginning of a handler until its response is written; for good after an upgrade
}

// written notes that p, which begins a response if no handler runs, is written to the peer.
func (a *answers) written(peer net.Addr, p []byte) {
	if a.events == nil || a.handling.Load() {
		return
	}
	status := statusOf(p)
	if status < http.StatusBadRequest {
		return
	}
	reason := ReasonBadRequest
	if status == http.StatusRequestHeaderFieldsTooLarge {
		reason = ReasonHeaderTooLong
	}
	text := http.StatusText(status)
	if _, body, ok := bytes.Cut(p, []byte("\r\n\r\n")); ok && len(body) > 0 {
		text = string(body) // net/http's own words, without any of the request's
	}
	a.events.Refused(reason, "remote", hub.AddressOf(peer.String()), "code", status, "err", errors.New(text))
}

// statusOf returns the status code of the response that p begins, or 0.
func statusOf(p []byte) int {
	// "HTTP/1.1 400 Bad Request"
	if len(p) < len("HTTP/1.1 400") || !bytes.HasPrefix(p, []byte("HTTP/1.")) {
		return 0
	}
	status, err := strconv.Atoi(string(p[len("HTTP/1.1 "):len("HTTP/1.1 400")]))
	if err != nil {
		return 0
	}
	return status
}
