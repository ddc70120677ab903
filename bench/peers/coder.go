package peers

import (
	"context"
	"net"
	"net/http"
	"sync"
	"time"

	"github.com/coder/websocket"
)

// serveCoder serves the usual hub on github.com/coder/websocket, like the library's chat example.
// A mutex guards the set of clients. The handler's goroutine writes the messages of the client's
// queue, and another goroutine reads. The example's queue has room for 16 messages. Here it has
// room for 256, as gorilla's example has, so that a burst disconnects no clients.
func serveCoder(cfg Config, ln net.Listener) error {
	h := &coderHub{announce: cfg.Announce, clients: map[*coderClient]struct{}{}}
	return serveHTTPS(cfg, ln, h.serve)
}

type coderHub struct {
	announce bool

	mu sync.Mutex
	// Guarded by mu.
	clients map[*coderClient]struct{}
	value   int64
}

type coderClient struct {
	messages  chan []byte
	closeSlow func()
}

func (h *coderHub) serve(w http.ResponseWriter, r *http.Request) {
	conn, err := websocket.Accept(w, r, nil)
	if err != nil {
		return // Accept has written the response
	}
	defer conn.CloseNow()
	conn.SetReadLimit(512)
	c := &coderClient{
		messages: make(chan []byte, 256),
		closeSlow: func() {
			conn.Close(websocket.StatusPolicyViolation, "connection too slow to keep up with messages")
		},
	}
	h.join(c)
	defer h.leave(c)

	ctx, cancel := context.WithCancel(context.Background())
	go func() {
		defer cancel()
		h.read(ctx, conn)
	}()
	for {
		select {
		case message := <-c.messages:
			if err := writeTimeout(ctx, 5*time.Second, conn, message); err != nil {
				return
			}
		case <-ctx.Done():
			return
		}
	}
}

func (h *coderHub) read(ctx context.Context, conn *websocket.Conn) {
	for {
		_, p, err := conn.Read(ctx)
		if err != nil {
			return
		}
		if delta := deltaOf(p); delta != 0 {
			h.mu.Lock()
			h.value += delta
			h.publishLocked(stateJSON(h.value))
			h.mu.Unlock()
		}
	}
}

func (h *coderHub) join(c *coderClient) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.clients[c] = struct{}{}
	if h.announce {
		h.publishLocked(usersJSON(len(h.clients)))
	} else {
		c.messages <- usersJSON(len(h.clients))
	}
	c.messages <- stateJSON(h.value)
}

func (h *coderHub) leave(c *coderClient) {
	h.mu.Lock()
	defer h.mu.Unlock()
	delete(h.clients, c)
	if h.announce {
		h.publishLocked(usersJSON(len(h.clients)))
	}
}

func (h *coderHub) publishLocked(message []byte) {
	for c := range h.clients {
		select {
		case c.messages <- message:
		default:
			go c.closeSlow()
		}
	}
}

func writeTimeout(ctx context.Context, timeout time.Duration, conn *websocket.Conn, message []byte) error {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	return conn.Write(ctx, websocket.MessageText, message)
}
