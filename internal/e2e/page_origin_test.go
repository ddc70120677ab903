package e2e

import (
	"fmt"
	"log"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"strings"
	"sync/atomic"
	"testing"

	"plusminus/static"

	"github.com/chromedp/chromedp"
)

// newStateCounter starts a proxy with TLS in front of s, which runs with -plain. states counts the requests for /state.
func newStateCounter(t *testing.T, s *plusminus, states *atomic.Int32) (addr string) {
	t.Helper()
	upstream := &url.URL{Scheme: "http", Host: s.addrs.HTTP}
	proxy := &httputil.ReverseProxy{
		Rewrite: func(r *httputil.ProxyRequest) {
			r.SetURL(upstream)
			r.Out.Host = r.In.Host
		},
		ErrorLog: log.New(t.Output(), "", 0),
	}
	srv := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/state" {
			states.Add(1)
		}
		proxy.ServeHTTP(w, r)
	}))
	t.Cleanup(func() {
		s.stop() // ends the WebSockets, for which Close waits
		srv.Close()
	})
	return srv.Listener.Addr().String()
}

// servePage serves a page with a module script, and a copy of plusminus's files beside it. It returns its port.
func servePage(t *testing.T, script func() string) (port string) {
	t.Helper()
	files := static.Handler()
	srv := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/" {
			files.ServeHTTP(w, r)
			return
		}
		w.Header().Set("Content-Type", "text/html; charset=utf-8")
		fmt.Fprintf(w, `<!doctype html><link rel="icon" href="favicon.svg"><p id="value"></p><p id="state"></p><script type="module">%s</script>`, script())
	}))
	t.Cleanup(srv.Close)
	return portOf(t, srv.Listener.Addr().String())
}

// embed is the script of a page that shows a counter. Its verbs are the URL of client.js and the first argument of
// connect. It records the reasons of the connection in whys.
const embed = `
	import { connect } from %q;
	window.whys = [];
	window.client = connect(%q, {
		state: (v) => { value.textContent = v; },
		error: (e) => whys.push("error: " + e.code),
		status: (s) => { state.textContent = s.state; if (s.state === "waiting") whys.push(s.why); },
	});`

// TestChromiumOtherOrigin imports client.js on a page of another origin. It finds the server by its own URL, counts, and
// notices a dead connection.
func TestChromiumOtherOrigin(t *testing.T) {
	t.Parallel()
	browser := chromium(t)
	s := start(t, "-plain", "-domain", "counter.test", "-origin", "https://friend.test:*")
	var addr string
	port := servePage(t, func() string {
		return fmt.Sprintf(embed, "https://counter.test"+portOf(t, addr)+"/client.js", "./")
	})
	var states atomic.Int32
	hole := newBlackHole(t, newStateCounter(t, s, &states))
	addr = hole.addr
	p := openPage(t, browser, "https://friend.test"+port+"/")
	p.waitText("state", "open")
	p.waitText("value", "0")
	p.eval(`client.send("plus")`)
	p.waitText("value", "1")
	p.eval(`void window.dispatchEvent(new Event("online"))`) // checks a connection that lives
	p.eval(`client.send("plus")`)
	p.waitText("value", "2")
	p.wantNoProblems("on another origin")
	if whys := p.eval(`whys`); whys != "" {
		t.Errorf("reasons of failures = %q, want none", whys)
	}

	hole.drop(false)
	p.eval(`void window.dispatchEvent(new Event("online"))`)
	p.wait(`whys.includes("silent")`)
	p.waitText("state", "open")
	p.eval(`client.send("plus")`)
	p.waitText("value", "3")

	// The page may read why a handshake fails.
	if n := states.Load(); n != 0 {
		t.Errorf("the page has sent %d requests for /state while all was well, want 0", n)
	}
	p.eval(`(whys.length = 0, null)`)
	if err := s.stop(); err != nil { // the proxy answers 502
		t.Fatal(err)
	}
	p.wait(`whys.includes("unreachable")`)
	waitUntil(t, "a request for /state", func() bool { return states.Load() > 0 })
	if whys := p.eval(`whys`); strings.Contains(whys, "foreign") {
		t.Errorf("reasons of failures = %q, want none that is foreign", whys)
	}
}

// TestChromiumForeignOrigin connects from a page whose origin the server does not allow, with a copy of client.js. The
// client says so, and asks /state no more.
func TestChromiumForeignOrigin(t *testing.T) {
	t.Parallel()
	browser := chromium(t)
	s := start(t, "-plain", "-domain", "counter.test")
	var states atomic.Int32
	addr := newStateCounter(t, s, &states)
	port := servePage(t, func() string {
		return fmt.Sprintf(embed, "./client.js", "wss://counter.test"+portOf(t, addr)+"/")
	})
	p := newPage(t, browser)
	p.inject(`Math.random = () => 1;`) // half a second until the second try
	p.do(chromedp.Navigate("https://stranger.test" + port + "/"))
	p.wait(`whys.includes("foreign")`)
	want := states.Load()
	if want != 2 {
		t.Errorf("the client has sent %d requests for /state, want 2: with and without CORS", want)
	}
	for range 3 {
		n := p.eval(`(client.retry(), whys.length)`)
		p.wait(`whys.length > ` + n)
	}
	if got := states.Load(); got != want {
		t.Errorf("the client has sent %d requests for /state after it knew the reason, want none", got-want)
	}
	if whys := p.eval(`[...new Set(whys)]`); whys != "unreachable,foreign" {
		t.Errorf("reasons = %q, want unreachable, then foreign", whys)
	}
}
