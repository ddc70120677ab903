package e2e

import (
	"bytes"
	"encoding/json"
	"fmt"
	"image/png"
	"io"
	"net/http"
	"strings"
	"testing"

	"github.com/chromedp/cdproto/cdp"
	"github.com/chromedp/cdproto/emulation"
	"github.com/chromedp/cdproto/performance"
	"github.com/chromedp/chromedp"
	"github.com/chromedp/chromedp/kb"
	"github.com/coder/websocket"
	qrcode "github.com/piglig/go-qr"
)

// layout is JavaScript that returns where the parts of the page are.
const layout = `JSON.stringify(["header", "#tagline", "#stage", "#minute", "figure", "#notice", "#buttons", "#keys"].map((part) => {
	const { x, y, height } = document.querySelector(part).getBoundingClientRect();
	return [part, x, y, height];
}))`

// TestChromiumSkeleton opens the page on a server that is slow to tell the value. Until then the page shows the place of a
// number, and nothing moves when the value and the history come.
func TestChromiumSkeleton(t *testing.T) {
	t.Parallel()
	browser := chromium(t)
	for _, size := range []struct{ width, height int64 }{{320, 640}, {640, 320}, {390, 844}, {1280, 800}} {
		t.Run(fmt.Sprintf("%dx%d", size.width, size.height), func(t *testing.T) {
			t.Parallel()
			slow := make(chan struct{})
			url := serveWith(t, func(w http.ResponseWriter, r *http.Request) {
				select {
				case <-slow:
				case <-r.Context().Done():
				}
				io.WriteString(w, `{"before":120,"points":[[-200,121],[-30,123]]}`)
			}, func(ws *websocket.Conn) {
				select {
				case <-slow:
				case <-t.Context().Done():
					return
				}
				tell(t, ws, `{"type":"users","count":2}`)
				tell(t, ws, `{"type":"state","value":123}`)
				ws.Read(t.Context())
			})
			p := newPage(t, browser)
			p.emulate("prefers-reduced-motion", "reduce") // no part is on its way while the test measures
			p.inject(`{
				window.shifts = [];
				new PerformanceObserver((list) => {
					for (const e of list.getEntries()) window.shifts.push(...e.sources.map(({ node }) => node?.id || node?.parentElement?.id || node?.nodeName));
				}).observe({ type: "layout-shift", buffered: true });
			}`)
			call(p, emulation.SetDeviceMetricsOverride, emulation.SetDeviceMetricsOverrideParams{
				Width: size.width, Height: size.height, DeviceScaleFactor: 1, Mobile: size.width < 1000,
			})
			p.do(chromedp.Navigate(url))
			p.waitOpen()
			if got := p.eval(`value.textContent`); got != "" {
				t.Errorf("before the first value the page shows %q, want no text", got)
			}
			if got := p.eval(`getComputedStyle(value, "::before").content`); got != `""` {
				t.Errorf("before the first value the place of the number has the content %s, want an empty box", got)
			}
			if bad := p.eval(fits); bad != "" {
				t.Error(bad)
			}
			before := p.eval(layout)
			p.eval(`(window.shifts = [])`) // the browser may have painted parts of the page while it arrived
			close(slow)
			p.waitText("value", "123")
			p.waitText("minute", "+2 in the last minute")
			p.waitText("users", " · 2 people here")
			if after := p.eval(layout); after != before {
				t.Errorf("the parts of the page were at %s, and are at %s with a value", before, after)
			}
			p.eval(frames(3)) // a shift is reported in a frame
			p.wait(`window.waited`)
			if shifts := p.eval(`shifts`); shifts != "" {
				t.Errorf("these elements have shifted: %s, want none", shifts)
			}
			p.eval(`main = document.querySelector("main"), main.style.marginTop = "60px"`)
			p.wait(`shifts.length > 0`) // the browser does report them
		})
	}
}

// frames is JavaScript that sets window.waited after n animation frames.
func frames(n int) string {
	return fmt.Sprintf(`(window.waited = false, (function wait(n) { n ? requestAnimationFrame(() => wait(n - 1)) : window.waited = true; })(%d))`, n)
}

