package ingress

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
	"time"
)

// looksLikeHTTP reports whether the first bytes of a connection begin an HTTP request.
func looksLikeHTTP(p []byte) bool {
	if len(p) < 5 {
		return false
	}
	switch string(p[:5]) {
	case "GET /", "HEAD ", "POST ", "PUT /", "OPTIO":
		return true
	}
	return false
}

// answerHTTP answers a request that came to a TLS listener without TLS, on the connection nc. early has the bytes
// of it that were read already. The rest is read within the deadline of nc, at most MaxHeader bytes.
//
// A browser is sent to https:// on the same host and port, since a person has typed http://localhost:8443 or an
// old link has it. The redirect is temporary (307): a browser keeps a permanent one, and would go on to redirect
// after another program has taken the port. A WebSocket client gets 426, as on the port for redirects. All others
// get 400.
func (g *Gate) answerHTTP(nc net.Conn, early []byte) {
	var target string // https or wss, without the scheme
	in := io.LimitReader(io.MultiReader(bytes.NewReader(early), nc), MaxHeader)
	r, err := http.ReadRequest(bufio.NewReader(in))
	if err == nil {
		target = g.secured(r)
	}
	// Nothing can be done if writing fails: the connection is closed in any case.
	switch {
	case target == "":
		_, _ = io.WriteString(nc, "HTTP/1.0 400 Bad Request\r\n\r\nClient sent an HTTP request to an HTTPS server.\n")
	case WantsWebSocket(r):
		text := "no WebSocket without TLS on this port: connect to wss" + target + "\n"
		_, _ = fmt.Fprintf(nc, "HTTP/1.1 426 Upgrade Required\r\nDate: %s\r\nUpgrade: %s\r\nConnection: Upgrade, close\r\n"+
			"Content-Type: text/plain; charset=utf-8\r\nContent-Length: %d\r\n\r\n%s", date(), upgradeTLS, len(text), text)
	default:
		_, _ = fmt.Fprintf(nc, "HTTP/1.1 307 Temporary Redirect\r\nDate: %s\r\nLocation: https%s\r\nConnection: close\r\n"+
			"Content-Length: 0\r\n\r\n", date(), target)
	}
}

func date() string { return time.Now().UTC().Format(http.TimeFormat) }

// secured returns the URL of r with TLS from its "://" on, or "" if r is not to be redirected: it is no GET or HEAD, or its
// Host is not one of ours.
//
// It also returns "" for a request that a proxy passes on, as far as that can be seen: a header of proxies, or a Host
// without a port, which a browser sends to port 80 only. Such a proxy speaks http to the TLS port by mistake. A
// redirect would lead the browser to the same proxy again, without end.
func (g *Gate) secured(r *http.Request) string {
	if r.Method != http.MethodGet && r.Method != http.MethodHead {
		return ""
	}
	for _, name := range []string{"Forwarded", "Via", "X-Forwarded-For", "X-Forwarded-Proto"} {
		if r.Header.Get(name) != "" {
			return ""
		}
	}
	name, port, err := net.SplitHostPort(r.Host)
	if err != nil {
		return ""
	}
	if _, err := strconv.ParseUint(port, 10, 16); err != nil {
		return ""
	}
	host, ok := g.cfg.Hosts.canonical(name)
	if !ok {
		return ""
	}
	return "://" + net.JoinHostPort(host, port) + r.URL.RequestURI()
}
