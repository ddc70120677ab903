package e2e

import (
	"context"
	"errors"
	"fmt"
	"os/exec"
	"sync"
	"testing"
	"time"

	"github.com/chromedp/cdproto/cdp"
	"github.com/chromedp/cdproto/emulation"
	"github.com/chromedp/cdproto/network"
	cdppage "github.com/chromedp/cdproto/page"
	"github.com/chromedp/chromedp"
)

// maxDelay bounds each wait for a page. It is generous because tests run in parallel. The script swift does not
// accelerate timers of this length.
const maxDelay = 100 * time.Second

// startChromium starts the Chromium process that all tests share. TestMain ends it.
// Chromium finds every name under .test on this machine. A page whose name is not localhost can be offline.
var startChromium = sync.OnceValues(func() (context.Context, error) {
	options := append(chromedp.DefaultExecAllocatorOptions[:],
		chromedp.NoSandbox,        // Chromium refuses to run as root with a sandbox; it loads our own page only
		chromedp.IgnoreCertErrors, // other tests verify certificates
		chromedp.Flag("host-resolver-rules", "MAP *.test 127.0.0.1"),
		// A mouse. A machine without a screen has none.
		chromedp.Flag("blink-settings", "availableHoverTypes=2,primaryHoverType=2,availablePointerTypes=4,primaryPointerType=4"),
		chromedp.Flag("force-color-profile", "srgb"),
	)
	allocator, cancelAllocator := chromedp.NewExecAllocator(context.Background(), options...)
	ctx, cancel := chromedp.NewContext(allocator)
	stopChromium = func() {
		cancel()
		cancelAllocator()
	}
	return ctx, chromedp.Do(ctx)
})

// stopChromium ends the shared Chromium. It does nothing if no test has started one.
var stopChromium = func() {}

// chromium returns the shared Chromium, or skips the test if Chromium is not installed.
func chromium(t *testing.T) context.Context {
	t.Helper()
	if testing.Short() {
		t.Skip("this test needs a browser, and -short starts none")
	}
	browser, err := startChromium()
	if errors.Is(err, exec.ErrNotFound) {
		t.Skip("Chromium is not installed (Debian: chromium)")
	}
	if err != nil {
		t.Fatalf("starting Chromium: %v", err)
	}
	return browser
}

// page is a tab of Chromium.
type page struct {
	t   *testing.T
	ctx context.Context

	mu       sync.Mutex
	problems []string // errors and warnings of the browser since the last takeProblems
}

// openPage opens url in a new tab.
func openPage(t *testing.T, browser context.Context, url string) *page {
	t.Helper()
	p := newPage(t, browser)
	p.do(chromedp.Navigate(url))
	return p
}

// newPage opens an empty tab in a window and a browser context of its own, so that tests share no cache and no storage.
func newPage(t *testing.T, browser context.Context) *page {
	t.Helper()
	ctx, cancel := chromedp.NewContext(browser, chromedp.WithNewBrowserContext())
	t.Cleanup(cancel)
	p := &page{t: t, ctx: ctx}
	console := chromedp.Console(ctx) // with exceptions and violations of the content security policy
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
	p.do(chromedp.EmulateViewport(1280, 800))
	// Several windows are open, and the page acts as if its own had the focus.
	call(p, emulation.SetFocusEmulationEnabled, emulation.SetFocusEmulationEnabledParams{Enabled: true})
	return p
}

// do runs actions of chromedp.
func (p *page) do(actions ...chromedp.Action[chromedp.Void]) {
	p.t.Helper()
	ctx, cancel := context.WithTimeout(p.ctx, maxDelay)
	defer cancel()
	if err := chromedp.Do(ctx, actions...); err != nil {
		p.t.Fatal(err)
	}
}

// wait waits until the JavaScript expression is true.
func (p *page) wait(expression string) {
	p.t.Helper()
	// The default is to look at each animation frame, but a tab in the background has no frames.
	_, err := chromedp.Run(p.ctx, chromedp.Poll[bool](expression,
		chromedp.WithPollingInterval(20*time.Millisecond), chromedp.WithPollingTimeout(maxDelay)))
	if err != nil {
		text, _ := chromedp.Run(p.ctx, chromedp.Text(chromedp.CSS("body")))
		p.t.Fatalf("waiting for %s: %v; the page shows %q", expression, err, text)
	}
}

// call runs a command of the DevTools protocol on the tab.
func call[P, R any](p *page, cmd cdp.Command[P, R], params P) R {
	p.t.Helper()
	result, err := chromedp.Call(p.ctx, cmd, params)
	if err != nil {
		p.t.Fatalf("%s: %v", cmd.Method, err)
	}
	return result
}

// eval returns the value of a JavaScript expression as text.
func (p *page) eval(expression string) string {
	p.t.Helper()
	text, err := chromedp.Run(p.ctx, chromedp.Evaluate[string]("String("+expression+")"))
	if err != nil {
		p.t.Fatalf("%s: %v", expression, err)
	}
	return text
}

// emulate sets media features. features are names and values in turn.
func (p *page) emulate(features ...string) {
	p.t.Helper()
	var params emulation.SetEmulatedMediaParams
	for i := 0; i < len(features); i += 2 {
		params.Features = append(params.Features, &emulation.MediaFeature{Name: features[i], Value: features[i+1]})
	}
	call(p, emulation.SetEmulatedMedia, params)
}

// inject makes each page that the tab opens from now on run script before its own scripts.
func (p *page) inject(script string) {
	p.t.Helper()
	call(p, cdppage.AddScriptToEvaluateOnNewDocument, cdppage.AddScriptToEvaluateOnNewDocumentParams{Source: script})
}

// click clicks the element with this id.
func (p *page) click(id chromedp.ID) {
	p.t.Helper()
	p.do(chromedp.Click(id))
}

// waitText waits until the element with this id has this text.
func (p *page) waitText(id, text string) {
	p.t.Helper()
	p.wait(fmt.Sprintf("document.getElementById(%q).textContent === %q", id, text))
}

// takeProblems returns the errors and warnings of the browser since the last call.
func (p *page) takeProblems() []string {
	p.mu.Lock()
	defer p.mu.Unlock()
	problems := p.problems
	p.problems = nil
	return problems
}

// wantNoProblems fails the test if the browser has reported an error or warning since the last takeProblems:
// an exception, a violation of the content security policy, a request that failed.
func (p *page) wantNoProblems(when string) {
	p.t.Helper()
	if problems := p.takeProblems(); problems != nil {
		p.t.Errorf("%s, the browser reports %q, want nothing", when, problems)
	}
}

// waitState waits until the page shows this state of its connection.
func (p *page) waitState(state string) {
	p.t.Helper()
	p.wait(fmt.Sprintf("document.getElementById('status').dataset.state === %q", state))
}

func (p *page) waitOpen() {
	p.t.Helper()
	p.waitState("open")
}

// key presses and releases keys.
func (p *page) key(keys string, options ...chromedp.KeyOption) {
	p.t.Helper()
	p.do(chromedp.KeyEvent(keys, options...))
}

// network puts the tab online or offline. The browser tells the page.
func (p *page) network(online bool) {
	p.t.Helper()
	call(p, network.OverrideNetworkState, network.OverrideNetworkStateParams{
		Offline: !online, DownloadThroughput: -1, UploadThroughput: -1,
	})
}
