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

// floor is the least that such a server can be in Go: crypto/tls alone, the opening
// handshake by hand, no HTTP stack, no WebSocket library, one goroutine a client that
// reads, one that writes the newest value to all. It merges values, waits for slow
// clients, has no limits and answers no ping. It never tells others of an arrival.
// It is the floor of CPU, not of memory: nothing in it was tuned for that.
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
	wake  chan struct{} // serve -> write: the value has changed; 1, a token is enough

	mu sync.Mutex
	// Guarded by mu.
	clients []*bareClient // in the order of arrival, as long as nobody leaves
	changed bool          // since write has last looked
}

type bareClient struct {
	conn  *tls.Conn
	sent  int64 // Owned by write, after the client was told its first state.
	index int   // Guarded by mu: in clients
}

// write sends the newest value to all who have not got it, and looks again.
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
				c.conn.Write(frame) // its reader finds out if it has gone
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
	f.wakeUp() // the value may have changed meanwhile
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

// read counts the actions in the client's frames; the first n bytes of buf are some.
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

// countActions adds up the actions in the whole frames at the start of p. open is false
// at a close frame, and at a frame that no client of this protocol sends.
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

// upgradeByHand does the opening handshake, and returns how many bytes that came after
// it are in buf. https://www.rfc-editor.org/rfc/rfc6455#section-4.2
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
		return 0, errors.New("no handshake")
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

// appendBare appends the text frame of a short message.
func appendBare(dst []byte, prefix string, n int64) []byte {
	start := len(dst)
	dst = append(dst, 0x81, 0)
	dst = append(dst, prefix...)
	dst = strconv.AppendInt(dst, n, 10)
	dst = append(dst, '}')
	dst[start+1] = byte(len(dst) - start - 2)
	return dst
}
