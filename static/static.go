// Package static is the page that plusminus serves to browsers, embedded in the program: one counter,
// two buttons, and the module client.js, which holds the WebSocket connection.
package static

import (
	"crypto/sha256"
	"embed"
	"encoding/hex"
	"net/http"
	"strings"
	"time"
)

//go:embed index.html app.js client.js plot.js style.css favicon.svg
var files embed.FS

// contentTypes maps the path of each file in the URL to its Content-Type. They are written here
// because [mime.TypeByExtension] reads the tables of the machine, which differ and may be wrong; with
// nosniff a wrong type is a page without script or style.
//
// "/" is index.html, and "/index.html" is nothing: the page has one URL and nobody ever linked to a
// second one, so there is none to redirect.
var contentTypes = map[string]string{
	"/":            "text/html; charset=utf-8",
	"/app.js":      "text/javascript; charset=utf-8",
	"/client.js":   "text/javascript; charset=utf-8",
	"/plot.js":     "text/javascript; charset=utf-8",
	"/style.css":   "text/css; charset=utf-8",
	"/favicon.svg": "image/svg+xml; charset=utf-8",
}

// headers go out with every answer, errors included.
var headers = map[string]string{
	// All that the page needs comes from its own origin, the WebSocket too: for a page from https, 'self'
	// matches wss on the same host and port, and for one from http it matches ws as well.
	// https://www.w3.org/TR/CSP3/#match-url-to-source-expression, step 4
	// Chrome does so since 70 or 71 (2018), Safari since 16 (2022), Firefox since before 2020
	// (https://github.com/w3c/webappsec-csp/issues/7). An older Safari would need "wss://host" spelled
	// out, and a policy put together from the Host header of each request is not worth that.
	"Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; " +
		"connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
	"Cross-Origin-Opener-Policy": "same-origin",
	// The features behind a permission prompt that a counter can never want.
	"Permissions-Policy":     "camera=(), geolocation=(), microphone=()",
	"Referrer-Policy":        "no-referrer",
	"X-Content-Type-Options": "nosniff",
	// Keep a copy, but ask each time whether it is still the one: the names hold no version, and an
	// app.js that does not fit its index.html is worse than a 304.
	"Cache-Control": "no-cache",
}

// file is one embedded file, ready to be served.
type file struct {
	body        string
	contentType string
	etag        string // strong, from the hash of body
}

// handler maps URL paths to files. It is immutable after Handler.
type handler map[string]file

// Handler returns a handler for the page at "/" and the files that it needs.
//
// It answers GET and HEAD, with an ETag and If-None-Match; other methods get 405, and any other path
// gets 404. It sets no Strict-Transport-Security, since it cannot know whether the certificate is
// trusted. WebSocket upgrades are to be taken out before it. It is safe for concurrent use.
func Handler() http.Handler {
	h := make(handler, len(contentTypes))
	for path, contentType := range contentTypes {
		name := strings.TrimPrefix(path, "/")
		if name == "" {
			name = "index.html"
		}
		body, err := files.ReadFile(name)
		if err != nil {
			panic(err) // contentTypes and go:embed disagree; no input can cause it
		}
		sum := sha256.Sum256(body)
		h[path] = file{
			body:        string(body),
			contentType: contentType,
			etag:        `"` + hex.EncodeToString(sum[:16]) + `"`,
		}
	}
	return h
}

func (h handler) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	header := w.Header()
	for k, v := range headers {
		header.Set(k, v)
	}
	f, ok := h[r.URL.Path]
	if !ok {
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
	header.Set("Content-Type", f.contentType)
	header.Set("ETag", f.etag)
	// No name and no time: the type is set, and the ETag says more than a build's date would.
	http.ServeContent(w, r, "", time.Time{}, strings.NewReader(f.body))
}
