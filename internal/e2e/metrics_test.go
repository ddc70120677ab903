package e2e

import (
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/coder/websocket"
	"github.com/prometheus/client_golang/prometheus/testutil/promlint"
)

// declaredMetrics returns the labels of each metric that internal/admin/metrics.go declares, by the full name.
func declaredMetrics(t *testing.T) map[string][]string {
	t.Helper()
	file, err := parser.ParseFile(token.NewFileSet(), "internal/admin/metrics.go", nil, 0)
	if err != nil {
		t.Fatal(err)
	}
	metrics := make(map[string][]string)
	ast.Inspect(file, func(n ast.Node) bool {
		call, ok := n.(*ast.CallExpr)
		if !ok {
			return true
		}
		fun, ok := call.Fun.(*ast.Ident)
		if !ok || fun.Name != "newMetric" && fun.Name != "newHistogram" {
			return true
		}
		var texts []string
		for _, arg := range call.Args {
			if lit, ok := arg.(*ast.BasicLit); ok {
				text, err := strconv.Unquote(lit.Value)
				if err != nil {
					t.Fatal(err)
				}
				texts = append(texts, text)
			}
		}
		if len(texts) < 2 {
			t.Fatalf("metrics.go has a metric without a name and help: %v", texts)
		}
		metrics["plusminus_"+texts[0]] = texts[2:]
		return true
	})
	if len(metrics) == 0 {
		t.Fatal("metrics.go declares no metric")
	}
	return metrics
}

// TestReadmeMetrics compares the tables of docs/metrics.md with the declared metrics.
func TestReadmeMetrics(t *testing.T) {
	t.Parallel()
	page, err := os.ReadFile("docs/metrics.md")
	if err != nil {
		t.Fatal(err)
	}
	declared := declaredMetrics(t)
	explained := make(map[string]bool)
	name := regexp.MustCompile("`(plusminus_[a-z0-9_]+)`")
	for _, row := range regexp.MustCompile("(?m)^\\| (`plusminus_[^|]*) \\|").FindAllStringSubmatch(string(page), -1) {
		for _, m := range name.FindAllStringSubmatch(row[1], -1) {
			if explained[m[1]] {
				t.Errorf("docs/metrics.md has two rows for %s, want one", m[1])
			}
			explained[m[1]] = true
		}
	}
	for m := range declared {
		if !explained[m] {
			t.Errorf("docs/metrics.md has no row for %s", m)
		}
	}
	pages, err := filepath.Glob("docs/*.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range append(pages, "README.md") {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range regexp.MustCompile(`plusminus_[a-z0-9_]+`).FindAllString(string(text), -1) {
			if _, ok := declared[m]; !ok {
				t.Errorf("%s names %s, which metrics.go does not declare", file, m)
			}
		}
	}
}

// exposedMetrics returns the names of the metrics in /metrics.
func (s *plusminus) exposedMetrics() map[string]bool {
	s.t.Helper()
	_, body := s.get("http://"+s.addrs.Admin+"/metrics", "")
	names := make(map[string]bool)
	for _, m := range regexp.MustCompile(`(?m)^# TYPE (plusminus_[a-z0-9_]+) `).FindAllStringSubmatch(body, -1) {
		names[m[1]] = true
	}
	return names
}

// TestDeclaredMetricsAreExposed checks that /metrics has each declared metric, except those that do not apply now.
func TestDeclaredMetricsAreExposed(t *testing.T) {
	t.Parallel()
	s, _ := startCertified(t, "-counters", "likes", "-export", t.TempDir(), "-export-hook", "true")
	absent := []string{
		"plusminus_replicas", "plusminus_store_epoch", // the store is not shared
		"plusminus_acme_backoff_until_timestamp_seconds", "plusminus_acme_last_error_timestamp_seconds", // no attempt has failed
	}
	var missing []string
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(20 * time.Millisecond) {
		exposed := s.exposedMetrics()
		missing = nil
		for name := range declaredMetrics(t) {
			if !exposed[name] && !slices.Contains(absent, name) {
				missing = append(missing, name)
			}
		}
		// The renewal window comes a moment after the certificate.
		if len(missing) == 0 {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("/metrics has no %q", missing)
		}
	}
	exposed := s.exposedMetrics()
	for _, name := range absent {
		if exposed[name] {
			t.Errorf("/metrics has %s", name)
		}
	}
}

