package e2e

import (
	"strconv"
	"testing"

	"github.com/chromedp/chromedp"
)

// TestChromiumHalfOpen checks, on the page's own clock, how soon a page notices a half-open connection: one that is dead
// without a close. The event is one that browsers send after a change of networks or after a pause. Without an event it
// takes up to 55 seconds, so that trial needs -long; TestChromiumDeadConnection has it with fast timers.
func TestChromiumHalfOpen(t *testing.T) {
	t.Parallel()
	browser := chromium(t)
	events := map[string]string{
		"online":   `window.dispatchEvent(new Event("online"))`,
		"pageshow": `window.dispatchEvent(new PageTransitionEvent("pageshow", { persisted: true }))`,
		"visible":  `document.dispatchEvent(new Event("visibilitychange"))`,
	}
	if *long { // it takes a minute
		events["no event"] = `null`
	}
	for what, event := range events {
		t.Run(what, func(t *testing.T) {
			t.Parallel()
			least, most := 5_000, 20_000 // the machine may be busy
			if event == "null" {
				least, most = 25_000, 60_000
			}
			s := start(t, "-domain", "counter.test")
			hole := newBlackHole(t, s.addrs.HTTPS[0])
			p := openPage(t, browser, "https://counter.test"+portOf(t, hole.addr)+"/")
			p.waitOpen()
			p.waitText("value", "0")
			hole.drop(false)
			send(t, s.join("wss://counter.test/"), plus)
			p.eval(`(() => {
				window.began = performance.now();
				new MutationObserver(() => {
					if (sentence.textContent === "The server does not answer.") window.noticed ??= performance.now() - began;
				}).observe(sentence, { childList: true });
				` + event + `;
			})()`)
			p.wait(`window.noticed !== undefined`)
			ms, err := strconv.ParseFloat(p.eval(`window.noticed`), 64)
			if err != nil || ms < float64(least) || ms > float64(most) {
				t.Errorf("the page noticed after %.0f ms (%v), want %d to %d", ms, err, least, most)
			}
			p.waitOpen()
			p.waitText("value", "1")
		})
	}
}

// TestChromiumProbe checks that a probe of an idle connection is answered, that the page shows nothing of it, and that
// the connection stays.
func TestChromiumProbe(t *testing.T) {
	t.Parallel()
	browser := chromium(t)
	s := start(t, "-store", "memory")
	p := newPage(t, browser)
	p.inject(`window.sockets = 0; window.errors = 0; window.said = [];
		window.WebSocket = class extends WebSocket {
			constructor(...args) {
				super(...args);
				sockets++;
				this.addEventListener("message", (event) => { if (event.data.includes("unknown_action")) errors++; });
			}
		}`)
	p.do(chromedp.Navigate("https://localhost" + portOf(t, s.addrs.HTTPS[0]) + "/"))
	p.waitText("value", "0")
	p.eval(`(new MutationObserver(() => said.push(notice.textContent)).observe(notice, { childList: true, subtree: true }), null)`)
	for i := range 3 {
		p.eval(`void window.dispatchEvent(new Event("online"))`)
		p.wait("errors === " + strconv.Itoa(i+1))
	}
	p.click("plus")
	p.waitText("value", "1")
	if got := p.eval(`[sockets, ...said]`); got != "1" {
		t.Errorf("connections and messages of the page = %q, want 1 connection and no message", got)
	}
	p.wantNoProblems("with probes")
}
