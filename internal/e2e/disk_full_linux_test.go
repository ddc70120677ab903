package e2e

import (
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"
	"unsafe"
)

// limitFiles sets how large files may be that the process writes to, and returns what the limit was. At 0
// it can write to none: then write(2) fails with EFBIG.
func (m *process) limitFiles(to uint64) {
	m.t.Helper()
	limit := syscall.Rlimit{Cur: to, Max: ^uint64(0)}
	_, _, errno := syscall.RawSyscall6(syscall.SYS_PRLIMIT64, uintptr(m.cmd.Process.Pid), syscall.RLIMIT_FSIZE, uintptr(unsafe.Pointer(&limit)), 0, 0, 0)
	if errno != 0 {
		m.t.Fatalf("prlimit: %v", errno)
	}
}

// While the disk takes nothing, actions are refused and the rest goes on; when it does again, so do they.
func TestDiskFails(t *testing.T) {
	t.Parallel()
	m := newLocalProcess(t)
	ws := m.join("wss://localhost/")
	wantRead(t, ws, `{"count":1,"type":"users"}`, `{"type":"state","value":0}`)
	send(t, ws, plus)
	wantRead(t, ws, `{"type":"state","value":1}`)
	for range 3 {
		m.limitFiles(0)
		for range 3 {
			send(t, ws, plus)
			wantRead(t, ws, `{"code":"store_unavailable","type":"error"}`)
		}
		if got := m.state(); got != `{"value":1,"users":1}`+"\n" {
			t.Errorf("GET /state = %q, want the value that was", got)
		}
		resp, body := m.get("http://"+m.addrs.Admin+"/readyz", "")
		if resp.StatusCode != 503 || !strings.Contains(body, "counter.db: file too large") {
			t.Errorf("GET /readyz = %s %q, want 503 and why", resp.Status, body)
		}
		m.limitFiles(^uint64(0))
		for deadline := time.Now().Add(30 * time.Second); !m.ready(); time.Sleep(50 * time.Millisecond) {
			if time.Now().After(deadline) {
				t.Fatal("it does not heal")
			}
		}
	}
	// The process is killed while the disk takes nothing: what was refused does not count.
	m.limitFiles(0)
	send(t, ws, plus)
	wantRead(t, ws, `{"code":"store_unavailable","type":"error"}`)
	m.kill()
	m.start()
	m.waitUp()
	ws = m.join("wss://localhost/")
	wantRead(t, ws, `{"count":1,"type":"users"}`, `{"type":"state","value":1}`)
	send(t, ws, plus)
	wantRead(t, ws, `{"type":"state","value":2}`)

	// Half of the file can be written: that copy is put back.
	m.limitFiles(4096)
	send(t, ws, plus)
	wantRead(t, ws, `{"code":"store_unavailable","type":"error"}`)
	m.kill()
	m.start()
	m.waitUp()
	wantRead(t, m.join("wss://localhost/"), `{"count":1,"type":"users"}`, `{"type":"state","value":2}`)
}

// A server whose first start meets a full disk says so, and leaves nothing that keeps the next one from starting.
func TestFirstStartOnFullDisk(t *testing.T) {
	t.Parallel()
	data := t.TempDir()
	serve := command(t, "-data", data, "-plain", "-http", "127.0.0.1:0", "-admin", "off")
	for _, size := range []string{"0", "8"} { // blocks of 512 bytes: nothing, half of the file
		full := exec.Command("sh", append([]string{"-c", `ulimit -f "$0" && exec "$@"`, size}, serve.Args...)...)
		full.Env, full.Dir = serve.Env, serve.Dir
		out, err := full.CombinedOutput()
		if exitStatus(err) != 1 || !strings.Contains(string(out), "counter.db: file too large") {
			t.Errorf("a first start with files of %s blocks: %v and %q, want exit status 1 and why", size, err, out)
		}
	}
	s := start(t, "-data", data)
	wantRead(t, s.join("wss://localhost/"), `{"count":1,"type":"users"}`, `{"type":"state","value":0}`)
}
