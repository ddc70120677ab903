package e2e

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/coder/websocket"
	"github.com/coder/websocket/wsjson"
)

// firefoxPrefs keep a new profile from connecting to the internet: every name resolves to this machine.
const firefoxPrefs = `
user_pref("network.dns.forceResolve", "127.0.0.1");
user_pref("services.settings.server", "https://localhost:1/");
user_pref("app.update.disabledForTesting", true);
user_pref("datareporting.policy.dataSubmissionEnabled", false);
user_pref("network.captive-portal-service.enabled", false);
user_pref("network.connectivity-service.enabled", false);
user_pref("browser.shell.checkDefaultBrowser", false);
`

// firefox controls a Firefox by WebDriver BiDi: JSON messages over a WebSocket.
// https://www.w3.org/TR/webdriver-bidi/
type firefox struct {
	t    *testing.T
	ws   *websocket.Conn
	last int // id of the last command
}

// newFirefox starts a Firefox that ends with the test, or skips the test if Firefox is not installed.
func newFirefox(t *testing.T) *firefox {
	t.Helper()
	if testing.Short() {
		t.Skip("this test needs a browser, and -short starts none")
	}
	path := ""
	for _, name := range []string{"firefox-esr", "firefox"} {
		if p, err := exec.LookPath(name); err == nil {
			path = p
			break
		}
	}
	if path == "" {
		t.Skip("Firefox is not installed (Debian: firefox-esr)")
	}
	profile := t.TempDir()
	if err := os.WriteFile(filepath.Join(profile, "user.js"), []byte(firefoxPrefs), 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), path, "--headless", "--no-remote", "--profile", profile, "--remote-debugging-port", "0")
	cmd.Env = append(os.Environ(), "HOME="+profile, "MOZ_CRASHREPORTER_DISABLE=1")
	stderr, err := cmd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	address := make(chan string, 1)
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		for lines := bufio.NewScanner(stderr); lines.Scan(); {
			if m := regexp.MustCompile(`BiDi listening on (ws://\S+)`).FindStringSubmatch(lines.Text()); m != nil {
				address <- m[1]
			}
		}
	}()
	t.Cleanup(func() {
		cmd.Process.Kill()
		<-ended
		cmd.Wait()
	})
	ctx, cancel := context.WithTimeout(t.Context(), maxDelay)
	defer cancel()
	f := &firefox{t: t}
	select {
	case a := <-address:
		if f.ws, _, err = websocket.Dial(ctx, a+"/session", nil); err != nil {
			t.Fatal(err)
		}
	case <-ended:
		t.Fatalf("%s ended before it listened", path)
	case <-ctx.Done():
		t.Fatalf("%s does not listen after %v", path, maxDelay)
	}
	f.ws.SetReadLimit(1 << 20)
	t.Cleanup(func() { f.ws.CloseNow() })
	f.do("session.new", `{"capabilities":{"alwaysMatch":{"acceptInsecureCerts":true}}}`, nil)
	return f
}

// do sends a command and decodes its result.
func (f *firefox) do(method, params string, result any) {
	f.t.Helper()
	ctx, cancel := context.WithTimeout(f.t.Context(), maxDelay)
	defer cancel()
	f.last++
	command := map[string]any{"id": f.last, "method": method, "params": json.RawMessage(params)}
	if err := wsjson.Write(ctx, f.ws, command); err != nil {
		f.t.Fatalf("%s: %v", method, err)
	}
	for {
		var answer struct {
			ID      int
			Error   string
			Message string
			Result  json.RawMessage
			Method  string // of an event
			Params  struct{ Level, Text string }
		}
		if err := wsjson.Read(ctx, f.ws, &answer); err != nil {
			f.t.Fatalf("%s: %v", method, err)
		}
		switch {
		case answer.Method == "log.entryAdded" && answer.Params.Level == "error":
			f.t.Errorf("Firefox reports %q, want nothing", answer.Params.Text)
		case answer.ID != f.last:
		case answer.Error != "":
			f.t.Fatalf("%s: %s: %s", method, answer.Error, answer.Message)
		default:
			if result != nil {
				if err := json.Unmarshal(answer.Result, result); err != nil {
					f.t.Fatal(err)
				}
			}
			return
		}
	}
}

