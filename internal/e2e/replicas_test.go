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

// collectingClient is a client whose messages wait in got until the test looks for them.
type collectingClient struct {
	t   *testing.T
	ws  *websocket.Conn
	got chan string // messages as "users N", "state N" or "error CODE"; closed when the connection ends
}

// joinCollecting connects a collectingClient.
func (s *plusminus) joinCollecting() *collectingClient { s.t.Helper(); return s.joinCollectingAt("/") }

// joinCollectingAt is joinCollecting for a path.
func (s *plusminus) joinCollectingAt(path string) *collectingClient {
	s.t.Helper()
	v := &collectingClient{t: s.t, ws: s.join("ws://localhost:80" + path), got: make(chan string, 1000)}
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

// wait reads messages until want comes, and fails the test if that takes longer than limit.
func (v *collectingClient) wait(limit time.Duration, want string) {
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

// TestReplicas runs replicas on one Redis. They are one counter to their clients. The clients stay connected while Redis
// hangs, ends or loses its data, and learn what becomes of their actions.
//
// It does not run in parallel: its time limits are part of what it checks. A message within a second did not wait for
// the next beat of a replica (2 s), and a refusal within that time did not wait for Redis (1.5 s).
func TestReplicas(t *testing.T) {
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
	a := first.joinCollecting()
	a.wait(time.Second, "users 1")
	a.wait(time.Second, "state 0")
	b := second.joinCollecting()
	a.wait(time.Second, "users 2")
	send(t, a.ws, `{"action":"plus"}`)
	a.wait(time.Second, "state 1")
	b.wait(time.Second, "state 1")
	send(t, b.ws, `{"action":"minus"}`)
	send(t, b.ws, `{"action":"minus"}`)
	b.wait(time.Second, "state 0")
	b.wait(time.Second, "state -1")
	a.wait(time.Second, "state -1")
	if _, body := first.get("http://localhost/state", ""); body != `{"value":-1,"users":2}`+"\n" {
		t.Errorf("GET /state = %s", body)
	}

	srv.Pause()
	send(t, a.ws, `{"action":"plus"}`)
	a.wait(3*time.Second, "error store_undecided") // the server cannot know whether Redis gets it
	send(t, a.ws, `{"action":"plus"}`)
	a.wait(time.Second, "error store_unavailable")
	for _, s := range []*plusminus{first, second} {
		if reason := ready(s, 503); !strings.Contains(reason, "no answer") {
			t.Errorf("GET /readyz = 503 %q, want the reason no answer", reason)
		}
		if _, body := s.get("http://"+s.addrs.Admin+"/metrics", ""); !strings.Contains(body, "\nplusminus_store_up 0\n") {
			t.Error("/metrics has no line plusminus_store_up 0")
		}
		if _, body := s.get("http://"+s.addrs.Admin+"/status", ""); !strings.Contains(body, `"store":{"where":"redis://`+srv.Addr+`/1?prefix=test","up":false,"error":"`) {
			t.Errorf("GET /status = %s, want the store with up false and an error", body)
		}
	}
	c := second.joinCollecting() // joins, and receives the last known value
	c.wait(time.Second, "state -1")
	srv.Resume()
	a.wait(5*time.Second, "state 0") // the undecided action
	b.wait(5*time.Second, "state 0")
	ready(first, 200)
	ready(second, 200)
	send(t, b.ws, `{"action":"plus"}`)
	a.wait(time.Second, "state 1")

	srv.Kill()
	ready(first, 503)
	send(t, a.ws, `{"action":"plus"}`)
	a.wait(time.Second, "error store_unavailable")
	late := replica() // starts without Redis, and waits for it
	if reason := ready(late, 503); !strings.Contains(reason, "refused") {
		t.Errorf("not ready: %s", reason)
	}
	if resp, _ := late.get("http://localhost/state", ""); resp.StatusCode != 503 {
		t.Errorf("GET /state before Redis answered = %s, want 503", resp.Status)
	}
	if _, resp, err := late.dial("ws://localhost:80/", websocket.DialOptions{}); err == nil || resp == nil || resp.StatusCode != 503 {
		t.Errorf("dial before Redis answered: response %v, %v, want 503", resp, err)
	}
	srv.Restart()
	ready(first, 200)
	ready(late, 200)
	d := late.joinCollecting()
	d.wait(time.Second, "state 1")
	a.wait(5*time.Second, "users 4")
	if err := late.stop(); err != nil {
		t.Error(err)
	}
	a.wait(time.Second, "users 3")
	srv.Do("FLUSHALL")
	a.wait(5*time.Second, "state 0")
	b.wait(5*time.Second, "state 0")
	// The other replica reports itself again with its next beat.
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		_, body := first.get("http://"+first.addrs.Admin+"/metrics", "")
		if strings.Contains(body, "\nplusminus_store_epoch 2\n") && strings.Contains(body, "\nplusminus_replicas 2\n") {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("/metrics has no epoch 2 and 2 replicas:\n%s", body)
		}
	}
}

// TestReplicasOfManyCounters runs replicas with -counters, on one Redis and on a cluster. Each counter is the same to the clients of
// all replicas, and counts its own users.
func TestReplicasOfManyCounters(t *testing.T) {
	t.Parallel()
	for name, server := range map[string]func(t *testing.T) string{
		"server":  func(t *testing.T) string { return redistest.Start(t).Addr },
		"cluster": func(t *testing.T) string { return redistest.StartCluster(t, 3).Nodes[1].Addr },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			replicasOfManyCounters(t, "redis://"+server(t))
		})
	}
}

