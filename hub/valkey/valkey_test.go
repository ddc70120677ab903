package valkey

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"log/slog"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"plusminus/hub"
	"plusminus/hub/valkey/redistest"
)

// member is a store, and the newest of what it has told.
type member struct {
	*Store
	t    *testing.T
	logs *lines

	mu   sync.Mutex
	last hub.News
	done chan struct{}
	kill func()
}

// lines collects log lines.
type lines struct {
	mu  sync.Mutex
	all strings.Builder
	t   *testing.T
}

func (l *lines) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.all.Write(p)
	return len(p), nil
}

func (l *lines) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.all.String()
}

func newMember(t *testing.T, cfg Config) *member {
	t.Helper()
	m := &member{t: t, logs: &lines{t: t}, done: make(chan struct{})}
	cfg.Logger = slog.New(slog.NewTextHandler(m.logs, nil))
	m.Store = New(cfg)
	stop := make(chan struct{})
	go func() {
		defer close(m.done)
		for {
			select {
			case n := <-m.News():
				m.mu.Lock()
				m.last = n
				m.mu.Unlock()
			case <-stop:
				return
			}
		}
	}()
	m.kill = sync.OnceFunc(func() { // no farewell
		m.cut()
		m.Close()
		close(stop)
		<-m.done
	})
	t.Cleanup(func() {
		m.Close()
		m.kill()
		if t.Failed() {
			t.Logf("a member logged:\n%s", m.logs)
		}
	})
	return m
}

func on(addr string) Config { return Config{Address: addr} }

func (m *member) news() hub.News {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.last
}

// await waits until what is so.
func await(t *testing.T, what string, limit time.Duration, is func() bool) {
	t.Helper()
	began := time.Now()
	for !is() {
		if time.Since(began) > limit {
			t.Fatalf("not so after %v: %s", limit, what)
		}
		time.Sleep(2 * time.Millisecond)
	}
	if took := time.Since(began); took > 100*time.Millisecond {
		t.Logf("%s: after %v", what, took.Round(time.Millisecond))
	}
}

func (m *member) awaitUp() {
	m.t.Helper()
	await(m.t, "it is connected", 10*time.Second, func() bool { return m.up() })
}

func (m *member) up() bool {
	m.Store.mu.Lock()
	defer m.Store.mu.Unlock()
	return m.client != nil && m.err == nil
}

func (m *member) mustApply(delta int64) hub.Snapshot {
	m.t.Helper()
	snap, err := m.Apply(m.t.Context(), delta)
	if err != nil {
		m.t.Fatalf("Apply = %v", err)
	}
	return snap
}

// Members share one value, and each hears of the others' changes and not of its own.
func TestSharedValue(t *testing.T) {
	srv := redistest.Start(t)
	a, b := newMember(t, on(srv.Addr)), newMember(t, on(srv.Addr))
	if snap, err := a.Load(t.Context()); err != nil || snap != (hub.Snapshot{Epoch: 1}) {
		t.Fatalf("Load = %+v, %v", snap, err)
	}
	b.awaitUp()
	if snap := a.mustApply(5); snap != (hub.Snapshot{Epoch: 1, Version: 1, Value: 5}) {
		t.Errorf("Apply = %+v", snap)
	}
	await(t, "b hears of it", time.Second, func() bool { return b.news().Snapshot.Value == 5 })
	time.Sleep(2 * quiet)
	if got := a.news().Snapshot; got.Version != 0 {
		t.Errorf("a hears of its own change: %+v", got)
	}
	if snap := b.mustApply(-7); snap != (hub.Snapshot{Epoch: 1, Version: 2, Value: -2}) {
		t.Errorf("Apply = %+v", snap)
	}
	await(t, "a hears of it", time.Second, func() bool { return a.news().Snapshot.Value == -2 })
	a.mustApply(hub.MaxValue)
	a.mustApply(2)
	for _, delta := range []int64{hub.MaxValue + 1, -hub.MaxValue - 1} { // no doubles
		if _, err := a.Apply(t.Context(), delta); !errors.Is(err, hub.ErrRange) {
			t.Errorf("Apply(%d) = %v, want ErrRange", delta, err)
		}
	}
	if _, err := b.Apply(t.Context(), 1); !errors.Is(err, hub.ErrRange) {
		t.Errorf("Apply beyond the range = %v, want ErrRange", err)
	}
	// Many changes at once: not each is worth a message, and the last one is told.
	a.mustApply(-hub.MaxValue)
	for range 50 {
		a.mustApply(1)
	}
	await(t, "b hears of the last of many", time.Second, func() bool { return b.news().Snapshot.Value == 50 })
	c := newMember(t, on(srv.Addr))
	if snap, err := c.Load(t.Context()); err != nil || snap.Value != 50 {
		t.Errorf("Load = %+v, %v, want 50", snap, err)
	}
	d := newMember(t, Config{Address: srv.Addr, DB: 3})
	e := newMember(t, Config{Address: srv.Addr, Prefix: "other"})
	for _, m := range []*member{d, e} {
		if snap, err := m.Load(t.Context()); err != nil || snap.Value != 0 {
			t.Errorf("Load of another database or prefix = %+v, %v", snap, err)
		}
	}
}