// TestChromiumHistory checks that the plot begins with what happened before the page was there.
func TestChromiumHistory(t *testing.T) {
	t.Parallel()
	browser := chromium(t)
	t.Run("of the server", func(t *testing.T) {
		t.Parallel()
		s := start(t, "-domain", "counter.test", "-store", "memory", "-counters", "likes")
		for path, want := range map[string]int64{"": 3, "c/likes": -2} {
			ws := s.join("wss://counter.test/" + path)
			for range max(want, -want) {
				send(t, ws, map[bool]string{true: `{"action":"plus"}`, false: `{"action":"minus"}`}[want > 0])
			}
			go drain(t, ws)
			url := "https://counter.test" + portOf(t, s.addrs.HTTPS[0]) + "/" + path
			p := openPage(t, browser, url)
			p.waitText("value", format(want))
			p.do(chromedp.Navigate(url)) // now all of them are history
			p.waitText("value", format(want))
			p.waitText("minute", map[int64]string{3: "+3 in the last minute", -2: "−2 in the last minute"}[want])
			p.waitText("caption", map[int64]string{3: "Last 5 minutes: 0 to 3", -2: "Last 5 minutes: −2 to 0"}[want])
			p.wantNoProblems("with a history")
		}
	})
	value := func(ws *websocket.Conn) {
		tell(t, ws, `{"type":"users","count":1}`)
		tell(t, ws, `{"type":"state","value":5}`)
		ws.Read(t.Context())
	}
	t.Run("in its seconds", func(t *testing.T) {
		t.Parallel()
		p := newPage(t, browser)
		p.emulate("prefers-reduced-motion", "reduce")
		p.inject(`Date.now = () => 1e12`) // no second passes
		p.do(chromedp.Navigate(serveWith(t, func(w http.ResponseWriter, _ *http.Request) {
			io.WriteString(w, `{"before":2,"points":[[-240,3],[-60,4],[0,5]]}`)
		}, value)))
		p.waitText("value", "5")
		p.waitText("caption", "Last 5 minutes: 2 to 5")
		p.waitText("minute", "+1 in the last minute")
		// Of the numbers in the line, the ends of the curves: a change ends in the column of its second.
		if got := p.eval(`[...plot.children[3].getAttribute("d").matchAll(/C\S+ \S+ \S+ \S+ (\S+) /g)].map((m) => m[1])`); got != "60,240,300" {
			t.Errorf("the line changes in the columns %s, want 60, 240 and 300", got)
		}
		if got := p.eval(`[...scale.children].map((e) => e.textContent)`); got != "40,30,20,10,0" && got != "0,10,20,30,40" {
			t.Errorf("the scale has the numbers %s, want 0, 10, 20, 30 and 40", got)
		}
	})
	for name, history := range map[string]http.HandlerFunc{
		"not found":       func(w http.ResponseWriter, r *http.Request) { http.NotFound(w, r) },
		"unavailable":     func(w http.ResponseWriter, _ *http.Request) { http.Error(w, "later", http.StatusServiceUnavailable) },
		"no JSON":         func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "<html>") },
		"another JSON":    func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "null") },
		"no answer":       func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) },
		"of other fields": func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, `{"value":5}`) },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			p := openPage(t, browser, serveWith(t, history, value))
			p.waitText("value", "5")
			p.waitText("caption", "Last 5 minutes: 5")
			p.wait(`plot.children[4].getAttribute("d") !== null`)
			if got := p.eval(`minute.textContent`); got != "" {
				t.Errorf("the page says %q, want nothing: it does not know what was a minute ago", got)
			}
			if problems := strings.Join(p.takeProblems(), "\n"); strings.Contains(problems, "exception") || strings.Contains(problems, "Error:") {
				t.Errorf("the browser reports %s", problems)
			}
		})
	}
}

// floats makes a page keep what rises and falls: the id of where it does, and its text.
const floats = `{
	window.floated = [];
	window.most = 0;
	new MutationObserver((records) => {
		for (const r of records) for (const e of r.addedNodes) if (e.localName === "i") floated.push(r.target.id + " " + e.textContent + " " + e.className);
		most = Math.max(most, document.querySelectorAll("i").length);
	}).observe(document, { childList: true, subtree: true });
}`

