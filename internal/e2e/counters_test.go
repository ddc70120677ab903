package e2e

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"os"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/coder/websocket"
	yaml "go.yaml.in/yaml/v4"
)

// startCounters runs a server with counters whose values are in memory.
func startCounters(t *testing.T, args ...string) *plusminus {
	t.Helper()
	return start(t, append([]string{"-plain", "-domain", "localhost", "-store", "memory"}, args...)...)
}

// request sends a request and returns the response and its body, without the line break at the end.
func (s *plusminus) request(method, path, body string, header http.Header) (*http.Response, string) {
	s.t.Helper()
	req, err := http.NewRequestWithContext(s.t.Context(), method, "http://"+s.addrs.HTTP+path, strings.NewReader(body))
	if err != nil {
		s.t.Fatal(err)
	}
	for name, values := range header {
		req.Header[name] = values
	}
	req.Host = "localhost"
	resp, text := s.do(req)
	return resp, strings.TrimSuffix(text, "\n")
}

// watch joins the hub at the path.
func (s *plusminus) watch(path string) *websocket.Conn {
	s.t.Helper()
	ws, _, err := s.dial("ws://localhost"+path, websocket.DialOptions{})
	if err != nil {
		s.t.Fatal(err)
	}
	return ws
}

// TestCountersByPath asks for each path of a counter, with good and bad names.
func TestCountersByPath(t *testing.T) {
	t.Parallel()
	s := startCounters(t, "-counters", "likes,door.*", "-counters", "vote")
	long := strings.Repeat("a", 65)
	for _, tt := range []struct {
		method, path, body string
		status             int
		want               string // in the body
	}{
		{"GET", "/c/likes/state", "", 200, `{"value":0,"users":0}`},
		{"POST", "/c/likes", `{"action":"plus"}`, 200, `{"value":1}`},
		{"POST", "/c/likes", `{"action":"plus"}`, 200, `{"value":2}`},
		{"POST", "/c/%6cikes", `{"action": "minus"}`, 200, `{"value":1}`},
		{"GET", "/c/likes/state", "", 200, `{"value":1,"users":0}`},
		{"POST", "/c/door.front", `{"action":"minus"}`, 200, `{"value":-1}`},
		{"POST", "/", `{"action":"plus"}`, 200, `{"value":1}`},
		{"GET", "/state", "", 200, `{"value":1,"users":0}`},
		{"GET", "/c/vote/state", "", 200, `{"value":0,"users":0}`},

		{"POST", "/c/likes", `{"action":"leap"}`, 400, `"code":"unknown_action"`},
		{"POST", "/c/likes", ``, 400, `"code":"bad_message"`},
		{"POST", "/c/likes", `{"action":"plus","x":"` + strings.Repeat("x", 512) + `"}`, 400, `"code":"bad_message"`},
		{"POST", "/c/Likes", `{"action":"plus"}`, 404, "no counter of that name"},
		{"POST", "/c/other", `{"action":"plus"}`, 404, "no counter of that name"},
		{"GET", "/c/other", "", 404, "no counter of that name"},
		{"GET", "/c/other/state", "", 404, "no counter of that name"},
		{"GET", "/c/doors", "", 404, "no counter of that name"},
		{"GET", "/c/a%2Fb", "", 400, "letters, digits"},
		{"GET", "/c/..%2Flikes", "", 400, "letters, digits"},
		{"GET", "/c/%2e%2e", "", 400, "more than periods"},
		{"GET", "/c/" + long, "", 400, "1 to 64"},
		{"GET", "/c/", "", 400, "1 to 64"},
		{"GET", "/c/likes/", "", 404, "/state, /events"},
		{"GET", "/c/likes/nothing", "", 404, "/state, /events"},
		{"DELETE", "/c/likes", "", 405, ""},
		{"GET", "/c", "", 404, ""},
		{"GET", "/c/likes", "", 200, `<script type="module" src="../app.js">`},
	} {
		resp, body := s.request(tt.method, tt.path, tt.body, nil)
		if resp.StatusCode != tt.status || !strings.Contains(body, tt.want) {
			t.Errorf("%s %s %.40s = %s %q, want %d and %q", tt.method, tt.path, tt.body, resp.Status, body, tt.status, tt.want)
		}
	}
	names := make([]string, 33)
	for i := range names {
		names[i] = fmt.Sprintf("name=door.%d", i)
	}
	for path, status := range map[string]int{
		"/c": 400, "/c?name=other": 404, "/c?name=likes&name=likes": 400, "/c?name=": 400, "/c?" + strings.Join(names, "&"): 400, "/c/other": 404, "/c/a%2Fb": 400,
	} {
		_, resp, err := s.dial("ws://localhost"+path, websocket.DialOptions{})
		if err == nil || resp == nil || resp.StatusCode != status {
			t.Errorf("upgrade on %s = %v, want %d", path, err, status)
		}
	}
	_, metrics := s.get("http://"+s.addrs.Admin+"/metrics", "")
	for _, reason := range []string{"no_counter", "bad_name"} {
		if !strings.Contains(metrics, `plusminus_refusals_total{reason="`+reason+`"}`) || strings.Contains(metrics, `plusminus_refusals_total{reason="`+reason+`"} 0`) {
			t.Errorf("metrics count no refusal for %s", reason)
		}
	}
}

