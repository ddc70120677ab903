// Command bench compares TLS WebSocket servers on a small machine. It starts plusminus and
// its peers one after another on one core, loads each of them from another core, and prints
// a table. README.md describes what is measured, and how.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	err := run(ctx, os.Args[1:], os.Stdout, os.Stderr)
	var usage usageError
	switch {
	case err == nil, errors.Is(err, flag.ErrHelp):
	case errors.As(err, &usage):
		fmt.Fprintln(os.Stderr, err)
		os.Exit(2)
	default:
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

// usageError is an error in the command line.
type usageError struct{ error }

const usageText = `bench measures TLS WebSocket servers on this machine. Each server runs on one core, and the
load on another core. bench prints a Markdown table of medians, and of ratios to the floor,
which is a bare crypto/tls loop. It uses only loopback. It needs Linux, Go and two cores.

  go run -C bench . [flags]     run it in the top folder of plusminus; it builds that server
  bench start [flags]           measure the time to the first certificate; see bench start -h
  bench store [flags]           measure how many replicas one Redis server can serve; see bench store -h
  bench peer [flags] NAME       serve one of the peers: floor, gorilla, coder, gws

With the defaults a run takes more than an hour. A run with these flags takes a few minutes:
-runs 1 -peers floor,plusminus,gorilla -clients 100,1000 -idle 2000 -arrivals 2000

Scenarios:

`

// bench is one run of the scenarios.
type bench struct {
	// Immutable after parse.
	peers     []string
	scenarios []scenario
	clients   []int
	arrivals  []int
	watchers  int
	idle      int
	runs      int
	flood     time.Duration
	settle    time.Duration
	after     bool
	soakFor   time.Duration
	serverCPU int
	loadCPU   int
	source    string
	extra     []string
	jsonFile  string
	plotFile  string

	// Set by run.
	env     *environment
	results Results
	log     io.Writer

	// The current step: one run of one scenario with one server.
	began   time.Time
	current scenario
	peer    string
	runNo   int
	step    int
	steps   int
}

func run(ctx context.Context, args []string, stdout, stderr io.Writer) error {
	if len(args) > 0 && args[0] == "peer" {
		return peerCommand(args[1:], stderr)
	}
	if len(args) > 0 && args[0] == "start" {
		return startCommand(ctx, args[1:], stdout, stderr)
	}
	if len(args) > 0 && args[0] == "store" {
		return storeCommand(ctx, args[1:], stdout, stderr)
	}
	b, err := parse(args, stderr)
	if err != nil {
		return err
	}
	if err := checkFiles(max(b.clients[len(b.clients)-1], b.idle, slices.Max(b.arrivals))); err != nil {
		return err
	}
	if err := pinSelf(b.loadCPU, fmt.Sprintf("-server-cpu=%d", b.serverCPU), fmt.Sprintf("-load-cpu=%d", b.loadCPU)); err != nil {
		return err
	}
	lock, alone := lockMachine()
	defer lock.Close()
	if !alone {
		fmt.Fprintln(stderr, "warning: another bench runs on this machine, so the figures of both are wrong")
	}
	debug.SetGCPercent(400) // fewer collections; the load's memory is not measured
	if b.env, err = newEnvironment(b.serverCPU, b.extra); err != nil {
		return err
	}
	defer b.env.close()
	peers, err := b.preparePeers(ctx)
	if err != nil {
		return err
	}
	b.results.When, b.results.Machine, b.results.Command = time.Now().UTC(), thisMachine(), args
	b.results.Machine.addVersions(peers)
	err = b.measure(ctx, peers)
	if len(b.results.Samples) > 0 {
		fmt.Fprintln(stdout)
		b.results.markdown(stdout)
		if b.jsonFile != "" {
			err = errors.Join(err, b.results.writeJSON(b.jsonFile))
		}
		if b.plotFile != "" {
			err = errors.Join(err, b.results.writePlot(b.plotFile))
		}
	}
	return err
}

func peerCommand(args []string, stderr io.Writer) error {
	fs := flag.NewFlagSet("bench peer", flag.ContinueOnError)
	fs.SetOutput(stderr)
	cert := fs.String("cert", "", "PEM `file` with the certificate")
	key := fs.String("key", "", "PEM `file` with its key")
	announce := fs.Bool("announce", true, "send the number of users to all clients when a client joins or leaves")
	if err := fs.Parse(args); err != nil {
		return usage(err)
	}
	if fs.NArg() != 1 {
		return usageError{errors.New("bench peer: want exactly one name")}
	}
	return runPeer(fs.Arg(0), *cert, *key, *announce)
}

// usage makes a usageError of an error of flag parsing. It returns flag.ErrHelp as it is.
func usage(err error) error {
	if errors.Is(err, flag.ErrHelp) {
		return err
	}
	return usageError{err}
}

// defaultPeers lists the default of -peers, in the order of the table.
var defaultPeers = []string{"floor", "plusminus", "gorilla", "coder", "gws", "node", "python-broadcast", "python"}

// fileStorePeer is plusminus with the counter in a file. It runs only if -peers names it.
const fileStorePeer = "plusminus-file"

// peerRank returns the position of a peer in the table. Other builds of plusminus follow plusminus.
func peerRank(name string) int {
	if i := slices.Index(defaultPeers, name); i >= 0 {
		return 2 * i
	}
	return 2*slices.Index(defaultPeers, "plusminus") + 1
}

func parse(args []string, stderr io.Writer) (*bench, error) {
	b := &bench{log: stderr, began: time.Now()}
	firstCPU, lastCPU := ownCPUs()
	fs := flag.NewFlagSet("bench", flag.ContinueOnError)
	fs.SetOutput(stderr)
	var names []string
	for _, sc := range scenarios {
		if !sc.optIn {
			names = append(names, sc.name)
		}
	}
	var peerList, scenarioList, clientList, arrivalList, extra string
	fs.StringVar(&peerList, "peers", strings.Join(defaultPeers, ","), "`servers` to measure, separated by commas; name=/path/to/binary is another build\nof plusminus, and plusminus-file is plusminus with -store file, in TMPDIR")
	fs.StringVar(&b.results.Base, "base", "floor", "`server` that the ratios compare with")
	fs.StringVar(&scenarioList, "scenarios", strings.Join(names, ","), "`scenarios` to run, separated by commas")
	fs.StringVar(&clientList, "clients", "100,1000,10000", "`numbers` of clients in fanout and in counters, and of counters in posts, separated by commas")
	fs.StringVar(&arrivalList, "arrivals", "2000,10000", "`numbers` of clients in arrival, separated by commas; peers that announce each arrival to all\nclients get at most 2000")
	fs.IntVar(&b.watchers, "watchers", 1000, "`number` of clients that only watch in merging")
	fs.IntVar(&b.idle, "idle", 10000, "`number` of clients in memory")
	fs.IntVar(&b.runs, "runs", 3, "`times` to measure everything; the table has the medians")
	fs.DurationVar(&b.flood, "flood", 5*time.Second, "how long clients send actions in merging, counters and posts")
	fs.DurationVar(&b.settle, "settle", 15*time.Second, "how long clients are idle before memory measures")
	fs.BoolVar(&b.after, "after", false, "in memory, measure again a minute after all clients have left")
	fs.DurationVar(&b.soakFor, "soak", 10*time.Minute, "how long soak lasts for each server")
	fs.IntVar(&b.serverCPU, "server-cpu", firstCPU, "`core` of the server; -1 is any core")
	fs.IntVar(&b.loadCPU, "load-cpu", lastCPU, "`core` of the load; -1 is any core")
	fs.StringVar(&b.source, "source", "..", "`folder` with the source of plusminus")
	fs.StringVar(&extra, "plusminus", "", "more `flags` for plusminus, separated by spaces")
	fs.StringVar(&b.jsonFile, "o", "", "write every sample to this JSON `file`")
	fs.StringVar(&b.plotFile, "plot", "", "write a plot of the costs for each number of clients to this SVG `file`")
	fs.Usage = func() {
		fmt.Fprint(stderr, usageText)
		for _, sc := range scenarios {
			fmt.Fprintf(stderr, "  %-8s  %s\n", sc.name, sc.title)
		}
		fmt.Fprint(stderr, "\nFlags:\n\n")
		fs.PrintDefaults()
	}
	if err := fs.Parse(args); err != nil {
		return nil, usage(err)
	}
	var errs []error
	if fs.NArg() > 0 {
		errs = append(errs, fmt.Errorf("unexpected argument %q", fs.Arg(0)))
	}
	b.peers, b.extra = splitList(peerList), strings.Fields(extra)
	for _, name := range splitList(scenarioList) {
		i := slices.IndexFunc(scenarios, func(sc scenario) bool { return sc.name == name })
		if i < 0 {
			errs = append(errs, fmt.Errorf("-scenarios: unknown scenario %q", name))
			continue
		}
		b.scenarios = append(b.scenarios, scenarios[i])
	}
	var err error
	if b.clients, err = splitNumbers(clientList); err != nil {
		errs = append(errs, fmt.Errorf("-clients: %w", err))
	}
	if b.arrivals, err = splitNumbers(arrivalList); err != nil {
		errs = append(errs, fmt.Errorf("-arrivals: %w", err))
	}
	if b.runs < 1 || b.watchers < 1 || b.idle < 1 {
		errs = append(errs, errors.New("-runs, -watchers and -idle must be at least 1"))
	}
	if len(errs) > 0 {
		return nil, usageError{errors.Join(errs...)}
	}
	if b.serverCPU == b.loadCPU {
		fmt.Fprintln(stderr, "warning: server and load share a core, so the times mean little")
	}
	return b, nil
}

func splitList(s string) []string {
	return strings.FieldsFunc(s, func(r rune) bool { return r == ',' || r == ' ' })
}

// splitNumbers returns the numbers in ascending order.
func splitNumbers(s string) ([]int, error) {
	var list []int
	for _, f := range splitList(s) {
		n, err := strconv.Atoi(f)
		if err != nil || n < 2 {
			return nil, fmt.Errorf("%q is not a number of clients; want 2 or more", f)
		}
		list = append(list, n)
	}
	if len(list) == 0 {
		return nil, errors.New("no number of clients")
	}
	slices.Sort(list)
	return list, nil
}

// checkFiles raises the soft file limit to the hard limit, and returns an error if n
// connections need more files.
func checkFiles(n int) error {
	var limit syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &limit); err != nil {
		return err
	}
	if need := uint64(n + 100); limit.Max < need {
		return fmt.Errorf("%d clients need %d open files, but the limit is %d (ulimit -Hn)", n, need, limit.Max)
	}
	// Go programs raise their own soft limit, other programs do not. Child processes inherit a
	// limit that is set here, but not one that the Go runtime raised by itself.
	limit.Cur = limit.Max
	return syscall.Setrlimit(syscall.RLIMIT_NOFILE, &limit)
}

