package machine

import (
	"context"
	"os"
	"runtime/debug"
	"time"
)

const (
	// paceEvery is how often the number of clients is looked at.
	paceEvery = 5 * time.Second

	// easyClients is up to how many clients the collector keeps Go's usual pace, at which the heap
	// doubles between two collections.
	easyClients = 1000

	// leastGCPercent bounds how hard the collector works. An idle client allocates nothing, so that
	// even with many clients collections are rare.
	leastGCPercent = 20

	// movingGCPercent is the same bound while crowds come and go. Each handshake makes 60 KB of
	// garbage. When 10,000 clients arrived at 20 %, each kept 10.5 KB; at 70 %, 10.9; at 100 %, 11.1, and the
	// peak was a tenth higher. At 20 % the collector took the most CPU, at 100 % the least.
	movingGCPercent = 70
)

// gcPercent returns the collector's pace for a number of clients (see GOGC in package runtime): the
// garbage between two collections is at most what easyClients clients take, down to leastGCPercent.
func gcPercent(clients int) int {
	if clients <= easyClients {
		return 100
	}
	return max(leastGCPercent, 100*easyClients/clients)
}

// KeepPace sets the collector's pace by the number of clients until ctx ends: a small server stays
// quick, and a large one spends its memory on clients and not on garbage. When many clients have come
// or gone and their number has settled, it returns freed memory to the system. It does nothing if GOGC
// is set.
func KeepPace(ctx context.Context, clients func() int) {
	if os.Getenv("GOGC") != "" {
		return
	}
	tick := time.NewTicker(paceEvery)
	defer tick.Stop()
	defer debug.SetGCPercent(debug.SetGCPercent(100))
	var (
		last        int  // clients at the last look
		least, most int  // clients since memory was last returned
		again       bool // return memory once more: the first collection may have freed what held the rest
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

// near reports whether two numbers of clients differ by less than a tenth of the larger, or of
// easyClients.
func near(a, b int) bool {
	return max(a, b)-min(a, b) < max(easyClients, a, b)/10
}