// TestHubMetrics compares the figures of the hub after a few messages.
func TestHubMetrics(t *testing.T) {
	t.Parallel()
	s := start(t, "-plain", "-store", "memory", "-action-burst", "3", "-action-rate", "0.001", "-max-clients", "7")
	ws := s.join("ws://localhost:80/")
	wantRead(t, ws, `{"count":1,"type":"users"}`, `{"type":"state","value":0}`)
	for i := range 3 {
		send(t, ws, plus)
		wantRead(t, ws, fmt.Sprintf(`{"type":"state","value":%d}`, i+1))
	}
	send(t, ws, plus)
	wantRead(t, ws, `{"code":"rate_limited","type":"error"}`)
	send(t, ws, "x")
	wantRead(t, ws, `{"code":"bad_message","type":"error"}`)
	want := []string{
		"plusminus_clients 1",
		"plusminus_clients_max 7",
		"plusminus_clients_joined_total 1",
		"plusminus_clients_behind 0",
		"plusminus_clients_blocked 0",
		"plusminus_users 1",
		"plusminus_value 3",
		"plusminus_messages_received_total 5",
		`plusminus_messages_sent_total{type="users"} 1`,
		`plusminus_messages_sent_total{type="state"} 4`,
		`plusminus_messages_sent_total{type="error"} 2`,
		`plusminus_messages_refused_total{code="bad_message"} 1`,
		`plusminus_messages_refused_total{code="binary_message"} 0`,
		`plusminus_messages_refused_total{code="rate_limited"} 1`,
		`plusminus_actions_total{outcome="counted"} 3`,
		`plusminus_actions_total{outcome="rate_limited"} 1`,
		`plusminus_actions_total{outcome="out_of_range"} 0`,
		`plusminus_actions_total{outcome="store_unavailable"} 0`,
		"plusminus_actions_undecided_total 0",
		"plusminus_changes_merged_total 0",
		`plusminus_sweep_duration_seconds_bucket{le="0.0025"} `,
		`plusminus_sweep_duration_seconds_bucket{le="+Inf"} `,
		"plusminus_store_up 1",
		"plusminus_store_outages_total 0",
		"plusminus_store_errors_total 0",
		"plusminus_store_apply_duration_seconds_count 3",
	}
	// The hub counts a sweep at its end, a moment after the client has the message.
	var missing []string
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(5 * time.Millisecond) {
		_, body := s.get("http://"+s.addrs.Admin+"/metrics", "")
		missing = slices.DeleteFunc(slices.Clone(want), func(line string) bool { return strings.Contains(body, "\n"+line) })
		if len(missing) == 0 {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("/metrics has no lines %q, but\n%s", missing, body)
		}
	}
	ws.Close(websocket.StatusNormalClosure, "")
}

// TestCounterMetrics compares the figures of many counters. Only names that -counters lists in full are labels.
func TestCounterMetrics(t *testing.T) {
	t.Parallel()
	s := startCounters(t, "-counters", "likes,door.*,votes", "-counters", "seats[ab]", "-max-counters", "3")
	likes := s.watch("/c/likes")
	wantRead(t, likes, `{"count":1,"type":"users"}`, `{"type":"state","value":0}`)
	doors := s.watch("/c?name=likes&name=door.a&name=door.b")
	wantRead(t, likes, `{"count":2,"type":"users"}`)
	send(t, doors, `{"action":"minus","counter":"likes"}`)
	wantRead(t, likes, `{"type":"state","value":-1}`)
	for path, status := range map[string]int{"/c/votes": 200, "/c/seatsa": 200} {
		if resp, body := s.request("POST", path, plus, nil); resp.StatusCode != status {
			t.Errorf("POST %s = %s %s, want %d", path, resp.Status, body, status)
		}
	}
	// Seven of them find no room, and the address may make ten. Each has a name of its own: an action that comes before the
	// refusal of another one on the same counter is settled does not count.
	for i := range 9 {
		s.request("POST", "/c/door.x"+strconv.Itoa(i), plus, nil)
	}
	_, body := s.get("http://"+s.addrs.Admin+"/metrics", "")
	for _, line := range []string{
		"plusminus_counters 3",
		"plusminus_counters_max 3",
		"plusminus_counters_watched 3",
		"plusminus_counters_made_total 3",
		`plusminus_counters_refused_total{reason="making_limited"} 2`,
		`plusminus_counters_refused_total{reason="too_many_counters"} 7`,
		`plusminus_counter_value{counter="likes"} -1`,
		`plusminus_counter_users{counter="likes"} 2`,
		`plusminus_counter_value{counter="votes"} 1`,
		`plusminus_counter_users{counter="votes"} 0`,
	} {
		if !strings.Contains(body, "\n"+line+"\n") {
			t.Errorf("/metrics has no line %s", line)
		}
	}
	if n := strings.Count(body, `counter="`); n != 4 {
		t.Errorf("/metrics has %d lines with the name of a counter, want 4:\n%s", n, body)
	}
	if found, err := promlint.New(strings.NewReader(body)).Lint(); err != nil || len(found) != 0 {
		t.Errorf("promlint: %v, %v", found, err)
	}
	if without := startCounters(t).exposedMetrics(); slices.ContainsFunc(slices.Collect(maps.Keys(without)), func(name string) bool { return strings.Contains(name, "_counter") }) {
		t.Errorf("without -counters, /metrics has %v", without)
	}
}

