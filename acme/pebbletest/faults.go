package pebbletest

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strconv"
	"time"
)

// A Fault answers a request in place of Pebble, or spoils Pebble's answer. Any handler is one; it may call
// [Forward]. Faults hold no state, so one serves any number of CAs.
//
// The client's net/http has its own remedy for a connection that is cut before a byte came back: it repeats
// a GET or HEAD if it had used the connection before. A single [Drop] or [DropAnswer] of those can thus go
// unnoticed, except by [CA.Count].
type Fault = http.HandlerFunc

// An injection is a Fault for some requests.
type injection struct {
	path  string
	left  int // how many requests are still to get it; negative is all
	fault Fault
}

// Inject gives the next n requests to path f for an answer; n < 0 is all. If several Faults wait for a
// path, the first that was injected is used up first, and all come before what [CA.Intercept] set.
// lift takes f back from the requests that are still to come, not from those that it already holds. It
// may be called more than once.
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

// Intercept has f answer requests to path from now on, in place of Pebble; nil hands them back. Of several
// paths that fit a request, the longest counts.
func (c *CA) Intercept(path string, f http.HandlerFunc) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if f == nil {
		delete(c.intercepted, path)
	} else {
		c.intercepted[path] = f
	}
}

// handlerLocked returns what is to answer a request to path, and counts it.
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

// Forward is no fault: Pebble answers. [CA.Inject] can let n requests through with it before another Fault
// has its turn.
func Forward(w http.ResponseWriter, r *http.Request) {
	r.Context().Value(caKey{}).(*CA).forward(w, r)
}

// Delay waits for d, then leaves the request to f. It gives up when the client does or the CA stops.
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

// DropAnswer has Pebble do what the request asks for, then closes the connection without an answer.
func DropAnswer(_ http.ResponseWriter, r *http.Request) {
	Forward(httptest.NewRecorder(), r)
	panic(http.ErrAbortHandler)
}

// Truncate has Pebble do what the request asks for, and closes the connection after half of the answer's
// body. An answer without a body is dropped whole.
func Truncate(w http.ResponseWriter, r *http.Request) {
	rec := httptest.NewRecorder()
	Forward(rec, r)
	if body := rec.Body.Bytes(); len(body) > 0 && r.Method != http.MethodHead {
		copyAnswer(w, rec, len(body), body[:len(body)/2])
		http.NewResponseController(w).Flush()
	}
	panic(http.ErrAbortHandler)
}

// Garbage answers 200 with what is neither JSON nor PEM. Pebble does not see the request.
func Garbage(w http.ResponseWriter, _ *http.Request) {
	w.Header().Set("Content-Type", "application/json")
	w.Write([]byte("\x00\xff}{ nothing that makes sense"))
}

// HTML answers as a proxy does that stands before the CA: with a page, and no problem document.
func HTML(status int) Fault {
	return func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/html")
		w.WriteHeader(status)
		fmt.Fprintf(w, "<html><body><h1>%d %s</h1></body></html>\n", status, http.StatusText(status))
	}
}

// Problem refuses every request with a problem document. kind is the error type without its prefix;
// retryAfter is the header's value, which an empty string leaves out.
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

// Processing has Pebble answer, but shows an order that has its certificate as one that is still processing,
// as a slower CA would: it is for [OrderPath]. retryAfter is the header's value, which an empty string leaves
// to [Config]. An answer that is no such order passes as it is.
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

// copyAnswer sends what rec holds, but announces length bytes and sends body.
func copyAnswer(w http.ResponseWriter, rec *httptest.ResponseRecorder, length int, body []byte) {
	for name, values := range rec.Header() {
		w.Header()[name] = values
	}
	w.Header().Set("Content-Length", strconv.Itoa(length))
	w.WriteHeader(rec.Code)
	w.Write(body)
}
