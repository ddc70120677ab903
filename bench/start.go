package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"
)

const startText = `bench start measures the time from the start of a process to the first TLS handshake that
verifies. The server has no certificate at the start and gets one from a CA: Let's Encrypt's
Pebble, on the same machine. bench start prints a Markdown table. It uses only loopback,
except for building: the source of Caddy comes from the Go module proxy.

  go run -C bench . start [flags]   run it in the top folder of plusminus; it builds that server

Each start has an empty data folder, a new account and a new CA. With the defaults a run takes
about four minutes, and a minute more when it builds Caddy for the first time.
With -retry-after the table also says whether a server asked the CA again too soon.

Servers:

`

// startServers lists the known servers, in the order of the table.
var startServers = []struct{ name, what string }{
	{"plusminus", "built from -source, with its defaults"},
	{"caddy", "Caddy " + caddyVersion + ", with a Caddyfile of one site that responds with one word"},
	{"autocert", "a minimal server on golang.org/x/crypto/acme/autocert: ./autocert"},
}

const (
	caddyPackage = "github.com/caddyserver/caddy/v2/cmd/caddy"
	caddyVersion = "v2.11.9"
)

const (
	startDomain = "counter.example.com"

	// visitEvery is the pause between two handshakes, and between two attempts to connect.
	visitEvery = 5 * time.Millisecond

	// visitTimeout bounds one handshake. It is longer than the wait of autocert's first visitor.
	// It is shorter than startPatience, so that a handshake without an answer is tried again.
	visitTimeout = 10 * time.Second

	// startPatience bounds one start, not counting the time that the CA tells clients to wait.
	startPatience = 30 * time.Second

	maxRetryAfter = 60 // seconds; bounds the time of a run
)

// starts is one run of bench start.
type starts struct {
	// Immutable after parseStart.
	names      []string
	runs       int
	retryAfter int
	idle       time.Duration
	source     string
	jsonFile   string

	// Set by run.
	env     *environment
	ca      string // the path of the CA's program
	results Results
	size    map[string]int64 // of the binary in bytes, by peer
	log     io.Writer

	// For progress messages.
	began time.Time
	where string // the current step
}

// startPeer is a server that can be measured.
type startPeer struct {
	name string

	// args returns the server's command. It first writes the configuration file, if the server
	// needs one.
	args func(startConfig) ([]string, error)
}

// startConfig is what a server needs to know for one start.
type startConfig struct {
	dir                 string // an empty folder, the server's home
	directory, root     string // the CA's URL, and a PEM file with the root of the CA's own certificate
	httpPort, httpsPort int
}

func startCommand(ctx context.Context, args []string, stdout, stderr io.Writer) error {
	s, err := parseStart(args, stderr)
	if err != nil {
		return err
	}
	lock, alone := lockMachine()
	defer lock.Close()
	if !alone {
		fmt.Fprintln(stderr, "warning: another bench runs on this machine, so the figures of both are wrong")
	}
	if s.env, err = newEnvironment(allCPUs, nil); err != nil {
		return err
	}
	defer s.env.close()
	peers, err := s.prepare(ctx)
	if err != nil {
		return err
	}
	s.results.When, s.results.Machine, s.results.Command = time.Now().UTC(), thisMachine(), append([]string{"start"}, args...)
	err = s.measure(ctx, peers)
	if len(s.results.Samples) > 0 {
		fmt.Fprintln(stdout)
		s.markdown(stdout, peers)
		if s.jsonFile != "" {
			err = errors.Join(err, s.results.writeJSON(s.jsonFile))
		}
	}
	return err
}

