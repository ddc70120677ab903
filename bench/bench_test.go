package main

import (
	"context"
	"encoding/json"
	"encoding/xml"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"plusminus/bench/load"
)

func TestMedian(t *testing.T) {
	for _, tt := range []struct {
		in   []float64
		want float64
	}{
		{nil, 0},
		{[]float64{3}, 3},
		{[]float64{9, 1, 5}, 5},
		{[]float64{4, 1, 3, 2}, 2.5},
	} {
		if got := median(tt.in); got != tt.want {
			t.Errorf("median(%v) = %v, want %v", tt.in, got, tt.want)
		}
	}
}

func TestParseRSS(t *testing.T) {
	const rollup = "00400000-7fff0000 ---p 00000000 00:00 0    [rollup]\nRss:               12345 kB\nPss:               100 kB\n"
	if got, err := parseRSS([]byte(rollup)); got != 12345<<10 || err != nil {
		t.Errorf("parseRSS = %d, %v, want %d", got, err, 12345<<10)
	}
	if _, err := parseRSS([]byte("Pss: 1 kB\n")); err == nil {
		t.Error("parseRSS = nil without a line Rss, want an error")
	}
}

func TestParseCPUInfo(t *testing.T) {
	const info = "processor\t: 0\nmodel name\t: Some CPU @ 2 GHz\n\nprocessor\t: 1\nmodel name\t: Some CPU @ 2 GHz\n"
	if model, cores := parseCPUInfo([]byte(info)); model != "Some CPU @ 2 GHz" || cores != 2 {
		t.Errorf("parseCPUInfo = %q, %d, want %q, 2", model, cores, "Some CPU @ 2 GHz")
	}
}

func TestParseSendQueues(t *testing.T) {
	const table = `  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid
   0: 0100007F:1F90 00000000:0000 0A 00000000:00000007 00:00000000 00000000     0
   1: 0100007F:1F90 0200007F:8001 01 00000010:00000000 00:00000000 00000000     0
   2: 0100007F:1F90 0300007F:8002 01 00000000:00000000 00:00000000 00000000     0
   3: 0100007F:1F90 0400007F:8003 01 00001000:00000000 00:00000000 00000000     0
   4: 0100007F:1F90 0400007F:8004 04 00001000:00000000 00:00000000 00000000     0
   5: 0200007F:8001 0100007F:1F90 01 00000099:00000000 00:00000000 00000000     0
`
	if total, n := parseSendQueues([]byte(table), 0x1f90); total != 0x1010 || n != 2 {
		t.Errorf("parseSendQueues = %d, %d, want %d, 2", total, n, 0x1010)
	}
}

func TestListenAddress(t *testing.T) {
	for line, want := range map[string]string{
		"listening 127.0.0.1:1234":                                    "127.0.0.1:1234",
		`{"level":"INFO","msg":"listening","https":["127.0.0.1:99"]}`: "127.0.0.1:99",
		`{"level":"INFO","msg":"starting"}`:                           "",
		"Traceback":                                                   "",
	} {
		if got := listenAddress(line); got != want {
			t.Errorf("listenAddress(%q) = %q, want %q", line, got, want)
		}
	}
}

