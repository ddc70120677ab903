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

// discardLog takes what net/http says of connections that break; there are many.
var discardLog = log.New(io.Discard, "", 0)

// gwsBroadcaster is github.com/lxzan/gws with its Broadcaster, which encodes a message
// once and queues it on each connection, as its README shows.
func gwsBroadcaster(cfg Config, ln net.Listener) error {
	h := &gwsRoom{announce: cfg.Announce, clients: map[*gws.Conn]struct{}{}}
	upgrader := gws.NewUpgrader(h, &gws.ServerOption{Recovery: gws.Recovery, ReadMaxPayloadSize: 512})
	return serveHTTPS(cfg, ln, func(w http.ResponseWriter, r *http.Request) {
		conn, err := upgrader.Upgrade(w, r)
		if err != nil {
			return
		}
		go conn.ReadLoop() // so that net/http's context can be freed, says its README
	})
}

type gwsRoom struct {
	gws.BuiltinEventHandler
	announce bool

	mu sync.Mutex
	// Guarded by mu.
	clients map[*gws.Conn]struct{}
	value   int64
}

// gwsWait is how long a client may be silent. gws has no pings of its own; those that
// its README shows come from the client.
const gwsWait = time.Hour

func (h *gwsRoom) OnOpen(c *gws.Conn) {
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

func (h *gwsRoom) OnClose(c *gws.Conn, _ error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	delete(h.clients, c)
	if h.announce {
		h.broadcastLocked(usersJSON(len(h.clients)))
	}
}

func (h *gwsRoom) OnMessage(c *gws.Conn, m *gws.Message) {
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

func (h *gwsRoom) broadcastLocked(message []byte) {
	b := gws.NewBroadcaster(gws.OpcodeText, message)
	defer b.Close()
	for c := range h.clients {
		_ = b.Broadcast(c) // OnClose is called for those that have gone
	}
}
