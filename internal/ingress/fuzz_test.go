package ingress

import (
	"bytes"
	"crypto/tls"
	"encoding/json"
	"io"
	"net"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/coder/websocket"

	"plusminus/hub"
)

// The stages at which FuzzListener sends its garbage.
const (
	inPlaceOfTLS = iota
	inPlaceOfHTTP
	inTheHeader
	afterTheHandshake // as raw bytes
	asFrames          // as frames with correct lengths and masks
	stages            // the number of stages
)

const plus = `{"action":"plus"}`

// frame returns a client's frame with a masking key of zeros. payload has at most 255 bytes.
func frame(head byte, payload string) []byte {
	f := []byte{head, 0x80 | byte(len(payload))}
	if len(payload) > 125 {
		f = []byte{head, 0x80 | 126, 0, byte(len(payload))}
	}
	return append(append(f, 0, 0, 0, 0), payload...)
}

// FuzzListener sends garbage to the listener of the program, at one of the stages: in place of TLS, of HTTP, or of
// frames. For any garbage the connection ends, the server serves another client, and no goroutine, arrival or client
// of the connection stays.
//
// In a header, at is the position of the garbage. At the other stages, at is the position where the garbage is cut into
// two pieces. A network behaves differently each time, so use -fuzzminimizetime 10x. Otherwise the fuzzer spends its
// time on the search for the smallest input.
func FuzzListener(f *testing.F) {
	for _, seed := range []struct {
		stage uint8
		data  string
	}{
		{inPlaceOfTLS, "\x16\x03\x01\x00\x05\x01\x00\x00\x01\x00"},
		{inPlaceOfTLS, "GET / HTTP/1.1\r\n\r\n"},
		{inPlaceOfTLS, "\x80\x2e\x01\x00\x02"},
		{inPlaceOfTLS, "\x15\x03\x03\x00\x02\x02\x28"},
		{inPlaceOfHTTP, "GET / HTTP/1.1\r\nHost: hub.test\r\nContent-Length: -1\r\n\r\n"},
		{inPlaceOfHTTP, "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"},
		{inPlaceOfHTTP, "GET / HTTP/1.1\r\nHost: hub.test\r\nTransfer-Encoding: chunked\r\n\r\nffffffffffffffff\r\n"},
		{inPlaceOfHTTP, "\x00"},
		{inTheHeader, "Origin: null\r\n"},
		{inTheHeader, "Content-Length: 1\r\n"},
		{inTheHeader, "\r\n"},
		{inTheHeader, strings.Repeat("x", 9<<10)},
		{afterTheHandshake, string(frame(0x81, plus))},
		{afterTheHandshake, "\x81\x11" + plus},
		{afterTheHandshake, "\x81\xff\x7f\xff\xff\xff\xff\xff\xff\xff\x00\x00\x00\x00"},
		{afterTheHandshake, string(frame(0x88, "\x03\xe8\xff"))},
		{afterTheHandshake, strings.Repeat(string(frame(0x89, "")), 1001)},
		{afterTheHandshake, strings.Repeat(string(frame(0x00, "")), 100)},
		{asFrames, "\x01\x03{\"a\x80\x0dction\":\"plus\"}"},
		{asFrames, "\x89\x00\x8a\x00\x88\x02\x03\xe8"},
		{asFrames, "\x81\x02{}\x82\x02{}\x81\x13{\"action\": \"minus\"}"},
	} {
		f.Add(seed.stage, uint16(len(seed.data)/2), []byte(seed.data))
	}
	h, g, addr := newTLSHub(f, GateConfig{MaxArrivals: 100})
	config := addr.config()
	witness, _, err := websocket.Dial(f.Context(), "wss://example.com/", &websocket.DialOptions{HTTPClient: httpClient(addr)})
	if err != nil {
		f.Fatal(err)
	}
	defer witness.CloseNow()
	f.Fuzz(func(t *testing.T, stage uint8, at uint16, data []byte) {
		goroutines := runtime.NumGoroutine()
		conn, err := net.Dial("tcp", addr.String())
		if err != nil {
			t.Fatal(err)
		}
		conn.SetDeadline(time.Now().Add(20 * time.Second))
		if stage %= stages; stage != inPlaceOfTLS {
			conn = tls.Client(conn, config)
		}
		cut := min(int(at), len(data))
		var pieces [][]byte
		switch stage {
		case inTheHeader:
			cut := min(int(at), len(rawHandshake))
			pieces = [][]byte{[]byte(rawHandshake[:cut]), data, []byte(rawHandshake[cut:])}
		case afterTheHandshake:
			pieces = [][]byte{[]byte(rawHandshake), data[:cut], data[cut:]}
		case asFrames:
			stream := framesOf(data)
			cut := min(int(at), len(stream))
			pieces = [][]byte{[]byte(rawHandshake), stream[:cut], stream[cut:]}
		default:
			pieces = [][]byte{data[:cut], data[cut:]}
		}
		read := make(chan error, 1)
		go func() {
			for _, p := range pieces {
				if _, err := conn.Write(p); err != nil {
					break // because the server has closed the connection
				}
			}
			// End the stream: close_notify if the connection has TLS, then FIN.
			if t, ok := conn.(*tls.Conn); ok {
				_ = t.CloseWrite()
				conn = t.NetConn()
			}
			_ = conn.(*net.TCPConn).CloseWrite()
			_, err := io.Copy(io.Discard, conn)
			read <- err
		}()
		if err := <-read; err != nil && strings.Contains(err.Error(), "timeout") {
			t.Errorf("the server did not end the connection: %v", err)
		}
		conn.Close()

		before := h.Stats().Value
		if err := witness.Write(t.Context(), websocket.MessageText, []byte(plus)); err != nil {
			t.Fatalf("another client: %v", err)
		}
		// The garbage may contain actions, so any new value is right.
		for seen := false; !seen; {
			_, data, err := witness.Read(t.Context())
			if err != nil {
				t.Fatalf("another client: %v", err)
			}
			var m struct {
				Type  string    `json:"type"`
				Value hub.Value `json:"value"`
			}
			if err := json.Unmarshal(data, &m); err != nil {
				t.Fatal(err)
			}
			seen = m.Type == "state" && m.Value != before
		}
		waitFor(t, "the connection and its goroutines to end", func() bool {
			return g.Arrivals() == 0 && h.Stats().Clients == 1 && len(g.turns) == 0 && runtime.NumGoroutine() <= goroutines
		})
		if n := g.cfg.Events.Counts().Panics; n > 0 {
			t.Errorf("Panics = %d, want 0", n)
		}
	})
}

// framesOf reads data as a list of frames: a first byte, a length of one byte, and a payload of that length. It returns
// the frames in the form of a client.
func framesOf(data []byte) []byte {
	var out bytes.Buffer
	for len(data) >= 2 {
		n := min(int(data[1]), len(data)-2)
		out.Write(frame(data[0], string(data[2:2+n])))
		data = data[2+n:]
	}
	return out.Bytes()
}