func parseStart(args []string, stderr io.Writer) (*starts, error) {
	s := &starts{log: stderr, began: time.Now(), size: make(map[string]int64)}
	var known []string
	for _, p := range startServers {
		known = append(known, p.name)
	}
	fs := flag.NewFlagSet("bench start", flag.ContinueOnError)
	fs.SetOutput(stderr)
	var list string
	fs.StringVar(&list, "peers", strings.Join(known, ","), "`servers` to measure, separated by commas; caddy=/path/to/binary is a Caddy that is built\n"+
		"already, and any other name=/path/to/binary is another build of plusminus")
	fs.IntVar(&s.runs, "runs", 21, "`times` to start each server; the table has the medians")
	fs.IntVar(&s.retryAfter, "retry-after", 0, "`seconds` that the CA tells clients to wait before they ask again, at most 60; with 0\n"+
		"the CA sends no Retry-After, and each client decides")
	fs.DurationVar(&s.idle, "idle", 3*time.Second, "time from a server's first handshake until its RSS is measured; 0 does not measure it")
	fs.StringVar(&s.source, "source", "..", "`folder` with the source of plusminus")
	fs.StringVar(&s.jsonFile, "o", "", "write every sample to this JSON `file`")
	fs.Usage = func() {
		fmt.Fprint(stderr, startText)
		for _, p := range startServers {
			fmt.Fprintf(stderr, "  %-9s  %s\n", p.name, p.what)
		}
		fmt.Fprint(stderr, "\nFlags:\n\n")
		fs.PrintDefaults()
	}
	if err := fs.Parse(args); err != nil {
		return nil, usage(err)
	}
	var errs []error
	if fs.NArg() > 0 {
		errs = append(errs, fmt.Errorf("unexpected argument %q: only flags may follow", fs.Arg(0)))
	}
	var labels []string
	for _, name := range splitList(list) {
		label, binary, isBuild := strings.Cut(name, "=")
		switch {
		case label == "":
			errs = append(errs, fmt.Errorf("-peers: %q has no name", name))
		case slices.Contains(labels, label):
			errs = append(errs, fmt.Errorf("-peers: %q appears twice", label))
		case isBuild:
			path, err := exec.LookPath(binary)
			if err == nil {
				path, err = filepath.Abs(path) // the server starts in another folder
			}
			if err != nil {
				errs = append(errs, fmt.Errorf("-peers: %w", err))
			}
			name = label + "=" + path
		case !slices.Contains(known, name):
			errs = append(errs, fmt.Errorf("-peers: unknown server %q; known are %s", name, strings.Join(known, ", ")))
		}
		labels, s.names = append(labels, label), append(s.names, name)
	}
	if len(s.names) == 0 {
		errs = append(errs, errors.New("-peers: name at least one server"))
	}
	if s.runs < 1 {
		errs = append(errs, fmt.Errorf("-runs: %d is below 1", s.runs))
	}
	if s.retryAfter < 0 || s.retryAfter > maxRetryAfter {
		errs = append(errs, fmt.Errorf("-retry-after: %d is not from 0 to %d seconds", s.retryAfter, maxRetryAfter))
	}
	if s.idle < 0 {
		errs = append(errs, fmt.Errorf("-idle: %v is below 0", s.idle))
	}
	if len(errs) > 0 {
		return nil, usageError{errors.Join(errs...)}
	}
	return s, nil
}

// prepare builds the CA and the servers. It leaves out a server that cannot be built.
func (s *starts) prepare(ctx context.Context) ([]startPeer, error) {
	s.say("building the CA")
	s.ca = filepath.Join(s.env.dir, "ca")
	if err := s.buildHere(ctx, "ca"); err != nil {
		return nil, fmt.Errorf("building the CA: %w", err)
	}
	var list []startPeer
	for _, name := range s.names {
		label, binary, isBuild := strings.Cut(name, "=")
		if !isBuild {
			s.say("building %s", label)
			binary = filepath.Join(s.env.dir, label)
			if err := s.build(ctx, label); ctx.Err() != nil {
				return nil, context.Cause(ctx)
			} else if err != nil {
				s.results.Left = append(s.results.Left, label+", because it cannot be built: "+brief(err))
				s.say("leaving out %s, because it cannot be built: %v", label, err)
				continue
			}
		}
		info, err := os.Stat(binary)
		if err != nil {
			return nil, err
		}
		s.size[label] = info.Size()
		list = append(list, startPeer{label, startArgs(label, binary)})
	}
	if len(list) == 0 {
		return nil, errors.New("no server is left to measure")
	}
	return list, nil
}

