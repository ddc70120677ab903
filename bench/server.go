package main

import (
	"bufio"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"embed"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"plusminus/bench/peers"
)

//go:embed peers/counter.js peers/counter.py
var scripts embed.FS

// peer is a server that can be measured.
type peer struct {
	name      string
	announces bool // can send users to all clients at each arrival
	plusminus bool // is a build of plusminus, and takes its flags

	// command returns the program and its arguments. announce says whether the peer sends
	// users to all clients at each arrival; peers without announces ignore it.
	command func(l *environment, announce bool) []string
}

// environment is shared by all servers of one run of the bench.
type environment struct {
	dir       string   // temporary folder of this run
	cert, key string   // PEM files
	self      string   // the path of this program
	extra     []string // more flags for plusminus
	serverCPU int
}

// builtin returns the peers other than plusminus, which has to be built first.
func builtin() []peer {
	var list []peer
	for _, name := range []string{"floor", "gorilla", "coder", "gws"} {
		list = append(list, peer{name: name, announces: name != "floor", command: func(l *environment, announce bool) []string {
			return []string{l.self, "peer", "-cert", l.cert, "-key", l.key, fmt.Sprintf("-announce=%t", announce), name}
		}})
	}
	list = append(list, peer{name: "node", announces: true, command: func(l *environment, announce bool) []string {
		return []string{"node", filepath.Join(l.dir, "counter.js"), l.cert, l.key, announceWord(announce)}
	}})
	for _, how := range []string{"wait", "broadcast"} {
		name := map[string]string{"wait": "python", "broadcast": "python-broadcast"}[how]
		list = append(list, peer{name: name, announces: true, command: func(l *environment, announce bool) []string {
			return []string{pythonPath, filepath.Join(l.dir, "counter.py"), l.cert, l.key, announceWord(announce), how}
		}})
	}
	return list
}

// pythonPath is the Python of Debian, for which python3-websockets is installed.
const pythonPath = "/usr/bin/python3"

// announceWord returns the argument of counter.js and counter.py for announce.
func announceWord(announce bool) string {
	if announce {
		return "announce"
	}
	return "quiet"
}

// plusminusPeer returns the peer for a build of plusminus. store is its -store. Each start gets
// a new data folder.
func plusminusPeer(name, binary, store string) peer {
	return peer{name: name, plusminus: true, command: func(l *environment, _ bool) []string {
		args := []string{
			binary, "-domain", "localhost", "-cert", l.cert, "-key", l.key,
			"-https", "127.0.0.1:0", "-http", "off", "-admin", "off",
			"-store", store, "-data", filepath.Join(l.dir, fmt.Sprintf("%s-data-%d", name, time.Now().UnixNano())),
			"-max-clients-per-ip", "0", "-action-rate", "0", "-log-format", "json",
		}
		return append(args, l.extra...)
	}}
}

// newEnvironment makes the folder with the certificate and the scripts. close removes the folder.
func newEnvironment(serverCPU int, extra []string) (*environment, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	dir, err := os.MkdirTemp("", "plusminus-bench-")
	if err != nil {
		return nil, err
	}
	l := &environment{dir: dir, self: self, extra: extra, serverCPU: serverCPU, cert: filepath.Join(dir, "cert.pem"), key: filepath.Join(dir, "key.pem")}
	if err := l.fill(); err != nil {
		l.close()
		return nil, err
	}
	return l, nil
}

func (l *environment) close() { os.RemoveAll(l.dir) }

func (l *environment) fill() error {
	for _, name := range []string{"counter.js", "counter.py"} {
		b, err := scripts.ReadFile("peers/" + name)
		if err != nil {
			return err
		}
		if err := os.WriteFile(filepath.Join(l.dir, name), b, 0o600); err != nil {
			return err
		}
	}
	return writeCertificate(l.cert, l.key)
}

