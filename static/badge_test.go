package static

import (
	"bytes"
	"encoding/xml"
	"fmt"
	"io"
	"math"
	"net/url"
	"os"
	"regexp"
	"strconv"
	"strings"
	"testing"
)

// readSVG returns the texts in an SVG and the values of its attributes, by "element attribute". It fails the test if the
// SVG is not well-formed.
func readSVG(t testing.TB, svg []byte) (texts []string, attributes map[string][]string) {
	t.Helper()
	attributes = make(map[string][]string)
	d := xml.NewDecoder(bytes.NewReader(svg))
	var in string
	for {
		token, err := d.Token()
		if err == io.EOF {
			return texts, attributes
		}
		if err != nil {
			t.Fatalf("%s: %v", svg, err)
		}
		switch token := token.(type) {
		case xml.StartElement:
			in = token.Name.Local
			for _, a := range token.Attr {
				key := in + " " + a.Name.Local
				attributes[key] = append(attributes[key], a.Value)
			}
		case xml.CharData:
			if text := string(token); in == "text" || in == "title" {
				texts = append(texts, text)
			}
		case xml.EndElement:
			in = ""
		}
	}
}

func TestBadgeQuery(t *testing.T) {
	for _, tt := range []struct {
		query string
		want  Badge
		err   string
	}{
		{"", Badge{color: "0969da"}, ""},
		{"label=Likes", Badge{Label: "Likes", color: "0969da"}, ""},
		{"label=a+%3Cb%3E%20%26%20%22c%22", Badge{Label: `a <b> & "c"`, color: "0969da"}, ""},
		{"label=%E2%99%A5&color=red", Badge{Label: "♥", color: "cf222e"}, ""},
		{"color=4C1", Badge{color: "44cc11"}, ""},
		{"color=00Ff7f&v=3", Badge{color: "00ff7f"}, ""},
		{"label=" + strings.Repeat("x", 64), Badge{Label: strings.Repeat("x", 64), color: "0969da"}, ""},

		{"label=", Badge{}, "label: a label has 1 to 64 characters"},
		{"label=" + strings.Repeat("x", 65), Badge{}, "label: a label has 1 to 64 characters"},
		{"label=%20", Badge{}, "label: a label has more than spaces"},
		{"label=a&label=b", Badge{}, "label: give one"},
		{"label=%00", Badge{}, "label: a label has no control characters, and is UTF-8"},
		{"label=a%0Ab", Badge{}, "label: a label has no control characters, and is UTF-8"},
		{"label=%E2%80%AEa", Badge{}, "label: a label has no control characters, and is UTF-8"}, // right-to-left override
		{"label=%ff", Badge{}, "label: a label has no control characters, and is UTF-8"},
		{"label=%zz", Badge{}, "the query is not of the form"},
		{"label=a;color=red", Badge{}, "the query is not of the form"},
		{"color=", Badge{}, "color: use 3 or 6 hexadecimal digits"},
		{"color=%23ff0000", Badge{}, "color: use 3 or 6 hexadecimal digits"},
		{"color=ff00", Badge{}, "color: use 3 or 6 hexadecimal digits"},
		{"color=Red", Badge{}, "color: use 3 or 6 hexadecimal digits"},
		{"color=%22/%3E%3C", Badge{}, "color: use 3 or 6 hexadecimal digits"},
		{"color=red&color=red", Badge{}, "color: give one"},
	} {
		got, err := ParseBadge(tt.query)
		if tt.err == "" && (err != nil || got != tt.want) || tt.err != "" && (err == nil || !strings.HasPrefix(err.Error(), tt.err)) {
			t.Errorf("ParseBadge(%q) = %+v, %v, want %+v, %q", tt.query, got, err, tt.want, tt.err)
		}
	}
	_, err := ParseBadge("color=x")
	for name := range badgeColors {
		if !regexp.MustCompile(`\b` + name + `\b`).MatchString(err.Error()) {
			t.Errorf("the error %q does not name %s", err, name)
		}
	}
}

