package peers

import (
	"crypto/tls"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
)

// Config is the configuration of a peer.
type Config struct {
	Certificate tls.Certificate
	Announce    bool // send users to all clients when a client joins or leaves
}

func (c Config) tls() *tls.Config {
	return &tls.Config{Certificates: []tls.Certificate{c.Certificate}, MinVersion: tls.VersionTLS13}
}

// Servers maps the name of a server to the function that runs it on a listener.
var Servers = map[string]func(Config, net.Listener) error{
	"floor":   floor,
	"gorilla": serveGorilla,
	"coder":   serveCoder,
	"gws":     serveGWS,
}

// Run serves the peer name on a free loopback port, and prints the address.
func Run(name string, cfg Config, stdout io.Writer) error {
	serve, ok := Servers[name]
	if !ok {
		return fmt.Errorf("unknown peer %q", name)
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	fmt.Fprintln(stdout, "listening", ln.Addr())
	return serve(cfg, ln)
}

type usersMessage struct {
	Type  string `json:"type"`
	Count int    `json:"count"`
}

type stateMessage struct {
	Type  string `json:"type"`
	Value int64  `json:"value"`
}

func encode(v any) []byte {
	b, err := json.Marshal(v)
	if err != nil {
		panic(err) // a bug: these types always marshal
	}
	return b
}

func usersJSON(n int) []byte   { return encode(usersMessage{"users", n}) }
func stateJSON(v int64) []byte { return encode(stateMessage{"state", v}) }

// deltaOf returns the change of a client's message: +1, -1, or 0 if it is not an action.
func deltaOf(p []byte) int64 {
	var m struct {
		Action string `json:"action"`
	}
	if json.Unmarshal(p, &m) != nil {
		return 0
	}
	switch m.Action {
	case "plus":
		return +1
	case "minus":
		return -1
	}
	return 0
}

// serveHTTPS serves handler with net/http. It offers only HTTP/1.1, which these WebSocket libraries need.
func serveHTTPS(cfg Config, ln net.Listener, handler http.HandlerFunc) error {
	conf := cfg.tls()
	conf.NextProtos = []string{"http/1.1"}
	srv := &http.Server{Handler: handler, ErrorLog: discardLog}
	return srv.Serve(tls.NewListener(ln, conf))
}
