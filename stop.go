package main

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"plusminus/hub"
)

// stop ends the servers and the hub, and gives their clients as long as drain to finish. Nobody
// is accepted any more from its beginning on. Who was accepted before is still served or let in,
// if that takes no longer than a tenth of drain; then the hub closes its clients.
func stop(ctx context.Context, drain time.Duration, lns *listeners, public *busy, h *hub.Hub, log *slog.Logger, servers ...*http.Server) {
	grace, cancel := context.WithTimeout(context.WithoutCancel(ctx), drain)
	defer cancel()
	lns.closePublic()
	public.settle(grace, drain/10)
	// Shutdown of net/http does not know WebSockets, and the hub knows nothing else.
	var g errgroup.Group
	g.Go(func() error { return h.Shutdown(grace) })
	for _, srv := range servers {
		g.Go(func() error { return errors.Join(srv.Shutdown(grace), srv.Close()) })
	}
	if err := g.Wait(); err != nil {
		log.Warn("some clients were cut off: they did not finish in time", "err", err)
	}
}

// busy counts connections of which more is to be expected at once: those that a handshake or a
// request is on its way on, and those that may be about to be accepted. Shutdown of net/http
// would close them without an answer: once it is called, no request is served that was not being
// served already. All methods are safe from any goroutine.
type busy struct {
	mu sync.Mutex
	// Guarded by mu.
	n    int
	idle map[net.Conn]bool // connections between two requests, which are not counted
}

// serve is srv.Serve, and counts the connections until a listener is closed. That is no error.
func (b *busy) serve(srv *http.Server, ln net.Listener) error {
	b.add(1) // there may be one that was accepted and that srv knows nothing of yet
	defer b.add(-1)
	return serveOn(srv, ln)
}

func (b *busy) add(n int) {
	b.mu.Lock()
	b.n += n
	b.mu.Unlock()
}

// connState is the ConnState of an [http.Server].
func (b *busy) connState(conn net.Conn, state http.ConnState) {
	b.mu.Lock()
	defer b.mu.Unlock()
	wasIdle := b.idle[conn]
	delete(b.idle, conn)
	switch state {
	case http.StateNew:
		b.n++
	case http.StateActive:
		if wasIdle {
			b.n++
		}
	case http.StateIdle:
		if b.idle == nil {
			b.idle = make(map[net.Conn]bool)
		}
		b.idle[conn] = true
		if !wasIdle {
			b.n--
		}
	case http.StateHijacked, http.StateClosed:
		if !wasIdle {
			b.n--
		}
	}
}

// settle waits until no connection is counted, at most for the given time or until ctx ends.
func (b *busy) settle(ctx context.Context, atMost time.Duration) {
	ctx, cancel := context.WithTimeout(ctx, atMost)
	defer cancel()
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for {
		b.mu.Lock()
		n := b.n
		b.mu.Unlock()
		if n == 0 {
			return
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}
