package e2e

import (
	"context"
	"encoding/json"
	"io"
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

// TestChromium counts with two visitors, restarts the server on the same data folder, and goes on counting.
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
		p.wantNoProblems("counting")
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
		p.takeProblems() // the failed tries to connect
	}
	a.click("plus")
	b.waitText("value", "0")
	for _, p := range []*page{a, b} {
		p.wantNoProblems("after the restart")
	}
}

// TestChromiumKill kills the server while a page is open. After the restart, each action that the server had answered
// counts, and clicks without a connection do not. The page sends no action twice.
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
	p.wantNoProblems("counting")
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

// TestChromiumPolicy checks that the browser enforces the content security policy, and that wantNoProblems reports
// violations.
func TestChromiumPolicy(t *testing.T) {
	t.Parallel()
	browser := chromium(t)
	s := start(t)
	p := openPage(t, browser, "https://localhost"+portOf(t, s.addrs.HTTPS[0])+"/")
	p.waitOpen()
	p.wantNoProblems("without a violation")
	for what, code := range map[string]string{
		"inline style":    `document.body.setAttribute("style", "color: red")`,
		"inline script":   `document.body.append(Object.assign(document.createElement("script"), { textContent: "window.broken = true" }))`,
		"foreign script":  `document.body.append(Object.assign(document.createElement("script"), { src: "https://elsewhere.test/" }))`,
		"foreign image":   `document.body.append(Object.assign(new Image(), { src: "https://elsewhere.test/" }))`,
		"foreign request": `void fetch("https://elsewhere.test/").catch(() => {})`,
	} {
		p.eval(code)
		var problems []string
		waitUntil(t, "the browser to report an "+what, func() bool {
			problems = p.takeProblems()
			return problems != nil
		})
		if !strings.Contains(strings.Join(problems, "\n"), "Content Security Policy") {
			t.Errorf("%s: the browser reports %q, want a violation of the Content Security Policy", what, problems)
		}
	}
	if p.eval(`window.broken`) != "undefined" {
		t.Error("an inline script ran")
	}
}

// TestChromiumOffline puts the browser offline and back. The page shows that it is offline, refuses clicks, and
// reconnects without help.
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
	p.wantNoProblems("offline and back")
}

// swift makes the timers of a page run 20 times as fast. Timers of 5 seconds take 1 second, so that a busy machine can
// answer a probe in that time. Timers of a minute and more keep their time: they belong to the tests (see maxDelay).
const swift = `{
	const { setTimeout: set, AbortSignal } = window, { timeout } = AbortSignal;
	window.setTimeout = (f, ms, ...args) => set(f, ms === 5_000 ? 1_000 : ms < 60_000 ? ms / 20 : ms, ...args);
	AbortSignal.timeout = (ms) => timeout.call(AbortSignal, ms / 20);
}`

// TestChromiumDeadConnection checks that a page without clicks notices a dead connection. A black hole drops all bytes
// without a reset, like a router that has lost its state of the connection.
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
			hole.drop(what == "network")
			if what == "connection" { // new connections reach the server, and this page's connection is dead
				send(t, s.join("wss://counter.test/"), `{"action":"plus"}`)
			}
			p.wait(`seen.includes("The server does not answer.")`)
			hole.pass()
			p.waitOpen()
			p.waitText("value", format(valueOf(s, "https://counter.test/")))
		})
	}
}

// TestChromiumLostClick clicks on a page with a dead connection. The page first shows that it waits for an answer, then
// that the click may have counted or not. It does not send the click again.
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
	hole.drop(false)
	p.click("plus")
	p.click("plus")
	p.wait(`said.includes("Waiting for the server's answer…")`)
	p.wait(`said.includes("The last click got no answer: it may have counted or not.")`)
	p.waitOpen()
	p.waitText("message", "")
	p.click("plus") // the first action that reaches the server
	p.waitText("value", "1")
	if got := valueOf(s, "https://counter.test/"); got != 1 {
		t.Errorf("GET /state has the value %d, want 1", got)
	}
}

