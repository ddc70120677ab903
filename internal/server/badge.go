package server

import (
	"bytes"
	"cmp"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"net/http"
	"time"

	"plusminus/hub"
	"plusminus/static"
)

// badgeAge is how long a copy of a badge may be shown, in seconds. A page with many visitors asks seldom, and nobody takes the
// number for old.
const badgeAge = 5

// badge answers GET /badge.svg, for the counter called name. The query may have a label and a color. Any page may show the
// picture in an <img>.
func (s *routes) badge(w http.ResponseWriter, r *http.Request, name string) {
	header := w.Header()
	header.Set("X-Content-Type-Options", "nosniff")
	header.Set("Cross-Origin-Resource-Policy", "cross-origin")
	// The picture has no style and no script. As a document of its own it may load nothing.
	header.Set("Content-Security-Policy", "default-src 'none'; frame-ancestors 'none'; sandbox")
	if !onlyGet(w, r) {
		return
	}
	b, err := static.ParseBadge(r.URL.RawQuery)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	b.Label = cmp.Or(b.Label, name, "counter")
	value, _, ok := s.hub.State(r.Context(), name)
	header.Set("Content-Type", "image/svg+xml; charset=utf-8")
	if !ok {
		// Browsers show the body of an error in an <img>.
		header.Set("Cache-Control", "no-store")
		header.Set("Retry-After", "10")
		w.WriteHeader(http.StatusServiceUnavailable)
		b.SetUnknown()
		_, _ = w.Write(b.SVG()) // an error means that the client has gone
		return
	}
	b.Value = string(hub.AppendValue(nil, value))
	body := b.SVG()
	sum := sha256.Sum256(body)
	header.Set("Cache-Control", fmt.Sprintf("max-age=%d", badgeAge))
	header.Set("ETag", `"`+hex.EncodeToString(sum[:16])+`"`)
	http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(body))
}
