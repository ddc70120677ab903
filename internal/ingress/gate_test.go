package ingress

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"plusminus/hub"
)

// TestSilentConnectionsMakeRoom opens more silent connections than MaxArrivals. The gate closes the oldest ones, and
// serves a peer that sends a request.
func TestSilentConnectionsMakeRoom(t *testing.T) {
	h, g, addr := newRawHub(t, GateConfig{MaxArrivals: 4})
	first := dialRaw(t, addr)
	for range 40 {
		dialRaw(t, addr)
	}
	if _, err := first.conn.Read(make([]byte, 1)); err == nil || errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("the oldest silent connection: %v, want its end", err)
	}
	for i := range 10 { // clients do not count as arrivals
		p := dialRaw(t, addr)
		p.send([]byte(rawHandshake))
		p.upgraded()
		waitFor(t, "the client", func() bool { return h.Stats().Clients == i+1 })
		dialRaw(t, addr)
	}
	waitFor(t, "4 arrivals", func() bool { return g.Arrivals() == 4 })
	if n := g.cfg.Events.Counts().Refusals[ReasonCrowded]; n != 41+10-4 {
		t.Errorf("the gate closed %d connections, want %d", n, 41+10-4)
	}
}

// TestHeardAndSilentMakeRoom checks that connections after their TLS handshake and silent ones do not displace each
// other: many new ones of one kind close no connection of the other kind.
func TestHeardAndSilentMakeRoom(t *testing.T) {
	const most = 4
	_, g, addr := newTLSHub(t, GateConfig{MaxArrivals: most})
	dialTLS := func() (*rawPeer, error) {
		conn, err := tls.Dial("tcp", addr.String(), addr.config())
		if err != nil {
			return nil, err
		}
		t.Cleanup(func() { conn.Close() })
		conn.SetDeadline(time.Now().Add(time.Minute))
		return &rawPeer{t, conn, bufio.NewReader(conn)}, nil
	}
	heard, err := dialTLS()
	if err != nil {
		t.Fatal(err)
	}
	for range 10 * most {
		dialRaw(t, addr.String())
	}
	heard.send([]byte(rawHandshake))
	heard.upgraded()
	waitFor(t, "all to be accepted", func() bool { return g.cfg.Events.Counts().Refusals[ReasonCrowded] >= 10*most-most })
	if n := g.Arrivals(); n > most {
		t.Errorf("%d arrivals, want at most %d", n, most)
	}

	for range 10 * most { // connections with a TLS handshake
		if _, err := dialTLS(); err != nil {
			t.Fatal(err)
		}
	}
	silent := dialRaw(t, addr.String())
	for range 10 * most {
		if _, err := dialTLS(); err != nil {
			t.Fatal(err)
		}
	}
	conn := tls.Client(silent.conn, addr.config())
	if err := conn.Handshake(); err != nil {
		t.Errorf("a connection that was silent for a while: %v", err)
	}
}

// TestArrivalsLeave checks that an arrival leaves the gate when its connection ends, at any stage.
func TestArrivalsLeave(t *testing.T) {
	_, g, addr := newTLSHub(t, GateConfig{})
	for _, send := range []string{"", "junk", "GET / HTTP/1.1\r\n\r\n", "\x16\x03\x01\x00\x05\x01\x00\x00\x01\x00"} {
		p := dialRaw(t, addr.String())
		p.send([]byte(send))
		waitFor(t, "the arrival", func() bool { return g.Arrivals() == 1 || send != "" })
		p.conn.Close()
		waitFor(t, "its end", func() bool { return g.Arrivals() == 0 && len(g.turns) == 0 })
	}
}