// lockMachine reports whether no other bench is running on this machine. The returned file
// holds the lock until it is closed.
func lockMachine() (lock *os.File, alone bool) {
	lock, err := os.OpenFile(filepath.Join(os.TempDir(), "plusminus-bench.lock"), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, true // another user's file: unknown, and the result only decides a warning
	}
	return lock, syscall.Flock(int(lock.Fd()), syscall.LOCK_EX|syscall.LOCK_NB) == nil
}

// preparePeers builds plusminus if -peers names it, and leaves out peers that are not installed.
func (b *bench) preparePeers(ctx context.Context) ([]peer, error) {
	var list []peer
	built := "" // the binary of plusminus, once it is built
	for _, name := range b.peers {
		known := builtin()
		i := slices.IndexFunc(known, func(p peer) bool { return p.name == name })
		label, binary, isBuild := strings.Cut(name, "=")
		switch {
		case name == "plusminus", name == fileStorePeer:
			if built == "" {
				b.say("building plusminus")
				var err error
				if built, err = b.env.buildPlusminus(ctx, b.source); err != nil {
					return nil, err
				}
			}
			store := "memory"
			if name == fileStorePeer {
				store = "file"
			}
			list = append(list, plusminusPeer(name, built, store))
		case isBuild:
			binary, err := exec.LookPath(binary)
			if err != nil {
				return nil, usageError{fmt.Errorf("-peers: %w", err)}
			}
			list = append(list, plusminusPeer(label, binary, "memory"))
		case i < 0:
			return nil, usageError{fmt.Errorf("-peers: unknown server %q", name)}
		default:
			if why := missing(name); why != "" {
				b.results.Left = append(b.results.Left, name+", because "+why)
				b.say("leaving out %s: %s", name, why)
				continue
			}
			list = append(list, known[i])
		}
	}
	return list, nil
}

