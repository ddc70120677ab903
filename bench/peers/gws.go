package peers

import (
	"io"
	"log"
	"net"
	"net/http"
	"sync"
	"time"

	"github.com/lxzan/gws"
)

// discardLog discards the many errors that net/http logs about broken connections.
var discardLog = log.New(io.Discard, "", 0)

// serveGWS serves a hub on github.com/lxzan/gws with its Broadcaster, as its README shows. The
// Broadcaster encodes a message once and queues it on each connection.
func serveGWS(cfg Config, ln net.Listener) error {
	h := &gwsHub{announce: cfg.Announce, clients: map[*gws.Conn]struct{}{}}
	upgrader := gws.NewUpgrader(h, &gws.ServerOption{Recovery: gws.Recovery, ReadMaxPayloadSize: 512})
	return serveHTTPS(cfg, ln, func(w http.ResponseWriter, r *http.Request) {
		conn, err := upgrader.Upgrade(w, r)
		if err != nil {
			return
		}
		go conn.ReadLoop() // in a goroutine, so that net/http can free its context, as gws's README says
	})
}

type gwsHub struct {
	gws.BuiltinEventHandler
	announce bool

	mu sync.Mutex
	// Guarded by mu.
	clients map[*gws.Conn]struct{}
	value   int64
}

// gwsWait is how long a client may be silent. gws sends no pings by itself; in its README the
// client sends them.
const gwsWait = time.Hour

func (h *gwsHub) OnOpen(c *gws.Conn) {
	_ = c.SetDeadline(time.Now().Add(gwsWait))
	h.mu.Lock()
	defer h.mu.Unlock()
	h.clients[c] = struct{}{}
	if h.announce {
		h.broadcastLocked(usersJSON(len(h.clients)))
	} else {
		c.WriteAsync(gws.OpcodeText, usersJSON(len(h.clients)), nil)
	}
	c.WriteAsync(gws.OpcodeText, stateJSON(h.value), nil)
}

func (h *gwsHub) OnClose(c *gws.Conn, _ error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	delete(h.clients, c)
	if h.announce {
		h.broadcastLocked(usersJSON(len(h.clients)))
	}
}

func (h *gwsHub) OnMessage(c *gws.Conn, m *gws.Message) {
	defer m.Close()
	delta := deltaOf(m.Bytes())
	if delta == 0 {
		return
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.value += delta
	h.broadcastLocked(stateJSON(h.value))
}

func (h *gwsHub) broadcastLocked(message []byte) {
	b := gws.NewBroadcaster(gws.OpcodeText, message)
	defer b.Close()
	for c := range h.clients {
		_ = b.Broadcast(c) // after an error gws calls OnClose
	}
}