func TestOwnCPUTime(t *testing.T) {
	before, err := cpuTime(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	for began := time.Now(); time.Since(began) < 50*time.Millisecond; {
	}
	after, err := cpuTime(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	// The upper bound leaves room for other threads of the test, the lower one for a busy machine.
	if d := after - before; d < time.Millisecond || d > 10*time.Second {
		t.Errorf("CPU time of 50 ms of work = %v, want 1 ms to 10 s", d)
	}
}

func TestGrouped(t *testing.T) {
	for in, want := range map[string]string{
		"0": "0", "999": "999", "1000": "1,000", "1234567": "1,234,567", "-1234.50": "-1,234.50", "0.00008": "0.00008",
	} {
		if got := grouped(in); got != want {
			t.Errorf("grouped(%q) = %q, want %q", in, got, want)
		}
	}
}

func results() *Results {
	r := &Results{When: time.Date(2026, 1, 2, 0, 0, 0, 0, time.UTC), Machine: Machine{CPU: "CPU", Cores: 2, Kernel: "Linux", Go: "go"}}
	add := func(peer string, run, n int, cpu float64, note string) {
		r.Samples = append(r.Samples, Sample{"fanout", peer, size{Clients: n}, run, values{"cpu_us": cpu, "last_ms": cpu * 2}, note})
	}
	// The machine is slow in run 2, for both.
	add("plusminus", 1, 100, 11, "")
	add("floor", 1, 100, 10, "")
	add("floor", 2, 100, 40, "")
	add("plusminus", 2, 100, 44, "odd")
	add("floor", 3, 100, 12, "")
	add("plusminus", 3, 100, 12, "odd")
	add("plusminus", 1, 1000, 9, "")
	return r
}

func TestTable(t *testing.T) {
	var b strings.Builder
	results().table(&b, scenarios[0])
	const want = `| clients | server | CPU per message, µs | × floor | last client, ms | × floor |  |
| ---: | --- | ---: | ---: | ---: | ---: | --- |
| 100 | floor | 12.0 | 1.00 | 24.00 | 1.00 |  |
| 100 | plusminus | 12.0 | 1.10 | 24.00 | 1.10 | odd |
| 1,000 | plusminus | 9.0 | – | 18.00 | – |  |
`
	if b.String() != want {
		t.Errorf("table:\n%s\nwant:\n%s", b.String(), want)
	}
}

// TestTableOfCounters checks the rows of a scenario that varies the number of counters.
func TestTableOfCounters(t *testing.T) {
	r := &Results{}
	add := func(clients, counters int, rate float64) {
		r.Samples = append(r.Samples, Sample{"posts", "plusminus", size{clients, counters}, 1, values{"rate": rate}, ""})
	}
	add(100, 1000, 7)
	add(100, 1, 8)
	add(10, 1000, 9)
	i := slices.IndexFunc(scenarios, func(sc scenario) bool { return sc.name == "posts" })
	var b strings.Builder
	r.table(&b, scenarios[i])
	const want = `| clients | counters | server | actions/s |  |
| ---: | ---: | --- | ---: | --- |
| 10 | 1,000 | plusminus | 9 |  |
| 100 | 1 | plusminus | 8 |  |
| 100 | 1,000 | plusminus | 7 |  |
`
	if b.String() != want {
		t.Errorf("table:\n%s\nwant:\n%s", b.String(), want)
	}
	text, err := json.Marshal(r.Samples[0])
	if err != nil {
		t.Fatal(err)
	}
	const wantJSON = `{"scenario":"posts","peer":"plusminus","clients":100,"counters":1000,"run":1,"values":{"rate":7}}`
	if string(text) != wantJSON {
		t.Errorf("sample = %s, want %s", text, wantJSON)
	}
}

func TestPlot(t *testing.T) {
	file := filepath.Join(t.TempDir(), "plot.svg")
	if err := results().writePlot(file); err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(file)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	lines := 0
	for d := xml.NewDecoder(f); ; {
		token, err := d.Token()
		if err == io.EOF {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		if e, ok := token.(xml.StartElement); ok && e.Name.Local == "polyline" {
			lines++
		}
	}
	if lines != 4 { // two servers in two panels
		t.Errorf("plot has %d lines, want 4", lines)
	}
}

func TestUsage(t *testing.T) {
	for _, args := range [][]string{
		{"-clients", "none"}, {"-clients", ""}, {"-scenarios", "nothing"}, {"-runs", "0"}, {"word"}, {"-nothing"}, {"peer"},
	} {
		err := run(t.Context(), args, io.Discard, io.Discard)
		if usage := (usageError{}); !errors.As(err, &usage) {
			t.Errorf("bench %q = %v, want a usage error", args, err)
		}
	}
}

// TestEndToEnd runs the load with 20 clients against the floor and plusminus: rounds, a flood,
// a client that stops reading, a hostile client, and the end of all connections.
func TestEndToEnd(t *testing.T) {
	dir := t.TempDir()
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	l, err := newEnvironment(-1, nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(l.close)
	// Peers run as a subcommand of the bench. This process is the test, so the bench must be built.
	l.self = filepath.Join(dir, "bench")
	if out, err := exec.CommandContext(ctx, "go", "build", "-o", l.self, ".").CombinedOutput(); err != nil {
		t.Fatalf("building the bench: %v\n%s", err, out)
	}
	binary, err := l.buildPlusminus(ctx, "..")
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range []peer{builtin()[0], plusminusPeer("plusminus", binary, "memory")} {
		t.Run(p.name, func(t *testing.T) { testServer(ctx, t, l, p) })
	}
	t.Run("posts", func(t *testing.T) { testPosts(ctx, t, l, plusminusPeer("plusminus", binary, "memory")) })
	t.Run("scenarios", func(t *testing.T) { testScenarios(ctx, t, l, binary) })
}

// testPosts acts by POST on one counter, and on 12.
func testPosts(ctx context.Context, t *testing.T, l *environment, p peer) {
	s, err := l.start(ctx, p, false, manyFlags...)
	if err != nil {
		t.Fatal(err)
	}
	defer s.stop()
	cr, err := load.New(s.addr)
	if err != nil {
		t.Fatal(err)
	}
	defer cr.Abandon()
	posters, err := cr.ConnectPosters(ctx, 5)
	if err != nil {
		t.Fatal(err)
	}
	defer load.ClosePosters(posters)
	watcher, err := cr.Connect(ctx, 1, 1, false)
	if err != nil {
		t.Fatal(err)
	}
	acted := int64(1) // by Make
	for _, k := range []int{1, 12} {
		list := cr.Counters(k)
		if err := load.Make(ctx, posters, list); err != nil {
			t.Fatal(err)
		}
		actions, err := load.Post(ctx, posters, list, 100*time.Millisecond)
		if err != nil || actions < 10 {
			t.Errorf("Post on %d counters = %d, %v, want at least 10 actions", k, actions, err)
		}
		if k == 1 {
			acted += actions
		}
	}
	if n, _ := resume(ctx, watcher, acted); n != 1 {
		t.Errorf("a client of the default counter has %d, want %d", watcher[0].Value(), acted)
	}
}

// testScenarios runs counters and posts with 20 clients, for plusminus and for a peer with one counter.
func testScenarios(ctx context.Context, t *testing.T, l *environment, binary string) {
	b := &bench{env: l, log: io.Discard, clients: []int{20}, flood: 100 * time.Millisecond, runs: 1}
	for _, sc := range scenarios {
		if sc.name == "counters" || sc.name == "posts" {
			b.scenarios = append(b.scenarios, sc)
		}
	}
	if err := b.measure(ctx, []peer{builtin()[0], plusminusPeer("plusminus", binary, "file")}); err != nil {
		t.Fatal(err)
	}
	if len(b.results.Left) > 0 {
		t.Errorf("left out: %q", b.results.Left)
	}
	want := map[string][]size{"counters": {{20, 1}, {20, 2}, {20, 20}}, "posts": {{postConnections, 1}, {postConnections, 20}}}
	for name, sizes := range want {
		if got := b.results.sizes(name); !slices.Equal(got, sizes) {
			t.Errorf("sizes of %s = %v, want %v", name, got, sizes)
		}
		if peers := b.results.peers(name); !slices.Equal(peers, []string{"plusminus"}) {
			t.Errorf("peers of %s = %q, want plusminus alone", name, peers)
		}
	}
	for _, s := range b.results.Samples {
		keys := []string{"rate", "cpu_us"}
		if s.Counters > 1 {
			keys = append(keys, "rate_one", "cpu_one")
		}
		for _, key := range keys {
			if s.Values[key] <= 0 || s.Note != "" {
				t.Errorf("%s with %v: %s = %v, note %q, want more than 0 and no note", s.Scenario, s.size, key, s.Values[key], s.Note)
			}
		}
	}
}

func testServer(ctx context.Context, t *testing.T, l *environment, p peer) {
	s, err := l.start(ctx, p, false)
	if err != nil {
		t.Fatal(err)
	}
	defer s.stop()
	cr, err := load.New(s.addr)
	if err != nil {
		t.Fatal(err)
	}
	defer cr.Abandon()
	acting, err := cr.ConnectActors(ctx, 2)
	if err != nil {
		t.Fatal(err)
	}
	others, err := cr.Connect(ctx, 18, 5, false)
	if err != nil {
		t.Fatal(err)
	}
	cpu, err := cpuTime(s.pid)
	if err != nil || cpu <= 0 {
		t.Errorf("cpuTime = %v, %v, want more than 0", cpu, err)
	}
	if memory, err := rss(s.pid); err != nil || memory < 1<<20 {
		t.Errorf("rss = %d, %v, want at least 1 MB", memory, err)
	}

	times, err := rounds(ctx, cr, acting[0], 10)
	if err != nil {
		t.Fatal(err)
	}
	for _, d := range times {
		if d <= 0 {
			t.Errorf("time of a round = %v, want more than 0", d)
		}
	}
	for i, c := range others {
		if c.Value() != 10 {
			t.Errorf("value of client %d = %d, want 10", i, c.Value())
		}
	}

	r, err := cr.Flood(ctx, acting, 0, 100*time.Millisecond)
	if err != nil {
		t.Fatal(err)
	}
	if !r.Converged || r.Rate < 100 || r.Lost != 0 || r.Refused != 0 {
		t.Errorf("Flood = %+v, want convergence, at least 100 actions/s, none lost or refused", r)
	}

	if err := others[0].Pause(); err != nil {
		t.Fatal(err)
	}
	was := others[0].Value()
	// A round waits for all clients, so it cannot end while this one does not read.
	roundCtx, cancel := context.WithTimeout(ctx, 300*time.Millisecond)
	if _, err := cr.Round(roundCtx, acting[0]); err == nil || others[0].Value() != was {
		t.Errorf("paused client: Round = %v, value = %d, want an error and %d", err, others[0].Value(), was)
	}
	cancel()
	if n, _ := resume(ctx, others[:1], was+1); n != 1 {
		t.Errorf("resumed client: value = %d, want %d", others[0].Value(), was+1)
	}

	if err := cr.Misbehave(ctx, load.Drop); err != nil {
		t.Errorf("Misbehave(Drop) = %v, want nil", err)
	}
	if err := cr.Leave(ctx); err != nil {
		t.Error(err)
	}
	if all, _ := cr.Lost(); all != 0 {
		t.Errorf("Lost = %d, want 0", all)
	}
	if err := s.running(); err != nil {
		t.Error(err)
	}
}