// TestChromiumOwnAndOthers checks that a change of the visitor shows at the button, and one of others at the number.
func TestChromiumOwnAndOthers(t *testing.T) {
	t.Parallel()
	browser := chromium(t)
	for _, motion := range []string{"no-preference", "reduce"} {
		// The server answers each action with these values.
		values := make(chan int, 1)
		say := make(chan int, 1)
		url := serveTo(t, func(ws *websocket.Conn) {
			tell(t, ws, `{"type":"users","count":9}`)
			tell(t, ws, `{"type":"state","value":10}`)
			go func() {
				for {
					select {
					case v := <-say:
						tell(t, ws, fmt.Sprintf(`{"type":"state","value":%d}`, v))
					case <-t.Context().Done():
						return
					}
				}
			}()
			for {
				if _, _, err := ws.Read(t.Context()); err != nil {
					return
				}
				say <- <-values
			}
		})
		p := newPage(t, browser)
		p.inject(floats)
		p.emulate("prefers-reduced-motion", motion)
		p.do(chromedp.Navigate(url))
		p.waitText("value", "10")
		want := func(value int, want string) {
			t.Helper()
			p.waitText("value", format(int64(value)))
			if motion == "reduce" {
				p.eval(frames(3))
				p.wait(`window.waited`)
				if got := p.eval(`most`); got != "0" {
					t.Errorf("with reduced motion %s changes float, want none", got)
				}
				return
			}
			p.wait(fmt.Sprintf(`floated.join() === %q`, want))
			p.wait(`document.querySelectorAll("i").length === 0`) // they go by themselves
			p.eval(`(window.floated.length = 0)`)
		}
		say <- 11
		want(11, "others +1 up")
		say <- 8
		want(8, "others −3 down")
		values <- 9
		p.click("plus")
		want(9, "plus +1 up")
		values <- 8
		p.click("minus")
		want(8, "minus −1 down")
		values <- 46 // merged with a crowd
		p.click("plus")
		want(46, "plus +1 up,others +37 up")
		values <- 40
		p.click("plus") // others have taken away more
		want(40, "others −6 down")
	}
}

// TestChromiumFlood sends a page 10,000 values. The page works once in a frame, and the number of its elements is bounded.
func TestChromiumFlood(t *testing.T) {
	t.Parallel()
	browser := chromium(t)
	p := newPage(t, browser)
	p.inject(floats)
	p.inject(`window.WebSocket = class extends WebSocket { constructor(...args) { super(...args); window.ws = this; } }`)
	p.do(chromedp.Navigate(serveTo(t, func(ws *websocket.Conn) {
		tell(t, ws, `{"type":"users","count":1}`)
		tell(t, ws, `{"type":"state","value":0}`)
		for {
			if _, _, err := ws.Read(t.Context()); err != nil {
				return
			}
		}
	})))
	p.waitText("value", "0")
	p.wait(`plot.children[3].getAttribute("d") !== null`)
	call(p, performance.Enable, performance.EnableParams{})
	metric := func(name string) float64 {
		t.Helper()
		for _, m := range call(p, performance.GetMetrics, cdp.Empty{}).Metrics {
			if m.Name == name {
				return m.Value
			}
		}
		t.Fatalf("Chromium has no metric %s", name)
		return 0
	}
	layouts, styles := metric("LayoutCount"), metric("RecalcStyleCount")
	elements := p.eval(`document.querySelectorAll("*").length`)
	p.eval(`(() => {
		window.frames = window.shown = window.drawn = window.elements = window.animations = 0;
		(function count() {
			if (window.frames++ % 10 === 9) animations = Math.max(animations, document.getAnimations().length);
			requestAnimationFrame(count);
		})();
		new MutationObserver((r) => shown += r.length).observe(value, { childList: true });
		new MutationObserver((r) => drawn += r.length).observe(plot.children[3], { attributes: true });
		new MutationObserver(() => elements = Math.max(elements, document.querySelectorAll("*").length)).observe(document, { childList: true, subtree: true });
		let v = 0;
		const some = setInterval(() => {
			for (let i = 0; i < 100; i++) {
				v += v % 7 ? 1 : 2;
				ws.onmessage({ data: '{"type":"state","value":' + v + '}' });
				ws.onmessage({ data: '{"type":"users","count":' + v + '}' });
			}
			if (v >= 10000) clearInterval(some), window.end = v;
		}, 10);
	})()`)
	p.wait(`window.end && value.textContent === end.toLocaleString("en")`)
	var count, shown, drawn, least, most, floating, animations int
	fmt.Sscan(p.eval(`[frames, shown, drawn, elements, most, animations].join(" ")`), &count, &shown, &drawn, &most, &floating, &animations)
	fmt.Sscan(elements, &least)
	layouts, styles = metric("LayoutCount")-layouts, metric("RecalcStyleCount")-styles
	t.Logf("%d frames; %d numbers and %d lines drawn, %v layouts, %v style recalculations", count, shown, drawn, layouts, styles)
	if shown > count || shown < 2 {
		t.Errorf("in %d frames the page showed %d numbers, want at most one a frame, and some", count, shown)
	}
	if drawn > count || drawn < 2 {
		t.Errorf("in %d frames the page drew %d lines, want at most one a frame, and some", count, drawn)
	}
	// A frame has one layout. It has a recalculation for the page, one for animations, and one inside each of main, figure
	// and #scale, whose children depend on their sizes. The test's own looks at the page add some.
	if most := float64(5*count + 20); layouts > float64(2*count+20) || styles > most {
		t.Errorf("in %d frames Chromium made %v layouts and %v style recalculations, want at most %v", count, layouts, styles, most)
	}
	if animations < 1 || animations > 6 {
		t.Errorf("up to %d animations ran at once, want 1 to 6", animations)
	}
	if least == 0 || most < least || most > least+20 {
		t.Errorf("the page had %d elements, and up to %d in the flood, want at most 20 more", least, most)
	}
	if floating < 1 || floating > 4 {
		t.Errorf("up to %d changes floated at once, want 1 to 4", floating)
	}
	// The crowd is added up, and nothing of it is lost.
	p.wait(`floated.reduce((sum, f) => sum + Number(f.split(" ")[1].replaceAll(",", "")), 0) === end`)
	p.wantNoProblems("in a flood")
}

