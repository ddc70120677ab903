package hub

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/coder/websocket"
)

// fakeConn is one end of a connection in memory. Its buffers have a size like those of a kernel, so that tests
// can have a peer that does not read, on fake time. The server's end is a socket.
type fakeConn struct {
	in, out *fakeBuffer

	mu    sync.Mutex
	async bool
	tail  []byte
	fails error // if not nil, all writes fail with it, and reads go on

	acksWithin time.Duration // the argument of expectAcks

	peer *fakeConn // the other end
}

// fakeBuffer is one direction of a connection.
type fakeBuffer struct {
	mu       sync.Mutex
	changed  *sync.Cond
	data     []byte
	size     int
	closed   bool // by Close or Abort of either end
	finished bool // by the writer's finish
	deadline time.Time
	timer    *time.Timer
}

func newFakeBuffer(size int) *fakeBuffer {
	b := &fakeBuffer{size: size}
	b.changed = sync.NewCond(&b.mu)
	return b
}

// fakePipe returns the two ends of a connection. Each direction holds size bytes.
func fakePipe(size int) (client, server *fakeConn) {
	a, b := newFakeBuffer(size), newFakeBuffer(size)
	client, server = &fakeConn{in: a, out: b}, &fakeConn{in: b, out: a}
	client.peer, server.peer = server, client
	return client, server
}

func (b *fakeBuffer) close() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.closed = true
	b.changed.Broadcast()
}

func (b *fakeBuffer) finish() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.finished = true
	b.changed.Broadcast()
}

// put takes as many bytes of p as there is room for. If wait is true, it waits until it has taken all of p.
func (b *fakeBuffer) put(p []byte, wait bool) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	n := 0
	for {
		if b.closed {
			return n, net.ErrClosed
		}
		m := min(len(p)-n, b.size-len(b.data))
		b.data = append(b.data, p[n:n+m]...)
		n += m
		b.changed.Broadcast()
		if n == len(p) || !wait {
			return n, nil
		}
		b.changed.Wait()
	}
}

// get waits for bytes and moves them to p.
func (b *fakeBuffer) get(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for len(b.data) == 0 {
		if b.closed {
			return 0, net.ErrClosed
		}
		if b.finished {
			return 0, io.EOF
		}
		if !b.deadline.IsZero() && !time.Now().Before(b.deadline) {
			return 0, os.ErrDeadlineExceeded
		}
		b.changed.Wait()
	}
	n := copy(p, b.data)
	b.data = b.data[:copy(b.data, b.data[n:])]
	b.changed.Broadcast()
	return n, nil
}

func (b *fakeBuffer) setDeadline(t time.Time) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.deadline = t
	if b.timer != nil {
		b.timer.Stop()
	}
	if !t.IsZero() {
		b.timer = time.AfterFunc(time.Until(t), b.changed.Broadcast)
	}
	b.changed.Broadcast()
}

func (c *fakeConn) Read(p []byte) (int, error) { return c.in.get(p) }

func (c *fakeConn) Write(p []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.fails != nil {
		return 0, c.fails
	}
	if !c.async {
		return c.out.put(p, true)
	}
	n := 0
	if len(c.tail) == 0 {
		var err error
		if n, err = c.out.put(p, false); err != nil {
			return n, err
		}
	}
	if len(c.tail)+len(p)-n > maxTail {
		return n, errTailFull
	}
	c.tail = append(c.tail, p[n:]...)
	return len(p), nil
}

func (c *fakeConn) Close() error {
	c.in.close()
	c.out.close()
	return nil
}

// failWrites makes all writes fail with err.
func (c *fakeConn) failWrites(err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.fails = err
}

func (c *fakeConn) neverWait() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.async = true
}

func (c *fakeConn) blocked() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.tail) > 0
}

func (c *fakeConn) flush() (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	n, err := c.out.put(c.tail, false)
	c.tail = c.tail[n:]
	return n, err
}

func (c *fakeConn) Abort() { c.Close() }

func (c *fakeConn) finish() { c.out.finish() }

