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
	p := &process{output: new(lockedBuffer)}
	p.t = t
	p.addrs = ingress.Addresses{HTTPS: []string{freeAddr(t)}, Admin: freeAddr(t)}
	_, port, _ := net.SplitHostPort(p.addrs.HTTPS[0])
	if cfg.TLSPort == 0 {
		cfg.TLSPort, _ = strconv.Atoi(port)
	}
	ca := pebbletest.Start(t, cfg)
	p.roots = ca.IssuingRoots
	data := t.TempDir()
	root := filepath.Join(data, "root.pem")
	if err := os.WriteFile(root, ca.DirectoryRootPEM, 0o600); err != nil {
		t.Fatal(err)
	}
	p.data = data
	p.args = []string{"-data", data, "-domain", "counter.test", "-acme-directory", ca.DirectoryURL, "-acme-ca-root", root,
		"-https", p.addrs.HTTPS[0], "-http", "off", "-admin", p.addrs.Admin, "-log-format", "text"}
	t.Cleanup(func() {
		p.kill()
		if t.Failed() {
			t.Logf("the processes logged:\n%s", p.output)
		}
	})
	return p, ca
}

// start starts the next process.
func (p *process) start() {
	p.t.Helper()
	p.mu.Lock()
	defer p.mu.Unlock()
	p.cmd = command(p.t, p.args...)
	p.cmd.Stdout, p.cmd.Stderr = p.output, p.output
	if err := p.cmd.Start(); err != nil {
		p.t.Fatal(err)
	}
}

// kill sends SIGKILL and returns when the process has ended. It does nothing if no process runs.
func (p *process) kill() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.cmd != nil && p.cmd.ProcessState == nil {
		p.cmd.Process.Kill()
		p.cmd.Wait()
	}
}

// ready reports whether /readyz answers 200.
func (p *process) ready() bool {
	resp, err := http.Get("http://" + p.addrs.Admin + "/readyz")
	if err != nil {
		return false
	}
	resp.Body.Close()
	return resp.StatusCode == 200
}

// waitUp waits until the process answers on its admin listener.
func (p *process) waitUp() {
	p.t.Helper()
	waitUntil(p.t, "GET /livez to be answered", func() bool {
		resp, err := http.Get("http://" + p.addrs.Admin + "/livez")
		if err == nil {
			resp.Body.Close()
		}
		return err == nil
	})
}

// newLocalProcess starts a process for localhost, with a certificate of its local CA, and waits until it answers.
func newLocalProcess(t *testing.T, args ...string) *process {
	t.Helper()
	p := &process{output: new(lockedBuffer)}
	p.t = t
	p.addrs = ingress.Addresses{HTTPS: []string{freeAddr(t)}, Admin: freeAddr(t)}
	p.data = t.TempDir()
	p.args = append([]string{"-data", p.data, "-https", p.addrs.HTTPS[0], "-http", "off", "-admin", p.addrs.Admin,
		"-max-clients-per-ip", "0", "-action-rate", "0", "-log-format", "text"}, args...)
	t.Cleanup(func() {
		p.kill()
		if t.Failed() {
			text := p.output.String()
			t.Logf("the processes logged:\n%s", text[max(0, len(text)-8000):])
		}
	})
	p.start()
	p.waitUp()
	pem, err := os.ReadFile(filepath.Join(p.data, "local-ca", "root.pem"))
	if err != nil {
		t.Fatal(err)
	}
	p.roots = x509.NewCertPool()
	p.roots.AppendCertsFromPEM(pem)
	return p
}
