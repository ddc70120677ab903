package main

import (
	"fmt"
	"html"
	"math"
	"os"
	"strings"
)

// A panel is one set of axes, both logarithmic.
type panel struct {
	title, key string
	left       float64
}

const (
	plotWidth, plotHeight   = 920, 420
	panelWidth, panelHeight = 330.0, 290.0
	panelTop                = 50.0
)

// colours can be told apart by colour-blind people, too (Okabe and Ito, 2008).
var colours = []string{"#000000", "#D55E00", "#0072B2", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#7F7F7F"}

// writePlot draws the results of fanout as SVG: CPU and time for each number of clients.
func (r *Results) writePlot(file string) error {
	var b strings.Builder
	fmt.Fprintf(&b, `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 %d %d" font-family="sans-serif" font-size="12">`+"\n", plotWidth, plotHeight)
	fmt.Fprintf(&b, `<rect width="%d" height="%d" fill="#fff"/>`+"\n", plotWidth, plotHeight)
	for _, p := range []panel{
		{"CPU for each message delivered, µs", "cpu_us", 60},
		{"time until the last client has it, ms", "last_ms", 460},
	} {
		r.drawPanel(&b, p)
	}
	x := 60.0
	for i, name := range r.peers("fanout") {
		fmt.Fprintf(&b, `<rect x="%.0f" y="400" width="12" height="4" fill="%s"/><text x="%.0f" y="406">%s</text>`+"\n",
			x, colours[i%len(colours)], x+16, html.EscapeString(name))
		x += 34 + 7*float64(len(name))
	}
	b.WriteString("</svg>\n")
	return os.WriteFile(file, []byte(b.String()), 0o644)
}

// drawPanel draws one panel with a line for each peer.
func (r *Results) drawPanel(b *strings.Builder, p panel) {
	sizes := r.sizes("fanout")
	lowest, highest := math.Inf(1), 0.0
	for _, name := range r.peers("fanout") {
		for _, n := range sizes {
			if v, ok := medianOf(r.of("fanout", name, n, p.key)); ok && v > 0 {
				lowest, highest = min(lowest, v), max(highest, v)
			}
		}
	}
	if highest == 0 {
		return
	}
	x := scale(float64(sizes[0].Clients), float64(sizes[len(sizes)-1].Clients), p.left, p.left+panelWidth)
	y := scale(lowest/1.2, highest*1.2, panelTop+panelHeight, panelTop)

	fmt.Fprintf(b, `<text x="%.0f" y="30" font-weight="bold">%s</text>`+"\n", p.left, p.title)
	fmt.Fprintf(b, `<text x="%.0f" y="%.0f" text-anchor="middle">clients</text>`+"\n", p.left+panelWidth/2, panelTop+panelHeight+36)
	for _, n := range sizes {
		at := x(float64(n.Clients))
		fmt.Fprintf(b, `<path d="M%.1f %.1fV%.1f" stroke="#ddd"/><text x="%.1f" y="%.0f" text-anchor="middle">%s</text>`+"\n",
			at, panelTop, panelTop+panelHeight, at, panelTop+panelHeight+18, grouped(fmt.Sprint(n.Clients)))
	}
	for _, t := range ticksBetween(lowest/1.2, highest*1.2) {
		at := y(t)
		fmt.Fprintf(b, `<path d="M%.1f %.1fH%.1f" stroke="#ddd"/><text x="%.1f" y="%.1f" text-anchor="end">%g</text>`+"\n",
			p.left, at, p.left+panelWidth, p.left-6, at+4, t)
	}
	for i, name := range r.peers("fanout") {
		var points []string
		for _, n := range sizes {
			if v, ok := medianOf(r.of("fanout", name, n, p.key)); ok && v > 0 {
				points = append(points, fmt.Sprintf("%.1f,%.1f", x(float64(n.Clients)), y(v)))
			}
		}
		colour := colours[i%len(colours)]
		fmt.Fprintf(b, `<polyline points="%s" fill="none" stroke="%s" stroke-width="2"/>`+"\n", strings.Join(points, " "), colour)
		for _, pt := range points {
			cx, cy, _ := strings.Cut(pt, ",")
			fmt.Fprintf(b, `<circle cx="%s" cy="%s" r="3" fill="%s"/>`+"\n", cx, cy, colour)
		}
	}
}

// scale returns a function that maps values from low to high to positions between from and to,
// by their logarithms.
func scale(low, high, from, to float64) func(float64) float64 {
	if low == high {
		high = low * 2
	}
	return func(v float64) float64 {
		return from + (to-from)*(math.Log(v)-math.Log(low))/(math.Log(high)-math.Log(low))
	}
}

// ticksBetween returns the numbers from low to high that are 1, 2 or 5 times a power of ten.
func ticksBetween(low, high float64) []float64 {
	var list []float64
	for e := math.Floor(math.Log10(low)); e <= math.Log10(high); e++ {
		for _, m := range []float64{1, 2, 5} {
			if t := m * math.Pow(10, e); t >= low && t <= high {
				list = append(list, t)
			}
		}
	}
	return list
}
