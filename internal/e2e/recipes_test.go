package e2e

import (
	"flag"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/chromedp/chromedp"
)

// counterHost and siteOrigin are what readers of docs/counters.md replace with addresses of their own.
const (
	counterHost = "counter.example.com"
	siteOrigin  = "https://www.example.com"
)

// recipes is the code in docs/counters.md that readers copy.
type recipes struct {
	files  map[string]string   // by name: the blocks after a line that begins with the name of a file
	blocks map[string]string   // all other blocks, by language
	flags  map[string][]string // of the commands that start a server, by heading
}

// readRecipes returns the code of docs/counters.md.
func readRecipes(t *testing.T) recipes {
	t.Helper()
	page, err := os.ReadFile("docs/counters.md")
	if err != nil {
		t.Fatal(err)
	}
	r := recipes{files: make(map[string]string), blocks: make(map[string]string), flags: make(map[string][]string)}
	fence := regexp.MustCompile("(?ms)(?:^`([a-z]+\\.[a-z]+)`[^\n]*\n\n)?^```(\\w+)\n(.*?)^```$")
	for _, m := range fence.FindAllStringSubmatch(string(page), -1) {
		where, name := r.blocks, m[2]
		if m[1] != "" {
			where, name = r.files, m[1]
		}
		if where[name] != "" {
			t.Fatalf("docs/counters.md has two blocks %s, want one that a test runs", name)
		}
		where[name] = m[3]
	}
	docker := regexp.MustCompile(`(?m)^    docker run (?:.*\\\n)+ +(-domain .*)$`)
	for section := range strings.SplitSeq(string(page), "\n## ") {
		heading, _, _ := strings.Cut(section, "\n")
		for _, m := range docker.FindAllStringSubmatch(section, -1) {
			for _, field := range strings.Fields(m[1]) {
				r.flags[heading] = append(r.flags[heading], strings.Trim(field, "'"))
			}
		}
	}
	return r
}

// contentTypes are the types of the files in docs/counters.md, by extension.
var contentTypes = map[string]string{
	".html": "text/html; charset=utf-8",
	".js":   "text/javascript; charset=utf-8",
	".css":  "text/css; charset=utf-8",
}

// policy returns the Content-Security-Policy that the page says is enough.
func (r recipes) policy() string { return strings.Join(strings.Fields(r.blocks["csp"]), " ") }

// serve starts a server with args and the flags below heading, and a site of another origin that has the files of
// docs/counters.md and sends the policy. Only the addresses in flags, files and policy change. It returns the server,
// the site's URL, and a function that replaces the addresses in other code.
func (r recipes) serve(t *testing.T, heading string, args ...string) (s *plusminus, site string, replace func(string) string) {
	t.Helper()
	mux := http.NewServeMux()
	srv := httptest.NewTLSServer(mux)
	t.Cleanup(srv.Close)
	site = "https://www.test" + portOf(t, srv.Listener.Addr().String())
	if len(r.flags[heading]) == 0 {
		t.Fatalf("docs/counters.md has no command that starts a server below %q", heading)
	}
	flags := strings.NewReplacer(counterHost, "counter.test", siteOrigin, site)
	for _, arg := range r.flags[heading] {
		args = append(args, flags.Replace(arg))
	}
	s = start(t, args...)
	replace = strings.NewReplacer(counterHost, "counter.test"+portOf(t, s.addrs.HTTPS[0])).Replace
	mux.HandleFunc("GET /{name}", func(w http.ResponseWriter, req *http.Request) {
		name := req.PathValue("name")
		text, ok := r.files[name]
		switch {
		case name == "blank.html":
			text = `<!doctype html><title>blank</title>`
		case name == "favicon.ico":
			w.WriteHeader(http.StatusNoContent)
			return
		case !ok:
			http.NotFound(w, req)
			return
		}
		w.Header().Set("Content-Type", contentTypes[path.Ext(name)])
		w.Header().Set("Content-Security-Policy", replace(r.policy()))
		_, _ = io.WriteString(w, replace(text)) // an error means that the browser has gone
	})
	return s, site + "/", replace
}

// waitPressed waits until the button that the CSS selector matches is pressed, and no other one. With "" no button is.
func (p *page) waitPressed(selector string) {
	p.t.Helper()
	p.wait(fmt.Sprintf(`[...document.querySelectorAll("[aria-pressed=true]")].every((e) => %q && e.matches(%[1]q)) &&
		(!%[1]q || document.querySelector(%[1]q).ariaPressed === "true")`, selector))
}

// clickOn clicks the element that the CSS selector matches, once it is enabled.
func (p *page) clickOn(selector string) {
	p.t.Helper()
	p.do(chromedp.WaitEnabled(chromedp.CSS(selector)), chromedp.Click(chromedp.CSS(selector)))
}

