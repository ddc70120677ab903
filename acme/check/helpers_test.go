package check

import (
	"context"
	"io"
	"log"
	"log/slog"
	"net"
	"net/http"
	"sync"
	"testing"
	"time"

	"plusminus/acme"
	"plusminus/acme/internal/acmetest"
)

const day = 24 * time.Hour

// A testServer is a plusminus: a Provider whose listeners accept.
type testServer struct {
	*acme.Provider
	stop func() // ends Run and waits for it; the listeners stay
}

// serve starts a server with the configuration cfg on the two listeners. If run is false, its Run is not
// called, so it only answers.
func serve(t testing.TB, cfg acme.Config, tlsLn, plainLn net.Listener, run bool) *testServer {
	t.Helper()
	cfg.Logger = slog.New(slog.DiscardHandler)
	p, err := acme.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	quiet := log.New(io.Discard, "", 0)
	secure := &http.Server{ErrorLog: quiet, TLSConfig: p.TLSConfig()}
	plain := &http.Server{ErrorLog: quiet, Handler: p.HTTPHandler(http.NotFoundHandler())}
	ctx, cancel := context.WithCancel(t.Context())
	var servers, running sync.WaitGroup
	servers.Go(func() { secure.ServeTLS(tlsLn, "", "") })
	servers.Go(func() { plain.Serve(plainLn) })
	if run {
		running.Go(func() { p.Run(ctx) })
	}
	s := &testServer{p, func() { cancel(); running.Wait() }}
	t.Cleanup(func() {
		s.stop()
		secure.Close()
		plain.Close()
		servers.Wait()
	})
	return s
}

// waitReady waits until every domain has its certificate.
func (s *testServer) waitReady(t testing.TB) {
	t.Helper()
	acmetest.WaitFor(t, "readiness", func() bool { return s.Ready() == nil })
}
