package e2e

import (
	"context"
	"fmt"
	"net/http"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/coder/websocket"
)

// startWithPipe starts the program with stderr as its standard error, and waits until it is ready.
func startWithPipe(t *testing.T, stderr *os.File, args ...string) *process {
	t.Helper()
	p := &process{output: new(lockedBuffer)}
	p.t = t
	p.addrs.HTTPS, p.addrs.Admin = []string{freeAddr(t)}, freeAddr(t)
	p.data = t.TempDir()
	p.cmd = command(t, append([]string{"-data", p.data, "-https", p.addrs.HTTPS[0], "-http", "off", "-admin", p.addrs.Admin}, args...)...)
	p.cmd.Stderr = stderr
	if err := p.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.kill)
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(10 * time.Millisecond) {
		resp, err := http.Get("http://" + p.addrs.Admin + "/readyz")
		if err == nil {
			resp.Body.Close()
			if resp.StatusCode == http.StatusOK {
				break
			}
		}
		if time.Now().After(deadline) {
			t.Fatalf("GET /readyz = %v, %v after a minute, want 200", resp, err)
		}
	}
	p.trustLocalCA(p.data)
	return p
}

// stopProcess sends SIGTERM, and wants exit status 0 within limit.
func (p *process) stopProcess(limit time.Duration) {
	p.t.Helper()
	if err := p.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		p.t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- p.cmd.Wait() }()
	select {
	case err := <-ended:
		if err != nil {
			p.t.Errorf("after SIGTERM: %v, want exit status 0", err)
		}
	case <-time.After(limit):
		p.t.Errorf("the process still runs %v after SIGTERM", limit)
	}
}

// TestLogIsNotRead fills the pipe behind stderr before the program starts: it serves, hands its client over with 1012,
// ends, and counts the lost lines.
func TestLogIsNotRead(t *testing.T) {
	t.Parallel()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	if err := w.SetWriteDeadline(time.Now().Add(100 * time.Millisecond)); err != nil {
		t.Fatal(err)
	}
	for err == nil { // until the pipe is full
		_, err = w.Write(make([]byte, 4<<10))
	}
	p := startWithPipe(t, w, "-log-level", "debug")
	w.Close()
	ws := p.join("wss://localhost/")
	wantRead(t, ws, `{"count":1,"type":"users"}`, `{"type":"state","value":0}`)
	// Refused upgrades, each of which is a debug line, until lines are lost.
	pad := strings.Repeat("x", 4<<10)
	for deadline := time.Now().Add(time.Minute); p.metric("plusminus_log_lines_lost_total") == "0"; {
		for range 100 {
			p.dial("wss://localhost/", websocket.DialOptions{HTTPHeader: http.Header{"Origin": {"https://" + pad + ".example"}}})
		}
		if time.Now().After(deadline) {
			t.Fatal("no line was lost in a minute")
		}
	}
	closed := make(chan error, 1)
	go func() {
		_, _, err := ws.Read(context.Background())
		closed <- err
	}()
	p.stopProcess(30 * time.Second)
	if err := <-closed; websocket.CloseStatus(err) != websocket.StatusServiceRestart {
		t.Errorf("the client's connection ended with %v, want status code 1012", err)
	}
}

// TestLogReaderEnds ends the reader of the log: the server serves on.
func TestLogReaderEnds(t *testing.T) {
	t.Parallel()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	p := startWithPipe(t, w)
	w.Close()
	r.Close()
	if err := p.cmd.Process.Signal(syscall.SIGHUP); err != nil { // which is logged
		t.Fatal(err)
	}
	for deadline := time.Now().Add(time.Minute); p.metric("plusminus_log_lines_lost_total") == "0"; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("no line was lost in a minute")
		}
	}
	ws := p.join("wss://localhost/")
	wantRead(t, ws, `{"count":1,"type":"users"}`, `{"type":"state","value":0}`)
	ws.CloseNow()
	p.stopProcess(30 * time.Second)

	// The other commands end quietly when their reader does, as in plusminus check | head.
	r, w, err = os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	r.Close()
	cmd := command(t, "check", "-h")
	cmd.Stdout = w
	var stderr strings.Builder
	cmd.Stderr = &stderr
	err = cmd.Run()
	w.Close()
	if want := fmt.Sprint(syscall.SIGPIPE); err == nil || !strings.Contains(err.Error(), want) || stderr.Len() > 0 {
		t.Errorf("check without a reader = %v, %q on stderr, want the end by SIGPIPE and no word", err, stderr.String())
	}
}
