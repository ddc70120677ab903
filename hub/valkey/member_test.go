package valkey

import (
	"log/slog"
	"strings"
	"sync"
	"testing"
	"time"

	"plusminus/hub"
)

// member is a store and its newest news. It has one goroutine, which receives the news.
type member struct {
	*Store

	// Immutable after newMember.
	t    *testing.T
	logs *lines
	kill func()        // ends the store without its last beat
	done chan struct{} // closed when the goroutine has ended

	mu sync.Mutex
	// Guarded by mu.
	last hub.News                   // the newest news
	of   map[string]hub.CounterNews // the newest news of each counter
}

// lines collects log lines. It is safe for concurrent use.
type lines struct {
	mu  sync.Mutex
	all strings.Builder // Guarded by mu.
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

// newMember returns a member with the default counter only.
func newMember(t *testing.T, cfg Config) *member { return startMember(t, cfg, New) }

// newManyMember returns a member with up to limit other counters.
func newManyMember(t *testing.T, cfg Config, limit int) *member {
	return startMember(t, cfg, func(cfg Config) *Store { return NewMany(cfg, limit) })
}

func startMember(t *testing.T, cfg Config, start func(Config) *Store) *member {
	t.Helper()
	m := &member{t: t, logs: &lines{}, done: make(chan struct{}), of: make(map[string]hub.CounterNews)}
	cfg.Logger = slog.New(slog.NewTextHandler(m.logs, nil))
	m.Store = start(cfg)
	stop := make(chan struct{})
	go func() {
		defer close(m.done)
		for {
			select {
			case n := <-m.News():
				m.mu.Lock()
				m.last = n
				for _, c := range n.Counters {
					m.of[c.Counter] = c
				}
				m.mu.Unlock()
			case <-stop:
				return
			}
		}
	}()
	m.kill = sync.OnceFunc(func() {
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

// news returns the newest news of the default counter, and Hubs and Err of the newest news.
func (m *member) news() news { return m.newsOf("") }

// news is the newest news of one counter.
type news struct {
	hub.CounterNews
	Hubs int
	Err  error
}

func (m *member) newsOf(counter string) news {
	m.mu.Lock()
	defer m.mu.Unlock()
	return news{m.of[counter], m.last.Hubs, m.last.Err}
}

// await waits until is reports true. what names that state.
func await(t *testing.T, what string, limit time.Duration, is func() bool) {
	t.Helper()
	began := time.Now()
	for !is() {
		if time.Since(began) > limit {
			t.Fatalf("after %v it is not so that %s", limit, what)
		}
		time.Sleep(2 * time.Millisecond)
	}
	if took := time.Since(began); took > 100*time.Millisecond {
		t.Logf("%s: after %v", what, took.Round(time.Millisecond))
	}
}

func (m *member) awaitUp() {
	m.t.Helper()
	await(m.t, "the member is connected", 10*time.Second, func() bool { return m.up() })
}

func (m *member) up() bool {
	m.Store.mu.Lock()
	defer m.Store.mu.Unlock()
	return m.client != nil && m.err == nil
}

// mustApplyTo is mustApply for one of several counters.
func (m *member) mustApplyTo(counter string, delta int64) hub.Snapshot {
	m.t.Helper()
	changes := []hub.Change{{Counter: counter, Delta: delta}}
	m.ApplyAll(m.t.Context(), changes)
	if changes[0].Err != nil {
		m.t.Fatalf("ApplyAll(%s, %d) = %v, want nil", counter, delta, changes[0].Err)
	}
	return changes[0].Snapshot
}

func (m *member) mustApply(delta int64) hub.Snapshot {
	m.t.Helper()
	snap, err := m.Apply(m.t.Context(), delta)
	if err != nil {
		m.t.Fatalf("Apply(%d) = %v, want nil", delta, err)
	}
	return snap
}
