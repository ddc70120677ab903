package acme

import (
	"io"
	"net"
	"sync"
	"sync/atomic"
	"testing"

	"plusminus/acme/internal/acmetest"
	"plusminus/acme/internal/challenge"
	"plusminus/acme/pebbletest"
)

// balance returns a port that forwards its connections to the backends in turn, like a layer 4 load balancer, and
// the number of connections so far.
func balance(t testing.TB, backends []net.Listener) (int, *atomic.Int64) {
	t.Helper()
	ln, count := acmetest.Listen(t), new(atomic.Int64)
	var conns sync.WaitGroup
	t.Cleanup(func() { ln.Close(); conns.Wait() })
	conns.Go(func() {
		for {
			in, err := ln.Accept()
			if err != nil {
				return
			}
			backend := backends[int(count.Add(1))%len(backends)].Addr().String()
			conns.Go(func() {
				defer in.Close()
				out, err := net.Dial("tcp", backend)
				if err != nil {
					return
				}
				defer out.Close()
				conns.Go(func() { io.Copy(out, in); out.Close() })
				io.Copy(in, out)
			})
		}
	})
	return acmetest.Port(ln), count
}

// Ten replicas on one data folder, behind one name, start together. They place one order, any of them answers the
// CA's challenge, and all serve the certificate.
func TestReplicas(t *testing.T) {
	t.Parallel()
	testReplicas(t, func(*testing.T) func(*Config) { return func(*Config) {} })
}

// testReplicas is the test for replicas whose configuration the result of share changes.
func testReplicas(t *testing.T, share func(*testing.T) func(*Config)) {
	for _, typ := range []string{challenge.TLSALPN01, challenge.HTTP01} {
		t.Run(typ, func(t *testing.T) {
			t.Parallel()
			change := share(t)
			var secure, open []net.Listener
			for range 10 {
				secure, open = append(secure, acmetest.Listen(t)), append(open, acmetest.Listen(t))
			}
			var ports pebbletest.Config
			var asked *atomic.Int64
			if typ == challenge.TLSALPN01 {
				ports.TLSPort, asked = balance(t, secure)
			} else {
				ports.HTTPPort, asked = balance(t, open)
			}
			ca, cfg := startCA(t, ports, domain)
			var replicas []*server
			for i := range secure {
				cfg := cfg
				change(&cfg)
				replicas = append(replicas, prepare(t, cfg, secure[i], open[i]))
			}
			for _, r := range replicas {
				r.run()
			}
			for _, r := range replicas {
				r.waitReady(t)
			}
			want := 1
			if typ == challenge.HTTP01 {
				want = 2 // tls-alpn-01 fails first
			}
			if got := ca.Orders(); got != want {
				t.Errorf("%d orders by ten replicas, want %d", got, want)
			}
			if got := asked.Load(); got < 2 { // one after the other
				t.Errorf("the CA asked %d replicas, want several", got)
			}
			for i, r := range replicas {
				if !r.issuers[0].key.Equal(replicas[0].issuers[0].key) {
					t.Errorf("replica %d has another account key", i)
				}
			}

			// A certificate that Renew obtains on one replica is served by all within seconds.
			if err := replicas[3].Renew(t.Context(), domain); err != nil {
				t.Fatal(err)
			}
			serial := replicas[3].status(t, domain).Serial
			for _, r := range replicas {
				acmetest.WaitFor(t, "adoption", func() bool { return r.status(t, domain).Serial == serial })
			}
			if got := ca.Orders(); got != want+1 {
				t.Errorf("%d orders after a renewal, want one more than %d", got, want)
			}
		})
	}
}