// stepTimeout bounds one run of one scenario with one server.
const stepTimeout = 10 * time.Minute

// measure runs all scenarios. Each run starts with another server, so that no server always
// gets the machine's better moments.
func (b *bench) measure(ctx context.Context, peers []peer) error {
	b.steps = len(b.scenarios) * b.runs * len(peers)
	for _, sc := range b.scenarios {
		for r := range b.runs {
			for i := range peers {
				p := peers[(i+r)%len(peers)]
				b.current, b.peer, b.runNo = sc, p.name, r+1
				b.step++
				timeout := stepTimeout
				if sc.optIn {
					timeout += b.soakFor
				}
				stepCtx, cancel := context.WithTimeout(ctx, timeout)
				err := sc.run(stepCtx, b, p)
				cancel()
				if ctx.Err() != nil {
					return context.Cause(ctx)
				}
				if err != nil {
					// A scenario that a server cannot do is a result, too.
					b.say("failed: %v", err)
					b.results.Left = append(b.results.Left, fmt.Sprintf("%s, run %d of %s: %v", p.name, b.runNo, sc.name, brief(err)))
				}
				runtime.GC()
			}
		}
	}
	return nil
}

// brief returns the first and the last line of an error, which may hold a stack trace.
func brief(err error) string {
	first, rest, _ := strings.Cut(strings.TrimSpace(err.Error()), "\n")
	if rest == "" {
		return first
	}
	return first + " … " + rest[strings.LastIndexByte(rest, '\n')+1:]
}