// A message that is lost is made up for by the next beat.
func TestLostMessage(t *testing.T) {
	srv := redistest.Start(t)
	a := newMember(t, on(srv.Addr))
	a.awaitUp()
	srv.Do("HSET", "{plusminus}:counter", "version", "7", "value", "-3") // nobody tells
	await(t, "a has read it", 2*beatEvery, func() bool { return a.news().Snapshot == hub.Snapshot{Epoch: 1, Version: 7, Value: -3} })
	srv.Do("PUBLISH", "{plusminus}:news.0", a.epoch+" 6 99 0 0 x") // late
	srv.Do("PUBLISH", "{plusminus}:news.0", "hello")
	srv.Do("PUBLISH", "{plusminus}:news.0", "another 100 99 0 0 x") // not believed
	time.Sleep(300 * time.Millisecond)
	if got := a.news().Snapshot; got.Value != -3 {
		t.Errorf("after messages that are older or wrong: %+v", got)
	}
}

// users is the sum; one that stops is out at once, one that is killed soon.
func TestPresence(t *testing.T) {
	srv := redistest.Start(t)
	a, b, c := newMember(t, on(srv.Addr)), newMember(t, on(srv.Addr)), newMember(t, on(srv.Addr))
	for i, m := range []*member{a, b, c} {
		m.awaitUp()
		m.Announce(1 << i)
	}
	await(t, "all know", time.Second, func() bool {
		return a.news().Others == 6 && b.news().Others == 5 && c.news().Others == 3
	})
	await(t, "all know how many there are", 2*beatEvery, func() bool { return a.news().Hubs == 3 && b.news().Hubs == 3 })
	c.Close()
	await(t, "one that stopped is gone at once", time.Second, func() bool { return a.news().Others == 2 && b.news().Others == 1 })
	b.kill()
	await(t, "one that was killed is gone", 15*time.Second, func() bool { return a.news().Others == 0 })
	a.Announce(50)
	d := newMember(t, on(srv.Addr))
	await(t, "who joins knows", time.Second, func() bool { return d.news().Others == 50 })
}

// crowd has members apply +1 again and again, and counts what they were told.
type crowd struct {
	t       *testing.T
	members []*member
	stop    chan struct{}
	running sync.WaitGroup
	counted atomic.Int64
	refused atomic.Int64
}

func newCrowd(t *testing.T, members ...*member) *crowd {
	c := &crowd{t: t, members: members, stop: make(chan struct{})}
	for _, m := range members {
		m.awaitUp()
		c.running.Go(func() {
			for {
				select {
				case <-c.stop:
					return
				default:
				}
				_, err := m.Apply(context.Background(), 1)
				if err == nil {
					c.counted.Add(1)
				} else {
					c.refused.Add(1)
					time.Sleep(10 * time.Millisecond)
				}
			}
		})
	}
	return c
}

