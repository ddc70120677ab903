package hub

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// newRawHub starts a hub behind net/http without TLS. It returns the hub and its address.
func newRawHub(t testing.TB, cfg Config) (*Hub, string) {
	t.Helper()
	if cfg.Store == nil {
		cfg.Store = new(Memory)
	}
	h, err := New(context.Background(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	srv := &http.Server{Handler: h, MaxHeaderBytes: 8 << 10}
	served := make(chan error, 1)
	go func() { served <- srv.Serve(connListener{ln}) }()
	t.Cleanup(func() {
		(&fakeHub{Hub: h}).stop()
		srv.Close()
		if err := <-served; !errors.Is(err, http.ErrServerClosed) {
			t.Errorf("Serve = %v, want ErrServerClosed", err)
		}
	})
	return h, ln.Addr().String()
}

// rawPeer is a client without a WebSocket library, which can send any bytes.
type rawPeer struct {
	t    testing.TB
	conn net.Conn
	br   *bufio.Reader
}

func dialRaw(t testing.TB, addr string) *rawPeer {
	t.Helper()
	conn, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	conn.SetDeadline(time.Now().Add(time.Minute))
	return &rawPeer{t, conn, bufio.NewReader(conn)}
}

// send sends b. It ignores errors, since the server may close the connection before the end of b.
func (p *rawPeer) send(b []byte) { _, _ = p.conn.Write(b) }

// upgraded reads the response to an opening handshake, which must be 101.
func (p *rawPeer) upgraded() {
	p.t.Helper()
	resp, err := http.ReadResponse(p.br, nil)
	if err != nil || resp.StatusCode != http.StatusSwitchingProtocols {
		p.t.Fatalf("response %v, %v, want 101", resp, err)
	}
}

// frame returns the next frame that the server sends. "A server MUST NOT mask any frames that
// it sends to the client." https://www.rfc-editor.org/rfc/rfc6455#section-5.1
func (p *rawPeer) frame() (head byte, payload []byte, err error) {
	p.t.Helper()
	var b [4]byte
	if _, err := io.ReadFull(p.br, b[:2]); err != nil {
		return 0, nil, err
	}
	n := int(b[1])
	if n > 125 {
		if n != 126 {
			p.t.Fatalf("the server sent a frame that begins with %x", b[:2])
		}
		if _, err := io.ReadFull(p.br, b[2:]); err != nil {
			return 0, nil, err
		}
		n = int(binary.BigEndian.Uint16(b[2:]))
	}
	payload = make([]byte, n)
	_, err = io.ReadFull(p.br, payload)
	return b[0], payload, err
}

// next returns the next frame from the server as a string, except users messages and the first state. Messages
// are as in peer; pongs and close frames have their payloads. It reports false when the connection ends.
func (p *rawPeer) next() (string, bool) {
	p.t.Helper()
	for {
		head, payload, err := p.frame()
		if err != nil {
			// The connection ends with a FIN, or with a reset if the server did not read everything.
			if errors.Is(err, os.ErrDeadlineExceeded) {
				p.t.Errorf("the server has not closed the connection within a minute")
			}
			return "", false
		}
		if s := frameString(p.t, head, payload); !strings.HasPrefix(s, "users ") && s != "state 0" {
			return s, true
		}
	}
}

// rest returns all results of next until the connection ends. It answers close frames.
func (p *rawPeer) rest() (all []string) {
	p.t.Helper()
	for s, ok := p.next(); ok; s, ok = p.next() {
		all = append(all, s)
		if strings.HasPrefix(s, "close") {
			p.send(closing(1000, "")) // so that the server does not wait for it
		}
	}
	return all
}

// frameString returns a frame from the server as a string, as next does.
func frameString(t testing.TB, head byte, payload []byte) string {
	switch head {
	case finBit | opText:
		var m message
		if err := json.Unmarshal(payload, &m); err != nil {
			t.Errorf("a message is not JSON: %q", payload)
		}
		return m.String()
	case finBit | opPong:
		return fmt.Sprintf("pong %q", payload)
	case finBit | opClose:
		if len(payload) == 0 {
			return "close"
		}
		return fmt.Sprint("close ", binary.BigEndian.Uint16(payload))
	}
	t.Errorf("the server sent a frame with the first byte %#x: %q", head, payload)
	return ""
}

// sent returns a masked frame from a client, with head as its first byte.
func sent(head byte, payload string) []byte {
	f := appendFrame(nil, 0, []byte(payload))
	f[0] = head
	n := len(f) - len(payload)
	f[1] |= maskBit
	key := [maskSize]byte{0x37, 0xfa, 0x21, 0x3d}
	f = append(f[:n:n], key[:]...)
	for i := range len(payload) {
		f = append(f, payload[i]^key[i%maskSize])
	}
	return f
}

// closing returns a close frame from a client.
func closing(code int, reason string) []byte {
	return sent(finBit|opClose, string(binary.BigEndian.AppendUint16(nil, uint16(code)))+reason)
}

func join(frames ...[]byte) []byte { return bytes.Join(frames, nil) }

// TestRFC6455Frames sends frames, valid and invalid, and checks how the hub answers. Each row names the section
// of RFC 6455 that it is about.
func TestRFC6455Frames(t *testing.T) {
	const (
		fin    = finBit
		failed = "close 1002"
		big    = MaxMessage + 1
	)
	bye := closing(1000, "")
	withLength := func(head byte, length ...byte) []byte {
		return append([]byte{head, maskBit | length[0]}, length[1:]...)
	}
	key := make([]byte, maskSize)
	type row struct {
		section, name string
		send          []byte
		want          string // the frames that the client receives, as from next, separated by commas
	}
	rows := []row{
		{"5.1", "a frame that is not masked", appendFrame(nil, opText, []byte(plus)), failed},
		{"5.1", "a ping that is not masked", appendFrame(nil, opPing, nil), failed},
		{"5.2", "RSV1", sent(fin|0x40|opText, plus), failed},
		{"5.2", "RSV2", sent(fin|0x20|opText, plus), failed},
		{"5.2", "RSV3", sent(fin|0x10|opText, plus), failed},
		{"5.2", "RSV1 in a control frame", sent(fin|0x40|opPing, ""), failed},
		{"5.2", "a short length in 16 bits", join(withLength(fin|opText, 126, 0, byte(len(plus))), key, []byte(plus)), failed},
		{"5.2", "a short length in 64 bits", join(withLength(fin|opText, 127, 0, 0, 0, 0, 0, 0, 1, 0), key, make([]byte, 256)), failed},
		{"5.2", "a length with its most significant bit set", join(withLength(fin|opText, 127, 0x80, 0, 0, 0, 0, 1, 0, 0), key), failed},
		{"5.2", "the greatest length", join(withLength(fin|opText, 127, 0x7f, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff), key), "close 1009"},
		{"5.4", "a message in fragments", join(sent(opText, plus[:3]), sent(opContinuation, plus[3:9]), sent(fin|opContinuation, plus[9:])), "state 1"},
		{"5.4", "empty fragments", join(sent(opText, ""), sent(opContinuation, ""), sent(opContinuation, plus), sent(fin|opContinuation, "")), "state 1"},
		{"5.4", "a ping within a message", join(sent(opText, plus[:3]), sent(fin|opPing, "x"), sent(fin|opContinuation, plus[3:])), `pong "x",state 1`},
		{"5.4", "a close frame within a message", join(sent(opText, plus[:3]), bye), "close 1000"},
		{"5.4", "a continuation frame without a message", sent(fin|opContinuation, plus), failed},
		{"5.4", "a continuation frame after the end of a message", join(sent(opText, "x"), sent(fin|opContinuation, ""), sent(opContinuation, "")), "error bad_message,close 1002"},
		{"5.4", "a message within a message", join(sent(opText, plus[:3]), sent(fin|opText, plus)), failed},
		{"5.4", "the greatest number of fragments", join(sent(opText, plus), bytes.Repeat(sent(opContinuation, ""), maxFragments-2), sent(fin|opContinuation, "")), "state 1"},
		{"5.4", "too many fragments", join(sent(opText, plus), bytes.Repeat(sent(opContinuation, ""), maxFragments)), "close 1008"},
		{"5.5", "a ping in fragments", sent(opPing, "x"), failed},
		{"5.5", "a close frame in fragments", join(sent(opClose, "\x03\xe8")), failed},
		{"5.5", "a ping of 126 bytes", sent(fin|opPing, strings.Repeat("x", 126)), failed},
		{"5.5", "a close frame of 126 bytes", closing(1000, strings.Repeat("x", 124)), failed},
		{"5.5.1", "a close frame without a body", sent(fin|opClose, ""), "close"},
		{"5.5.1", "a close frame of one byte", sent(fin|opClose, "\x03"), failed},
		{"5.5.1", "the longest reason", closing(1000, strings.Repeat("x", 123)), "close 1000"},
		{"5.5.1", "a reason that is not UTF-8", closing(1000, "\xce\xba\xff"), "close 1007"},
		{"5.5.1", "a reason that ends within a character", closing(1000, "\xce"), "close 1007"},
		{"5.5.1", "frames after a close frame", join(bye, sent(fin|opText, plus), sent(fin|0xf, "")), "close 1000"},
		{"5.5.2", "a ping", join(sent(fin|opPing, "")), `pong ""`},
		{"5.5.2", "the longest ping", join(sent(fin|opPing, strings.Repeat("x", 125))), fmt.Sprintf("pong %q", strings.Repeat("x", 125))},
		{"5.5.3", "an unsolicited pong", join(sent(fin|opPong, ""), sent(fin|opPong, "x")), ""},
		{"5.6", "a binary message", sent(fin|opBinary, plus), "error binary_message"},
		{"7.4.1", "a message that is too big", sent(fin|opText, strings.Repeat(" ", big)), "close 1009"},
		{"7.4.1", "a message that is too big in fragments", join(sent(opText, strings.Repeat(" ", MaxMessage)), sent(fin|opContinuation, " ")), "close 1009"},
		{"7.4.1", "the longest message", join(sent(fin|opText, strings.Repeat(" ", MaxMessage-len(plus))+plus)), "state 1"},
		{"8.1", "text that is not UTF-8", sent(fin|opText, "\xff"), "close 1007"},
		{"8.1", "half of a surrogate pair", sent(fin|opText, `{"action":"`+"\xed\xa0\x80"+`"}`), "close 1007"},
		{"8.1", "an overlong encoding", sent(fin|opText, "\xc0\xaf"), "close 1007"},
		{"8.1", "a character that is cut off by the end of the message", sent(fin|opText, "\xce"), "close 1007"},
		{"8.1", "a character in two fragments", join(sent(opText, `{"action":"plus","x":"`+"\xce"), sent(fin|opContinuation, "\xba"+`"}`)), "state 1"},
	}
	for _, opcode := range []byte{3, 4, 5, 6, 7, 0xb, 0xc, 0xd, 0xe, 0xf} {
		rows = append(rows, row{"5.2", fmt.Sprintf("opcode %#x", opcode), sent(fin|opcode, ""), failed})
	}
	for _, code := range []int{0, 1, 999, 1004, 1005, 1006, 1015, 1016, 1100, 2000, 2999, 5000, 65535} {
		rows = append(rows, row{"7.4", fmt.Sprint("status code ", code), closing(code, ""), failed})
	}
	for _, code := range []int{1000, 1001, 1002, 1003, 1007, 1008, 1009, 1010, 1011, 1012, 1013, 1014, 3000, 3999, 4000, 4999} {
		rows = append(rows, row{"7.4", fmt.Sprint("status code ", code), closing(code, "why"), fmt.Sprint("close ", code)})
	}
	for _, tt := range rows {
		t.Run(tt.section+"/"+tt.name, func(t *testing.T) {
			// In one piece together with the opening handshake, in one piece after it, and byte by byte.
			for _, how := range []string{"with the handshake", "in one piece", "byte by byte"} {
				h, addr := newRawHub(t, Config{})
				p := dialRaw(t, addr)
				switch how {
				case "with the handshake":
					p.send(join([]byte(rawHandshake), tt.send))
				case "in one piece":
					p.send([]byte(rawHandshake))
					p.upgraded()
					p.send(tt.send)
				case "byte by byte":
					for _, b := range join([]byte(rawHandshake), tt.send) {
						p.send([]byte{b})
					}
				}
				if how != "in one piece" {
					p.upgraded()
				}
				var got []string
				for want := strings.Split(tt.want, ","); !slices.Equal(got, want) && tt.want != ""; {
					m, ok := p.next()
					if !ok {
						break
					}
					got = append(got, m)
				}
				if strings.Contains(tt.want, "close") {
					// The peer closes its side, so that the server does not wait.
					p.conn.(*net.TCPConn).CloseWrite()
				} else {
					p.send(bye)
				}
				for m, ok := p.next(); ok; m, ok = p.next() {
					got = append(got, m)
				}
				want := tt.want
				if !strings.Contains(want, "close") {
					want = strings.TrimPrefix(want+",close 1000", ",")
				}
				if got := strings.Join(got, ","); got != want {
					t.Errorf("%s: received %q, want %q", how, got, want)
				}
				waitEmpty(t, h)
			}
		})
	}
}

// waitEmpty waits until h has no client.
func waitEmpty(t testing.TB, h *Hub) {
	t.Helper()
	waitFor(t, "no client", func() bool { return h.admittedNow() == 0 && h.Stats().Clients == 0 })
}

// admittedNow returns the number of admitted clients.
func (h *Hub) admittedNow() int {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.admitted.total
}

// waitFor waits until ok reports true, for at most a minute.
func waitFor(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); !ok(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("%s: not within a minute", what)
		}
	}
}