// TestConnectionRates connects more often than the rate of an address allows. The gate closes the connections over it,
// but none of a trusted proxy and none of another address.
func TestConnectionRates(t *testing.T) {
	const burst = 3
	dialFrom := func(ip, addr string) net.Conn {
		t.Helper()
		conn, err := (&net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(ip)}}).Dial("tcp", addr)
		switch {
		case errors.Is(err, syscall.EADDRNOTAVAIL):
			t.Skipf("%s is not a local address here; Linux has all of 127.0.0.0/8: %v", ip, err)
		case errors.Is(err, syscall.ECONNRESET): // the gate was faster than the dialer
			return nil
		case err != nil:
			t.Fatal(err)
		}
		t.Cleanup(func() { conn.Close() })
		conn.SetDeadline(time.Now().Add(time.Minute))
		return conn
	}
	served := func(conn net.Conn) bool {
		if conn == nil {
			return false
		}
		_, _ = io.WriteString(conn, rawHandshake)
		_, err := io.ReadFull(conn, make([]byte, len("HTTP/1.1 101")))
		return err == nil
	}
	_, g, addr := newRawHub(t, GateConfig{
		Rates: NewRates(1e-3, burst),
		Proxy: func(a netip.Addr) bool { return a == netip.MustParseAddr("127.0.0.9") },
	})
	for i := range 2 * burst {
		if got, want := served(dialFrom("127.0.0.2", addr)), i < burst; got != want {
			t.Errorf("connection %d: served = %v, want %v", i+1, got, want)
		}
	}
	for range 2 * burst {
		if !served(dialFrom("127.0.0.9", addr)) {
			t.Error("connection of a proxy: not served, want served")
		}
	}
	if !served(dialFrom("127.0.0.3", addr)) {
		t.Error("connection of another address: not served, want served")
	}
	if n := g.cfg.Events.Counts().Refusals[ReasonAddressConnections]; n != burst {
		t.Errorf("refusals = %d, want %d", n, burst)
	}
}

// TestRates takes from the buckets of two addresses, and compares the times to wait.
func TestRates(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b := netip.MustParsePrefix("192.0.2.1/32"), netip.MustParsePrefix("2001:db8::/64")
		r := NewRates(2, 10)
		take := func(p netip.Prefix, n int, want time.Duration) {
			t.Helper()
			if got := r.Take(p, n); got != want {
				t.Errorf("Take(%v, %d) = %v, want %v", p, n, got, want)
			}
		}
		take(a, 10, 0)
		take(a, 1, 500*time.Millisecond)
		take(a, 10, 5*time.Second) // a call that takes nothing costs nothing
		take(b, 1, 0)
		time.Sleep(500 * time.Millisecond)
		take(a, 1, 0)
		take(a, 1, 500*time.Millisecond)
		time.Sleep(r.keep) // the bucket has moved to old: it is full again, and not more than full
		take(b, 1, 0)
		take(a, 10, 0)
		take(a, 1, 500*time.Millisecond)
		time.Sleep(4500 * time.Millisecond)
		take(a, 10, 500*time.Millisecond)
		// The number of remembered addresses is bounded.
		for i := range 3 * maxAddresses {
			r.Take(hub.PrefixOf(netip.AddrFrom16([16]byte{0: 0x20, 4: byte(i >> 16), 5: byte(i >> 8), 6: byte(i)})), 1)
		}
		if n := len(r.recent) + len(r.old); n > 2*maxAddresses {
			t.Errorf("Rates remembers %d addresses, want at most %d", n, 2*maxAddresses)
		}
	})
	if (*Rates)(nil).Take(netip.Prefix{}, 1) != 0 {
		t.Error("Take of a nil *Rates refuses, want 0")
	}
}

// failingListener returns its errors in turn, then net.ErrClosed.
type failingListener struct {
	net.Listener
	errs []error
}

func (l *failingListener) Accept() (net.Conn, error) {
	if len(l.errs) == 0 {
		return nil, net.ErrClosed
	}
	err := l.errs[0]
	l.errs = l.errs[1:]
	return nil, &net.OpError{Op: "accept", Err: err}
}