// healed waits until each member counts again.
func (c *crowd) healed(what string) {
	c.t.Helper()
	for _, m := range c.members {
		await(c.t, what+", and it heals", 10*time.Second, func() bool { return m.up() })
	}
	was := c.counted.Load()
	await(c.t, what+", and actions count again", 10*time.Second, func() bool { return c.counted.Load() > was+int64(5*len(c.members)) })
}

// wantExact stops the crowd, and wants what it was told to be what the server has.
func (c *crowd) wantExact(srv *redistest.Server) {
	c.t.Helper()
	close(c.stop)
	c.running.Wait()
	if got, want := srv.Do("HGET", "{plusminus}:counter", "value"), strconv.FormatInt(c.counted.Load(), 10); got != want {
		c.t.Errorf("the server has %s, and %s actions counted (%d were refused)", got, want, c.refused.Load())
	}
	c.t.Logf("%d actions counted, %d were refused", c.counted.Load(), c.refused.Load())
}

// Whatever goes wrong between members and server, each action counts once or is refused,
// and within seconds all is well again.
func TestFaults(t *testing.T) {
	const members = 3
	for _, tt := range []struct {
		name string
		do   func(t *testing.T, srv *redistest.Server, p *redistest.Proxy, c *crowd)
	}{
		{"paused", func(t *testing.T, srv *redistest.Server, p *redistest.Proxy, c *crowd) {
			for range 2 {
				srv.Pause()
				awaitDown(t, c)
				srv.Resume()
				c.healed("the server was paused")
			}
		}},
		{"killed and restarted", func(t *testing.T, srv *redistest.Server, p *redistest.Proxy, c *crowd) {
			for range 3 {
				srv.Kill()
				awaitDown(t, c)
				srv.Restart()
				c.healed("the server was restarted")
			}
		}},
		{"connections cut", func(t *testing.T, srv *redistest.Server, p *redistest.Proxy, c *crowd) {
			for range 30 {
				p.Cut()
				time.Sleep(50 * time.Millisecond)
			}
			c.healed("connections were cut")
		}},
		{"connections cut in an answer", func(t *testing.T, srv *redistest.Server, p *redistest.Proxy, c *crowd) {
			for i := range 60 {
				p.CutAnswer(i % 30)
				time.Sleep(30 * time.Millisecond)
			}
			c.healed("answers were cut")
		}},
		{"unreachable", func(t *testing.T, srv *redistest.Server, p *redistest.Proxy, c *crowd) {
			p.Refuse(true)
			p.Cut()
			awaitDown(t, c)
			p.Refuse(false)
			c.healed("the server was unreachable")
		}},
		{"network holds what was sent", func(t *testing.T, srv *redistest.Server, p *redistest.Proxy, c *crowd) {
			for range 3 {
				p.Hold()
				awaitDown(t, c)
				p.Release() // calls of connections that were given up arrive beside those of new ones
				c.healed("the network held what was sent")
			}
		}},
		{"slow", func(t *testing.T, srv *redistest.Server, p *redistest.Proxy, c *crowd) {
			p.Slow(200 * time.Millisecond)
			c.healed("slow, in use")
			p.Slow(2 * answerTimeout) // too slow
			awaitDown(t, c)
			p.Slow(0)
			c.healed("the server was slow")
		}},
		{"out of memory", func(t *testing.T, srv *redistest.Server, p *redistest.Proxy, c *crowd) {
			srv.Do("CONFIG", "SET", "maxmemory", "1")
			awaitDown(t, c)
			if err := c.members[0].news().Err; err == nil || !strings.Contains(err.Error(), "OOM") {
				t.Errorf("it says %v, want the server's reason", err)
			}
			srv.Do("CONFIG", "SET", "maxmemory", "0")
			c.healed("out of memory")
		}},
		{"read-only", func(t *testing.T, srv *redistest.Server, p *redistest.Proxy, c *crowd) {
			// A primary that cannot be reached: ours becomes a replica without data of its own, yet.
			srv.Do("REPLICAOF", "127.0.0.1", "1")
			awaitDown(t, c)
			srv.Do("REPLICAOF", "NO", "ONE")
			c.healed("the server was a replica")
		}},
		{"scripts flushed", func(t *testing.T, srv *redistest.Server, p *redistest.Proxy, c *crowd) {
			for range 20 {
				srv.Do("SCRIPT", "FLUSH")
				time.Sleep(10 * time.Millisecond)
			}
			c.healed("scripts were flushed")
		}},
		{"clients killed by the server", func(t *testing.T, srv *redistest.Server, p *redistest.Proxy, c *crowd) {
			for range 10 {
				srv.Do("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
				srv.Do("CLIENT", "KILL", "TYPE", "pubsub", "SKIPME", "yes")
				time.Sleep(50 * time.Millisecond)
			}
			c.healed("clients were killed")
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			srv := redistest.Start(t)
			p := redistest.StartProxy(t, srv.Addr)
			var all []*member
			for range members {
				all = append(all, newMember(t, on(p.Addr)))
			}
			c := newCrowd(t, all...)
			time.Sleep(100 * time.Millisecond)
			tt.do(t, srv, p, c)
			c.wantExact(srv)
			for _, m := range all {
				if n := m.snapshot().Epoch; n != 1 {
					t.Errorf("%d epochs, want 1: the server lost nothing", n)
				}
			}
		})
	}
}

// awaitDown waits until each member has said that the server cannot be used.
func awaitDown(t *testing.T, c *crowd) {
	t.Helper()
	for _, m := range c.members {
		await(t, "it is said", 6*time.Second, func() bool { return m.news().Err != nil })
	}
}

// A failover to a replica that has everything loses nothing and is no new epoch; the one
// that comes back as a replica is not written to.
func TestFailover(t *testing.T) {
	primary, second := redistest.Start(t), redistest.Start(t)
	host, port := primary.Host()
	second.Do("REPLICAOF", host, port)
	await(t, "the second server follows", 10*time.Second, func() bool { return strings.Contains(second.Do("INFO", "replication"), "master_link_status:up") })
	p := redistest.StartProxy(t, primary.Addr) // the name that moves
	a, b := newMember(t, on(p.Addr)), newMember(t, on(p.Addr))
	c := newCrowd(t, a, b)
	await(t, "actions count", 10*time.Second, func() bool { return primary.Do("HEXISTS", "{plusminus}:counter", "value") == "1" })
	time.Sleep(200 * time.Millisecond)
	// As a planned failover goes: writes stop, the second has all, and takes over.
	primary.Do("CLIENT", "PAUSE", "1000", "WRITE")
	await(t, "the second server has all", 5*time.Second, func() bool {
		return second.Do("HGET", "{plusminus}:counter", "value") == primary.Do("HGET", "{plusminus}:counter", "value")
	})
	second.Do("REPLICAOF", "NO", "ONE")
	host, port = second.Host()
	primary.Do("REPLICAOF", host, port)
	awaitDown(t, c) // READONLY
	p.Target(second.Addr)
	c.healed("the second server has taken over")
	c.wantExact(second)
	if a.snapshot().Epoch != 1 || b.snapshot().Epoch != 1 {
		t.Errorf("a new epoch though nothing was lost:\n%s", a.logs)
	}
}

// A server that comes back without its newest changes, or without any, is a new epoch:
// all take its value over, and say so.
func TestLostChanges(t *testing.T) {
	for _, tt := range []struct {
		name string
		lose func(srv *redistest.Server)
		want int64
	}{
		{"flushed", func(srv *redistest.Server) { srv.Do("FLUSHALL") }, 0},
		{"set back", func(srv *redistest.Server) { srv.Kill(); srv.Restart() }, 10},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			srv := redistest.Start(t, "--appendonly", "no")
			a, b := newMember(t, on(srv.Addr)), newMember(t, on(srv.Addr))
			b.awaitUp()
			a.awaitUp()
			a.mustApply(10)
			srv.Do("SAVE")
			a.mustApply(5)
			b.Announce(2)
			await(t, "b hears of it", time.Second, func() bool { return b.news().Snapshot.Value == 15 })
			tt.lose(srv)
			for _, m := range []*member{a, b} {
				await(t, "it is a new epoch", 10*time.Second, func() bool {
					return m.snapshot() == hub.Snapshot{Epoch: 2, Version: m.snapshot().Version, Value: tt.want}
				})
				if !strings.Contains(m.logs.String(), "level=ERROR msg=\"the store is not the one it was") {
					t.Errorf("it does not say so: %s", m.logs)
				}
			}
			await(t, "users are counted", 5*time.Second, func() bool { return a.news().Others == 2 })
			b.awaitUp()
			if got := b.mustApply(1); got.Value != tt.want+1 || got.Epoch != 2 {
				t.Errorf("Apply = %+v", got)
			}
			await(t, "a hears of it", 5*time.Second, func() bool { return a.news().Snapshot.Value == tt.want+1 })
		})
	}
}

