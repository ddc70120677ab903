package ingress

import (
	"bufio"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"net"
	"net/http"
	"net/http/httptest"
	"testing"
	"time"

	"plusminus/hub"
)

// rawHandshake is a WebSocket opening handshake.
const rawHandshake = "GET / HTTP/1.1\r\nHost: hub.test\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n" +
	"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"

// newRawHub starts a hub behind a gate, without TLS, and returns its address.
func newRawHub(t testing.TB, gate GateConfig) (*hub.Hub, *Gate, string) {
	t.Helper()
	return newGateHub(t, gate, (*Gate).Listener)
}

// newGateHub starts a hub behind net/http and a listener of a gate, and returns its address.
func newGateHub(t testing.TB, gate GateConfig, listener func(*Gate, net.Listener) net.Listener) (*hub.Hub, *Gate, string) {
	t.Helper()
	gate.Events = hub.NewEvents(hub.EventsConfig{Refusals: Refusals()})
	h, err := hub.New(context.Background(), hub.Config{Store: new(hub.Memory), Events: gate.Events})
	if err != nil {
		t.Fatal(err)
	}
	g := NewGate(gate)
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	srv := &http.Server{Handler: h, MaxHeaderBytes: 8 << 10}
	served := make(chan error, 1)
	go func() { served <- srv.Serve(listener(g, ln)) }()
	t.Cleanup(func() {
		ctx, cancel := context.WithCancel(context.Background())
		cancel()
		_ = h.Shutdown(ctx) // its error says that clients were cut off
		srv.Close()
		if err := <-served; !errors.Is(err, http.ErrServerClosed) {
			t.Errorf("Serve = %v, want ErrServerClosed", err)
		}
	})
	return h, g, ln.Addr().String()
}

// tlsAddr is the address of a TLS server and the CAs that its clients trust.
type tlsAddr struct {
	net.Addr
	roots *x509.CertPool
}

// config returns the TLS configuration of a client.
func (a tlsAddr) config() *tls.Config {
	return &tls.Config{ServerName: "example.com", RootCAs: a.roots}
}

// httpClient returns an HTTP client that reaches a under any name.
func httpClient(a tlsAddr) *http.Client {
	return &http.Client{Transport: &http.Transport{
		TLSClientConfig: a.config(),
		DialContext: func(ctx context.Context, network, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, network, a.String())
		},
	}}
}

// newTLSHub starts a hub behind a gate with TLS. It has a certificate for example.com, and none yet for soon.example.com.
func newTLSHub(t testing.TB, gate GateConfig) (*hub.Hub, *Gate, tlsAddr) {
	t.Helper()
	borrowed := httptest.NewTLSServer(nil)
	certificate := borrowed.TLS.Certificates[0]
	roots := x509.NewCertPool()
	roots.AddCert(borrowed.Certificate())
	borrowed.Close()
	config := &tls.Config{
		NextProtos: []string{"http/1.1", protocolChallenge},
		GetCertificate: func(hello *tls.ClientHelloInfo) (*tls.Certificate, error) {
			switch hello.ServerName {
			case "example.com":
				return &certificate, nil
			case "soon.example.com":
				return nil, errors.New("no certificate yet")
			}
			return nil, nil
		},
	}
	h, g, addr := newGateHub(t, gate, func(g *Gate, ln net.Listener) net.Listener { return g.TLSListener(ln, config) })
	resolved, err := net.ResolveTCPAddr("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	return h, g, tlsAddr{resolved, roots}
}

// rawPeer is a client that sends any bytes.
type rawPeer struct {
	t    testing.TB
	conn net.Conn
	br   *bufio.Reader
}

// dialRaw connects a rawPeer. Its connection ends with the test.
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

// send sends b. The server may close the connection before it has read all of b.
func (p *rawPeer) send(b []byte) { _, _ = p.conn.Write(b) }

// upgraded reads the response to rawHandshake.
func (p *rawPeer) upgraded() {
	p.t.Helper()
	resp, err := http.ReadResponse(p.br, nil)
	if err != nil || resp.StatusCode != http.StatusSwitchingProtocols {
		p.t.Fatalf("response = %v, %v, want 101", resp, err)
	}
}

// waitFor waits until ok reports true, at most a minute.
func waitFor(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(time.Minute); !ok(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("waited a minute for %s", what)
		}
	}
}
