package e2e

import (
	"net"
	"sync"
	"testing"
)

// blackHole is a TCP proxy in front of a server. It can drop the bytes of its connections and keep them open.
type blackHole struct {
	addr string

	mu    sync.Mutex
	all   bool              // drop the bytes of new connections, too. Guarded by mu.
	conns map[net.Conn]bool // both ends of each connection; true if their bytes are dropped. Guarded by mu.
}

// newBlackHole starts a blackHole in front of server, which passes everything on at first.
func newBlackHole(t *testing.T, server string) *blackHole {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	h := &blackHole{addr: ln.Addr().String(), conns: map[net.Conn]bool{}}
	var wg sync.WaitGroup
	forward := func(to, from net.Conn) {
		buf := make([]byte, 4096)
		for {
			n, err := from.Read(buf)
			h.mu.Lock()
			dropped := h.conns[from]
			h.mu.Unlock()
			if dropped {
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
			wg.Go(func() { forward(a, b) })
			wg.Go(func() { forward(b, a) })
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

// drop makes the proxy drop all bytes of the open connections. If all is set, new connections get the same.
func (h *blackHole) drop(all bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.all = all
	for c := range h.conns {
		h.conns[c] = true
	}
}

// pass makes the proxy pass new connections on again.
func (h *blackHole) pass() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.all = false
}