// Without a server, Load and Apply say why, soon, and all comes up with the server.
func TestAwayAtStart(t *testing.T) {
	srv := redistest.Start(t)
	srv.Kill()
	m := newMember(t, on(srv.Addr))
	if _, err := m.Apply(t.Context(), 1); err == nil {
		t.Error("Apply = nil before there was a connection")
	}
	if _, err := m.Load(t.Context()); err == nil || !strings.Contains(err.Error(), "refused") {
		t.Errorf("Load = %v, want why", err)
	}
	began := time.Now()
	if _, err := m.Apply(t.Context(), 1); err == nil || time.Since(began) > answerTimeout {
		t.Errorf("Apply = %v after %v", err, time.Since(began))
	}
	srv.Restart()
	await(t, "there is a value", 5*time.Second, func() bool { return m.news().Snapshot.Epoch == 1 })
	m.mustApply(1)
}

// Close does not wait for a server that hangs, nor Apply beyond its context.
func TestCloseWhileHanging(t *testing.T) {
	srv := redistest.Start(t)
	m := newMember(t, on(srv.Addr))
	m.awaitUp()
	srv.Pause()
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	began := time.Now()
	if _, err := m.Apply(ctx, 1); err == nil {
		t.Error("Apply = nil, and nobody has answered")
	}
	if !strings.Contains(m.logs.String(), "will not be known") {
		t.Errorf("it does not say that an outcome is unknown: %s", m.logs)
	}
	m.Close()
	if took := time.Since(began); took > 3*time.Second {
		t.Errorf("it took %v", took)
	}
	srv.Resume()
}

