// Package static embeds the page that plusminus serves to browsers: one counter, two buttons, and the
// module client.js, which holds the WebSocket connection. It draws QR codes of the page's address. Pages of other sites use
// embed.js, or show a [Badge]. It starts no goroutines.
package static

import (
	"crypto/sha256"
	"embed"
	"encoding/hex"
	"html"
	"net/http"
	"strings"
	"time"
)

//go:embed index.html app.js client.js changes.js embed.js plot.js style.css
//go:embed favicon.svg apple-touch-icon.png share.png manrope.woff2
var files embed.FS

// contentTypes maps the URL path of each file to its Content-Type. The types are constants because
// [mime.TypeByExtension] reads tables of the machine, which may be wrong. With nosniff, a wrong type
// means a page without script or style.
//
// "/" is index.html. The page has only this URL, so "/index.html" is not found.
var contentTypes = map[string]string{
	"/":                     "text/html; charset=utf-8",
	"/app.js":               "text/javascript; charset=utf-8",
	"/client.js":            "text/javascript; charset=utf-8",
	"/changes.js":           "text/javascript; charset=utf-8",
	"/embed.js":             "text/javascript; charset=utf-8",
	"/plot.js":              "text/javascript; charset=utf-8",
	"/style.css":            "text/css; charset=utf-8",
	"/favicon.svg":          "image/svg+xml; charset=utf-8",
	"/apple-touch-icon.png": "image/png",
	"/share.png":            "image/png", // what messengers show beside a link
	// The digits of Manrope ExtraBold, under the Open Font License in manrope-OFL.txt. The number is what people remember
	// of the page, and without a font it looks different on each system. These digits are wide, round and heavy, can be
	// told apart from across a room, and have one width (tnum), so that a number that runs does not tremble.
	"/manrope.woff2": "font/woff2",
}

// headers are set on every response, errors included.
var headers = map[string]string{
	// Everything that the page loads comes from its own origin, and so does the WebSocket: 'self' matches
	// wss on the same host and port for a page from https, and ws and wss for a page from http.
	// https://www.w3.org/TR/CSP3/#match-url-to-source-expression, step 4
	// Chrome does this since 70 or 71 (2018), Safari since 16 (2022), Firefox since before 2020
	// (https://github.com/w3c/webappsec-csp/issues/7). An older Safari needs an explicit "wss://host".
	// That is not worth a policy built from the Host header of each request.
	"Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; " +
		"font-src 'self'; connect-src 'self'; base-uri 'none'; form-action 'none'; " + framesOf("'none'"),
	"Cross-Origin-Opener-Policy": "same-origin",
	// A counter never needs these features, which browsers ask permission for.
	"Permissions-Policy":     "camera=(), geolocation=(), microphone=()",
	"Referrer-Policy":        "no-referrer",
	"X-Content-Type-Options": "nosniff",
	// Browsers may keep a copy, but must revalidate it each time: file names have no version, and an
	// app.js of another version than its index.html is worse than a 304.
	"Cache-Control": "no-cache",
}

// framesOf returns the directive that lets the sources in a list show the page in a frame.
func framesOf(sources string) string { return "frame-ancestors " + sources }

// file is one embedded file and its headers.
type file struct {
	body        string
	contentType string
	etag        string // strong, from the hash of body
}

// CounterPage and the name of a counter are the path in a request to the handler for the page of that counter, which lies
// one folder below "/". No URL has this path.
const CounterPage = "counter:"

// handler serves the files. It is immutable after Handler.
type handler struct {
	files       map[string]file // by URL path, without the pages
	page, below string          // the page, and that of a counter, for newPage to fill in
	policy      string          // the Content-Security-Policy
}

