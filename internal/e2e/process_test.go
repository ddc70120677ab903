package e2e

import (
	"bytes"
	"crypto/x509"
	"fmt"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"sync"
	"testing"
	"time"

	"plusminus/acme/pebbletest"
	"plusminus/internal/ingress"
)

// process is a plusminus in a process of its own, which can be killed and started again on the same
// ports and the same data folder.
type process struct {
	plusminus // reaches the process that runs
	args      []string
	data      string        // the folder
	output    *lockedBuffer // of all its processes

	mu  sync.Mutex
	cmd *exec.Cmd // nil before the first start. Guarded by mu.
}

// A lockedBuffer is a [bytes.Buffer] that is safe for concurrent use.
type lockedBuffer struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (b *lockedBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.Write(p)
}

func (b *lockedBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.String()
}

// freeAddr returns an address of loopback at which nobody listens. Its port is below those that systems
// give to outgoing connections, one of which could take it while the process that is to listen is away.
func freeAddr(t *testing.T) string {
	t.Helper()
	for range 100 {
		ln, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", 20000+rand.IntN(12000)))
		if err == nil {
			defer ln.Close()
			return ln.Addr().String()
		}
	}
	t.Fatal("no port is free from 20000 to 31999")
	return ""
}

// newCertifiedProcess returns one for counter.test, not started yet, and the CA that finds it.
func newCertifiedProcess(t *testing.T, cfg pebbletest.Config) (*process, *pebbletest.CA) {
	t.Helper()
	m := &process{output: new(lockedBuffer)}
	m.t = t
	m.addrs = ingress.Addresses{HTTPS: []string{freeAddr(t)}, Admin: freeAddr(t)}
	_, port, _ := net.SplitHostPort(m.addrs.HTTPS[0])
	if cfg.TLSPort == 0 {
		cfg.TLSPort, _ = strconv.Atoi(port)
	}
	ca := pebbletest.Start(t, cfg)
	m.roots = ca.IssuingRoots
	data := t.TempDir()
	root := filepath.Join(data, "root.pem")
	if err := os.WriteFile(root, ca.DirectoryRootPEM, 0o600); err != nil {
		t.Fatal(err)
	}
	m.data = data
	m.args = []string{"-data", data, "-domain", "counter.test", "-acme-directory", ca.DirectoryURL, "-acme-ca-root", root,
		"-https", m.addrs.HTTPS[0], "-http", "off", "-admin", m.addrs.Admin, "-log-format", "text"}
	t.Cleanup(func() {
		m.kill()
		if t.Failed() {
			t.Logf("its processes logged:\n%s", m.output)
		}
	})
	return m, ca
}

func (m *process) start() {
	m.t.Helper()
	m.mu.Lock()
	defer m.mu.Unlock()
	m.cmd = command(m.t, m.args...)
	m.cmd.Stdout, m.cmd.Stderr = m.output, m.output
	if err := m.cmd.Start(); err != nil {
		m.t.Fatal(err)
	}
}

// kill sends SIGKILL and returns when the process is gone.
func (m *process) kill() {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.cmd != nil && m.cmd.ProcessState == nil {
		m.cmd.Process.Kill()
		m.cmd.Wait()
	}
}

// ready reports whether /readyz says so.
func (m *process) ready() bool {
	resp, err := http.Get("http://" + m.addrs.Admin + "/readyz")
	if err != nil {
		return false
	}
	resp.Body.Close()
	return resp.StatusCode == 200
}

func (m *process) waitUp() {
	m.t.Helper()
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(10 * time.Millisecond) {
		if resp, err := http.Get("http://" + m.addrs.Admin + "/livez"); err == nil {
			resp.Body.Close()
			return
		}
		if time.Now().After(deadline) {
			m.t.Fatal("it does not come up")
		}
	}
}

// newLocalProcess returns a plusminus for localhost with a certificate of its own CA, started.
func newLocalProcess(t *testing.T, args ...string) *process {
	t.Helper()
	m := &process{output: new(lockedBuffer)}
	m.t = t
	m.addrs = ingress.Addresses{HTTPS: []string{freeAddr(t)}, Admin: freeAddr(t)}
	m.data = t.TempDir()
	m.args = append([]string{"-data", m.data, "-https", m.addrs.HTTPS[0], "-http", "off", "-admin", m.addrs.Admin,
		"-max-clients-per-ip", "0", "-action-rate", "0", "-log-format", "text"}, args...)
	t.Cleanup(func() {
		m.kill()
		if t.Failed() {
			text := m.output.String()
			t.Logf("its processes logged:\n%s", text[max(0, len(text)-8000):])
		}
	})
	m.start()
	m.waitUp()
	pem, err := os.ReadFile(filepath.Join(m.data, "local-ca", "root.pem"))
	if err != nil {
		t.Fatal(err)
	}
	m.roots = x509.NewCertPool()
	m.roots.AppendCertsFromPEM(pem)
	return m
}
