package hub

import (
	"context"
	"math"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"testing"
	"testing/synctest"

	"github.com/coder/websocket"
)

func TestAddressOf(t *testing.T) {
	for _, tt := range []struct{ remote, want string }{
		{"192.0.2.1:5", "192.0.2.1/32"},
		{"[::ffff:192.0.2.1]:5", "192.0.2.1/32"},
		{"[2001:db8:0:1:2:3:4:5]:6", "2001:db8:0:1::/64"},
		{"[fe80::1%eth0]:6", "fe80::/64"},
	} {
		if got := AddressOf(tt.remote); got != netip.MustParsePrefix(tt.want) {
			t.Errorf("AddressOf(%q) = %v, want %v", tt.remote, got, tt.want)
		}
	}
}

// refused sends an opening handshake with the given header and returns the response, which must not be an
// upgrade.
func (f *fakeHub) refused(header http.Header) *http.Response {
	f.t.Helper()
	conn, err := f.ln.dial()
	if err != nil {
		f.t.Fatal(err)
	}
	defer conn.Close()
	req, err := http.NewRequest("GET", "http://hub.test/", nil)
	if err != nil {
		f.t.Fatal(err)
	}
	req.Header = header
	resp, err := (&http.Transport{DialContext: func(context.Context, string, string) (net.Conn, error) { return conn, nil }}).RoundTrip(req)
	if err != nil {
		f.t.Fatal(err)
	}
	resp.Body.Close()
	return resp
}

// handshakeHeader returns the header of rawHandshake.
func handshakeHeader() http.Header {
	h := http.Header{}
	for line := range strings.SplitSeq(rawHandshake, "\r\n") {
		if k, v, ok := strings.Cut(line, ": "); ok && k != "Host" {
			h.Set(k, v)
		}
	}
	return h
}

func TestRefusedHandshakes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		own, err := ParseOrigin("https://hub.test")
		if err != nil {
			t.Fatal(err)
		}
		h := newFakeHub(t, Config{Origins: []Origin{own}})
		defer h.stop()
		for _, tt := range []struct {
			name string
			edit func(http.Header)
			want int
		}{
			{"foreign origin", func(h http.Header) { h.Set("Origin", "https://evil.example") }, http.StatusForbidden},
			{"two origins", func(h http.Header) { h["Origin"] = []string{"https://hub.test", "https://evil.example"} }, http.StatusForbidden},
			{"empty origin", func(h http.Header) { h.Set("Origin", "") }, http.StatusForbidden},
			{"no upgrade", func(h http.Header) { h.Del("Upgrade") }, http.StatusUpgradeRequired},
			{"old version", func(h http.Header) { h.Set("Sec-WebSocket-Version", "8") }, http.StatusBadRequest},
			{"bad key", func(h http.Header) { h.Set("Sec-WebSocket-Key", "x") }, http.StatusBadRequest},
		} {
			header := handshakeHeader()
			tt.edit(header)
			if resp := h.refused(header); resp.StatusCode != tt.want {
				t.Errorf("%s: %s, want %d", tt.name, resp.Status, tt.want)
			}
		}
		if n := h.admitted.total; n != 0 {
			t.Errorf("%d clients are admitted after refusals, want 0", n)
		}
	})
}

func TestCaps(t *testing.T) {
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
			a := h.join()
			h.join()
			resp := h.refused(handshakeHeader())
			if resp.StatusCode != tt.status || resp.Header.Get("Retry-After") == "" {
				t.Errorf("%s: third client: %s, Retry-After %q, want %d and a Retry-After", tt.reason, resp.Status, resp.Header.Get("Retry-After"), tt.status)
			}
			if n := h.events.Counts().Refusals[tt.reason]; n != 1 {
				t.Errorf("Counts().Refusals[%q] = %d, want 1", tt.reason, n)
			}
			a.ws.Close(websocket.StatusNormalClosure, "")
			synctest.Wait()
			h.join().want("users 2", "state 0") // there is room again
		})
	}
}

// TestManyConnections checks that each connection gets a shard after the count of connections has passed the
// largest int of a 32-bit system, and after it has wrapped around.
func TestManyConnections(t *testing.T) {
	for _, joined := range []uint32{math.MaxInt32 - 1, math.MaxUint32 - 1} {
		synctest.Test(t, func(t *testing.T) {
			h := newFakeHub(t, Config{Shards: 3})
			defer h.stop()
			h.nextShard.Store(joined)
			for range 4 {
				h.join()
			}
			if got := h.Stats().Clients; got != 4 {
				t.Errorf("after %d connections, 4 more: Stats().Clients = %d, want 4", joined, got)
			}
		})
	}
}