// TestChromiumCrowd sends a page 1,000 values at once. The page shows only the newest one.
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
		t.Errorf("of 1,000 values at once the page showed %s, want 400 only", shown)
	}
	p.wantNoProblems("with a crowd")

	// The page shows the last value before the end of a connection, and marks it as stale.
	p.eval(`(ws.onmessage({ data: '{"type":"state","value":5}' }), ws.onclose({ code: 1013 }))`)
	p.waitText("value", "5")
	// One of the next frames could undo it.
	p.eval(`(window.frames = 0, requestAnimationFrame(function count() { window.frames++; requestAnimationFrame(count); }))`)
	p.wait(`window.frames >= 6`)
	if class := p.eval(`value.className`); class != "stale" {
		t.Errorf("without a connection the value has the class %q, want stale", class)
	}
}

// TestChromiumRefusals checks what the page shows for each error, for a full server, and for each close code.
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
		p.wantNoProblems("with an error")
	})
	t.Run("full", func(t *testing.T) {
		t.Parallel()
		s := start(t, "-max-clients", "1")
		s.join("wss://localhost/")
		p := openPage(t, browser, "https://localhost"+portOf(t, s.addrs.HTTPS[0])+"/")
		p.waitText("sentence", "The server is full.")
		p.wait(`/^Trying again in [3-6]\d s.$/.test(document.getElementById("countdown").textContent)`)
	})
	t.Run("store_undecided", func(t *testing.T) {
		t.Parallel()
		decided := make(chan struct{})
		p := newPage(t, browser)
		// Other messages disappear after 250 ms in place of 5 s.
		p.inject(`{ const set = setTimeout; window.setTimeout = (f, ms, ...args) => set(f, ms === 5_000 ? 250 : ms, ...args); }`)
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
		// This message stays.
		p.eval(`(window.later = false, setTimeout(() => { later = true; }, 300))`)
		p.wait(`later`)
		p.waitText("message", "It counts when the store answers.")
		close(decided)
		p.waitText("value", "8")
		p.waitText("message", "")
	})
	for code, sentence := range map[websocket.StatusCode]string{
		websocket.StatusServiceRestart:  "The server is restarting.",
		websocket.StatusGoingAway:       "The server is restarting.",
		websocket.StatusTryAgainLater:   "The server is full.",
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
			// Delay the page's own next try, so that it does not come before the click.
			p.inject(`{
				const set = setTimeout;
				window.setTimeout = (f, ms, ...args) => set(f, ms >= 400 && ms <= 2_000 ? 60_000 : ms, ...args);
				Math.random = () => 1;
			}`)
			p.do(chromedp.Navigate(url))
			p.waitText("sentence", sentence)
			p.wait(`/^Trying again (in \d+ s\.|now…)$/.test(document.getElementById("countdown").textContent)`)
			p.click("retry")
			p.waitOpen()
			p.wait(`document.activeElement.id === "plus"`) // the hidden retry button does not keep the focus
			p.wantNoProblems("with a close code")
		})
	}
}

// serveTo serves the page until the test ends, and calls f for each WebSocket.
func serveTo(t *testing.T, f func(*websocket.Conn)) (url string) {
	t.Helper()
	return serveWith(t, func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, `{"before":0,"points":[]}`) }, f)
}

// serveWith is serveTo with an answer to GET /history.
func serveWith(t *testing.T, history http.HandlerFunc, f func(*websocket.Conn)) (url string) {
	t.Helper()
	files := static.Handler()
	ctx, cancel := context.WithCancel(t.Context())
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/history" {
			history(w, r)
			return
		}
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

// valueOf returns the value in GET /state under url.
func valueOf(s *plusminus, url string) int64 {
	s.t.Helper()
	_, body := s.get(url+"state", "")
	var state struct{ Value int64 }
	if err := json.Unmarshal([]byte(body), &state); err != nil {
		s.t.Fatal(err)
	}
	return state.Value
}
