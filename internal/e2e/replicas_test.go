package e2e

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/coder/websocket"

	"plusminus/acme"
	"plusminus/acme/pebbletest"
	"plusminus/hub/valkey/redistest"
)

// visitor is a client that collects what it is sent.
type collectingClient struct {
	t   *testing.T
	ws  *websocket.Conn
	got chan string
}

func (s *plusminus) visit() *collectingClient {
	s.t.Helper()
	v := &collectingClient{t: s.t, ws: s.join("ws://localhost:80/"), got: make(chan string, 1000)}
	go func() {
		defer close(v.got)
		for {
			_, data, err := v.ws.Read(context.Background())
			if err != nil {
				return
			}
			var m struct {
				Type, Code   string
				Count, Value int64
			}
			json.Unmarshal(data, &m)
			switch m.Type {
			case "users":
				v.got <- fmt.Sprint("users ", m.Count)
			case "state":
				v.got <- fmt.Sprint("state ", m.Value)
			default:
				v.got <- "error " + m.Code
			}
		}
	}()
	return v
}

// await reads until want comes, at most for limit.
func (v *collectingClient) await(limit time.Duration, want string) {
	v.t.Helper()
	began := time.Now()
	var got []string
	for {
		select {
		case m, ok := <-v.got:
			if !ok {
				v.t.Fatalf("the connection has ended; received %q, want %q", got, want)
			}
			if m == want {
				if took := time.Since(began); took > 100*time.Millisecond {
					v.t.Logf("%s after %v", want, took.Round(time.Millisecond))
				}
				return
			}
			got = append(got, m)
		case <-time.After(limit - time.Since(began)):
			v.t.Fatalf("received %q in %v, want %q", got, limit, want)
		}
	}
}

// Replicas on one server are one counter to their visitors, who stay connected whatever
// happens to the server, and are told what becomes of their actions.
func TestReplicas(t *testing.T) {
	t.Parallel()
	srv := redistest.Start(t)
	store := "redis://" + srv.Addr + "/1?prefix=test"
	replica := func() *plusminus { return start(t, "-plain", "-store", store) }
	first, second := replica(), replica()
	ready := func(s *plusminus, want int) string {
		t.Helper()
		var body string
		for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(5 * time.Millisecond) {
			resp, text := s.get("http://"+s.addrs.Admin+"/readyz", "")
			if body = text; resp.StatusCode == want {
				return body
			}
			if time.Now().After(deadline) {
				t.Fatalf("GET /readyz = %s %s, want %d", resp.Status, body, want)
			}
		}
	}
	a := first.visit()
	a.await(time.Second, "users 1")
	a.await(time.Second, "state 0")
	b := second.visit()
	a.await(time.Second, "users 2")
	send(t, a.ws, `{"action":"plus"}`)
	a.await(time.Second, "state 1")
	b.await(time.Second, "state 1")
	send(t, b.ws, `{"action":"minus"}`)
	send(t, b.ws, `{"action":"minus"}`)
	b.await(time.Second, "state 0")
	b.await(time.Second, "state -1")
	a.await(time.Second, "state -1")
	if _, body := first.get("http://localhost/state", ""); body != `{"value":-1,"users":2}`+"\n" {
		t.Errorf("GET /state = %s", body)
	}

	srv.Pause()
	send(t, a.ws, `{"action":"plus"}`)
	a.await(3*time.Second, "error store_undecided") // it is on its way
	send(t, a.ws, `{"action":"plus"}`)
	a.await(100*time.Millisecond, "error store_unavailable")
	for _, s := range []*plusminus{first, second} {
		if reason := ready(s, 503); !strings.Contains(reason, "no answer") {
			t.Errorf("not ready: %s", reason)
		}
		if _, body := s.get("http://"+s.addrs.Admin+"/metrics", ""); !strings.Contains(body, "\nplusminus_store_up 0\n") {
			t.Error("/metrics does not say that the store is away")
		}
		if _, body := s.get("http://"+s.addrs.Admin+"/status", ""); !strings.Contains(body, `"store":{"where":"redis://`+srv.Addr+`/1?prefix=test","up":false,"error":"`) {
			t.Errorf("/status does not say that the store is away: %s", body)
		}
	}
	c := second.visit() // is let in, to the last value
	c.await(time.Second, "state -1")
	srv.Resume()
	a.await(5*time.Second, "state 0") // the one that was undecided
	b.await(5*time.Second, "state 0")
	ready(first, 200)
	ready(second, 200)
	send(t, b.ws, `{"action":"plus"}`)
	a.await(time.Second, "state 1")

	srv.Kill()
	ready(first, 503)
	send(t, a.ws, `{"action":"plus"}`)
	a.await(100*time.Millisecond, "error store_unavailable")
	late := replica() // starts, and waits
	if reason := ready(late, 503); !strings.Contains(reason, "refused") {
		t.Errorf("not ready: %s", reason)
	}
	if resp, _ := late.get("http://localhost/state", ""); resp.StatusCode != 503 {
		t.Errorf("GET /state of one that does not know = %s", resp.Status)
	}
	if _, resp, err := late.dial("ws://localhost:80/", websocket.DialOptions{}); err == nil || resp == nil || resp.StatusCode != 503 {
		t.Errorf("a client is let in to a value that is not known: %v", err)
	}
	srv.Restart()
	ready(first, 200)
	ready(late, 200)
	d := late.visit()
	d.await(time.Second, "state 1")
	a.await(5*time.Second, "users 4")
	if err := late.stop(); err != nil {
		t.Error(err)
	}
	a.await(time.Second, "users 3") // at once
	srv.Do("FLUSHALL")
	a.await(5*time.Second, "state 0")
	b.await(5*time.Second, "state 0")
	// The other one is among the replicas again with its next beat.
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		_, body := first.get("http://"+first.addrs.Admin+"/metrics", "")
		if strings.Contains(body, "\nplusminus_store_epoch 2\n") && strings.Contains(body, "\nplusminus_replicas 2\n") {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("/metrics does not tell the epoch and the replicas: %s", body)
		}
	}
}