// TestAcceptErrors checks that Accept waits and tries again while the system has no file descriptors, and logs one line.
// Errors that cannot go away end it.
func TestAcceptErrors(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var lines bytes.Buffer
		events := hub.NewEvents(hub.EventsConfig{Logger: slog.New(slog.NewTextHandler(&lines, nil)), Refusals: Refusals()})
		ln := &failingListener{errs: []error{syscall.EMFILE, syscall.ENFILE, syscall.ENOBUFS, syscall.ENOMEM, syscall.ECONNABORTED, syscall.EPERM}}
		began := time.Now()
		_, err := NewGate(GateConfig{Events: events}).Listener(ln).Accept()
		if !errors.Is(err, net.ErrClosed) {
			t.Errorf("Accept = %v, want ErrClosed", err)
		}
		if took, want := time.Since(began), (5+10+20+40+80+160)*time.Millisecond; took != want {
			t.Errorf("Accept took %v for six errors, want %v", took, want)
		}
		if n := events.Counts().Refusals[ReasonAcceptError]; n != 6 {
			t.Errorf("refusals = %d, want 6", n)
		}
		if got := lines.String(); strings.Count(got, "\n") != 1 || !strings.Contains(got, "level=ERROR") || !strings.Contains(got, syscall.EMFILE.Error()) {
			t.Errorf("log = %q, want one line with the first error", got)
		}
	})
	for _, err := range noListener {
		if _, got := NewGate(GateConfig{}).Listener(&failingListener{errs: []error{err}}).Accept(); !errors.Is(got, err) {
			t.Errorf("Accept = %v, want %v", got, err)
		}
	}
}

// TestAcceptErrorMakesRoom checks that an error of accept closes one arrival, which frees a file descriptor.
func TestAcceptErrorMakesRoom(t *testing.T) {
	g := NewGate(GateConfig{})
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	peer := dialRaw(t, ln.Addr().String())
	if _, err := g.Listener(ln).Accept(); err != nil {
		t.Fatal(err)
	}
	_, _ = g.Listener(&failingListener{errs: []error{syscall.EMFILE}}).Accept()
	if n := g.Arrivals(); n != 0 {
		t.Errorf("Arrivals after EMFILE = %d, want 0", n)
	}
	if _, err := peer.conn.Read(make([]byte, 1)); err == nil || errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("Read of the silent peer = %v, want the end", err)
	}
}

