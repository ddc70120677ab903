package valkey

import (
	"context"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"plusminus/hub"
	"plusminus/hub/valkey/redistest"
)

// crowd is members that apply +1 to some counters again and again, each in a goroutine of its own. It counts the
// results.
type crowd struct {
	// Immutable after newCrowd.
	t        *testing.T
	members  []*member
	counters []string
	stop     chan struct{}
	running  sync.WaitGroup

	acting sync.RWMutex // held for reading while a member acts

	// Safe from any goroutine.
	counted []atomic.Int64 // of each counter
	refused atomic.Int64
}

// newCrowd starts a crowd that acts on the default counter.
func newCrowd(t *testing.T, members ...*member) *crowd {
	return newCrowdOf(t, []string{""}, members...)
}

// newCrowdOf starts a crowd that acts on the counters, on all of them at once.
func newCrowdOf(t *testing.T, counters []string, members ...*member) *crowd {
	c := &crowd{t: t, members: members, counters: counters, stop: make(chan struct{}), counted: make([]atomic.Int64, len(counters))}
	for _, m := range members {
		m.awaitUp()
		for _, name := range counters {
			if name != "" {
				m.watch(name)
			}
		}
		c.running.Go(func() {
			for c.act(m) {
			}
		})
	}
	return c
}

// act acts on each counter once. It reports false if the crowd has stopped.
func (c *crowd) act(m *member) bool {
	c.acting.RLock()
	defer c.acting.RUnlock()
	select {
	case <-c.stop:
		return false
	default:
	}
	changes := make([]hub.Change, len(c.counters))
	for i, name := range c.counters {
		changes[i] = hub.Change{Counter: name, Delta: 1}
	}
	m.ApplyAll(context.Background(), changes)
	refused := false
	for i := range changes {
		if changes[i].Err == nil {
			c.counted[i].Add(1)
		} else {
			refused = true
			c.refused.Add(1)
		}
	}
	if refused {
		time.Sleep(10 * time.Millisecond)
	}
	return true
}

// pause waits until no member acts, and keeps it so until resume.
func (c *crowd) pause()  { c.acting.Lock() }
func (c *crowd) resume() { c.acting.Unlock() }

// healed waits until each member is connected and actions count again. what is what went wrong.
func (c *crowd) healed(what string) { c.t.Helper(); c.healedWithin(what, 10*time.Second) }

func (c *crowd) healedWithin(what string, limit time.Duration) {
	c.t.Helper()
	for _, m := range c.members {
		await(c.t, what+", and the member is connected again", limit, func() bool { return m.up() })
	}
	for i, name := range c.counters {
		was := c.counted[i].Load()
		await(c.t, what+", and actions on the counter "+name+" count again", limit, func() bool { return c.counted[i].Load() > was+int64(5*len(c.members)) })
	}
}

// wantExact stops the crowd. The values on the server must be the numbers of actions that counted.
func (c *crowd) wantExact(srv *redistest.Server) {
	c.t.Helper()
	c.wantExactOn(func(name string) string {
		return srv.Do("HGET", c.members[0].cfg.counterKey(name, keyCounter), "value")
	})
}

// wantExactOn is wantExact with a function that asks for the value of a counter.
func (c *crowd) wantExactOn(value func(counter string) string) {
	c.t.Helper()
	close(c.stop)
	c.running.Wait()
	for i, name := range c.counters {
		counted := c.counted[i].Load()
		if got, want := value(name), strconv.FormatInt(counted, 10); got != want {
			c.t.Errorf("the server has %q at %s, want %s: so many actions counted, and %d were refused", name, got, want, c.refused.Load())
		}
		c.t.Logf("%q: %d actions counted", name, counted)
	}
}

