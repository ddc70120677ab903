package e2e

import (
	"context"
	"encoding/json"
	"net"
	"net/http"
	"net/http/httptest"
	"os/exec"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/chromedp/chromedp"
	"github.com/coder/websocket"

	"plusminus/static"
)

// Two people count together in a browser, and go on after the server was replaced.
func TestChromium(t *testing.T) {
	t.Parallel()
	browser := chromium(t)
	data := t.TempDir()
	s := start(t, "-data", data)
	url := "https://localhost" + portOf(t, s.addrs.HTTPS[0]) + "/"
	a := openPage(t, browser, url)
	b := openPage(t, browser, url)
	for _, p := range []*page{a, b} {
		p.waitOpen()
		p.waitText("live", "Live")
		p.waitText("value", "0")
		p.waitText("users", " · 2 people here")
	}
	a.click("plus")
	a.waitText("value", "1")
	b.waitText("value", "1")
	b.click("minus")
	b.click("minus")
	a.waitText("value", "−1")
	b.waitText("value", "−1")
	b.wait(`document.title === "−1 · plusminus"`)
	b.waitText("caption", "Last 5 minutes: −1 to 1")
	for _, p := range []*page{a, b} {
		p.quiet("counting")
	}

	if err := s.stop(); err != nil {
		t.Fatal(err)
	}
	a.wait(`document.getElementById("status").dataset.state !== "open"`)
	a.click("plus")
	a.waitText("message", "Not connected: that did not count.")

	start(t, "-data", data, "-https", s.addrs.HTTPS[0])
	for _, p := range []*page{a, b} {
		p.waitOpen()
		p.waitText("value", "−1")
		p.takeProblems() // it could not connect for a while, and said so
	}
	a.click("plus")
	b.waitText("value", "0")
	for _, p := range []*page{a, b} {
		p.quiet("after the restart")
	}
}

// A server is killed under the page: an action that it had answered is still there when it is back, one
// that was sent to nobody is not, and the page does not send anything twice.
func TestChromiumKill(t *testing.T) {
	t.Parallel()
	browser := chromium(t)
	data, addr := t.TempDir(), freeAddr(t)
	run := func() *exec.Cmd {
		cmd := command(t, "-data", data, "-https", addr, "-http", "off", "-admin", "off")
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			cmd.Process.Kill()
			cmd.Wait()
		})
		for deadline := time.Now().Add(time.Minute); ; time.Sleep(20 * time.Millisecond) {
			conn, err := net.Dial("tcp", addr)
			if err == nil {
				conn.Close()
				return cmd
			}
			if time.Now().After(deadline) {
				t.Fatal(err)
			}
		}
	}
	cmd := run()
	p := openPage(t, browser, "https://localhost"+portOf(t, addr)+"/")
	p.waitOpen()
	for range 3 {
		p.click("plus")
	}
	p.waitText("value", "3")
	p.quiet("counting")
	cmd.Process.Kill()
	cmd.Wait()
	p.wait(`document.getElementById("status").dataset.state !== "open"`)
	for range 3 {
		p.click("plus")
	}
	p.waitText("message", "Not connected: that did not count.")
	run()
	p.waitOpen()
	p.waitText("value", "3")
	p.click("minus")
	p.waitText("value", "2")
}

// The policy holds in a browser, and quiet would tell of what breaks it.
func TestChromiumPolicy(t *testing.T) {
	t.Parallel()
	browser := chromium(t)
	s := start(t)
	p := openPage(t, browser, "https://localhost"+portOf(t, s.addrs.HTTPS[0])+"/")
	p.waitOpen()
	p.quiet("as it is")
	for what, code := range map[string]string{
		"inline style":    `document.body.setAttribute("style", "color: red")`,
		"inline script":   `document.body.append(Object.assign(document.createElement("script"), { textContent: "window.broken = true" }))`,
		"foreign script":  `document.body.append(Object.assign(document.createElement("script"), { src: "https://elsewhere.test/" }))`,
		"foreign image":   `document.body.append(Object.assign(new Image(), { src: "https://elsewhere.test/" }))`,
		"foreign request": `void fetch("https://elsewhere.test/").catch(() => {})`,
	} {
		p.eval(code)
		var problems []string
		for deadline := time.Now().Add(10 * time.Second); problems == nil && time.Now().Before(deadline); time.Sleep(20 * time.Millisecond) {
			problems = p.takeProblems()
		}
		if !strings.Contains(strings.Join(problems, "\n"), "Content Security Policy") {
			t.Errorf("%s: the browser says %q", what, problems)
		}
	}
	if p.eval(`window.broken`) != "undefined" {
		t.Error("an inline script ran")
	}
}

