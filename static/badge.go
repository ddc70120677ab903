package static

import (
	"bytes"
	"encoding/xml"
	"errors"
	"fmt"
	"math"
	"net/url"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"
)

// maxLabel bounds the label of a [Badge], in characters.
const maxLabel = 64

// badgeColors are the colours that have a name. The names are those that people know from shields.io.
var badgeColors = map[string]string{
	"brightgreen": "44cc11",
	"green":       "1a7f37",
	"yellowgreen": "a4a61d",
	"yellow":      "dfb317",
	"orange":      "fe7d37",
	"red":         "cf222e",
	"blue":        "0969da",
	"grey":        "555555",
	"lightgrey":   "9f9f9f",
}

// A Badge is a picture of a counter in the form that people know from shields.io: a label and a value.
type Badge struct {
	Label, Value string // any text that is UTF-8 without control characters
	color        string // of the value's background: six hexadecimal digits
}

// ParseBadge returns a badge with the label and the color that a query names, and no value. The label is "" if there is none.
// Other fields are ignored: pages add some to get around caches. The error is a sentence for the one who wrote the query.
func ParseBadge(query string) (b Badge, err error) {
	values, err := url.ParseQuery(query)
	if err != nil {
		return b, errors.New("the query is not of the form label=a%20label&color=blue")
	}
	b.color = badgeColors["blue"]
	for _, field := range []struct {
		name string
		set  func(string) error
	}{{"label", b.setLabel}, {"color", b.setColor}} {
		given := values[field.name]
		if len(given) > 1 {
			return b, fmt.Errorf("%s: give one", field.name)
		}
		if len(given) == 1 {
			if err := field.set(given[0]); err != nil {
				return b, fmt.Errorf("%s: %w", field.name, err)
			}
		}
	}
	return b, nil
}

func (b *Badge) setLabel(s string) error {
	switch n := utf8.RuneCountInString(s); {
	case n == 0 || n > maxLabel:
		return fmt.Errorf("a label has 1 to %d characters", maxLabel)
	case !utf8.ValidString(s) || strings.ContainsFunc(s, func(r rune) bool { return !unicode.IsPrint(r) }):
		return errors.New("a label has no control characters, and is UTF-8")
	case strings.TrimSpace(s) == "":
		return errors.New("a label has more than spaces")
	}
	b.Label = s
	return nil
}

func (b *Badge) setColor(s string) error {
	if hex, ok := badgeColors[s]; ok {
		b.color = hex
		return nil
	}
	if len(s) == 3 {
		s = string([]byte{s[0], s[0], s[1], s[1], s[2], s[2]})
	}
	if len(s) != 6 || strings.Trim(strings.ToLower(s), "0123456789abcdef") != "" {
		return errors.New("use 3 or 6 hexadecimal digits without #, or brightgreen, green, yellowgreen, yellow, orange, red, blue, grey or lightgrey")
	}
	b.color = strings.ToLower(s)
	return nil
}

const (
	labelColor  = "444444" // the label's background
	badgeHeight = 20       // in pixels, like all other sizes here
	badgePad    = 6        // on both sides of a text
	badgeFont   = 11
)

// SetUnknown makes b the badge of a value that is not known.
func (b *Badge) SetUnknown() { b.Value, b.color = "unknown", badgeColors["lightgrey"] }

