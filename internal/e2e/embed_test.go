package e2e

import (
	"cmp"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/chromedp/cdproto/accessibility"
	"github.com/chromedp/chromedp"
	"github.com/chromedp/chromedp/kb"
)

// serveSite serves a page of another site, with a script of its own. policy is its Content-Security-Policy. It returns the port.
func serveSite(t *testing.T, body, script string, policy func() string) (port string) {
	t.Helper()
	srv := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Security-Policy", policy())
		switch r.URL.Path {
		case "/":
			w.Header().Set("Content-Type", contentTypes[".html"])
			_, _ = fmt.Fprintf(w, "<!doctype html><html lang=en><meta name=viewport content=width=device-width><title>site</title>\n<script src=own.js></script>\n%s", body)
		case "/own.js":
			w.Header().Set("Content-Type", contentTypes[".js"])
			_, _ = io.WriteString(w, countSockets+script)
		case "/site.css":
			w.Header().Set("Content-Type", contentTypes[".css"])
			_, _ = io.WriteString(w, `:root { color-scheme: light dark; font: 1.125rem/1.6 Georgia, serif; background: light-dark(#fff, #16181d); color: light-dark(#222, #e6e6e6); }
				body { max-width: 36rem; margin: 2rem auto; padding: 0 1rem; }`)
		default:
			w.WriteHeader(http.StatusNoContent)
		}
	}))
	t.Cleanup(srv.Close)
	return portOf(t, srv.Listener.Addr().String())
}

// recordEvents makes a page keep the events of its tags in events.
const recordEvents = `
window.events = [];
for (const type of ["change", "error"]) addEventListener(type, (e) => {
	if (e.target.localName === "plus-minus") events.push(type + " " + (e.target.id || e.target.getAttribute("counter")) + " " + (e.detail.code ?? e.detail.value));
}, true);
`

// embedding is a server and a page of another site with tags.
type embedding struct {
	*plusminus
	site string // URL of the page
	host string // of the server
	data []string
}

// embedIn starts a server for counter.test with args, and a site with body. The site is an allowed origin if allowed
// is true. %s in body is the server's URL.
func embedIn(t *testing.T, allowed bool, body, script string, args ...string) *embedding {
	t.Helper()
	e := &embedding{}
	policy := func() string {
		return fmt.Sprintf("default-src 'self'; script-src 'self' https://%[1]s; connect-src https://%[1]s wss://%[1]s; img-src 'self' https://%[1]s; require-trusted-types-for 'script'", e.host)
	}
	addr := freeAddr(t)
	e.host = "counter.test" + portOf(t, addr)
	port := serveSite(t, strings.ReplaceAll(body, "%s", "https://"+e.host), recordEvents+script, policy)
	e.site = "https://site.test" + port + "/"
	e.data = append([]string{"-domain", "counter.test", "-https", addr, "-counters", "*", "-data", t.TempDir()}, args...)
	if allowed {
		e.data = append(e.data, "-origin", strings.TrimSuffix(e.site, "/"))
	}
	e.plusminus = start(t, e.data...)
	return e
}

// restart starts the server again, after a stop.
func (e *embedding) restart() { e.plusminus = start(e.t, e.data...) }

// part is JavaScript for an element in the shadow of the tag with this id.
func part(id, selector string) string {
	return fmt.Sprintf("document.getElementById(%q).shadowRoot.querySelector(%q)", id, selector)
}

// waitValue waits until the tag shows the value.
func (p *page) waitValue(id, value string) {
	p.t.Helper()
	p.wait(part(id, "[part=value]") + fmt.Sprintf(".textContent === %q", value))
}

// clickPart clicks in the shadow of the tag, as a mouse does.
func (p *page) clickPart(id, selector string) {
	p.t.Helper()
	p.eval(fmt.Sprintf(`(%s.scrollIntoView(), null)`, part(id, selector)))
	at := p.eval(fmt.Sprintf(`(({ left, top, width, height }) => (left + width / 2) + " " + (top + height / 2))(%s.getBoundingClientRect())`, part(id, selector)))
	var x, y float64
	if _, err := fmt.Sscan(at, &x, &y); err != nil {
		p.t.Fatal(err)
	}
	p.do(chromedp.MouseClickXY(x, y))
}

