package server

import (
	"context"
	"errors"
	"net"
	"net/http"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
)

// stop ends the services and the hub, and gives their clients the time of -drain to finish. It stops
// accepting first. What was accepted before is still served, or joins the hub, for at most a tenth of
// that time. Then the hub closes its clients. The admin service ends last, and says until then that
// the server is stopping.
func (s *Server) stop(ctx context.Context) {
	grace, cancel := context.WithTimeout(context.WithoutCancel(ctx), s.drain)
	defer cancel()
	s.listeners.ClosePublic()
	s.arriving.settle(grace, s.drain/10)
	// net/http's Shutdown does not know WebSockets, and the hub knows nothing else.
	var g errgroup.Group
	g.Go(func() error { return s.hub.Shutdown(grace) })
	for _, sv := range s.services {
		if sv.public {
			g.Go(func() error { return errors.Join(sv.http.Shutdown(grace), sv.http.Close()) })
		}
	}
	if err := g.Wait(); err != nil {
		s.log.Warn("some clients were cut off: they did not finish in time", "err", err)
	}
	for _, sv := range s.services {
		if !sv.public {
			sv.http.Close()
		}
	}
}

// arriving counts the connections that are about to send a request, or have sent one: those with a
// handshake or request under way, and those that may be about to be accepted. net/http's Shutdown
// would close them without an answer, since it serves no request that it has not begun. All methods
// are safe from any goroutine.
type arriving struct {
	mu sync.Mutex
	// Guarded by mu.
	n    int
	idle map[net.Conn]bool // connections between two requests, which are not counted
}

func (a *arriving) add(n int) {
	a.mu.Lock()
	a.n += n
	a.mu.Unlock()
}

// connState is the ConnState of an [http.Server].
func (a *arriving) connState(conn net.Conn, state http.ConnState) {
	a.mu.Lock()
	defer a.mu.Unlock()
	wasIdle := a.idle[conn]
	delete(a.idle, conn)
	switch state {
	case http.StateNew:
		a.n++
	case http.StateActive:
		if wasIdle {
			a.n++
		}
	case http.StateIdle:
		if a.idle == nil {
			a.idle = make(map[net.Conn]bool)
		}
		a.idle[conn] = true
		if !wasIdle {
			a.n--
		}
	case http.StateHijacked, http.StateClosed:
		if !wasIdle {
			a.n--
		}
	}
}

// settle waits until no connection is counted, for at most the given time or until ctx ends.
func (a *arriving) settle(ctx context.Context, atMost time.Duration) {
	ctx, cancel := context.WithTimeout(ctx, atMost)
	defer cancel()
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for {
		a.mu.Lock()
		n := a.n
		a.mu.Unlock()
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