// wantFits checks that everything on the page fits a phone, in sizes that fingers can hit. With -artifacts it takes a
// picture of the page in both colour schemes.
func (p *page) wantFits(name string) {
	p.t.Helper()
	p.do(chromedp.EmulateViewport(320, 640))
	if bad := p.eval(fits); bad != "" {
		p.t.Errorf("%s: %s", name, bad)
	}
	if n := p.eval(`[...document.querySelectorAll("button, meter, output")].filter((e) => !e.ariaLabel && !e.textContent.trim()).length`); n != "0" {
		p.t.Errorf("%s: %s elements have no name", name, n)
	}
	if flag.Lookup("test.artifacts").Value.String() != "true" {
		return
	}
	for _, scheme := range []string{"light", "dark"} {
		p.emulate("prefers-color-scheme", scheme)
		picture, err := chromedp.Run(p.ctx, chromedp.CaptureScreenshot())
		if err != nil {
			p.t.Fatal(err)
		}
		write(p.t, filepath.Join(p.t.ArtifactDir(), name+"-"+scheme+".png"), picture)
	}
}

// TestRecipeLike likes a page in two browsers.
func TestRecipeLike(t *testing.T) {
	t.Parallel()
	browser := chromium(t)
	s, site, _ := readRecipes(t).serve(t, "A like button")
	a, b := openPage(t, browser, site+"like.html"), openPage(t, browser, site+"like.html")
	for _, p := range []*page{a, b} {
		p.waitText("likes", "0")
		p.waitPressed("")
	}
	a.clickOn("#like")
	b.waitText("likes", "1")
	a.waitText("likes", "1")
	a.waitPressed("#like")
	b.waitPressed("")

	// The browser remembers its like.
	a.do(chromedp.Reload())
	a.waitText("likes", "1")
	a.waitPressed("#like")
	b.clickOn("#like")
	a.waitText("likes", "2")
	a.wantFits("like")
	a.clickOn("#like")
	b.waitText("likes", "1")
	a.waitPressed("")
	a.do(chromedp.Reload())
	a.waitText("likes", "1")
	a.waitPressed("")
	if got := valueOf(s, "https://counter.test/c/like.first-post/"); got != 1 {
		t.Errorf("GET /c/like.first-post/state has the value %d, want 1", got)
	}
	for _, p := range []*page{a, b} {
		p.wantNoProblems("liking")
	}

	// A like without an answer is not remembered.
	if err := s.stop(); err != nil {
		t.Fatal(err)
	}
	a.clickOn("#like")
	a.waitText("note", "No clear answer: that may have counted or not.")
	a.waitPressed("")
}

// TestRecipeLikeRefused likes more often than the server allows.
func TestRecipeLikeRefused(t *testing.T) {
	t.Parallel()
	browser := chromium(t)
	_, site, _ := readRecipes(t).serve(t, "A like button", "-action-rate", "0.001", "-action-burst", "1")
	p := openPage(t, browser, site+"like.html")
	p.clickOn("#like")
	p.waitPressed("#like")
	p.clickOn("#like")
	p.wait(`document.getElementById("note").textContent !== ""`)
	p.waitPressed("#like")
	p.waitText("likes", "1")
}

// TestRecipeRoom lets two bouncers count, and looks at the display.
func TestRecipeRoom(t *testing.T) {
	t.Parallel()
	browser := chromium(t)
	s, site, _ := readRecipes(t).serve(t, "People in a room")
	front, back := openPage(t, browser, site+"bouncer.html"), openPage(t, browser, site+"bouncer.html")
	display := openPage(t, browser, site+"display.html")
	all := []*page{front, back, display}
	want := func(people string) {
		t.Helper()
		for _, p := range all {
			p.waitText("people", people)
		}
	}
	want("0")
	front.clickOn("[value=plus]")
	want("1")
	back.clickOn("[value=plus]")
	want("2")
	back.clickOn("[value=plus]")
	want("3")
	front.clickOn("[value=minus]")
	want("2")
	if n := display.eval(`document.querySelectorAll("button").length`); n != "0" {
		t.Errorf("the display has %s buttons, want none", n)
	}
	if _, body := s.get("https://counter.test/c/room/state", ""); strings.TrimSpace(body) != `{"value":2,"users":3}` {
		t.Errorf("GET /c/room/state = %s, want three clients: one connection for each page", body)
	}
	front.wantFits("bouncer")
	display.wantFits("display")
	for _, p := range all {
		p.wantNoProblems("counting")
	}

	if err := s.stop(); err != nil {
		t.Fatal(err)
	}
	display.waitText("note", "Not connected: the number may be old.")
	front.waitText("note", "Not connected: the number may be old.")
	front.clickOn("[value=plus]")
	front.waitText("note", "Not connected: that did not count.")
}

