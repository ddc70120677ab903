package static

import (
	"context"
	"io"
	"io/fs"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"
)

// get sends a request to Handler and returns the response and its body.
func get(t *testing.T, method, path string, header http.Header) (*http.Response, string) {
	t.Helper()
	r := httptest.NewRequest(method, path, nil)
	for k, v := range header {
		r.Header[k] = v
	}
	w := httptest.NewRecorder()
	Handler().ServeHTTP(w, r)
	resp := w.Result()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp, string(body)
}

// read returns an embedded file.
func read(t *testing.T, name string) string {
	t.Helper()
	b, err := files.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func TestHandler(t *testing.T) {
	for _, tt := range []struct {
		method, path string
		code         int
		contentType  string
		file         string // the body is this file, or a short text if ""
	}{
		{"GET", "/", 200, "text/html; charset=utf-8", "index.html"},
		{"GET", "/?from=elsewhere", 200, "text/html; charset=utf-8", "index.html"},
		{"GET", "/app.js", 200, "text/javascript; charset=utf-8", "app.js"},
		{"GET", "/client.js", 200, "text/javascript; charset=utf-8", "client.js"},
		{"GET", "/embed.js", 200, "text/javascript; charset=utf-8", "embed.js"},
		{"GET", "/plot.js", 200, "text/javascript; charset=utf-8", "plot.js"},
		{"GET", "/style.css", 200, "text/css; charset=utf-8", "style.css"},
		{"GET", "/changes.js", 200, "text/javascript; charset=utf-8", "changes.js"},
		{"GET", "/favicon.svg", 200, "image/svg+xml; charset=utf-8", "favicon.svg"},
		{"GET", "/apple-touch-icon.png", 200, "image/png", "apple-touch-icon.png"},
		{"GET", "/share.png", 200, "image/png", "share.png"},
		{"GET", "/manrope.woff2", 200, "font/woff2", "manrope.woff2"},
		{"GET", "/qr.svg", 400, "text/plain; charset=utf-8", ""},
		{"POST", "/qr.svg", 405, "text/plain; charset=utf-8", ""},
		{"GET", "/manrope-OFL.txt", 404, "text/plain; charset=utf-8", ""},
		{"POST", "/", 405, "text/plain; charset=utf-8", ""},
		{"PUT", "/app.js", 405, "text/plain; charset=utf-8", ""},
		{"OPTIONS", "/", 405, "text/plain; charset=utf-8", ""},
		{"GET", "/index.html", 404, "text/plain; charset=utf-8", ""},
		{"GET", "/app.js/", 404, "text/plain; charset=utf-8", ""},
		{"GET", "//", 404, "text/plain; charset=utf-8", ""},
		{"GET", "/./app.js", 404, "text/plain; charset=utf-8", ""},
		{"GET", "/static.go", 404, "text/plain; charset=utf-8", ""},
		{"GET", "/testdata/", 404, "text/plain; charset=utf-8", ""},
		{"GET", "/favicon.ico", 404, "text/plain; charset=utf-8", ""},
		{"POST", "/nowhere", 404, "text/plain; charset=utf-8", ""},
	} {
		t.Run(tt.method+" "+tt.path, func(t *testing.T) {
			resp, body := get(t, tt.method, tt.path, nil)
			if resp.StatusCode != tt.code {
				t.Errorf("status = %d, want %d", resp.StatusCode, tt.code)
			}
			if got := resp.Header.Get("Content-Type"); got != tt.contentType {
				t.Errorf("Content-Type = %q, want %q", got, tt.contentType)
			}
			if tt.file == "index.html" { // a template: its last lines are the page's
				_, end, _ := strings.Cut(read(t, tt.file), "<figure>")
				if !strings.HasSuffix(body, end) {
					t.Errorf("body does not end like %s", tt.file)
				}
			} else if tt.file != "" && body != read(t, tt.file) {
				t.Errorf("body is not %s", tt.file)
			}
			if tt.file == "" && (body == "" || len(body) > 100) {
				t.Errorf("body = %q, want a short text", body)
			}
			allow := ""
			if tt.code == 405 {
				allow = "GET, HEAD"
			}
			if got := resp.Header.Get("Allow"); got != allow {
				t.Errorf("Allow = %q, want %q", got, allow)
			}
			if got := resp.Header.Get("ETag"); (got != "") != (tt.code == 200) {
				t.Errorf("ETag = %q with status %d", got, tt.code)
			}
			for k, v := range headers {
				if got := resp.Header.Get(k); got != v {
					t.Errorf("%s = %q, want %q", k, got, v)
				}
			}
		})
	}
}

func TestHead(t *testing.T) {
	for path := range contentTypes {
		want, body := get(t, "GET", path, nil)
		got, none := get(t, "HEAD", path, nil)
		if got.StatusCode != 200 || none != "" {
			t.Errorf("HEAD %s = %d with %d bytes, want 200 with none", path, got.StatusCode, len(none))
		}
		for _, k := range []string{"Content-Type", "Content-Length", "ETag"} {
			if got.Header.Get(k) != want.Header.Get(k) || want.Header.Get(k) == "" {
				t.Errorf("HEAD %s: %s = %q, GET says %q", path, k, got.Header.Get(k), want.Header.Get(k))
			}
		}
		if got.ContentLength != int64(len(body)) {
			t.Errorf("HEAD %s: Content-Length = %d, want %d", path, got.ContentLength, len(body))
		}
	}
}

func TestIfNoneMatch(t *testing.T) {
	etags := map[string]string{} // to path
	for path := range contentTypes {
		resp, _ := get(t, "GET", path, nil)
		etag := resp.Header.Get("ETag")
		if other, ok := etags[etag]; ok {
			t.Errorf("%s and %s have the same ETag %s", path, other, etag)
		}
		etags[etag] = path
		for _, tt := range []struct {
			value string
			code  int
		}{
			{etag, 304},
			{"W/" + etag, 304}, // weakened by a proxy that compresses
			{`"old", ` + etag, 304},
			{"*", 304},
			{`"old"`, 200},
		} {
			for _, method := range []string{"GET", "HEAD"} {
				resp, body := get(t, method, path, http.Header{"If-None-Match": {tt.value}})
				if resp.StatusCode != tt.code {
					t.Errorf("%s %s, If-None-Match: %s = %d, want %d", method, path, tt.value, resp.StatusCode, tt.code)
				}
				if tt.code == 304 && (body != "" || resp.Header.Get("ETag") != etag || resp.Header.Get("Cache-Control") != "no-cache") {
					t.Errorf("%s %s, If-None-Match: %s: 304 with %d bytes and %v", method, path, tt.value, len(body), resp.Header)
				}
			}
		}
	}
}

// TestFrames checks that only the pages of the given origins may show the page in a frame, and that the rest of the policy stays.
func TestFrames(t *testing.T) {
	policy := func(origins ...string) string {
		w := httptest.NewRecorder()
		Handler(origins...).ServeHTTP(w, httptest.NewRequest("GET", "/", nil))
		return w.Header().Get("Content-Security-Policy")
	}
	rest, found := strings.CutSuffix(policy(), "frame-ancestors 'none'")
	if !found {
		t.Fatalf("policy = %q, want frame-ancestors 'none' at its end", policy())
	}
	if got, want := policy("https://a.example", "https://b.example:*"), rest+"frame-ancestors https://a.example https://b.example:*"; got != want {
		t.Errorf("policy = %q, want %q", got, want)
	}
}

// TestPolicy checks that the page contains nothing that its Content-Security-Policy blocks.
func TestPolicy(t *testing.T) {
	policy := headers["Content-Security-Policy"]
	if !strings.HasPrefix(policy, "default-src 'none';") {
		t.Errorf("policy = %q, want it to begin with default-src 'none'", policy)
	}
	if bad := regexp.MustCompile(`unsafe|\*|https?:|data:|blob:`).FindString(policy); bad != "" {
		t.Errorf("policy allows %q", bad)
	}
	_, page := get(t, "GET", "/", nil)
	for what, re := range map[string]string{
		"inline script":      `(?i)<script(?:[^>]*\ssrc=)?[^>]*>\s*[^<\s]`,
		"script without src": `(?i)<script\b(?:\s+(?:type|async|defer)(?:="[^"]*")?)*\s*>`,
		"inline style":       `(?i)<style\b|\sstyle\s*=`,
		"event handler":      `(?i)<[^>]*\son[a-z]+\s*=`,
		"javascript: URL":    `(?i)=\s*"?javascript:`,
		"base or form":       `(?i)<(base|form)\b`,
	} {
		if bad := regexp.MustCompile(re).FindString(page); bad != "" {
			t.Errorf("index.html contains %s: %q", what, bad)
		}
	}
	for name := range contentTypes {
		name = strings.TrimPrefix(name, "/")
		if name == "" || name == "favicon.svg" { // its xmlns is a name, not a URL that is fetched
			continue
		}
		if strings.HasSuffix(name, ".png") || strings.HasSuffix(name, ".woff2") { // no text
			continue
		}
		for _, bad := range regexp.MustCompile(`(?i)((?-i:url\()|@import|innerHTML|insertAdjacentHTML|document\.write|\beval\b|new Function).*`).FindAllString(read(t, name), -1) {
			if name == "style.css" && bad == `url("manrope.woff2"); }` {
				continue // of this origin
			}
			t.Errorf("%s contains %q", name, bad)
		}
	}
}

func TestReferences(t *testing.T) {
	var refs []string
	for _, m := range regexp.MustCompile(`(?:src|href)="([^"]*)"`).FindAllStringSubmatch(read(t, "index.html"), -1) {
		if strings.HasPrefix(m[1], "/") || strings.Contains(m[1], ":") {
			t.Errorf("index.html refers to %q, want a relative URL: a proxy may serve the page under a folder", m[1])
		}
		refs = append(refs, "/"+m[1])
	}
	refs = append(refs, "/share.png") // TestPreview compares
	for _, name := range []string{"app.js", "changes.js", "client.js", "plot.js"} {
		for _, m := range regexp.MustCompile(`(?m)^import .* from "\.([^"]*)"`).FindAllStringSubmatch(read(t, name), -1) {
			refs = append(refs, m[1])
		}
	}
	if len(refs) < 5 {
		t.Errorf("references = %q, want at least 5", refs)
	}
	used := map[string]bool{"/": true, "/embed.js": true} // other sites refer to embed.js
	for _, ref := range refs {
		used[ref] = true
		if resp, _ := get(t, "GET", ref, nil); resp.StatusCode != 200 {
			t.Errorf("GET %s = %d, want 200: the page refers to it", ref, resp.StatusCode)
		}
	}
	for path := range contentTypes {
		if !used[path] {
			t.Errorf("nothing refers to %s", path)
		}
	}
}

// TestIDs checks that index.html has every id that app.js or style.css uses.
func TestIDs(t *testing.T) {
	page := map[string]bool{}
	for _, m := range regexp.MustCompile(`\sid="([^"]*)"`).FindAllStringSubmatch(read(t, "index.html"), -1) {
		if page[m[1]] {
			t.Errorf("index.html has id %q twice", m[1])
		}
		page[m[1]] = true
	}
	taken := regexp.MustCompile(`(?s)const \{ (.*?), \.\.\.rest \} =\s+Object`).FindStringSubmatch(read(t, "app.js"))
	if taken == nil {
		t.Fatal("the statement of app.js that looks up its elements was not found")
	}
	ids := regexp.MustCompile(`,\s+`).Split(taken[1], -1)
	for _, m := range regexp.MustCompile(`#([a-z]+)\b[^;]*\{`).FindAllStringSubmatch(read(t, "style.css"), -1) {
		ids = append(ids, m[1])
	}
	for _, id := range ids {
		if !page[id] {
			t.Errorf("index.html has no id %q", id)
		}
	}
}

// embedLimit bounds embed.js, in bytes. Compressed it is about 5 KB.
const embedLimit = 14_500

// TestSize limits what the page loads to 40 KB, with the QR code that a visitor may ask for, so that it needs no
// compression. TestChromiumBudget measures it in a browser. The page does not load embed.js, which has a limit of its own.
func TestSize(t *testing.T) {
	const limit = 40 << 10
	if size := len(read(t, "embed.js")); size > embedLimit {
		t.Errorf("size of embed.js = %d bytes, want at most %d", size, embedLimit)
	}
	_, qr := get(t, "GET", "/qr.svg?url=https://example.com/c/likes", nil)
	total := int64(len(qr))
	err := fs.WalkDir(files, ".", func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		info, err := d.Info()
		switch path {
		case "apple-touch-icon.png", "share.png", "embed.js": // for phones, messengers and other people's pages
		default:
			if err == nil {
				total += info.Size()
			}
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	if total > limit {
		t.Errorf("size of what the page loads = %d bytes, want at most %d", total, limit)
	}
	if font := len(read(t, "manrope.woff2")); font > 12_000 {
		t.Errorf("size of the font = %d bytes, want at most 12,000", font)
	}
}

// TestPreview checks what messengers and search engines read of the page: the name of the counter, and absolute URLs.
func TestPreview(t *testing.T) {
	for _, tt := range []struct {
		url, path, proto string
		want             []string
	}{
		{"https://counter.example/", "/", "", []string{
			`<title>plusminus</title>`,
			`<meta name="description" content="One number. Everyone moves it.">`,
			`<meta property="og:title" content="plusminus">`,
			`<meta property="og:description" content="One number. Everyone moves it.">`,
			`<meta property="og:url" content="https://counter.example/">`,
			`<meta property="og:image" content="https://counter.example/share.png">`,
			`<p id="tagline">One number. Everyone moves it.</p>`,
			`href="apple-touch-icon.png"`,
		}},
		{"http://localhost:8080/", "/", "", []string{`<meta property="og:url" content="http://localhost:8080/">`}},
		{"http://counter.example/", "/", "https", []string{`<meta property="og:url" content="https://counter.example/">`}},
		{"https://counter.example:8443/c/door.1", CounterPage + "door.1", "", []string{
			`<title>door.1 · plusminus</title>`,
			`<meta name="description" content="door.1 is one number. Everyone moves it.">`,
			`<meta property="og:title" content="door.1 · plusminus">`,
			`<meta property="og:description" content="door.1 is one number. Everyone moves it.">`,
			`<meta property="og:url" content="https://counter.example:8443/c/door.1">`,
			`<meta property="og:image" content="https://counter.example:8443/share.png">`,
			`<p id="tagline"><b>door.1</b> is one number. Everyone moves it.</p>`,
			`href="../apple-touch-icon.png"`,
		}},
		// The server has refused such a name. If it had not:
		{"https://counter.example/c/x", CounterPage + `"><script>`, "", []string{
			`<meta property="og:title" content="&#34;&gt;&lt;script&gt; · plusminus">`,
			`<p id="tagline"><b>&#34;&gt;&lt;script&gt;</b> is`,
		}},
	} {
		r := httptest.NewRequest("GET", tt.url, nil)
		r.URL.Path = tt.path
		if tt.proto != "" {
			r.Header.Set("X-Forwarded-Proto", tt.proto)
		}
		w := httptest.NewRecorder()
		Handler().ServeHTTP(w, r)
		for _, want := range tt.want {
			if !strings.Contains(w.Body.String(), want) {
				t.Errorf("%s, path %s: the page does not contain %s", tt.url, tt.path, want)
			}
		}
		if got := strings.Count(w.Body.String(), "<script"); got != 1 {
			t.Errorf("%s, path %s: the page has %d scripts, want 1", tt.url, tt.path, got)
		}
	}
}

// TestQR checks that the server makes QR codes of its own URLs only. TestChromiumShare decodes one.
func TestQR(t *testing.T) {
	codes := map[string]string{} // to URL
	for host, urls := range map[string]map[string]int{
		"counter.example": {
			"https://counter.example/":                            200,
			"http://counter.example:8080/c/likes":                 200, // a proxy may leave the port out of Host
			"https://COUNTER.example/folder/":                     200,
			"https://elsewhere.example/":                          400,
			"https://counter.example.evil.example/":               400,
			"https://counter.example@evil.example/":               400,
			"https://me:secret@counter.example/":                  400,
			"javascript://counter.example/%0aalert(":              400,
			"//counter.example/":                                  400,
			"/c/likes":                                            400,
			"":                                                    400,
			"https://counter.example/" + strings.Repeat("a", 400): 400,
		},
		"[::1]:8443":     {"https://[::1]:8443/": 200, "https://[::2]:8443/": 400},
		"[::1]":          {"https://[::1]/": 200},
		"127.0.0.1:8443": {"https://127.0.0.1:8443/": 200, "https://127.0.0.2:8443/": 400},
	} {
		for u, code := range urls {
			r := httptest.NewRequest("GET", "/qr.svg?url="+url.QueryEscape(u), nil)
			r.Host = host
			w := httptest.NewRecorder()
			Handler().ServeHTTP(w, r)
			if w.Code != code {
				t.Errorf("the QR code of %q on %s: status %d, want %d", u, host, w.Code, code)
			}
			if w.Code != 200 {
				continue
			}
			if got := w.Header().Get("Content-Type"); got != "image/svg+xml; charset=utf-8" {
				t.Errorf("the QR code of %q has the type %q", u, got)
			}
			if other, ok := codes[w.Body.String()]; ok {
				t.Errorf("%q and %q have the same QR code", u, other)
			}
			codes[w.Body.String()] = u
		}
	}
}

// TestReadme compares what docs/protocol.md says of client.js with its constants.
func TestReadme(t *testing.T) {
	page, err := os.ReadFile(filepath.Join("..", "docs", "protocol.md"))
	if err != nil {
		t.Fatal(err)
	}
	text := strings.Join(strings.Fields(string(page)), " ")
	for code, words := range map[string]string{
		"minDelay = 500;":             "comes back after 0 to 0.5 s, then up to 1, 2, 4",
		"maxDelay = 30_000;":          "… 30 s, at random",
		`1001: "restarting"`:          "within 2 s after 1001 or 1012",
		`1012: "restarting"`:          "1012 (a restart)",
		"restarting: [0, 2_000]":      "within 2 s",
		`1013: "full"`:                "503; or a close with 1013",
		`1008: "refused"`:             "`refused` (1008)",
		`429: "limited", 503: "full"`: "`full` | `/state` works and `/events` answers 503",
		"long = [30_000, 60_000];":    "after 30 to 60 s",
		"refused: long, limited: long, full: long, blocked: long, foreign: long": "`refused` (1008), `limited`, `full`, `blocked` or `foreign`",
		"forgotten = 300_000;":           "for five minutes",
		"quiet = 25_000;":                "after 25 to 50 s without a message",
		"quiet * (1 + env.Math.random()": "25 to 50 s",
		"grace = 5_000;":                 "no answer within 5 s",
	} {
		if !strings.Contains(read(t, "client.js"), code) {
			t.Errorf("client.js does not contain %q: change docs/protocol.md and this test with it", code)
		}
		if !strings.Contains(text, words) {
			t.Errorf("docs/protocol.md does not say %q", words)
		}
	}
	sentences := regexp.MustCompile(`(?m)^\t(unreachable|limited|full|blocked): "(.*)",$`).FindAllStringSubmatch(read(t, "app.js"), -1)
	if len(sentences) != 4 {
		t.Errorf("app.js has the sentences %q, want 4", sentences)
	}
	for _, m := range sentences {
		if row := regexp.MustCompile("\\| `" + m[1] + "` \\|.*\\| " + regexp.QuoteMeta(m[2]) + " \\|"); !row.MatchString(text) {
			t.Errorf("docs/protocol.md has no row for %q that ends with %q", m[1], m[2])
		}
	}
}

// TestClient runs the tests in testdata in Chromium, which other tests need as well: no further
// JavaScript engine has to be installed.
func TestClient(t *testing.T) {
	if testing.Short() {
		t.Skip("starts a browser")
	}
	var chromium string
	for _, name := range []string{"chromium", "chromium-browser", "google-chrome"} {
		if path, err := exec.LookPath(name); err == nil {
			chromium = path
			break
		}
	}
	if chromium == "" {
		t.Skip("Chromium is not installed (Debian: chromium)")
	}
	for _, name := range []string{"client_test.js", "changes_test.js"} {
		t.Run(name, func(t *testing.T) { runInChromium(t, chromium, name) })
	}
}

// runInChromium runs a file of testdata, which writes how many tests passed.
func runInChromium(t *testing.T, chromium, name string) {
	page := Handler()
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/":
			w.Header().Set("Content-Type", "text/html; charset=utf-8")
			io.WriteString(w, `<!doctype html><body>did not run<script type="module" src="/`+name+`"></script>`)
		case "/" + name:
			w.Header().Set("Content-Type", "text/javascript; charset=utf-8")
			http.ServeFile(w, r, filepath.Join("testdata", name))
		default:
			page.ServeHTTP(w, r)
		}
	}))
	defer srv.Close()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	// Chromium refuses to run as root with a sandbox. It loads only our own files here.
	out, err := exec.CommandContext(ctx, chromium, "--headless=new", "--no-sandbox", "--disable-gpu",
		"--user-data-dir="+t.TempDir(), "--virtual-time-budget=60000", "--dump-dom", srv.URL+"/").Output()
	if err != nil {
		t.Fatalf("running %s: %v", chromium, err)
	}
	if !regexp.MustCompile(`<body>\d+ passed`).Match(out) {
		t.Errorf("%s: %s", name, out)
	}
}