const threeTags = `<script type="module" src="%s/embed.js"></script>
<h1>A page</h1>
<p>Like it: <plus-minus id="like" counter="likes" button="plus" label="Like"><a href="%s/c/likes">likes</a></plus-minus></p>
<p><plus-minus id="seats" counter="seats" label="Seats left"><img src="%s/c/seats/badge.svg" alt="Seats"></plus-minus></p>
<p><plus-minus id="both" counter="likes" readonly lang="de"></plus-minus> all likes, <plus-minus id="all"></plus-minus></p>`

// TestEmbed counts with several tags on a page of an allowed origin with a strict policy, over a restart of the server.
func TestEmbed(t *testing.T) {
	t.Parallel()
	browser := chromium(t)
	e := embedIn(t, true, threeTags, "")
	a, b := openPage(t, browser, e.site), openPage(t, browser, e.site)
	for _, p := range []*page{a, b} {
		for _, id := range []string{"like", "seats", "both", "all"} {
			p.waitValue(id, "0")
		}
		got := p.eval(`sockets.sort()`)
		if want := "/,/c?name=likes&name=seats"; got != want {
			t.Errorf("the page opened WebSockets on %s, want %s: one for all names, and one for the default counter", got, want)
		}
	}
	a.clickPart("like", "[part~=plus]")
	for _, p := range []*page{a, b} {
		p.waitValue("like", "1")
		p.waitValue("both", "1")
	}
	b.clickPart("seats", "[part~=minus]")
	a.waitValue("seats", "−1")
	b.clickPart("all", "[part~=plus]")
	a.waitValue("all", "1")
	if _, err := chromedp.Run(a.ctx, chromedp.Evaluate[string](fmt.Sprintf(`fetch("https://%s/c/likes", {method: "POST", body: '{"action":"plus"}'}).then((r) => r.text())`, e.host), chromedp.EvalAwaitPromise)); err != nil {
		t.Fatal(err)
	}
	a.waitValue("like", "2")
	if got := a.eval(`document.getElementById("like").value`); got != "2" {
		t.Errorf("value = %s, want 2", got)
	}
	a.wait(`events.at(-1) === "change both 2" || events.at(-1) === "change like 2"`)
	for _, p := range []*page{a, b} {
		p.wantNoProblems("counting")
		if got := p.eval(`events.filter((e) => e.startsWith("error"))`); got != "" {
			t.Errorf("events = %s, want no error", got)
		}
	}

	// Without a server clicks do not count, and the tag says so.
	if err := e.stop(); err != nil {
		t.Fatal(err)
	}
	a.wait(part("like", "#all") + `.classList.contains("off")`)
	a.clickPart("like", "[part~=plus]")
	a.wait(part("like", "[part=note]") + `.textContent === "Not connected: that did not count."`)
	a.wait(`events.includes("error like not_connected")`)
	if note := a.eval(part("seats", "[part=note]") + ".textContent"); note != "" {
		t.Errorf("a tag that was not clicked says %q", note)
	}
	e.restart()
	for _, p := range []*page{a, b} {
		p.wait(`!` + part("like", "#all") + `.classList.contains("off")`)
		p.waitValue("like", "2")
		p.waitValue("seats", "−1")
		p.takeProblems() // the failed tries to connect
	}
	a.clickPart("like", "[part~=plus]")
	b.waitValue("like", "3")
}

