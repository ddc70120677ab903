package e2e

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"plusminus/internal/ingress"
)

// A nameFlood sends new names from new addresses, which it states in PROXY headers. Its methods are safe from any goroutine.
type nameFlood struct {
	addr string       // of the server
	each int          // names for each address
	sent atomic.Int64 // addresses so far

	made, full atomic.Int64 // answers
}

// run sends names until n addresses have sent theirs.
func (f *nameFlood) run(t *testing.T, n int) {
	t.Helper()
	var senders sync.WaitGroup
	until := f.sent.Load() + int64(n)
	for range 8 {
		senders.Go(func() {
			for {
				i := f.sent.Add(1) - 1
				if i >= until {
					f.sent.Add(-1)
					return
				}
				if err := f.send(i); err != nil {
					t.Errorf("address %d: %v", i, err)
					return
				}
			}
		})
	}
	senders.Wait()
}

// send sends the names of the address number i on one connection.
func (f *nameFlood) send(i int64) error {
	nc, err := net.Dial("tcp", f.addr)
	if err != nil {
		return err
	}
	defer nc.Close()
	nc.(*net.TCPConn).SetLinger(0) // otherwise the ports of closed connections run out
	var out strings.Builder
	fmt.Fprintf(&out, "PROXY TCP4 10.%d.%d.%d 127.0.0.1 4711 80\r\n", i>>16&0xff, i>>8&0xff, i&0xff)
	for k := range f.each {
		fmt.Fprintf(&out, "POST /c/flood.%d.%d HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n%s", i, k, len(plus), plus)
	}
	if _, err := io.WriteString(nc, out.String()); err != nil {
		return err
	}
	in := bufio.NewReader(nc)
	for range f.each {
		resp, err := http.ReadResponse(in, nil)
		if err != nil {
			return err
		}
		body, err := io.ReadAll(resp.Body)
		switch {
		case err != nil:
			return err
		case resp.StatusCode == http.StatusOK && string(body) == "{\"value\":1}\n":
			f.made.Add(1)
		case resp.StatusCode == http.StatusServiceUnavailable && strings.Contains(string(body), `"too_many_counters"`):
			f.full.Add(1)
		default:
			return fmt.Errorf("answer %s %q", resp.Status, body)
		}
	}
	return nil
}

// memory returns the resident memory of the process in bytes.
func (p *process) memory() float64 {
	p.t.Helper()
	n, err := strconv.ParseFloat(p.metric("process_resident_memory_bytes"), 64)
	if err != nil {
		p.t.Fatal(err)
	}
	return n
}

// TestFloodOfNames sends new names from many addresses to a server that lets strangers make counters. At its cap the server
// refuses them, its memory does not grow, a client of another counter is served, and the log has a few lines.
func TestFloodOfNames(t *testing.T) {
	t.Parallel()
	// The first part fills the store, and in the long form the tables of limits by address, of 2*65,536 each.
	most, first, second, each := 1_000, 1_000, 7_000, 4
	if *long {
		most, first, second = 10_000, 150_000, 100_000
	}
	p := &process{output: new(lockedBuffer)}
	p.t = t
	p.addrs = ingress.Addresses{HTTP: freeAddr(t), Admin: freeAddr(t)}
	p.args = []string{"-plain", "-domain", "localhost", "-data", t.TempDir(), "-http", p.addrs.HTTP, "-admin", p.addrs.Admin, "-log-format", "text",
		"-proxy-protocol", "127.0.0.1", "-counters", "*", "-max-counters", strconv.Itoa(most)}
	t.Cleanup(func() {
		p.kill()
		if t.Failed() {
			text := p.output.String()
			t.Logf("the process logged:\n%s", text[max(0, len(text)-8000):])
		}
	})
	p.start()
	p.waitUp()
	began := time.Now()

	visitor := p.plusminus // its connections have a PROXY header; those to the admin listener have none
	visitor.sayFirst(header(t, 1, "192.0.2.1"))
	ws := visitor.join("ws://localhost/c/likes")
	wantRead(t, ws, `{"count":1,"type":"users"}`, `{"type":"state","value":0}`)
	acted := 0
	act := func() {
		send(t, ws, plus)
		acted++
		wantRead(t, ws, fmt.Sprintf(`{"type":"state","value":%d}`, acted))
	}
	act() // makes the counter

	flood := &nameFlood{addr: p.addrs.HTTP, each: each}
	run := func(n int) {
		over := make(chan struct{})
		go func() {
			defer close(over)
			flood.run(t, n)
		}()
		for ticker := time.Tick(100 * time.Millisecond); ; act() { // as often as -action-rate permits by default
			select {
			case <-ticker:
			case <-over:
				return
			}
		}
	}
	run(first)
	before := p.memory()
	run(second)
	after := p.memory()
	t.Logf("%d names in %v: %.0f MB, then %.0f MB; meanwhile %d actions of a visitor", flood.sent.Load()*int64(each), time.Since(began), before/1e6, after/1e6, acted)
	if after > 1.5*before+16e6 {
		t.Errorf("%.0f MB after the flood, want about the %.0f MB from before its second part", after/1e6, before/1e6)
	}

	names := int64(first+second) * int64(each)
	if made, full := flood.made.Load(), flood.full.Load(); made != int64(most-1) || made+full != names {
		t.Errorf("of %d names %d were made and %d refused, want %d made, beside the visitor's, and the others refused", names, made, full, most-1)
	}
	for name, want := range map[string]string{
		"plusminus_counters":                                           strconv.Itoa(most),
		"plusminus_counters_watched":                                   "1",
		"plusminus_counters_made_total":                                strconv.Itoa(most),
		`plusminus_counters_refused_total{reason="too_many_counters"}`: strconv.FormatFloat(float64(flood.full.Load()), 'g', -1, 64),
	} {
		if got := p.metric(name); got != want {
			t.Errorf("%s is %s, want %s", name, got, want)
		}
	}
	waitUntil(t, "the goroutines of the flood's connections to end", func() bool {
		n, err := strconv.Atoi(p.metric("go_goroutines"))
		return err == nil && n < 100
	})
	if _, body := visitor.request("GET", "/c/likes/state", "", nil); body != fmt.Sprintf(`{"value":%d,"users":1}`, acted) {
		t.Errorf("GET /c/likes/state = %s, want the value %d", body, acted)
	}
	lines := strings.Split(strings.TrimSpace(p.output.String()), "\n")
	atMost, sampled := 2+int(time.Since(began)/time.Minute), 0
	for _, line := range lines {
		if strings.Contains(line, `msg="counter not made"`) {
			sampled++
		}
	}
	if sampled == 0 || sampled > atMost || len(lines) > atMost+8 {
		t.Errorf("the log has %d lines, %d of them about names, want 1 to %d of these and few others", len(lines), sampled, atMost)
	}
}
