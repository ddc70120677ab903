package e2e

import (
	"net"
	"sync"
	"testing"
)

// A hole passes TCP connections on to a server, until it swallows what they carry.
type blackHole struct {
	addr string

	mu    sync.Mutex
	all   bool              // swallow new connections, too. Guarded by mu.
	conns map[net.Conn]bool // both ends of each; true if it is swallowed. Guarded by mu.
}

func newBlackHole(t *testing.T, server string) *blackHole {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	h := &blackHole{addr: ln.Addr().String(), conns: map[net.Conn]bool{}}
	var wg sync.WaitGroup
	pass := func(to, from net.Conn) {
		buf := make([]byte, 4096)
		for {
			n, err := from.Read(buf)
			h.mu.Lock()
			swallowed := h.conns[from]
			h.mu.Unlock()
			if swallowed {
				if err != nil {
					return
				}
				continue
			}
			if err != nil {
				to.Close()
				return
			}
			to.Write(buf[:n])
		}
	}
	wg.Go(func() {
		for {
			a, err := ln.Accept()
			if err != nil {
				return
			}
			b, err := net.Dial("tcp", server)
			if err != nil {
				a.Close()
				continue
			}
			h.mu.Lock()
			h.conns[a], h.conns[b] = h.all, h.all
			h.mu.Unlock()
			wg.Go(func() { pass(a, b) })
			wg.Go(func() { pass(b, a) })
		}
	})
	t.Cleanup(func() {
		ln.Close()
		h.mu.Lock()
		for c := range h.conns {
			c.Close()
		}
		h.mu.Unlock()
		wg.Wait()
	})
	return h
}

// swallow swallows the connections that there are, and those to come if all is set.
func (h *blackHole) swallow(all bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.all = all
	for c := range h.conns {
		h.conns[c] = true
	}
}

// open lets new connections through again.
func (h *blackHole) open() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.all = false
}
