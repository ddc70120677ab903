package check

//lint:file-ignore SA1019 The newer form of dashboards, which the package recommends, is for Grafana 12 and later alone.

import (
	"bytes"
	"encoding/json"
	"errors"
	"os"
	"regexp"
	"strings"
	"testing"

	"github.com/grafana/grafana-foundation-sdk/go/cog"
	"github.com/grafana/grafana-foundation-sdk/go/cog/plugins"
	"github.com/grafana/grafana-foundation-sdk/go/dashboard"
	"github.com/grafana/grafana-foundation-sdk/go/prometheus"
)

// decodeStrictly decodes a dashboard into the types that Grafana generates from its schemas, including the
// options of each panel and each query. It returns an error for each unknown or missing field.
func decodeStrictly(data []byte) error {
	plugins.RegisterDefaultPlugins()
	err := dashboard.NewDashboard().UnmarshalJSONStrict(data)
	var problems cog.BuildErrors
	if errors.As(err, &problems) && len(problems) == 0 {
		return nil // without errors UnmarshalJSONStrict returns an empty BuildErrors; d is incomplete even then
	}
	return err
}

func readDashboard(t *testing.T) *dashboard.Dashboard {
	t.Helper()
	data, err := os.ReadFile("../grafana/dashboard.json")
	if err != nil {
		t.Fatal(err)
	}
	if err := decodeStrictly(data); err != nil {
		t.Fatal(err)
	}
	d := dashboard.NewDashboard()
	if err := json.Unmarshal(data, d); err != nil {
		t.Fatal(err)
	}
	if err := d.Validate(); err != nil {
		t.Fatal(err)
	}
	return d
}

// TestDashboardStrict checks that decodeStrictly finds a misspelled field at each level of the dashboard.
func TestDashboardStrict(t *testing.T) {
	data, err := os.ReadFile("../grafana/dashboard.json")
	if err != nil {
		t.Fatal(err)
	}
	for _, field := range []string{"schemaVersion", "gridPos", "legendFormat", "reduceOptions", "drawStyle", "allValue", "cellHeight"} {
		if err := decodeStrictly(bytes.ReplaceAll(data, []byte(`"`+field+`"`), []byte(`"of another name"`))); err == nil {
			t.Errorf("decodeStrictly = nil without the field %s, want an error", field)
		}
	}
}

// panels returns the panels of all rows.
func panels(t *testing.T, d *dashboard.Dashboard) []*dashboard.Panel {
	t.Helper()
	var all []*dashboard.Panel
	for _, p := range d.Panels {
		if p.Panel != nil {
			all = append(all, p.Panel)
		}
		if p.RowPanel != nil && len(p.RowPanel.Panels) > 0 {
			t.Errorf("row %s is collapsed, so its panels are hidden at first", *p.RowPanel.Title)
		}
	}
	return all
}

func TestDashboard(t *testing.T) {
	d := readDashboard(t)
	if d.Id != nil || d.Uid == nil || *d.Uid != "plusminus" || d.Title == nil || *d.Title != "plusminus" {
		t.Error("want no id, and plusminus as uid and title, so that the dashboard can be imported")
	}
	var variables []string
	for _, v := range d.Templating.List {
		variables = append(variables, v.Name)
	}
	if got := strings.Join(variables, " "); got != "datasource job instance" {
		t.Errorf("variables = %q, want datasource, job and instance", got)
	}
	if d.Templating.List[0].Type != dashboard.VariableTypeDatasource {
		t.Error("the first variable is not a data source")
	}

	ids := map[uint32]string{}
	taken := map[[2]uint32]string{} // the panel in each cell of the grid
	place := func(id *uint32, title *string, pos *dashboard.GridPos) {
		if id == nil || title == nil || pos == nil {
			t.Error("a panel has no id, title or gridPos")
			return
		}
		if ids[*id] != "" {
			t.Errorf("%s and %s have the same id", *title, ids[*id])
		}
		ids[*id] = *title
		if pos.X+pos.W > 24 {
			t.Errorf("%s is wider than the grid", *title)
		}
		for x := pos.X; x < pos.X+pos.W; x++ {
			for y := pos.Y; y < pos.Y+pos.H; y++ {
				if other := taken[[2]uint32{x, y}]; other != "" {
					t.Fatalf("%s overlaps %s", *title, other)
				}
				taken[[2]uint32{x, y}] = *title
			}
		}
	}
	rows := 0
	for _, p := range d.Panels {
		if p.RowPanel != nil {
			rows++
			place(&p.RowPanel.Id, p.RowPanel.Title, p.RowPanel.GridPos)
			continue
		}
		place(p.Panel.Id, p.Panel.Title, p.Panel.GridPos)
	}
	if rows != 7 {
		t.Errorf("%d rows, want 7: at a glance, clients, hub, store, many counters, certificates, process", rows)
	}
	known := regexp.MustCompile(`\$\{?(datasource|job|instance|__rate_interval)\b`)
	variable := regexp.MustCompile(`\$\{?\w+`)
	for _, p := range panels(t, d) {
		if p.Description == nil || *p.Description == "" {
			t.Errorf("%s has no description", *p.Title)
		}
		if p.FieldConfig == nil || p.FieldConfig.Defaults.Unit == nil {
			t.Errorf("%s has no unit", *p.Title)
		}
		if p.Datasource == nil || *p.Datasource.Uid != "${datasource}" || len(p.Targets) == 0 {
			t.Errorf("%s has no query, or does not use ${datasource}", *p.Title)
		}
		for _, target := range p.Targets {
			q, ok := target.(*prometheus.Dataquery)
			if !ok {
				t.Fatalf("%s has a query of type %T", *p.Title, target)
			}
			if q.Datasource == nil || *q.Datasource.Uid != "${datasource}" || q.RefId == nil {
				t.Errorf("%s: %s does not use ${datasource}, or has no refId", *p.Title, q.Expr)
			}
			for _, v := range variable.FindAllString(q.Expr, -1) {
				if !known.MatchString(v) {
					t.Errorf("%s: there is no variable %s", *p.Title, v)
				}
			}
			if n := strings.Count(q.Expr, "{"); n != strings.Count(q.Expr, `{job="$job",instance=~"$instance"`) {
				t.Errorf("%s: %s does not select by $job and $instance everywhere", *p.Title, q.Expr)
			}
		}
	}
}