// The user of an ACL that docs/replicas.md shows is enough, over TLS, and a wrong password is said
// and not shown.
func TestLogin(t *testing.T) {
	cert, key := selfSigned(t)
	port := freePort(t)
	srv := redistest.Start(t, "--tls-port", port, "--tls-cert-file", cert, "--tls-key-file", key, "--tls-auth-clients", "no")
	rule, _, _ := strings.Cut(aclRule(t), "\n")
	srv.Do(append([]string{"ACL", "SETUSER"}, strings.Fields(strings.Replace(rule, "PASSWORD", "s3cret:/?", 1))...)...)
	cfg, err := ParseURL("rediss://plusminus@127.0.0.1:" + port + "/2?prefix=plusminus")
	if err != nil {
		t.Fatal(err)
	}
	stranger := newMember(t, cfg)
	if _, err := stranger.Load(t.Context()); err == nil || !strings.Contains(err.Error(), "certificate") {
		t.Errorf("Load with the system's roots = %v", err)
	}
	stranger.Close()
	if err := cfg.TrustRoots(cert); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "password")
	cfg.PasswordFile = file
	os.WriteFile(file, []byte("wr0ng\n"), 0o600)
	m := newMember(t, cfg)
	if _, err := m.Load(t.Context()); err == nil || !strings.Contains(err.Error(), "WRONGPASS") || strings.Contains(err.Error(), "wr0ng") {
		t.Errorf("Load with a wrong password = %v", err)
	}
	os.WriteFile(file, []byte("s3cret:/?\n"), 0o600) // mended while it runs
	m.awaitUp()
	m.mustApply(1)
	m.Announce(1)
	other := newMember(t, cfg)
	await(t, "another one hears", 5*time.Second, func() bool { return other.news().Others == 1 })
	m.mustApply(1)
	await(t, "another one hears", time.Second, func() bool { return other.news().Snapshot.Value == 2 })
	m.Close()
	await(t, "it has stopped", time.Second, func() bool { return other.news().Others == 0 })
	files := NewFiles(cfg)
	defer files.Close()
	release := lock(t, files, "x")
	for _, life := range []time.Duration{0, time.Minute} {
		if err := files.Put(t.Context(), "one", "x", []byte("1"), life); err != nil {
			t.Error(err)
		}
	}
	if data, _, err := files.Get(t.Context(), "one"); err != nil || string(data) != "1" {
		t.Errorf("Get = %q, %v, want 1", data, err)
	}
	if err := files.Delete(t.Context(), "one"); err != nil {
		t.Error(err)
	}
	release()
	lock(t, files, "x")() // it was free again
	if strings.Contains(m.logs.String(), "s3cret") || strings.Contains(fmt.Sprint(m.cfg), "s3cret") {
		t.Error("the password is shown")
	}
}

