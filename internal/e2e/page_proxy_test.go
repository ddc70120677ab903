package e2e

import (
	"flag"
	"fmt"
	"log"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/chromedp/cdproto/emulation"
	"github.com/chromedp/chromedp"
)

// folderProxy is a reverse proxy that serves a server under /counter/, and answers 404 to every other path.
type folderProxy struct {
	url   string      // "https://counter.test:PORT/counter/"
	strip atomic.Bool // remove Upgrade from requests, like a proxy that does not know WebSockets

	mu    sync.Mutex
	paths map[string]int // how often each path was requested. Guarded by mu.
}

// newFolderProxy starts a folderProxy in front of s, which runs with -plain and -domain counter.test.
func newFolderProxy(t *testing.T, s *plusminus) *folderProxy {
	t.Helper()
	upstream := &url.URL{Scheme: "http", Host: s.addrs.HTTP}
	proxy := http.StripPrefix("/counter", &httputil.ReverseProxy{
		Rewrite: func(r *httputil.ProxyRequest) {
			r.SetURL(upstream)
			r.Out.Host = r.In.Host
		},
		ErrorLog: log.New(t.Output(), "", 0),
	})
	f := &folderProxy{paths: map[string]int{}}
	srv := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		f.mu.Lock()
		f.paths[r.URL.Path]++
		f.mu.Unlock()
		if !strings.HasPrefix(r.URL.Path, "/counter/") {
			http.NotFound(w, r)
			return
		}
		if f.strip.Load() {
			r.Header.Del("Upgrade")
			r.Header.Del("Connection")
		}
		proxy.ServeHTTP(w, r)
	}))
	t.Cleanup(func() {
		s.stop() // ends the WebSockets, for which Close waits
		srv.Close()
	})
	f.url = "https://counter.test" + portOf(t, srv.Listener.Addr().String()) + "/counter/"
	return f
}

// requests returns how often path was requested.
func (f *folderProxy) requests(path string) int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.paths[path]
}

// TestChromiumFolder serves the page under a folder of a reverse proxy. The page requests nothing outside of it.
func TestChromiumFolder(t *testing.T) {
	t.Parallel()
	browser := chromium(t)
	s := start(t, "-plain", "-domain", "counter.test")
	proxy := newFolderProxy(t, s)
	p := openPage(t, browser, proxy.url)
	p.waitOpen()
	p.waitText("value", "0")
	p.click("plus")
	p.waitText("value", "1")
	p.wantNoProblems("under a folder")
	if style := p.eval(`getComputedStyle(document.querySelector("main")).display`); style != "grid" {
		t.Errorf("main has the display %q, want grid, as in style.css", style)
	}

	proxy.strip.Store(true)
	p.do(chromedp.Navigate(proxy.url))
	p.waitText("sentence", "A proxy on the way blocks WebSockets.")
	if proxy.requests("/counter/state") == 0 || proxy.requests("/counter/events") == 0 {
		t.Error("the page has not asked /counter/state and /counter/events")
	}
	proxy.mu.Lock()
	defer proxy.mu.Unlock()
	for path := range proxy.paths {
		if !strings.HasPrefix(path, "/counter/") {
			t.Errorf("the page requests %s, want only paths under /counter/", path)
		}
	}
}

// TestChromiumWhy checks what the page says when it gets no connection, and that each text fits the window and
// moves nothing. With -artifacts or -long it takes pictures.
func TestChromiumWhy(t *testing.T) {
	t.Parallel()
	browser := chromium(t)
	open := func(t *testing.T, args ...string) (*plusminus, *folderProxy) {
		s := start(t, append(args, "-plain", "-domain", "counter.test")...)
		return s, newFolderProxy(t, s)
	}
	for name, tt := range map[string]struct {
		args     []string
		before   func(*plusminus, *folderProxy)
		sentence string
		least    int // seconds of the shortest wait
	}{
		"limited": {
			[]string{"-max-clients-per-ip", "1"},
			func(s *plusminus, _ *folderProxy) { s.join("ws://counter.test/") },
			"Too many visitors from your network.", 25,
		},
		"full": {
			[]string{"-max-clients", "1"},
			func(s *plusminus, _ *folderProxy) { s.join("ws://counter.test/") },
			"The server is full.", 25,
		},
		"blocked": {
			nil,
			func(_ *plusminus, f *folderProxy) { f.strip.Store(true) },
			"A proxy on the way blocks WebSockets.", 25,
		},
		"unreachable": { // the proxy answers 502
			nil,
			func(s *plusminus, _ *folderProxy) { s.stop() },
			"The server cannot be reached.", 1,
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s, proxy := open(t, tt.args...)
			p := newPage(t, browser)
			p.emulate("prefers-reduced-motion", "reduce")
			if name == "unreachable" { // the page has to load before the server stops
				p.do(chromedp.Navigate(proxy.url))
				p.waitOpen()
			}
			tt.before(s, proxy)
			if name != "unreachable" {
				p.do(chromedp.Navigate(proxy.url))
			}
			p.waitText("sentence", tt.sentence)
			p.wait(fmt.Sprintf(`parseInt(document.getElementById("countdown").textContent.slice("Trying again in ".length)) >= %d`, tt.least))
			p.waitText("live", "Not live")
			p.click("plus")
			p.waitText("message", "Not connected: that did not count.")
			p.waitText("message", "")
			for _, size := range []struct{ width, height int64 }{{320, 640}, {390, 844}, {1280, 800}} {
				call(p, emulation.SetDeviceMetricsOverride, emulation.SetDeviceMetricsOverrideParams{
					Width: size.width, Height: size.height, DeviceScaleFactor: 1, Mobile: size.width < 1000,
				})
				if bad := p.eval(fits); bad != "" {
					t.Errorf("%dx%d: %s", size.width, size.height, bad)
				}
				if moved := p.eval(`Math.round(10 * (notice.getBoundingClientRect().height - parseFloat(getComputedStyle(notice).minHeight))) / 10`); moved != "0" {
					t.Errorf("%dx%d: the text moves the page by %s px, want 0", size.width, size.height, moved)
				}
				if *long || flag.Lookup("test.artifacts").Value.String() == "true" {
					picture, err := chromedp.Run(p.ctx, chromedp.CaptureScreenshot())
					if err != nil {
						t.Fatal(err)
					}
					write(t, filepath.Join(t.ArtifactDir(), fmt.Sprintf("%s-%dx%d.png", name, size.width, size.height)), picture)
				}
			}
			if got := p.eval(`sentence.textContent`); got != tt.sentence && name != "unreachable" {
				t.Errorf("later the page says %q, want still %q", got, tt.sentence)
			}
		})
	}
}