// Replicas of the whole program that have only a server in common share a certificate, too.
func TestReplicasShareCertificates(t *testing.T) {
	t.Parallel()
	srv := redistest.Start(t)
	f := newForwarder(t)
	ca := pebbletest.Start(t, pebbletest.Config{TLSPort: f.port})
	dir := t.TempDir()
	root, key := filepath.Join(dir, "root.pem"), filepath.Join(dir, "key")
	for file, text := range map[string][]byte{root: ca.DirectoryRootPEM, key: []byte(base64.StdEncoding.EncodeToString(make([]byte, acme.SealKeySize)))} {
		if err := os.WriteFile(file, text, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	replica := func() *plusminus {
		s := start(t, "-data", t.TempDir(), "-domain", "counter.test", "-acme-directory", ca.DirectoryURL, "-acme-ca-root", root,
			"-store", "redis://"+srv.Addr, "-store-key-file", key)
		s.roots = ca.IssuingRoots
		return s
	}
	first := replica()
	second := replica() // at the same time
	f.to(second.addrs.HTTPS[0])
	serials := map[string]bool{}
	for _, s := range []*plusminus{first, second, replica()} {
		s.waitReady()
		s.join("wss://counter.test/").CloseNow()
		_, body := s.get("http://"+s.addrs.Admin+"/status", "")
		var status struct{ Certificates []acme.Status }
		if err := json.Unmarshal([]byte(body), &status); err != nil || len(status.Certificates) != 1 {
			t.Fatalf("GET /status = %s, %v", body, err)
		}
		serials[status.Certificates[0].Serial] = true
	}
	if len(serials) != 1 || ca.Orders() != 1 {
		t.Errorf("%d orders and serials %v of three replicas, want one", ca.Orders(), serials)
	}
}
