package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	redis "github.com/valkey-io/valkey-go"

	"plusminus/hub/valkey"
)

const storeText = `bench store measures how many replicas of plusminus one Redis server can serve. It starts
redis-server on one core. On another core it runs many stores, with the same client and
script as replicas, but without WebSockets. It prints a Markdown table.

  go run -C bench . store [flags]

There are three loads. idle: replicas send only their heartbeats. paced: clients of each
replica act all the time, so each replica sends a batch as often as its pace allows.
flat out: the same without the pace, which shows the server's limit.

`

// storeBench is one run of bench store.
type storeBench struct {
	replicas  []int
	seconds   time.Duration
	fsync     string
	serverCPU int
	loadCPU   int

	dir    string
	cmd    *exec.Cmd
	addr   string
	client redis.Client
}

// storeLoad is a kind of load on the server.
type storeLoad struct {
	name   string
	busy   bool // replicas send batches
	pacing bool // with their pace between two batches
}

var storeLoads = []storeLoad{{"idle", false, true}, {"paced", true, true}, {"flat out", true, false}}

// storeRow is one row of the table: a number of replicas under one load.
type storeRow struct {
	calls      float64 // script calls per second, heartbeats included
	batches    float64 // per second
	p50, p99   time.Duration
	in, out    float64 // bytes per second, counted by the server
	server     float64 // cores that the server uses
	load       float64 // cores that this process uses
	deliveries float64 // messages to replicas per second
	memory     int64   // the server's RSS in bytes
}

func storeCommand(ctx context.Context, args []string, stdout, stderr io.Writer) error {
	first, last := ownCPUs()
	b := storeBench{}
	fs := flag.NewFlagSet("bench store", flag.ContinueOnError)
	fs.SetOutput(stderr)
	fs.Usage = func() { fmt.Fprint(stderr, storeText); fs.PrintDefaults() }
	replicas := fs.String("replicas", "1,10,100,300", "`numbers` of replicas, separated by commas")
	fs.DurationVar(&b.seconds, "for", 5*time.Second, "how long each load is measured")
	fs.StringVar(&b.fsync, "appendfsync", "everysec", "the server's `setting` of appendfsync: always, everysec or no; off is no append-only file")
	fs.IntVar(&b.serverCPU, "server-cpu", first, "`core` of the server")
	fs.IntVar(&b.loadCPU, "load-cpu", last, "`core` of the replicas")
	if err := fs.Parse(args); err != nil {
		if errors.Is(err, flag.ErrHelp) {
			return err
		}
		return usageError{err}
	}
	for text := range strings.SplitSeq(*replicas, ",") {
		n, err := strconv.Atoi(text)
		if err != nil || n < 1 {
			return usageError{fmt.Errorf("-replicas: %q is not a number of replicas", text)}
		}
		b.replicas = append(b.replicas, n)
	}
	if !slices.Contains([]string{"always", "everysec", "no", "off"}, b.fsync) {
		return usageError{fmt.Errorf("-appendfsync: %q is not always, everysec, no or off", b.fsync)}
	}
	if b.seconds <= 0 {
		return usageError{fmt.Errorf("-for: %v is not above 0", b.seconds)}
	}
	if _, err := exec.LookPath("redis-server"); err != nil {
		return errors.New("redis-server is missing (Debian: apt install redis-server)")
	}
	if err := pinSelf(b.loadCPU, fmt.Sprintf("-server-cpu=%d", b.serverCPU), fmt.Sprintf("-load-cpu=%d", b.loadCPU)); err != nil {
		return err
	}
	lock, alone := lockMachine()
	defer lock.Close()
	if !alone {
		fmt.Fprintln(stderr, "warning: another bench runs on this machine, so the figures of both are wrong")
	}
	m := thisMachine()
	fmt.Fprintf(stdout, "%s; appendfsync %s\n\n", m, b.fsync)
	fmt.Fprintln(stdout, "| replicas | load | batches/s | script calls/s | p50, ms | p99, ms | messages/s | server in, KB/s | server out, KB/s | server's core, % | load's core, % | server RSS, MB |")
	fmt.Fprintln(stdout, "|---:|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|")
	for _, n := range b.replicas {
		for _, load := range storeLoads {
			r, err := b.measure(ctx, n, load)
			if err != nil {
				return fmt.Errorf("%d replicas, %s: %w", n, load.name, err)
			}
			ms := func(d time.Duration) string {
				if d == 0 {
					return ""
				}
				return fmt.Sprintf("%.2f", float64(d)/1e6)
			}
			fmt.Fprintf(stdout, "| %d | %s | %.0f | %.0f | %s | %s | %.0f | %.0f | %.0f | %.0f | %.0f | %.0f |\n", n, load.name, r.batches, r.calls,
				ms(r.p50), ms(r.p99), r.deliveries, r.in/1000, r.out/1000, 100*r.server, 100*r.load, float64(r.memory)/(1<<20))
		}
	}
	return nil
}

// start starts redis-server without data, and connects to it.
func (b *storeBench) start(ctx context.Context) error {
	var err error
	if b.dir, err = os.MkdirTemp("", "bench-store-"); err != nil {
		return err
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	b.addr = ln.Addr().String()
	ln.Close()
	_, port, _ := net.SplitHostPort(b.addr)
	args := []string{"--port", port, "--bind", "127.0.0.1", "--dir", b.dir, "--save", "", "--appendonly", "no"}
	if b.fsync != "off" {
		args = append(args[:len(args)-1], "yes", "--appendfsync", b.fsync)
	}
	b.cmd = exec.Command("redis-server", args...)
	b.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL, Setpgid: true}
	if err := startOn(b.serverCPU, b.cmd); err != nil {
		return err
	}
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		b.client, err = redis.NewClient(redis.ClientOption{InitAddress: []string{b.addr}, ForceSingleClient: true, DisableCache: true})
		if err == nil {
			return nil
		}
		if b.client != nil {
			b.client.Close()
			b.client = nil
		}
		if time.Now().After(deadline) || ctx.Err() != nil {
			return err
		}
	}
}

