package hub

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"
)

// streamPeer is a client of an event stream that collects the events, until the stream ends.
type streamPeer struct {
	t    testing.TB
	conn net.Conn
	head *http.Response

	mu    sync.Mutex
	got   []string
	retry time.Duration // from the last retry field
	err   error         // why the stream ended
	end   time.Time     // when it ended
}

// ask sends a request for the stream with further header lines. It returns a peer with the head of the answer,
// and a reader for the events.
func (f *fakeHub) ask(method string, lines ...string) (*streamPeer, *bufio.Reader) {
	f.t.Helper()
	conn, err := f.ln.dial()
	if err != nil {
		f.t.Fatal(err)
	}
	f.t.Cleanup(func() { conn.Close() })
	lines = append([]string{method + " /events HTTP/1.1", "Host: hub.test"}, lines...)
	if _, err := io.WriteString(conn, strings.Join(lines, "\r\n")+"\r\n\r\n"); err != nil {
		f.t.Fatal(err)
	}
	in := bufio.NewReaderSize(conn, 16) // a small buffer, for peers that do not read
	head, err := http.ReadResponse(in, &http.Request{Method: method})
	if err != nil {
		f.t.Fatal(err)
	}
	return &streamPeer{t: f.t, conn: conn, head: head}, in
}

// listen joins with a stream that reads.
func (f *fakeHub) listen(lines ...string) *streamPeer {
	f.t.Helper()
	p, in := f.ask("GET", lines...)
	if p.head.StatusCode != http.StatusOK {
		f.t.Fatalf("GET /events = %s", p.head.Status)
	}
	go p.read(in)
	synctest.Wait()
	return p
}

func (p *streamPeer) read(in *bufio.Reader) {
	for {
		event, err := readEvent(in)
		p.mu.Lock()
		if err != nil {
			p.err, p.end = err, time.Now()
			p.mu.Unlock()
			p.conn.Close()
			return
		}
		var retry int
		switch data, isData := strings.CutPrefix(event, "data: "); {
		case isData:
			var m message
			if err := json.Unmarshal([]byte(data), &m); err != nil {
				p.t.Errorf("a message is not JSON: %q", data)
			}
			p.got = append(p.got, m.String())
		case event == ":":
			p.got = append(p.got, event)
		default:
			if n, _ := fmt.Sscanf(event, "retry: %d", &retry); n != 1 {
				p.t.Errorf("unknown event %q", event)
			}
			p.retry = time.Duration(retry) * time.Millisecond
		}
		p.mu.Unlock()
	}
}

// readEvent reads one line and the blank line after it.
func readEvent(in *bufio.Reader) (string, error) {
	line, err := in.ReadString('\n')
	if err != nil {
		return "", err
	}
	if blank, err := in.ReadString('\n'); err != nil || blank != "\n" {
		return "", fmt.Errorf("%q is followed by %q, %v, want a blank line", line, blank, err)
	}
	return strings.TrimSuffix(line, "\n"), nil
}

// take returns the messages and comments that have been received since the last call.
func (p *streamPeer) take() []string {
	synctest.Wait()
	p.mu.Lock()
	defer p.mu.Unlock()
	got := p.got
	p.got = nil
	return got
}

// want checks what has been received since the last call of want or take.
func (p *streamPeer) want(want ...string) {
	p.t.Helper()
	if got := p.take(); !slices.Equal(got, want) {
		p.t.Errorf("the stream received %q, want %q", got, want)
	}
}

// wantRetry checks the last retry field.
func (p *streamPeer) wantRetry(least, most time.Duration) {
	p.t.Helper()
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.retry < least || p.retry > most {
		p.t.Errorf("retry is %v, want between %v and %v", p.retry, least, most)
	}
}

// ended returns when the stream ended, and why. err is nil if the stream has not ended.
func (p *streamPeer) ended() (when time.Time, err error) {
	synctest.Wait()
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.end, p.err
}

