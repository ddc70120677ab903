package peers

import (
	"net"
	"net/http"
	"time"

	"github.com/gorilla/websocket"
)

// serveGorilla serves the usual hub on github.com/gorilla/websocket, like the library's chat
// example. One goroutine owns the set of clients and the counter. Each client has two more
// goroutines, a queue of 256 messages and a ticker for pings. Unlike the example, each message
// has its own frame, because the example joins messages with newlines, and JSON messages cannot
// be joined.
func serveGorilla(cfg Config, ln net.Listener) error {
	h := &gorillaHub{
		announce:   cfg.Announce,
		register:   make(chan *gorillaClient),
		unregister: make(chan *gorillaClient),
		actions:    make(chan int64),
		clients:    map[*gorillaClient]bool{},
	}
	go h.run()
	upgrader := websocket.Upgrader{ReadBufferSize: 1024, WriteBufferSize: 1024}
	return serveHTTPS(cfg, ln, func(w http.ResponseWriter, r *http.Request) {
		conn, err := upgrader.Upgrade(w, r, nil)
		if err != nil {
			return // Upgrade has written the response
		}
		c := &gorillaClient{hub: h, conn: conn, send: make(chan []byte, 256)}
		h.register <- c
		go c.writePump()
		go c.readPump()
	})
}

const (
	gorillaWriteWait  = 10 * time.Second
	gorillaPongWait   = 60 * time.Second
	gorillaPingPeriod = gorillaPongWait * 9 / 10
)

type gorillaHub struct {
	announce             bool
	register, unregister chan *gorillaClient
	actions              chan int64

	// Owned by run.
	clients map[*gorillaClient]bool
	value   int64
}

func (h *gorillaHub) run() {
	for {
		select {
		case c := <-h.register:
			h.clients[c] = true
			if h.announce {
				h.broadcast(usersJSON(len(h.clients)))
			} else {
				c.send <- usersJSON(len(h.clients))
			}
			c.send <- stateJSON(h.value)
		case c := <-h.unregister:
			if h.clients[c] {
				delete(h.clients, c)
				close(c.send)
				if h.announce {
					h.broadcast(usersJSON(len(h.clients)))
				}
			}
		case delta := <-h.actions:
			h.value += delta
			h.broadcast(stateJSON(h.value))
		}
	}
}

func (h *gorillaHub) broadcast(message []byte) {
	for c := range h.clients {
		select {
		case c.send <- message:
		default:
			close(c.send)
			delete(h.clients, c)
		}
	}
}

type gorillaClient struct {
	hub  *gorillaHub
	conn *websocket.Conn
	send chan []byte
}

func (c *gorillaClient) readPump() {
	defer func() {
		c.hub.unregister <- c
		c.conn.Close()
	}()
	c.conn.SetReadLimit(512)
	c.conn.SetReadDeadline(time.Now().Add(gorillaPongWait))
	c.conn.SetPongHandler(func(string) error {
		return c.conn.SetReadDeadline(time.Now().Add(gorillaPongWait))
	})
	for {
		_, p, err := c.conn.ReadMessage()
		if err != nil {
			return
		}
		if delta := deltaOf(p); delta != 0 {
			c.hub.actions <- delta
		}
	}
}

func (c *gorillaClient) writePump() {
	ticker := time.NewTicker(gorillaPingPeriod)
	defer func() {
		ticker.Stop()
		c.conn.Close()
	}()
	for {
		select {
		case message, ok := <-c.send:
			c.conn.SetWriteDeadline(time.Now().Add(gorillaWriteWait))
			if !ok {
				c.conn.WriteMessage(websocket.CloseMessage, []byte{})
				return
			}
			if err := c.conn.WriteMessage(websocket.TextMessage, message); err != nil {
				return
			}
		case <-ticker.C:
			c.conn.SetWriteDeadline(time.Now().Add(gorillaWriteWait))
			if err := c.conn.WriteMessage(websocket.PingMessage, nil); err != nil {
				return
			}
		}
	}
}
