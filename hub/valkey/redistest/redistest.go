// Package redistest runs Redis servers for tests, and things that go wrong with them.
package redistest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/valkey-io/valkey-go"
)

// A Server is a Redis server on a free port of loopback, with its data in a temporary
// folder. It ends with the test.
type Server struct {
	Addr string

	t    testing.TB
	dir  string
	args []string

	log bytes.Buffer // of its processes, one after another

	mu sync.Mutex
	// Guarded by mu.
	process *os.Process   // nil while it does not run
	exited  chan struct{} // closed when process has ended
}

// Start starts a server that has every change on disk before it answers, unless args say
// otherwise; they are as on the command line of redis-server. The test is skipped if
// there is no redis-server.
func Start(t testing.TB, args ...string) *Server {
	t.Helper()
	if _, err := exec.LookPath("redis-server"); err != nil {
		t.Skip("redis-server is missing (Debian: apt install redis-server)")
	}
	s := &Server{t: t, dir: t.TempDir(), args: args}
	t.Cleanup(func() {
		s.Kill()
		if t.Failed() {
			t.Logf("redis-server on %s logged:\n%s", s.Addr, s.log.String())
		}
	})
	for range 10 { // somebody else may take the port first
		ln, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		s.Addr = ln.Addr().String()
		ln.Close()
		if err = s.start(); err == nil {
			return s
		}
		t.Log(err)
	}
	t.Fatal("redis-server does not start")
	return nil
}

func (s *Server) start() error {
	_, port, _ := net.SplitHostPort(s.Addr)
	args := append([]string{"--port", port, "--bind", "127.0.0.1", "--dir", s.dir,
		"--save", "", "--appendonly", "yes", "--appendfsync", "always"}, s.args...)
	cmd := exec.Command("redis-server", args...)
	cmd.Stdout, cmd.Stderr = &s.log, &s.log
	cmd.SysProcAttr = dieWithParent
	if err := cmd.Start(); err != nil {
		return err
	}
	exited := make(chan struct{})
	go func() {
		cmd.Wait()
		close(exited)
	}()
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		select {
		case <-exited:
			return errors.New("redis-server has exited")
		default:
		}
		// Whoever answers at all, with an error, too, is up; one that loads its data is not.
		c, err := net.DialTimeout("tcp", s.probeAddr(), time.Second)
		if err == nil {
			c.SetDeadline(time.Now().Add(time.Second))
			fmt.Fprint(c, "PING\r\n")
			answer := make([]byte, 64)
			n, _ := c.Read(answer)
			c.Close()
			if n > 0 && !strings.HasPrefix(string(answer[:n]), "-LOADING") || s.tls() {
				break
			}
		}
		if time.Now().After(deadline) {
			cmd.Process.Kill()
			<-exited
			return errors.New("redis-server does not answer")
		}
	}
	s.mu.Lock()
	s.process, s.exited = cmd.Process, exited
	s.mu.Unlock()
	return nil
}

// tls reports whether the server talks TLS, on its only port.
func (s *Server) tls() bool {
	for _, a := range s.args {
		if a == "--tls-port" {
			return true
		}
	}
	return false
}

func (s *Server) probeAddr() string {
	for i, a := range s.args {
		if a == "--tls-port" {
			return "127.0.0.1:" + s.args[i+1]
		}
	}
	return s.Addr
}

func (s *Server) signal(sig syscall.Signal) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.process != nil {
		s.process.Signal(sig)
	}
}

// Kill ends the server as a crash would. Restart starts it again.
func (s *Server) Kill() {
	s.signal(syscall.SIGCONT)
	s.signal(syscall.SIGKILL)
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.process != nil {
		<-s.exited
		s.process = nil
	}
}

// Restart starts the server again on the same port and data.
func (s *Server) Restart() {
	s.t.Helper()
	var err error
	for range 50 { // the port may still be held
		if err = s.start(); err == nil {
			return
		}
		time.Sleep(50 * time.Millisecond)
	}
	s.t.Fatal(err)
}

// Pause stops the server's process, as a long snapshot or a busy host does: connections
// stay, and nothing is answered until Resume.
func (s *Server) Pause() { s.signal(syscall.SIGSTOP) }

// Resume ends Pause.
func (s *Server) Resume() { s.signal(syscall.SIGCONT) }

// Host returns the host and the port.
func (s *Server) Host() (host, port string) {
	host, port, _ = net.SplitHostPort(s.Addr)
	return host, port
}