// TestChromiumShare shares the page by the system's own dialog, by the clipboard, or by a selection, and reads the QR code.
func TestChromiumShare(t *testing.T) {
	t.Parallel()
	browser := chromium(t)
	s := start(t, "-domain", "counter.test", "-store", "memory", "-counters", "likes")
	url := "https://counter.test" + portOf(t, s.addrs.HTTPS[0]) + "/c/likes"
	const clipboard = `Object.defineProperty(navigator, "clipboard", { value: { writeText: async (text) => { %s } } });`
	for _, tt := range []struct {
		name, script, label, said, result, want string
	}{
		{"system", `navigator.share = async (what) => { window.shared = what; };`, "Send link", "", `JSON.stringify(shared)`, fmt.Sprintf(`{"title":"likes · plusminus","url":%q}`, url)},
		{"given up", `navigator.share = async () => { window.shared = 1; throw new DOMException("", "AbortError"); };`, "Send link", "", `shared`, "1"},
		{"clipboard", `delete Navigator.prototype.share; ` + fmt.Sprintf(clipboard, `window.text = text;`), "Copy link", "The link is copied.", `text`, url},
		{"selection", `delete Navigator.prototype.share; ` + fmt.Sprintf(clipboard, `throw new Error("not allowed");`), "Copy link", "Copy the selected link.", `getSelection()`, url},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			p := newPage(t, browser)
			p.emulate("prefers-reduced-motion", "reduce")
			p.inject(tt.script)
			p.do(chromedp.Navigate(url))
			p.waitText("value", "0")
			p.click("share")
			p.wait(`invite.open && qr.complete && qr.naturalWidth > 0`)
			p.waitText("send", tt.label)
			p.waitText("address", url)
			p.click("send")
			p.waitText("copied", tt.said)
			if got := p.eval(tt.result); got != tt.want {
				t.Errorf("shared %s, want %s", got, tt.want)
			}
			for _, size := range []struct{ width, height int64 }{{320, 640}, {640, 320}, {1280, 800}} {
				call(p, emulation.SetDeviceMetricsOverride, emulation.SetDeviceMetricsOverrideParams{
					Width: size.width, Height: size.height, DeviceScaleFactor: 1,
				})
				if bad := p.eval(`[invite, qr, address, send, invite.querySelector("#close")].filter((e) => {
					const r = e.getBoundingClientRect();
					return r.left < 0 || r.right > innerWidth || e !== address && e !== invite && r.width < 44 || invite.scrollWidth > invite.clientWidth;
				}).map((e) => e.id)`); bad != "" {
					t.Errorf("%dx%d: %s: cut off or small", size.width, size.height, bad)
				}
			}
			for _, scheme := range []string{"light", "dark"} {
				p.emulate("prefers-color-scheme", scheme, "prefers-reduced-motion", "reduce")
				if bad := p.eval(contrasts); bad != "" {
					t.Errorf("%s: %s", scheme, bad)
				}
				picture, err := chromedp.Run(p.ctx, chromedp.Screenshot(chromedp.ID("qr")))
				if err != nil {
					t.Fatal(err)
				}
				img, err := png.Decode(bytes.NewReader(picture))
				if err != nil {
					t.Fatal(err)
				}
				if text, err := qrcode.Decode(img); err != nil || text != url {
					t.Errorf("%s: the QR code says %q, %v, want %q", scheme, text, err, url)
				}
			}
			p.wantNoProblems("with the dialog")
			p.key(kb.Escape)
			p.wait(`!invite.open && document.activeElement === share`)
		})
	}
}