// build builds one of the known servers as its users would, into the folder of the environment.
func (s *starts) build(ctx context.Context, name string) error {
	switch name {
	case "plusminus":
		_, err := s.env.buildPlusminus(ctx, s.source)
		return err
	case "caddy":
		// This uses the versions of Caddy's own go.mod, and does not change ours.
		return s.env.goCommand(ctx, []string{"GOBIN=" + s.env.dir}, "install", caddyPackage+"@"+caddyVersion)
	default:
		return s.buildHere(ctx, name)
	}
}

// buildHere builds one of the programs of this module. go run -C has made its folder the
// working directory.
func (s *starts) buildHere(ctx context.Context, name string) error {
	return s.env.goCommand(ctx, nil, "build", "-o", filepath.Join(s.env.dir, name), "./"+name)
}

// startArgs returns the function args of the startPeer with this name.
func startArgs(name, binary string) func(startConfig) ([]string, error) {
	address := func(port int) string { return fmt.Sprintf("127.0.0.1:%d", port) }
	switch name {
	case "caddy":
		return func(at startConfig) ([]string, error) {
			file := filepath.Join(at.dir, "Caddyfile")
			return []string{binary, "run", "--config", file}, os.WriteFile(file, []byte(caddyfile(at)), 0o600)
		}
	case "autocert":
		return func(at startConfig) ([]string, error) {
			return []string{
				binary, "-domain", startDomain, "-https", address(at.httpsPort),
				"-directory", at.directory, "-root", at.root, "-cache", filepath.Join(at.dir, "data"),
			}, nil
		}
	default:
		return func(at startConfig) ([]string, error) {
			return []string{
				binary, "-domain", startDomain, "-https", address(at.httpsPort), "-http", address(at.httpPort), "-admin", "off",
				"-acme-directory", at.directory, "-acme-ca-root", at.root, "-data", filepath.Join(at.dir, "data"),
			}, nil
		}
	}
}

// caddyfile returns a Caddyfile that sets addresses, folders and the CA, and leaves the rest at
// Caddy's defaults.
func caddyfile(at startConfig) string {
	return fmt.Sprintf(`{
	admin off
	skip_install_trust
	default_bind 127.0.0.1
	http_port %d
	https_port %d
	acme_ca %s
	acme_ca_root %q
	storage file_system %q
}
%s {
	respond "hello"
}
`, at.httpPort, at.httpsPort, at.directory, at.root, filepath.Join(at.dir, "data"), startDomain)
}

// measure starts all servers in each run. Each run begins with another server, so that no
// server always gets the machine's better moments.
func (s *starts) measure(ctx context.Context, peers []startPeer) error {
	for r := range s.runs {
		for i := range peers {
			p := peers[(i+r)%len(peers)]
			s.where = fmt.Sprintf(" %d/%d run %d %s:", r*len(peers)+i+1, s.runs*len(peers), r+1, p.name)
			v, err := s.start(ctx, p)
			if ctx.Err() != nil {
				return context.Cause(ctx)
			}
			if err != nil {
				// A failed start is a result, too.
				s.say("failed: %v", err)
				s.results.Left = append(s.results.Left, fmt.Sprintf("%s, run %d: %s", p.name, r+1, brief(err)))
				continue
			}
			s.results.Samples = append(s.results.Samples, Sample{Scenario: "start", Peer: p.name, Run: r + 1, Values: v})
			said := fmt.Sprintf("%.3f s, %.0f requests to the CA", v["start_s"], v["requests"])
			if memory, ok := v["rss_mb"]; ok {
				said += fmt.Sprintf(", RSS %.1f MB", memory)
			}
			if s.retryAfter > 0 {
				said += fmt.Sprintf(", asked again after %.2f s or more, %.0f of %.0f times too soon", v["wait_s"], v["too_soon"], v["wishes"])
			}
			s.say("%s", said)
		}
	}
	return nil
}