// record adds a sample to the results and prints it.
func (b *bench) record(clients int, v values, note string) {
	b.recordCounters(clients, 0, v, note)
}

// recordCounters is record for a scenario that varies the number of counters.
func (b *bench) recordCounters(clients, counters int, v values, note string) {
	b.results.Samples = append(b.results.Samples, Sample{b.current.name, b.peer, size{clients, counters}, b.runNo, v, note})
	var parts []string
	for _, c := range b.current.columns {
		if x, ok := v[c.key]; ok {
			parts = append(parts, fmt.Sprintf("%s "+c.format, c.key, x))
		}
	}
	if note != "" {
		parts = append(parts, note)
	}
	of := ""
	if counters > 0 {
		of = fmt.Sprintf(" of %d counters", counters)
	}
	b.say("%d clients%s: %s", clients, of, strings.Join(parts, ", "))
}

// say prints progress.
func (b *bench) say(format string, args ...any) {
	where := ""
	if b.step > 0 {
		where = fmt.Sprintf(" %d/%d %s run %d %s:", b.step, b.steps, b.current.name, b.runNo, b.peer)
	}
	fmt.Fprintf(b.log, "%6.1fs%s %s\n", time.Since(b.began).Seconds(), where, fmt.Sprintf(format, args...))
}