// TestRFC6455Handshake sends opening handshakes, valid and invalid, and checks the answers.
// https://www.rfc-editor.org/rfc/rfc6455#section-4.2
func TestRFC6455Handshake(t *testing.T) {
	_, addr := newRawHub(t, Config{})
	replace := func(old, new string) string {
		if !strings.Contains(rawHandshake, old) {
			t.Fatalf("the handshake has no %q", old)
		}
		return strings.Replace(rawHandshake, old, new, 1)
	}
	for _, tt := range []struct {
		section, name, request string
		status                 int
		header                 string // "Name: value" that must be in the answer
	}{
		{"4.2.1", "a valid handshake", rawHandshake, 101, "Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo="},
		{"4.2.1", "among other tokens, in upper and lower case", strings.Replace(replace("Connection: Upgrade", "Connection: keep-alive, uPgRaDe"), "websocket", "WebSocket", 1), 101, ""},
		{"4.2.1", "HTTP/1.0", replace("HTTP/1.1", "HTTP/1.0"), 426, ""},
		{"4.2.1", "POST", replace("GET", "POST"), 405, ""},
		{"4.2.1", "no Host", replace("Host: hub.test\r\n", ""), 400, ""},
		{"4.2.1", "two Hosts", replace("Host: hub.test\r\n", "Host: hub.test\r\nHost: evil.example\r\n"), 400, ""},
		{"4.2.1", "no Upgrade", replace("Upgrade: websocket\r\n", ""), 426, "Upgrade: websocket"},
		{"4.2.1", "another Upgrade", replace("websocket", "h2c"), 426, ""},
		{"4.2.1", "no Connection", replace("Connection: Upgrade\r\n", ""), 426, ""},
		{"4.2.1", "no key", replace("Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n", ""), 400, ""},
		{"4.2.1", "a short key", replace("dGhlIHNhbXBsZSBub25jZQ==", "dGhl"), 400, ""},
		{"4.2.1", "a key that is not base64", replace("dGhlIHNhbXBsZSBub25jZQ==", "????????????????????????"), 400, ""},
		{"4.2.1", "two keys", replace("\r\n\r\n", "\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"), 400, ""},
		{"4.4", "another version", replace("Version: 13", "Version: 8"), 400, "Sec-WebSocket-Version: 13"},
		{"4.4", "no version", replace("Sec-WebSocket-Version: 13\r\n", ""), 400, "Sec-WebSocket-Version: 13"},
		{"9.1", "an extension, which is declined", replace("\r\n\r\n", "\r\nSec-WebSocket-Extensions: permessage-deflate\r\n\r\n"), 101, "Sec-WebSocket-Extensions: "},
		{"1.9", "a subprotocol, which is declined", replace("\r\n\r\n", "\r\nSec-WebSocket-Protocol: chat\r\n\r\n"), 101, "Sec-WebSocket-Protocol: "},
		{"4.1", "a body", replace("\r\n\r\n", "\r\nContent-Length: 5\r\n\r\nhello"), 400, "Connection: close"},
		{"4.1", "a body in chunks", replace("\r\n\r\n", "\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"), 400, "Connection: close"},
		{"4.1", "a header that is too long", replace("\r\n\r\n", "\r\nX: "+strings.Repeat("x", 16<<10)+"\r\n\r\n"), 431, ""},
		{"4.1", "junk", "\x16\x03\x01junk\r\n\r\n", 400, ""},
	} {
		p := dialRaw(t, addr)
		p.send([]byte(tt.request))
		resp, err := http.ReadResponse(p.br, nil)
		if err != nil {
			t.Errorf("%s %s: %v", tt.section, tt.name, err)
			continue
		}
		if resp.StatusCode != tt.status {
			t.Errorf("%s %s: %s, want %d", tt.section, tt.name, resp.Status, tt.status)
		}
		if name, value, _ := strings.Cut(tt.header, ": "); name != "" && resp.Header.Get(name) != value && !(name == "Connection" && resp.Close) {
			t.Errorf("%s %s: %s is %q, want %q", tt.section, tt.name, name, resp.Header.Get(name), value)
		}
		p.conn.Close()
	}
}

