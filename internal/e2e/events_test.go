package e2e

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/coder/websocket"
)

// stream reads the events of one client of GET /events.
type stream struct {
	t    *testing.T
	in   *bufio.Reader
	head *http.Response // nil for a program's output
}

// listen requests GET /events and returns its stream.
func (s *plusminus) listen(url string) *stream {
	s.t.Helper()
	req, err := http.NewRequestWithContext(s.t.Context(), http.MethodGet, url, nil)
	if err != nil {
		s.t.Fatal(err)
	}
	resp, err := s.client().Do(req)
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() { resp.Body.Close() })
	if resp.StatusCode != http.StatusOK || resp.Header.Get("Content-Type") != "text/event-stream" {
		s.t.Fatalf("GET %s = %s, header %v, want 200 and an event stream", url, resp.Status, resp.Header)
	}
	return &stream{s.t, bufio.NewReader(resp.Body), resp}
}

// next returns the next line that is not blank, or "" at the end of the stream.
func (s *stream) next() string {
	s.t.Helper()
	for {
		line, err := s.in.ReadString('\n')
		if errors.Is(err, io.EOF) && line == "" {
			return ""
		}
		if err != nil {
			s.t.Fatalf("%q: %v", line, err)
		}
		if line != "\n" {
			return strings.TrimSuffix(line, "\n")
		}
	}
}

// want reads an event for each of messages and compares them.
func (s *stream) want(messages ...string) {
	s.t.Helper()
	for _, want := range messages {
		if got := s.next(); got != "data: "+want {
			s.t.Fatalf("next line = %q, want the message %s", got, want)
		}
	}
}

// wantRetry checks that the next line tells the client to reconnect after least to most milliseconds.
func (s *stream) wantRetry(least, most int) {
	s.t.Helper()
	line, ms := s.next(), 0
	if n, _ := fmt.Sscanf(line, "retry: %d", &ms); n != 1 || ms < least || ms > most {
		s.t.Fatalf("next line = %q, want a retry of %d to %d ms", line, least, most)
	}
}

// wantEnd checks that the server announces a time to reconnect and then ends the stream.
func (s *stream) wantEnd() {
	s.t.Helper()
	s.wantRetry(5000, 30_000)
	if line := s.next(); line != "" {
		s.t.Errorf("next line = %q, want the end of the stream", line)
	}
}

// TestStream reads a stream, with and without TLS, beside a WebSocket, until the server stops.
func TestStream(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name, scheme string
		args         []string
	}{
		{"TLS", "s", nil},
		{"plain", "", []string{"-plain"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			s := start(t, append(tt.args, "-store", "memory")...)
			ws := s.join("ws" + tt.scheme + "://localhost/")
			wantRead(t, ws, `{"count":1,"type":"users"}`, `{"type":"state","value":0}`)
			events := s.listen("http" + tt.scheme + "://localhost/events")
			events.wantRetry(2000, 8000)
			events.want(`{"type":"users","count":2}`, `{"type":"state","value":0}`)
			wantRead(t, ws, `{"count":2,"type":"users"}`)
			send(t, ws, plus)
			send(t, ws, minus)
			events.want(`{"type":"state","value":1}`, `{"type":"state","value":0}`)
			wantRead(t, ws, `{"type":"state","value":1}`, `{"type":"state","value":0}`)
			if _, body := s.get("http://"+s.addrs.Admin+"/metrics", ""); !strings.Contains(body, "plusminus_clients 2\n") {
				t.Error("/metrics has no line plusminus_clients 2, want the stream counted as a client")
			}
			stopped := make(chan error, 1)
			go func() { stopped <- s.stop() }()
			if _, _, err := ws.Read(t.Context()); websocket.CloseStatus(err) != websocket.StatusServiceRestart {
				t.Errorf("Read = %v, want status code 1012", err)
			}
			events.wantEnd()
			if err := <-stopped; err != nil {
				t.Errorf("Run = %v, want nil", err)
			}
		})
	}
	s := start(t, "-store", "memory")
	for _, host := range []string{"evil.example", "evil.example:443"} {
		if resp, _ := s.get("https://localhost/events", host); resp.StatusCode != http.StatusMisdirectedRequest {
			t.Errorf("GET /events for %s = %s, want 421", host, resp.Status)
		}
	}
	ws := s.join("wss://localhost/events") // a WebSocket may use any path, this one included
	wantRead(t, ws, `{"count":1,"type":"users"}`, `{"type":"state","value":0}`)
}

