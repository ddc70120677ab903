package e2e

import (
	"context"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/chromedp/cdproto/emulation"
	"github.com/chromedp/chromedp"
	"github.com/coder/websocket"
)

var update = flag.Bool("update", false, "TestScreenshots replaces the pictures of README")

// fastPlot makes the plot's clock run 100 times as fast.
const fastPlot = `{ const start = Date.now(), now = Date.now; Date.now = () => start + 100 * (now() - start); }`

// fits is JavaScript that returns what does not fit the window, what overlaps, and buttons that are too small. It
// returns "" if all is well.
const fits = `(() => {
	const bad = [];
	const { scrollWidth, scrollHeight } = document.documentElement;
	if (scrollWidth > innerWidth || scrollHeight > innerHeight) bad.push("scrolls: " + [scrollWidth, scrollHeight]);
	const boxes = [...document.querySelectorAll("header, #tagline, #value, #minute, figure, #notice, #buttons, #keys")]
		.filter((e) => e.checkVisibility()).map((e) => [e.id || e.localName, e.getBoundingClientRect()]);
	for (const [name, r] of boxes) {
		if (r.left < 0 || r.top < 0 || r.right > innerWidth + .5 || r.bottom > innerHeight + .5) bad.push(name + " is cut off");
	}
	boxes.forEach(([name, r], i) => {
		for (const [other, o] of boxes.slice(0, i)) {
			if (Math.min(r.right, o.right) - Math.max(r.left, o.left) > .5 && Math.min(r.bottom, o.bottom) - Math.max(r.top, o.top) > .5) {
				bad.push(name + " is over " + other);
			}
		}
	});
	for (const e of document.querySelectorAll("p, figcaption, button")) {
		if (e.id !== "announcer" && e.scrollWidth > e.clientWidth + 1) bad.push("the text of " + (e.id || e.localName) + " is wider than it");
	}
	for (const e of document.querySelectorAll("button")) {
		const r = e.getBoundingClientRect();
		// https://www.w3.org/TR/WCAG22/#target-size-enhanced
		if (e.checkVisibility() && (r.width < 44 || r.height < 44)) bad.push(e.id + " is small: " + [r.width, r.height]);
	}
	return bad.join("; ");
})()`

// TestScreenshots checks that everything fits the window, in each state of the page, at sizes from a small phone to a
// wall, in both colour schemes. With -artifacts or -long it takes a picture of each; with -update it writes README's.
func TestScreenshots(t *testing.T) {
	t.Parallel()
	browser := chromium(t)
	s := start(t, "-domain", "counter.test", "-action-rate", "0", "-store", "memory")
	url := "https://counter.test" + portOf(t, s.addrs.HTTPS[0]) + "/"
	for range 6 {
		go drain(t, s.join("wss://counter.test/"))
	}
	player := s.join("wss://counter.test/")
	go drain(t, player)
	for range 38 {
		send(t, player, `{"action":"plus"}`)
	}

	p := newPage(t, browser)
	p.inject(fastPlot)
	p.emulate("prefers-reduced-motion", "reduce")
	p.do(chromedp.Navigate(url))
	p.waitOpen()
	// The plot of a picture needs some minutes of values. Most clients want up for a while, then down.
	pictures := *update || *long || flag.Lookup("test.artifacts").Value.String() == "true"
	steps := 5
	if pictures {
		steps = 115
	}
	random := rand.New(rand.NewPCG(6, 4))
	for i := range steps {
		up := 0.5 - 0.25*float64(1-(i+12)/30%2*2)
		for range random.IntN(3) {
			action := `{"action":"minus"}`
			if random.Float64() < up {
				action = `{"action":"plus"}`
			}
			send(t, player, action)
		}
		time.Sleep(28 * time.Millisecond)
	}
	p.waitText("value", format(valueOf(s, "https://counter.test/")))

	states := []struct {
		name  string
		enter func()
	}{
		{"live", func() {}},
		{"offline", func() {
			p.network(false)
			p.waitState("offline")
		}},
		{"refusal", func() { p.click("plus") }},
		{"waiting", func() {
			if err := s.stop(); err != nil {
				t.Fatal(err)
			}
			p.network(true)
			p.waitState("waiting")
			p.waitText("message", "")
		}},
	}
	for _, state := range states {
		state.enter()
		for _, size := range []struct{ width, height int64 }{{320, 640}, {640, 320}, {1280, 800}, {3840, 2160}} {
			// Not EmulateViewport, which takes the mouse away.
			call(p, emulation.SetDeviceMetricsOverride, emulation.SetDeviceMetricsOverrideParams{
				Width: size.width, Height: size.height, DeviceScaleFactor: 1, Mobile: size.width < 1000,
			})
			for _, scheme := range []string{"light", "dark"} {
				p.emulate("prefers-color-scheme", scheme, "prefers-reduced-motion", "reduce")
				name := fmt.Sprintf("%s-%dx%d-%s", state.name, size.width, size.height, scheme)
				if bad := p.eval(fits); bad != "" {
					t.Errorf("%s: %s", name, bad)
				}
				if !pictures {
					continue
				}
				picture, err := chromedp.Run(p.ctx, chromedp.CaptureScreenshot())
				if err != nil {
					t.Fatal(err)
				}
				write(t, filepath.Join(t.ArtifactDir(), name+".png"), picture)
				if *update && state.name == "live" && size.width == 1280 {
					write(t, filepath.Join(".ci", "pictures", scheme+".png"), picture)
				}
			}
		}
	}
}

// TestLongestValue checks that the longest value fits one line on the smallest phone.
func TestLongestValue(t *testing.T) {
	t.Parallel()
	browser := chromium(t)
	data := t.TempDir()
	if out, err := command(t, "value", "set", "-9007199254740991", "-data", data).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	s := start(t, "-data", data)
	p := newPage(t, browser)
	p.emulate("prefers-reduced-motion", "reduce") // nothing moves while the test measures
	p.do(chromedp.EmulateViewport(320, 640), chromedp.Navigate("https://localhost"+portOf(t, s.addrs.HTTPS[0])+"/"))
	p.waitText("value", "−9,007,199,254,740,991")
	if bad := p.eval(fits); bad != "" {
		t.Error(bad)
	}
	p.click("minus")
	p.waitText("message", "The counter is at its limit: this action was not counted.")
	if bad := p.eval(fits); bad != "" {
		t.Error(bad)
	}
}

func write(t *testing.T, name string, data []byte) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(name, data, 0o644); err != nil {
		t.Fatal(err)
	}
}

// drain reads and ignores messages until the connection ends.
func drain(t *testing.T, ws *websocket.Conn) {
	for {
		if _, _, err := ws.Read(context.WithoutCancel(t.Context())); err != nil {
			return
		}
	}
}