// writeCertificate makes one self-signed certificate with a P-256 key, of the size that
// a CA's leaf has.
func writeCertificate(certFile, keyFile string) error {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 120))
	if err != nil {
		return err
	}
	now := time.Now()
	template := &x509.Certificate{
		SerialNumber: serial,
		Subject:      pkix.Name{CommonName: "localhost"},
		DNSNames:     []string{"localhost"},
		IPAddresses:  []net.IP{net.IPv4(127, 0, 0, 1)},
		NotBefore:    now.Add(-time.Hour),
		NotAfter:     now.Add(30 * 24 * time.Hour),
		KeyUsage:     x509.KeyUsageDigitalSignature,
		ExtKeyUsage:  []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return err
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return err
	}
	return errors.Join(
		os.WriteFile(certFile, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), 0o600),
		os.WriteFile(keyFile, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: keyDER}), 0o600),
	)
}

// server is a server process.
type server struct {
	// Immutable after start.
	name string
	pid  int
	addr string
	cmd  *exec.Cmd
	gone chan struct{} // closed when the process has ended and all its output has been read

	mu   sync.Mutex
	tail []string // Guarded by mu: the last lines of output
}

// startTimeout is how long a server may take to listen.
const startTimeout = 20 * time.Second

// start starts a server and waits until it listens. more are further arguments.
func (l *environment) start(ctx context.Context, p peer, announce bool, more ...string) (*server, error) {
	args := append(p.command(l, announce), more...)
	cmd := exec.Command(args[0], args[1:]...)
	cmd.Dir = l.dir
	s, addr, err := launch(p.name, l.serverCPU, cmd)
	if err != nil {
		return nil, err
	}
	timeout := time.NewTimer(startTimeout)
	defer timeout.Stop()
	select {
	case s.addr = <-addr:
	case <-s.gone:
		return nil, fmt.Errorf("%s ended before it listened: %s", p.name, s.output())
	case <-timeout.C:
		s.stop()
		return nil, fmt.Errorf("%s does not listen after %v: %s", p.name, startTimeout, s.output())
	case <-ctx.Done():
		s.stop()
		return nil, context.Cause(ctx)
	}
	if err := checkPinned(s.pid, l.serverCPU); err != nil {
		s.stop()
		return nil, err
	}
	return s, nil
}

// launch starts cmd as a server, and does not wait. The channel receives the server's
// address when the server prints it.
func launch(name string, cpu int, cmd *exec.Cmd) (*server, <-chan string, error) {
	// The server must not outlive this process.
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL, Setpgid: true}
	r, w, err := os.Pipe()
	if err != nil {
		return nil, nil, err
	}
	cmd.Stdout, cmd.Stderr = w, w
	err = startOn(cpu, cmd)
	w.Close()
	if err != nil {
		r.Close()
		return nil, nil, fmt.Errorf("starting %s: %w", name, err)
	}
	s := &server{name: name, pid: cmd.Process.Pid, cmd: cmd, gone: make(chan struct{})}
	addr := make(chan string, 1)
	go s.readOutput(r, addr)
	return s, addr, nil
}

// readOutput sends the address that the server prints to addr, and keeps the last lines.
func (s *server) readOutput(r io.ReadCloser, addr chan<- string) {
	defer close(s.gone)
	defer s.cmd.Wait()
	defer r.Close()
	lines := bufio.NewScanner(r)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		if a := listenAddress(lines.Text()); a != "" {
			select {
			case addr <- a:
			default:
			}
		}
		s.mu.Lock()
		s.tail = append(s.tail[max(0, len(s.tail)-19):], lines.Text())
		s.mu.Unlock()
	}
}

// listenAddress returns the address if line says where the server listens, or "".
func listenAddress(line string) string {
	if a, ok := strings.CutPrefix(line, "listening "); ok {
		return strings.TrimSpace(a)
	}
	var entry struct {
		Msg   string   `json:"msg"`
		HTTPS []string `json:"https"`
	}
	if json.Unmarshal([]byte(line), &entry) == nil && entry.Msg == "listening" && len(entry.HTTPS) > 0 {
		return entry.HTTPS[0]
	}
	return ""
}

