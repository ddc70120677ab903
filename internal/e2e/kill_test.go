package e2e

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"plusminus/acme/pebbletest"
	"plusminus/internal/ingress"
)

// A mortal is a plusminus in a process of its own, which can be killed and started again on the same
// ports and the same data folder.
type mortal struct {
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

// newMortal returns one for counter.test, not started yet, and the CA that finds it.
func newMortal(t *testing.T, cfg pebbletest.Config) (*mortal, *pebbletest.CA) {
	t.Helper()
	m := &mortal{output: new(lockedBuffer)}
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

func (m *mortal) start() {
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
func (m *mortal) kill() {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.cmd != nil && m.cmd.ProcessState == nil {
		m.cmd.Process.Kill()
		m.cmd.Wait()
	}
}

// ready reports whether /readyz says so.
func (m *mortal) ready() bool {
	resp, err := http.Get("http://" + m.addrs.Admin + "/readyz")
	if err != nil {
		return false
	}
	resp.Body.Close()
	return resp.StatusCode == 200
}

func (m *mortal) waitUp() {
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

// The process is killed as the CA takes each of its requests, before the CA works on it or just after. The
// next process goes on where the first one was: no order is lost that the CA told of, no certificate that
// it made. Only an attempt of which nothing is known has to be made again, a minute later or when asked.
func TestKilledAtEachStep(t *testing.T) {
	for _, at := range []struct {
		name, path string
		resumes    bool // the next process needs no new order and no wait
		lost       bool // what the CA did could not be known
	}{
		{"newAccount", pebbletest.NewAccountPath, false, false},
		{"newOrder", pebbletest.NewOrderPath, false, true},
		{"authorization", pebbletest.AuthorizationPath, true, false},
		{"challenge", pebbletest.ChallengePath, true, true}, // nobody answers: a failed validation
		{"order", pebbletest.OrderPath, true, false},
		{"finalize", pebbletest.FinalizePath, true, false},
		{"certificate", pebbletest.CertificatePath, true, false},
	} {
		for _, when := range []string{"before", "after"} {
			t.Run(at.name+" "+when, func(t *testing.T) {
				t.Parallel()
				m, ca := newMortal(t, pebbletest.Config{})
				killed := make(chan struct{})
				ca.Inject(at.path, 1, func(w http.ResponseWriter, r *http.Request) {
					defer close(killed)
					m.kill()
					if when == "after" {
						pebbletest.DropAnswer(w, r)
					} else {
						pebbletest.Drop(w, r)
					}
				})
				m.start()
				<-killed
				m.start()
				m.waitUp()
				lost := at.lost && when == "after"
				if !at.resumes || lost {
					for deadline := time.Now().Add(time.Minute); !m.ready(); time.Sleep(100 * time.Millisecond) {
						// Perhaps it is still finding out that there is nothing to go on with.
						resp, body := m.post("http://"+m.addrs.Admin+"/renew", nil)
						if resp.StatusCode != 200 && time.Now().After(deadline) {
							t.Fatalf("POST /renew = %s %s", resp.Status, body)
						}
					}
				}
				m.waitReady()
				want := 1
				if at.name == "newOrder" || lost {
					want = 2
				}
				if got := ca.Orders(); got != want {
					t.Errorf("%d orders, want %d", got, want)
				}
				failed := 0
				if at.name == "challenge" && lost {
					failed = 1
				}
				if got := ca.FailedValidations(); got != failed {
					t.Errorf("%d failed validations, want %d", got, failed)
				}

				serial := m.serial("counter.test")
				m.kill()
				m.start()
				m.waitUp()
				m.waitReady() // it may have been killed between serving the certificate and storing it
				if got := m.serial("counter.test"); got != serial || ca.Orders() != want {
					t.Errorf("after another kill: serial %s, %d orders, want %s and %d", got, ca.Orders(), serial, want)
				}
			})
		}
	}
}

// A process that is killed forty times, each time within a second of its start, while its orders take that
// long and its challenges fail, costs no more orders and failed validations than one that is left alone:
// those of one attempt.
func TestCrashLoop(t *testing.T) {
	m, ca := newMortal(t, pebbletest.Config{TLSPort: 1}) // where nobody answers
	patient, reference := newMortal(t, pebbletest.Config{TLSPort: 1})
	for _, ca := range []*pebbletest.CA{ca, reference} {
		ca.Inject(pebbletest.NewOrderPath, -1, pebbletest.Delay(300*time.Millisecond, pebbletest.Forward))
	}
	patient.start()
	for range 40 {
		m.start()
		time.Sleep(time.Duration(rand.Float64() * float64(time.Second/2)))
		m.kill()
	}
	if got, want := ca.Orders(), reference.Orders(); got > want || want == 0 {
		t.Errorf("%d orders by a process that is killed, %d by one that is not", got, want)
	}
	if got, want := ca.FailedValidations(), reference.FailedValidations(); got > want || want == 0 {
		t.Errorf("%d failed validations of a process that is killed, %d of one that is not", got, want)
	}
	m.start()
	m.waitUp()
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(10 * time.Millisecond) {
		_, body := m.get("http://"+m.addrs.Admin+"/readyz", "")
		if strings.Contains(body, "next attempt at 20") {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("GET /readyz = %q, want when the next attempt is", body)
		}
	}
}
