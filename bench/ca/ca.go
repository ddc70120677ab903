// Command ca is the certificate authority of bench start: Let's Encrypt's Pebble, which notes
// what it is asked. It is a program of its own because the bench is also the program of
// several peers, whose memory is measured, and should not grow by what they do not need.
//
// It first prints [Hello] as a line of JSON, and then, for each line of its input, [Asked].
// At the end of its input it ends.
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
	certFile := flag.String("cert", "", "PEM `file` with the certificate of the directory itself, good for 127.0.0.1")
	keyFile := flag.String("key", "", "PEM `file` with its key")
	flag.IntVar(&cfg.httpPort, "http-port", 0, "`port` of http-01")
	flag.IntVar(&cfg.tlsPort, "tls-port", 0, "`port` of tls-alpn-01")
	flag.IntVar(&cfg.retryAfter, "retry-after", 0, "`seconds` to be left alone for while an order or authorization is worked on; 0 says nothing")
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

// Hello says where the CA is.
type Hello struct {
	Directory string // URL
	Root      string // PEM: trusts what the CA issues
}

// Asked is what the CA was asked so far.
type Asked struct {
	Requests int // all of them
	Orders   int // newOrder

	// Wishes are the answers with a Retry-After about an order or authorization, after
	// which the client asked about the same again; TooSoon are those where it did so earlier
	// than it was told. Wait is the least time that it took, and 0 if there were no wishes.
	Wishes, TooSoon int
	Wait            time.Duration
}

type config struct {
	certificate       tls.Certificate // of the directory
	httpPort, tlsPort int             // in place of 80 and 443, at 127.0.0.1 whatever the name
	retryAfter        int             // seconds; 0 is no header
}

// authority is a Pebble that runs.
type authority struct {
	// Immutable after start.
	hello   Hello
	pebble  http.Handler
	web     *http.Server
	names   *dns.Server
	serving sync.WaitGroup

	mu     sync.Mutex
	asked  Asked           // Guarded by mu.
	wishes map[string]wish // Guarded by mu: by the order or authorization.
}

// wish is a Retry-After that the client has not met or missed yet.
type wish struct{ given, until time.Time }

// Pebble's paths that matter here. https://github.com/letsencrypt/pebble/blob/v2.10.1/wfe/wfe.go
const (
	newOrderPath = "/order-plz"
	orderPath    = "/my-order/"
	finalizePath = "/finalize-order/"
	authzPath    = "/authZ/"
)

// validity is that of Let's Encrypt's certificates in 2026.
const validity = 90 * 24 * time.Hour

// start starts a CA with keys and a root of its own, and without memory of others.
//
// It behaves as Boulder does where a client's waiting is concerned: validation and issuance
// go on while requests are answered, so that clients have to ask again. What Pebble does on
// purpose to annoy clients is off: it refuses no good nonces, does not sleep before it
// validates, and validates anew for each order.
func start(cfg config) (*authority, error) {
	// Pebble takes these from the environment when it is made.
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

// close ends the CA. Connections to it are cut.
func (c *authority) close() {
	c.web.Close()
	c.names.ShutdownContext(context.Background()) // an error says that it does not serve yet,
	c.names.Listener.Close()                      // and then it will not
	c.serving.Wait()
}

func (c *authority) told() Asked {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.asked
}

// ServeHTTP hands a request to Pebble and notes it.
func (c *authority) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	about := object(r.URL.Path)
	now := time.Now()
	c.mu.Lock()
	c.asked.Requests++
	if r.URL.Path == newOrderPath {
		c.asked.Orders++
	}
	if wish, ok := c.wishes[about]; ok {
		delete(c.wishes, about)
		c.asked.met(wish, now)
	}
	c.mu.Unlock()

	// Pebble writes its header at once, so that what it wishes must be caught on the way.
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

// met notes that the client came back.
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

// noting calls note with the header before the first byte is sent, since the client may act
// on it before the handler has returned.
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

// object returns what a request to p is about, or "" if that is neither an order nor an
// authorization. A client that has finalized an order must wait before it looks at the order:
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

// parseRetryAfter understands both forms of the header: seconds, and a time in whole seconds.
// https://www.rfc-editor.org/rfc/rfc9110#section-10.2.3
func parseRetryAfter(s string, now time.Time) (time.Time, bool) {
	if seconds, err := strconv.Atoi(s); err == nil {
		return now.Add(time.Duration(seconds) * time.Second), true
	}
	t, err := http.ParseTime(s)
	return t, err == nil
}

// answerLocal says 127.0.0.1 whatever the name.
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
