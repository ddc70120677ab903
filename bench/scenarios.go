package main

import (
	"context"
	"fmt"
	"time"

	"golang.org/x/sys/unix"

	"plusminus/bench/load"
)

// A scenario is one way to load a server, with the columns of its table.
type scenario struct {
	name    string
	title   string
	about   string
	optIn   bool // runs only if -scenarios names it
	columns []column
	run     func(context.Context, *bench, peer) error
}

// column is one column of a scenario's table.
type column struct {
	key    string
	title  string
	format string
	ratio  bool // a second column has the ratio to the value of -base
}

var scenarios = []scenario{
	{
		name:  "fanout",
		title: "Fan-out: one change to n clients",
		about: "One client acts, and waits until all clients have the new value before it acts again. CPU is the server's CPU time divided by the number of delivered values. The time is from sending the action until the last client has the value.",
		columns: []column{
			{"cpu_us", "CPU per message, µs", "%.1f", true},
			{"last_ms", "last client, ms", "%.2f", true},
			{"load_pct", "load's core busy, %", "%.0f", false},
		},
		run: fanout,
	},
	{
		name:  "merging",
		title: "Merging: as many actions as the server takes",
		about: "20 clients send `plus` as fast as the server accepts it, and n more clients watch. Both times end when every client has the final value. The first time starts with the last action, the second when the first client has the final value.",
		columns: []column{
			{"rate", "actions/s", "%.0f", true},
			{"send_ms", "last action to last client, ms", "%.0f", false},
			{"ack_ms", "first client to last client, ms", "%.0f", false},
			{"load_pct", "load's core busy, %", "%.0f", false},
		},
		run: merging,
	},
	{
		name:  "counters",
		title: "Counters: n clients act, on one counter or on many",
		about: "All n clients send `plus` to their counter as fast as the server answers, with two actions in flight, and then with two batches of 64. CPU is the server's CPU time divided by the number of messages that clients received, without batches. The ratios compare with as many clients of one counter.",
		columns: []column{
			{"rate", "actions/s", "%.0f", false},
			{"rate_one", "× one counter", "%.2f", false},
			{"messages", "messages/s", "%.0f", false},
			{"cpu_us", "CPU per message, µs", "%.1f", false},
			{"cpu_one", "× one counter", "%.2f", false},
			{"batch_rate", "actions/s in batches", "%.0f", false},
			{"batch_one", "× one counter", "%.2f", false},
			{"load_pct", "load's core busy, %", "%.0f", false},
		},
		run: counters,
	},
	{
		name:  "posts",
		title: "Posts: counters that nobody watches",
		about: "n clients send `plus` by POST over connections that they keep, and wait for each answer. All counters take turns. The ratios compare with one counter.",
		columns: []column{
			{"rate", "actions/s", "%.0f", false},
			{"rate_one", "× one counter", "%.2f", false},
			{"cpu_us", "CPU per action, µs", "%.1f", false},
			{"cpu_one", "× one counter", "%.2f", false},
			{"rss_mb", "RSS, MB", "%.1f", false},
			{"load_pct", "load's core busy, %", "%.0f", false},
		},
		run: posts,
	},
	{
		name:  "memory",
		title: "Memory: n idle clients",
		about: "Resident memory of the server's process, minus its resident memory before the first client. It does not include the kernel's memory for sockets.",
		columns: []column{
			{"rss_kb", "RSS per client, KB", "%.1f", true},
			{"start_mb", "RSS at start, MB", "%.1f", false},
			{"after_pct", "RSS a minute after all clients left, % of start", "%.0f", false},
		},
		run: memory,
	},
	{
		name:  "arrival",
		title: "Arrival: n clients join at once, and leave",
		about: "200 handshakes run at a time. Messages per client counts what the server sent until it was idle again.",
		columns: []column{
			{"cpu_ms", "CPU per arrival, ms", "%.2f", true},
			{"wall_s", "until all have joined, s", "%.1f", false},
			{"messages", "messages per client", "%.1f", false},
			{"leave_ms", "CPU per departure, ms", "%.2f", true},
			{"load_pct", "load's core busy, %", "%.0f", false},
		},
		run: arrival,
	},
	{
		name:  "slow",
		title: "Slow: one client in ten stops reading",
		about: "Time until the last of the other clients has a new value, before the stuck clients stop reading and while their sockets are full. 20 of the stuck clients read again after some seconds. The other 180 never read again, so the server should disconnect them; that time starts when their sockets are full.",
		columns: []column{
			{"before_ms", "last client before, ms", "%.2f", false},
			{"during_ms", "last client while they are stuck, ms", "%.2f", false},
			{"slowdown", "ratio of the two", "%.2f", false},
			{"closed", "stuck clients disconnected", "%.0f", false},
			{"closed_s", "disconnected after, s", "%.1f", false},
			{"newest", "of 20 that read again, clients with the newest value", "%.0f", false},
			{"newest_ms", "they have it after, ms", "%.0f", false},
			{"lost", "other clients disconnected", "%.0f", false},
		},
		run: slow,
	},
	{
		name:  "soak",
		title: "Soak: clients come and go, and half of them are hostile",
		about: "Half of the clients are honest; each second one in a hundred of them leaves and a new one joins. The hostile clients never read, send invalid messages, connect and drop the connection, or stop in the middle of the TLS handshake.",
		optIn: true,
		columns: []column{
			{"rss_start_mb", "RSS in the second tenth of the time, MB", "%.1f", false},
			{"rss_end_mb", "RSS in the last tenth, MB", "%.1f", false},
			{"rss_max_mb", "highest RSS, MB", "%.1f", false},
			{"fds_max", "most open files", "%.0f", false},
			{"last_start_ms", "last client in the second tenth, ms", "%.1f", false},
			{"last_end_ms", "last client in the last tenth, ms", "%.1f", false},
			{"lost", "honest clients disconnected", "%.0f", false},
			{"hostile", "hostile connections made", "%.0f", false},
		},
		run: soak,
	},
}

