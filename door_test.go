package main

import (
	"bytes"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/coder/websocket"

	"plusminus/hub"
)

// An address that asks too often is told when to come back, and one that goes on is not heard.
func TestAddressRates(t *testing.T) {
	const clients = leastBurst // or else the burst is more than the cap
	s := start(t, "-connection-rate", "0.01", "-max-clients-per-ip", strconv.Itoa(clients))
	for range clients {
		s.join("wss://localhost/")
	}
	for _, upgrade := range []bool{true, false} {
		var resp *http.Response
		if upgrade {
			_, resp, _ = s.dial("wss://localhost/", websocket.DialOptions{})
		} else {
			resp, _ = s.get("https://localhost/", "")
		}
		if resp == nil || resp.StatusCode != http.StatusTooManyRequests || !resp.Close {
			t.Fatalf("over the rate, upgrade %v: %v, want 429 and the end of the connection", upgrade, resp)
		}
		wait, err := strconv.Atoi(resp.Header.Get("Retry-After"))
		// A tenth of a connection a hundredth of a second each: 10 s for a page.
		if most := map[bool]int{true: 100, false: 10}[upgrade]; err != nil || wait < 1 || wait > most {
			t.Errorf("over the rate, upgrade %v: Retry-After %q, want at most %d", upgrade, resp.Header.Get("Retry-After"), most)
		}
	}
	unheard := 0
	for range 2 * clients * connectionsPerJoin {
		conn, err := net.Dial("tcp", s.addrs.HTTPS[0])
		if err != nil {
			unheard++
			continue
		}
		_, err = io.WriteString(conn, "GET / HTTP/1.1\r\n\r\n")
		if b, _ := io.ReadAll(conn); err != nil || len(b) == 0 {
			unheard++
		}
		conn.Close()
	}
	const taken = clients + 2 // above
	if want := 2*clients*connectionsPerJoin - (clients*connectionsPerJoin - taken); unheard != want {
		t.Errorf("%d connections were closed without an answer, want %d", unheard, want)
	}
	_, body := s.get("http://"+s.addrs.Admin+"/metrics", "")
	for _, want := range []string{
		`plusminus_refusals_total{reason="address_rate"} 2`,
		fmt.Sprintf(`plusminus_refusals_total{reason="address_connections"} %d`, unheard),
	} {
		if !strings.Contains(body, want+"\n") {
			t.Errorf("/metrics has no %s", want)
		}
	}
}

// Each reason and outcome is in /metrics from the start, and docs/limits.md explains it.
func TestReasonsAreTold(t *testing.T) {
	s := start(t, "-connection-rate", "0")
	_, metrics := s.get("http://"+s.addrs.Admin+"/metrics", "")
	page, err := os.ReadFile("docs/limits.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		fmt.Sprintf("at %d KB each no more than half of the memory | 503", clientMemory>>10),
		fmt.Sprintf("at %d KB each no more than an eighth of the memory", arrivalMemory>>10),
		fmt.Sprintf("Of the file descriptors %d (", mostReserve),
		fmt.Sprintf("told %.0f %% of the memory limit", memoryRatio*100),
	} {
		if !strings.Contains(strings.Join(strings.Fields(string(page)), " "), want) {
			t.Errorf("docs/limits.md does not say %q", want)
		}
	}
	tallies := hub.NewEvents(nil, nil).Tallies()
	told := func(name, label, value string) {
		t.Helper()
		if !strings.Contains(metrics, fmt.Sprintf("%s=%q} ", label, value)) || !strings.Contains(metrics, "\nplusminus_"+name+"{") {
			t.Errorf("/metrics has no %s with %s=%q", name, label, value)
		}
		if !bytes.Contains(page, []byte("`"+value+"`")) {
			t.Errorf("docs/limits.md does not explain `%s` of %s", value, name)
		}
	}
	for reason := range tallies.Refusals {
		told("refusals_total", "reason", string(reason))
	}
	for reason := range tallies.Closes {
		told("closes_total", "reason", string(reason))
	}
	for outcome := range tallies.Handshakes {
		told("handshakes_total", "outcome", string(outcome))
	}
	if !strings.Contains(metrics, "\nplusminus_panics_total 0\n") {
		t.Error("/metrics has no panics_total")
	}
}

func TestRoom(t *testing.T) {
	const gb = 1 << 30
	for _, tt := range []struct {
		files, memory     uint64
		clients, arrivals int
	}{
		{20000, 64 * gb, 15949, 3987},
		{1 << 20, gb, 16384, 2048},
		{1 << 20, gb / 16, 1024, 128},
		{1024, gb, 768, 192},
		{128, gb, 77, 19},
		{64, gb, 39, 9},
		{1 << 20, 0, 1, 1},
	} {
		got := roomFor(tt.files, tt.memory)
		if got.clients != tt.clients || got.arrivals != tt.arrivals {
			t.Errorf("roomFor(%d, %d) = %+v, want %d clients, %d arrivals", tt.files, tt.memory, got, tt.clients, tt.arrivals)
		}
		if left := int(tt.files) - got.clients - got.arrivals; left < int(min(mostReserve, tt.files/4)) {
			t.Errorf("roomFor(%d, %d) leaves %d descriptors", tt.files, tt.memory, left)
		}
	}
	here := roomFor(1024, gb/16) // 1,024 clients' worth of memory, 960 descriptors for the public
	for _, tt := range []struct {
		asked, want int
		err         string
	}{
		{0, 768, ""},
		{10, 10, ""},
		{768, 768, ""},
		{800, 800, "memory"},
		{5000, 832, "file limit"},
	} {
		got, err := here.fit(tt.asked)
		if got != tt.want || (err == nil) != (tt.err == "") || err != nil && !strings.Contains(err.Error(), tt.err) {
			t.Errorf("fit(%d) = %d, %v, want %d and %q", tt.asked, got, err, tt.want, tt.err)
		}
	}
}

