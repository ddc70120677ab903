package e2e

import (
	"encoding/json"
	"maps"
	"slices"
	"strconv"
	"testing"
	"time"

	"github.com/chromedp/cdproto/accessibility"
	"github.com/chromedp/chromedp"
	"github.com/chromedp/chromedp/kb"
)

// TestChromiumKeyboard uses the page with the keyboard alone. Single keys work only while one of the two buttons has the
// focus: https://www.w3.org/TR/WCAG22/#character-key-shortcuts
func TestChromiumKeyboard(t *testing.T) {
	t.Parallel()
	browser := chromium(t)
	s := start(t, "-store", "memory")
	p := openPage(t, browser, "https://localhost"+portOf(t, s.addrs.HTTPS[0])+"/")
	p.waitOpen()
	p.wait(`document.activeElement.id === "plus"`)
	if p.eval(`getComputedStyle(document.getElementById("keys")).visibility`) != "visible" {
		t.Error("the line about keys is hidden while the keys work, want it visible")
	}
	want := 0
	press := func(keys string, delta int, options ...chromedp.KeyOption) {
		t.Helper()
		p.key(keys, options...)
		want += delta
		p.waitText("value", format(int64(want)))
	}
	press("+", +1)
	press("=", +1)
	press(kb.ArrowUp, +1)
	press("-", -1)
	press(kb.ArrowDown, -1)
	p.wait(`document.activeElement.id === "minus"`)
	press(kb.Enter, -1)
	press(" ", -1)
	p.key(kb.Tab)
	p.wait(`document.activeElement.id === "plus"`)
	press(kb.Enter, +1)
	press(" ", +1)
	outline := p.eval(`getComputedStyle(document.activeElement).outlineStyle`)
	if outline != "solid" {
		t.Errorf("the outline of the focus has the style %q, want solid", outline)
	}

	p.key("+", chromedp.KeyModifiers(chromedp.ModifierCtrl))
	p.key("x")
	p.do(chromedp.Blur(chromedp.ID("plus")))
	if got := p.eval(`getComputedStyle(document.getElementById("keys")).visibility`); got != "hidden" {
		t.Errorf("without focus the line about keys is %s, want hidden", got)
	}
	for _, keys := range []string{"+", "=", kb.ArrowUp, "-"} {
		p.key(keys)
	}
	p.click("plus") // when this action counts, the server has handled all earlier ones
	want++
	p.waitText("value", format(int64(want)))
	if got := valueOf(s, "https://localhost/"); got != int64(want) {
		t.Errorf("the value is %d, want %d", got, want)
	}
	p.wantNoProblems("with keys")
}

// TestChromiumAccessibility checks what a screen reader gets: names, roles, and few announcements of the value.
func TestChromiumAccessibility(t *testing.T) {
	t.Parallel()
	browser := chromium(t)
	s := start(t, "-action-rate", "0", "-store", "memory")
	p := newPage(t, browser)
	interval := 10 * time.Second // between two values that the page announces
	if !*long {
		interval = 3 * time.Second
		p.inject(`{ const set = setTimeout; window.setTimeout = (f, ms, ...args) => set(f, ms === 10_000 ? 3_000 : ms, ...args); }`)
	}
	p.do(chromedp.Navigate("https://localhost" + portOf(t, s.addrs.HTTPS[0]) + "/"))
	p.waitOpen()
	p.waitText("value", "0")
	p.waitText("caption", "Last 5 minutes: 0")
	tree := call(p, accessibility.GetFullAXTree, accessibility.GetFullAXTreeParams{})
	got := map[string]bool{}
	for _, n := range tree.Nodes {
		if n.Ignored || n.Role == nil {
			continue
		}
		var role, name string
		json.Unmarshal(n.Role.Value, &role)
		if n.Name != nil {
			json.Unmarshal(n.Name.Value, &name)
		}
		got[role+" "+name] = true
		if name == "" && (role == "button" || role == "image" || role == "group") {
			t.Errorf("a %s has no name", role)
		}
	}
	for _, want := range []string{"RootWebArea 0 · plusminus", "heading plusminus", "button Plus one", "button Minus one", "button Share",
		"group Move the number", "image Last 5 minutes: 0", "StaticText 0", "StaticText Live", "banner ", "main "} {
		if !got[want] {
			t.Errorf("the accessibility tree has no %q; it has %q", want, slices.Sorted(maps.Keys(got)))
		}
	}
	if lang := p.eval(`document.documentElement.lang`); lang != "en" {
		t.Errorf("lang = %q, want en", lang)
	}

	// Of a hundred values in a second, a screen reader announces a few, and always the last one.
	p.eval(`(window.spoken = [], new MutationObserver(() => spoken.push(announcer.textContent))
		.observe(announcer, { childList: true, characterData: true, subtree: true }))`)
	ws := s.join("wss://localhost/")
	go drain(t, ws)
	began := time.Now()
	for range 100 {
		send(t, ws, `{"action":"plus"}`)
		time.Sleep(10 * time.Millisecond)
	}
	p.waitText("value", "100")
	p.waitText("announcer", "100")
	p.click("plus")
	p.waitText("announcer", "101") // the page announces an action of its own visitor within a second
	most := 2 + int(time.Since(began)/interval)
	if n, err := strconv.Atoi(p.eval(`spoken.length`)); err != nil || n < 2 || n > most {
		t.Errorf("the page announced %d of 101 values, want 2 to %d: %s", n, most, p.eval(`spoken`))
	}
	if live := p.eval(`[...document.querySelectorAll("[aria-live], [role=status]")].map((e) => e.id).sort()`); live != "announcer,copied,live,message,sentence" {
		t.Errorf("live regions = %s, want announcer,copied,live,message,sentence", live)
	}
}

