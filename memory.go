package main

import (
	"context"
	"os"
	"runtime/debug"
	"time"
)

const (
	// paceEvery is how often the collector's pace is looked at.
	paceEvery = 5 * time.Second

	// easyClients is up to how many clients the collector keeps Go's usual pace, in which
	// the heap doubles between two collections.
	easyClients = 1000

	// leastGCPercent bounds how hard the collector works. An idle client allocates nothing,
	// so that even with many clients collections are rare.
	leastGCPercent = 20

	// movingGCPercent is the same while clients come and go in crowds. Each handshake makes
	// 60 KB of garbage. Of 10,000 clients that arrived at 20 %, each kept 12.6 KB; at 100 %,
	// 14.0, in a heap that was left full of holes. In CPU it was the other way round.
	movingGCPercent = 70
)

// gcPercent returns the pace for a number of clients (see GOGC in package runtime): what
// may be allocated between two collections is what easyClients clients take, whatever
// their number, until that would mean to collect all the time.
func gcPercent(clients int) int {
	if clients <= easyClients {
		return 100
	}
	return max(leastGCPercent, 100*easyClients/clients)
}

// keepPace sets the collector's pace by the number of clients until ctx ends: a small
// server stays quick, and in a large one memory goes to clients and not to garbage. When
// many have come or left and their number has settled, what that has used is given back
// to the system. It does nothing if GOGC is set: then a person has decided.
func keepPace(ctx context.Context, clients func() int) {
	if os.Getenv("GOGC") != "" {
		return
	}
	tick := time.NewTicker(paceEvery)
	defer tick.Stop()
	defer debug.SetGCPercent(debug.SetGCPercent(100))
	var (
		last        int  // clients at the last look
		least, most int  // since memory was last given back
		again       bool // what the first collection made free may hold more
	)
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		n := clients()
		settled := near(n, last)
		last = n
		least, most = min(least, n), max(most, n)
		if !settled {
			debug.SetGCPercent(max(gcPercent(n), movingGCPercent))
			continue
		}
		debug.SetGCPercent(gcPercent(n))
		if moved := !near(least, most); moved || again {
			debug.FreeOSMemory()
			again = moved
			least, most = n, n
		}
	}
}

// near reports whether two numbers of clients differ by less than a tenth of
// easyClients, or of the numbers themselves.
func near(a, b int) bool {
	return max(a, b)-min(a, b) < max(easyClients, a, b)/10
}
