package check

import (
	"go/ast"
	goparser "go/parser"
	"go/token"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/grafana/grafana-foundation-sdk/go/prometheus"
	"github.com/prometheus/prometheus/promql/parser"
	"sigs.k8s.io/yaml"
)

// metric is one metric that metrics.go declares.
type metric struct {
	kind   string // "counter", "gauge" or "histogram"
	labels []string
}

// readMetrics returns the metrics of metrics.go by name.
func readMetrics(t *testing.T) map[string]metric {
	t.Helper()
	file, err := goparser.ParseFile(token.NewFileSet(), "../../internal/admin/metrics.go", nil, 0)
	if err != nil {
		t.Fatal(err)
	}
	kinds := map[string]string{"CounterValue": "counter", "GaugeValue": "gauge"}
	metrics := map[string]metric{}
	ast.Inspect(file, func(n ast.Node) bool {
		call, ok := n.(*ast.CallExpr)
		if !ok {
			return true
		}
		fun, ok := call.Fun.(*ast.Ident)
		if !ok || fun.Name != "newMetric" && fun.Name != "newHistogram" {
			return true
		}
		m := metric{kind: "histogram"}
		var texts []string
		for _, arg := range call.Args {
			switch arg := arg.(type) {
			case *ast.SelectorExpr:
				m.kind = kinds[arg.Sel.Name]
			case *ast.BasicLit:
				text, err := strconv.Unquote(arg.Value)
				if err != nil {
					t.Fatal(err)
				}
				texts = append(texts, text)
			}
		}
		m.labels = texts[2:]
		metrics["plusminus_"+texts[0]] = m
		return true
	})
	if len(metrics) < 30 {
		t.Fatalf("found %d metrics in metrics.go", len(metrics))
	}
	return metrics
}

// query is one expression of an alert or panel. text holds the alert's texts or the panel's legend, which
// name labels.
type query struct{ where, expr, text string }

// rule has the fields that an alert rule may have here.
type rule struct {
	Alert       string            `json:"alert"`
	Expr        string            `json:"expr"`
	For         string            `json:"for"`
	Labels      map[string]string `json:"labels"`
	Annotations map[string]string `json:"annotations"`
}

func readRules(t *testing.T) []rule {
	t.Helper()
	data, err := os.ReadFile("../prometheus/rules.yml")
	if err != nil {
		t.Fatal(err)
	}
	var file struct {
		Groups []struct {
			Name  string `json:"name"`
			Rules []rule `json:"rules"`
		} `json:"groups"`
	}
	if err := yaml.UnmarshalStrict(data, &file); err != nil {
		t.Fatal(err)
	}
	var rules []rule
	for _, g := range file.Groups {
		rules = append(rules, g.Rules...)
	}
	return rules
}

// TestRules checks that each alert has a severity, a summary, a runbook and a test.
func TestRules(t *testing.T) {
	test, err := os.ReadFile("../prometheus/rules_test.yml")
	if err != nil {
		t.Fatal(err)
	}
	names := map[string]bool{}
	for _, r := range readRules(t) {
		if names[r.Alert] {
			t.Errorf("two rules are named %s", r.Alert)
		}
		names[r.Alert] = true
		if !strings.HasPrefix(r.Alert, "Plusminus") || r.For == "" {
			t.Errorf("%s does not begin with Plusminus, or has no for", r.Alert)
		}
		if s := r.Labels["severity"]; len(r.Labels) != 1 || s != "critical" && s != "warning" {
			t.Errorf("labels of %s = %v, want only severity, critical or warning", r.Alert, r.Labels)
		}
		if len(r.Annotations) != 2 || r.Annotations["summary"] == "" || r.Annotations["runbook"] == "" {
			t.Errorf("annotations of %s = %v, want exactly summary and runbook", r.Alert, r.Annotations)
		}
		if !regexp.MustCompile(`\b` + r.Alert + `\b`).Match(test) {
			t.Errorf("rules_test.yml does not test %s", r.Alert)
		}
	}
	if len(names) == 0 {
		t.Error("rules.yml has no rules")
	}
}

// readQueries returns the expressions of all alerts and panels.
func readQueries(t *testing.T) []query {
	t.Helper()
	var queries []query
	for _, r := range readRules(t) {
		queries = append(queries, query{r.Alert, r.Expr, r.Annotations["summary"] + r.Annotations["runbook"]})
	}
	for _, p := range panels(t, readDashboard(t)) {
		for _, target := range p.Targets {
			q := target.(*prometheus.Dataquery)
			expr := strings.ReplaceAll(q.Expr, "$__rate_interval", "1m")
			queries = append(queries, query{*p.Title, expr, *q.LegendFormat})
		}
	}
	return queries
}

