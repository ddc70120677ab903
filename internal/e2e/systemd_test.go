package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/coder/websocket"
)

// fakeSystemd holds listening sockets and starts the program on them, as systemd does for a .socket unit.
type fakeSystemd struct {
	plusminus // the process that runs now
	args      []string
	files     []*os.File
	names     []string
	env       []string
	output    *lockedBuffer // of all processes so far
	cmd       *exec.Cmd     // the last process
}

// newFakeSystemd opens a socket on loopback for each name. It starts no process.
func newFakeSystemd(t *testing.T, names []string, args ...string) *fakeSystemd {
	t.Helper()
	s := &fakeSystemd{names: names, args: args, output: new(lockedBuffer)}
	s.t = t
	for _, name := range names {
		ln, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer ln.Close() // f keeps the socket open
		f, err := ln.(*net.TCPListener).File()
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { f.Close() })
		s.files = append(s.files, f)
		switch name {
		case "https":
			s.addrs.HTTPS = append(s.addrs.HTTPS, ln.Addr().String())
		case "http":
			s.addrs.HTTP = ln.Addr().String()
		case "admin":
			s.addrs.Admin = ln.Addr().String()
		}
	}
	t.Cleanup(func() {
		if s.cmd != nil && s.cmd.ProcessState == nil {
			s.cmd.Process.Kill()
			s.cmd.Wait()
		}
		if t.Failed() {
			t.Logf("the processes logged:\n%s", s.output)
		}
	})
	return s
}

// start starts the next process. The kernel queues connections until it accepts them.
func (s *fakeSystemd) start() {
	s.t.Helper()
	cmd := command(s.t, s.args...)
	// LISTEN_PID has to be the process id of the program, so a shell sets it and then becomes the program.
	cmd.Args = append([]string{"sh", "-c", `LISTEN_PID=$$ exec "$0" "$@"`, cmd.Path}, s.args...)
	cmd.Path = "/bin/sh"
	cmd.Env = append(cmd.Env, "LISTEN_FDS="+strconv.Itoa(len(s.files)), "LISTEN_FDNAMES="+strings.Join(s.names, ":"))
	cmd.Env = append(cmd.Env, s.env...)
	cmd.ExtraFiles = s.files
	cmd.Stdout, cmd.Stderr = s.output, s.output
	if err := cmd.Start(); err != nil {
		s.t.Fatal(err)
	}
	s.cmd = cmd
}