// TestHalfClosed checks a peer that closes its side of the connection: its actions count, and the connection
// ends.
func TestHalfClosed(t *testing.T) {
	h, addr := newRawHub(t, Config{})
	p := dialRaw(t, addr)
	p.send(join([]byte(rawHandshake), sent(finBit|opText, plus)))
	p.upgraded()
	p.conn.(*net.TCPConn).CloseWrite()
	p.rest()
	waitEmpty(t, h)
	waitFor(t, "the action", func() bool { return h.Stats().Value == 1 })
	if n := h.events.Counts().Closes[ReasonGone]; n != 1 {
		t.Errorf("Counts().Closes[%q] = %d, want 1", ReasonGone, n)
	}
}

// TestClosesAreCounted checks that each close is counted once, for the right reason and with its status code.
func TestClosesAreCounted(t *testing.T) {
	for _, tt := range []struct {
		reason Reason
		send   []byte
	}{
		{ReasonPeer, closing(4321, "")},
		{ReasonProtocol, sent(finBit|0xf, "")},
		{ReasonNotUTF8, sent(finBit|opText, "\xff")},
		{ReasonRubbish, bytes.Repeat(sent(finBit|opText, "x"), maxNotActions)},
		{ReasonFlood, bytes.Repeat(sent(finBit|opPing, ""), maxExcess+1)},
		{ReasonFlood, bytes.Repeat(sent(finBit|opPong, ""), maxExcess+1)},
		{ReasonFlood, bytes.Repeat(sent(finBit|opText, plus), 1+maxExcess+1)}, // over the action rate
		{ReasonFragments, join(sent(opText, ""), bytes.Repeat(sent(opContinuation, ""), maxFragments))},
		{ReasonTooBig, sent(finBit|opText, strings.Repeat("x", MaxMessage+1))},
	} {
		h, addr := newRawHub(t, Config{ActionRate: 1e-9, ActionBurst: 1})
		p := dialRaw(t, addr)
		p.send([]byte(rawHandshake))
		p.upgraded()
		go p.send(tt.send)
		got := p.rest()
		want := fmt.Sprint("close ", int(closeCodes[tt.reason]))
		if tt.reason == ReasonPeer {
			want = "close 4321"
		}
		if len(got) == 0 || got[len(got)-1] != want {
			t.Errorf("%s: received %q, want it to end with %q", tt.reason, got, want)
		}
		waitEmpty(t, h)
		for reason, n := range h.events.Counts().Closes {
			if (reason == tt.reason) != (n == 1) || n > 1 {
				t.Errorf("%s: %s is counted %d times", tt.reason, reason, n)
			}
		}
	}
}

