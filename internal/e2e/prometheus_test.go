package e2e

import (
	"bufio"
	"encoding/json"
	"fmt"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/coder/websocket"

	"plusminus/hub/valkey/redistest"
)

// TestDeployMetrics checks that alerts and dashboard use declared metrics only. deploy/check also checks the labels.
func TestDeployMetrics(t *testing.T) {
	t.Parallel()
	declared := declaredMetrics(t)
	name := regexp.MustCompile(`\bplusminus_[a-z0-9_]+`)
	for file, text := range deployFiles(t, "prometheus/*.yml", "grafana/*.json") {
		for _, m := range name.FindAllString(text, -1) {
			base := regexp.MustCompile(`_(bucket|sum|count)$`).ReplaceAllString(m, "")
			if _, ok := declared[m]; !ok && !(strings.HasSuffix(base, "_seconds") && declared[base] != nil) {
				t.Errorf("%s uses %s, which metrics.go does not declare", file, m)
			}
		}
	}
}

// promServer is a Prometheus that scrapes one server, or another one in the job "many", and evaluates the rules of deploy.
type promServer struct {
	t   *testing.T
	url string
}

// startPrometheus runs Prometheus with the configuration of deploy until the test ends. many is in a job of its own: rules
// take all servers of one job for replicas that share a store.
func startPrometheus(t *testing.T, s, many *plusminus) *promServer {
	t.Helper()
	dir := t.TempDir()
	text, err := os.ReadFile("deploy/prometheus/prometheus.yml")
	if err != nil {
		t.Fatal(err)
	}
	rules, err := filepath.Abs("deploy/prometheus/rules.yml")
	if err != nil {
		t.Fatal(err)
	}
	config := strings.NewReplacer("127.0.0.1:9180", s.addrs.Admin, "- rules.yml", "- "+rules, "15s", "1s").Replace(string(text)) +
		fmt.Sprintf("  - job_name: many\n    static_configs:\n      - targets: [%s]\n", many.addrs.Admin)
	if err := os.WriteFile(filepath.Join(dir, "prometheus.yml"), []byte(config), 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("prometheus", "--config.file="+filepath.Join(dir, "prometheus.yml"),
		"--storage.tsdb.path="+filepath.Join(dir, "data"), "--web.listen-address=127.0.0.1:0")
	stderr, err := cmd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	var log strings.Builder
	address, ended := make(chan string, 1), make(chan struct{})
	go func() {
		defer close(ended)
		listening := regexp.MustCompile(`msg="Listening on" address=(\S+)`)
		for lines := bufio.NewScanner(stderr); lines.Scan(); {
			fmt.Fprintln(&log, lines.Text())
			if m := listening.FindStringSubmatch(lines.Text()); m != nil {
				address <- m[1]
			}
		}
	}()
	t.Cleanup(func() {
		cmd.Process.Kill()
		<-ended
		cmd.Wait() // was killed
		if t.Failed() {
			t.Logf("Prometheus logged:\n%s", log.String())
		}
	})
	select {
	case a := <-address:
		return &promServer{t, "http://" + a}
	case <-ended:
		t.Fatal("Prometheus ended before it listened")
	case <-time.After(time.Minute):
		t.Fatal("Prometheus does not listen after a minute")
	}
	return nil
}

// ask decodes the data that the API of Prometheus returns for path. It reports false while Prometheus starts.
func (p *promServer) ask(s *plusminus, path string, data any) bool {
	p.t.Helper()
	resp, body := s.get(p.url+"/api/v1/"+path, "")
	if resp.StatusCode == 503 {
		return false // starting
	}
	answer := struct {
		Status, Error string
		Data          any
	}{Data: data}
	if err := json.Unmarshal([]byte(body), &answer); err != nil || answer.Status != "success" {
		p.t.Fatalf("%s: %s %q, %v", path, resp.Status, body, err)
	}
	return true
}

// TestDeployPrometheus scrapes a server that clients use. The query of each panel of the dashboard has a result, and no
// alert fires. The test runs Prometheus, not Grafana.
func TestDeployPrometheus(t *testing.T) {
	t.Parallel()
	if testing.Short() {
		t.Skip("-short starts no Prometheus")
	}
	if _, err := exec.LookPath("prometheus"); err != nil {
		t.Skip("Prometheus is not installed (Debian: prometheus)")
	}
	redis := redistest.Start(t)
	s, _ := startCertified(t, "-store", "redis://"+redis.Addr, "-export", t.TempDir(), "-export-hook", "true")
	p := startPrometheus(t, s, startCounters(t, "-counters", "likes"))

	// A client stays connected and acts all the time, so that all series have values.
	ws := s.join("wss://counter.test/")
	go func() {
		for {
			if _, _, err := ws.Read(t.Context()); err != nil {
				return
			}
		}
	}()
	act := func() {
		if err := ws.Write(t.Context(), websocket.MessageText, []byte(plus)); err != nil {
			t.Fatal(err)
		}
	}

	queries := dashboardQueries(t)
	empty := []string{
		"Last error of the CA", // no attempt has failed
		"Memory per client",    // has values from 1,000 clients on
	}
	for deadline := time.Now().Add(time.Minute); len(queries) > 0; time.Sleep(200 * time.Millisecond) {
		act()
		queries = slices.DeleteFunc(queries, func(q dashboardQuery) bool {
			var data struct{ Result []any }
			ok := p.ask(s, "query?query="+url.QueryEscape(q.expr), &data)
			return ok && len(data.Result) > 0 != slices.Contains(empty, q.panel)
		})
		if time.Now().After(deadline) {
			t.Fatalf("these panels have no result, or one that they should not have: %q", queries)
		}
	}

	var rules struct {
		Groups []struct {
			Rules []struct{ Name, State, Health, LastError string }
		}
	}
	evaluated := func() (n int) {
		rules.Groups = nil
		p.ask(s, "rules", &rules)
		for _, g := range rules.Groups {
			for _, r := range g.Rules {
				if r.Health == "ok" {
					n++
				}
			}
		}
		return n
	}
	text := deployFiles(t, "prometheus/*.yml")["deploy/prometheus/rules.yml"]
	want := strings.Count(text, "- alert: ")
	for deadline := time.Now().Add(time.Minute); evaluated() < want; time.Sleep(200 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("not all of %d rules are healthy: %+v", want, rules)
		}
	}
	for _, g := range rules.Groups {
		for _, r := range g.Rules {
			if r.State != "inactive" {
				t.Errorf("alert %s is %s, want inactive", r.Name, r.State)
			}
		}
	}
}

// dashboardQuery is a query of a panel.
type dashboardQuery struct{ panel, expr string }

// dashboardQueries returns the queries of the dashboard, with the variables of Grafana replaced. Those about many counters are
// for the job "many".
func dashboardQueries(t *testing.T) []dashboardQuery {
	t.Helper()
	var dashboard struct {
		Panels []struct {
			Title   string
			Targets []struct{ Expr string }
		}
	}
	if err := json.Unmarshal([]byte(deployFiles(t, "grafana/*.json")["deploy/grafana/dashboard.json"]), &dashboard); err != nil {
		t.Fatal(err)
	}
	var queries []dashboardQuery
	for _, p := range dashboard.Panels {
		for _, target := range p.Targets {
			job := "plusminus"
			if strings.Contains(target.Expr, "plusminus_counter") {
				job = "many"
			}
			expr := strings.NewReplacer("$__rate_interval", "10s", "$job", job, "$instance", ".*").Replace(target.Expr)
			queries = append(queries, dashboardQuery{p.Title, expr})
		}
	}
	if len(queries) == 0 {
		t.Fatal("the dashboard has no query")
	}
	return queries
}