// parallel is how many handshakes run at the same time.
const parallel = 200

// meter measures the CPU time of the server and of the load between newMeter and stop.
type meter struct {
	pid     int
	at      time.Time
	cpu     time.Duration // of the server, at newMeter
	loadCPU time.Duration // of the load, at newMeter
}

func newMeter(pid int) (meter, error) {
	cpu, err := cpuTime(pid)
	return meter{pid, time.Now(), cpu, ownCPU()}, err
}

// stop returns the server's CPU time since newMeter, and the load's CPU time in percent of one
// core. It may be called several times.
func (m meter) stop() (cpu time.Duration, loadPercent float64, err error) {
	now, err := cpuTime(m.pid)
	return now - m.cpu, 100 * (ownCPU() - m.loadCPU).Seconds() / time.Since(m.at).Seconds(), err
}

// ownCPU returns the CPU time of this process, which is the load.
func ownCPU() time.Duration {
	var ts unix.Timespec
	if unix.ClockGettime(unix.CLOCK_PROCESS_CPUTIME_ID, &ts) != nil {
		return 0
	}
	return time.Duration(ts.Nano())
}

// quiet waits until the server is idle, which means that it uses less than 5 % of a core, or
// until atMost has passed.
func quiet(ctx context.Context, s *server, atMost time.Duration) error {
	const look = 300 * time.Millisecond
	for end := time.Now().Add(atMost); time.Now().Before(end); {
		if err := s.running(); err != nil {
			return err
		}
		m, err := newMeter(s.pid)
		if err != nil {
			return err
		}
		if err := sleep(ctx, look); err != nil {
			return err
		}
		if cpu, _, err := m.stop(); err != nil || cpu < look/20 {
			return err
		}
	}
	return nil
}