// TestClosingHandshakeEnds checks when a peer that does not answer a close frame is disconnected: after
// failTimeout if it has violated the protocol, otherwise after closeTimeout.
func TestClosingHandshakeEnds(t *testing.T) {
	for _, tt := range []struct {
		send []byte
		want time.Duration
	}{
		{sent(finBit|0xf, ""), failTimeout},
		{sent(finBit|opText, "\xff"), closeTimeout},
	} {
		synctest.Test(t, func(t *testing.T) {
			h := newFakeHub(t, Config{})
			defer h.stop()
			client, server := fakePipe(1 << 10)
			h.ln.conns <- server
			p := &rawPeer{t, client, bufio.NewReader(client)}
			p.send([]byte(rawHandshake))
			p.upgraded()
			synctest.Wait()
			began := time.Now()
			p.send(tt.send)
			if m, ok := p.next(); !ok || !strings.HasPrefix(m, "close ") {
				t.Errorf("received %q, want a close frame", m)
			}
			if m, ok := p.next(); ok {
				t.Errorf("received %q after a close frame", m)
			}
			if took := time.Since(began); took != tt.want {
				t.Errorf("the connection ended after %v, want %v", took, tt.want)
			}
		})
	}
}

// TestCloseFrameReachesBlockedClient checks that a blocked client receives its close frame when it reads again.
func TestCloseFrameReachesBlockedClient(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newFakeHub(t, Config{})
		defer h.stop()
		client, server := fakePipe(1 << 10)
		h.ln.conns <- server
		p := &rawPeer{t, client, bufio.NewReader(client)}
		p.send([]byte(rawHandshake))
		p.upgraded()
		synctest.Wait()
		for !server.blocked() { // the client does not read
			p.send(sent(finBit|opPing, strings.Repeat("x", maxShortPayload)))
			synctest.Wait()
		}
		p.send(sent(finBit|opText, "\xff"))
		time.Sleep(closeTimeout / 2)
		if got := p.rest(); len(got) == 0 || got[len(got)-1] != "close 1007" {
			t.Errorf("received %q, want it to end with close 1007", got)
		}
	})
}

