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

// epollLoop reads for all clients of a crowd in one goroutine. One goroutine per client would
// cost as much CPU time as the messages.
type epollLoop struct {
	// Immutable after newLoop.
	fd   int      // of an epoll instance
	file *os.File // the same, so that the Go runtime can wait for it

	// Safe from any goroutine.
	awake atomic.Bool  // run polls and does not sleep
	busy  atomic.Int64 // nanoseconds that run spent with clients while awake

	mu      sync.Mutex
	clients map[int32]*Client // Guarded by mu: by file descriptor
}

func newLoop() (*epollLoop, error) {
	fd, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return nil, err
	}
	if err := unix.SetNonblock(fd, true); err != nil {
		return nil, err
	}
	l := &epollLoop{fd: fd, file: os.NewFile(uintptr(fd), "epoll"), clients: map[int32]*Client{}}
	raw, err := l.file.SyscallConn()
	if err != nil {
		return nil, err
	}
	go l.run(raw)
	return l, nil
}

// add adds a client. early holds the bytes that were read with the handshake.
func (l *epollLoop) add(c *Client, early []byte) error {
	c.rest = bytes.Clone(early)
	c.first = true
	l.mu.Lock()
	l.clients[int32(c.sock.fd)] = c
	l.mu.Unlock()
	// crypto/tls may already hold records that arrived with the handshake, and epoll does not
	// report those. The socket is writable at once, so EPOLLOUT makes the loop read from c.
	return l.watch(c, unix.EPOLL_CTL_ADD, unix.EPOLLIN|unix.EPOLLOUT)
}

// watch changes what epoll reports of a client. Adding or deleting it twice is not an error.
func (l *epollLoop) watch(c *Client, op int, events uint32) error {
	ev := unix.EpollEvent{Events: events, Fd: int32(c.sock.fd)}
	switch err := unix.EpollCtl(l.fd, op, c.sock.fd, &ev); err {
	case nil, unix.ENOENT, unix.EEXIST:
		return nil
	default:
		return fmt.Errorf("epoll: %w", err)
	}
}

// run reads from all clients. It ends when close closes the epoll instance.
func (l *epollLoop) run(raw syscall.RawConn) {
	// After each batch of this size run yields to the goroutines of clients that act.
	events := make([]unix.EpollEvent, 128)
	buf := make([]byte, 17<<10) // room for a TLS record
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

// firstLook processes the bytes that came with the handshake, once, and then asks epoll for input only.
func (l *epollLoop) firstLook(c *Client) error {
	if !c.first {
		return nil
	}
	c.first = false
	return errors.Join(l.watch(c, unix.EPOLL_CTL_MOD, unix.EPOLLIN), c.parse(nil))
}

// drop removes a client whose connection has ended.
func (l *epollLoop) drop(c *Client, err error) {
	l.mu.Lock()
	delete(l.clients, int32(c.sock.fd))
	l.mu.Unlock()
	c.sock.close()
	c.crowd.left(c, err)
	close(c.done)
}

func (l *epollLoop) close() { l.file.Close() }