// contrasts is JavaScript that returns all contrasts below WCAG AA: 4.5 for text, 3 for parts that a visitor must see
// to use the page. https://www.w3.org/TR/WCAG22/#contrast-minimum, #non-text-contrast
const contrasts = `(() => {
	const rgb = (color) => color.match(/[\d.]+/g).map(Number);
	const light = (color) => {
		const [r, g, b] = rgb(color).map((c) => (c /= 255) <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4);
		return 0.2126 * r + 0.7152 * g + 0.0722 * b;
	};
	const contrast = (a, b) => (Math.max(light(a), light(b)) + 0.05) / (Math.min(light(a), light(b)) + 0.05);
	const background = (e) => {
		for (; e; e = e.parentElement) {
			const { backgroundColor } = getComputedStyle(e), alpha = rgb(backgroundColor)[3] ?? 1;
			if (alpha === 1) return backgroundColor;
			if (alpha !== 0) throw new Error("a background that is half transparent");
		}
	};
	const bad = [];
	let n = 0;
	const want = (what, least, a, b) => {
		n++;
		if (!(contrast(a, b) >= least)) bad.push(what + " has " + contrast(a, b).toFixed(2) + ", want " + least);
	};
	for (const e of document.querySelectorAll("body *")) {
		const style = getComputedStyle(e), name = e.id || e.localName;
		if (!e.checkVisibility()) continue;
		if (style.opacity !== "1") throw new Error("opacity of " + name);
		if ([...e.childNodes].some((c) => c.nodeType === Node.TEXT_NODE && c.data.trim())) want("text of " + name, 4.5, style.color, background(e));
		if (e.localName === "button") want("edge of " + name, 3, style.borderTopColor, background(e.parentElement));
		if (style.outlineStyle !== "none") want("focus of " + name, 3, style.outlineColor, background(e.parentElement));
		if (style.stroke !== "none") want("stroke of " + name, 3, style.stroke, background(e));
	}
	want("light", 3, getComputedStyle(live, "::before").borderTopColor, background(live));
	return n < 10 ? "looked at " + n + " only" : bad.join("; ");
})()`

// TestChromiumContrast checks the contrasts in both colour schemes and in every state of the page.
func TestChromiumContrast(t *testing.T) {
	t.Parallel()
	browser := chromium(t)
	s := start(t, "-domain", "counter.test")
	p := openPage(t, browser, "https://counter.test"+portOf(t, s.addrs.HTTPS[0])+"/")
	p.waitOpen()
	p.waitText("value", "0")
	p.waitText("caption", "Last 5 minutes: 0")
	check := func(state string) {
		t.Helper()
		papers := map[string]bool{}
		for _, scheme := range []string{"light", "dark"} {
			p.emulate("prefers-color-scheme", scheme)
			papers[p.eval(`getComputedStyle(document.documentElement).backgroundColor`)] = true
			for _, button := range []string{"plus", "minus"} {
				p.do(chromedp.Focus(chromedp.ID(button)))
				if bad := p.eval(contrasts); bad != "" {
					t.Errorf("%s, %s: %s", state, scheme, bad)
				}
			}
		}
		if len(papers) != 2 {
			t.Errorf("the schemes have the backgrounds %v, want two", papers)
		}
	}
	check("live")
	p.network(false)
	p.waitState("offline")
	check("offline")
	p.click("plus")
	p.waitText("message", "Not connected: that did not count.")
	check("offline with a message")
	if err := s.stop(); err != nil {
		t.Fatal(err)
	}
	p.network(true)
	p.waitState("waiting")
	check("waiting")
}

// TestChromiumReducedMotion checks that nothing moves on the page if the system asks for reduced motion.
func TestChromiumReducedMotion(t *testing.T) {
	t.Parallel()
	browser := chromium(t)
	s := start(t, "-domain", "counter.test")
	for _, motion := range []string{"no-preference", "reduce"} {
		p := newPage(t, browser)
		p.inject(`{
			window.moved = [];
			const { animate } = Element.prototype;
			Element.prototype.animate = function(...args) { moved.push(this.id || this.className); return animate.apply(this, args); };
			for (const type of ["animationstart", "transitionstart"]) addEventListener(type, (e) => moved.push(type), true);
		}`)
		p.emulate("prefers-reduced-motion", motion)
		p.do(chromedp.Navigate("https://counter.test" + portOf(t, s.addrs.HTTPS[0]) + "/"))
		p.waitOpen()
		before := valueOf(s, "https://counter.test/")
		p.click("plus")
		p.waitText("value", format(before+1))
		p.network(false)
		p.waitState("offline")
		p.click("plus")
		p.waitText("message", "Not connected: that did not count.")
		moved := p.eval(`[...new Set(moved)].sort()`)
		if want := map[string]string{"no-preference": "plus,up,value", "reduce": ""}[motion]; moved != want {
			t.Errorf("prefers-reduced-motion %s: moved %q, want %q", motion, moved, want)
		}
	}
}
