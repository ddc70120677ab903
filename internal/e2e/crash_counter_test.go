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

// countingClient is a client that sends actions and records the values it receives.
type countingClient struct {
	ws    *websocket.Conn
	first int64 // the first value it received

	seen    atomic.Int64  // the newest value
	refused atomic.Int64  // error messages
	gone    chan struct{} // closed when the connection has ended
}

// joinCounting tries to connect until the server accepts, and returns a client that has received a value.
func (p *process) joinCounting() *countingClient {
	p.t.Helper()
	transport := &http.Transport{
		DialContext: func(ctx context.Context, network, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, network, p.addrs.HTTPS[0])
		},
		TLSClientConfig: &tls.Config{RootCAs: p.roots},
	}
	ctx, cancel := context.WithTimeout(p.t.Context(), time.Minute)
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
				err = errors.New("the server closed the connection")
			}
		}
		if ctx.Err() != nil {
			p.t.Fatalf("connecting: %v", err)
		}
		time.Sleep(2 * time.Millisecond)
	}
}

// read reads messages until the connection ends. It sends the first value to states.
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

// act sends an action. The action may count even if act returns an error.
func (c *countingClient) act() error {
	return c.ws.Write(context.Background(), websocket.MessageText, []byte(plus))
}

// waitSeen waits until the client has received value or a higher one. It reports false if the connection ended first.
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

// TestKilledUnderLoad kills the process many times, at random moments, while clients act. A value that any client has
// received is never lost. Each action counts at most once, and exactly once if the server had answered it.
func TestKilledUnderLoad(t *testing.T) {
	t.Parallel()
	lives := 24 // each combination of life%8, life%4 and life%3 once
	if *long {
		lives = 400
	}
	p := newLocalProcess(t)
	var (
		value, open int64 // the highest value received, and the number of later actions that may have counted
		actions     int64 // sent, in all lives
		answered    int   // kills when all actions had an answer
		kills       int
	)
	arrive := func() *countingClient {
		c := p.joinCounting()
		if c.first < value || c.first > value+open {
			t.Fatalf("value after kill %d = %d, want %d (received before) to %d (sent before)", kills, c.first, value, value+open)
		}
		return c
	}
	for life := range lives {
		if life%8 == 7 { // another kill, while the process starts
			time.Sleep(rand.N(40 * time.Millisecond))
			p.kill()
			kills++
			p.start()
		}
		clients := []*countingClient{arrive()}
		first := clients[0].first
		value, open = first, 0
		if life%2 == 1 { // several clients
			for range 1 + rand.IntN(5) {
				clients = append(clients, p.joinCounting())
			}
		}
		// In one life of three each action waits for the answer to the one before. In others up to 300 are in flight.
		window := int64(1)
		if life%3 > 0 {
			window = 1 + rand.Int64N(300)
		}
		var sent atomic.Int64
		stop := make(chan struct{})
		var acting sync.WaitGroup
		for _, c := range clients {
			acting.Go(func() {
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
					} else if c.act() != nil {
						return
					}
				}
			})
		}
		time.Sleep(rand.N(60 * time.Millisecond))
		waits := life%4 < 2
		if waits { // for all answers, so that no action is in flight at the kill
			close(stop)
			acting.Wait()
			for _, c := range clients {
				if !c.waitSeen(first + sent.Load()) {
					t.Fatal("the connection ended before the kill")
				}
			}
			answered++
		}
		p.kill()
		kills++
		if !waits {
			close(stop)
		}
		acting.Wait()
		for _, c := range clients {
			<-c.gone
			c.ws.CloseNow()
			value = max(value, c.seen.Load())
			if n := c.refused.Load(); n > 0 {
				t.Errorf("the server refused %d actions, want none", n)
			}
		}
		open = first + sent.Load() - value
		if open < 0 || waits && open != 0 {
			t.Fatalf("after %d actions from the value %d on, the highest value received is %d", sent.Load(), first, value)
		}
		actions += sent.Load()
		p.start()
	}
	// Without a kill each of the last actions counts.
	c := arrive()
	for range 100 {
		if err := c.act(); err != nil {
			t.Fatal(err)
		}
	}
	if !c.waitSeen(c.first + 100) {
		t.Fatal("the connection ended before the last actions had an answer")
	}
	if got := p.state(); got != fmt.Sprintf(`{"value":%d,"users":1}`+"\n", c.first+100) {
		t.Errorf("GET /state = %q, want the value %d", got, c.first+100)
	}
	c.ws.CloseNow()
	t.Logf("%d kills, %d of them after an answer to each action; %d actions", kills, answered, actions)
}

// state returns the body of GET /state.
func (p *process) state() string {
	p.t.Helper()
	_, body := p.get("https://localhost/state", "")
	return body
}