// TestEmbedTagsComeAndGo adds and removes tags on a page, and changes their attributes.
func TestEmbedTagsComeAndGo(t *testing.T) {
	t.Parallel()
	browser := chromium(t)
	e := embedIn(t, true, `<script type="module" src="%s/embed.js"></script><plus-minus id="a" counter="a"></plus-minus>`, "")
	p := openPage(t, browser, e.site)
	p.waitValue("a", "0")
	p.clickPart("a", "[part~=plus]")
	p.waitValue("a", "1")
	p.eval(`(document.body.insertAdjacentElement("beforeend", Object.assign(document.createElement("plus-minus"), { id: "b" })).setAttribute("counter", "b"), null)`)
	p.eval(`(document.body.append(Object.assign(document.createElement("plus-minus"), { id: "c" })), document.getElementById("c").setAttribute("counter", "a"), null)`)
	p.waitValue("b", "0")
	p.waitValue("c", "1")
	p.wait(`sockets.at(-1) === "/c?name=a&name=b"`)
	users := func(name, want string) {
		t.Helper()
		waitUntil(t, "users of "+name+" = "+want, func() bool {
			_, body := e.get("https://counter.test/c/"+name+"/state", "")
			return strings.HasSuffix(strings.TrimSpace(body), `"users":`+want+`}`)
		})
	}
	users("a", "1")
	users("b", "1")
	p.eval(`(document.getElementById("a").remove(), null)`)
	p.eval(`(document.getElementById("b").remove(), null)`)
	users("b", "0")
	users("a", "1")
	p.clickPart("c", "[part~=plus]")
	p.waitValue("c", "2")
	p.eval(`(document.getElementById("c").setAttribute("counter", "d"), null)`)
	p.waitValue("c", "0")
	users("a", "0")
	p.eval(`(document.getElementById("c").setAttribute("label", "Votes"), null)`)
	if got := p.eval(part("c", "[part=label]") + ".textContent"); got != "Votes" {
		t.Errorf("label = %q, want Votes", got)
	}
	p.eval(`(document.getElementById("c").remove(), null)`)
	users("d", "0")

	// 33 names need two connections.
	p.eval(`(sockets.length = 0, document.body.append(...Array.from({ length: 33 }, (_, i) => {
		const tag = document.createElement("plus-minus");
		tag.setAttribute("counter", "n" + i);
		tag.id = "n" + i;
		return tag;
	})), null)`)
	for i := range 33 {
		p.waitValue(fmt.Sprintf("n%d", i), "0")
	}
	if got := p.eval(`sockets.map((s) => s.split("name=").length - 1)`); got != "32,1" {
		t.Errorf("connections have %s names, want 32 and 1", got)
	}
	p.wantNoProblems("adding and removing tags")
}

// TestEmbedBadNames checks that a counter that the server does not have keeps no other tag from working.
func TestEmbedBadNames(t *testing.T) {
	t.Parallel()
	browser := chromium(t)
	e := embedIn(t, true, `<script type="module" src="%s/embed.js"></script>
<plus-minus id="good" counter="a"></plus-minus> <plus-minus id="absent" counter="absent"><a href="/">link</a></plus-minus>
<plus-minus id="bad" counter="a/b"></plus-minus>`, "")
	if err := e.stop(); err != nil {
		t.Fatal(err)
	}
	for i, arg := range e.data {
		if arg == "*" {
			e.data[i] = "a"
		}
	}
	e.restart()
	p := openPage(t, browser, e.site)
	p.waitValue("good", "0")
	p.wait(`["error absent no_counter", "error bad bad_name"].every((e) => events.includes(e))`)
	if got := p.eval(`["good", "absent", "bad"].map((id) => [document.getElementById(id).shadowRoot.querySelector("#all").checkVisibility(), document.getElementById(id).querySelector("a")?.checkVisibility()])`); got != "true,,false,true,false," {
		t.Errorf("visible = %s, want the good tag, and the link of the absent one", got)
	}
	p.clickPart("good", "[part~=plus]")
	p.waitValue("good", "1")
}

// TestEmbedWithoutCounters opens the page while the server has the default counter only.
func TestEmbedWithoutCounters(t *testing.T) {
	t.Parallel()
	browser := chromium(t)
	e := embedIn(t, true, threeTags, "", "-store", "memory")
	if err := e.stop(); err != nil {
		t.Fatal(err)
	}
	i := slices.Index(e.data, "-counters")
	e.data = slices.Delete(e.data, i, i+2)
	e.restart()
	p := openPage(t, browser, e.site)
	p.waitValue("all", "0")
	p.wait(`["like", "seats", "both"].every((id) => events.includes("error " + id + " no_counter"))`)
	p.clickPart("all", "[part~=plus]")
	p.waitValue("all", "1")
	if got := p.eval(`document.querySelector("a").checkVisibility()`); got != "true" {
		t.Error("the content of a tag without a counter is hidden")
	}
}

