package main

import (
	"context"
	"errors"
	"log/slog"
	"math"
	"os"
	"runtime/debug"
	"time"

	"github.com/KimMachineGun/automemlimit/memlimit"
)

// memoryRatio is how much of a container's limit the Go runtime may fill before it collects
// as often as it takes. The rest is what the kernel keeps for sockets, which is in the limit.
const memoryRatio = 0.8

// limitMemory has the runtime keep below the limit of the container, if there is one, and if
// GOMEMLIMIT has not been set by a person. It does nothing but delay the end of a server that
// really needs more; what keeps it from that is the number of clients (see room).
func limitMemory(log *slog.Logger) {
	limit, err := memlimit.Set(memlimit.WithRatio(memoryRatio))
	if err != nil {
		log.Debug("the memory limit of the container is not known", "err", err)
	} else if limit < math.MaxInt64 {
		log.Info("memory limit", "gomemlimit", limit)
	}
}

const (
	// clientMemory is what one client may take, in bytes, with room for the kernel's share.
	clientMemory = 32 << 10

	// arrivalMemory is the same for a connection that has not joined the hub: a goroutine with
	// the stack of a TLS handshake, net/http's buffers, and a request's header.
	arrivalMemory = 64 << 10

	// mostReserve is how many file descriptors are left for all but the public: listeners, the
	// CA, the admin listener, the store, DNS. A few dozen are in use at worst.
	mostReserve = 64
)

// room is how many connections the machine has room for: clients, and arrivals that have not
// joined the hub (see [hub.Gate]). Together they leave file descriptors for everything else, so
// that no number of strangers keeps the CA, the store, or an operator from what they need.
type room struct {
	clients, arrivals int
	files             uint64 // the limit of open files
}

// roomFor divides the file descriptors and the memory, in bytes: of the first a fifth is for
// arrivals, of the second half is for clients and an eighth for arrivals.
func roomFor(files, memory uint64) room {
	usable := files - min(mostReserve, files/4)
	return room{
		clients:  int(min(usable-usable/5, max(1, memory/2/clientMemory), math.MaxInt32)),
		arrivals: int(min(usable/5, max(1, memory/8/arrivalMemory), math.MaxInt32)),
		files:    files,
	}
}

// fit returns how many clients there may be if asked are wanted, 0 of which is as many as
// fit, and an error that says why they are fewer or may be too many.
func (r room) fit(asked int) (int, error) {
	most := int(r.files-min(mostReserve, r.files/4)) - r.arrivals
	switch {
	case asked == 0:
		return r.clients, nil
	case asked > most:
		return most, errors.New("lowered to what the file limit allows: raise it (ulimit -n, docker --ulimit nofile, systemd LimitNOFILE)")
	case asked > r.clients:
		return asked, errors.New("more than fit into the memory if all of them keep the server busy")
	}
	return asked, nil
}

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