// Handler returns a handler for the page at "/" and the files that it needs. Pages of frameOrigins, which are source
// expressions such as https://www.example.com, may show the page in a frame. Without any, nobody may.
//
// GET /qr.svg?url=URL is a QR code of URL, which has to be one of the host that the request is for.
//
// The page names itself and its picture by the Host header of the request, which the caller has checked.
//
// It answers GET and HEAD, with ETag and If-None-Match; other methods get 405, and unknown paths get
// 404. It sets no Strict-Transport-Security, because it cannot know whether browsers trust the
// certificate. The caller handles WebSocket upgrades. It is safe for concurrent use.
func Handler(frameOrigins ...string) http.Handler {
	h := &handler{files: make(map[string]file, len(contentTypes)), policy: headers["Content-Security-Policy"]}
	if len(frameOrigins) > 0 {
		h.policy = strings.Replace(h.policy, framesOf("'none'"), framesOf(strings.Join(frameOrigins, " ")), 1)
	}
	for path, contentType := range contentTypes {
		if path != "/" {
			h.files[path] = newFile(embedded(strings.TrimPrefix(path, "/")), contentType)
		}
	}
	h.page = embedded("index.html")
	h.below = strings.NewReplacer(`href="`, `href="../`, `src="`, `src="../`).Replace(h.page)
	return h
}

// embedded returns the text of an embedded file.
func embedded(name string) string {
	body, err := files.ReadFile(name)
	if err != nil {
		panic(err) // a bug: contentTypes and go:embed disagree
	}
	return string(body)
}

func newFile(body, contentType string) file {
	sum := sha256.Sum256([]byte(body))
	return file{body: body, contentType: contentType, etag: `"` + hex.EncodeToString(sum[:16]) + `"`}
}

func (h *handler) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	header := w.Header()
	for k, v := range headers {
		header.Set(k, v)
	}
	header.Set("Content-Security-Policy", h.policy)
	name, counter := strings.CutPrefix(r.URL.Path, CounterPage)
	f, ok := h.files[r.URL.Path]
	if !ok && !counter && r.URL.Path != "/" && r.URL.Path != "/qr.svg" {
		http.Error(w, "not found", http.StatusNotFound)
		return
	}
	if r.Method != http.MethodGet && r.Method != http.MethodHead {
		// "The origin server MUST generate an Allow header field in a 405 response"
		// https://www.rfc-editor.org/rfc/rfc9110#section-15.5.6
		header.Set("Allow", "GET, HEAD")
		http.Error(w, "method not allowed", http.StatusMethodNotAllowed)
		return
	}
	switch {
	case counter:
		f = newPage(h.below, r, name, "c/"+name)
	case r.URL.Path == "/":
		f = newPage(h.page, r, "", "")
	case r.URL.Path == "/qr.svg":
		if f, ok = newQR(r); !ok {
			http.Error(w, "/qr.svg?url= needs a URL of this host", http.StatusBadRequest)
			return
		}
	case r.URL.Path == "/embed.js":
		// Any page may import it, so that the element can say why it does not work: it imports client.js, which only
		// pages of allowed origins may.
		header.Set("Access-Control-Allow-Origin", "*")
	}
	header.Set("Content-Type", f.contentType)
	header.Set("ETag", f.etag)
	// No name, because the type is set. No time, because the ETag is more exact than a build date.
	http.ServeContent(w, r, "", time.Time{}, strings.NewReader(f.body))
}

// newPage fills in the page of the counter called name for the request r. path is that of the page, without the slash.
//
// It does without html/template: that calls methods by name, so the linker would keep those of the whole program, 6 MB.
func newPage(page string, r *http.Request, name, path string) file {
	root := "http://" + r.Host + "/"
	if r.TLS != nil || r.Header.Get("X-Forwarded-Proto") == "https" {
		root = "https://" + r.Host + "/"
	}
	title, subject, subjectHTML := "plusminus", "One", "One"
	if name != "" {
		title, subject, subjectHTML = name+" · plusminus", name+" is one", "<b>"+html.EscapeString(name)+"</b> is one"
	}
	body := strings.NewReplacer(
		"{{title}}", html.EscapeString(title),
		"{{subject}}", html.EscapeString(subject),
		"{{subject-html}}", subjectHTML,
		// Absolute: what shows a preview of a link resolves no relative URL.
		"{{url}}", html.EscapeString(root+path),
		"{{image}}", html.EscapeString(root+"share.png"),
	).Replace(page)
	return newFile(body, contentTypes["/"])
}