// TestEmbedRefusal clicks more often than the server allows.
func TestEmbedRefusal(t *testing.T) {
	t.Parallel()
	browser := chromium(t)
	e := embedIn(t, true, threeTags, "", "-action-rate", "0.001", "-action-burst", "1")
	p := openPage(t, browser, e.site)
	p.waitValue("like", "0")
	p.clickPart("like", "[part~=plus]")
	p.waitValue("like", "1")
	p.clickPart("like", "[part~=plus]")
	p.wait(`events.includes("error like rate_limited")`)
	p.wait(part("like", "[part=note]") + `.textContent.includes("was not counted")`)
	p.waitValue("like", "1")
	if got := p.eval(`events.filter((e) => e.startsWith("error"))`); got != "error like rate_limited" {
		t.Errorf("errors = %s, want one, of the tag that was clicked", got)
	}
}

// TestEmbedForeign opens the page of an origin that is not allowed, with the server's embed.js and with a copy. The content of
// the tags stays, and they fire an error.
func TestEmbedForeign(t *testing.T) {
	t.Parallel()
	browser := chromium(t)
	e := embedIn(t, false, threeTags, "")
	p := openPage(t, browser, e.site)
	p.wait(`["like", "seats", "both", "all"].every((id) => events.includes("error " + id + " foreign"))`)
	if got := p.eval(`[document.querySelector("a").checkVisibility(), document.querySelector("img").naturalHeight, document.getElementById("all").shadowRoot.querySelector("#all").checkVisibility(), sockets.length]`); got != "true,20,false,0" {
		t.Errorf("link visible, height of the badge, tag without content visible, sockets = %s, want true,20,false,0", got)
	}
}

// TestEmbedWithoutScript shows the content of the tags, with the badge.
func TestEmbedWithoutScript(t *testing.T) {
	t.Parallel()
	browser := chromium(t)
	e := embedIn(t, true, strings.Replace(threeTags, "embed.js", "nothing.js", 1), "")
	p := openPage(t, browser, e.site)
	p.wait(`document.querySelector("img").naturalHeight === 20 && document.querySelector("a").checkVisibility()`)
}

// fitsEmbed is JavaScript that returns what is wrong with the tags of a page: buttons without a name or too small, text
// without contrast.
var fitsEmbed = strings.NewReplacer(
	// The colours are partly transparent mixtures, which a canvas computes.
	`const rgb = (color) => color.match(/[\d.]+/g).map(Number);`, `const pen = new OffscreenCanvas(1, 1).getContext("2d", { willReadFrequently: true });
	const paint = (...colors) => {
		pen.clearRect(0, 0, 1, 1);
		for (pen.fillStyle of colors) pen.fillRect(0, 0, 1, 1);
		return [...pen.getImageData(0, 0, 1, 1).data];
	};
	const rgb = (color) => paint(color).map((c, i) => i === 3 ? c / 255 : c);`,
	`n++;`, `n++; a = "rgb(" + paint(b, a).slice(0, 3) + ")";`,
	`document.querySelectorAll("body *")`, `[...document.querySelectorAll("plus-minus")].flatMap((e) => [...e.shadowRoot.querySelectorAll("*")])`,
	`e = e.parentElement`, `e = e.parentElement ?? e.getRootNode().host`,
	`want("light", 3, getComputedStyle(live, "::before").borderTopColor, background(live));`, ``,
	`if (e.localName === "button") want("edge of " + name, 3, style.borderTopColor, background(e.parentElement));`,
	`if (e.part.contains("box") && style.borderTopStyle !== "none") want("edge of " + name, 3, style.borderTopColor, background(e));
		if (e.localName === "button") {
			const { width, height } = e.getBoundingClientRect();
			if (width < 44 || height < 44) bad.push("a button is small: " + [width, height]);
			if (!e.ariaLabel && !e.textContent.trim()) bad.push("a button has no name");
		}`,
).Replace(contrasts)

