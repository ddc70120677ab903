package ingress

import (
	"net/netip"
	"sync"
	"time"

	"golang.org/x/time/rate"
)

// Rates limits how often each address may do something. Its methods are safe from any goroutine. A
// nil *Rates allows everything.
type Rates struct {
	// Immutable after NewRates.
	limit rate.Limit
	burst int
	keep  time.Duration // a bucket that is unused for this long is full again, like a new one

	mu sync.Mutex
	// Guarded by mu: recent has the buckets used since turned, old those used before.
	recent, old map[netip.Prefix]*rate.Limiter
	turned      time.Time
}

// maxAddresses bounds recent and old, to about 20 MB for both. When more addresses than that send
// within keep, the oldest ones get a new bucket. No address is refused for what others did.
const maxAddresses = 1 << 16

// longestKeep bounds keep: an address that has not been seen for a day gets a new bucket.
const longestKeep = 24 * time.Hour

// NewRates allows each address perSecond in the long run, above 0, and burst at once.
func NewRates(perSecond float64, burst int) *Rates {
	return &Rates{
		limit: rate.Limit(perSecond),
		burst: burst,
		keep:  time.Duration(min(float64(burst)/perSecond+1, longestKeep.Seconds()) * float64(time.Second)),
	}
}

// Take takes n tokens, at most the burst, from the bucket of the address and returns 0. If the bucket
// has too few, Take leaves it as it is and returns how long the address has to wait.
func (r *Rates) Take(address netip.Prefix, n int) time.Duration {
	if r == nil {
		return 0
	}
	now := time.Now()
	r.mu.Lock()
	defer r.mu.Unlock()
	if now.Sub(r.turned) >= r.keep || len(r.recent) >= maxAddresses {
		if now.Sub(r.turned) >= 2*r.keep {
			r.recent = nil
		}
		r.recent, r.old, r.turned = make(map[netip.Prefix]*rate.Limiter), r.recent, now
	}
	bucket := r.recent[address]
	if bucket == nil {
		if bucket = r.old[address]; bucket == nil {
			bucket = rate.NewLimiter(r.limit, r.burst)
		}
		r.recent[address] = bucket
	}
	reservation := bucket.ReserveN(now, n)
	wait := reservation.DelayFrom(now)
	if wait > 0 {
		reservation.CancelAt(now)
	}
	return wait
}