// TestStream checks that a stream gets the same messages as a WebSocket, and counts as a client like any other.
func TestStream(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newFakeHub(t, Config{Shards: 1})
		defer h.stop()
		a := h.join()
		a.want("users 1", "state 0")
		s := h.listen("Last-Event-ID: 7")
		for name, want := range map[string]string{
			"Content-Type":      "text/event-stream",
			"Cache-Control":     "no-store, no-transform",
			"X-Accel-Buffering": "no",
			"Vary":              "Origin",
		} {
			if got := s.head.Header.Get(name); got != want {
				t.Errorf("%s is %q, want %q", name, got, want)
			}
		}
		if s.head.Header.Get("Date") == "" || !s.head.Close || len(s.head.TransferEncoding) > 0 {
			t.Errorf("the head is %+v, want a Date, a close of the connection, and no chunked encoding", s.head)
		}
		s.want("users 2", "state 0")
		s.wantRetry(retryLeast, retryMost)
		if got := s.conn.(*fakeConn).peer.acksWithin; got != ackTimeout {
			t.Errorf("expectAcks was called with %v, want %v", got, ackTimeout)
		}
		time.Sleep(usersEvery)
		a.want("users 2")
		a.send(plus)
		a.send(minus)
		a.send(minus)
		s.want("state 1", "state 0", "state -1")
		b := h.join()
		b.want("users 3", "state -1")
		time.Sleep(usersEvery)
		s.want("users 3")
		if st := h.Stats(); st.Users != 3 || st.Clients != 3 {
			t.Errorf("Stats = %+v, want 3 users and clients", st)
		}
		s.conn.Close()
		synctest.Wait()
		time.Sleep(usersEvery)
		b.want("users 2")
		if n := h.events.Counts().Closes[ReasonGone]; n != 1 {
			t.Errorf("Counts().Closes[%q] = %d, want 1", ReasonGone, n)
		}
		if n := h.Counts().Joined; n != 3 {
			t.Errorf("Counts().Joined = %d, want 3", n)
		}
	})
}

// TestStreamMerges checks that values merge as for WebSockets: a stream is sent each of up to recentValues
// values, or only the newest.
func TestStreamMerges(t *testing.T) {
	for _, n := range []int{recentValues, recentValues + 1} {
		synctest.Test(t, func(t *testing.T) {
			h := newFakeHub(t, Config{Store: &slowStore{delay: time.Second}})
			defer h.stop()
			a, s := h.join(), h.listen()
			a.take()
			s.take()
			for range 1 + n {
				a.send(plus)
			}
			time.Sleep(usersEvery)
			a.take()
			time.Sleep(time.Second)
			s.want("state 1")
			time.Sleep(time.Second)
			got := s.take()
			if want := a.take(); !slices.Equal(got, want[1:]) { // the first of a's is state 1
				t.Errorf("the stream received %q, the WebSocket %q", got, want[1:])
			}
			if newest := fmt.Sprint("state ", 1+n); got[len(got)-1] != newest || (len(got) == 1) != (n > recentValues) {
				t.Errorf("%d values: the stream received %q", n, got)
			}
		})
	}
}

// TestStreamBlocked checks a stream whose peer does not read. It is sent the newest value when the peer reads
// again, and is disconnected if the peer never does.
func TestStreamBlocked(t *testing.T) {
	for _, stalls := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			h := newFakeHub(t, Config{Shards: 1})
			defer h.stop()
			a := h.join()
			s, in := h.ask("GET")
			synctest.Wait()
			for h.Stats().Blocked == 0 {
				a.send(plus)
			}
			for range 100 {
				a.send(plus)
			}
			a.take()
			if stalls {
				time.Sleep(stallTimeout + flushEvery + usersEvery)
				a.want("users 1")
				if n := h.events.Counts().Closes[ReasonStalled]; n != 1 {
					t.Errorf("%d clients closed as stalled, want 1", n)
				}
				return
			}
			time.Sleep(stallTimeout / 2)
			go s.read(in)
			time.Sleep(2 * flushEvery)
			got := s.take()
			if last, newest := got[len(got)-1], fmt.Sprint("state ", h.Stats().Value); last != newest || len(got) >= 100 {
				t.Errorf("%d messages, the last of them %q, want fewer than 100 that end with %q", len(got), last, newest)
			}
			a.send(plus)
			s.want(fmt.Sprint("state ", h.Stats().Value))
		})
	}
}

