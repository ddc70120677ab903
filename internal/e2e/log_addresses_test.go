package e2e

import (
	"fmt"
	"net"
	"strings"
	"testing"
	"time"
)

// TestLogAddresses checks that with -log-addresses=false no address of a peer appears in the log, whatever the peer does.
func TestLogAddresses(t *testing.T) {
	t.Parallel()
	for _, hidden := range []bool{false, true} {
		t.Run(fmt.Sprintf("hidden=%v", hidden), func(t *testing.T) {
			t.Parallel()
			data := t.TempDir()
			s := newFakeSystemd(t, []string{"https", "http", "admin"}, "-log-level", "debug", fmt.Sprintf("-log-addresses=%v", !hidden),
				"-proxy-protocol", "127.0.0.1", "-data", data)
			s.start()
			if _, body := s.get("http://"+s.addrs.Admin+"/readyz", ""); body != "ready\n" {
				t.Fatalf("GET /readyz = %q", body)
			}
			const visitor = "192.0.2.77"
			for _, first := range []string{
				header(t, 1, visitor) + "junk that is no TLS\r\n\r\n",
				header(t, 2, visitor),
			} {
				s.sayFirst(first)
				nc, err := s.connect(t.Context(), "tcp", s.addrs.HTTPS[0])
				if err != nil {
					t.Fatal(err)
				}
				nc.(*net.TCPConn).CloseWrite()
				nc.SetReadDeadline(time.Now().Add(time.Minute))
				for buf := make([]byte, 100); ; {
					if _, err := nc.Read(buf); err != nil {
						break
					}
				}
				nc.Close()
			}
			s.sayFirst(header(t, 2, visitor))
			s.trustLocalCA(data)
			s.join("wss://localhost/").CloseNow()
			s.connect = nil
			waitUntil(t, "a log line about the client", func() bool { return strings.Contains(s.output.String(), `"msg":"client `) })
			if got := strings.Contains(s.output.String(), visitor); got == hidden {
				t.Errorf("-log-addresses=%v: the log has the peer's address = %v, want %v", !hidden, got, !hidden)
			}
			if !strings.Contains(s.output.String(), s.addrs.HTTPS[0]) {
				t.Errorf("the log does not have the listener's address %s", s.addrs.HTTPS[0])
			}
		})
	}
}
