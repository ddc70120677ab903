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

	"plusminus/acme/pebbletest"
	"plusminus/internal/ingress"
)

// process runs the program as a process that a test can kill and start again, on the same ports and the same data
// folder.
type process struct {
	plusminus // the process that runs now
	args      []string
	data      string        // the data folder
	output    *lockedBuffer // of all processes so far

	mu  sync.Mutex
	cmd *exec.Cmd // the last process; nil before the first start. Guarded by mu.
}

// lockedBuffer is a [bytes.Buffer] that is safe for concurrent use.
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

// freePorts are the ports that freeAddr has returned.
var freePorts sync.Map

// freeAddr returns a loopback address with a free port, and never returns it again. The port is below the range that
// systems use for outgoing connections: such a connection could take the port between two processes of a test.
func freeAddr(t *testing.T) string {
	t.Helper()
	for range 100 {
		port := 20000 + rand.IntN(12000)
		if _, used := freePorts.LoadOrStore(port, true); used {
			continue
		}
		ln, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", port))
		if err == nil {
			defer ln.Close()
			return ln.Addr().String()
		}
	}
	t.Fatal("100 ports from 20000 to 31999 are in use")
	return ""
}

// newCertifiedProcess returns a process for counter.test, which it does not start, and the CA of its certificates.
// The CA validates at the port of the process, unless cfg names another one.
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
			t.Logf("the processes logged:\n%s", m.output)
		}
	})
	return m, ca
}

// start starts the next process.
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

// kill sends SIGKILL and returns when the process has ended. It does nothing if no process runs.
func (m *process) kill() {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.cmd != nil && m.cmd.ProcessState == nil {
		m.cmd.Process.Kill()
		m.cmd.Wait()
	}
}

// ready reports whether /readyz answers 200.
func (m *process) ready() bool {
	resp, err := http.Get("http://" + m.addrs.Admin + "/readyz")
	if err != nil {
		return false
	}
	resp.Body.Close()
	return resp.StatusCode == 200
}

// waitUp waits until the process answers on its admin listener.
func (m *process) waitUp() {
	m.t.Helper()
	waitUntil(m.t, "GET /livez to be answered", func() bool {
		resp, err := http.Get("http://" + m.addrs.Admin + "/livez")
		if err == nil {
			resp.Body.Close()
		}
		return err == nil
	})
}

// newLocalProcess starts a process for localhost, with a certificate of its local CA, and waits until it answers.
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
			t.Logf("the processes logged:\n%s", text[max(0, len(text)-8000):])
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