// Offline is said at once, a click is refused, and the page is back by itself.
func TestChromiumOffline(t *testing.T) {
	t.Parallel()
	browser := chromium(t)
	s := start(t, "-domain", "counter.test")
	p := openPage(t, browser, "https://counter.test"+portOf(t, s.addrs.HTTPS[0])+"/")
	p.waitOpen()
	p.click("plus")
	p.waitText("value", "1")
	p.network(false)
	p.waitState("offline")
	p.waitText("sentence", "This device is offline.")
	p.waitText("countdown", "Trying again when it is online.")
	p.click("plus")
	p.waitText("message", "Not connected: that did not count.")
	p.network(true)
	p.waitOpen()
	p.click("plus")
	p.waitText("value", "2")
	p.waitText("sentence", "")
	p.quiet("offline and back")
}

// swift makes the timers of a page run 20 times as fast, and timers of 2 minutes and more 100 times as fast. Timers
// from 1 to 2 minutes keep their time: they belong to the tests (see maxDelay).
const swift = `{
	const { setTimeout: set, AbortSignal } = window, { timeout } = AbortSignal;
	window.setTimeout = (f, ms, ...args) => set(f, ms < 60_000 ? ms / 20 : ms < 120_000 ? ms : ms / 100, ...args);
	AbortSignal.timeout = (ms) => timeout.call(AbortSignal, ms / 20);
}`

// A page that only watches notices that its connection is dead, although nobody tells it: what is between
// swallows all packets, as a router does that has forgotten the connection.
func TestChromiumDeadConnection(t *testing.T) {
	t.Parallel()
	browser := chromium(t)
	for _, what := range []string{"network", "connection"} {
		t.Run(what, func(t *testing.T) {
			t.Parallel()
			s := start(t, "-domain", "counter.test")
			hole := newBlackHole(t, s.addrs.HTTPS[0])
			p := newPage(t, browser)
			p.inject(swift)
			p.do(chromedp.Navigate("https://counter.test" + portOf(t, hole.addr) + "/"))
			p.waitOpen()
			p.wait(`/^−?\d+$/.test(document.getElementById("value").textContent)`)
			p.eval(`(window.seen = [], new MutationObserver(() => seen.push(sentence.textContent)).observe(sentence, { childList: true }))`)
			hole.swallow(what == "network")
			if what == "connection" { // the way to the server is open, but this page's connection is forgotten
				send(t, s.join("wss://counter.test/"), `{"action":"plus"}`)
			}
			p.wait(`seen.includes("The server does not answer.")`)
			hole.open()
			p.waitOpen()
			p.waitText("value", format(valueOf(s, "https://counter.test/")))
		})
	}
}

// A click that goes into a connection which is dead is not lost silently: the page says that it waits, then
// that nobody can tell whether it counted. It is not sent again.
func TestChromiumLostClick(t *testing.T) {
	t.Parallel()
	browser := chromium(t)
	s := start(t, "-domain", "counter.test")
	hole := newBlackHole(t, s.addrs.HTTPS[0])
	p := newPage(t, browser)
	p.inject(swift)
	p.do(chromedp.Navigate("https://counter.test" + portOf(t, hole.addr) + "/"))
	p.waitText("value", "0")
	p.eval(`(window.said = [], new MutationObserver(() => said.push(message.textContent)).observe(message, { childList: true }))`)
	hole.swallow(false)
	p.click("plus")
	p.click("plus")
	p.wait(`said.includes("Waiting for the server's answer…")`)
	p.wait(`said.includes("The last click got no answer: it may have counted or not.")`)
	p.waitOpen()
	p.waitText("message", "")
	p.click("plus") // the first action that the server gets
	p.waitText("value", "1")
	if got := valueOf(s, "https://counter.test/"); got != 1 {
		t.Errorf("the value is %d, want 1", got)
	}
}

// A page is not overwhelmed by a crowd: of values that come faster than it can show them it shows the newest.
func TestChromiumCrowd(t *testing.T) {
	t.Parallel()
	browser := chromium(t)
	s := start(t, "-store", "memory")
	p := newPage(t, browser)
	p.inject(`window.WebSocket = class extends WebSocket { constructor(...args) { super(...args); window.ws = this; } }`)
	p.do(chromedp.Navigate("https://localhost" + portOf(t, s.addrs.HTTPS[0]) + "/"))
	p.waitText("value", "0")
	p.eval(`(window.shown = [], new MutationObserver((records) => shown.push(...records.map((r) => r.addedNodes[0].data)))
		.observe(value, { childList: true }))`)
	p.eval(`(() => {
		for (let v = 1; v <= 1000; v++) ws.onmessage({ data: JSON.stringify({ type: "state", value: v < 700 ? v : 1400 - v }) });
	})()`)
	p.waitText("value", "400")
	p.waitText("caption", "Last 5 minutes: 0 to 700")
	if shown := p.eval(`shown`); shown != "400" {
		t.Errorf("a thousand values at once were shown as %s", shown)
	}
	p.quiet("with a crowd")

	// The last value before an end is shown, and shown as old.
	p.eval(`(ws.onmessage({ data: '{"type":"state","value":5}' }), ws.onclose({ code: 1013 }))`)
	p.waitText("value", "5")
	// One of the next frames could undo it.
	p.eval(`(window.frames = 0, requestAnimationFrame(function count() { window.frames++; requestAnimationFrame(count); }))`)
	p.wait(`window.frames >= 6`)
	if class := p.eval(`value.className`); class != "stale" {
		t.Errorf("without a connection, the value has class %q, want stale", class)
	}
}