// TestEmbedLooks checks the tags in both colour schemes, live and not. With -artifacts it takes pictures.
func TestEmbedLooks(t *testing.T) {
	t.Parallel()
	browser := chromium(t)
	e := embedIn(t, true, blog, "")
	p := openPage(t, browser, e.site)
	p.emulate("prefers-reduced-motion", "reduce")
	for _, id := range []string{"like", "heart", "seats", "people"} {
		p.waitValue(id, "0")
	}
	p.clickPart("seats", "[part~=plus]")
	p.waitValue("seats", "1")
	p.clickPart("like", "[part~=plus]")
	p.waitValue("like", "1")
	look := func(state string, prepare func()) {
		t.Helper()
		p.wait(`[...document.querySelectorAll("plus-minus")].every((e) => e.shadowRoot.querySelector("[role=status]").textContent === "" || e.id === "like")`)
		for _, size := range []int64{320, 800} {
			p.do(chromedp.EmulateViewport(size, 640))
			prepare()
			for _, scheme := range []string{"light", "dark", "forced"} {
				if scheme == "forced" { // the system's colours; the contrast is the system's, too
					p.emulate("forced-colors", "active", "prefers-reduced-motion", "reduce")
				} else {
					p.emulate("prefers-color-scheme", scheme, "forced-colors", "none", "prefers-reduced-motion", "reduce")
				}
				if bad := p.eval(fitsEmbed); bad != "" && scheme != "forced" {
					t.Errorf("%s, %s: %s", state, scheme, bad)
				}
				if p.eval(`document.documentElement.scrollWidth > innerWidth`) != "false" {
					t.Errorf("%s, %d wide: the page scrolls to the side", state, size)
				}
				if flag.Lookup("test.artifacts").Value.String() != "true" {
					continue
				}
				picture, err := chromedp.Run(p.ctx, chromedp.CaptureScreenshot())
				if err != nil {
					t.Fatal(err)
				}
				write(t, filepath.Join(t.ArtifactDir(), fmt.Sprintf("embed-%s-%d-%s.png", state, size, scheme)), picture)
			}
		}
	}
	p.key(kb.Tab)
	p.wait(`document.activeElement.id === "heart"`)
	if got := p.eval(`getComputedStyle(document.activeElement.shadowRoot.activeElement).outlineStyle`); got != "solid" {
		t.Errorf("the outline of the focus has the style %q, want solid", got)
	}
	p.key(kb.Enter)
	p.waitValue("heart", "1")
	p.key(" ")
	p.waitValue("heart", "2")
	p.wait(part("heart", ".unseen[role=status]") + `.textContent === "2"`) // an action of one's own is spoken
	if got := p.eval(part("people", ".unseen[role=status]") + ".textContent"); got != "" {
		t.Errorf("a tag that was not clicked speaks %q", got)
	}
	got := map[string]bool{}
	for _, n := range call(p, accessibility.GetFullAXTree, accessibility.GetFullAXTreeParams{}).Nodes {
		if n.Ignored || n.Role == nil || n.Name == nil {
			continue
		}
		var role, name string
		if json.Unmarshal(n.Role.Value, &role) != nil || json.Unmarshal(n.Name.Value, &name) != nil {
			t.Fatalf("node %+v", n)
		}
		got[role+" "+name] = true
	}
	for _, want := range []string{"button Like 1", "button Plus one 2", "group Seats left", "button Plus one", "button Minus one", "group people"} {
		if !got[want] {
			t.Errorf("the accessibility tree has no %q; it has %q", want, slices.Sorted(maps.Keys(got)))
		}
	}
	look("live", func() {})
	if err := e.stop(); err != nil {
		t.Fatal(err)
	}
	p.wait(part("like", "#all") + `.classList.contains("off")`)
	p.eval(`(document.querySelector("p:has(#like)").setAttribute("align", "right"), null)`) // the message must not leave the window
	look("off", func() {
		p.clickPart("like", "[part~=plus]")
		p.wait(part("like", "[part=note]") + `.textContent === "Not connected: that did not count."`)
	})
}