// countSockets makes a page record the URLs of its WebSockets.
const countSockets = `{
	window.sockets = [];
	window.WebSocket = class extends WebSocket { constructor(url) { super(url); sockets.push(new URL(url).pathname + new URL(url).search); } };
}`

// TestRecipeVote votes in two browsers, and changes a vote.
func TestRecipeVote(t *testing.T) {
	t.Parallel()
	browser := chromium(t)
	s, site, _ := readRecipes(t).serve(t, "A vote with three options")
	a, b := newPage(t, browser), newPage(t, browser)
	want := func(votes string) {
		t.Helper()
		for _, p := range []*page{a, b} {
			p.wait(fmt.Sprintf(`[...document.querySelectorAll("output")].map((e) => e.textContent).join(" ") === %q`, votes))
		}
	}
	for _, p := range []*page{a, b} {
		p.inject(countSockets)
		p.do(chromedp.Navigate(site + "vote.html"))
	}
	want("0 0 0")
	a.clickOn(`[value="vote.tea"]`)
	want("1 0 0")
	b.clickOn(`[value="vote.coffee"]`)
	want("1 1 0")
	if shares := a.eval(`[...document.querySelectorAll("meter")].map((e) => e.value)`); shares != "0.5,0.5,0" {
		t.Errorf("the bars show %s, want 0.5,0.5,0", shares)
	}
	a.waitPressed(`[value="vote.tea"]`)
	a.clickOn(`[value="vote.tea"]`) // does nothing
	a.clickOn(`[value="vote.water"]`)
	want("0 1 1")
	a.do(chromedp.Reload())
	want("0 1 1")
	a.waitPressed(`[value="vote.water"]`)
	b.waitPressed(`[value="vote.coffee"]`)
	a.wantFits("vote")
	for _, p := range []*page{a, b} {
		p.wantNoProblems("voting")
		if sockets := p.eval(`sockets`); sockets != "/c?name=vote.tea&name=vote.coffee&name=vote.water" {
			t.Errorf("the page opened WebSockets on %q, want one about three counters", sockets)
		}
	}

	if err := s.stop(); err != nil {
		t.Fatal(err)
	}
	a.waitText("note", "Not connected: the numbers may be old.")
	a.clickOn(`[value="vote.tea"]`)
	a.waitText("note", "Not connected: that did not count.")
	a.waitPressed(`[value="vote.water"]`)
}

// TestRecipeVoteRefused changes a vote when the server refuses that. The page forgets what did not count.
func TestRecipeVoteRefused(t *testing.T) {
	t.Parallel()
	browser := chromium(t)
	_, site, _ := readRecipes(t).serve(t, "A vote with three options", "-action-rate", "0.001", "-action-burst", "1")
	p := openPage(t, browser, site+"vote.html")
	p.clickOn(`[value="vote.tea"]`)
	p.wait(`document.querySelector("output").textContent === "1"`)
	p.waitPressed(`[value="vote.tea"]`)
	p.clickOn(`[value="vote.coffee"]`)
	p.wait(`document.getElementById("note").textContent !== ""`)
	p.waitPressed("")
}

