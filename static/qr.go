package static

import (
	"bytes"
	"net"
	"net/http"
	"net/url"
	"strings"

	qrcode "github.com/piglig/go-qr"
)

// maxQR is the length of the longest URL in a QR code, in bytes. A page of a counter with the longest name has less. The
// squares of a longer one would be small on a phone.
const maxQR = 400

// newQR returns the QR code that r asks for. It reports false if that is not a URL of the host that r is for: the name
// of this server must not vouch for other people's links.
func newQR(r *http.Request) (file, bool) {
	text := r.URL.Query().Get("url")
	u, err := url.Parse(text)
	if err != nil || len(text) > maxQR || u.Scheme != "https" && u.Scheme != "http" || u.User != nil ||
		!strings.EqualFold(u.Hostname(), hostname(r.Host)) {
		return file{}, false
	}
	code, err := qrcode.EncodeText(text, qrcode.Medium)
	if err != nil {
		return file{}, false
	}
	var svg bytes.Buffer
	// A scanner needs a light edge of four squares: ISO/IEC 18004, quiet zone.
	if err := code.WriteAsSVG(qrcode.NewQrCodeImgConfig(1, 4, qrcode.WithOptimalSVG()), &svg); err != nil {
		panic(err) // a buffer takes everything, and the configuration is valid
	}
	return newFile(svg.String(), "image/svg+xml; charset=utf-8"), true
}

// hostname returns a Host header without its port and without brackets. A proxy may leave out the port.
func hostname(host string) string {
	if name, _, err := net.SplitHostPort(host); err == nil {
		return name
	}
	return strings.Trim(host, "[]")
}