// aclRule returns the rule that docs/replicas.md shows.
func aclRule(t *testing.T) string {
	t.Helper()
	page, err := os.ReadFile("../../docs/replicas.md")
	if err != nil {
		t.Fatal(err)
	}
	_, rule, ok := strings.Cut(string(page), "ACL SETUSER ")
	if !ok {
		t.Fatal("docs/replicas.md shows no ACL rule")
	}
	return strings.ReplaceAll(rule, "\\\n", " ")
}

func freePort(t *testing.T) string {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	_, port, _ := net.SplitHostPort(ln.Addr().String())
	return port
}

// selfSigned makes a certificate for 127.0.0.1 and returns its files.
func selfSigned(t *testing.T) (certFile, keyFile string) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	pkcs8, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	certFile, keyFile = filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem")
	os.WriteFile(certFile, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), 0o600)
	os.WriteFile(keyFile, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: pkcs8}), 0o600)
	return certFile, keyFile
}

func FuzzParseMessage(f *testing.F) {
	f.Add("e 3 -9007199254740991 5 6 hub")
	f.Add("e 3 4 5 -6 h")
	f.Add("")
	f.Fuzz(func(t *testing.T, s string) {
		r, ok := parseMessage(s)
		if !ok {
			return
		}
		again, ok := parseMessage(fmt.Sprintf("%s %d %d %d %d %s", r.epoch, r.version, r.value, r.users, r.usersSeq, r.from))
		if !ok || again != r {
			t.Errorf("parseMessage(%q) = %+v, and of what that says %+v", s, r, again)
		}
	})
}

func TestParseURL(t *testing.T) {
	for _, tt := range []struct {
		url, want      string
		user, password string
	}{
		{"redis://localhost", "redis://localhost:6379/0?prefix=plusminus", "", ""},
		{"redis://10.0.0.1:7000/3?prefix=a.b", "redis://10.0.0.1:7000/3?prefix=a.b", "", ""},
		{"rediss://u:p%2Fw@[::1]/", "rediss://[::1]:6379/0?prefix=plusminus", "u", "p/w"},
		{"valkeys://:pw@host.example:1", "rediss://host.example:1/0?prefix=plusminus", "", "pw"},
	} {
		c, err := ParseURL(tt.url)
		if err != nil || c.String() != tt.want || c.Username != tt.user || c.Password != tt.password {
			t.Errorf("ParseURL(%q) = %s, user %q, password %q, %v", tt.url, c, c.Username, c.Password, err)
		}
	}
	for _, url := range []string{
		"", "redis:", "redis:host", "redis://", "http://host", "redis://host:0", "redis://host:99999", "redis://host/x", "redis://host/1/2",
		"redis://host/-1", "redis://host?prefx=a", "redis://host?prefix={a}", "redis://host?prefix=a&prefix=b", "redis://host?prefix=",
		"redis://u:secret/x@host", "redis://u:secret%zz@host", "redis://u:secret#x@host", "redis://u:secret@ho st", "redis://:secret", "redis://u:secret?x@host",
	} {
		if c, err := ParseURL(url); err == nil || strings.Contains(err.Error(), "secret") {
			t.Errorf("ParseURL(%q) = %s, %v", url, c, err)
		}
	}
}
