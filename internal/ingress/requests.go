package ingress

import (
	"math"
	"net/http"
	"strconv"
	"time"

	"plusminus/hub"
)

// Requests limits the requests of each address. Its methods are safe from any goroutine.
type Requests struct {
	// Immutable after New.
	events *hub.Events
	rates  *Rates // nil is no limit
}

// joinCost is how many other requests count as much as one WebSocket connection or stream. The page
// takes five, so no browser needs more.
const joinCost = 10

// Limit returns next behind the limit: an address that asks too often gets 429. joins reports
// whether a request asks to become a client of the hub. A panic of next is counted and logged, and
// ends only its own connection.
func (q *Requests) Limit(next http.Handler, joins func(*http.Request) bool) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		defer q.catch(r)
		cost := 1
		if joins(r) {
			cost = joinCost
		}
		if q.allow(w, r, cost) {
			next.ServeHTTP(w, r)
		}
	})
}

// allow reports whether the address of r may make a request of this cost now. If not, it answers
// 429.
func (q *Requests) allow(w http.ResponseWriter, r *http.Request, cost int) bool {
	address := hub.AddressOf(r.RemoteAddr)
	wait := q.rates.Take(address, cost)
	if wait == 0 {
		return true
	}
	q.events.Refused(ReasonAddressRate, "remote", address, "code", http.StatusTooManyRequests, "wait", wait.Round(time.Millisecond).String())
	w.Header().Set("Retry-After", strconv.Itoa(int(math.Ceil(wait.Seconds()))))
	w.Header().Set("Connection", "close") // or the next request would come on it, as cheap as this one
	http.Error(w, "too many requests from your address", http.StatusTooManyRequests)
	return false
}

// catch is deferred around the handler of r.
func (q *Requests) catch(r *http.Request) {
	switch p := recover(); p {
	case nil:
	case http.ErrAbortHandler:
		panic(p)
	default:
		q.events.Panicked(p, "remote", hub.AddressOf(r.RemoteAddr))
		panic(http.ErrAbortHandler) // net/http closes the connection, and logs nothing
	}
}