// TestHistory reads how counters have changed.
func TestHistory(t *testing.T) {
	t.Parallel()
	s := startCounters(t, "-counters", "likes,door.*", "-origin", "https://blog.example")
	age := regexp.MustCompile(`\[-\d+,`) // the actions may be in two seconds
	want := func(path, before, last string) {
		t.Helper()
		resp, body := s.request("GET", path, "", nil)
		if h := resp.Header; resp.StatusCode != 200 || h.Get("Content-Type") != "application/json" || h.Get("Cache-Control") != "no-cache" {
			t.Errorf("GET %s = %s %v", path, resp.Status, h)
		}
		body = age.ReplaceAllString(body, "[0,")
		if !strings.HasPrefix(body, `{"before":`+before+`,"points":[`) || !strings.HasSuffix(body, last+`]}`) || (last == "") != strings.HasSuffix(body, `:[]}`) {
			t.Errorf("GET %s = %s, want the value %s before, and then %s at the end", path, body, before, last)
		}
	}
	want("/history", "0", "")
	want("/c/likes/history", "0", "")
	for _, path := range []string{"/", "/c/likes", "/c/likes"} {
		s.request("POST", path, plus, nil)
	}
	for path, value := range map[string]string{"/": "1", "/c/likes/": "2"} {
		// The answer to a POST may come before the value is published.
		waitUntil(t, "the history to have "+value, func() bool {
			_, body := s.request("GET", path+"history", "", nil)
			return strings.HasSuffix(body, ","+value+"]]}")
		})
		want(path+"history", "0", "[0,"+value+"]")
	}
	want("/c/door.a/history", "0", "")
	for _, tt := range []struct {
		method, path string
		status       int
	}{{"HEAD", "/history", 200}, {"POST", "/history", 405}, {"PUT", "/c/likes/history", 405}, {"GET", "/c/nothing/history", 404}, {"GET", "/c/a%2Fb/history", 400}} {
		if resp, body := s.request(tt.method, tt.path, "", nil); resp.StatusCode != tt.status || tt.method == "HEAD" && body != "" {
			t.Errorf("%s %s = %s %s, want %d", tt.method, tt.path, resp.Status, body, tt.status)
		}
	}
	for _, path := range []string{"/history", "/c/likes/history"} {
		for origin, allowed := range map[string]string{"https://blog.example": "https://blog.example", "https://evil.example": ""} {
			resp, _ := s.request("GET", path, "", http.Header{"Origin": {origin}})
			if got := resp.Header.Get("Access-Control-Allow-Origin"); got != allowed || resp.Header.Get("Vary") != "Origin" {
				t.Errorf("GET %s from %s may be read by %q, want %q", path, origin, got, allowed)
			}
		}
	}
}

