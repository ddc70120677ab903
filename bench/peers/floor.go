package peers

import (
	"bufio"
	"crypto/sha1"
	"crypto/tls"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/textproto"
	"strconv"
	"sync"
	"sync/atomic"
)

// floor serves the counter with the least code that is possible in Go: crypto/tls, but no HTTP
// stack and no WebSocket library. One goroutine per client reads, and one goroutine writes the
// newest value to all clients. It merges values, waits for slow clients, has no limits and does
// not answer pings. It never announces arrivals. It is the lower bound for CPU time, not for
// memory, which it does not try to save.
func floor(cfg Config, ln net.Listener) error {
	f := &bare{wake: make(chan struct{}, 1)}
	go f.write()
	conf := cfg.tls()
	for {
		nc, err := ln.Accept()
		if err != nil {
			return err
		}
		go f.serve(tls.Server(nc, conf))
	}
}

type bare struct {
	value atomic.Int64
	wake  chan struct{} // serve -> write: the value has changed; capacity 1, never closed

	mu sync.Mutex
	// Guarded by mu.
	clients []*bareClient // in the order of arrival until the first client leaves
	changed bool          // clients has changed since write has copied it
}

type bareClient struct {
	conn  *tls.Conn
	sent  int64 // Owned by write after serve has sent the first state.
	index int   // Guarded by mu: the position in clients
}

// write sends the newest value to all clients that do not have it, after each wake.
func (f *bare) write() {
	var frame []byte
	var list []*bareClient
	for range f.wake {
		f.mu.Lock()
		if f.changed {
			list = append(list[:0], f.clients...)
			f.changed = false
		}
		f.mu.Unlock()
		v := f.value.Load()
		frame = appendBareState(frame[:0], v)
		for _, c := range list {
			if c.sent != v {
				c.sent = v
				c.conn.Write(frame) // on an error the client's reader ends, too
			}
		}
	}
}

func (f *bare) serve(conn *tls.Conn) {
	defer conn.Close()
	buf := make([]byte, 4096)
	n, err := upgradeByHand(conn, buf)
	if err != nil {
		return
	}
	f.mu.Lock()
	users := len(f.clients) + 1
	f.mu.Unlock()
	c := &bareClient{conn: conn, sent: f.value.Load()}
	if _, err := conn.Write(appendBareState(appendBareUsers(nil, users), c.sent)); err != nil {
		return
	}
	f.mu.Lock()
	c.index = len(f.clients)
	f.clients = append(f.clients, c)
	f.changed = true
	f.mu.Unlock()
	f.wakeUp() // the value may have changed since serve read it
	f.read(conn, buf, n)
	f.mu.Lock()
	last := len(f.clients) - 1
	f.clients[c.index] = f.clients[last]
	f.clients[c.index].index = c.index
	f.clients[last] = nil
	f.clients = f.clients[:last]
	f.changed = true
	f.mu.Unlock()
}

func (f *bare) wakeUp() {
	select {
	case f.wake <- struct{}{}:
	default:
	}
}

// read applies the actions in the client's frames. The first n bytes of buf have been read already.
func (f *bare) read(conn *tls.Conn, buf []byte, n int) {
	for {
		used, delta, open := countActions(buf[:n])
		if delta != 0 {
			f.value.Add(delta)
			f.wakeUp()
		}
		if !open {
			conn.Write([]byte{0x88, 0})
			return
		}
		n = copy(buf, buf[used:n])
		m, err := conn.Read(buf[n:])
		if err != nil {
			return
		}
		n += m
	}
}

// countActions adds up the actions in the complete frames at the start of p, which are used bytes
// long. open is false after a close frame, and after a frame that no client of this protocol sends.
func countActions(p []byte) (used int, delta int64, open bool) {
	for {
		rest := p[used:]
		if len(rest) < 6 {
			return used, delta, true
		}
		size := int(rest[1] & 0x7f)
		if size > 125 || rest[1]&0x80 == 0 || rest[0] == 0x88 {
			return used, delta, false
		}
		if len(rest) < 6+size {
			return used, delta, true
		}
		payload := rest[6 : 6+size]
		// Unmask eight bytes at a time.
		key := uint64(binary.LittleEndian.Uint32(rest[2:]))
		key |= key << 32
		i := 0
		for ; i+8 <= size; i += 8 {
			binary.LittleEndian.PutUint64(payload[i:], binary.LittleEndian.Uint64(payload[i:])^key)
		}
		for ; i < size; i++ {
			payload[i] ^= rest[2+i%4]
		}
		switch string(payload) {
		case `{"action":"plus"}`, `{"action": "plus"}`:
			delta++
		case `{"action":"minus"}`, `{"action": "minus"}`:
			delta--
		}
		used += 6 + size
	}
}

// upgradeByHand does the opening handshake. It returns the number of bytes in buf that came after
// the request. https://www.rfc-editor.org/rfc/rfc6455#section-4.2
func upgradeByHand(conn net.Conn, buf []byte) (int, error) {
	br := bufio.NewReaderSize(conn, 1024)
	tp := textproto.NewReader(br)
	if _, err := tp.ReadLine(); err != nil {
		return 0, err
	}
	header, err := tp.ReadMIMEHeader()
	if err != nil {
		return 0, err
	}
	key := header.Get("Sec-Websocket-Key")
	if key == "" {
		return 0, errors.New("no Sec-WebSocket-Key in the request")
	}
	sum := sha1.Sum([]byte(key + "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"))
	_, err = fmt.Fprintf(conn, "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: %s\r\n\r\n",
		base64.StdEncoding.EncodeToString(sum[:]))
	if err != nil {
		return 0, err
	}
	return io.ReadFull(br, buf[:br.Buffered()])
}

func appendBareState(dst []byte, v int64) []byte {
	return appendBare(dst, `{"type":"state","value":`, v)
}

func appendBareUsers(dst []byte, n int) []byte {
	return appendBare(dst, `{"type":"users","count":`, int64(n))
}

// appendBare appends a text frame with a short message: prefix, n and a closing brace.
func appendBare(dst []byte, prefix string, n int64) []byte {
	start := len(dst)
	dst = append(dst, 0x81, 0)
	dst = append(dst, prefix...)
	dst = strconv.AppendInt(dst, n, 10)
	dst = append(dst, '}')
	dst[start+1] = byte(len(dst) - start - 2)
	return dst
}
