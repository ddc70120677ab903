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

// strictly decodes a dashboard into the types that Grafana generates from its own schemas, those of
// each panel's options and of each query included, and returns what they do not have, or lack.
func strictly(data []byte) error {
	plugins.RegisterDefaultPlugins()
	err := dashboard.NewDashboard().UnmarshalJSONStrict(data)
	var problems cog.BuildErrors
	if errors.As(err, &problems) && len(problems) == 0 {
		return nil // it returns a nil of this type when all is well, and then has not kept all
	}
	return err
}

func readDashboard(t *testing.T) *dashboard.Dashboard {
	t.Helper()
	data, err := os.ReadFile("../grafana/dashboard.json")
	if err != nil {
		t.Fatal(err)
	}
	if err := strictly(data); err != nil {
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

// What Grafana does not know, or wants, is found wherever it is.
func TestDashboardStrict(t *testing.T) {
	data, err := os.ReadFile("../grafana/dashboard.json")
	if err != nil {
		t.Fatal(err)
	}
	for _, field := range []string{"schemaVersion", "gridPos", "legendFormat", "reduceOptions", "drawStyle", "allValue", "cellHeight"} {
		if err := strictly(bytes.ReplaceAll(data, []byte(`"`+field+`"`), []byte(`"of another name"`))); err == nil {
			t.Errorf("a field of another name than %s is taken", field)
		}
	}
}

// panels returns those of all rows.
func panels(t *testing.T, d *dashboard.Dashboard) []*dashboard.Panel {
	t.Helper()
	var all []*dashboard.Panel
	for _, p := range d.Panels {
		if p.Panel != nil {
			all = append(all, p.Panel)
		}
		if p.RowPanel != nil && len(p.RowPanel.Panels) > 0 {
			t.Errorf("row %s is folded: what is in it is not seen at 3 a.m.", *p.RowPanel.Title)
		}
	}
	return all
}

func TestDashboard(t *testing.T) {
	d := readDashboard(t)
	if d.Id != nil || d.Uid == nil || *d.Uid != "plusminus" || d.Title == nil || *d.Title != "plusminus" {
		t.Error("an import wants no id, and a uid and title of our own")
	}
	var variables []string
	for _, v := range d.Templating.List {
		variables = append(variables, v.Name)
	}
	if got := strings.Join(variables, " "); got != "datasource job instance" {
		t.Errorf("variables %q, want datasource, job and instance", got)
	}
	if d.Templating.List[0].Type != dashboard.VariableTypeDatasource {
		t.Error("the first variable is no data source")
	}

	ids := map[uint32]string{}
	taken := map[[2]uint32]string{} // each cell of the grid
	place := func(id *uint32, title *string, pos *dashboard.GridPos) {
		if id == nil || title == nil || pos == nil {
			t.Error("a panel has no id, title or place")
			return
		}
		if ids[*id] != "" {
			t.Errorf("%s has the id of %s", *title, ids[*id])
		}
		ids[*id] = *title
		if pos.X+pos.W > 24 {
			t.Errorf("%s leaves the grid", *title)
		}
		for x := pos.X; x < pos.X+pos.W; x++ {
			for y := pos.Y; y < pos.Y+pos.H; y++ {
				if other := taken[[2]uint32{x, y}]; other != "" {
					t.Fatalf("%s lies on %s", *title, other)
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
	if rows != 6 {
		t.Errorf("%d rows, want 6: at a glance, clients, hub, store, certificates, process", rows)
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
			t.Errorf("%s asks no data source, or another one than the variable says", *p.Title)
		}
		for _, target := range p.Targets {
			q, ok := target.(*prometheus.Dataquery)
			if !ok {
				t.Fatalf("%s has a query of type %T", *p.Title, target)
			}
			if q.Datasource == nil || *q.Datasource.Uid != "${datasource}" || q.RefId == nil {
				t.Errorf("%s: %s asks another data source, or has no name", *p.Title, q.Expr)
			}
			for _, v := range variable.FindAllString(q.Expr, -1) {
				if !known.MatchString(v) {
					t.Errorf("%s: there is no variable %s", *p.Title, v)
				}
			}
			if n := strings.Count(q.Expr, "{"); n != strings.Count(q.Expr, `{job="$job",instance=~"$instance"`) {
				t.Errorf("%s: %s looks at others than those that were chosen", *p.Title, q.Expr)
			}
		}
	}
}
