package e2e

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/coder/websocket"
)

// A clicker is a client that notes what it sees.
type countingClient struct {
	ws    *websocket.Conn
	first int64 // the value at its arrival

	seen    atomic.Int64  // the newest value
	refused atomic.Int64  // error messages
	gone    chan struct{} // closed when the connection has ended
}

// joinCounting waits until the server takes clients, and returns a client that has seen the value.
func (m *process) joinCounting() *countingClient {
	m.t.Helper()
	transport := &http.Transport{
		DialContext: func(ctx context.Context, network, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, network, m.addrs.HTTPS[0])
		},
		TLSClientConfig: &tls.Config{RootCAs: m.roots},
	}
	ctx, cancel := context.WithTimeout(m.t.Context(), time.Minute)
	defer cancel()
	for {
		ws, _, err := websocket.Dial(ctx, "wss://localhost/", &websocket.DialOptions{HTTPClient: &http.Client{Transport: transport}})
		if err == nil {
			c := &countingClient{ws: ws, gone: make(chan struct{})}
			states := make(chan int64, 1)
			go c.read(states)
			select {
			case c.first = <-states:
				return c
			case <-c.gone:
				err = errors.New("it closed the connection")
			}
		}
		if ctx.Err() != nil {
			m.t.Fatalf("no client can join: %v", err)
		}
		time.Sleep(2 * time.Millisecond)
	}
}

// read reads until the connection ends. The first state goes to states.
func (c *countingClient) read(states chan<- int64) {
	defer close(c.gone)
	for first := true; ; {
		_, data, err := c.ws.Read(context.Background())
		if err != nil {
			return
		}
		var msg struct {
			Type  string
			Value int64
		}
		if err := json.Unmarshal(data, &msg); err != nil {
			return
		}
		switch msg.Type {
		case "state":
			c.seen.Store(msg.Value)
			if first {
				states <- msg.Value
				first = false
			}
		case "error":
			c.refused.Add(1)
		}
	}
}

// click sends an action. It may have been counted even if that fails.
func (c *countingClient) click() error {
	return c.ws.Write(context.Background(), websocket.MessageText, []byte(plus))
}

// waitSeen waits until the client has seen at least value, and reports whether it came to that.
func (c *countingClient) waitSeen(value int64) bool {
	for c.seen.Load() < value {
		select {
		case <-c.gone:
			return c.seen.Load() >= value
		case <-time.After(50 * time.Microsecond):
		}
	}
	return true
}

// The process is killed hundreds of times at random moments while clients act. What any of them has seen is
// never lost, and what they sent counts once at most: exactly once if all had been answered when the kill came.
func TestKilledUnderLoad(t *testing.T) {
	t.Parallel()
	lives := 24 // each combination of life%8, life%4 and life%3 once
	if *long {
		lives = 400
	}
	m := newLocalProcess(t)
	var (
		value, room    int64 // what was seen last, and how many more may have counted
		actions, exact int64
		kills          int
	)
	arrive := func() *countingClient {
		c := m.joinCounting()
		if c.first < value || c.first > value+room {
			t.Fatalf("after kill %d the value is %d, want %d, which was seen, to %d, which were sent", kills, c.first, value, value+room)
		}
		return c
	}
	for life := range lives {
		if life%8 == 7 { // it does not even come up
			time.Sleep(rand.N(40 * time.Millisecond))
			m.kill()
			kills++
			m.start()
		}
		clients := []*countingClient{arrive()}
		first := clients[0].first
		value, room = first, 0
		if life%2 == 1 { // several
			for range 1 + rand.IntN(5) {
				clients = append(clients, m.joinCounting())
			}
		}
		// In one life of three each action waits for the one before; in others some hundred are on their way.
		window := int64(1)
		if life%3 > 0 {
			window = 1 + rand.Int64N(300)
		}
		var sent atomic.Int64
		stop := make(chan struct{})
		var clicking sync.WaitGroup
		for _, c := range clients {
			clicking.Go(func() {
				for {
					select {
					case <-stop:
						return
					case <-c.gone:
						return
					default:
					}
					if n := sent.Load(); n-(c.seen.Load()-first) >= window || !sent.CompareAndSwap(n, n+1) {
						time.Sleep(20 * time.Microsecond)
					} else if c.click() != nil {
						return
					}
				}
			})
		}
		time.Sleep(rand.N(60 * time.Millisecond))
		answered := life%4 < 2
		if answered { // nothing is on its way, so that what is seen is what there is
			close(stop)
			clicking.Wait()
			for _, c := range clients {
				if !c.waitSeen(first + sent.Load()) {
					t.Fatal("the process ended by itself")
				}
			}
			exact++
		}
		m.kill()
		kills++
		if !answered {
			close(stop)
		}
		clicking.Wait()
		for _, c := range clients {
			<-c.gone
			c.ws.CloseNow()
			value = max(value, c.seen.Load())
			if n := c.refused.Load(); n > 0 {
				t.Errorf("%d actions were refused", n)
			}
		}
		room = first + sent.Load() - value
		if room < 0 || answered && room != 0 {
			t.Fatalf("%d actions were sent from %d on, and %d was seen", sent.Load(), first, value)
		}
		actions += sent.Load()
		m.start()
	}
	// At last all is answered, and nobody is killed: it adds up to the last.
	c := arrive()
	for range 100 {
		if err := c.click(); err != nil {
			t.Fatal(err)
		}
	}
	if !c.waitSeen(c.first + 100) {
		t.Fatal("the last actions were not answered")
	}
	if got := m.state(); got != fmt.Sprintf(`{"value":%d,"users":1}`+"\n", c.first+100) {
		t.Errorf("GET /state = %q, want the value %d", got, c.first+100)
	}
	c.ws.CloseNow()
	t.Logf("%d kills, %d of them with all answered; %d actions", kills, exact, actions)
}

func (m *process) state() string {
	m.t.Helper()
	_, body := m.get("https://localhost/state", "")
	return body
}
