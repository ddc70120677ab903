package peers

import (
	"crypto/tls"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
)

// Config is what a server needs to know.
type Config struct {
	Certificate tls.Certificate
	Announce    bool // tell everyone when somebody comes or goes
}

func (c Config) tls() *tls.Config {
	return &tls.Config{Certificates: []tls.Certificate{c.Certificate}, MinVersion: tls.VersionTLS13}
}

// Servers maps the name of a server to the function that runs it on a listener.
var Servers = map[string]func(Config, net.Listener) error{
	"floor":   floor,
	"gorilla": gorillaHub,
	"coder":   coderHub,
	"gws":     gwsBroadcaster,
}

// Run serves name on a free loopback port, whose address it prints.
func Run(name string, cfg Config, stdout io.Writer) error {
	serve, ok := Servers[name]
	if !ok {
		return fmt.Errorf("there is no peer %q in this program", name)
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
		panic(err) // these always marshal
	}
	return b
}

func usersJSON(n int) []byte   { return encode(usersMessage{"users", n}) }
func stateJSON(v int64) []byte { return encode(stateMessage{"state", v}) }

// deltaOf returns what a client's message changes, 0 if it is no action.
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

// serveHTTPS serves handler with net/http and HTTP/1.1, as WebSockets need it.
func serveHTTPS(cfg Config, ln net.Listener, handler http.HandlerFunc) error {
	conf := cfg.tls()
	conf.NextProtos = []string{"http/1.1"}
	srv := &http.Server{Handler: handler, ErrorLog: discardLog}
	return srv.Serve(tls.NewListener(ln, conf))
}