const blog = `<script type="module" src="%s/embed.js"></script><link rel="stylesheet" href="site.css">
<h1>Counting sheep at scale</h1>
<p>Most people stop at a hundred. We asked what happens when a whole village counts the same flock, and nobody looks at
the others. <plus-minus id="people" counter="people" readonly></plus-minus> people have read this.</p>
<p><plus-minus id="like" counter="like" button="plus" label="Like"></plus-minus>
<plus-minus id="heart" counter="heart" button="plus"><b slot="plus">♥</b></plus-minus></p>
<p><plus-minus id="seats" counter="seats" label="Seats left"></plus-minus></p>
<p>The flock did not mind. The next part is about goats, who do mind, and say so.</p>`

// TestFirefoxEmbed counts in Firefox on the page of an allowed origin, over a restart, and opens that of another one.
func TestFirefoxEmbed(t *testing.T) {
	t.Parallel()
	f := newFirefox(t)
	e := embedIn(t, true, threeTags, "")
	stranger := embedIn(t, false, threeTags, "")
	f.do("session.subscribe", `{"events":["log.entryAdded"]}`, nil)
	a, b := f.open(e.site), f.open(e.site)
	both := []*firefoxTab{a, b}
	for _, p := range both {
		for _, id := range []string{"like", "seats", "both", "all"} {
			p.waitFor(part(id, "[part=value]")+".textContent", "0")
		}
		p.waitFor(`sockets.sort()`, "/,/c?name=likes&name=seats")
	}
	a.eval(part("like", "[part~=plus]") + `.click()`)
	b.eval(part("seats", "[part~=minus]") + `.click()`)
	for _, p := range both {
		p.waitFor(part("both", "[part=value]")+".textContent", "1")
		p.waitFor(part("seats", "[part=value]")+".textContent", "−1")
	}
	f.do("session.unsubscribe", `{"events":["log.entryAdded"]}`, nil) // Firefox logs what fails from here on
	if err := e.stop(); err != nil {
		t.Fatal(err)
	}
	a.waitFor(part("like", "#all")+`.classList.contains("off")`, "true")
	a.eval(part("like", "[part~=plus]") + `.click()`)
	a.waitFor(part("like", "[part=note]")+`.textContent`, "Not connected: that did not count.")
	e.restart()
	for _, p := range both {
		p.waitFor(part("like", "#all")+`.classList.contains("off")`, "false")
		p.waitFor(part("like", "[part=value]")+".textContent", "1")
	}
	a.eval(part("like", "[part~=plus]") + `.click()`)
	b.waitFor(part("like", "[part=value]")+".textContent", "2")

	p := f.open(stranger.site)
	p.waitFor(`["like", "seats", "both", "all"].every((id) => events.includes("error " + id + " foreign"))`, "true")
	p.waitFor(`document.querySelector("img").naturalHeight`, "20")
}

// frameServer is a server that lets pages of friend.test frame its page, and a site with two frames under this name and
// that of stranger.test.
func frameServer(t *testing.T, args ...string) (s *plusminus, port string) {
	t.Helper()
	var host string
	srv := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", contentTypes[".html"])
		_, _ = fmt.Fprintf(w, `<!doctype html><link rel="icon" href="data:,"><iframe src="https://%[1]s/" width="400" height="400"></iframe><iframe src="https://%[1]s/c/a" width="400" height="400"></iframe>`, host)
	}))
	t.Cleanup(srv.Close)
	port = portOf(t, srv.Listener.Addr().String())
	s = start(t, append([]string{"-domain", "counter.test", "-counters", "a"}, args...)...)
	host = "counter.test" + portOf(t, s.addrs.HTTPS[0])
	return s, port
}

// watchers returns how many clients watch the default counter and the counter a.
func (s *plusminus) watchers() string {
	s.t.Helper()
	_, one := s.get("https://counter.test/state", "")
	_, other := s.get("https://counter.test/c/a/state", "")
	return strings.Join(regexp.MustCompile(`"users":\d+`).FindAllString(one+other, -1), " ")
}

