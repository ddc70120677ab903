// Command ca is the certificate authority of bench start: Let's Encrypt's Pebble, with a count
// of the requests that it gets. It is a program of its own, because several peers run in the
// program bench. Their memory is measured, and Pebble would add to it.
//
// It first prints [Hello] as a line of JSON. Then it prints [Asked] for each line of its input,
// and exits at the end of the input.
package main

import (
	"bufio"
	"context"
	"crypto/tls"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"os"
	"path"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/letsencrypt/pebble/v2/ca"
	"github.com/letsencrypt/pebble/v2/db"
	"github.com/letsencrypt/pebble/v2/va"
	"github.com/letsencrypt/pebble/v2/wfe"
	"github.com/miekg/dns"
)

func main() {
	var cfg config
	certFile := flag.String("cert", "", "PEM `file` with the certificate of the CA's own API, valid for 127.0.0.1")
	keyFile := flag.String("key", "", "PEM `file` with its key")
	flag.IntVar(&cfg.httpPort, "http-port", 0, "`port` of http-01")
	flag.IntVar(&cfg.tlsPort, "tls-port", 0, "`port` of tls-alpn-01")
	flag.IntVar(&cfg.retryAfter, "retry-after", 0, "`seconds` in Retry-After for an unfinished order or authorization; 0 sends no Retry-After")
	flag.Parse()
	var err error
	if cfg.certificate, err = tls.LoadX509KeyPair(*certFile, *keyFile); err == nil {
		err = run(cfg, os.Stdin, os.Stdout)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "ca:", err)
		os.Exit(1)
	}
}

// run starts the CA and answers each line of in on out.
func run(cfg config, in io.Reader, out io.Writer) error {
	c, err := start(cfg)
	if err != nil {
		return err
	}
	defer c.close()
	encoder := json.NewEncoder(out)
	if err := encoder.Encode(c.hello); err != nil {
		return err
	}
	lines := bufio.NewScanner(in)
	for lines.Scan() {
		if err := encoder.Encode(c.told()); err != nil {
			return err
		}
	}
	return lines.Err()
}

// Hello tells how to reach and trust the CA.
type Hello struct {
	Directory string // URL
	Root      string // PEM: the root of the certificates that the CA issues
}

// Asked counts the requests to the CA so far.
type Asked struct {
	Requests int // all requests
	Orders   int // requests to newOrder

	// Wishes counts the answers with Retry-After about an order or authorization for which the
	// client came back. TooSoon counts those where it came back before the time in Retry-After.
	// Wait is the shortest time until a client came back, and 0 without wishes.
	Wishes, TooSoon int
	Wait            time.Duration
}

type config struct {
	certificate       tls.Certificate // of the CA's API
	httpPort, tlsPort int             // for validation, in place of 80 and 443; each name resolves to 127.0.0.1
	retryAfter        int             // seconds; 0 sends no header
}

// authority is a running Pebble.
type authority struct {
	// Immutable after start.
	hello   Hello
	pebble  http.Handler
	web     *http.Server
	names   *dns.Server
	serving sync.WaitGroup

	mu     sync.Mutex
	asked  Asked           // Guarded by mu.
	wishes map[string]wish // Guarded by mu: by order or authorization, see object.
}

// wish is a Retry-After whose client has not come back yet.
type wish struct{ given, until time.Time }

// The paths of Pebble's API that are used here. https://github.com/letsencrypt/pebble/blob/v2.10.1/wfe/wfe.go
const (
	newOrderPath = "/order-plz"
	orderPath    = "/my-order/"
	finalizePath = "/finalize-order/"
	authzPath    = "/authZ/"
)

// validity is the lifetime of Let's Encrypt's certificates in 2026.
const validity = 90 * 24 * time.Hour