// start starts a server with an empty folder and a new CA, and measures the time to its first handshake.
func (s *starts) start(ctx context.Context, p startPeer) (values, error) {
	ctx, cancel := context.WithTimeout(ctx, startPatience+visitTimeout+3*time.Duration(s.retryAfter)*time.Second+s.idle)
	defer cancel()
	dir, err := os.MkdirTemp(s.env.dir, p.name+"-")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	ports, err := freePorts(2)
	if err != nil {
		return nil, err
	}
	issuer, err := s.startCA(ports[0], ports[1])
	if err != nil {
		return nil, err
	}
	defer issuer.stop()

	args, err := p.args(startConfig{dir, issuer.directory, s.env.cert, ports[0], ports[1]})
	if err != nil {
		return nil, err
	}
	cmd := exec.Command(args[0], args[1:]...)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "HOME="+dir, "XDG_DATA_HOME="+dir, "XDG_CONFIG_HOME="+dir)
	began := time.Now()
	srv, _, err := launch(p.name, allCPUs, cmd)
	if err != nil {
		return nil, err
	}
	defer srv.stop() // before its folder is removed
	if err := firstVisit(ctx, srv, ports[1], issuer.roots); err != nil {
		return nil, err
	}
	took := time.Since(began)
	v, err := issuer.asked()
	if err != nil {
		return nil, err
	}
	v["start_s"] = took.Seconds()
	if s.idle > 0 {
		if err := sleep(ctx, s.idle); err != nil {
			return nil, err
		}
		memory, err := rss(srv.pid)
		if err != nil {
			return nil, errors.Join(err, srv.running())
		}
		v["rss_mb"] = float64(memory) / (1 << 20)
	}
	return v, nil
}

// authority is a CA process.
type authority struct {
	// Immutable after startCA.
	directory string         // URL
	roots     *x509.CertPool // trusts what the CA issues

	cmd    *exec.Cmd
	in     io.Writer     // the CA answers each line with its counts
	answer *json.Decoder // reads the CA's output
}

// startCA starts a CA that validates challenges on these ports.
func (s *starts) startCA(httpPort, tlsPort int) (*authority, error) {
	cmd := exec.Command(s.ca, "-cert", s.env.cert, "-key", s.env.key, "-http-port", fmt.Sprint(httpPort),
		"-tls-port", fmt.Sprint(tlsPort), "-retry-after", fmt.Sprint(s.retryAfter))
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL, Setpgid: true}
	cmd.Stderr = s.log
	in, err := cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := startOn(allCPUs, cmd); err != nil {
		return nil, fmt.Errorf("starting the CA: %w", err)
	}
	c := &authority{roots: x509.NewCertPool(), cmd: cmd, in: in, answer: json.NewDecoder(out)}
	var hello struct{ Directory, Root string }
	if err := c.answer.Decode(&hello); err != nil {
		c.stop()
		return nil, fmt.Errorf("starting the CA: %w", err)
	}
	c.directory = hello.Directory
	c.roots.AppendCertsFromPEM([]byte(hello.Root))
	return c, nil
}

// asked returns the CA's counts of requests so far.
func (c *authority) asked() (values, error) {
	var a struct {
		Requests, Orders, Wishes, TooSoon float64
		Wait                              time.Duration
	}
	_, err := io.WriteString(c.in, "\n")
	if err == nil {
		err = c.answer.Decode(&a)
	}
	if err != nil {
		return nil, fmt.Errorf("asking the CA: %w", err)
	}
	return values{
		"requests": a.Requests, "orders": a.Orders, "wishes": a.Wishes, "too_soon": a.TooSoon, "wait_s": a.Wait.Seconds(),
	}, nil
}

func (c *authority) stop() {
	c.cmd.Process.Kill()
	c.cmd.Wait()
}

// firstVisit repeats TLS handshakes with the server until one succeeds and verifies.
func firstVisit(ctx context.Context, s *server, port int, roots *x509.CertPool) error {
	visitor := &tls.Dialer{Config: &tls.Config{ServerName: startDomain, RootCAs: roots}}
	for {
		visit, cancel := context.WithTimeout(ctx, visitTimeout)
		conn, err := visitor.DialContext(visit, "tcp", fmt.Sprintf("127.0.0.1:%d", port))
		cancel()
		if err == nil {
			return conn.Close()
		}
		if gone := s.running(); gone != nil {
			return gone
		}
		if sleep(ctx, visitEvery) != nil {
			return fmt.Errorf("no handshake verified in time; the error of the last one: %w\n%s", err, s.output())
		}
	}
}

