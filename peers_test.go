package main

import (
	"context"
	"errors"
	"fmt"
	"os/exec"
	"sync"
	"testing"
	"time"

	"github.com/chromedp/chromedp"
)

// chromium returns a browser that ends with the test, or skips it.
func chromium(t *testing.T) context.Context {
	t.Helper()
	if testing.Short() {
		t.Skip("starts a browser")
	}
	ctx, cancel := chromedp.NewExecAllocator(t.Context(), append(chromedp.DefaultExecAllocatorOptions[:],
		chromedp.NoSandbox,        // Chromium refuses to run as root with one; it loads nothing but our own page
		chromedp.IgnoreCertErrors, // that chains verify is what other tests are for
	)...)
	t.Cleanup(cancel)
	ctx, cancel = chromedp.NewContext(ctx)
	t.Cleanup(cancel)
	err := chromedp.Do(ctx)
	if errors.Is(err, exec.ErrNotFound) {
		t.Skip("Chromium is not installed (Debian: chromium)")
	}
	if err != nil {
		t.Fatal(err)
	}
	return ctx
}

// page is one tab that shows the page of a plusminus.
type page struct {
	t   *testing.T
	ctx context.Context

	mu       sync.Mutex
	problems []string // what the browser complained about
}

// openPage opens url in a tab of its own.
func openPage(t *testing.T, browser context.Context, url string) *page {
	t.Helper()
	ctx, cancel := chromedp.NewContext(browser)
	t.Cleanup(cancel)
	p := &page{t: t, ctx: ctx}
	console := chromedp.Console(ctx) // exceptions and violations of the policy, too
	go func() {
		for m, err := range console {
			if err != nil {
				return
			}
			p.mu.Lock()
			p.problems = append(p.problems, m.String())
			p.mu.Unlock()
		}
	}()
	p.do(chromedp.Navigate(url))
	return p
}

func (p *page) do(actions ...chromedp.Action[chromedp.Void]) {
	p.t.Helper()
	ctx, cancel := context.WithTimeout(p.ctx, time.Minute)
	defer cancel()
	if err := chromedp.Do(ctx, actions...); err != nil {
		p.t.Fatal(err)
	}
}

// wait waits until the JavaScript expression is true.
func (p *page) wait(expression string) {
	p.t.Helper()
	// Not at each animation frame, the default: a tab in the background has none.
	_, err := chromedp.Run(p.ctx, chromedp.Poll[bool](expression,
		chromedp.WithPollingInterval(20*time.Millisecond), chromedp.WithPollingTimeout(time.Minute)))
	if err != nil {
		text, _ := chromedp.Run(p.ctx, chromedp.Text(chromedp.CSS("body")))
		p.t.Fatalf("waiting for %s: %v; the page says %q", expression, err, text)
	}
}

func (p *page) click(id chromedp.ID) {
	p.t.Helper()
	p.do(chromedp.Click(id))
}

func (p *page) waitText(id, text string) {
	p.t.Helper()
	p.wait(fmt.Sprintf("document.getElementById(%q).textContent === %q", id, text))
}

func (p *page) waitOpen() {
	p.t.Helper()
	p.wait(`document.getElementById("status").dataset.state === "open"`)
}

// takeProblems returns what the browser has complained about since the last call.
func (p *page) takeProblems() []string {
	p.mu.Lock()
	defer p.mu.Unlock()
	problems := p.problems
	p.problems = nil
	return problems
}

// Two people count together in a browser, and go on after the server was replaced.
func TestChromium(t *testing.T) {
	browser := chromium(t)
	data := t.TempDir()
	s := start(t, "-data", data)
	url := "https://localhost" + portOf(t, s.addrs.HTTPS[0]) + "/"
	a := openPage(t, browser, url)
	b := openPage(t, browser, url)
	for _, p := range []*page{a, b} {
		p.waitOpen()
		p.waitText("value", "0")
		p.waitText("users", "2 people here")
	}
	a.click("plus")
	a.waitText("value", "1")
	b.waitText("value", "1")
	b.click("minus")
	b.click("minus")
	a.waitText("value", "-1")
	b.waitText("value", "-1")
	for _, p := range []*page{a, b} {
		if problems := p.takeProblems(); problems != nil {
			t.Errorf("the browser complains: %q", problems)
		}
	}

	if err := s.stop(); err != nil {
		t.Fatal(err)
	}
	a.wait(`document.getElementById("status").dataset.state !== "open"`)
	a.click("plus")
	a.waitText("message", "Not connected. That did not count.")

	start(t, "-data", data, "-https", s.addrs.HTTPS[0])
	for _, p := range []*page{a, b} {
		p.waitOpen()
		p.waitText("value", "-1")
		p.takeProblems() // it could not connect for a while, and said so
	}
	a.click("plus")
	b.waitText("value", "0")
	for _, p := range []*page{a, b} {
		if problems := p.takeProblems(); problems != nil {
			t.Errorf("after the restart, the browser complains: %q", problems)
		}
	}
}

// pythonClient is a client as the tutorial's readers write it.
const pythonClient = `
import asyncio, json, ssl, sys, websockets

async def main(url, root):
    trust = ssl.create_default_context(cafile=root)
    async with websockets.connect(url, ssl=trust) as a, websockets.connect(url, ssl=trust) as b:
        async def until(ws, want):
            async for message in ws:
                if json.loads(message) == want:
                    return
            sys.exit(f"closed before {want}")
        await until(a, {"type": "users", "count": 2})
        for action, value in [("plus", 1), ("plus", 2), ("minus", 1)]:
            await a.send(json.dumps({"action": action}))
            await until(a, {"type": "state", "value": value})
            await until(b, {"type": "state", "value": value})
        pong = await a.ping()
        await pong
        await a.send("x" * 513)
        try:
            while True:
                await a.recv()
        except websockets.ConnectionClosed as e:
            print("closed with", e.code)
        await until(b, {"type": "users", "count": 1})
        print("counted")

asyncio.run(main(*sys.argv[1:]))
`

func TestPythonWebsockets(t *testing.T) {
	// Debian's package is for Debian's Python, which need not be the first one in PATH.
	python := ""
	for _, name := range []string{"python3", "/usr/bin/python3"} {
		if exec.CommandContext(t.Context(), name, "-c", "import websockets").Run() == nil {
			python = name
			break
		}
	}
	if python == "" {
		t.Skip("Python with websockets is not installed (Debian: python3-websockets)")
	}
	data := t.TempDir()
	s := start(t, "-data", data)
	url := "wss://localhost" + portOf(t, s.addrs.HTTPS[0]) + "/"
	out, err := exec.CommandContext(t.Context(), python, "-c", pythonClient, url, data+"/local-ca/root.pem").CombinedOutput()
	if want := "closed with 1009\ncounted\n"; err != nil || string(out) != want {
		t.Errorf("%v, output\n%s\nwant\n%s", err, out, want)
	}
}