// firefoxTab is a tab of Firefox.
type firefoxTab struct {
	*firefox
	context string
}

// open opens url in a new tab, and waits until the page is complete.
func (f *firefox) open(url string) *firefoxTab {
	f.t.Helper()
	return f.navigate(url, "complete")
}

// navigate opens url in a new tab. wait is "complete", or "none" to return at once: Firefox takes the error page of a frame for
// that of the tab, and then says that the navigation failed.
func (f *firefox) navigate(url, wait string) *firefoxTab {
	f.t.Helper()
	var tab struct{ Context string }
	f.do("browsingContext.create", `{"type":"tab"}`, &tab)
	f.do("browsingContext.navigate", fmt.Sprintf(`{"context":%q,"url":%q,"wait":%q}`, tab.Context, url, wait), nil)
	return &firefoxTab{f, tab.Context}
}

// eval returns the value of a JavaScript expression as text.
func (p *firefoxTab) eval(expression string) string {
	p.t.Helper()
	params, err := json.Marshal(map[string]any{
		"expression": "String(" + expression + ")", "awaitPromise": false, "target": map[string]string{"context": p.context},
	})
	if err != nil {
		p.t.Fatal(err)
	}
	var answer struct {
		Type             string
		Result           struct{ Value string }
		ExceptionDetails struct{ Text string }
	}
	p.do("script.evaluate", string(params), &answer)
	if answer.Type != "success" {
		p.t.Fatalf("%s: %s", expression, answer.ExceptionDetails.Text)
	}
	return answer.Result.Value
}

// waitText waits until the element with this id has this text.
func (p *firefoxTab) waitText(id, text string) {
	p.t.Helper()
	p.waitFor(fmt.Sprintf("document.getElementById(%q).textContent", id), text)
}

// waitFor waits until the JavaScript expression has this value, as text.
func (p *firefoxTab) waitFor(expression, value string) {
	p.t.Helper()
	for deadline := time.Now().Add(maxDelay); ; time.Sleep(20 * time.Millisecond) {
		got := p.eval(expression)
		if got == value {
			return
		}
		if time.Now().After(deadline) {
			p.t.Fatalf("%s is %q, want %q; the page shows %q", expression, got, value, p.eval("document.body.innerText"))
		}
	}
}

// TestFirefox counts with two visitors, restarts the server on the same data folder, and goes on counting.
func TestFirefox(t *testing.T) {
	t.Parallel()
	f := newFirefox(t)
	data := t.TempDir()
	s := start(t, "-data", data)
	url := "https://localhost" + portOf(t, s.addrs.HTTPS[0]) + "/"
	f.do("session.subscribe", `{"events":["log.entryAdded"]}`, nil)
	a, b := f.open(url), f.open(url)
	for _, p := range []*firefoxTab{a, b} {
		p.waitText("live", "Live")
		p.waitText("value", "0")
		p.waitText("users", " · 2 people here")
	}
	a.eval(`document.getElementById("plus").click()`)
	b.waitText("value", "1")
	// Keys of the browser, which go to the element that has the focus.
	f.do("browsingContext.activate", fmt.Sprintf(`{"context":%q}`, b.context), nil)
	b.eval(`document.getElementById("plus").focus()`)
	f.do("input.performActions", fmt.Sprintf(`{"context":%q,"actions":[{"type":"key","id":"k","actions":[%s]}]}`, b.context,
		strings.Repeat(`,{"type":"keyDown","value":"-"},{"type":"keyUp","value":"-"}`, 2)[1:]), nil)
	a.waitText("value", "−1")
	b.waitText("value", "−1")

	f.do("session.unsubscribe", `{"events":["log.entryAdded"]}`, nil) // the page cannot connect for a while, and Firefox logs that
	if err := s.stop(); err != nil {
		t.Fatal(err)
	}
	a.waitText("live", "Not live")
	a.eval(`document.getElementById("plus").click()`)
	a.waitText("message", "Not connected: that did not count.")
	start(t, "-data", data, "-https", s.addrs.HTTPS[0])
	for _, p := range []*firefoxTab{a, b} {
		p.waitText("live", "Live")
		p.waitText("value", "−1")
	}
	a.eval(`document.getElementById("plus").click()`)
	b.waitText("value", "0")
}