// TestHandshakeOutcomes compares the counted outcome of handshakes that succeed and that fail in each way.
func TestHandshakeOutcomes(t *testing.T) {
	handshake := func(edit func(*tls.Config)) func(tlsAddr) {
		return func(a tlsAddr) {
			config := a.config()
			edit(config)
			conn, err := tls.Dial("tcp", a.String(), config)
			if err != nil {
				return
			}
			defer conn.Close()
			if len(config.NextProtos) > 0 { // the server sends a CA nothing after the handshake
				if b, err := io.ReadAll(conn); err != nil || len(b) > 0 {
					t.Errorf("after the CA's handshake: %q, %v, want nothing", b, err)
				}
			}
		}
	}
	raw := func(send, want string) func(tlsAddr) {
		return func(a tlsAddr) {
			p := dialRaw(t, a.String())
			p.send([]byte(send))
			if send == "" {
				p.conn.Close()
				return
			}
			got, _ := io.ReadAll(p.br)
			if !strings.HasPrefix(string(got), want) {
				t.Errorf("%q is answered with %q, want %q", send, got, want)
			}
		}
	}
	// A hello of TLS 1.0 in a record that ends before it does.
	const half = "\x16\x03\x01\x00\x20\x01\x00\x00\xff\x03\x03"
	for _, tt := range []struct {
		name string
		do   func(tlsAddr)
		want Outcome
	}{
		{"ok", handshake(func(*tls.Config) {}), HandshakeOK},
		{"TLS 1.2", handshake(func(c *tls.Config) { c.MaxVersion = tls.VersionTLS12 }), HandshakeOK},
		{"another curve, after a hello retry request", handshake(func(c *tls.Config) { c.CurvePreferences = []tls.CurveID{tls.CurveP521} }), HandshakeOK},
		{"challenge", handshake(func(c *tls.Config) { c.NextProtos = []string{protocolChallenge} }), HandshakeChallenge},
		{"unknown name", handshake(func(c *tls.Config) { c.ServerName = "evil.example" }), HandshakeUnknownName},
		{"no certificate yet", handshake(func(c *tls.Config) { c.ServerName = "soon.example.com" }), HandshakeNoCertificate},
		{"not trusted", handshake(func(c *tls.Config) { c.RootCAs = x509.NewCertPool() }), HandshakeRejected},
		{"no version in common", handshake(func(c *tls.Config) { c.MinVersion, c.MaxVersion = tls.VersionTLS10, tls.VersionTLS11 }), HandshakeOther},
		{"no protocol in common", handshake(func(c *tls.Config) { c.NextProtos = []string{"h2"} }), HandshakeOther},
		{"closed at once", raw("", ""), HandshakeGone},
		{"HTTP", raw("GET / HTTP/1.1\r\nHost: example.com\r\n\r\n", "HTTP/1.0 400 Bad Request\r\n\r\nClient sent an HTTP request"), HandshakeHTTP},
		{"another protocol", raw("SSH-2.0-OpenSSH_9.2\r\n", ""), HandshakeJunk},
		{"an SSL 2.0 hello", raw("\x80\x2e\x01\x00\x02\x00\x15\x00\x00\x00\x10"+strings.Repeat("x", 37), ""), HandshakeJunk},
		{"zeros", raw(strings.Repeat("\x00", 600), ""), HandshakeJunk},
		{"a handshake message that is none", raw("\x16\x03\x01\x00\x04\x0e\x00\x00\x00", "\x15"), HandshakeOther},
		{"a record that is too long", raw("\x16\x03\x01\xff\xff", "\x15"), HandshakeJunk},
		{"application data", raw("\x17\x03\x03\x00\x05hello", ""), HandshakeJunk},
		{"half a hello", func(a tlsAddr) {
			p := dialRaw(t, a.String())
			p.send([]byte(half))
			p.conn.Close()
		}, HandshakeGone},
	} {
		_, g, addr := newTLSHub(t, GateConfig{})
		tt.do(addr)
		waitFor(t, tt.name, func() bool {
			n := uint64(0)
			for _, m := range g.Handshakes() {
				n += m
			}
			return n == 1
		})
		if got := g.Handshakes(); got[tt.want] != 1 {
			t.Errorf("%s: Handshakes = %v, want one %s", tt.name, got, tt.want)
		}
		waitFor(t, "the end", func() bool { return g.Arrivals() == 0 && len(g.turns) == 0 })
	}
}

// TestHangingChallenges simulates a store of challenges that hangs. The gate refuses further lookups, and serves other
// connections.
func TestHangingChallenges(t *testing.T) {
	_, g, addr := newTLSHub(t, GateConfig{})
	for range maxLookups {
		g.lookups <- struct{}{}
	}
	config := addr.config()
	config.NextProtos = []string{protocolChallenge}
	if conn, err := tls.Dial("tcp", addr.String(), config); err == nil {
		conn.Close()
		t.Error("Dial for one challenge more succeeded, want an error")
	}
	conn, err := tls.Dial("tcp", addr.String(), addr.config())
	if err != nil {
		t.Fatal(err)
	}
	conn.Close()
	waitFor(t, "the count", func() bool { return g.Handshakes()[HandshakeNoCertificate] == 1 })
}

// TestRenegotiation checks that a client that asks to renegotiate, which TLS 1.2 permits, gets an alert.
func TestRenegotiation(t *testing.T) {
	openssl, err := exec.LookPath("openssl")
	if err != nil {
		t.Skip("OpenSSL is not installed (Debian: openssl)")
	}
	_, g, addr := newTLSHub(t, GateConfig{})
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, openssl, "s_client", "-tls1_2", "-connect", addr.String(), "-servername", "example.com")
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	defer stdin.Close()
	if _, err := io.WriteString(stdin, "R\n"); err != nil { // its command to renegotiate
		t.Fatal(err)
	}
	out, err := cmd.CombinedOutput()
	if err == nil || ctx.Err() != nil || !bytes.Contains(out, []byte("RENEGOTIATING")) || !bytes.Contains(out, []byte("alert")) {
		t.Errorf("openssl: %v and\n%s\nwant an alert", err, out)
	}
	waitFor(t, "the end", func() bool { return g.Arrivals() == 0 })
}