// panicking is a socket that panics once after armed was set.
type panicking struct {
	*fakeConn
	armed atomic.Bool
}

func (s *panicking) blocked() bool {
	if s.armed.Swap(false) {
		panic("a bug")
	}
	return s.fakeConn.blocked()
}

// TestPanicEndsOneClient checks that a panic in a client's goroutine ends only that client, with 1011, and that it
// is logged with its stack.
func TestPanicEndsOneClient(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var lines bytes.Buffer // never written by two goroutines at once in the bubble
		h := newFakeHub(t, Config{Logger: slog.New(slog.NewTextHandler(&lines, nil))})
		defer h.stop()
		other := h.join()
		for range 2 {
			client, server := fakePipe(1 << 10)
			sock := &panicking{fakeConn: server}
			h.ln.conns <- sock
			p := &rawPeer{t, client, bufio.NewReader(client)}
			p.send([]byte(rawHandshake))
			p.upgraded()
			synctest.Wait()
			sock.armed.Store(true)
			p.send(sent(finBit|opText, "x"))
			if got := p.rest(); len(got) == 0 || got[len(got)-1] != "close 1011" {
				t.Errorf("received %q, want it to end with close 1011", got)
			}
			client.Close()
			synctest.Wait()
		}
		time.Sleep(time.Second)
		other.take()
		other.send(plus)
		other.want("state 1")
		if got := h.Stats().Clients; got != 1 {
			t.Errorf("%d clients, want 1", got)
		}
		counts := h.events.Counts()
		if counts.Panics != 2 || counts.Closes[ReasonPanic] != 2 {
			t.Errorf("%d panics and %d closes are counted, want 2", counts.Panics, counts.Closes[ReasonPanic])
		}
		if got := lines.String(); strings.Count(got, "a bug: a panic") != 1 || !strings.Contains(got, "refuseAndCount") {
			t.Errorf("the log has\n%s\nwant one line with the stack", got)
		}
	})
}
