package main

import (
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func TestStartUsage(t *testing.T) {
	for _, tt := range []struct {
		args []string
		want string
	}{
		{[]string{"-runs", "0"}, "-runs: 0 is below 1"},
		{[]string{"-idle", "-1s"}, "-idle: -1s is below 0"},
		{[]string{"-retry-after", "-1"}, "-retry-after: -1 is not from 0 to 60 seconds"},
		{[]string{"-retry-after", "61"}, "-retry-after: 61 is not"},
		{[]string{"-retry-after", "soon"}, `invalid value "soon"`},
		{[]string{"-peers", "nginx"}, `unknown server "nginx"; known are plusminus, caddy, autocert`},
		{[]string{"-peers", "caddy,caddy"}, `"caddy" appears twice`},
		{[]string{"-peers", ","}, "name at least one"},
		{[]string{"-peers", "=/bin/true"}, "has no name"},
		{[]string{"-peers", "old=/no/such/program"}, "/no/such/program"},
		{[]string{"now"}, `unexpected argument "now"`},
		{[]string{"-runs", "0", "-peers", "nginx"}, "-runs: 0"}, // reports all errors
	} {
		err := run(t.Context(), append([]string{"start"}, tt.args...), io.Discard, io.Discard)
		if usage := (usageError{}); !errors.As(err, &usage) || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("bench start %q = %v, want a usage error with %q", tt.args, err, tt.want)
		}
	}
}

func TestStartTable(t *testing.T) {
	s := &starts{size: map[string]int64{"plusminus": 10 << 20, "caddy": 80 << 20}}
	add := func(peer string, run int, took, tooSoon float64) {
		v := values{"start_s": took, "requests": 12, "wishes": 2, "too_soon": tooSoon, "wait_s": took / 2}
		if run == 1 {
			v["rss_mb"] = 16
		}
		s.results.Samples = append(s.results.Samples, Sample{Scenario: "start", Peer: peer, Run: run, Values: v})
	}
	// The machine is slow in run 2, for both.
	add("plusminus", 1, 0.1, 0)
	add("caddy", 1, 0.6, 1)
	add("plusminus", 2, 0.5, 0)
	add("caddy", 2, 2.5, 0)
	add("plusminus", 3, 0.2, 0)
	add("caddy", 3, 0.6, 1)
	peers := []startPeer{{name: "plusminus"}, {name: "caddy"}, {name: "autocert"}}

	var b strings.Builder
	s.table(&b, peers)
	const want = `| server | runs | median, s | min–max, s | × plusminus | requests to the CA | binary, MB | RSS, MB |
| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |
| plusminus | 3 | 0.20 | 0.10–0.50 | 1.00 | 12 | 10.0 | 16.0 |
| caddy | 3 | 0.60 | 0.60–2.50 | 5.00 | 12 | 80.0 | 16.0 |
`
	if b.String() != want {
		t.Errorf("table:\n%s\nwant:\n%s", b.String(), want)
	}

	b.Reset()
	s.retryAfter = 1
	s.table(&b, peers)
	for _, want := range []string{"| too soon | shortest wait, s |\n", "| 0 of 6 | 0.05 |\n", "| 2 of 6 | 0.30 |\n"} {
		if !strings.Contains(b.String(), want) {
			t.Errorf("table with -retry-after:\n%s\nwant %q in it", b.String(), want)
		}
	}
}

// TestStart starts plusminus, autocert and a program that is not a server, once each. The CA
// sends Retry-After: 1.
func TestStart(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 90*time.Second)
	defer cancel()
	t.Setenv("TMPDIR", t.TempDir())
	none := filepath.Join(t.TempDir(), "none")
	if err := os.WriteFile(none, []byte("#!/bin/sh\necho not today\nexit 1\n"), 0o700); err != nil {
		t.Fatal(err)
	}
	s, err := parseStart([]string{"-runs", "1", "-idle", "10ms", "-retry-after", "1", "-peers", "plusminus,autocert,none=" + none}, t.Output())
	if err != nil {
		t.Fatal(err)
	}
	if s.env, err = newEnvironment(allCPUs, nil); err != nil {
		t.Fatal(err)
	}
	defer s.env.close()
	peers, err := s.prepare(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.measure(ctx, peers); err != nil {
		t.Fatal(err)
	}
	if len(s.results.Samples) != 2 {
		t.Fatalf("%d samples, want one of each", len(s.results.Samples))
	}
	for _, sample := range s.results.Samples {
		v := sample.Values
		if v["start_s"] <= 0 || v["start_s"] > 30 || v["orders"] != 1 || v["requests"] < 8 || v["rss_mb"] < 1 || v["wishes"] < 1 {
			t.Errorf("%s: %v", sample.Peer, v)
		}
		if sample.Peer == "plusminus" && v["too_soon"] != 0 {
			t.Errorf("plusminus asked the CA again too soon: %v", v)
		}
	}
	if left := s.results.Left; len(left) != 1 || !strings.Contains(left[0], "none, run 1") || !strings.Contains(left[0], "not today") {
		t.Errorf("left out = %q, want the output of the program that is not a server", left)
	}
	if leftover, _ := filepath.Glob(filepath.Join(s.env.dir, "*-*")); len(leftover) != 0 {
		t.Errorf("files left behind: %q", leftover)
	}
}

// TestStartLeavesOut checks that a server that cannot be built is left out with a message.
func TestStartLeavesOut(t *testing.T) {
	t.Setenv("TMPDIR", t.TempDir())
	var log strings.Builder
	err := startCommand(t.Context(), []string{"-peers", "plusminus", "-source", t.TempDir()}, io.Discard, &log)
	if err == nil || !strings.Contains(err.Error(), "no server is left") || !strings.Contains(log.String(), "leaving out plusminus, because it cannot be built") {
		t.Errorf("startCommand = %v\n%s", err, log.String())
	}
	if left, _ := os.ReadDir(os.Getenv("TMPDIR")); len(left) > 1 { // the lock file stays
		t.Errorf("left behind: %v", left)
	}
}