// TestStreamKeptAlive checks that an idle stream is sent comments, and that its peer need not answer.
func TestStreamKeptAlive(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newFakeHub(t, Config{})
		defer h.stop()
		s := h.listen()
		s.want("users 1", "state 0")
		time.Sleep((pingEvery - 1) * time.Second)
		s.want()
		time.Sleep((pingJitter + 2) * time.Second)
		s.want(":")
		const long = 10 * time.Minute
		time.Sleep(long)
		if got := s.take(); len(got) < int(long/time.Second)/(pingEvery+pingJitter+1) || len(got) > int(long/time.Second)/pingEvery {
			t.Errorf("%d comments in %v, want one every %d to %d seconds", len(got), long, pingEvery, pingEvery+pingJitter)
		}
		if _, err := s.ended(); err != nil {
			t.Errorf("the stream ended: %v", err)
		}
		if st, n := h.Stats(), h.events.Counts().Closes[ReasonSilent]; st.Clients != 1 || n != 0 {
			t.Errorf("%d clients, %d closed as silent, want 1 and none", st.Clients, n)
		}
	})
}

// TestStreamVanishes checks that a peer whose system acknowledges nothing is disconnected, for ReasonSilent.
func TestStreamVanishes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		conn := &vanishingConn{gone: make(chan struct{})}
		h := newFakeHub(t, Config{Shards: 1})
		defer h.stop()
		c := &client{hub: h.Hub, owner: h.shards[0], index: -1, first: watch{counter: h.standard}, encoding: inStream, wire: clientWire{Conn: conn, sock: conn}}
		if reason, _ := h.admit(c); reason != "" {
			t.Fatal(reason)
		}
		go c.serve()
		synctest.Wait()
		if st := h.Stats(); st.Clients != 1 {
			t.Fatalf("%d clients, want 1", st.Clients)
		}
		close(conn.gone)
		synctest.Wait()
		if st, n := h.Stats(), h.events.Counts().Closes[ReasonSilent]; st.Clients != 0 || n != 1 {
			t.Errorf("%d clients, %d closed as silent, want 0 and 1", st.Clients, n)
		}
	})
}

// vanishingConn is a socket whose Read fails with ETIMEDOUT once gone is closed.
type vanishingConn struct {
	sinkConn
	gone chan struct{}
}

func (c *vanishingConn) Read([]byte) (int, error) {
	<-c.gone
	return 0, &net.OpError{Op: "read", Net: "tcp", Err: os.NewSyscallError("read", syscall.ETIMEDOUT)}
}

func (c *vanishingConn) Close() error { return nil }

// TestStreamDrains checks that a shutdown ends streams in the same slices as WebSockets, each with a retry
// field, and that Shutdown does not wait for answers.
func TestStreamDrains(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const each, left = 100, time.Second
		h := newFakeHub(t, Config{Shards: 2})
		var streams []*streamPeer
		for range each {
			streams = append(streams, h.listen())
			h.join()
		}
		began := time.Now()
		ctx, cancel := context.WithTimeout(t.Context(), left)
		defer cancel()
		down := make(chan error, 1)
		go func() { down <- h.Shutdown(ctx) }()
		const spread = 2 * each * drainPace
		time.Sleep(spread / 2)
		open := 0
		for _, s := range streams {
			if _, err := s.ended(); err == nil {
				open++
			} else if !errors.Is(err, io.EOF) {
				t.Fatalf("a stream ended with %v, want EOF", err)
			}
		}
		if open < each/4 || open > each*3/4 {
			t.Errorf("%d of %d streams are open after half of the time, want about half", open, each)
		}
		if err := <-down; err != nil {
			t.Errorf("Shutdown = %v", err)
		}
		if took := time.Since(began); took > spread {
			t.Errorf("Shutdown took %v, want at most %v: all peers answer at once", took, spread)
		}
		at := map[time.Time]bool{}
		hints := map[time.Duration]bool{}
		for _, s := range streams {
			when, err := s.ended()
			if !errors.Is(err, io.EOF) {
				t.Errorf("a stream ended with %v, want EOF", err)
			}
			at[when] = true
			s.wantRetry(restartLeast, restartMost)
			hints[s.retry] = true
		}
		if len(at) < 3 || len(hints) < each/2 {
			t.Errorf("streams ended at %d times with %d retry values, want slices and random values", len(at), len(hints))
		}
		if n := h.events.Counts().Closes[ReasonStopping]; n != 2*each {
			t.Errorf("Counts().Closes[%q] = %d, want %d", ReasonStopping, n, 2*each)
		}
	})
}