// TestFrames opens pages with frames: of the named origin, of another one, and for a server without -frame-origin.
func TestFrames(t *testing.T) {
	t.Parallel()
	browser := chromium(t)
	allowed, port := frameServer(t, "-frame-origin", "https://friend.test:*")
	without, otherPort := frameServer(t)
	friend := openPage(t, browser, "https://friend.test"+port+"/")
	waitUntil(t, "both frames to connect", func() bool { return allowed.watchers() == `"users":1 "users":1` })
	friend.wantNoProblems("in an allowed frame")
	for _, url := range []string{"https://stranger.test" + port + "/", "https://friend.test" + otherPort + "/"} {
		p := openPage(t, browser, url)
		var problems string
		waitUntil(t, "two violations of the policy", func() bool {
			problems += strings.Join(p.takeProblems(), "\n")
			return strings.Count(problems, "frame-ancestors") >= 2
		})
	}
	if got := allowed.watchers() + " " + without.watchers(); got != `"users":1 "users":1 "users":0 "users":0` {
		t.Errorf("clients = %s, want only those of the allowed frames", got)
	}
}

// TestFirefoxFrames is TestFrames in Firefox.
func TestFirefoxFrames(t *testing.T) {
	t.Parallel()
	f := newFirefox(t)
	allowed, port := frameServer(t, "-frame-origin", "https://friend.test:*")
	_, otherPort := frameServer(t)
	inFrames := func(url, want string) {
		t.Helper()
		page := f.navigate(url, "none")
		var tree struct {
			Contexts []struct{ Children []struct{ Context string } }
		}
		waitUntil(t, "two frames in "+url, func() bool {
			f.do("browsingContext.getTree", fmt.Sprintf(`{"root":%q}`, page.context), &tree)
			return len(tree.Contexts) == 1 && len(tree.Contexts[0].Children) == 2
		})
		for _, child := range tree.Contexts[0].Children {
			(&firefoxTab{f, child.Context}).waitFor(`document.documentURI.replace(/[?&].*/, "").replace(/^https:.*/, "page")`, want)
		}
	}
	inFrames("https://friend.test"+port+"/", "page")
	waitUntil(t, "both frames to connect", func() bool { return allowed.watchers() == `"users":1 "users":1` })
	inFrames("https://stranger.test"+port+"/", "about:neterror")
	inFrames("https://friend.test"+otherPort+"/", "about:neterror")
}