// A handler's panic ends its connection, and is told once.
func TestHandlerPanics(t *testing.T) {
	var lines bytes.Buffer
	log := slog.New(slog.NewTextHandler(&lines, nil))
	cfg, err := parse("-connection-rate 0")
	if err != nil {
		t.Fatal(err)
	}
	events := hub.NewEvents(log, nil)
	public := &site{domains: cfg.domains, events: events} // no page: a nil pointer
	srv := httptest.NewUnstartedServer(cfg.door(events).handler(public))
	srv.Config.ErrorLog = slog.NewLogLogger(log.Handler(), slog.LevelWarn)
	srv.Start()
	defer srv.Close()
	for range 2 {
		req, err := http.NewRequest(http.MethodPost, srv.URL, nil) // a POST is not tried again
		if err != nil {
			t.Fatal(err)
		}
		req.Host = "localhost"
		if resp, err := srv.Client().Do(req); err == nil {
			t.Errorf("a handler that panics answers %s", resp.Status)
		}
	}
	srv.Close()
	if n := events.Tallies().Panics; n != 2 {
		t.Errorf("%d panics are counted, want 2", n)
	}
	if got := lines.String(); strings.Count(got, "\n") != 1 || !strings.Contains(got, "level=ERROR") || !strings.Contains(got, "site.go") {
		t.Errorf("the log has\n%s\nwant one line with the stack", got)
	}
}

// With few file descriptors, strangers who take all that they can leave enough for clients,
// for visitors of the page, and for the operator.
func TestFewDescriptors(t *testing.T) {
	const files = 96
	room := roomFor(files, 1<<40)
	cmd := command(t)
	cmd.Args = append([]string{"/bin/sh", "-c", fmt.Sprintf("ulimit -n %d && exec %q \"$@\"", files, cmd.Path), "plusminus"},
		"-https", "127.0.0.1:0", "-http", "off", "-admin", "127.0.0.1:0", "-max-clients-per-ip", "0", "-log-format", "json")
	cmd.Path = "/bin/sh"
	stderr, err := cmd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	log := json.NewDecoder(stderr)
	s := &server{t: t, roots: x509.NewCertPool()}
	for s.addrs.Admin == "" {
		var line struct {
			Msg   string
			HTTPS []string
			Admin string
		}
		if err := log.Decode(&line); err != nil {
			t.Fatalf("reading the log: %v", err)
		}
		s.addrs.HTTPS, s.addrs.Admin = line.HTTPS, line.Admin
	}
	rest := make(chan string, 1)
	go func() {
		b, _ := io.ReadAll(io.MultiReader(log.Buffered(), stderr))
		rest <- string(b)
	}()
	pem, err := os.ReadFile(filepath.Join(cmd.Dir, "data", "local-ca", "root.pem"))
	if err != nil {
		t.Fatal(err)
	}
	s.roots.AppendCertsFromPEM(pem)

	silent := func() {
		for range 2 * files {
			conn, err := net.Dial("tcp", s.addrs.HTTPS[0])
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { conn.Close() })
		}
	}
	silent()
	for i := range room.clients {
		ws := s.join("wss://localhost/")
		if i == 0 {
			wantRead(t, ws, `{"count":1,"type":"users"}`, `{"type":"state","value":0}`)
		}
	}
	silent()
	if _, resp, err := s.dial("wss://localhost/", websocket.DialOptions{}); err == nil || resp == nil || resp.StatusCode != http.StatusServiceUnavailable || resp.Header.Get("Retry-After") == "" {
		t.Errorf("one client more: %v, %v, want 503 and Retry-After", resp, err)
	}
	for _, url := range []string{"https://localhost/", "http://" + s.addrs.Admin + "/readyz"} {
		if resp, body := s.get(url, ""); resp.StatusCode != 200 {
			t.Errorf("GET %s: %s %q, want 200", url, resp.Status, body)
		}
	}
	_, metrics := s.get("http://"+s.addrs.Admin+"/metrics", "")
	for _, want := range []string{
		fmt.Sprintf("plusminus_clients %d", room.clients),
		`plusminus_refusals_total{reason="full"} 1`,
		`plusminus_refusals_total{reason="accept_error"} 0`,
	} {
		if !strings.Contains(metrics, want+"\n") {
			t.Errorf("/metrics has no %s", want)
		}
	}
	if err := cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	output := <-rest
	if err := cmd.Wait(); err != nil {
		t.Errorf("after SIGTERM: %v, want exit status 0", err)
	}
	for _, want := range []string{`"reason":"crowded"`, `"reason":"full"`} {
		if n := strings.Count(output, want); n != 1 {
			t.Errorf("the log has %d lines with %s, want 1:\n%s", n, want, output)
		}
	}
}