// Whatever fails between members and server, each action counts once or is refused, and actions
// count again within seconds. The short form has fewer rounds of each failure, and shorter ones.
func TestFaults(t *testing.T) {
	t.Parallel()
	const members = 3
	rounds := func(short, all int) int {
		if *long {
			return all
		}
		return short
	}
	for _, tt := range []struct {
		name string
		do   func(t *testing.T, srv *redistest.Server, p *redistest.Proxy, c *crowd)
	}{
		{"paused", func(t *testing.T, srv *redistest.Server, p *redistest.Proxy, c *crowd) {
			for range rounds(1, 2) {
				srv.Pause()
				awaitDown(t, c)
				srv.Resume()
				c.healed("the server was paused")
			}
		}},
		{"killed and restarted", func(t *testing.T, srv *redistest.Server, p *redistest.Proxy, c *crowd) {
			for range rounds(1, 3) {
				srv.Kill()
				awaitDown(t, c)
				srv.Restart()
				c.healed("the server was restarted")
			}
		}},
		{"connections cut", func(t *testing.T, srv *redistest.Server, p *redistest.Proxy, c *crowd) {
			for range rounds(10, 30) {
				p.Cut()
				time.Sleep(50 * time.Millisecond)
			}
			c.healed("connections were cut")
		}},
		{"connections cut in an answer", func(t *testing.T, srv *redistest.Server, p *redistest.Proxy, c *crowd) {
			n := rounds(15, 60)
			for i := range n {
				p.CutAnswer(i * 60 / n % 30)
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
			for range rounds(1, 3) {
				p.Hold()
				awaitDown(t, c)
				p.Release() // held calls of closed connections arrive together with new calls
				c.healed("the network held what was sent")
			}
		}},
		{"slow", func(t *testing.T, srv *redistest.Server, p *redistest.Proxy, c *crowd) {
			p.Slow(time.Duration(rounds(100, 200)) * time.Millisecond)
			c.healed("answers were slow")
			p.Slow(2 * answerTimeout)
			awaitDown(t, c)
			p.Slow(0)
			c.healed("answers were too slow")
		}},
		{"out of memory", func(t *testing.T, srv *redistest.Server, p *redistest.Proxy, c *crowd) {
			srv.Do("CONFIG", "SET", "maxmemory", "1")
			awaitDown(t, c)
			if err := c.members[0].news().Err; err == nil || !strings.Contains(err.Error(), "OOM") {
				t.Errorf("News().Err = %v, want the server's reason", err)
			}
			srv.Do("CONFIG", "SET", "maxmemory", "0")
			c.healed("out of memory")
		}},
		{"read-only", func(t *testing.T, srv *redistest.Server, p *redistest.Proxy, c *crowd) {
			// The server becomes a replica of a primary that does not exist. It keeps its data.
			srv.Do("REPLICAOF", "127.0.0.1", "1")
			awaitDown(t, c)
			srv.Do("REPLICAOF", "NO", "ONE")
			c.healed("the server was a replica")
		}},
		{"scripts flushed", func(t *testing.T, srv *redistest.Server, p *redistest.Proxy, c *crowd) {
			for range rounds(10, 20) {
				srv.Do("SCRIPT", "FLUSH")
				time.Sleep(10 * time.Millisecond)
			}
			c.healed("scripts were flushed")
		}},
		{"clients killed by the server", func(t *testing.T, srv *redistest.Server, p *redistest.Proxy, c *crowd) {
			for range rounds(5, 10) {
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
				all = append(all, newManyMember(t, on(p.Addr), 10))
			}
			c := newCrowdOf(t, []string{"", "likes", "door.a"}, all...)
			time.Sleep(100 * time.Millisecond)
			tt.do(t, srv, p, c)
			c.wantExact(srv)
			for _, m := range all {
				for _, of := range []*counter{m.standard, m.counters["likes"]} {
					if n := m.snapshot(of).Epoch; n != 1 {
						t.Errorf("the epoch of %q = %d, want 1: the server lost nothing", of.name, n)
					}
				}
			}
		})
	}
}

// awaitDown waits until the news of each member says that the server cannot be used.
func awaitDown(t *testing.T, c *crowd) {
	t.Helper()
	for _, m := range c.members {
		await(t, "the news has an error", 6*time.Second, func() bool { return m.news().Err != nil })
	}
}

// A failover to a replica that has all changes loses nothing and begins no new epoch. Nothing is
// written to the old primary, which becomes a replica.
func TestFailover(t *testing.T) {
	t.Parallel()
	primary := redistest.Start(t, "--repl-diskless-sync-delay", "0") // by default a copy waits 5 s for other replicas
	second := redistest.Start(t)
	host, port := primary.Host()
	second.Do("REPLICAOF", host, port)
	await(t, "the second server follows", 10*time.Second, func() bool { return strings.Contains(second.Do("INFO", "replication"), "master_link_status:up") })
	p := redistest.StartProxy(t, primary.Addr) // stands for a name that moves
	a, b := newMember(t, on(p.Addr)), newMember(t, on(p.Addr))
	c := newCrowd(t, a, b)
	await(t, "the second server has a value", 10*time.Second, func() bool { return second.Do("HEXISTS", "{plusminus}:counter", "value") == "1" })
	time.Sleep(200 * time.Millisecond)
	// A planned failover: writes stop, the second server gets all changes and becomes the primary.
	primary.Do("CLIENT", "PAUSE", "1000", "WRITE")
	await(t, "the second server has all changes", 5*time.Second, func() bool {
		return second.Do("HGET", "{plusminus}:counter", "value") == primary.Do("HGET", "{plusminus}:counter", "value")
	})
	second.Do("REPLICAOF", "NO", "ONE")
	host, port = second.Host()
	primary.Do("REPLICAOF", host, port)
	awaitDown(t, c) // READONLY
	p.Target(second.Addr)
	c.healed("the second server has taken over")
	c.wantExact(second)
	if a.snapshot(a.standard).Epoch != 1 || b.snapshot(b.standard).Epoch != 1 {
		t.Errorf("epochs are %d and %d, want 1: nothing was lost\n%s", a.snapshot(a.standard).Epoch, b.snapshot(b.standard).Epoch, a.logs)
	}
}