// TestRestartsRefuseNobody restarts the program ten times, as systemd does: the old process ends, then the next one
// starts. New connections wait meanwhile, and none is refused. No value that a client has received is lost. Connected
// clients receive 1012, which tells them to reconnect.
func TestRestartsRefuseNobody(t *testing.T) {
	t.Parallel()
	const restarts, clients = 10, 4
	data := t.TempDir()
	s := newFakeSystemd(t, []string{"https", "http", "admin"}, "-data", data, "-log-format", "text", "-max-clients-per-ip", "0",
		// The program does not listen on these addresses: the sockets replace them.
		"-https", "192.0.2.1:443", "-http", "192.0.2.1:80", "-admin", "192.0.2.1:9180")
	s.start()
	if _, body := s.get("http://"+s.addrs.Admin+"/readyz", ""); body != "ready\n" {
		t.Fatalf("GET /readyz = %q", body)
	}
	s.trustLocalCA(data)

	var (
		running         sync.WaitGroup
		stop            = make(chan struct{})
		seen            atomic.Int64 // the highest value that any client has received
		sent            atomic.Int64
		connects, told  atomic.Int64
		ctx, cancelRead = context.WithTimeout(t.Context(), 2*time.Minute)
	)
	defer cancelRead()
	visit := func() error {
		atLeast := seen.Load()
		ws, resp, err := s.dial("wss://localhost/", websocket.DialOptions{})
		if err != nil {
			return fmt.Errorf("connecting: %w (%v)", err, resp)
		}
		defer ws.CloseNow()
		connects.Add(1)
		for states := 0; states < 2; {
			_, data, err := ws.Read(ctx)
			if websocket.CloseStatus(err) == websocket.StatusServiceRestart {
				told.Add(1)
				return nil
			}
			if err != nil {
				return fmt.Errorf("reading: %w", err)
			}
			var m struct {
				Type  string
				Value int64
			}
			if err := json.Unmarshal(data, &m); err != nil {
				return err
			}
			switch m.Type {
			case "error":
				return fmt.Errorf("the server refused an action: %s", data)
			case "state":
				if m.Value < atLeast {
					return fmt.Errorf("received the value %d, want at least %d", m.Value, atLeast)
				}
				for old := seen.Load(); m.Value > old && !seen.CompareAndSwap(old, m.Value); old = seen.Load() {
				}
				if states++; states == 1 {
					sent.Add(1)
					if err := ws.Write(ctx, websocket.MessageText, []byte(plus)); err != nil {
						states = 2 // the server closes the connection
					}
				}
			}
		}
		return nil
	}
	look := func(url string, status int) func() error {
		return func() error {
			client := s.client()
			defer client.CloseIdleConnections()
			resp, err := client.Get(url)
			if err != nil {
				return err
			}
			defer resp.Body.Close()
			connects.Add(1)
			if resp.StatusCode != status {
				return fmt.Errorf("GET %s = %s, want %d", url, resp.Status, status)
			}
			return nil
		}
	}
	loop := func(f func() error) {
		running.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				if err := f(); err != nil {
					t.Error(err)
				}
			}
		})
	}
	for range clients {
		loop(visit)
	}
	loop(look("https://localhost/state", http.StatusOK))
	loop(look("http://localhost/", http.StatusPermanentRedirect))

	for i := range restarts {
		stays := s.join("wss://localhost/")
		restarted := make(chan error, 1)
		go func() {
			for {
				if _, _, err := stays.Read(ctx); err != nil {
					restarted <- err
					return
				}
			}
		}()
		before := connects.Load()
		for connects.Load() < before+20 && !t.Failed() {
			time.Sleep(time.Millisecond)
		}
		if err := s.cmd.Process.Signal(syscall.SIGTERM); err != nil {
			t.Fatal(err)
		}
		if err := s.cmd.Wait(); err != nil {
			t.Errorf("restart %d: %v, want exit status 0", i, err)
		}
		if err := <-restarted; websocket.CloseStatus(err) != websocket.StatusServiceRestart {
			t.Errorf("restart %d: Read = %v, want status code 1012", i, err)
		}
		time.Sleep(50 * time.Millisecond) // no process runs, and connections wait
		s.start()
	}
	close(stop)
	running.Wait()

	ws := s.join("wss://localhost/")
	read(t, ws) // users: may still include clients that have just left
	var last struct{ Value int64 }
	if err := json.Unmarshal([]byte(read(t, ws)), &last); err != nil {
		t.Fatal(err)
	}
	if last.Value < seen.Load() || last.Value > sent.Load() {
		t.Errorf("last value = %d, want %d (received before) to %d (sent)", last.Value, seen.Load(), sent.Load())
	}
	t.Logf("%d connections and %d actions through %d restarts; 1012 ended %d of the connections", connects.Load(), sent.Load(), restarts, told.Load())
}

// TestPassedSockets passes sockets that the program cannot use. It exits with an error that names the problem.
func TestPassedSockets(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name  string
		names []string
		args  string
		want  string
	}{
		{"unknown name", []string{"plusminus.socket"}, "", "FileDescriptorName= has to be one of https, http, admin"},
		{"no name", []string{""}, "", "FileDescriptorName="},
		{"http off", []string{"http"}, "-http off", "-http is off"},
		{"admin off", []string{"admin"}, "-admin off", "-admin is off"},
		{"no TLS", []string{"https"}, "-plain", "pass the socket as http"},
		{"twice", []string{"http", "http"}, "", "only one socket may have this name"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			s := newFakeSystemd(t, tt.names, strings.Fields(tt.args)...)
			s.start()
			if err := s.cmd.Wait(); exitStatus(err) != 1 || !strings.Contains(s.output.String(), tt.want) {
				t.Errorf("%v and\n%s\nwant exit status 1 and %q", err, s.output, tt.want)
			}
		})
	}
}

// TestNotify checks that the program tells systemd when its listeners are open and when it stops.
func TestNotify(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "notify")
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	conn.SetReadDeadline(time.Now().Add(time.Minute))
	want := func(state string) {
		t.Helper()
		buf := make([]byte, 100)
		n, err := conn.Read(buf)
		if err != nil || string(buf[:n]) != state {
			t.Fatalf("notification = %q, %v, want %q", buf[:n], err, state)
		}
	}
	cmd := command(t, "-https", "127.0.0.1:0", "-http", "off", "-admin", "off")
	cmd.Env = append(cmd.Env, "NOTIFY_SOCKET="+path)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	want("READY=1")
	if err := cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	want("STOPPING=1")
	if err := cmd.Wait(); err != nil {
		t.Errorf("after SIGTERM: %v, want exit status 0", err)
	}
}