// TestBadge asks for pictures of counters, as an <img> on another site does.
func TestBadge(t *testing.T) {
	t.Parallel()
	s := startCounters(t, "-counters", "likes")
	s.request("POST", "/c/likes", plus, nil)
	for _, tt := range []struct {
		path   string
		status int
		want   string
	}{
		{"/badge.svg", 200, "<title>counter: 0</title>"},
		{"/c/likes/badge.svg", 200, "<title>likes: 1</title>"},
		{"/c/likes/badge.svg?label=I+%3C3+it&color=red", 200, "<title>I &lt;3 it: 1</title>"},
		{"/c/likes/badge.svg?color=mud", 400, "color: use 3 or 6"},
		{"/badge.svg?label=", 400, "label: a label has 1 to 64 characters"},
		{"/c/other/badge.svg", 404, "no counter of that name"},
		{"/badge.svg/", 404, ""},
	} {
		resp, body := s.request("GET", tt.path, "", http.Header{"Origin": {"https://anywhere.example"}, "Sec-Fetch-Site": {"cross-site"}})
		if resp.StatusCode != tt.status || !strings.Contains(body, tt.want) {
			t.Errorf("GET %s = %s %s, want %d and %q", tt.path, resp.Status, body, tt.status, tt.want)
		}
		if tt.status != 200 {
			continue
		}
		h := resp.Header
		for name, want := range map[string]string{"Content-Type": "image/svg+xml; charset=utf-8", "Cache-Control": "max-age=5", "Cross-Origin-Resource-Policy": "cross-origin",
			"Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'; sandbox", "X-Content-Type-Options": "nosniff"} {
			if h.Get(name) != want {
				t.Errorf("GET %s: %s is %q, want %q", tt.path, name, h.Get(name), want)
			}
		}
		if again, body := s.request("GET", tt.path, "", http.Header{"If-None-Match": {h.Get("ETag")}}); again.StatusCode != 304 || body != "" {
			t.Errorf("GET %s with its ETag = %s, want 304", tt.path, again.Status)
		}
	}
	resp, _ := s.request("GET", "/c/likes/badge.svg", "", nil)
	s.request("POST", "/c/likes", plus, nil)
	waitUntil(t, "another badge", func() bool {
		again, body := s.request("GET", "/c/likes/badge.svg", "", http.Header{"If-None-Match": {resp.Header.Get("ETag")}})
		return again.StatusCode == 200 && strings.Contains(body, "likes: 2")
	})
	if resp, _ := s.request("POST", "/badge.svg", "", nil); resp.StatusCode != 405 || resp.Header.Get("Allow") != "GET, HEAD" {
		t.Errorf("POST /badge.svg = %s, want 405", resp.Status)
	}
}

// TestCountersOverWebSocket lets one client watch one counter and another one several, beside the default one.
func TestCountersOverWebSocket(t *testing.T) {
	t.Parallel()
	s := startCounters(t, "-counters", "*")
	likes := s.watch("/c/likes")
	wantRead(t, likes, `{"count":1,"type":"users"}`, `{"type":"state","value":0}`)
	both, standard := s.watch("/c?name=likes&name=seats"), s.watch("/any/path")
	wantRead(t, likes, `{"count":2,"type":"users"}`)
	wantRead(t, both, `{"count":2,"counter":"likes","type":"users"}`, `{"counter":"likes","type":"state","value":0}`,
		`{"count":1,"counter":"seats","type":"users"}`, `{"counter":"seats","type":"state","value":0}`)
	wantRead(t, standard, `{"count":1,"type":"users"}`, `{"type":"state","value":0}`)
	send(t, both, `{"action":"minus","counter":"seats"}`)
	wantRead(t, both, `{"counter":"seats","type":"state","value":-1}`)
	send(t, likes, plus)
	wantRead(t, likes, `{"type":"state","value":1}`)
	wantRead(t, both, `{"counter":"likes","type":"state","value":1}`)
	if resp, body := s.request("POST", "/c/seats", plus, nil); resp.StatusCode != 200 || body != `{"value":0}` {
		t.Errorf("POST = %s %s", resp.Status, body)
	}
	wantRead(t, both, `{"counter":"seats","type":"state","value":0}`)
	send(t, standard, plus)
	wantRead(t, standard, `{"type":"state","value":1}`)
	send(t, both, plus)
	wantRead(t, both, `{"code":"unknown_counter","type":"error"}`)

	// An event stream of one counter.
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, "GET", "http://"+s.addrs.HTTP+"/c/likes/events", nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Host = "localhost"
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	buf := make([]byte, 4096)
	text := ""
	for !strings.Contains(text, `"value":1}`) {
		n, err := resp.Body.Read(buf)
		text += string(buf[:n])
		if err != nil && err != io.EOF {
			t.Fatalf("event stream: %q, %v", text, err)
		}
	}
}