// TestStreamDrainsBlocked checks a stream that is blocked during a shutdown. It ends when its peer reads again,
// or after the time for answers if the peer does not.
func TestStreamDrainsBlocked(t *testing.T) {
	for _, reads := range []bool{true, false} {
		synctest.Test(t, func(t *testing.T) {
			h := newFakeHub(t, Config{Shards: 1})
			a := h.join()
			s, in := h.ask("GET")
			synctest.Wait()
			for h.Stats().Blocked == 0 {
				a.send(plus)
			}
			began := time.Now()
			down := make(chan error, 1)
			go func() { down <- h.Shutdown(t.Context()) }()
			time.Sleep(time.Second)
			if reads {
				go s.read(in)
				time.Sleep(2 * flushEvery)
				if _, err := s.ended(); !errors.Is(err, io.EOF) {
					t.Errorf("the stream ended with %v, want EOF", err)
				}
				s.wantRetry(restartLeast, restartMost)
			}
			if err := <-down; err != nil {
				t.Errorf("Shutdown = %v", err)
			}
			if took := time.Since(began); (took == closeTimeout) == reads {
				t.Errorf("Shutdown took %v while the peer reads: %v", took, reads)
			}
		})
	}
}

// TestStreamBytesAfterRequest checks that bytes that a peer sends after its request are dropped, and that more
// than MaxMessage end the stream.
func TestStreamBytesAfterRequest(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newFakeHub(t, Config{})
		defer h.stop()
		s := h.listen()
		s.take()
		for range MaxMessage {
			if _, err := io.WriteString(s.conn, "x"); err != nil {
				t.Fatal(err)
			}
		}
		synctest.Wait()
		if _, err := s.ended(); err != nil || h.Stats().Clients != 1 {
			t.Fatalf("the stream ended with %v, want it open", err)
		}
		h.join()
		time.Sleep(usersEvery)
		s.want("users 2")
		if _, err := io.WriteString(s.conn, "x"); err != nil {
			t.Fatal(err)
		}
		if _, err := s.ended(); err == nil {
			t.Error("the stream is still open")
		}
		if n := h.events.Counts().Closes[ReasonFlood]; n != 1 {
			t.Errorf("Counts().Closes[%q] = %d, want 1", ReasonFlood, n)
		}
	})
}

// TestStreamRequests checks which requests for a stream are refused, and how.
func TestStreamRequests(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		own, err := ParseOrigin("https://friend.example")
		if err != nil {
			t.Fatal(err)
		}
		h := newFakeHub(t, Config{Origins: []Origin{own}})
		defer h.stop()
		for _, tt := range []struct {
			name, method string
			lines        []string
			status       int
			cors         string
			reason       Reason
		}{
			{"not a browser", "GET", nil, 200, "", ""},
			{"our own page", "GET", []string{"Sec-Fetch-Site: same-origin"}, 200, "", ""},
			{"a person", "GET", []string{"Sec-Fetch-Site: none"}, 200, "", ""},
			{"a link", "GET", []string{"Sec-Fetch-Site: cross-site", "Sec-Fetch-Dest: document"}, 200, "", ""},
			{"a foreign page's frame", "GET", []string{"Sec-Fetch-Site: cross-site", "Sec-Fetch-Dest: iframe"}, 403, "", ReasonOrigin},
			{"an allowed page", "GET", []string{"Origin: https://friend.example", "Sec-Fetch-Site: cross-site"}, 200, "https://friend.example", ""},
			{"only the head", "HEAD", nil, 200, "", ""},
			{"a foreign page", "GET", []string{"Origin: https://evil.example", "Sec-Fetch-Site: cross-site"}, 403, "", ReasonOrigin},
			{"a foreign page's head", "HEAD", []string{"Origin: https://evil.example"}, 403, "", ReasonOrigin},
			{"two origins", "GET", []string{"Origin: https://friend.example", "Origin: https://evil.example"}, 403, "", ReasonOrigin},
			{"an empty origin", "GET", []string{"Origin:"}, 403, "", ReasonOrigin},
			{"a foreign page's image", "GET", []string{"Sec-Fetch-Site: cross-site"}, 403, "", ReasonOrigin},
			{"a sibling's image", "GET", []string{"Sec-Fetch-Site: same-site"}, 403, "", ReasonOrigin},
			{"another method", "POST", []string{"Content-Length: 0"}, 405, "", ReasonBadHandshake},
			{"a body", "GET", []string{"Content-Length: 1"}, 400, "", ReasonBadHandshake},
			{"a body in chunks", "GET", []string{"Transfer-Encoding: chunked"}, 400, "", ReasonBadHandshake},
		} {
			joins := tt.status == 200 && tt.method == "GET"
			before := h.events.Counts().Refusals[tt.reason]
			s, _ := h.ask(tt.method, tt.lines...)
			synctest.Wait()
			if s.head.StatusCode != tt.status || s.head.Header.Get("Access-Control-Allow-Origin") != tt.cors {
				t.Errorf("%s: %s, Access-Control-Allow-Origin %q, want %d and %q", tt.name, s.head.Status, s.head.Header.Get("Access-Control-Allow-Origin"), tt.status, tt.cors)
			}
			if got := s.head.Header.Get("Vary"); got != "Origin" {
				t.Errorf("%s: Vary is %q, want Origin", tt.name, got)
			}
			if got := s.head.Header.Get("Content-Type"); (got == "text/event-stream") != (tt.status == 200) {
				t.Errorf("%s: Content-Type is %q", tt.name, got)
			}
			if n := h.Stats().Clients; (n == 1) != joins || n > 1 {
				t.Errorf("%s: %d clients", tt.name, n)
			}
			if n := h.events.Counts().Refusals[tt.reason] - before; tt.reason != "" && n != 1 {
				t.Errorf("%s: Refusals[%q] grew by %d, want 1", tt.name, tt.reason, n)
			}
			s.conn.Close()
			synctest.Wait()
			if n := h.admitted.total; n != 0 {
				t.Fatalf("%s: %d clients are admitted after the end, want 0", tt.name, n)
			}
		}
	})
}