// TestChromiumBudget measures what the page loads, with the QR code: 40 KB at most.
func TestChromiumBudget(t *testing.T) {
	t.Parallel()
	browser := chromium(t)
	s := start(t, "-domain", "counter.test", "-store", "memory", "-counters", "likes")
	for _, path := range []string{"", "c/likes"} {
		p := openPage(t, browser, "https://counter.test"+portOf(t, s.addrs.HTTPS[0])+"/"+path)
		p.waitText("value", "0")
		p.click("share")
		p.wait(`qr.complete && qr.naturalWidth > 0`)
		p.wait(`document.fonts.check("800 16px Manrope") && [...document.fonts].every((f) => f.status === "loaded")`)
		var loaded []struct {
			Name string
			Size int
		}
		if err := json.Unmarshal([]byte(p.eval(`JSON.stringify([...performance.getEntriesByType("navigation"), ...performance.getEntriesByType("resource")]
			.map((e) => ({ name: e.name, size: e.decodedBodySize })))`)), &loaded); err != nil {
			t.Fatal(err)
		}
		total, seen := 0, map[string]int{}
		for _, l := range loaded {
			name := l.Name[strings.LastIndex(l.Name, "/")+1:]
			name, _, _ = strings.Cut(name, "?")
			seen[name]++
			total += l.Size
		}
		for _, name := range []string{"app.js", "client.js", "changes.js", "plot.js", "style.css", "manrope.woff2", "history", "qr.svg"} {
			if seen[name] != 1 {
				t.Errorf("/%s: the page loaded %s %d times, want once: %v", path, name, seen[name], loaded)
			}
		}
		if total > 40<<10 || total < 20_000 {
			t.Errorf("/%s: the page loaded %d bytes, want 20,000 to 40,960: %v", path, total, loaded)
		}
		p.wantNoProblems("with all that the page loads")
	}
}

// TestPreview checks what the real server says of its pages to messengers.
func TestPreview(t *testing.T) {
	t.Parallel()
	s := start(t, "-domain", "counter.test", "-counters", "*")
	for path, title := range map[string]string{"": "plusminus", "c/door.1": "door.1 · plusminus"} {
		resp, body := s.get("https://counter.test/"+path, "")
		for _, want := range []string{
			fmt.Sprintf(`<meta property="og:url" content="https://counter.test/%s">`, path),
			fmt.Sprintf(`<meta property="og:title" content="%s">`, title),
			`<meta property="og:image" content="https://counter.test/share.png">`,
		} {
			if resp.StatusCode != http.StatusOK || !strings.Contains(body, want) {
				t.Errorf("GET /%s = %d, and the page does not contain %s", path, resp.StatusCode, want)
			}
		}
		req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "https://counter.test/"+path, nil)
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("If-None-Match", resp.Header.Get("ETag"))
		if resp, _ := s.do(req); resp.StatusCode != http.StatusNotModified {
			t.Errorf("GET /%s with its ETag = %d, want 304", path, resp.StatusCode)
		}
	}
	if resp, _ := s.get("https://counter.test/share.png", ""); resp.StatusCode != http.StatusOK || resp.Header.Get("Content-Type") != "image/png" {
		t.Errorf("GET /share.png = %d of %s", resp.StatusCode, resp.Header.Get("Content-Type"))
	}
	if resp, _ := s.get("https://counter.test/c/bad%20name", ""); resp.StatusCode != http.StatusBadRequest {
		t.Errorf("a bad name: %d, want 400", resp.StatusCode)
	}
}

// tell sends a message to a page, which may have gone.
func tell(t *testing.T, ws *websocket.Conn, message string) {
	ws.Write(t.Context(), websocket.MessageText, []byte(message))
}
