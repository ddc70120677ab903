package load

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"runtime"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// loop reads for all clients of a crowd, in one goroutine. A goroutine for each would
// cost as much as the messages do.
type loop struct {
	// Immutable after newLoop.
	fd   int      // of an epoll instance
	file *os.File // the same, so that the runtime waits for it

	// Safe from any goroutine.
	awake atomic.Bool  // poll and do not sleep
	busy  atomic.Int64 // nanoseconds spent with clients while awake

	mu      sync.Mutex
	clients map[int32]*Client // Guarded by mu: by file descriptor
}

func newLoop() (*loop, error) {
	fd, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return nil, err
	}
	if err := unix.SetNonblock(fd, true); err != nil {
		return nil, err
	}
	l := &loop{fd: fd, file: os.NewFile(uintptr(fd), "epoll"), clients: map[int32]*Client{}}
	raw, err := l.file.SyscallConn()
	if err != nil {
		return nil, err
	}
	go l.run(raw)
	return l, nil
}

// add takes a client in. early is what it has read already.
func (l *loop) add(c *Client, early []byte) error {
	c.rest = bytes.Clone(early)
	c.first = true
	l.mu.Lock()
	l.clients[int32(c.sock.fd)] = c
	l.mu.Unlock()
	// TLS may hold records that came behind the handshake, of which epoll knows nothing.
	// The socket is writable at once, which brings the loop to look.
	return l.watch(c, unix.EPOLL_CTL_ADD, unix.EPOLLIN|unix.EPOLLOUT)
}

// watch starts or stops listening to a client; to do so twice is no error.
func (l *loop) watch(c *Client, op int, events uint32) error {
	ev := unix.EpollEvent{Events: events, Fd: int32(c.sock.fd)}
	switch err := unix.EpollCtl(l.fd, op, c.sock.fd, &ev); err {
	case nil, unix.ENOENT, unix.EEXIST:
		return nil
	default:
		return fmt.Errorf("epoll: %w", err)
	}
}

// run ends when the epoll instance is closed.
func (l *loop) run(raw syscall.RawConn) {
	// Between two batches of this size the clients that act get their turn.
	events := make([]unix.EpollEvent, 128)
	buf := make([]byte, 17<<10) // a TLS record
	n := 0
	look := func(fd uintptr) bool {
		var err error
		n, err = unix.EpollWait(int(fd), events, 0)
		return n > 0 || err != nil && err != unix.EINTR
	}
	poll := func(fd uintptr) bool { return look(fd) || true }
	for {
		wait := look
		awake := l.awake.Load()
		if awake {
			wait = poll
		}
		if err := raw.Read(wait); err != nil || n < 0 {
			return
		}
		var began time.Time
		if awake && n > 0 {
			began = time.Now()
		}
		for _, ev := range events[:n] {
			l.mu.Lock()
			c := l.clients[ev.Fd]
			l.mu.Unlock()
			if c == nil {
				continue
			}
			err := l.firstLook(c)
			if err == nil {
				err = c.read(buf)
			}
			if err != nil {
				l.drop(c, err)
			}
		}
		if !began.IsZero() {
			l.busy.Add(int64(time.Since(began)))
		}
		runtime.Gosched()
	}
}

// firstLook takes what came with the handshake, and waits for more from here on.
func (l *loop) firstLook(c *Client) error {
	if !c.first {
		return nil
	}
	c.first = false
	return errors.Join(l.watch(c, unix.EPOLL_CTL_MOD, unix.EPOLLIN), c.parse(nil))
}

func (l *loop) drop(c *Client, err error) {
	l.mu.Lock()
	delete(l.clients, int32(c.sock.fd))
	l.mu.Unlock()
	c.sock.close()
	c.crowd.left(c, err)
	close(c.done)
}

func (l *loop) close() { l.file.Close() }
