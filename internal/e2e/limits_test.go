package e2e

import (
	"bytes"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/coder/websocket"

	"plusminus/hub"
	"plusminus/internal/ingress"
	"plusminus/internal/machine"
)

// TestAddressRates checks the limits of one address. Over the first limit it gets 429 with Retry-After. Over the second
// one the server closes its connections without an answer.
func TestAddressRates(t *testing.T) {
	t.Parallel()
	const (
		clients            = 10 // the smallest burst; with fewer clients the burst would exceed the cap
		connectionsPerJoin = 4  // TCP connections for each WebSocket connection
	)
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
		// A request costs a tenth of a connection. At 0.01 connections a second that takes 10 s.
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
	const taken = clients + 2 // connections of the lines above
	if want := 2*clients*connectionsPerJoin - (clients*connectionsPerJoin - taken); unheard != want {
		t.Errorf("the server closed %d connections without an answer, want %d", unheard, want)
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

// TestReasonsAreDocumented checks that /metrics has each reason and outcome from the start, and that docs/limits.md
// explains it.
func TestReasonsAreDocumented(t *testing.T) {
	t.Parallel()
	s := start(t, "-connection-rate", "0")
	_, metrics := s.get("http://"+s.addrs.Admin+"/metrics", "")
	page, err := os.ReadFile("docs/limits.md")
	if err != nil {
		t.Fatal(err)
	}
	counts := hub.NewEvents(hub.EventsConfig{Refusals: ingress.Refusals()}).Counts()
	documented := func(name, label, value string) {
		t.Helper()
		if !strings.Contains(metrics, fmt.Sprintf("%s=%q} ", label, value)) || !strings.Contains(metrics, "\nplusminus_"+name+"{") {
			t.Errorf("/metrics has no %s with %s=%q", name, label, value)
		}
		if !bytes.Contains(page, []byte("`"+value+"`")) {
			t.Errorf("docs/limits.md does not explain `%s` of %s", value, name)
		}
	}
	for reason := range counts.Refusals {
		documented("refusals_total", "reason", string(reason))
	}
	for reason := range counts.Closes {
		documented("closes_total", "reason", string(reason))
	}
	for outcome := range ingress.NewGate(ingress.GateConfig{}).Handshakes() {
		documented("handshakes_total", "outcome", string(outcome))
	}
	if !strings.Contains(metrics, "\nplusminus_panics_total 0\n") {
		t.Error("/metrics has no panics_total")
	}
}

// TestFewDescriptors limits the process to few file descriptors, and opens more silent connections than that. Clients,
// visitors of the page, and the admin listener still get descriptors.
func TestFewDescriptors(t *testing.T) {
	t.Parallel()
	const files = 96
	capacity := machine.Machine{Files: files, Memory: 1 << 40}.Capacity()
	cmd := command(t)
	cmd.Args = append([]string{"/bin/sh", "-c", fmt.Sprintf("ulimit -n %d && exec %q \"$@\"", files, cmd.Path), "plusminus"},
		"-https", "127.0.0.1:0", "-http", "off", "-admin", "127.0.0.1:0", "-max-clients-per-ip", "0", "-drain", "1s", "-log-format", "json")
	cmd.Path = "/bin/sh"
	stderr, err := cmd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	log := json.NewDecoder(stderr)
	s := &plusminus{t: t, roots: x509.NewCertPool()}
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
	for i := range capacity.Clients {
		ws := s.join("wss://localhost/")
		if i == 0 {
			wantRead(t, ws, `{"count":1,"type":"users"}`, `{"type":"state","value":0}`)
		}
	}
	silent()
	if _, resp, err := s.dial("wss://localhost/", websocket.DialOptions{}); err == nil || resp == nil || resp.StatusCode != http.StatusServiceUnavailable || resp.Header.Get("Retry-After") == "" {
		t.Errorf("one client more than fit: response %v, %v, want 503 and Retry-After", resp, err)
	}
	for _, url := range []string{"https://localhost/", "http://" + s.addrs.Admin + "/readyz"} {
		if resp, body := s.get(url, ""); resp.StatusCode != 200 {
			t.Errorf("GET %s: %s %q, want 200", url, resp.Status, body)
		}
	}
	_, metrics := s.get("http://"+s.addrs.Admin+"/metrics", "")
	for _, want := range []string{
		fmt.Sprintf("plusminus_clients %d", capacity.Clients),
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