// freePorts returns n different TCP ports of 127.0.0.1 on which no program listens.
func freePorts(n int) ([]int, error) {
	var ports []int
	for range n {
		ln, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			return nil, err
		}
		defer ln.Close() // at the end, so that the ports differ
		ports = append(ports, ln.Addr().(*net.TCPAddr).Port)
	}
	return ports, nil
}

// markdown writes the table and an explanation.
func (s *starts) markdown(w io.Writer, peers []startPeer) {
	fmt.Fprintf(w, "Measured on %s: %s.\n", s.results.When.Format(time.DateOnly), s.results.Machine)
	for _, left := range s.results.Left {
		fmt.Fprintf(w, "Left out: %s.\n", left)
	}
	fmt.Fprint(w, "\n### From process start to the first handshake that verifies\n\n")
	s.table(w, peers)
	if s.retryAfter == 0 {
		fmt.Fprint(w, `
Much of the difference is the time that a client waits before it asks the CA again. Here the CA is done
after a few milliseconds. autocert asks again after 1 s, and is the fastest if the CA is done before the
first question. Caddy asks again after 250 ms. plusminus asks again after 20 ms at first, and then doubles
the wait, up to 1 s. With a CA that takes seconds, as public CAs may, the ratios are smaller.
`)
		return
	}
	fmt.Fprintf(w, `
The CA sent Retry-After: %d s with each answer about an unfinished order or authorization, in seconds or as
a time. A time has whole seconds, so it can be up to 1 s shorter. "Too soon" counts the requests that came
before that time.
`, s.retryAfter)
}

func (s *starts) table(w io.Writer, peers []startPeer) {
	row := func(cells ...string) { fmt.Fprintf(w, "| %s |\n", strings.Join(cells, " | ")) }
	head := []string{"server", "runs", "median, s", "min–max, s", "× plusminus", "requests to the CA", "binary, MB", "RSS, MB"}
	if s.retryAfter > 0 {
		head = append(head, "too soon", "shortest wait, s")
	}
	rule := slices.Repeat([]string{"---:"}, len(head))
	rule[0] = "---"
	row(head...)
	row(rule...)
	for _, p := range peers {
		column := func(key string) []float64 {
			var xs []float64
			for _, x := range s.results.of("start", p.name, size{}, key) {
				xs = append(xs, x)
			}
			return xs
		}
		times := column("start_s")
		if len(times) == 0 {
			continue // s.results.Left says why
		}
		cells := []string{
			p.name, fmt.Sprint(len(times)), fmt.Sprintf("%.2f", median(times)),
			fmt.Sprintf("%.2f–%.2f", slices.Min(times), slices.Max(times)),
			"–", fmt.Sprintf("%.0f", median(column("requests"))),
			fmt.Sprintf("%.1f", float64(s.size[p.name])/(1<<20)), "–",
		}
		if x, ok := s.results.ratio("plusminus", "start", p.name, size{}, "start_s"); ok {
			cells[4] = fmt.Sprintf("%.2f", x)
		}
		if memory := column("rss_mb"); len(memory) > 0 {
			cells[7] = fmt.Sprintf("%.1f", median(memory))
		}
		if s.retryAfter > 0 {
			wishes, tooSoon, wait := 0.0, 0.0, column("wait_s")
			for _, x := range column("wishes") {
				wishes += x
			}
			for _, x := range column("too_soon") {
				tooSoon += x
			}
			cells = append(cells, fmt.Sprintf("%.0f of %.0f", tooSoon, wishes), fmt.Sprintf("%.2f", slices.Min(wait)))
		}
		row(cells...)
	}
}

// say prints progress.
func (s *starts) say(format string, args ...any) {
	fmt.Fprintf(s.log, "%6.1fs%s %s\n", time.Since(s.began).Seconds(), s.where, fmt.Sprintf(format, args...))
}
