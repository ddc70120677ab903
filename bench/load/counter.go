package load

import (
	"context"
	"fmt"
	"sync/atomic"
)

// A Counter is one counter of the server. Its clients and posters act on it.
type Counter struct {
	// Immutable after newCounter.
	path string

	// Safe from any goroutine.
	sent    atomic.Int64 // the value that all actions so far lead to if none is refused
	refused atomic.Int64 // error messages that its clients have received
	newest  atomic.Int64 // the highest value in an answer to a poster

	// Owned by Flood.
	actor    *Client // one of those that act
	refused0 int64   // refused at the start of the flood
	final    int64   // the value that its clients must have in the end
	first    int64   // when the first client had it, in nanoseconds since Crowd.began
}

// Counters returns n counters of a server with -counters. If n is 1, that is the default counter.
func (cr *Crowd) Counters(n int) []*Counter {
	if n == 1 {
		return []*Counter{cr.standard}
	}
	list := make([]*Counter, n)
	for i := range list {
		list[i] = &Counter{path: fmt.Sprintf("/c/%d", i)}
	}
	return list
}

// ConnectActorsTo adds n clients that Flood can use, and spreads them evenly over the counters. Each of them has another
// address in X-Forwarded-For, since plusminus limits how many counters one address makes.
func (cr *Crowd) ConnectActorsTo(ctx context.Context, counters []*Counter, n, parallel int) ([]*Client, error) {
	return cr.connect(ctx, n, parallel, func(i int) joining {
		return joining{of: counters[i%len(counters)], forwarded: forwardedFor(i), acts: true}
	})
}

// forwardedFor returns a header field with the address of the i-th client.
func forwardedFor(i int) string {
	return fmt.Sprintf("X-Forwarded-For: 10.%d.%d.%d\r\n", i>>16&0xff, i>>8&0xff, i&0xff)
}