func sleep(ctx context.Context, d time.Duration) error {
	select {
	case <-time.After(d):
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

func ms(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }

// rounds does k rounds and returns the time of each.
func rounds(ctx context.Context, cr *load.Crowd, actor *load.Client, k int) ([]time.Duration, error) {
	times := make([]time.Duration, 0, k)
	for range k {
		d, err := cr.Round(ctx, actor)
		if err != nil {
			return nil, err
		}
		times = append(times, d)
	}
	return times, nil
}

func fanout(ctx context.Context, b *bench, p peer) error {
	s, err := b.env.start(ctx, p, false)
	if err != nil {
		return err
	}
	defer s.stop()
	cr, err := load.New(s.addr)
	if err != nil {
		return err
	}
	defer cr.Abandon()
	actors, err := cr.ConnectActors(ctx, 1)
	if err != nil {
		return err
	}
	have := 1
	for _, n := range b.clients { // ascending: clients of the step before stay
		b.say("%d clients arrive", n)
		if _, err := cr.Connect(ctx, n-have, parallel, false); err != nil {
			return err
		}
		have = n
		if err := quiet(ctx, s, 15*time.Second); err != nil {
			return err
		}
		if _, err := rounds(ctx, cr, actors[0], 3); err != nil {
			return err
		}
		m, err := newMeter(s.pid)
		if err != nil {
			return err
		}
		k := min(max(100_000/n, 20), 500)
		busy := cr.Busy()
		times, err := rounds(ctx, cr, actors[0], k)
		if err != nil {
			return err
		}
		busy = cr.Busy() - busy
		cpu, _, err := m.stop()
		if err != nil {
			return err
		}
		b.record(n, values{
			"cpu_us":   float64(cpu) / float64(time.Microsecond) / float64(k*n),
			"last_ms":  ms(median(times)),
			"load_pct": 100 * busy.Seconds() / time.Since(m.at).Seconds(),
		}, "")
	}
	return nil
}

// actors is how many clients act in merging and slow.
const actors = 20

func merging(ctx context.Context, b *bench, p peer) error {
	s, err := b.env.start(ctx, p, false)
	if err != nil {
		return err
	}
	defer s.stop()
	cr, err := load.New(s.addr)
	if err != nil {
		return err
	}
	defer cr.Abandon()
	acting, err := cr.ConnectActors(ctx, actors)
	if err != nil {
		return err
	}
	n := b.watchers
	b.say("%d clients arrive", n)
	if _, err := cr.Connect(ctx, n, parallel, false); err != nil {
		return err
	}
	if err := quiet(ctx, s, 15*time.Second); err != nil {
		return err
	}
	m, err := newMeter(s.pid)
	if err != nil {
		return err
	}
	r, err := cr.Flood(ctx, acting, 0, b.flood)
	if err != nil {
		return err
	}
	_, busy, err := m.stop()
	if err != nil {
		return err
	}
	v := values{"rate": r.Rate, "load_pct": busy}
	if r.Converged {
		v["send_ms"], v["ack_ms"] = ms(r.AfterSend), ms(r.AfterAck)
	}
	b.record(n, v, floodNote(r))
	return nil
}

// floodNote says what went wrong in a flood, or returns "".
func floodNote(r load.FloodResult) string {
	note := ""
	switch {
	case r.Converged:
	case r.Lost > 0:
		note = fmt.Sprintf("disconnected %d clients", r.Lost)
	default:
		note = fmt.Sprintf("did not converge in %.0f s", load.ConvergeTimeout.Seconds())
	}
	if r.Refused > 0 {
		note += fmt.Sprintf(" refused %d actions", r.Refused)
	}
	return note
}

func memory(ctx context.Context, b *bench, p peer) error {
	s, err := b.env.start(ctx, p, false)
	if err != nil {
		return err
	}
	defer s.stop()
	if err := sleep(ctx, time.Second); err != nil {
		return err
	}
	start, err := rss(s.pid)
	if err != nil {
		return err
	}
	cr, err := load.New(s.addr)
	if err != nil {
		return err
	}
	defer cr.Abandon()
	n := b.idle
	b.say("%d clients arrive", n)
	if _, err := cr.Connect(ctx, n, parallel, false); err != nil {
		return err
	}
	b.say("settling for %v", b.settle)
	if err := sleep(ctx, b.settle); err != nil {
		return err
	}
	idle, err := rss(s.pid)
	if err != nil {
		return err
	}
	v := values{"rss_kb": float64(idle-start) / 1024 / float64(n), "start_mb": float64(start) / (1 << 20)}
	if b.after {
		b.say("clients leave; then a minute's wait")
		if err := cr.Leave(ctx); err != nil {
			return err
		}
		if err := sleep(ctx, time.Minute); err != nil {
			return err
		}
		after, err := rss(s.pid)
		if err != nil {
			return err
		}
		v["after_pct"] = 100 * float64(after) / float64(start)
	}
	b.record(n, v, "")
	return nil
}

// announcedArrivals limits the clients in arrival for peers that announce each arrival to all clients.
const announcedArrivals = 2000

func arrival(ctx context.Context, b *bench, p peer) error {
	for _, n := range b.arrivals {
		if p.announces && n > announcedArrivals {
			b.say("left out: %d messages would be sent", n*n/2)
			continue
		}
		if err := arrive(ctx, b, p, n); err != nil {
			return err
		}
	}
	return nil
}

func arrive(ctx context.Context, b *bench, p peer, n int) error {
	s, err := b.env.start(ctx, p, true)
	if err != nil {
		return err
	}
	defer s.stop()
	cr, err := load.New(s.addr)
	if err != nil {
		return err
	}
	defer cr.Abandon()
	// A few clients join and leave first, so that one-time costs of a server are not measured.
	if _, err := cr.Connect(ctx, 20, 20, false); err != nil {
		return err
	}
	if err := cr.Leave(ctx); err != nil {
		return err
	}
	if err := quiet(ctx, s, 5*time.Second); err != nil {
		return err
	}
	before := cr.Messages()
	m, err := newMeter(s.pid)
	if err != nil {
		return err
	}
	b.say("%d clients arrive", n)
	if _, err := cr.Connect(ctx, n, parallel, false); err != nil {
		return err
	}
	wall := time.Since(m.at)
	_, busy, err := m.stop()
	if err != nil {
		return err
	}
	if err := quiet(ctx, s, time.Minute); err != nil {
		return err
	}
	admit, _, err := m.stop()
	if err != nil {
		return err
	}
	v := values{
		"cpu_ms":   ms(admit) / float64(n),
		"wall_s":   wall.Seconds(),
		"messages": float64(cr.Messages()-before) / float64(n),
		"load_pct": busy,
	}
	b.say("%d clients leave", n)
	if m, err = newMeter(s.pid); err != nil {
		return err
	}
	if err := cr.Leave(ctx); err != nil {
		return err
	}
	if err := quiet(ctx, s, time.Minute); err != nil {
		return err
	}
	leave, _, err := m.stop()
	if err != nil {
		return err
	}
	v["leave_ms"] = ms(leave) / float64(n)
	b.record(n, v, "")
	return nil
}