func (c *fakeConn) expectAcks(within time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.acksWithin = within
}

func (c *fakeConn) LocalAddr() net.Addr               { return &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1), Port: 1} }
func (c *fakeConn) RemoteAddr() net.Addr              { return &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1), Port: 2} }
func (c *fakeConn) SetReadDeadline(t time.Time) error { c.in.setDeadline(t); return nil }
func (c *fakeConn) SetWriteDeadline(time.Time) error  { return nil }
func (c *fakeConn) SetDeadline(t time.Time) error     { return c.SetReadDeadline(t) }

// fakeListener accepts the server's ends of the connections that dial makes.
type fakeListener struct {
	size  int
	conns chan net.Conn
	done  chan struct{}
	once  sync.Once
}

func newFakeListener(size int) *fakeListener {
	return &fakeListener{size: size, conns: make(chan net.Conn), done: make(chan struct{})}
}

func (l *fakeListener) Accept() (net.Conn, error) {
	select {
	case c := <-l.conns:
		return c, nil
	case <-l.done:
		return nil, net.ErrClosed
	}
}

func (l *fakeListener) Close() error {
	l.once.Do(func() { close(l.done) })
	return nil
}

func (l *fakeListener) Addr() net.Addr { return &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1), Port: 1} }

func (l *fakeListener) dial() (net.Conn, error) {
	client, server := fakePipe(l.size)
	select {
	case l.conns <- server:
		return client, nil
	case <-l.done:
		return nil, net.ErrClosed
	}
}

// fakeHub is a hub behind net/http on connections in memory, for synctest bubbles.
type fakeHub struct {
	*Hub
	t  testing.TB
	ln *fakeListener
}

// newFakeHub starts a hub. The caller must call stop, or Shutdown, within the synctest bubble.
func newFakeHub(t testing.TB, cfg Config) *fakeHub {
	t.Helper()
	if cfg.Store == nil {
		cfg.Store = new(Memory)
	}
	h, err := New(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	f := &fakeHub{Hub: h, t: t, ln: newFakeListener(1 << 10)}
	srv := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		name, isCounter := strings.CutPrefix(r.URL.Path, "/c/")
		names := r.URL.Query()["name"]
		switch {
		case r.URL.Path == "/events":
			h.ServeStream(w, r)
		case isCounter:
			h.ServeCounter(w, r, name)
		case len(names) > 0:
			h.ServeCounters(w, r, names)
		default:
			h.ServeHTTP(w, r)
		}
	})}
	served := make(chan error, 1)
	go func() { served <- srv.Serve(f.ln) }()
	t.Cleanup(func() {
		srv.Close()
		if err := <-served; !errors.Is(err, http.ErrServerClosed) {
			t.Errorf("Serve = %v, want ErrServerClosed", err)
		}
	})
	return f
}

// stop shuts the hub down and disconnects its clients at once.
func (f *fakeHub) stop() {
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	_ = f.Shutdown(ctx) // the error is that clients were disconnected
}

// dial connects a client. It returns the WebSocket and the connection below it.
func (f *fakeHub) dial() (*websocket.Conn, net.Conn) { return f.dialPath("/") }

// dialPath is dial for the path "/c/NAME" or "/c?name=NAME&name=NAME".
func (f *fakeHub) dialPath(path string) (*websocket.Conn, net.Conn) {
	f.t.Helper()
	ws, conn, _, err := f.tryDial(path)
	if err != nil {
		f.t.Fatal(err)
	}
	return ws, conn
}

// tryDial is dialPath for a handshake that may be refused. Then it returns the answer.
func (f *fakeHub) tryDial(path string) (*websocket.Conn, net.Conn, *http.Response, error) {
	var conn net.Conn
	ws, resp, err := websocket.Dial(context.Background(), "ws://hub.test"+path, &websocket.DialOptions{
		HTTPClient: &http.Client{Transport: &http.Transport{
			DialContext: func(context.Context, string, string) (net.Conn, error) {
				var err error
				conn, err = f.ln.dial()
				return conn, err
			},
		}},
	})
	return ws, conn, resp, err
}