// TestStreamCaps checks that the caps count WebSockets and streams together.
func TestStreamCaps(t *testing.T) {
	for _, tt := range []struct {
		cfg    Config
		status int
		reason Reason
	}{
		{Config{MaxClients: 2}, http.StatusServiceUnavailable, ReasonFull},
		{Config{MaxClientsPerIP: 2}, http.StatusTooManyRequests, ReasonAddressFull},
	} {
		synctest.Test(t, func(t *testing.T) {
			h := newFakeHub(t, tt.cfg)
			defer h.stop()
			h.join()
			first := h.listen()
			s, _ := h.ask("GET")
			if s.head.StatusCode != tt.status || s.head.Header.Get("Retry-After") == "" {
				t.Errorf("%s: third client: %s, Retry-After %q, want %d and a Retry-After", tt.reason, s.head.Status, s.head.Header.Get("Retry-After"), tt.status)
			}
			if resp := h.refused(handshakeHeader()); resp.StatusCode != tt.status {
				t.Errorf("%s: third WebSocket: %s, want %d", tt.reason, resp.Status, tt.status)
			}
			if n := h.events.Counts().Refusals[tt.reason]; n != 2 {
				t.Errorf("Counts().Refusals[%q] = %d, want 2", tt.reason, n)
			}
			first.conn.Close()
			synctest.Wait()
			h.listen().want("users 2", "state 0") // there is room again
		})
	}
}

// TestStreamsAndSweeps checks that a shard without streams encodes no events, and that a sweep over WebSockets and
// streams allocates nothing.
func TestStreamsAndSweeps(t *testing.T) {
	s, sink := newSinkShard(t, 10)
	h := s.hub
	s.sweepStandard()
	if s.encoded[inStream].states != nil {
		t.Error("a shard without streams encodes events")
	}
	c := &client{hub: h, owner: s, encoding: inStream, first: watch{counter: h.standard}, wire: clientWire{Conn: sink, sock: sink}}
	s.join(c)
	s.sweepStandard()
	sink.writes = 0
	version := uint64(0)
	if n := testing.AllocsPerRun(100, func() {
		version++
		h.standard.published.push(Snapshot{Version: version, Value: int64(version)}, []action{+1})
		s.sweepStandard()
	}); n > 0 {
		t.Errorf("%v allocations a sweep, want none", n)
	}
	if want := 101 * 11; sink.writes != want {
		t.Errorf("%d writes, want %d", sink.writes, want)
	}
	s.leave(c)
	if got := len(h.standard.in[0].all); got != 10 {
		t.Errorf("%d clients watch the counter, want 10", got)
	}
}
