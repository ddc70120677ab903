package e2e

import (
	"context"
	"encoding/json"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/coder/websocket"

	"plusminus/acme/pebbletest"
)

// TestRenewalsDropNoClient connects clients and changes the certificate: by renewals that are due, by one that an
// operator asks for, and by one from another CA. No connection ends, and each client receives every value of the
// counter.
// With -long there are 1,000 clients and three due renewals.
func TestRenewalsDropNoClient(t *testing.T) {
	t.Parallel()
	const life = 12 * time.Second // of a certificate
	clients, renewals := 100, 1
	if *long {
		clients, renewals = 1000, 3
	}
	f := newForwarder(t)
	profiles := map[string]time.Duration{"short": life}
	ca := pebbletest.Start(t, pebbletest.Config{TLSPort: f.port, Profiles: profiles})
	data := t.TempDir()
	root := filepath.Join(data, "roots.pem")
	fallbackPort := newForwarder(t)
	fallback := pebbletest.Start(t, pebbletest.Config{TLSPort: fallbackPort.port, Profiles: profiles})
	if err := os.WriteFile(root, append(ca.DirectoryRootPEM, fallback.DirectoryRootPEM...), 0o600); err != nil {
		t.Fatal(err)
	}
	s := start(t, "-data", data, "-domain", "counter.test", "-acme-directory", ca.DirectoryURL, "-acme-fallback", fallback.DirectoryURL,
		"-acme-ca-root", root, "-store", "memory", "-action-rate", "0")
	s.roots = ca.IssuingRoots
	f.to(s.addrs.HTTPS[0])
	s.waitReady()

	var (
		counted atomic.Int64 // values that all clients together have received
		dropped atomic.Int64
		reading sync.WaitGroup
		conns   []*websocket.Conn
	)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	for range clients {
		ws := s.join("wss://counter.test/")
		conns = append(conns, ws)
		reading.Go(func() {
			for next := int64(0); ; {
				_, data, err := ws.Read(ctx)
				if err != nil {
					if ctx.Err() == nil {
						dropped.Add(1)
					}
					return
				}
				var m struct {
					Type  string
					Value int64
				}
				if err := json.Unmarshal(data, &m); err != nil || m.Type != "state" {
					continue
				}
				if m.Value != next {
					t.Errorf("a client received %d after %d, want %d", m.Value, next-1, next)
				}
				next = m.Value + 1
				counted.Add(1)
			}
		})
	}

	waitCounted := func(want int64) {
		t.Helper()
		for deadline := time.Now().Add(time.Minute); counted.Load() < want; time.Sleep(10 * time.Millisecond) {
			if time.Now().After(deadline) {
				t.Fatalf("the clients received %d values, want %d", counted.Load(), want)
			}
		}
	}
	waitCounted(int64(clients)) // each client has received 0

	actions := int64(0)
	act := func() {
		send(t, conns[0], plus)
		actions++
		waitCounted(int64(clients) * (actions + 1)) // before the next one, so that no values merge
		time.Sleep(50 * time.Millisecond)
	}
	serial := s.serial("counter.test")
	change := func(what string) {
		t.Helper()
		for deadline := time.Now().Add(time.Minute); s.serial("counter.test") == serial; act() {
			if time.Now().After(deadline) {
				t.Fatalf("the certificate did not change after %s", what)
			}
		}
		serial = s.serial("counter.test")
	}
	for range renewals {
		change("half of its lifetime")
	}
	if resp, body := s.post("http://"+s.addrs.Admin+"/renew", nil); resp.StatusCode != 200 {
		t.Errorf("POST /renew = %s %s", resp.Status, body)
	}
	change("POST /renew")

	// A replica gets a certificate from the other CA. The server takes it over, because it is the newest.
	ca.Stop()
	replica := start(t, "-data", data, "-domain", "counter.test", "-acme-directory", fallback.DirectoryURL, "-acme-ca-root", root, "-store", "memory")
	fallbackPort.to(replica.addrs.HTTPS[0])
	s.roots = fallback.IssuingRoots
	for deadline := time.Now().Add(time.Minute); ; act() {
		client := s.client()
		resp, err := client.Get("https://counter.test/")
		client.CloseIdleConnections()
		if err == nil {
			resp.Body.Close()
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("the server does not serve the certificate of the other CA: %v", err)
		}
	}

	if got := dropped.Load(); got != 0 {
		t.Errorf("%d of %d clients were disconnected, want none", got, clients)
	}
	cancel()
	reading.Wait()
	t.Logf("%d clients received %d values each, through %d changes of the certificate", clients, actions+1, renewals+2)
}