// Every text fits its half of the picture, and is escaped.
func TestBadgeSVG(t *testing.T) {
	for _, b := range []Badge{
		{"likes", "0", "0969da"},
		{"i", "-9007199254740991", "000000"},
		{`</text><script>alert("1")</script>&'`, `{"a":"<b>"}`, "ffffff"},
		{strings.Repeat("W", 64), "1", "cf222e"},
		{"人数 ♥ é", "[1,0,2]", "1a7f37"},
	} {
		texts, attributes := readSVG(t, b.SVG())
		if want := []string{b.Label + ": " + b.Value, b.Label, b.Value}; fmt.Sprintf("%q", texts) != fmt.Sprintf("%q", want) {
			t.Errorf("%+v has the texts %q, want %q", b, texts, want)
		}
		number := func(key string, i int) float64 {
			v, err := strconv.ParseFloat(attributes[key][i], 64)
			if err != nil {
				t.Fatal(err)
			}
			return v
		}
		split, err := strconv.ParseFloat(regexp.MustCompile(`^M(\d+) `).FindStringSubmatch(attributes["path d"][0])[1], 64)
		if err != nil {
			t.Fatal(err)
		}
		edges := []float64{0, split, number("svg width", 0)}
		for i := range 2 {
			middle, half := number("text x", i), number("text textLength", i)/2
			if left, right := middle-half-edges[i], edges[i+1]-middle-half; left < badgePad-0.01 || left > badgePad+1 || math.Abs(left-right) > 0.02 {
				t.Errorf("%+v: text %d has %v on its left and %v on its right, want %d or a little more on both", b, i, left, right, badgePad)
			}
		}
		if strings.Contains(string(b.SVG()), "style") {
			t.Errorf("%+v has a style, which a strict policy forbids", b)
		}
	}
}

// The text can be read on every background.
func TestBadgeContrast(t *testing.T) {
	colors := []string{labelColor}
	for _, c := range badgeColors {
		colors = append(colors, c)
	}
	for i := range 4096 {
		colors = append(colors, fmt.Sprintf("%02x%02x%02x", i>>8*17, i>>4&15*17, i&15*17))
	}
	for _, c := range colors {
		a, b := luminance(c), luminance(textColor(c))
		if contrast := (max(a, b) + 0.05) / (min(a, b) + 0.05); contrast < 4.5 {
			t.Errorf("text on %s has a contrast of %.2f, want 4.5", c, contrast)
		}
	}
	for color, want := range map[string]float64{"000000": 0, "ffffff": 1, "777777": 0.1845, "ff0000": 0.2126} {
		if got := luminance(color); math.Abs(got-want) > 0.0001 {
			t.Errorf("luminance(%s) = %v, want %v", color, got, want)
		}
	}
}

// TestBadgePage compares docs/embed.md with what a badge takes.
func TestBadgePage(t *testing.T) {
	page, err := os.ReadFile("../docs/embed.md")
	if err != nil {
		t.Fatal(err)
	}
	text := strings.Join(strings.Fields(string(page)), " ")
	if want := fmt.Sprintf("1 to %d characters", maxLabel); !strings.Contains(text, want) {
		t.Errorf("docs/embed.md does not say %q", want)
	}
	for name := range badgeColors {
		if !strings.Contains(text, "`"+name+"`") {
			t.Errorf("docs/embed.md does not name the color %s", name)
		}
	}
}

// FuzzBadge checks that each query gives a well-formed picture or an error of one short line.
func FuzzBadge(f *testing.F) {
	for _, query := range []string{"", "label=a&color=red", "label=%3C%26%22%27&color=4c1", "label=%F0%9F%91%8D", "color=%23", "label=%ff", "&&;=%", "label=]]%3E"} {
		f.Add(query)
	}
	f.Fuzz(func(t *testing.T, query string) {
		b, err := ParseBadge(query)
		if err != nil {
			if text := err.Error(); strings.Contains(text, "\n") || len(text) > 200 {
				t.Errorf("the badge of %q is refused with %q", query, text)
			}
			return
		}
		label := ""
		if values, err := url.ParseQuery(query); err == nil {
			label = values.Get("label")
		}
		if label == "" {
			label, b.Label = "counter", "counter"
		}
		b.Value = "0"
		if texts, _ := readSVG(t, b.SVG()); len(texts) != 3 || texts[1] != label || texts[2] != "0" {
			t.Errorf("the badge of %q shows %q, want %q and 0", query, texts, label)
		}
	})
}