// Do sends a command of one connection of its own, and returns the answer as text.
func (s *Server) Do(command ...string) string {
	s.t.Helper()
	text, err := s.TryDo(command...)
	if err != nil {
		s.t.Fatalf("%s: %v", strings.Join(command, " "), err)
	}
	return text
}

// TryDo is Do for commands that may fail.
func (s *Server) TryDo(command ...string) (string, error) {
	client, err := valkey.NewClient(valkey.ClientOption{InitAddress: []string{s.Addr}, ForceSingleClient: true, DisableCache: true})
	if err != nil {
		if client != nil {
			client.Close()
		}
		return "", err
	}
	defer client.Close()
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	m, err := client.Do(ctx, client.B().Arbitrary(command...).Build()).ToMessage()
	if err != nil {
		return "", err
	}
	if n, err := m.AsInt64(); err == nil {
		return strconv.FormatInt(n, 10), nil
	}
	if text, err := m.ToString(); err == nil {
		return text, nil
	}
	return m.String(), nil
}

// A Proxy is between clients and a server, and can be made to behave badly. It ends with
// the test.
type Proxy struct {
	Addr string

	ln     net.Listener
	target func() string

	mu sync.Mutex
	// Guarded by mu.
	conns  map[net.Conn]bool
	delay  time.Duration
	cutAt  int // bytes of an answer that still go through before the connection ends; -1 is no end
	refuse bool
	held   chan struct{} // nil, or closed when what clients send goes on
}

// StartProxy starts a proxy for the server at addr.
func StartProxy(t testing.TB, addr string) *Proxy {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	p := &Proxy{Addr: ln.Addr().String(), ln: ln, target: func() string { return addr }, conns: map[net.Conn]bool{}, cutAt: -1}
	var running sync.WaitGroup
	running.Go(func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			running.Go(func() { p.serve(c) })
		}
	})
	t.Cleanup(func() {
		ln.Close()
		p.Release()
		p.Cut()
		running.Wait()
	})
	return p
}

func (p *Proxy) serve(client net.Conn) {
	defer client.Close()
	p.mu.Lock()
	addr, refuse := p.target(), p.refuse
	p.mu.Unlock()
	if refuse {
		return
	}
	server, err := net.Dial("tcp", addr)
	if err != nil {
		return
	}
	defer server.Close()
	p.mu.Lock()
	p.conns[client], p.conns[server] = true, true
	p.mu.Unlock()
	defer func() {
		p.mu.Lock()
		defer p.mu.Unlock()
		delete(p.conns, client)
		delete(p.conns, server)
	}()
	var both sync.WaitGroup
	both.Go(func() { p.copy(server, client, false) })
	both.Go(func() { p.copy(client, server, true) })
	both.Wait()
}

// copy copies what src sends until either ends.
func (p *Proxy) copy(dst, src net.Conn, answers bool) {
	// What was held back reaches the server even if the client has gone, as bytes in a
	// network do.
	defer dst.Close()
	buf := make([]byte, 64<<10)
	for {
		n, err := src.Read(buf)
		p.mu.Lock()
		delay, cut, held := p.delay, -1, p.held
		if answers && n > 0 && p.cutAt >= 0 {
			cut = min(n, p.cutAt)
			p.cutAt = -1
		}
		p.mu.Unlock()
		if held != nil && !answers {
			<-held
		}
		if answers && delay > 0 {
			time.Sleep(delay)
		}
		if cut >= 0 {
			dst.Write(buf[:cut])
			src.Close()
			return
		}
		if n > 0 {
			if _, err := dst.Write(buf[:n]); err != nil {
				src.Close()
				return
			}
		}
		if err != nil {
			return
		}
	}
}

// Slow holds up each answer for d; 0 ends that.
func (p *Proxy) Slow(d time.Duration) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.delay = d
}

// CutAnswer ends a connection after n more bytes of an answer, once.
func (p *Proxy) CutAnswer(n int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.cutAt = n
}

// Cut ends all connections.
func (p *Proxy) Cut() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for c := range p.conns {
		c.Close()
	}
}

// Refuse has new connections end at once, or no more.
func (p *Proxy) Refuse(on bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.refuse = on
}

// Hold keeps back what clients send, as a network that loses packets does, until Release
// delivers it, even if the client has gone.
func (p *Proxy) Hold() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.held == nil {
		p.held = make(chan struct{})
	}
}

// Release ends Hold.
func (p *Proxy) Release() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.held != nil {
		close(p.held)
		p.held = nil
	}
}

// Target has new connections go to another server.
func (p *Proxy) Target(addr string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.target = func() string { return addr }
}
