package redistest

import (
	"net"
	"sync"
	"testing"
	"time"
)

// Proxy is a TCP proxy between clients and a server that can delay, hold and cut connections.
// It ends with the test. Its methods are safe from any goroutine.
type Proxy struct {
	// Immutable after StartProxy.
	Addr string // host:port of the proxy
	ln   net.Listener

	mu sync.Mutex
	// Guarded by mu.
	target string            // host:port of the server, for new connections
	conns  map[net.Conn]bool // of both sides
	delay  time.Duration     // of each answer
	cutAt  int               // close a connection after so many bytes of an answer; -1: do not
	refuse bool
	held   chan struct{} // closed by Release; nil if nothing is held
}

// StartProxy starts a proxy for the server at addr.
func StartProxy(t testing.TB, addr string) *Proxy {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	p := &Proxy{Addr: ln.Addr().String(), ln: ln, target: addr, conns: map[net.Conn]bool{}, cutAt: -1}
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

// serve joins a client to the server until either side closes its connection.
func (p *Proxy) serve(client net.Conn) {
	defer client.Close()
	p.mu.Lock()
	addr, refuse := p.target, p.refuse
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

// copy copies from src to dst until either is closed. answers is true for bytes of the server.
func (p *Proxy) copy(dst, src net.Conn, answers bool) {
	// Held bytes reach the server even if the client has closed its connection, as delayed
	// packets do.
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

// Slow delays each answer by d; 0 ends that.
func (p *Proxy) Slow(d time.Duration) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.delay = d
}

// CutAnswer closes one connection after n bytes of its next answer.
func (p *Proxy) CutAnswer(n int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.cutAt = n
}

// Cut closes all connections.
func (p *Proxy) Cut() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for c := range p.conns {
		c.Close()
	}
}

// Refuse makes the proxy close new connections at once, or ends that.
func (p *Proxy) Refuse(on bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.refuse = on
}

// Hold keeps the bytes that clients send until Release, as a network that loses packets does.
// Release delivers them even if the client has closed its connection.
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

// Target makes new connections go to the server at addr.
func (p *Proxy) Target(addr string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.target = addr
}