// SVG returns the picture. It has no style attribute, so that it also works inside a page with a strict policy. textLength makes
// each text as wide as the table says, whatever font the viewer has.
func (b *Badge) SVG() []byte {
	left, right := textWidth(b.Label), textWidth(b.Value)
	split := int(math.Ceil(left)) + 2*badgePad
	width := split + int(math.Ceil(right)) + 2*badgePad
	label, value := escapeXML(b.Label), escapeXML(b.Value)

	var svg bytes.Buffer
	fmt.Fprintf(&svg, `<svg xmlns="http://www.w3.org/2000/svg" width="%d" height="%d" role="img" aria-label="%s: %s">`, width, badgeHeight, label, value)
	fmt.Fprintf(&svg, `<title>%s: %s</title>`, label, value)
	// Two halves with round corners outside.
	fmt.Fprintf(&svg, `<path fill="#%s" d="M%d 0v20H3a3 3 0 0 1-3-3V3a3 3 0 0 1 3-3z"/>`, labelColor, split)
	fmt.Fprintf(&svg, `<path fill="#%s" d="M%d 0h%da3 3 0 0 1 3 3v14a3 3 0 0 1-3 3H%dz"/>`, b.color, split, width-split-3, split)
	fmt.Fprintf(&svg, `<g font-family="Verdana,Geneva,DejaVu Sans,sans-serif" font-size="%d" text-anchor="middle">`, badgeFont)
	for _, half := range []struct {
		from, to    int
		color, text string
		width       float64
	}{{0, split, labelColor, label, left}, {split, width, b.color, value, right}} {
		fmt.Fprintf(&svg, `<text x="%s" y="14" fill="#%s" textLength="%s" xml:space="preserve">%s</text>`,
			decimal(float64(half.from+half.to)/2), textColor(half.color), decimal(half.width), half.text)
	}
	svg.WriteString("</g></svg>\n")
	return svg.Bytes()
}

// decimal formats a length with at most two decimals.
func decimal(v float64) string { return strconv.FormatFloat(math.Round(v*100)/100, 'f', -1, 64) }

func escapeXML(s string) string {
	var b strings.Builder
	_ = xml.EscapeText(&b, []byte(s)) // a Builder never fails
	return b.String()
}

// textColor returns the one of black and white that is read better on a background of this color. The contrast is then at least
// 4.58, more than https://www.w3.org/TR/WCAG22/#contrast-minimum asks for.
func textColor(background string) string {
	if l := luminance(background); (1+0.05)/(l+0.05) >= (l+0.05)/0.05 {
		return "ffffff"
	}
	return "000000"
}

// luminance returns the relative luminance of a color of six hexadecimal digits, from 0 to 1.
// https://www.w3.org/TR/WCAG22/#dfn-relative-luminance
func luminance(color string) float64 {
	n, _ := strconv.ParseUint(color, 16, 32) // setColor has checked it
	linear := func(shift int) float64 {
		c := float64(n>>shift&0xff) / 255
		if c <= 0.04045 {
			return c / 12.92
		}
		return math.Pow((c+0.055)/1.055, 2.4)
	}
	return 0.2126*linear(16) + 0.7152*linear(8) + 0.0722*linear(0)
}

// asciiWidths are the widths of the characters from space to ~ in DejaVu Sans, in thousandths of the font's size. Those of
// Verdana are within a few percent.
var asciiWidths = [...]int{
	318, 401, 460, 838, 636, 950, 780, 275, 390, 390, 500, 838, 318, 361, 318, 337,
	636, 636, 636, 636, 636, 636, 636, 636, 636, 636, 337, 337, 838, 838, 838, 531,
	1000, 684, 686, 698, 770, 632, 575, 775, 752, 295, 295, 656, 557, 863, 748, 787,
	603, 787, 695, 635, 611, 732, 684, 989, 685, 611, 685, 390, 337, 390, 838, 500,
	500, 613, 635, 550, 635, 615, 352, 635, 634, 278, 278, 579, 278, 974, 634, 612,
	635, 635, 411, 521, 392, 634, 592, 818, 592, 592, 525, 636, 337, 636, 838,
}

// textWidth returns the width of s in a badge. It estimates the width of characters that are not in asciiWidths.
func textWidth(s string) float64 {
	sum := 0
	for _, r := range s {
		switch {
		case r >= ' ' && r <= '~':
			sum += asciiWidths[r-' ']
		case unicode.Is(unicode.Mn, r) || unicode.Is(unicode.Me, r): // combine with the character before
		case r >= 0x1100 && unicode.In(r, unicode.Han, unicode.Hangul, unicode.Hiragana, unicode.Katakana), r >= 0x1f000, r >= 0xff01 && r <= 0xff60:
			sum += 1000
		default:
			sum += 650
		}
	}
	return float64(sum) * badgeFont / 1000
}