// TestHandshakeTimeout sends one byte of a handshake each second. The gate gives up after handshakeTimeout.
func TestHandshakeTimeout(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		client, server := net.Pipe()
		defer synctest.Wait()
		defer time.Sleep(2 * time.Second) // until the peer has seen the end
		defer client.Close()
		go func() {
			// A byte a second of a hello that never ends.
			for _, b := range []byte("\x16\x03\x01\x40\x00\x01\x00\x3f\xfc" + strings.Repeat("\x03", 100)) {
				if _, err := client.Write([]byte{b}); err != nil {
					return
				}
				time.Sleep(time.Second)
			}
		}()
		began := time.Now()
		g := NewGate(GateConfig{})
		c := &tlsConn{Conn: tls.Server(server, &tls.Config{}), gate: g}
		if n, err := c.Read(make([]byte, 1)); n != 0 || err != io.EOF {
			t.Errorf("Read = %d, %v, want EOF", n, err)
		}
		if took := time.Since(began); took != handshakeTimeout {
			t.Errorf("the handshake ended after %v, want %v", took, handshakeTimeout)
		}
		c.Close()
		client.Close()
		if got := g.Handshakes()[HandshakeTimeout]; got != 1 {
			t.Errorf("timeouts = %d, want 1", got)
		}
	})
}

// TestHandshakesTakeTurns fills all turns. Handshakes wait for a turn, and while maxWaiting of them wait the gate accepts
// no connection. When turns are free again, all handshakes complete. A peer that leaves gives up its turn.
func TestHandshakesTakeTurns(t *testing.T) {
	_, g, addr := newTLSHub(t, GateConfig{})
	for range cap(g.turns) {
		g.turns <- struct{}{} // other handshakes are being computed
	}
	waiting := func() int {
		g.mu.Lock()
		defer g.mu.Unlock()
		return g.waiting
	}
	done := make(chan error)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	const extra = 10
	for i := range maxWaiting + extra {
		go func() {
			dialer := &tls.Dialer{Config: addr.config()}
			conn, err := dialer.DialContext(ctx, "tcp", addr.String())
			if err == nil {
				conn.Close()
			}
			done <- err
		}()
		if i < maxWaiting {
			waitFor(t, "one more to wait", func() bool { return waiting() == i+1 })
		}
	}
	time.Sleep(10 * time.Millisecond)
	// The gate may have accepted one more before it reached the limit.
	if n := g.Arrivals(); n > maxWaiting+1 {
		t.Errorf("%d arrivals while %d handshakes wait, want at most %d", n, maxWaiting, maxWaiting+1)
	}
	for range cap(g.turns) {
		<-g.turns
	}
	for range maxWaiting + extra {
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
	waitFor(t, "all to leave", func() bool { return g.Arrivals() == 0 && len(g.turns) == 0 && waiting() == 0 })
	if n := g.Handshakes()[HandshakeOK]; n != maxWaiting+extra {
		t.Errorf("completed handshakes = %d, want %d", n, maxWaiting+extra)
	}

	// The handshake of a CA does not wait, and a peer that has left keeps no turn.
	for range cap(g.turns) {
		g.turns <- struct{}{}
	}
	config := addr.config()
	config.NextProtos = []string{protocolChallenge}
	if conn, err := tls.Dial("tcp", addr.String(), config); err != nil {
		t.Errorf("Dial of a CA while all turns are taken: %v", err)
	} else {
		conn.Close()
	}
	go func() {
		dialer := &tls.Dialer{Config: addr.config()}
		_, err := dialer.DialContext(ctx, "tcp", addr.String())
		done <- err
	}()
	// The CA's connection has left: makeRoom has no other to close.
	waitFor(t, "one alone to wait", func() bool { return waiting() == 1 && g.Arrivals() == 1 })
	g.makeRoom()
	if err := <-done; err == nil {
		t.Error("Dial on a connection that the gate closed succeeded, want an error")
	}
	for range cap(g.turns) {
		<-g.turns
	}
	waitFor(t, "its end", func() bool { return waiting() == 0 && len(g.turns) == 0 })
}
