package pebbletest

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strconv"
	"time"
)

// A Fault answers a request in place of Pebble, or changes Pebble's answer. Every handler is a Fault. It may call
// [Forward]. A Fault has no state, so one Fault can serve several CAs.
//
// The client's net/http repeats a GET or HEAD on a connection that was used before, if the connection is cut before
// the first byte of the answer. So a client may not notice a single [Drop] or [DropAnswer] of such a request.
// [CA.Count] counts both requests.
type Fault = http.HandlerFunc

// An injection is a Fault for some requests.
type injection struct {
	path  string
	left  int // how many more requests get fault; negative is all
	fault Fault
}

// Inject answers the next n requests to path with f; n < 0 means all. Of several Faults for one path, the one that was
// injected first is used up first. All of them come before the handler of [CA.Intercept].
//
// lift ends that for later requests, but not for requests that f is already answering. It may be called more than
// once.
func (c *CA) Inject(path string, n int, f Fault) (lift func()) {
	i := &injection{path, n, f}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.injected = append(c.injected, i)
	return func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		i.left = 0
	}
}

// Intercept answers all requests to path with f from now on, in place of Pebble. A nil f gives the path back to Pebble.
// If several paths match a request, the longest one counts.
func (c *CA) Intercept(path string, f http.HandlerFunc) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if f == nil {
		delete(c.intercepted, path)
	} else {
		c.intercepted[path] = f
	}
}

// handlerLocked returns the handler for a request to path, and counts the request.
func (c *CA) handlerLocked(path string) http.HandlerFunc {
	for _, i := range c.injected {
		if i.left != 0 && match(i.path, path) {
			if i.left > 0 {
				i.left--
			}
			return i.fault
		}
	}
	handler, longest := http.HandlerFunc(c.forward), ""
	for pattern, f := range c.intercepted {
		if match(pattern, path) && len(pattern) > len(longest) {
			handler, longest = f, pattern
		}
	}
	return handler
}

// caKey is the key of the *CA in the context of a request to it.
type caKey struct{}

// Forward lets Pebble answer. With [CA.Inject], it lets n requests pass before the next Fault.
func Forward(w http.ResponseWriter, r *http.Request) {
	r.Context().Value(caKey{}).(*CA).forward(w, r)
}

// Delay waits for d, then calls f. It ends early when the client gives up or the CA stops.
func Delay(d time.Duration, f Fault) Fault {
	return func(w http.ResponseWriter, r *http.Request) {
		timer := time.NewTimer(d)
		defer timer.Stop()
		select {
		case <-timer.C:
			f(w, r)
		case <-r.Context().Done():
			panic(http.ErrAbortHandler)
		}
	}
}

// Hang does not answer until the client gives up or the CA stops. Pebble does not see the request.
func Hang(_ http.ResponseWriter, r *http.Request) {
	<-r.Context().Done()
	panic(http.ErrAbortHandler)
}

// Drop closes the connection. Pebble does not see the request.
func Drop(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) }

// DropAnswer lets Pebble process the request, then closes the connection without an answer.
func DropAnswer(_ http.ResponseWriter, r *http.Request) {
	Forward(httptest.NewRecorder(), r)
	panic(http.ErrAbortHandler)
}

// Truncate lets Pebble process the request, and closes the connection after half of the answer's body. It drops an
// answer without a body completely.
func Truncate(w http.ResponseWriter, r *http.Request) {
	rec := httptest.NewRecorder()
	Forward(rec, r)
	if body := rec.Body.Bytes(); len(body) > 0 && r.Method != http.MethodHead {
		copyAnswer(w, rec, len(body), body[:len(body)/2])
		http.NewResponseController(w).Flush()
	}
	panic(http.ErrAbortHandler)
}

// Garbage answers 200 with a body that is neither JSON nor PEM. Pebble does not see the request.
func Garbage(w http.ResponseWriter, _ *http.Request) {
	w.Header().Set("Content-Type", "application/json")
	w.Write([]byte("\x00\xff}{ nothing that makes sense"))
}

// HTML answers like a proxy in front of the CA: with a page, without a problem document.
func HTML(status int) Fault {
	return func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/html")
		w.WriteHeader(status)
		fmt.Fprintf(w, "<html><body><h1>%d %s</h1></body></html>\n", status, http.StatusText(status))
	}
}

// Problem refuses each request with a problem document. kind is the error type without its prefix. retryAfter is the
// value of Retry-After; empty is no header.
func Problem(status int, kind, detail, retryAfter string) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/problem+json")
		if retryAfter != "" {
			w.Header().Set("Retry-After", retryAfter)
		}
		w.WriteHeader(status)
		json.NewEncoder(w).Encode(map[string]any{
			"type": "urn:ietf:params:acme:error:" + kind, "detail": detail, "status": status,
		})
	}
}

// Processing lets Pebble answer, but shows an order that has its certificate as still processing, like a slower CA. It is
// for [OrderPath]. retryAfter is the value of Retry-After; empty leaves it to [Config]. Other answers pass unchanged.
func Processing(retryAfter string) Fault {
	return func(w http.ResponseWriter, r *http.Request) {
		rec := httptest.NewRecorder()
		Forward(rec, r)
		body := rec.Body.Bytes()
		var order map[string]any
		if json.Unmarshal(body, &order) == nil && (order["status"] == "valid" || order["status"] == "processing") {
			order["status"] = "processing"
			delete(order, "certificate")
			body, _ = json.Marshal(order)
			if retryAfter != "" {
				rec.Header().Set("Retry-After", retryAfter)
			}
		}
		copyAnswer(w, rec, len(body), body)
	}
}

// copyAnswer sends rec's header with a Content-Length of length, and body.
func copyAnswer(w http.ResponseWriter, rec *httptest.ResponseRecorder, length int, body []byte) {
	for name, values := range rec.Header() {
		w.Header()[name] = values
	}
	w.Header().Set("Content-Length", strconv.Itoa(length))
	w.WriteHeader(rec.Code)
	w.Write(body)
}
