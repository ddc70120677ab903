package server

import (
	"net/http"

	"plusminus/internal/ingress"
)

// healthPath is the path of the public health check.
const healthPath = "/healthz"

// withHealth returns next behind the health check: GET and HEAD of /healthz get 200 if ready returns nil, or
// else 503. The answer has no body, since everybody may ask.
//
// Load balancers check a server by its address: their Host is an IP address, or is missing (HTTP/1.0). So the
// check answers for any Host. A page that reaches it by DNS rebinding learns nothing more than one bit.
func withHealth(ready func() error, next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != healthPath || r.Method != http.MethodGet && r.Method != http.MethodHead || ingress.WantsWebSocket(r) {
			next.ServeHTTP(w, r)
			return
		}
		w.Header().Set("Cache-Control", "no-store")
		if ready() != nil {
			w.WriteHeader(http.StatusServiceUnavailable)
		}
	})
}