// TestMetrics checks the metrics that alerts and dashboards use, for a server with a certificate and for one without.
func TestMetrics(t *testing.T) {
	t.Parallel()
	s, ca := startCertified(t)
	ws := s.join("wss://counter.test/")
	wantRead(t, ws, `{"count":1,"type":"users"}`)
	ok := `plusminus_acme_attempts_total{ca="` + ca.DirectoryURL + `",domain="counter.test",outcome="ok"} 1`
	var body string
	for deadline := time.Now().Add(time.Minute); !strings.Contains(body, ok); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("/metrics has no line %s", ok)
		}
		_, body = s.get("http://"+s.addrs.Admin+"/metrics", "")
	}
	if found, err := promlint.New(strings.NewReader(body)).Lint(); err != nil || len(found) != 0 {
		t.Errorf("promlint: %v, %v", found, err)
	}
	resp, _ := s.get("https://counter.test/", "")
	leaf := resp.TLS.PeerCertificates[0]
	domain, both := `{domain="counter.test",source="acme"} `, `{ca="`+ca.DirectoryURL+`",domain="counter.test"} `
	for _, want := range []string{
		"plusminus_ready 1",
		"plusminus_clients 1",
		"plusminus_store_up 1",
		"plusminus_certificate_valid" + domain + "1",
		"plusminus_certificate_not_after_timestamp_seconds" + domain + prometheusNumber(leaf.NotAfter),
		"plusminus_certificate_not_before_timestamp_seconds" + domain + prometheusNumber(leaf.NotBefore),
		"plusminus_acme_failures" + both + "0",
		"plusminus_acme_failed_validations_left" + both + "5",
		"plusminus_acme_certificates_left" + both + "4",
		"plusminus_acme_certificate_unsaved" + both + "0",
		"plusminus_acme_clock_skew_seconds" + both,
		"plusminus_certificate_next_attempt_timestamp_seconds" + domain,
		"go_goroutines ",
		"process_resident_memory_bytes ",
	} {
		if !strings.Contains(body, "\n"+want) {
			t.Errorf("/metrics has no line %s", want)
		}
	}

	down := start(t, "-domain", "counter.test", "-acme-directory", "https://127.0.0.1:1/dir")
	last := regexp.MustCompile(`plusminus_acme_last_error_timestamp_seconds{ca="https://127.0.0.1:1/dir",domain="counter.test",` +
		`hint="[^"]*outgoing connections",reason="directory: .*connection refused",step="directory",type=""} 1\.\d+e\+09`)
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(20 * time.Millisecond) {
		_, body := down.get("http://"+down.addrs.Admin+"/metrics", "")
		if last.MatchString(body) && strings.Contains(body, "\nplusminus_ready 0\n") {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("/metrics has no failed attempt, want one:\n%s", body)
		}
	}
}

// prometheusNumber formats a time as /metrics does.
func prometheusNumber(t time.Time) string {
	return strconv.FormatFloat(float64(t.Unix()), 'g', -1, 64)
}
