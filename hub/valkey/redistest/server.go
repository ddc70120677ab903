// Package redistest runs Redis servers for tests, and a proxy that disturbs the network to them.
//
// A [Server] has one goroutine, which waits for the process. A [Proxy] has one that accepts
// connections, and three for each connection. All of them end with the test.
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

// Server is a Redis server on a free port of loopback, with its data in a temporary folder.
// It ends with the test. The test's goroutine calls its methods.
type Server struct {
	// Immutable after Start.
	Addr string // host:port
	t    testing.TB
	dir  string
	args []string

	// Written by the running process, read after its end.
	log bytes.Buffer

	mu sync.Mutex
	// Guarded by mu.
	process *os.Process   // nil while none runs
	exited  chan struct{} // closed by the waiting goroutine when process has ended
}

// Start starts a server. args are added to the command line of redis-server. Unless they say
// otherwise, each change is on disk before the server answers. Without redis-server on this
// machine, Start skips the test.
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
	for range 10 { // another process may take the port first
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
	t.Fatal("redis-server did not start in 10 attempts")
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
		// The server is up once it answers, even with an error, unless it is still loading its data.
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

// tls reports whether the server has a port for TLS.
func (s *Server) tls() bool {
	for _, a := range s.args {
		if a == "--tls-port" {
			return true
		}
	}
	return false
}

// probeAddr returns the address that start connects to, to see whether the server is up.
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

// Kill kills the server's process, as a crash would. Restart starts it again.
func (s *Server) Kill() {
	s.signal(sigContinue)
	s.signal(syscall.SIGKILL)
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.process != nil {
		<-s.exited
		s.process = nil
	}
}

// Restart starts the server again with the same port and data.
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

// Pause stops the server's process until Resume, as a long snapshot or a busy host does.
// Connections stay open, and get no answers.
func (s *Server) Pause() { s.signal(sigStop) }

// Resume ends Pause.
func (s *Server) Resume() { s.signal(sigContinue) }

// Host returns the server's host and port.
func (s *Server) Host() (host, port string) {
	host, port, _ = net.SplitHostPort(s.Addr)
	return host, port
}

// Do sends a command on a new connection and returns the answer as text.
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