// TestQueries parses each expression as Prometheus does. It checks that each metric of plusminus has the labels
// that the expression uses, and that rate or increase is applied to every counter and to no gauge. The tests of
// plusminus itself find metrics that do not exist.
func TestQueries(t *testing.T) {
	metrics := readMetrics(t)
	promql := parser.NewParser(parser.Options{})
	used := map[string]bool{}
	for _, q := range readQueries(t) {
		expr, err := promql.ParseExpr(q.expr)
		if err != nil {
			t.Errorf("%s: %v in %s", q.where, err, q.expr)
			continue
		}
		labels := map[string]bool{"job": true, "instance": true}
		unknown := false
		parser.Inspect(expr, func(node parser.Node, path []parser.Node) error {
			if s, ok := node.(*parser.VectorSelector); ok {
				unknown = !checkSelector(t, q, s, path, metrics, labels, used) || unknown
			}
			return nil
		})
		if unknown {
			continue
		}
		parser.Inspect(expr, func(node parser.Node, _ []parser.Node) error {
			var names []string
			switch n := node.(type) {
			case *parser.AggregateExpr:
				names = n.Grouping
			case *parser.BinaryExpr:
				if n.VectorMatching != nil {
					names = append(n.VectorMatching.MatchingLabels, n.VectorMatching.Include...)
				}
			}
			for _, name := range names {
				if !labels[name] {
					t.Errorf("%s: no metric in %s has the label %s", q.where, q.expr, name)
				}
			}
			return nil
		})
		for _, m := range regexp.MustCompile(`\$labels\.(\w+)|\{\{(\w+)\}\}`).FindAllStringSubmatch(q.text, -1) {
			if name := m[1] + m[2]; !labels[name] {
				t.Errorf("%s: its text uses the label %[3]s, which no metric in %[2]s has", q.where, q.expr, name)
			}
		}
	}
	// A metric that nothing uses need not exist.
	for name := range metrics {
		if !used[name] && !slices.Contains(onRequest, name) {
			t.Errorf("neither an alert nor the dashboard uses %s", name)
		}
	}
}

// onRequest lists the metrics that no alert or panel uses: an operator queries them by hand.
var onRequest = []string{
	"plusminus_certificate_renewal_window_start_timestamp_seconds",
	"plusminus_certificate_renewal_window_end_timestamp_seconds",
	"plusminus_acme_backoff_until_timestamp_seconds",
}

// checkSelector checks one selector of a query; path leads to it from the root of the expression. It adds the
// labels of the selector's metric to labels. It returns false if plusminus should have the metric and does not.
func checkSelector(t *testing.T, q query, s *parser.VectorSelector, path []parser.Node, metrics map[string]metric, labels, used map[string]bool) bool {
	t.Helper()
	name, own := s.Name, []string{"job", "instance"}
	counts := strings.HasSuffix(name, "_total")
	m, ok := metrics[name]
	if base := regexp.MustCompile(`_(bucket|sum|count)$`).ReplaceAllString(name, ""); !ok && metrics[base].kind == "histogram" {
		m, ok, name, counts = metrics[base], true, base, true
		own = append(own, "le")
	}
	if ok {
		used[name] = true
		if (m.kind != "gauge") != counts {
			t.Errorf("%s: %s is a %s", q.where, s.Name, m.kind)
		}
	}
	own = append(own, m.labels...)
	for _, l := range own {
		labels[l] = true
	}
	if !ok {
		return !strings.HasPrefix(name, "plusminus_") // other metrics come from the Go runtime, the process or Prometheus
	}
	for _, matcher := range s.LabelMatchers {
		if matcher.Name != "__name__" && !slices.Contains(own, matcher.Name) {
			t.Errorf("%s: %s has no label %s", q.where, s.Name, matcher.Name)
		}
	}
	rated := false
	for _, node := range path {
		if call, ok := node.(*parser.Call); ok && (call.Func.Name == "rate" || call.Func.Name == "increase") {
			rated = true
		}
	}
	if rated != counts {
		t.Errorf("%s: %s is a %s: rate or increase is for counters and histograms, and for all of them", q.where, s.Name, m.kind)
	}
	return true
}