// TestActWithoutSocket runs the lines of README and docs/counters.md that act with one request.
func TestActWithoutSocket(t *testing.T) {
	t.Parallel()
	r := readRecipes(t)
	readme, err := os.ReadFile("README.md")
	if err != nil {
		t.Fatal(err)
	}
	inReadme := func(t *testing.T, what string) string {
		t.Helper()
		lines := regexp.MustCompile("`("+regexp.QuoteMeta(what)+"[^`]*)`").FindAllStringSubmatch(string(readme), -1)
		if len(lines) != 1 {
			t.Fatalf("README has %d lines with %s, want 1", len(lines), what)
		}
		return lines[0][1]
	}
	// local starts a server with the flags of the page, and returns a function that runs a program. The program
	// finds the server and its certificate. The function returns what the program prints.
	local := func(t *testing.T) (s *plusminus, run func(name string, args ...string) (string, error)) {
		t.Helper()
		data := t.TempDir()
		args := []string{"-data", data}
		for _, arg := range r.flags["# Many counters"] {
			args = append(args, strings.ReplaceAll(arg, counterHost, "localhost"))
		}
		s = start(t, args...)
		address := "localhost" + portOf(t, s.addrs.HTTPS[0])
		root := filepath.Join(data, "local-ca", "root.pem")
		return s, func(name string, args ...string) (string, error) {
			t.Helper()
			for i := range args {
				args[i] = strings.ReplaceAll(args[i], counterHost, address)
			}
			cmd := exec.CommandContext(t.Context(), name, args...)
			cmd.Env = append(os.Environ(), "SSL_CERT_FILE="+root, "CURL_CA_BUNDLE="+root)
			cmd.WaitDelay = 10 * time.Second
			var complaints strings.Builder
			cmd.Stderr = &complaints
			out, err := cmd.Output()
			if err != nil {
				err = fmt.Errorf("%w: %s", err, &complaints)
			}
			return string(out), err
		}
	}
	t.Run("curl", func(t *testing.T) {
		t.Parallel()
		if _, err := exec.LookPath("curl"); err != nil {
			t.Skip("curl is not installed (Debian: curl)")
		}
		_, run := local(t)
		for i, code := range []string{r.blocks["sh"], inReadme(t, "curl -X POST")} {
			out, err := run("sh", "-c", code)
			if want := fmt.Sprintf("{\"value\":%d}\n", i+1); err != nil || out != want {
				t.Errorf("%s printed %q, %v, want %q", code, out, err, want)
			}
		}
	})
	t.Run("fetch", func(t *testing.T) {
		t.Parallel()
		browser := chromium(t)
		_, site, replace := r.serve(t, "# Many counters")
		stranger := openPage(t, browser, site+"blank.html")
		act := func(p *page, replace func(string) string) string {
			t.Helper()
			answer, err := chromedp.Run(p.ctx, chromedp.Evaluate[string](
				"(async () => {"+replace(r.blocks["js"])+"; return String(value); })().catch((e) => e.name)", chromedp.EvalAwaitPromise))
			if err != nil {
				t.Fatal(err)
			}
			return answer
		}
		if got := act(stranger, replace); got != "TypeError" {
			t.Errorf("a page of an origin that is not allowed got %s, want a TypeError", got)
		}
		_, site, replace = r.serve(t, "A like button", "-counters", "likes")
		p := openPage(t, browser, site+"blank.html")
		if got := act(p, replace); got != "1" {
			t.Errorf("fetch got %s, want 1", got)
		}
		line := inReadme(t, "fetch(")
		got, err := chromedp.Run(p.ctx, chromedp.Evaluate[string](replace(line)+".then((answer) => answer.text())", chromedp.EvalAwaitPromise))
		if err != nil || got != "{\"value\":2}\n" {
			t.Errorf("%s got %q, %v, want the value 2", line, got, err)
		}
		p.wantNoProblems("with fetch")
	})
	t.Run("python", func(t *testing.T) {
		t.Parallel()
		if _, err := exec.LookPath("python3"); err != nil {
			t.Skip("Python is not installed (Debian: python3)")
		}
		s, run := local(t)
		script := r.blocks["python"]
		for _, tt := range []struct {
			action, counter, want, complaint string
		}{
			{"plus", "door.front", "1\n", ""},
			{"plus", "door.front", "2\n", ""},
			{"minus", "door.front", "1\n", ""},
			{"leap", "door.front", "", "unknown_action"},
			{"plus", "window", "", "there is no counter of that name here"},
		} {
			out, err := run("python3", "-c", script, tt.action, tt.counter)
			if out != tt.want || (err != nil) != (tt.complaint != "") || err != nil && !strings.Contains(err.Error(), tt.complaint) {
				t.Errorf("count.py %s %s printed %q, %v, want %q, %q", tt.action, tt.counter, out, err, tt.want, tt.complaint)
			}
		}
		line := inReadme(t, "urllib.request.urlopen(")
		out, err := run("python3", "-c", "import urllib.request\nprint("+line+".read().decode(), end='')")
		if want := "{\"value\":1}\n"; err != nil || out != want {
			t.Errorf("%s printed %q, %v, want %q", line, out, err, want)
		}
		if err := s.stop(); err != nil {
			t.Fatal(err)
		}
		if out, err := run("python3", "-c", script, "plus", "door.front"); err == nil || !strings.Contains(err.Error(), "no answer") {
			t.Errorf("without a server count.py printed %q, %v, want no answer", out, err)
		}
	})
}

// TestRecipesAreRun checks that docs/counters.md has nothing to copy that the tests above do not run.
func TestRecipesAreRun(t *testing.T) {
	t.Parallel()
	r := readRecipes(t)
	for _, tt := range []struct{ what, got, want string }{
		{"files", names(r.files), "bouncer.html, counters.css, display.html, like.html, like.js, room.js, vote.html, vote.js"},
		{"blocks", names(r.blocks), "csp, js, python, sh"},
		{"commands", names(r.flags), "# Many counters, A like button, A vote with three options, People in a room"},
	} {
		if tt.got != tt.want {
			t.Errorf("docs/counters.md has the %s %s, want %s", tt.what, tt.got, tt.want)
		}
	}
}

// names returns the sorted keys of m.
func names[V any](m map[string]V) string { return strings.Join(slices.Sorted(maps.Keys(m)), ", ") }
