package main

import (
	"cmp"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"time"
)

// values holds the numbers of one run, by the key of their column.
type values map[string]float64

// Sample is the result of one run of a scenario with one peer.
type Sample struct {
	Scenario string `json:"scenario"`
	Peer     string `json:"peer"`
	size
	Run    int    `json:"run"`
	Values values `json:"values"`
	Note   string `json:"note,omitempty"`
}

// size says how large a run of a scenario is.
type size struct {
	Clients  int `json:"clients,omitempty"`  // 0 in start
	Counters int `json:"counters,omitempty"` // 0 in scenarios that have only the default one
}

// compare orders sizes by clients, and then by counters.
func (a size) compare(b size) int {
	return cmp.Or(cmp.Compare(a.Clients, b.Clients), cmp.Compare(a.Counters, b.Counters))
}

// Results holds all samples, as -o writes them.
type Results struct {
	When    time.Time `json:"when"`
	Machine Machine   `json:"machine"`
	Command []string  `json:"command"`
	Base    string    `json:"base"`               // the peer that ratios compare with; "" is floor
	Left    []string  `json:"left_out,omitempty"` // peers that could not run, and why
	Samples []Sample  `json:"samples"`
}

// of returns the values of a column by run, for the runs that have it.
func (r *Results) of(scenario, peer string, n size, key string) map[int]float64 {
	m := map[int]float64{}
	for _, s := range r.Samples {
		if v, ok := s.Values[key]; ok && s.Scenario == scenario && s.Peer == peer && s.size == n {
			m[s.Run] = v
		}
	}
	return m
}

func medianOf(m map[int]float64) (float64, bool) {
	var xs []float64
	for _, x := range m {
		xs = append(xs, x)
	}
	return median(xs), len(xs) > 0
}

// ratio returns the median of a peer's ratios to base, each within one run: a slow moment of
// the machine then affects both. It returns false if no run has both values.
func (r *Results) ratio(base, scenario, peer string, n size, key string) (float64, bool) {
	baseline := r.of(scenario, base, n, key)
	ratios := map[int]float64{}
	for run, v := range r.of(scenario, peer, n, key) {
		if f := baseline[run]; f > 0 {
			ratios[run] = v / f
		}
	}
	return medianOf(ratios)
}

// sizes returns the sizes of a scenario's samples, ascending.
func (r *Results) sizes(scenario string) []size {
	var list []size
	for _, s := range r.Samples {
		if s.Scenario == scenario && !slices.Contains(list, s.size) {
			list = append(list, s.size)
		}
	}
	slices.SortFunc(list, size.compare)
	return list
}

// peers returns the peers of a scenario in the order of the table.
func (r *Results) peers(scenario string) []string {
	var list []string
	for _, s := range r.Samples {
		if s.Scenario == scenario && !slices.Contains(list, s.Peer) {
			list = append(list, s.Peer)
		}
	}
	slices.SortStableFunc(list, func(a, b string) int {
		return peerRank(a) - peerRank(b)
	})
	return list
}

// notes joins the different notes of all runs.
func (r *Results) notes(scenario, peer string, n size) string {
	var list []string
	for _, s := range r.Samples {
		if s.Scenario == scenario && s.Peer == peer && s.size == n && s.Note != "" && !slices.Contains(list, s.Note) {
			list = append(list, s.Note)
		}
	}
	return strings.Join(list, "; ")
}

// has reports whether there is a sample for these arguments.
func (r *Results) has(scenario, peer string, n size) bool {
	return slices.ContainsFunc(r.Samples, func(s Sample) bool {
		return s.Scenario == scenario && s.Peer == peer && s.size == n
	})
}

// markdown writes a table for each scenario that was run.
func (r *Results) markdown(w io.Writer) {
	fmt.Fprintf(w, "Measured on %s: %s.\n", r.When.Format(time.DateOnly), r.Machine)
	for _, left := range r.Left {
		fmt.Fprintf(w, "Left out: %s.\n", left)
	}
	for _, sc := range scenarios {
		if len(r.sizes(sc.name)) == 0 {
			continue
		}
		fmt.Fprintf(w, "\n### %s\n\n%s\n\n", sc.title, sc.about)
		r.table(w, sc)
	}
}

// table writes the Markdown table of a scenario.
func (r *Results) table(w io.Writer, sc scenario) {
	type shown struct {
		column
		isRatio bool
	}
	base := cmp.Or(r.Base, "floor")
	var columns []shown
	for _, c := range sc.columns {
		if !slices.ContainsFunc(r.Samples, func(s Sample) bool { _, ok := s.Values[c.key]; return ok && s.Scenario == sc.name }) {
			continue // no sample has this column
		}
		columns = append(columns, shown{c, false})
		if c.ratio {
			columns = append(columns, shown{c, true})
		}
	}
	row := func(cells ...string) { fmt.Fprintf(w, "| %s |\n", strings.Join(cells, " | ")) }
	head, rule := []string{"clients"}, []string{"---:"}
	sizes := r.sizes(sc.name)
	many := slices.ContainsFunc(sizes, func(n size) bool { return n.Counters > 0 })
	if many {
		head, rule = append(head, "counters"), append(rule, "---:")
	}
	head, rule = append(head, "server"), append(rule, "---")
	for _, c := range columns {
		title := c.title
		if c.isRatio {
			title = "× " + base
		}
		head, rule = append(head, title), append(rule, "---:")
	}
	row(append(head, "")...)
	row(append(rule, "---")...)
	for _, n := range sizes {
		for _, p := range r.peers(sc.name) {
			if !r.has(sc.name, p, n) {
				continue
			}
			cells := []string{grouped(fmt.Sprint(n.Clients))}
			if many {
				cells = append(cells, grouped(fmt.Sprint(n.Counters)))
			}
			cells = append(cells, p)
			for _, c := range columns {
				format, get := c.format, func() (float64, bool) { return medianOf(r.of(sc.name, p, n, c.key)) }
				if c.isRatio {
					format, get = "%.2f", func() (float64, bool) { return r.ratio(base, sc.name, p, n, c.key) }
				}
				cell := "–"
				if v, ok := get(); ok {
					if c.isRatio && v < 0.01 {
						format = "%.5f"
					}
					cell = grouped(fmt.Sprintf(format, v))
				}
				cells = append(cells, cell)
			}
			row(append(cells, r.notes(sc.name, p, n))...)
		}
	}
}

// grouped adds commas between the thousands of a decimal number.
func grouped(s string) string {
	whole, fraction, hasFraction := strings.Cut(s, ".")
	sign := ""
	if rest, ok := strings.CutPrefix(whole, "-"); ok {
		sign, whole = "-", rest
	}
	for i := len(whole) - 3; i > 0; i -= 3 {
		whole = whole[:i] + "," + whole[i:]
	}
	if hasFraction {
		whole += "." + fraction
	}
	return sign + whole
}

func (r *Results) writeJSON(file string) error {
	b, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return err
	}
	return os.WriteFile(file, append(b, '\n'), 0o644)
}