// TestStreamRate checks that the rate of new clients limits streams. The rate of other requests does not.
func TestStreamRate(t *testing.T) {
	t.Parallel()
	s := start(t, "-store", "memory", "-connection-rate", "0.001", "-max-clients-per-ip", "10")
	streams := 0
	for range 20 {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "https://localhost/events", nil)
		if err != nil {
			t.Fatal(err)
		}
		resp, err := s.client().Do(req)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close() // so that few streams are open at a time
		switch {
		case resp.StatusCode == http.StatusOK:
			streams++
		case resp.StatusCode != http.StatusTooManyRequests || resp.Header.Get("Retry-After") == "":
			t.Fatalf("GET /events = %s, Retry-After %q", resp.Status, resp.Header.Get("Retry-After"))
		}
	}
	if streams != 10 {
		t.Errorf("%d streams got 200, want 10, the clients that an address may have", streams)
	}
}

// TestCurl reads the stream with curl -N, as README shows.
func TestCurl(t *testing.T) {
	t.Parallel()
	if _, err := exec.LookPath("curl"); err != nil {
		t.Skip("curl is not installed (Debian: curl)")
	}
	data := t.TempDir()
	s := start(t, "-data", data)
	cmd := exec.CommandContext(t.Context(), "curl", "-sS", "-N", "--cacert", filepath.Join(data, "local-ca", "root.pem"),
		"https://localhost"+portOf(t, s.addrs.HTTPS[0])+"/events")
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	events := &stream{t: t, in: bufio.NewReader(out)}
	events.wantRetry(2000, 8000)
	events.want(`{"type":"users","count":1}`, `{"type":"state","value":0}`)
	ws := s.join("wss://localhost/")
	send(t, ws, plus)
	events.want(`{"type":"users","count":2}`, `{"type":"state","value":1}`)
	ws.CloseNow()
	events.want(`{"type":"users","count":1}`)
	if err := s.stop(); err != nil {
		t.Fatal(err)
	}
	events.wantEnd()
	if err := cmd.Wait(); err != nil {
		t.Errorf("curl: %v, want exit status 0 at the end of the stream", err)
	}
}

// TestEventSource uses EventSource in a browser, on a page of another origin, with and without -origin for that page.
func TestEventSource(t *testing.T) {
	t.Parallel()
	browser := chromium(t)
	page := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "text/html; charset=utf-8")
		_, _ = io.WriteString(w, "<!doctype html><title>elsewhere</title>")
	}))
	t.Cleanup(page.Close)
	for _, tt := range []struct {
		name string
		args []string
		want string // an expression that becomes true
	}{
		{"may", []string{"-origin", page.URL}, `window.got.includes('{"type":"state","value":1}')`},
		{"may not", nil, `window.source.readyState === EventSource.CLOSED && window.got.length === 0`},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			s := start(t, append(tt.args, "-store", "memory")...)
			ws := s.join("wss://localhost/")
			wantRead(t, ws, `{"count":1,"type":"users"}`, `{"type":"state","value":0}`)
			send(t, ws, plus)
			wantRead(t, ws, `{"type":"state","value":1}`)
			p := openPage(t, browser, page.URL)
			p.wait(fmt.Sprintf(`(() => {
				if (!window.source) {
					window.got = [];
					window.source = new EventSource("https://localhost%s/events");
					window.source.onmessage = (event) => window.got.push(event.data);
				}
				return %s;
			})()`, portOf(t, s.addrs.HTTPS[0]), tt.want))
		})
	}
}