// TestEmbedPage runs all that docs/embed.md has to copy, on one page with the policy that it says is enough, and compares its
// tables with static/embed.js.
func TestEmbedPage(t *testing.T) {
	t.Parallel()
	text, err := os.ReadFile("docs/embed.md")
	if err != nil {
		t.Fatal(err)
	}
	page := string(text)
	blocks := map[string][]string{}
	for _, m := range regexp.MustCompile("(?ms)^```(\\w+)\n(.*?)^```$").FindAllStringSubmatch(page, -1) {
		blocks[m[1]] = append(blocks[m[1]], m[2])
	}
	count := func(language string) int { return len(blocks[language]) }
	if got := []int{len(blocks), count("html"), count("js"), count("css"), count("csp")}; !slices.Equal(got, []int{4, 4, 1, 1, 1}) {
		t.Fatalf("docs/embed.md has %v languages and blocks of html, js, css and csp, want 4, and 4, 1, 1, 1 that this test runs", got)
	}
	if n := strings.Count(blocks["html"][0], "\n"); n != 3 {
		t.Errorf("the like button has %d lines, want three", n)
	}
	script, err := os.ReadFile("static/embed.js")
	if err != nil {
		t.Fatal(err)
	}
	for _, expression := range []string{`--plus-minus-[a-z]+`, `part: "([a-z ]+)"`, `observedAttributes = \[(.*?)\]`, `(?m)^\t([a-z_]+): ".*",$`} {
		for _, m := range regexp.MustCompile(expression).FindAllStringSubmatch(string(script), -1) {
			for _, name := range strings.FieldsFunc(m[len(m)-1], func(r rune) bool { return strings.ContainsRune(`", `, r) }) {
				if !strings.Contains(page, "`"+name+"`") {
					t.Errorf("docs/embed.md does not name %s of embed.js", name)
				}
			}
		}
	}

	var host string
	replace := func(s string) string { return strings.ReplaceAll(s, counterHost, host) }
	files := map[string]string{
		"/":         "<!doctype html><html lang=en><title>site</title><link rel=stylesheet href=site.css><script src=log.js></script>\n" + strings.Join(blocks["html"], "\n") + "<script type=module src=page.js></script>",
		"/site.css": blocks["css"][0],
		"/page.js":  blocks["js"][0],
		"/log.js":   countSockets + `window.logged = []; console.log = console.warn = (...all) => logged.push(all.join(" ").trim());`,
	}
	srv := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, ok := files[r.URL.Path]
		if !ok {
			w.WriteHeader(http.StatusNoContent)
			return
		}
		w.Header().Set("Content-Type", contentTypes[cmp.Or(filepath.Ext(r.URL.Path), ".html")])
		w.Header().Set("Content-Security-Policy", replace(strings.Join(strings.Fields(blocks["csp"][0]), " ")))
		_, _ = io.WriteString(w, replace(body))
	}))
	t.Cleanup(srv.Close)
	site := "https://www.test" + portOf(t, srv.Listener.Addr().String())
	docker := regexp.MustCompile(`(?m)^    docker run (?:.*\\\n)+ +(-domain .*)$`).FindStringSubmatch(page)
	frame := regexp.MustCompile("start the server with `(-frame-origin [^`]*)`").FindStringSubmatch(strings.Join(strings.Fields(page), " "))
	if docker == nil || frame == nil {
		t.Fatal("docs/embed.md has no command that starts a server, or no -frame-origin")
	}
	args := strings.Fields(strings.NewReplacer(counterHost, "counter.test", siteOrigin, site, "'", "").Replace(docker[1] + " " + frame[1]))
	s := start(t, append(args, "-counters", "seats,likes")...) // the other examples
	host = "counter.test" + portOf(t, s.addrs.HTTPS[0])

	p := openPage(t, chromium(t), site+"/")
	tag := func(i int, expression string) string {
		return fmt.Sprintf("document.querySelectorAll(%q)[%d].shadowRoot", "plus-minus", i) + expression
	}
	value := func(i int, want string) {
		t.Helper()
		p.wait(tag(i, fmt.Sprintf(`.querySelector("[part=value]").textContent === %q`, want)))
	}
	for i := range 4 {
		value(i, "0")
	}
	p.eval(tag(0, `.querySelector("button").click()`))
	value(0, "1")
	p.eval(tag(2, `.querySelector("button").click()`))
	value(2, "1")
	value(3, "1")
	if got := p.eval(`[...document.querySelectorAll("plus-minus")].map((e) => e.shadowRoot.querySelectorAll("button").length)`); got != "1,2,1,0" {
		t.Errorf("the tags have %s buttons, want 1,2,1,0", got)
	}
	if got := p.eval(fmt.Sprintf(`[getComputedStyle(%s).borderTopLeftRadius, getComputedStyle(%s).fontWeight]`, tag(0, `.querySelector("[part=box]")`), tag(0, `.querySelector("[part=value]")`))); got != "8px,700" {
		t.Errorf("radius and weight = %s, want 8px,700 by the page's style", got)
	}
	if got := p.eval(`sockets`); got != "/c?name=like.first-post&name=seats&name=likes" {
		t.Errorf("the page opened WebSockets on %s, want one for all tags", got)
	}
	p.wait(`document.querySelector("img").naturalHeight === 20`)
	waitUntil(t, "the frame to connect", func() bool {
		_, body := s.get("https://counter.test/state", "")
		return strings.Contains(body, `"users":1`)
	})
	p.wait(`logged.includes("0") && logged.includes("1")`)
	p.wantNoProblems("with the examples")
	if err := s.stop(); err != nil {
		t.Fatal(err)
	}
	p.wait(tag(0, `.querySelector(".off") !== null`))
	p.eval(tag(0, `.querySelector("button").click()`))
	p.wait(`logged.includes("not_connected Not connected: that did not count.")`)
}