// output returns the last lines of the server's output.
func (s *server) output() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return strings.Join(s.tail, "\n")
}

// stop kills the server, because no clean stop is measured.
func (s *server) stop() {
	s.cmd.Process.Kill()
	<-s.gone
}

// running returns an error if the server has ended.
func (s *server) running() error {
	select {
	case <-s.gone:
		return fmt.Errorf("%s has ended: %s", s.name, s.output())
	default:
		return nil
	}
}

// buildPlusminus builds plusminus from the folder source and returns the path of the binary.
func (l *environment) buildPlusminus(ctx context.Context, source string) (string, error) {
	binary := filepath.Join(l.dir, "plusminus")
	if err := l.goCommand(ctx, nil, "build", "-C", source, "-o", binary, "."); err != nil {
		return "", fmt.Errorf("building plusminus in %s: %w", source, err)
	}
	return binary, nil
}

// goCommand runs the go command on all cores, with more environment variables. Its error
// contains the output of the command.
func (l *environment) goCommand(ctx context.Context, env []string, args ...string) error {
	cmd := exec.CommandContext(ctx, "go", args...)
	// After an interrupt the go command waits for its compilers, but may leave its work folder
	// behind. Here that is in l.dir, which close removes.
	cmd.Env = append(append(os.Environ(), "GOTMPDIR="+l.dir), env...)
	cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) }
	cmd.WaitDelay = 10 * time.Second
	var out strings.Builder
	cmd.Stdout, cmd.Stderr = &out, &out
	err := startOn(allCPUs, cmd)
	if err == nil {
		err = cmd.Wait()
	}
	switch {
	case ctx.Err() != nil:
		return context.Cause(ctx)
	case err != nil:
		return fmt.Errorf("%w\n%s", err, out.String())
	}
	return nil
}

// missing returns why a peer cannot run here, or "".
func missing(name string) string {
	switch name {
	case "node":
		out, err := exec.Command("node", "-e", `try{require("ws")}catch{require("/usr/share/nodejs/ws")}`).CombinedOutput()
		switch {
		case errors.Is(err, exec.ErrNotFound):
			return "Node is not installed (Debian: nodejs)"
		case err != nil && len(out) > 0:
			return "Node does not find the package ws (Debian: node-ws)"
		case err != nil:
			return err.Error()
		}
	case "python", "python-broadcast":
		if err := exec.Command(pythonPath, "-c", "import websockets; websockets.broadcast").Run(); err != nil {
			return pythonPath + " has no module websockets with broadcast (Debian: python3-websockets)"
		}
	}
	return ""
}

// runPeer serves one of the peers that are part of this program.
func runPeer(name, certFile, keyFile string, announce bool) error {
	cert, err := tls.LoadX509KeyPair(certFile, keyFile)
	if err != nil {
		return err
	}
	return peers.Run(name, peers.Config{Certificate: cert, Announce: announce}, os.Stdout)
}

// addVersions adds the versions of Node and Python if one of the peers uses them.
func (m *Machine) addVersions(peers []peer) {
	for _, p := range peers {
		switch p.name {
		case "node":
			m.Node = output("node", "-p", `"Node "+process.version+" ws "+(()=>{try{return require("ws/package.json")}catch{return require("/usr/share/nodejs/ws/package.json")}})().version`)
		case "python", "python-broadcast":
			m.Python = output(pythonPath, "-c", `import sys, websockets; print("Python %d.%d.%d websockets %s" % (*sys.version_info[:3], websockets.__version__))`)
		}
	}
}

// output returns the trimmed standard output of a command, or "" if it fails.
func output(name string, args ...string) string {
	out, err := exec.Command(name, args...).Output()
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(out))
}