func replicasOfManyCounters(t *testing.T, store string) {
	const patience = 5 * time.Second
	replica := func() *plusminus {
		return start(t, "-plain", "-domain", "localhost", "-store", store, "-counters", "likes,door.*", "-max-counters", "5")
	}
	first, second := replica(), replica()
	first.waitReady()
	second.waitReady()
	a, b := first.joinCollectingAt("/c/likes"), second.joinCollectingAt("/c/likes")
	standard, several := first.joinCollecting(), second.joinCollectingAt("/c?name=door.a&name=likes")
	a.wait(patience, "users 3")
	b.wait(patience, "users 3")
	standard.wait(patience, "users 1")
	post := func(s *plusminus, path string, status int, want string) {
		t.Helper()
		if resp, body := s.request("POST", path, plus, nil); resp.StatusCode != status || !strings.Contains(body, want) {
			t.Errorf("POST %s = %s %s, want %d %s", path, resp.Status, body, status, want)
		}
	}
	post(first, "/c/likes", 200, `{"value":1}`) // the first replica makes all counters, so it knows how many there are
	a.wait(patience, "state 1")
	b.wait(patience, "state 1")
	several.wait(patience, "state 1")
	send(t, b.ws, plus)
	a.wait(patience, "state 2")
	post(first, "/c/door.a", 200, `{"value":1}`)
	send(t, several.ws, `{"action":"minus","counter":"door.a"}`)
	several.wait(patience, "state 0")
	post(first, "/", 200, `{"value":1}`)
	standard.wait(patience, "state 1")
	if _, body := second.request("GET", "/c/likes/state", "", nil); body != `{"value":2,"users":3}` {
		t.Errorf("GET /c/likes/state = %s", body)
	}
	several.ws.CloseNow()
	a.wait(patience, "users 2")

	value := func(s *plusminus, args, want string) {
		t.Helper()
		out, err := command(t, strings.Fields("value "+args+" -store "+store+" -admin "+s.addrs.Admin)...).CombinedOutput()
		if err != nil || string(out) != want {
			t.Errorf("plusminus value %s: %v and %q, want %q", args, err, out, want)
		}
	}
	value(first, "set likes 40", "the counter likes is 40\n")
	a.wait(patience, "state 40")
	b.wait(patience, "state 40")
	value(second, "list", "(default) 1\ndoor.a 0\nlikes 40\n")
	value(first, "remove likes", "the counter likes is removed\n")
	a.wait(patience, "state 0")
	b.wait(patience, "state 0")
	value(second, "list", "(default) 1\ndoor.a 0\n")
	send(t, a.ws, plus)
	b.wait(patience, "state 1")
	for _, name := range []string{"b", "c", "d"} {
		post(first, "/c/door."+name, 200, `{"value":1}`)
	}
	post(first, "/c/door.e", 503, "too_many_counters")
	post(first, "/c/likes", 200, `{"value":2}`)
	if err := second.stop(); err != nil {
		t.Error(err)
	}
	a.wait(patience, "users 1")

	// A replica that starts later knows all of it.
	third := replica()
	third.waitReady()
	third.joinCollectingAt("/c/likes").wait(patience, "state 2")
	a.wait(patience, "users 2")
	value(third, "export", `{"counter":"","value":1}
{"counter":"door.a","value":0}
{"counter":"door.b","value":1}
{"counter":"door.c","value":1}
{"counter":"door.d","value":1}
{"counter":"likes","value":2}
`)
}

// TestReplicasShareCertificates runs replicas that share a Redis and no folder. They order one certificate together.
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
		t.Errorf("three replicas made %d orders and serve the serials %v, want one", ca.Orders(), serials)
	}
}