// stop ends the server and removes its data.
func (b *storeBench) stop() {
	if b.client != nil {
		b.client.Close()
		b.client = nil
	}
	if b.cmd != nil && b.cmd.Process != nil {
		b.cmd.Process.Kill()
		b.cmd.Wait()
		b.cmd = nil
	}
	os.RemoveAll(b.dir)
}

// info returns the numbers in the server's INFO.
func (b *storeBench) info(ctx context.Context) (map[string]float64, error) {
	text, err := b.client.Do(ctx, b.client.B().Info().Section("everything").Build()).ToString()
	if err != nil {
		return nil, err
	}
	return parseInfo(text), nil
}

// parseInfo reads the lines name:number and cmdstat_name:calls=number,… of INFO.
func parseInfo(text string) map[string]float64 {
	info := map[string]float64{}
	for line := range strings.Lines(text) {
		name, value, ok := strings.Cut(strings.TrimSpace(line), ":")
		if !ok {
			continue
		}
		value, _, _ = strings.Cut(strings.TrimPrefix(value, "calls="), ",")
		if n, err := strconv.ParseFloat(value, 64); err == nil {
			info[name] = n
		}
	}
	return info
}

// measure starts a server and n stores, and measures one row. It returns an error if the server's
// value is not the sum of all batches.
func (b *storeBench) measure(ctx context.Context, n int, load storeLoad) (storeRow, error) {
	defer b.stop()
	if err := b.start(ctx); err != nil {
		return storeRow{}, err
	}
	stores := make([]*valkey.Store, n)
	for i := range stores {
		stores[i] = valkey.New(valkey.Config{Address: b.addr})
		defer stores[i].Close()
	}
	for i, s := range stores {
		if _, err := s.Load(ctx); err != nil {
			return storeRow{}, fmt.Errorf("replica %d: %w", i, err)
		}
		s.Announce("", 1000)
	}
	time.Sleep(5 * time.Second) // all stores learn the number of replicas, which sets their pace

	var (
		running   sync.WaitGroup
		measuring atomic.Bool
		mu        sync.Mutex
		took      []time.Duration // Guarded by mu: of each batch
		failed    error           // Guarded by mu.
		applied   int64           // Guarded by mu: the sum of all batches
	)
	work, end := context.WithCancel(ctx)
	for _, s := range stores {
		running.Go(func() { // receives news, as the hub does
			for {
				select {
				case <-s.News():
				case <-work.Done():
					return
				}
			}
		})
		if !load.busy {
			continue
		}
		running.Go(func() {
			var mine []time.Duration
			sum := int64(0)
			for work.Err() == nil {
				began := time.Now()
				_, err := s.Apply(context.WithoutCancel(work), 3)
				if err != nil {
					mu.Lock()
					failed = errors.Join(failed, err)
					mu.Unlock()
					return
				}
				sum += 3
				if measuring.Load() {
					mine = append(mine, time.Since(began))
				}
				if load.pacing {
					time.Sleep(time.Until(began.Add(s.Pace(1))))
				}
			}
			mu.Lock()
			defer mu.Unlock()
			took = append(took, mine...)
			applied += sum
		})
	}
	time.Sleep(time.Second) // warm-up
	before, err := b.info(ctx)
	serverBefore, err2 := cpuTime(b.cmd.Process.Pid)
	loadBefore, err3 := cpuTime(os.Getpid())
	began := time.Now()
	measuring.Store(true)
	select {
	case <-time.After(b.seconds):
	case <-ctx.Done():
	}
	measuring.Store(false)
	elapsed := time.Since(began)
	serverAfter, err4 := cpuTime(b.cmd.Process.Pid)
	loadAfter, err5 := cpuTime(os.Getpid())
	after, err6 := b.info(ctx)
	memory, err7 := rss(b.cmd.Process.Pid)
	end()
	running.Wait()
	if err := errors.Join(err, err2, err3, err4, err5, err6, err7, failed, ctx.Err()); err != nil {
		return storeRow{}, err
	}
	if load.busy {
		value, err := b.client.Do(context.WithoutCancel(ctx), b.client.B().Hget().Key("{plusminus}:counter").Field("value").Build()).AsInt64()
		if err != nil || value != applied {
			return storeRow{}, fmt.Errorf("value in the server = %d, %v, want %d, the sum of all batches", value, err, applied)
		}
	}
	rate := func(name string) float64 { return (after[name] - before[name]) / elapsed.Seconds() }
	slices.Sort(took)
	r := storeRow{
		calls:   rate("cmdstat_evalsha") + rate("cmdstat_eval"),
		batches: float64(len(took)) / elapsed.Seconds(),
		in:      rate("total_net_input_bytes"), out: rate("total_net_output_bytes"),
		server: (serverAfter - serverBefore).Seconds() / elapsed.Seconds(),
		load:   (loadAfter - loadBefore).Seconds() / elapsed.Seconds(),
		// The server sends each message to every replica.
		deliveries: rate("cmdstat_publish") * float64(n),
		memory:     memory,
	}
	if len(took) > 0 {
		r.p50, r.p99 = took[len(took)/2], took[len(took)*99/100]
	}
	return r, nil
}