// TestCountersNameRefusals sends more actions than the rate allows, on a connection about several counters. The error names
// the counter of the action that did not count.
func TestCountersNameRefusals(t *testing.T) {
	t.Parallel()
	s := startCounters(t, "-counters", "*", "-action-rate", "0.001", "-action-burst", "1")
	ws := s.watch("/c?name=likes&name=seats")
	wantRead(t, ws, `{"count":1,"counter":"likes","type":"users"}`, `{"counter":"likes","type":"state","value":0}`,
		`{"count":1,"counter":"seats","type":"users"}`, `{"counter":"seats","type":"state","value":0}`)
	send(t, ws, `{"action":"plus","counter":"likes"}`)
	wantRead(t, ws, `{"counter":"likes","type":"state","value":1}`)
	send(t, ws, `{"action":"plus","counter":"seats"}`)
	wantRead(t, ws, `{"code":"rate_limited","counter":"seats","type":"error"}`)
	send(t, ws, `{"action":"leap","counter":"seats"}`)
	wantRead(t, ws, `{"code":"unknown_action","type":"error"}`)
}

// TestAsyncAPIAddresses asks for the address of each channel of hub/asyncapi.yaml, in the way that the channel says, and looks
// which counter the answer is about.
func TestAsyncAPIAddresses(t *testing.T) {
	t.Parallel()
	data, err := os.ReadFile("hub/asyncapi.yaml")
	if err != nil {
		t.Fatal(err)
	}
	var document struct {
		Channels map[string]struct {
			Address  string
			Bindings struct {
				WS *struct{ Query any } `yaml:"ws"`
			}
		}
		Operations map[string]struct {
			Channel struct {
				Ref string `yaml:"$ref"`
			}
			Bindings struct {
				HTTP struct{ Method string } `yaml:"http"`
			}
		}
	}
	if err := yaml.Unmarshal(data, &document); err != nil {
		t.Fatal(err)
	}
	s := startCounters(t, "-counters", "*")
	s.request("POST", "/c/likes", plus, nil)
	s.request("POST", "/c/likes", plus, nil)
	for name, c := range document.Channels {
		path := strings.ReplaceAll(c.Address, "{name}", "likes")
		if c.Bindings.WS != nil {
			if c.Bindings.WS.Query != nil {
				path += "?name=likes&name=seats"
			}
			ws := s.watch(path)
			read(t, ws)
			want := map[string]string{"counter": `{"type":"state","value":0}`, "several": `{"counter":"likes","type":"state","value":`, "named": `{"type":"state","value":`}[name]
			if got := read(t, ws); !strings.HasPrefix(got, want) || want == "" || name == "named" && strings.HasSuffix(got, ":0}") {
				t.Errorf("an upgrade on %s, for the channel %s, is told %s", path, name, got)
			}
			ws.CloseNow()
			continue
		}
		method := ""
		for _, op := range document.Operations {
			if op.Channel.Ref == "#/channels/"+name {
				method = op.Bindings.HTTP.Method
			}
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		req, err := http.NewRequestWithContext(ctx, method, "http://"+s.addrs.HTTP+path, strings.NewReader(map[string]string{"POST": plus}[method]))
		if err != nil {
			t.Fatal(err)
		}
		req.Host = "localhost"
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		want := map[string]string{"GET": "text/event-stream", "POST": "application/json"}[method]
		if got := resp.Header.Get("Content-Type"); resp.StatusCode != 200 || got != want {
			t.Errorf("%s %s, for the channel %s = %s with %s, want 200 with %s", method, path, name, resp.Status, got, want)
		}
		cancel()
		resp.Body.Close()
	}
	if len(document.Channels) != 6 {
		t.Errorf("asked for %d channels, want 6", len(document.Channels))
	}
}

// TestCountersAndOrigins sends actions as pages do: with fetch, from allowed and from foreign origins.
func TestCountersAndOrigins(t *testing.T) {
	t.Parallel()
	s := startCounters(t, "-counters", "likes", "-origin", "https://blog.example")
	for origin, status := range map[string]int{"https://blog.example": 200, "https://evil.example": 403, "null": 403} {
		resp, body := s.request("POST", "/c/likes", plus, http.Header{"Origin": {origin}})
		if resp.StatusCode != status || (resp.Header.Get("Access-Control-Allow-Origin") == origin) != (status == 200) {
			t.Errorf("POST from %s = %s %s, allowed to read by %q, want %d", origin, resp.Status, body, resp.Header.Get("Access-Control-Allow-Origin"), status)
		}
	}
	resp, _ := s.request("OPTIONS", "/c/likes", "", http.Header{"Origin": {"https://blog.example"}, "Access-Control-Request-Method": {"POST"}, "Access-Control-Request-Headers": {"content-type"}})
	if h := resp.Header; resp.StatusCode != 204 || h.Get("Access-Control-Allow-Origin") != "https://blog.example" || h.Get("Access-Control-Allow-Methods") != "POST" || h.Get("Access-Control-Allow-Headers") != "Content-Type" {
		t.Errorf("preflight = %s %v", resp.Status, resp.Header)
	}
}

// TestCountersAreLimited makes more counters than an address, and then the server, may have.
func TestCountersAreLimited(t *testing.T) {
	t.Parallel()
	s := startCounters(t, "-counters", "*", "-max-counters", "12", "-action-rate", "0")
	codes := make(map[string]int)
	for i := range 30 {
		resp, body := s.request("POST", fmt.Sprintf("/c/n%d", i), plus, nil)
		switch {
		case resp.StatusCode == 200:
			codes["made"]++
		case resp.StatusCode == 429 && strings.Contains(body, "making_limited") && resp.Header.Get("Retry-After") != "":
			codes["limited"]++
		default:
			t.Errorf("POST = %s %s", resp.Status, body)
		}
	}
	if codes["made"] != 10 || codes["limited"] != 20 {
		t.Errorf("%v, want 10 made at once, and the others limited", codes)
	}
	if resp, body := s.request("POST", "/c/n3", plus, nil); resp.StatusCode != 200 || body != `{"value":2}` {
		t.Errorf("POST on a counter that is there = %s %s", resp.Status, body)
	}
	// Watching makes nothing.
	ws := s.watch("/c/unseen")
	wantRead(t, ws, `{"count":1,"type":"users"}`, `{"type":"state","value":0}`)
}

// TestCountersInFile kills a server and starts it again on its data folder, which an earlier server without -counters had made.
func TestCountersInFile(t *testing.T) {
	t.Parallel()
	data := t.TempDir()
	args := []string{"-plain", "-domain", "localhost", "-data", data}
	before := start(t, args...)
	ws := before.watch("/")
	wantRead(t, ws, `{"count":1,"type":"users"}`, `{"type":"state","value":0}`)
	send(t, ws, plus)
	wantRead(t, ws, `{"type":"state","value":1}`)
	if err := before.stop(); err != nil {
		t.Fatal(err)
	}
	s := start(t, append(args, "-counters", "*")...)
	for path, want := range map[string]string{"/": `{"value":2}`, "/c/likes": `{"value":1}`, "/c/seats": `{"value":1}`} {
		if resp, body := s.request("POST", path, plus, nil); resp.StatusCode != 200 || body != want {
			t.Errorf("POST %s = %s %s, want %s", path, resp.Status, body, want)
		}
	}
	if err := s.stop(); err != nil {
		t.Fatal(err)
	}
	if out, err := command(t, "value", "get", "seats", "-data", data).CombinedOutput(); err != nil || string(out) != "1\n" {
		t.Errorf("value get = %q, %v, want 1", out, err)
	}
	if out, err := command(t, args...).CombinedOutput(); exitStatus(err) != 1 || !strings.Contains(string(out), "holds many counters: start the server with -counters") {
		t.Errorf("a start without -counters = %q, %v, want it refused", out, err)
	}
	s = start(t, append(args, "-counters", "likes")...)
	for path, want := range map[string]string{"/state": `{"value":2,"users":0}`, "/c/likes/state": `{"value":1,"users":0}`, "/c/seats/state": "there is no counter of that name here"} {
		if _, body := s.request("GET", path, "", nil); body != want {
			t.Errorf("GET %s = %s, want %s", path, body, want)
		}
	}
}

// TestWithoutCounters checks that nothing of this is there without -counters.
func TestWithoutCounters(t *testing.T) {
	t.Parallel()
	s := startCounters(t)
	for _, tt := range []struct {
		method, path string
		status       int
	}{{"POST", "/", 405}, {"OPTIONS", "/", 405}, {"GET", "/c/likes", 404}, {"GET", "/c/likes/state", 404}, {"POST", "/c/likes", 404}} {
		if resp, body := s.request(tt.method, tt.path, plus, nil); resp.StatusCode != tt.status {
			t.Errorf("%s %s = %s %s, want %d", tt.method, tt.path, resp.Status, body, tt.status)
		}
	}
	ws := s.watch("/c/likes") // any path is the default counter
	wantRead(t, ws, `{"count":1,"type":"users"}`, `{"type":"state","value":0}`)
	send(t, ws, plus)
	wantRead(t, ws, `{"type":"state","value":1}`)
	if _, body := s.request("GET", "/state", "", nil); body != `{"value":1,"users":1}` {
		t.Errorf("GET /state = %s", body)
	}
}
