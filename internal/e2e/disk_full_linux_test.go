package e2e

import (
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"unsafe"
)

// limitFiles sets the largest size of files that the process may write (RLIMIT_FSIZE). At 0 each write(2) to a file
// fails with EFBIG.
func (p *process) limitFiles(to uint64) {
	p.t.Helper()
	limit := syscall.Rlimit{Cur: to, Max: ^uint64(0)}
	_, _, errno := syscall.RawSyscall6(syscall.SYS_PRLIMIT64, uintptr(p.cmd.Process.Pid), syscall.RLIMIT_FSIZE, uintptr(unsafe.Pointer(&limit)), 0, 0, 0)
	if errno != 0 {
		p.t.Fatalf("prlimit: %v", errno)
	}
}

// TestDiskFails makes all writes fail for a while. The server refuses actions and serves everything else. When writes
// succeed again, it accepts actions again.
func TestDiskFails(t *testing.T) {
	t.Parallel()
	p := newLocalProcess(t)
	ws := p.join("wss://localhost/")
	wantRead(t, ws, `{"count":1,"type":"users"}`, `{"type":"state","value":0}`)
	send(t, ws, plus)
	wantRead(t, ws, `{"type":"state","value":1}`)
	for range 3 {
		p.limitFiles(0)
		for range 3 {
			send(t, ws, plus)
			wantRead(t, ws, `{"code":"store_unavailable","type":"error"}`)
		}
		if got := p.state(); got != `{"value":1,"users":1}`+"\n" {
			t.Errorf("GET /state = %q, want the value 1 as before", got)
		}
		resp, body := p.get("http://"+p.addrs.Admin+"/readyz", "")
		if resp.StatusCode != 503 || !strings.Contains(body, "counter.db: file too large") {
			t.Errorf("GET /readyz = %s %q, want 503 and why", resp.Status, body)
		}
		p.limitFiles(^uint64(0))
		waitUntil(t, "GET /readyz = 200 when the disk works again", p.ready)
	}
	// A kill while writes fail: the refused actions do not count.
	p.limitFiles(0)
	send(t, ws, plus)
	wantRead(t, ws, `{"code":"store_unavailable","type":"error"}`)
	p.kill()
	p.start()
	p.waitUp()
	ws = p.join("wss://localhost/")
	wantRead(t, ws, `{"count":1,"type":"users"}`, `{"type":"state","value":1}`)
	send(t, ws, plus)
	wantRead(t, ws, `{"type":"state","value":2}`)

	// Writes to the first half of the file succeed, and the next process repairs the file.
	p.limitFiles(4096)
	send(t, ws, plus)
	wantRead(t, ws, `{"code":"store_unavailable","type":"error"}`)
	p.kill()
	p.start()
	p.waitUp()
	wantRead(t, p.join("wss://localhost/"), `{"count":1,"type":"users"}`, `{"type":"state","value":2}`)
}

// TestFirstStartOnFullDisk starts a server on a new data folder while writes fail. The error names the file, and the
// next start succeeds.
func TestFirstStartOnFullDisk(t *testing.T) {
	t.Parallel()
	data := t.TempDir()
	serve := command(t, "-data", data, "-plain", "-http", "127.0.0.1:0", "-admin", "off")
	for _, size := range []string{"0", "8"} { // blocks of 512 bytes: no file, half of the file
		full := exec.Command("sh", append([]string{"-c", `ulimit -f "$0" && exec "$@"`, size}, serve.Args...)...)
		full.Env, full.Dir = serve.Env, serve.Dir
		out, err := full.CombinedOutput()
		if exitStatus(err) != 1 || !strings.Contains(string(out), "counter.db: file too large") {
			t.Errorf("first start with files of at most %s blocks: %v and %q, want exit status 1 and the file", size, err, out)
		}
	}
	s := start(t, "-data", data)
	wantRead(t, s.join("wss://localhost/"), `{"count":1,"type":"users"}`, `{"type":"state","value":0}`)
}