// What the server says reaches the person: an error, a full house, a close code.
func TestChromiumRefusals(t *testing.T) {
	t.Parallel()
	browser := chromium(t)
	t.Run("rate_limited", func(t *testing.T) {
		t.Parallel()
		s := start(t, "-action-rate", "0.001", "-action-burst", "1")
		p := openPage(t, browser, "https://localhost"+portOf(t, s.addrs.HTTPS[0])+"/")
		p.waitOpen()
		p.click("plus")
		p.waitText("value", "1")
		p.click("plus")
		p.waitText("message", "Too many actions at once: this one was not counted.")
		p.waitText("value", "1")
		p.quiet("with an error")
	})
	t.Run("full", func(t *testing.T) {
		t.Parallel()
		s := start(t, "-max-clients", "1")
		s.join("wss://localhost/")
		p := openPage(t, browser, "https://localhost"+portOf(t, s.addrs.HTTPS[0])+"/")
		p.waitText("sentence", "Connected to the server, but the WebSocket was refused.")
		p.wait(`/^Trying again in [3-6]\d s.$/.test(document.getElementById("countdown").textContent)`)
	})
	t.Run("store_undecided", func(t *testing.T) {
		t.Parallel()
		decided := make(chan struct{})
		p := newPage(t, browser)
		p.inject(swift)
		p.do(chromedp.Navigate(serveTo(t, func(ws *websocket.Conn) {
			send(t, ws, `{"type":"users","count":1}`)
			send(t, ws, `{"type":"state","value":7}`)
			if _, _, err := ws.Read(t.Context()); err != nil {
				return
			}
			send(t, ws, `{"type":"error","code":"store_undecided","message":"It counts when the store answers."}`)
			select {
			case <-decided:
			case <-t.Context().Done():
			}
			send(t, ws, `{"type":"state","value":8}`)
			ws.Read(t.Context())
		})))
		p.waitText("value", "7")
		p.click("plus")
		p.waitText("message", "It counts when the store answers.")
		// The message stays. Other messages disappear after five seconds, which swift shortens.
		p.eval(`(window.said = message.textContent, setTimeout(() => { said = "after 6 s: " + message.textContent; }, 6000))`)
		p.wait(`said.startsWith("after")`)
		p.waitText("message", "It counts when the store answers.")
		close(decided)
		p.waitText("value", "8")
		p.waitText("message", "")
	})
	for code, sentence := range map[websocket.StatusCode]string{
		websocket.StatusServiceRestart:  "The server is restarting.",
		websocket.StatusGoingAway:       "The server is restarting.",
		websocket.StatusTryAgainLater:   "Connected to the server, but the WebSocket was refused.",
		websocket.StatusPolicyViolation: "The server ended the connection.",
		websocket.StatusInternalError:   "The connection was lost.",
	} {
		t.Run(code.String(), func(t *testing.T) {
			t.Parallel()
			var connections atomic.Int32
			url := serveTo(t, func(ws *websocket.Conn) {
				if connections.Add(1) == 1 {
					ws.Close(code, "")
					return
				}
				ws.Read(t.Context())
			})
			p := newPage(t, browser)
			p.inject(`Math.random = () => 1`)
			p.do(chromedp.Navigate(url))
			p.waitText("sentence", sentence)
			p.wait(`/^Trying again (in \d+ s\.|now…)$/.test(document.getElementById("countdown").textContent)`)
			p.click("retry")
			p.waitOpen()
			p.wait(`document.activeElement.id === "plus"`) // and not lost with the button
			p.quiet("with a close code")
		})
	}
}

// serveTo serves the page, and each WebSocket by f, until the test ends.
func serveTo(t *testing.T, f func(*websocket.Conn)) (url string) {
	t.Helper()
	files := static.Handler()
	ctx, cancel := context.WithCancel(t.Context())
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Upgrade") == "" {
			files.ServeHTTP(w, r)
			return
		}
		ws, err := websocket.Accept(w, r, nil)
		if err != nil {
			return
		}
		defer context.AfterFunc(ctx, func() { ws.CloseNow() })()
		defer ws.CloseNow()
		f(ws)
	}))
	t.Cleanup(func() {
		cancel()
		srv.Close()
	})
	return srv.URL + "/"
}

// format writes a value as the page does.
func format(v int64) string {
	return strings.ReplaceAll(strconv.FormatInt(v, 10), "-", "−")
}

// valueOf returns what GET /state says under url.
func valueOf(s *plusminus, url string) int64 {
	s.t.Helper()
	_, body := s.get(url+"state", "")
	var state struct{ Value int64 }
	if err := json.Unmarshal([]byte(body), &state); err != nil {
		s.t.Fatal(err)
	}
	return state.Value
}