// start starts a CA with new keys, a new root and an empty database.
//
// As in Boulder, validation and issuance run in the background while the CA answers requests,
// so clients have to ask again. The faults that Pebble causes on purpose are off: it accepts
// all valid nonces and does not sleep before a validation. It validates each order again.
func start(cfg config) (*authority, error) {
	// Pebble reads these variables when it is created.
	for name, value := range map[string]string{
		"PEBBLE_VA_NOSLEEP": "1", "PEBBLE_WFE_NONCEREJECT": "0", "PEBBLE_AUTHZREUSE": "0",
	} {
		if err := os.Setenv(name, value); err != nil {
			return nil, err
		}
	}
	nameListener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	webListener, err := tls.Listen("tcp", "127.0.0.1:0", &tls.Config{
		Certificates: []tls.Certificate{cfg.certificate}, NextProtos: []string{"h2", "http/1.1"},
	})
	if err != nil {
		nameListener.Close()
		return nil, err
	}

	quiet := log.New(io.Discard, "", 0)
	store := db.NewMemoryStore()
	issuer := ca.New(quiet, store, "", "ecdsa", 0, 1, map[string]ca.Profile{
		"default": {Description: "default", ValidityPeriod: uint64(validity / time.Second)},
	})
	validator := va.New(quiet, cfg.httpPort, cfg.tlsPort, false, nameListener.Addr().String(), store)
	frontend := wfe.New(quiet, store, validator, issuer, []string{"pebble"}, false, false, cfg.retryAfter, cfg.retryAfter)

	c := &authority{
		hello: Hello{
			Directory: "https://" + webListener.Addr().String() + wfe.DirectoryPath,
			Root:      string(issuer.GetRootCert(0).PEM()),
		},
		pebble: frontend.Handler(),
		names:  &dns.Server{Listener: nameListener, Handler: dns.HandlerFunc(answerLocal)},
		wishes: make(map[string]wish),
	}
	c.web = &http.Server{Handler: c, ErrorLog: quiet}
	c.serving.Go(func() { c.names.ActivateAndServe() })
	c.serving.Go(func() { c.web.Serve(webListener) })
	return c, nil
}

// close stops the CA and closes all connections.
func (c *authority) close() {
	c.web.Close()
	c.names.ShutdownContext(context.Background()) // returns an error if it does not serve yet;
	c.names.Listener.Close()                      // without its listener it never will
	c.serving.Wait()
}

// told returns the counts so far.
func (c *authority) told() Asked {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.asked
}

// ServeHTTP passes a request to Pebble and counts it.
func (c *authority) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	about := object(r.URL.Path)
	now := time.Now()
	c.mu.Lock()
	c.asked.Requests++
	if r.URL.Path == newOrderPath {
		c.asked.Orders++
	}
	if given, ok := c.wishes[about]; ok {
		delete(c.wishes, about)
		c.asked.met(given, now)
	}
	c.mu.Unlock()

	// Pebble sends its header before ServeHTTP returns, so noting reads Retry-After on the way.
	c.pebble.ServeHTTP(&noting{w, func(h http.Header) {
		until, ok := parseRetryAfter(h.Get("Retry-After"), now)
		if about == "" || !ok {
			return
		}
		c.mu.Lock()
		defer c.mu.Unlock()
		c.wishes[about] = wish{now, until}
	}}, r)
}

// met counts a client that came back at now, after the wish w.
func (a *Asked) met(w wish, now time.Time) {
	waited := now.Sub(w.given)
	if a.Wishes == 0 || waited < a.Wait {
		a.Wait = waited
	}
	a.Wishes++
	if now.Before(w.until) {
		a.TooSoon++
	}
}

// noting calls note with the header before it sends the first byte, because the client may act
// on the header before the handler returns.
type noting struct {
	http.ResponseWriter
	note func(http.Header)
}

func (n *noting) WriteHeader(status int) {
	if n.note != nil {
		n.note(n.Header())
		n.note = nil
	}
	n.ResponseWriter.WriteHeader(status)
}

func (n *noting) Write(b []byte) (int, error) {
	if n.note != nil {
		n.WriteHeader(http.StatusOK)
	}
	return n.ResponseWriter.Write(b)
}

// object names the order or authorization that a request to p is about, or returns "" if there
// is none. A client that has finalized an order must wait before it asks for the order:
// "Send a POST-as-GET request after the time given in the Retry-After header field of the
// response, if any." https://www.rfc-editor.org/rfc/rfc8555#section-7.4
func object(p string) string {
	for _, prefix := range []string{orderPath, finalizePath} {
		if strings.HasPrefix(p, prefix) {
			return "order " + path.Base(p)
		}
	}
	if strings.HasPrefix(p, authzPath) {
		return "authorization " + path.Base(p)
	}
	return ""
}

// parseRetryAfter parses both forms of the header: a number of seconds, and a time in whole seconds.
// https://www.rfc-editor.org/rfc/rfc9110#section-10.2.3
func parseRetryAfter(s string, now time.Time) (time.Time, bool) {
	if seconds, err := strconv.Atoi(s); err == nil {
		return now.Add(time.Duration(seconds) * time.Second), true
	}
	t, err := http.ParseTime(s)
	return t, err == nil
}

// answerLocal answers 127.0.0.1 for every name.
func answerLocal(w dns.ResponseWriter, q *dns.Msg) {
	m := new(dns.Msg).SetReply(q)
	if len(q.Question) == 1 && q.Question[0].Qtype == dns.TypeA {
		m.Answer = []dns.RR{&dns.A{
			Hdr: dns.RR_Header{Name: q.Question[0].Name, Rrtype: dns.TypeA, Class: dns.ClassINET},
			A:   net.IPv4(127, 0, 0, 1),
		}}
	}
	w.WriteMsg(m)
}
