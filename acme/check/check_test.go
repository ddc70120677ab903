package check

import (
	"cmp"
	"context"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"plusminus/hub/valkey"
	"plusminus/hub/valkey/redistest"

	"github.com/miekg/dns"

	"plusminus/acme"
	"plusminus/acme/internal/acmetest"
	"plusminus/acme/internal/challenge"
	"plusminus/acme/internal/localca"
	"plusminus/acme/internal/store"
	"plusminus/acme/pebbletest"
)

const (
	checked  = "www.example.org" // the domain that is checked
	publicV4 = "1.1.1.10"        // all addresses are reached only through world.routes
	publicV6 = "2606:4700::10"
	proxy80  = "1.1.1.20:80"
)

// A world is the network that a check sees: a CA, a DNS, and addresses that lead to listeners of this test. Other
// addresses fail, so no traffic leaves loopback. In a new world every check is OK.
type world struct {
	t   *testing.T
	ca  *pebbletest.CA
	cfg Config

	mu sync.Mutex
	// Guarded by mu during a check.
	routes map[string]string // address -> real address, or one of the outcomes below
	zone   []string          // records
	rcodes map[string]int    // "name type" -> response code
	remote string            // the CA's address as the check sees it; empty is the real one
	dialed []string
}

// What an address may lead to in place of a listener.
const (
	routeRefused = "refused"
	routeSilent  = "silent"
	routeNone    = "none"
	routeHangs   = "hangs" // until the context is done
)

func newWorld(t *testing.T, pebble pebbletest.Config) *world {
	t.Helper()
	httpLn, tlsLn := acmetest.Listen(t), acmetest.Listen(t)
	w := &world{t: t, ca: pebbletest.Start(t, pebble), rcodes: make(map[string]int), remote: "1.1.1.1:443"}
	w.cfg = Config{
		Config:     acme.Config{Dir: t.TempDir(), DirectoryURL: w.ca.DirectoryURL, RootCAs: w.ca.DirectoryRoots, Domains: []acme.Domain{{Name: checked}}},
		HTTP:       Port{Listeners: []net.Listener{httpLn}},
		TLS:        Port{Listeners: []net.Listener{tlsLn}},
		Dial:       w.dial,
		resolvConf: filepath.Join(t.TempDir(), "resolv.conf"),
		mountinfo:  filepath.Join(t.TempDir(), "mountinfo"),
	}
	if err := os.Chmod(w.cfg.Dir, 0o700); err != nil {
		t.Fatal(err)
	}
	w.write(w.cfg.resolvConf, "nameserver 1.1.1.53\n")
	w.write(w.cfg.mountinfo, "27 1 254:0 / / rw,relatime - ext4 /dev/vda rw\n")
	w.zone = []string{checked + ". A " + publicV4}
	w.routes = map[string]string{
		"1.1.1.53:53":     w.startDNS(),
		publicV4 + ":80":  httpLn.Addr().String(),
		publicV4 + ":443": tlsLn.Addr().String(),
		strings.TrimPrefix(strings.TrimSuffix(w.ca.DirectoryURL, pebbletest.DirectoryPath), "https://"): "ca",
	}
	return w
}

func (w *world) write(file, text string) {
	w.t.Helper()
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		w.t.Fatal(err)
	}
}

// A relabelled connection has another remote address.
type relabelled struct {
	net.Conn
	remote net.Addr
}

func (c relabelled) RemoteAddr() net.Addr { return c.remote }

func (w *world) dial(ctx context.Context, network, address string) (net.Conn, error) {
	w.mu.Lock()
	to, ok := w.routes[address]
	w.dialed = append(w.dialed, address)
	w.mu.Unlock()
	fail := func(err error) (net.Conn, error) {
		return nil, &net.OpError{Op: "dial", Net: network, Err: err}
	}
	switch {
	case !ok:
		w.t.Errorf("connection to %s, where there is nothing", address)
		return fail(syscall.ECONNREFUSED)
	case to == routeRefused:
		return fail(os.NewSyscallError("connect", syscall.ECONNREFUSED))
	case to == routeSilent:
		return fail(os.ErrDeadlineExceeded)
	case to == routeNone:
		return fail(os.NewSyscallError("connect", syscall.ENETUNREACH))
	case to == routeHangs:
		<-ctx.Done()
		return fail(ctx.Err())
	case to == "ca":
		conn, err := new(net.Dialer).DialContext(ctx, network, address)
		if err == nil && w.remote != "" {
			return relabelled{conn, net.TCPAddrFromAddrPort(netip.MustParseAddrPort(w.remote))}, nil
		}
		return conn, err
	}
	return new(net.Dialer).DialContext(ctx, network, to)
}

// startDNS starts a name server that knows w.zone, over UDP and TCP, and returns its address.
func (w *world) startDNS() string {
	w.t.Helper()
	var ln net.Listener
	var pc net.PacketConn
	for range 10 { // the same port for both
		var err error
		if ln, err = net.Listen("tcp", "127.0.0.1:0"); err != nil {
			w.t.Fatal(err)
		}
		if pc, err = net.ListenPacket("udp", ln.Addr().String()); err == nil {
			break
		}
		ln.Close()
	}
	if pc == nil {
		w.t.Fatal("no port that is free for UDP and TCP")
	}
	handler := dns.HandlerFunc(w.serveDNS)
	var wg sync.WaitGroup
	w.t.Cleanup(wg.Wait) // last
	for _, s := range []*dns.Server{{Listener: ln, Handler: handler}, {PacketConn: pc, Handler: handler}} {
		started := make(chan struct{})
		s.NotifyStartedFunc = func() { close(started) }
		wg.Go(func() { s.ActivateAndServe() })
		<-started
		w.t.Cleanup(func() { s.ShutdownContext(context.Background()) })
	}
	return ln.Addr().String()
}

func (w *world) serveDNS(rw dns.ResponseWriter, q *dns.Msg) {
	w.mu.Lock()
	defer w.mu.Unlock()
	m := new(dns.Msg).SetReply(q)
	name, qtype := strings.ToLower(q.Question[0].Name), q.Question[0].Qtype
	m.Rcode = dns.RcodeNameError
	for alias := true; alias; {
		alias = false
		for _, text := range w.zone {
			rr, err := dns.NewRR(text)
			if err != nil {
				w.t.Error(err)
				continue
			}
			if dns.IsSubDomain(name, rr.Header().Name) {
				m.Rcode = dns.RcodeSuccess // or an empty non-terminal
			}
			cname, ok := rr.(*dns.CNAME)
			switch {
			case rr.Header().Name != name:
			case rr.Header().Rrtype == qtype:
				m.Answer = append(m.Answer, rr)
			case ok:
				m.Answer = append(m.Answer, rr)
				name, alias = cname.Target, true
			}
		}
	}
	if rcode, ok := w.rcodes[q.Question[0].Name+" "+dns.TypeToString[qtype]]; ok {
		m.Rcode, m.Answer = rcode, nil
	}
	if _, udp := rw.LocalAddr().(*net.UDPAddr); udp {
		m.Truncate(dns.MinMsgSize)
	}
	rw.WriteMsg(m)
}

// check calls Run and returns the findings, each as "level domain subject: text".
func (w *world) check() []string {
	w.t.Helper()
	orders := w.ca.Orders()
	var lines []string
	domain := ""
	began := time.Now()
	err := Run(w.t.Context(), w.cfg, func(f Finding) {
		lines = append(lines, fmt.Sprintf("%v %s %s: %s", f.Level, cmp.Or(f.Domain, "-"), f.Subject, f.Text))
		if domain != f.Domain && domain != "" && f.Domain == "" {
			w.t.Errorf("%v after those of %s", f, domain)
		}
		domain = f.Domain
		if strings.ContainsAny(f.Text, "\n\r") {
			w.t.Errorf("%q has more than one line", f.Text)
		}
	})
	if err != nil {
		w.t.Errorf("Run = %v", err)
	}
	if took := time.Since(began); took > timeout {
		w.t.Errorf("Run took %v", took)
	}
	if n := w.ca.Orders() - orders; n != 0 {
		w.t.Errorf("%d orders were placed", n)
	}
	return lines
}

// want compares findings with patterns: "level subject: part of the text". Each pattern must be
// found, and each warning and problem must match a pattern.
func (w *world) want(lines []string, patterns ...string) {
	w.t.Helper()
	wanted := make(map[string]bool)
	for _, p := range patterns {
		head, text, _ := strings.Cut(p, ": ")
		level, subject, _ := strings.Cut(head, " ")
		found := false
		for _, line := range lines {
			lineHead, lineText, _ := strings.Cut(line, ": ")
			if strings.HasPrefix(lineHead, level+" ") && strings.HasSuffix(lineHead, " "+subject) && strings.Contains(lineText, text) {
				found, wanted[line] = true, true
			}
		}
		if !found {
			w.t.Errorf("no finding %q", p)
		}
	}
	for _, line := range lines {
		if !strings.HasPrefix(line, "ok ") && !wanted[line] {
			w.t.Errorf("unexpected finding %q", line)
		}
	}
	if w.t.Failed() {
		w.t.Logf("findings:\n%s", strings.Join(lines, "\n"))
	}
}

// web starts an HTTP server of another program, and returns its address.
func (w *world) web(handler http.HandlerFunc) string {
	ln := acmetest.Listen(w.t)
	s := &http.Server{Handler: handler}
	var wg sync.WaitGroup
	wg.Go(func() { s.Serve(ln) })
	w.t.Cleanup(func() { s.Close(); wg.Wait() })
	return ln.Addr().String()
}

// peer starts a server that hands each connection to f.
func (w *world) peer(f func(net.Conn)) string {
	ln := acmetest.Listen(w.t)
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			conn, err := ln.Accept()
			if err != nil {
				return
			}
			wg.Go(func() { defer conn.Close(); f(conn) })
		}
	})
	w.t.Cleanup(func() { ln.Close(); wg.Wait() })
	return ln.Addr().String()
}

// tlsPeer starts a TLS server of another program.
func (w *world) tlsPeer(cert tls.Certificate, protos ...string) string {
	return w.peer(func(conn net.Conn) {
		tls.Server(conn, &tls.Config{Certificates: []tls.Certificate{cert}, NextProtos: protos}).Handshake()
	})
}

// otherServers makes servers of another program answer on both ports.
func (w *world) otherServers() {
	w.routes[publicV4+":80"] = w.web(func(rw http.ResponseWriter, r *http.Request) {
		rw.Header().Set("Server", "nginx/1.27")
		rw.WriteHeader(http.StatusBadGateway)
	})
	w.routes[publicV4+":443"] = w.tlsPeer(acmetest.SelfSigned(w.t, "old.example.org", time.Now(), time.Now().Add(day)))
}

// editDirectory serves the CA's directory after f has changed it.
func (w *world) editDirectory(f func(h http.Header, directory, meta map[string]any)) {
	roots := &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: w.ca.DirectoryRoots}}}
	defer roots.CloseIdleConnections()
	res, err := roots.Get(w.ca.DirectoryURL)
	if err != nil {
		w.t.Fatal(err)
	}
	defer res.Body.Close()
	var directory map[string]any
	if err := json.NewDecoder(res.Body).Decode(&directory); err != nil {
		w.t.Fatal(err)
	}
	w.ca.Intercept(pebbletest.DirectoryPath, func(rw http.ResponseWriter, _ *http.Request) {
		f(rw.Header(), directory, directory["meta"].(map[string]any))
		json.NewEncoder(rw).Encode(directory)
	})
}

// Each fault gives its finding, and all other findings are "ok".
func TestRun(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name    string
		prepare func(w *world)
		want    []string
	}{
		{"all is well", func(w *world) {}, []string{
			"ok data folder: can be written, and is private", "ok CA: answers", "ok clock: right",
			"ok account: terms of service: data:text/plain", "ok address: " + publicV4, "ok CAA: no record",
			"ok port 80: at " + publicV4 + ", this server answers", "ok port 443: at " + publicV4 + ", this server answers",
			"ok challenges: by http-01 and by tls-alpn-01"}},

		// The CA.
		{"CA refuses connections", func(w *world) { w.ca.Stop() }, []string{"problem CA: cannot reach the CA"}},
		{"CA is not trusted", func(w *world) { w.cfg.RootCAs = x509.NewCertPool() }, []string{"problem CA: is not trusted here"}},
		{"CA's certificate has expired", func(w *world) {
			cert := acmetest.SelfSigned(w.t, "ca.example.org", time.Now().Add(-2*day), time.Now().Add(-day))
			w.cfg.RootCAs.AddCert(cert.Leaf)
			w.cfg.DirectoryURL = "https://ca.example.org/"
			w.routes["ca.example.org:443"] = w.tlsPeer(cert)
		}, []string{"problem CA: is this machine's clock right?"}},
		{"not a directory", func(w *world) {
			w.ca.Intercept(pebbletest.DirectoryPath, func(rw http.ResponseWriter, _ *http.Request) { io.WriteString(rw, "<html>") })
		}, []string{"problem CA: is not an ACME directory: is -acme-directory right"}},
		{"directory is elsewhere", func(w *world) { w.cfg.DirectoryURL += "x" }, []string{"problem CA: HTTP 404 Not Found; there is no ACME directory at this URL"}},
		{"fallback is away", func(w *world) {
			w.cfg.FallbackURL = "https://fallback.example.org/"
			w.routes["fallback.example.org:443"] = routeRefused
		}, []string{"ok CA: answers", "warning fallback CA: cannot reach the CA"}},
		{"clock is off", func(w *world) { w.cfg.now = func() time.Time { return time.Now().Add(-time.Minute) } },
			[]string{"warning clock: s behind the CA's; set the clock"}},
		{"clock is far off", func(w *world) { w.cfg.now = func() time.Time { return time.Now().Add(11 * time.Minute) } },
			[]string{"problem clock: ahead of the CA's: nothing would be ordered; set the clock"}},
		{"external account", func(w *world) {
			w.editDirectory(func(_ http.Header, _, meta map[string]any) { meta["externalAccountRequired"] = true })
		}, []string{"problem account: requires an external account binding"}},
		{"external account given", func(w *world) {
			w.editDirectory(func(_ http.Header, _, meta map[string]any) { meta["externalAccountRequired"] = true })
			w.cfg.EABKeyID, w.cfg.EABKey = "id", []byte("key")
		}, []string{"ok account: one will be made"}},
		{"no terms", func(w *world) {
			w.editDirectory(func(_ http.Header, _, meta map[string]any) { delete(meta, "termsOfService") })
		}, []string{"ok account: one will be made"}},
		{"profile", func(w *world) { w.cfg.Profile = "default" }, []string{`ok profile: the CA has "default"`}},
		{"unknown profile", func(w *world) { w.cfg.Profile = "shortlived" },
			[]string{`warning profile: the CA has no "shortlived", and its default would be ordered; it has: default`}},

		// The data folder.
		{"folder is missing", func(w *world) { w.cfg.Dir = filepath.Join(w.cfg.Dir, "a", "b") },
			[]string{"ok data folder: is not there yet; the server can make it"}},
		{"folder cannot be made", func(w *world) { w.cfg.Dir = "/proc/nowhere/data" }, []string{"problem data folder: cannot be made"}},
		{"folder is a file", func(w *world) { w.cfg.Dir = w.cfg.resolvConf }, []string{"problem data folder: is no folder"}},
		{"folder below a file", func(w *world) { w.cfg.Dir = filepath.Join(w.cfg.resolvConf, "data") }, []string{"problem data folder: not a directory"}},
		{"folder cannot be written", func(w *world) { w.cfg.Dir = "/proc/self" }, []string{"problem data folder: cannot be written: "}},
		{"folder is open to others", func(w *world) { os.Chmod(w.cfg.Dir, 0o755) }, []string{"warning data folder: (mode 0755)"}},
		{"folder in the container", func(w *world) { w.write(w.cfg.mountinfo, "27 1 0:50 / / rw,relatime - overlay overlay rw\n") },
			[]string{"warning data folder: goes with it"}},
		{"folder in memory", func(w *world) {
			w.write(w.cfg.mountinfo, "27 1 0:50 / / rw - overlay overlay rw\n28 27 0:51 / "+w.cfg.Dir+" rw - tmpfs tmpfs rw\n")
		}, []string{"warning data folder: empty after a restart"}},
		{"folder in a volume without a name", func(w *world) {
			w.write(w.cfg.mountinfo, "27 1 0:50 / / rw - overlay overlay rw\n28 27 8:1 /var/lib/docker/volumes/"+strings.Repeat("0a", 32)+"/_data "+w.cfg.Dir+" rw master:1 - ext4 /dev/sda1 rw\n")
		}, []string{"warning data folder: a volume without a name"}},
		{"folder in a volume", func(w *world) {
			w.write(w.cfg.mountinfo, "27 1 0:50 / / rw - overlay overlay rw\n28 27 8:1 /var/lib/docker/volumes/plusminus/_data "+w.cfg.Dir+" rw - ext4 /dev/sda1 rw\n")
		}, []string{"ok data folder: can be written"}},

		// Addresses.
		{"no such name", func(w *world) { w.zone = nil }, []string{"problem address: there is no such name"}},
		{"no addresses", func(w *world) { w.zone = []string{checked + `. TXT "x"`} }, []string{"problem address: neither an A nor an AAAA record"}},
		{"broken DNS", func(w *world) {
			w.rcodes[checked+". A"], w.rcodes[checked+". AAAA"] = dns.RcodeServerFailure, dns.RcodeServerFailure
		}, []string{"problem address: SERVFAIL"}},
		{"half broken DNS", func(w *world) { w.rcodes[checked+". AAAA"] = dns.RcodeServerFailure }, []string{"warning address: one of the A and AAAA lookups failed"}},
		{"no DNS", func(w *world) { w.routes["1.1.1.53:53"] = routeSilent },
			[]string{"warning address: this machine's DNS is at fault", "warning challenges: could not be looked up", "warning CAA: could not be looked up"}},
		{"second name server", func(w *world) {
			w.write(w.cfg.resolvConf, "nameserver 1.1.1.54\nnameserver 1.1.1.53\n")
			w.routes["1.1.1.54:53"] = routeSilent
		}, []string{"ok address: " + publicV4}},
		{"an alias", func(w *world) {
			w.zone = []string{checked + ". CNAME host.example.net.", "host.example.net. A " + publicV4}
		}, []string{"ok address: " + publicV4}},
		{"an answer too long for UDP", func(w *world) {
			for i := range 20 {
				w.zone = append(w.zone, checked+`. CAA 0 iodef "mailto:`+strings.Repeat("x", 50)+fmt.Sprint(i)+`@example.org"`)
			}
			w.zone = append(w.zone, checked+`. CAA 0 issue ";"`)
		}, []string{"problem CAA: allows nobody"}},
		{"private address", func(w *world) { w.zone = []string{checked + ". A 192.168.1.2"} }, []string{"problem address: 192.168.1.2 is a private address"}},
		{"carrier's NAT", func(w *world) { w.zone = []string{checked + ". A 100.64.1.2"} }, []string{"problem address: CGNAT"}},
		{"loopback", func(w *world) { w.zone = []string{checked + ". A 127.0.0.1", checked + ". AAAA ::1"} },
			[]string{"problem address: 127.0.0.1 is a loopback address", "problem address: ::1 is a loopback address"}},
		{"link-local", func(w *world) { w.zone = []string{checked + ". AAAA fe80::1"} }, []string{"problem address: a link-local address"}},
		{"made up by DNS64", func(w *world) { w.zone = append(w.zone, checked+". AAAA 64:ff9b::101:10a") }, []string{"ok address: " + publicV4}},
		{"private address, private CA", func(w *world) {
			w.remote = ""
			w.zone = []string{checked + ". A 10.0.0.1"}
			w.routes["10.0.0.1:80"], w.routes["10.0.0.1:443"] = w.routes[publicV4+":80"], w.routes[publicV4+":443"]
		}, []string{"ok address: 10.0.0.1 is a private address; so is the CA's own", "ok challenges: by http-01"}},

		// What answers.
		{"refused", func(w *world) { w.routes[publicV4+":80"] = routeRefused },
			[]string{"warning port 80: connection refused; many routers", "ok challenges: answer by tls-alpn-01;"}},
		{"hairpin", func(w *world) { w.routes[publicV4+":80"], w.routes[publicV4+":443"] = routeSilent, routeSilent },
			[]string{"warning port 80: no answer within 10s; many routers", "warning port 443: no answer within 10s; many routers", "warning challenges: cannot be told from inside"}},
		{"refused by this machine itself", func(w *world) {
			w.remote = ""
			w.zone = []string{checked + ". A 127.0.0.1"}
			w.routes["127.0.0.1:80"], w.routes["127.0.0.1:443"] = routeRefused, routeRefused
		}, []string{"warning port 80: although that is an address of this machine", "warning port 443: although that is an address of this machine",
			"problem challenges: neither by http-01 nor by tls-alpn-01"}},
		{"refused in a private network", func(w *world) {
			w.remote = ""
			w.zone = []string{checked + ". A 10.0.0.1"}
			w.routes["10.0.0.1:80"], w.routes["10.0.0.1:443"] = routeRefused, routeRefused
		}, []string{"warning port 80: connection refused: does the record name this machine", "warning port 443: connection refused: does the record name this machine",
			"problem challenges: neither by http-01 nor by tls-alpn-01"}},
		{"no IPv6 here", func(w *world) {
			w.zone = append(w.zone, checked+". AAAA "+publicV6)
			w.routes["["+publicV6+"]:80"], w.routes["["+publicV6+"]:443"] = routeNone, routeNone
		}, []string{"warning port 80: no IPv6 of its own", "warning port 443: no IPv6 of its own", "ok challenges: by http-01 and by tls-alpn-01"}},
		{"stale AAAA", func(w *world) {
			w.zone = append(w.zone, checked+". AAAA "+publicV6)
			web, _ := w.routes[publicV4+":80"], w.routes[publicV4+":443"]
			mine := w.routes[publicV4+":443"]
			w.otherServers()
			w.routes["["+publicV6+"]:80"], w.routes["["+publicV6+"]:443"] = w.routes[publicV4+":80"], w.routes[publicV4+":443"]
			w.routes[publicV4+":80"], w.routes[publicV4+":443"] = web, mine
		}, []string{"warning port 80: at " + publicV6 + ", another server answers", "warning port 443: at " + publicV6 + ", another server ends TLS",
			"problem challenges: neither by http-01"}},
		{"other servers", (*world).otherServers, []string{"warning port 80: another server answers: HTTP 502 Bad Gateway, Server: nginx/1.27",
			"warning port 443: another server ends TLS there, with a certificate for old.example.org", "problem challenges: neither by http-01 nor by tls-alpn-01"}},
		{"a proxy in front of 443", func(w *world) {
			w.routes[publicV4+":443"] = w.tlsPeer(acmetest.SelfSigned(w.t, checked, time.Now(), time.Now().Add(day)), "h2", "http/1.1")
		}, []string{"warning port 443: another server ends TLS there: it does not know the protocol acme-tls/1", "ok challenges: answer by http-01;"}},
		{"no TLS on 443", func(w *world) {
			w.routes[publicV4+":443"] = w.peer(func(c net.Conn) { io.WriteString(c, "SSH-2.0-OpenSSH_9.2\r\n"); io.Copy(io.Discard, c) })
		}, []string{"warning port 443: does not speak TLS"}},
		{"no HTTP on 80", func(w *world) {
			w.routes[publicV4+":80"] = w.peer(func(c net.Conn) { io.WriteString(c, "220 smtp\r\n"); io.Copy(io.Discard, c) })
		}, []string{"warning port 80: another server answers: "}},
		{"closed without an answer", func(w *world) {
			w.routes[publicV4+":80"] = w.peer(func(c net.Conn) {})
		}, []string{"warning port 80: closed without an answer"}},
		{"another challenge's certificate", func(w *world) {
			value, err := asn1.Marshal(make([]byte, 32))
			if err != nil {
				w.t.Fatal(err)
			}
			cert := acmetest.Sign(w.t, &x509.Certificate{DNSNames: []string{checked}, NotBefore: time.Now(), NotAfter: time.Now().Add(day),
				ExtraExtensions: []pkix.Extension{{Id: acmeIdentifier, Critical: true, Value: value}}}, nil)
			w.routes[publicV4+":443"] = w.tlsPeer(cert, "acme-tls/1")
		}, []string{"warning port 443: a challenge that is not ours"}},
		{"another certificate with the protocol", func(w *world) {
			w.routes[publicV4+":443"] = w.tlsPeer(acmetest.SelfSigned(w.t, checked, time.Now(), time.Now().Add(day)), "acme-tls/1")
		}, []string{"warning port 443: the wrong certificate"}},
		{"a plusminus on another data folder", func(w *world) {
			otherTLS, otherPlain := acmetest.Listen(w.t), acmetest.Listen(w.t)
			serve(w.t, acme.Config{Dir: w.t.TempDir(), Domains: []acme.Domain{{Name: checked}}}, otherTLS, otherPlain, false)
			w.routes[publicV4+":80"], w.routes[publicV4+":443"] = otherPlain.Addr().String(), otherTLS.Addr().String()
		}, []string{"warning port 80: a plusminus answers that runs on another data folder", "warning port 443: refuses the handshake", "problem challenges: neither"}},
		{"redirected to where we are", func(w *world) {
			mine := w.routes[publicV4+":80"]
			w.routes[publicV4+":80"] = w.web(func(rw http.ResponseWriter, r *http.Request) {
				http.Redirect(rw, r, "http://alias.example.org"+r.URL.Path, http.StatusFound)
			})
			w.routes[proxy80] = w.web(func(rw http.ResponseWriter, r *http.Request) {
				http.Redirect(rw, r, "http://1.1.1.30"+r.URL.Path, http.StatusFound)
			})
			w.routes["1.1.1.30:80"] = w.peer(func(in net.Conn) { // a proxy that keeps the path and sets the Host
				req := make([]byte, 4096)
				n, _ := in.Read(req)
				out, err := net.Dial("tcp", mine)
				if err != nil {
					return
				}
				defer out.Close()
				io.WriteString(out, strings.Replace(string(req[:n]), "Host: 1.1.1.30", "Host: "+checked, 1))
				io.Copy(in, out)
			})
			w.zone = append(w.zone, "alias.example.org. A 1.1.1.20")
		}, []string{"ok port 80: answers as the CA wants it"}},
		{"redirected to another port", func(w *world) {
			w.routes[publicV4+":80"] = w.web(func(rw http.ResponseWriter, r *http.Request) {
				http.Redirect(rw, r, "https://"+checked+":8443"+r.URL.Path, http.StatusFound)
			})
		}, []string{"warning port 80: which a CA does not follow"}},
		{"redirected in circles", func(w *world) {
			w.routes[publicV4+":80"] = w.web(func(rw http.ResponseWriter, r *http.Request) {
				http.Redirect(rw, r, r.URL.Path, http.StatusFound)
			})
		}, []string{"warning port 80: more than 10 redirects"}},
		{"redirected to another page", func(w *world) {
			w.routes[publicV4+":80"] = w.web(func(rw http.ResponseWriter, r *http.Request) {
				if !strings.HasPrefix(r.URL.Path, "/else") {
					http.Redirect(rw, r, "/else", http.StatusFound)
				}
			})
		}, []string{"warning port 80: HTTP 200 OK, after a redirect to http://" + checked + "/else"}},
		{"no plain listener", func(w *world) { w.cfg.HTTP.Listeners[0].Close(); w.cfg.HTTP = Port{} },
			[]string{"ok port 80: nothing listens for it here", "ok challenges: answer by tls-alpn-01;"}},
		{"in use, and no server has run here", func(w *world) {
			w.cfg.HTTP.Listeners[0].Close()
			w.cfg.HTTP = Port{Running: "127.0.0.1:80"}
		}, []string{"problem port 80: another program has 127.0.0.1:80, or a plusminus on another data folder"}},

		// CAA; judgeCAA has a test of its own.
		{"CAA forbids", func(w *world) { w.zone = append(w.zone, `example.org. CAA 0 issue "other.example"`) },
			[]string{"problem CAA: the record of example.org: allows other.example alone, and this CA is pebble"}},
		{"CAA allows", func(w *world) {
			w.zone = append(w.zone, `org. CAA 0 issue ";"`, `example.org. CAA 0 issue "pebble"`)
		}, []string{"ok CAA: the record of example.org: allows this CA"}},
		{"CAA of an alias", func(w *world) {
			w.zone = []string{checked + ". CNAME host.example.net.", "host.example.net. A " + publicV4, `host.example.net. CAA 0 issue ";"`}
		}, []string{"problem CAA: the record of " + checked + ": allows nobody"}},
		{"CAA leaves one challenge", func(w *world) {
			w.zone = append(w.zone, checked+`. CAA 0 issue "pebble; validationmethods=http-01"`)
			w.otherServers()
		}, []string{"warning port 80: nginx", "warning port 443: old.example.org", "problem challenges: not get its answer by http-01, and the CAA record allows nothing else"}},
		{"CAA lookup fails", func(w *world) { w.rcodes["org. CAA"] = dns.RcodeServerFailure },
			[]string{"problem CAA: SERVFAIL when asked for the CAA records of org"}},
		{"CAA lookup fails, private CA", func(w *world) { w.remote = ""; w.rcodes["org. CAA"] = dns.RcodeServerFailure },
			[]string{"warning CAA: SERVFAIL"}},
		{"CAA, and the CA does not say who it is", func(w *world) {
			w.editDirectory(func(_ http.Header, _, meta map[string]any) { delete(meta, "caaIdentities") })
			w.zone = append(w.zone, checked+`. CAA 0 issue "pebble"`)
		}, []string{"warning CAA: allows: pebble; whether that is this CA cannot be told"}},
		{"CAA, another account", func(w *world) {
			w.zone = append(w.zone, checked+`. CAA 0 issue "pebble; accounturi=https://pebble/acct/1"`)
		},
			[]string{"problem CAA: the account https://pebble/acct/1 alone, and the server would make another"}},
		{"CAA, fallback CA", func(w *world) {
			w.cfg.FallbackURL = w.cfg.DirectoryURL + "?" // another URL, so another CA
			w.zone = append(w.zone, checked+`. CAA 0 issue "pebble"`)
		}, []string{"ok CAA: allows this CA", "ok CAA: for the fallback CA: allows this CA"}},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t, pebbletest.Config{})
			test.prepare(w)
			w.want(w.check(), test.want...)
		})
	}
}

// Files that root makes in a folder of another user would be unreadable for the server.
func TestAsRoot(t *testing.T) {
	t.Parallel()
	w := newWorld(t, pebbletest.Config{})
	if os.Geteuid() != 0 {
		os.Chmod(w.cfg.Dir, 0o500)
		w.want(w.check(), "problem data folder: it must belong to the user that plusminus runs as")
		return
	}
	if err := os.MkdirAll(filepath.Join(w.cfg.Dir, "acme", "tokens"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.Chown(w.cfg.Dir, 65532, 65532); err != nil {
		t.Fatal(err)
	}
	w.cfg.HTTP.Listeners[0].Close()
	w.cfg.HTTP = Port{Running: "127.0.0.1:80"}
	w.want(w.check(), "problem data folder: belongs to uid 65532, and this check runs as root", "warning port 80: could not be probed")
	if files := filesIn(t, w.cfg.Dir); len(files) > 0 {
		t.Errorf("left behind: %v", files)
	}
}

// filesIn returns the files below dir, without those that are being written.
func filesIn(t *testing.T, dir string) []string {
	t.Helper()
	var files []string
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err == nil && !d.IsDir() && !strings.HasPrefix(d.Name(), ".") {
			files = append(files, path)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return files
}

func TestLeavesNothing(t *testing.T) {
	t.Parallel()
	w := newWorld(t, pebbletest.Config{})
	parent := w.cfg.Dir
	w.cfg.Dir = filepath.Join(parent, "a", "b")
	w.check()
	if entries, err := os.ReadDir(parent); err != nil || len(entries) > 0 {
		t.Errorf("left behind: %v, %v", entries, err)
	}
}

// A server on the same data folder answers the check's probes, and keeps working.
func TestBesideServer(t *testing.T) {
	t.Parallel()
	tlsLn, plainLn := acmetest.Listen(t), acmetest.Listen(t)
	w := newWorld(t, pebbletest.Config{TLSPort: acmetest.Port(tlsLn), HTTPPort: acmetest.Port(plainLn)})
	s := serve(t, w.cfg.Config, tlsLn, plainLn, true)
	s.waitReady(t)
	release := func() {
		for _, ln := range append(w.cfg.HTTP.Listeners, w.cfg.TLS.Listeners...) {
			ln.Close()
		}
	}
	release()
	w.routes[publicV4+":80"], w.routes[publicV4+":443"] = plainLn.Addr().String(), tlsLn.Addr().String()
	w.routes["127.0.0.1:80"], w.routes["127.0.0.1:443"] = plainLn.Addr().String(), tlsLn.Addr().String()
	w.cfg.HTTP, w.cfg.TLS = Port{Running: "127.0.0.1:80"}, Port{Running: "127.0.0.1:443"}
	acmetest.WaitFor(t, "end of the order", func() bool { // Ready returns nil before the certificate is stored
		release, err := store.NewFolder(filepath.Join(w.cfg.Dir, "acme", "locks"), time.Now, nil).Lock(checked)
		if err != nil {
			return false
		}
		defer release()
		_, err = os.Stat(filepath.Join(w.cfg.Dir, "acme", store.DirectoryName(w.cfg.DirectoryURL), checked))
		return err == nil
	})
	before := filesIn(t, w.cfg.Dir)
	runs := []string{"ok certificate: there is one, valid until", "ok account: the CA knows our account",
		"ok port 80: the plusminus that runs here answers", "ok port 443: the plusminus that runs here answers",
		"ok port 80: at " + publicV4, "ok port 443: at " + publicV4, "ok challenges: by http-01 and by tls-alpn-01"}
	w.want(w.check(), runs...)
	if after := filesIn(t, w.cfg.Dir); fmt.Sprint(after) != fmt.Sprint(before) {
		t.Errorf("files after the check: %v, before it: %v", after, before)
	}

	t.Run("account in CAA", func(t *testing.T) {
		w := w.in(t)
		lines := w.check()
		account := ""
		for _, line := range lines {
			if _, uri, ok := strings.Cut(line, "our account, "); ok {
				account = uri
			}
		}
		allow := func(account string) {
			w.mu.Lock()
			defer w.mu.Unlock()
			w.zone = []string{checked + ". A " + publicV4, checked + `. CAA 0 issue "pebble; accounturi=` + account + `"`}
		}
		allow(account)
		w.want(w.check(), "ok CAA: allows this CA")
		allow("https://pebble/acct/1")
		w.want(w.check(), "problem CAA: and ours is "+account)
		w.ca.Intercept(pebbletest.NewAccountPath, pebbletest.Problem(500, "serverInternal", "trouble", ""))
		w.want(w.check(), "warning account: trouble", "warning CAA: it is not known whether that is ours")
		w.ca.Intercept(pebbletest.NewAccountPath, pebbletest.Problem(403, "unauthorized", "An account with the provided public key exists but is deactivated", ""))
		w.want(w.check(), "problem account: the CA has deactivated our account", "problem CAA: the server would make another")
		w.ca.Intercept(pebbletest.NewAccountPath, nil)
	})

	t.Run("an order is under way", func(t *testing.T) {
		w := w.in(t)
		release, err := store.WaitLock(t.Context(), store.NewFolder(filepath.Join(w.cfg.Dir, "acme", "locks"), time.Now, nil), checked)
		if err != nil {
			t.Fatal(err)
		}
		defer release()
		answer := []byte("the server's own answer")
		tokens, err := challenge.InFolder(filepath.Join(w.cfg.Dir, "acme", "tokens"), time.Now())
		if err != nil {
			t.Fatal(err)
		}
		if err := tokens.Put(t.Context(), checked+"+token", answer); err != nil {
			t.Fatal(err)
		}
		w.want(w.check(), "warning port 443: a server is ordering a certificate for this name right now", "ok port 80: answers", "ok challenges: answer by http-01;")
		got, err := os.ReadFile(filepath.Join(w.cfg.Dir, "acme", "tokens", checked+"+token"))
		if err != nil || string(got) != string(answer) {
			t.Errorf("the server's answer is now %q, %v", got, err)
		}
		tokens.Delete(t.Context(), checked+"+token")
	})

	t.Run("the server has another name", func(t *testing.T) {
		w := w.in(t)
		w.cfg.Domains = []acme.Domain{{Name: "new.example.org"}}
		w.zone = []string{"new.example.org. A " + publicV4}
		w.want(w.check(), "warning port 80: at "+publicV4+", a plusminus answers that does not serve this name",
			"warning port 80: at 127.0.0.1:80 on this machine, a plusminus answers that does not serve this name", "ok challenges: answer by tls-alpn-01;")
	})

	t.Run("another program has the ports", func(t *testing.T) {
		w := w.in(t)
		w.otherServers()
		w.routes["127.0.0.1:80"], w.routes["127.0.0.1:443"] = w.routes[publicV4+":80"], w.routes[publicV4+":443"]
		w.want(w.check(), "warning port 80: at "+publicV4, "warning port 443: at "+publicV4,
			"problem port 80: another program has 127.0.0.1:80 on this machine, so that plusminus cannot start", "problem port 443: another program has",
			"problem challenges: neither")
	})

	t.Run("damaged and failed before", func(t *testing.T) {
		w := w.in(t)
		s.stop()
		st := store.NewFolder(filepath.Join(w.cfg.Dir, "acme", store.DirectoryName(w.cfg.DirectoryURL)), time.Now, nil)
		w.write(st.Path(checked), "rubbish")
		now := time.Now()
		plan, err := json.Marshal(map[string]any{"saved": now, "failures": 3, "not_before": now.Add(time.Hour),
			"last_error": acme.LastError{When: now, Reason: "it was\nrefused", Hint: "look there"}})
		if err != nil {
			t.Fatal(err)
		}
		if err := st.Write(checked+store.PlanSuffix, plan); err != nil {
			t.Fatal(err)
		}
		w.want(w.check(), "warning certificate: is damaged", "warning certificate: it was refused (look there); the next one is not made before")
		if _, err := os.Stat(st.Path(checked)); err != nil {
			t.Errorf("the damaged file was touched: %v", err)
		}
	})
}

// in returns a copy of w for a subtest.
func (w *world) in(t *testing.T) *world {
	c := &world{t: t, ca: w.ca, cfg: w.cfg, rcodes: w.rcodes, remote: w.remote, routes: make(map[string]string)}
	for k, v := range w.routes {
		c.routes[k] = v
	}
	c.zone = append([]string(nil), w.zone...)
	c.routes["1.1.1.53:53"] = c.startDNS()
	c.cfg.Dial = c.dial
	return c
}

// A check removes its answers from the data folder.
func TestTakesAnswersAway(t *testing.T) {
	t.Parallel()
	w := newWorld(t, pebbletest.Config{})
	dir := filepath.Join(w.cfg.Dir, "acme", "tokens")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	w.want(w.check(), "ok challenges: by http-01 and by tls-alpn-01")
	if files := filesIn(t, dir); len(files) > 0 {
		t.Errorf("left behind: %v", files)
	}
}

// The findings of many domains come in order, domain by domain.
func TestManyDomains(t *testing.T) {
	t.Parallel()
	w := newWorld(t, pebbletest.Config{})
	w.cfg.Domains, w.zone = nil, nil
	for i := range 40 {
		name := fmt.Sprintf("n%02d.example.org", i)
		w.cfg.Domains = append(w.cfg.Domains, acme.Domain{Name: name})
		w.zone = append(w.zone, name+". A "+publicV4)
	}
	var order []string
	err := Run(t.Context(), w.cfg, func(f Finding) {
		if f.Level != OK {
			t.Errorf("%+v", f)
		}
		if f.Domain != "" && (len(order) == 0 || order[len(order)-1] != f.Domain) {
			order = append(order, f.Domain)
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	if want := domainNamesOf(w.cfg.Domains); fmt.Sprint(order) != fmt.Sprint(want) {
		t.Errorf("domains were told in the order %v, want %v", order, want)
	}
}

func domainNamesOf(domains []acme.Domain) []string {
	var all []string
	for _, d := range domains {
		all = append(all, d.Name)
	}
	return all
}

// An interrupted check returns at once, and does not report steps that were cut off as failures.
func TestInterrupted(t *testing.T) {
	t.Parallel()
	for _, hangs := range []string{publicV4 + ":80", "1.1.1.53:53", "ca"} {
		t.Run(hangs, func(t *testing.T) {
			w := newWorld(t, pebbletest.Config{})
			reached := make(chan struct{})
			var once sync.Once
			dial := w.cfg.Dial
			w.cfg.Dial = func(ctx context.Context, network, address string) (net.Conn, error) {
				if address == hangs || hangs == "ca" && w.routes[address] == "ca" {
					once.Do(func() { close(reached) })
					<-ctx.Done()
					return nil, ctx.Err()
				}
				return dial(ctx, network, address)
			}
			ctx, cancel := context.WithCancel(t.Context())
			var stopped atomic.Int64
			go func() {
				<-reached
				stopped.Store(time.Now().UnixNano())
				cancel()
			}()
			err := Run(ctx, w.cfg, func(f Finding) {
				if f.Level != OK {
					t.Errorf("%+v", f)
				}
			})
			if !errors.Is(err, context.Canceled) {
				t.Errorf("Run = %v, want context.Canceled", err)
			}
			if took := time.Since(time.Unix(0, stopped.Load())); took > 2*time.Second {
				t.Errorf("Run returned %v after its context was done", took)
			}
		})
	}
}

// Run returns the error of a configuration that acme.New refuses.
func TestRefuses(t *testing.T) {
	t.Parallel()
	err := Run(t.Context(), Config{Config: acme.Config{Domains: []acme.Domain{{Name: "*.example.org"}}, Dir: t.TempDir()}}, func(Finding) {})
	if err == nil || !strings.Contains(err.Error(), "wildcards") {
		t.Errorf("Run = %v, want that of New", err)
	}
}

func TestLocal(t *testing.T) {
	t.Parallel()
	w := newWorld(t, pebbletest.Config{})
	w.cfg.Domains = []acme.Domain{{Name: "counter.test", Local: true}, {Name: "192.0.2.7", Local: true}}
	w.cfg.HTTP, w.cfg.TLS = Port{}, Port{}
	w.want(w.check(), "ok certificate: which is made at the first start")
	if len(w.dialed) > 0 {
		t.Errorf("connections to %v for local domains", w.dialed)
	}
	if _, err := acme.New(w.cfg.Config); err != nil {
		t.Fatal(err)
	}
	root := filepath.Join(w.cfg.Dir, "local-ca", "root.pem")
	w.want(w.check(), "ok certificate: whose root clients have to trust: "+root)

	rootPEM, err := os.ReadFile(root)
	if err != nil {
		t.Fatal(err)
	}
	w.cfg.systemRoots = x509.NewCertPool()
	w.cfg.systemRoots.AppendCertsFromPEM(rootPEM)
	w.want(w.check(), "ok certificate: which this system trusts")
	w.cfg.now = func() time.Time { return time.Now().AddDate(localca.RootYears, 0, -30) }
	w.want(w.check(), "warning certificate: another is made at the start")
	w.cfg.now = nil
	w.write(root, "rubbish")
	w.want(w.check(), "warning certificate: is damaged")
}

// An address is probed like a name, without the DNS.
func TestAddress(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		name    string
		address string
		change  func(*world)
		want    []string
	}{
		{"leads here", publicV4, func(*world) {}, []string{
			"ok address: leads to this machine", "ok port 80: at " + publicV4 + ", this server answers", "ok port 443: at " + publicV4,
			"ok challenges: by http-01 and by tls-alpn-01"}},
		{"IPv6", publicV6, func(w *world) {
			for _, port := range []string{":80", ":443"} {
				w.routes["["+publicV6+"]"+port] = w.routes[publicV4+port]
			}
		}, []string{"ok address: leads to this machine", "ok challenges: by http-01 and by tls-alpn-01"}},
		{"of another machine", publicV4, func(w *world) {
			w.routes[publicV4+":80"], w.routes[publicV4+":443"] = routeSilent, routeRefused
		}, []string{"warning address: this machine does not seem to have it", "warning port 80: no answer", "warning port 443: connection refused", "warning challenges: try http://" + publicV4 + "/"}},
		{"IPv6 of another machine", publicV6, func(w *world) {
			w.routes["["+publicV6+"]:80"], w.routes["["+publicV6+"]:443"] = routeSilent, routeSilent
		}, []string{"warning address: this machine does not seem to have it", "warning port 80: no answer", "warning port 443: no answer", "warning challenges: try http://[" + publicV6 + "]/"}},
		{"private", "10.1.2.3", func(*world) {}, []string{"problem address: it is a private address, which the CA does not reach"}},
		{"private, and the CA's, too", "10.1.2.3", func(w *world) {
			w.remote = "10.0.0.1:443"
			w.routes["10.1.2.3:80"], w.routes["10.1.2.3:443"] = w.routes[publicV4+":80"], w.routes[publicV4+":443"]
		}, []string{"ok address: it is a private address; so is the CA's own", "ok address: leads to this machine", "ok challenges: by http-01"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t, pebbletest.Config{Profiles: map[string]time.Duration{acme.AddressProfile: 160 * time.Hour}})
			w.cfg.Domains = []acme.Domain{{Name: test.address}}
			test.change(w)
			w.want(w.check(), test.want...)
			for _, to := range w.dialed {
				if strings.HasSuffix(to, ":53") {
					t.Errorf("a question to the DNS at %s", to)
				}
			}
		})
	}
	t.Run("profile", func(t *testing.T) {
		t.Parallel()
		w := newWorld(t, pebbletest.Config{})
		w.cfg.Domains = []acme.Domain{{Name: publicV4}}
		w.want(w.check(), `problem profile: the CA has no "shortlived", which an IP address needs; it has: default`)
	})
}

func TestFiles(t *testing.T) {
	t.Parallel()
	issuer := acmetest.NewIssuer(t)
	fresh := issuer.Issue(t, 90*day, checked)
	tests := []struct {
		name      string
		cert, key tls.Certificate
		now       time.Duration // from now
		noRoots   bool
		want      []string
	}{
		{"fit", fresh, fresh, time.Minute, false, []string{"ok certificate file: and its key fit", "ok certificate file: covers the name"}},
		{"do not fit", fresh, issuer.Issue(t, 90*day, checked), time.Minute, false, []string{"problem certificate file: private key does not match"}},
		{"expired", fresh, fresh, 91 * day, false, []string{"problem certificate file: the program that renews it has not done so"}},
		{"about to expire", fresh, fresh, 80 * day, false, []string{"warning certificate file: should have been renewed by now"}},
		{"not yet valid", fresh, fresh, -day, false, []string{"problem certificate file: is valid only from", "warning certificate file: covers the name, but"}},
		{"other names", issuer.Issue(t, 90*day, "a.example.org"), tls.Certificate{}, time.Minute, false, []string{"problem certificate file: is for other names: a.example.org"}},
		{"not trusted", fresh, fresh, time.Minute, true, []string{"warning certificate file: is not trusted by this system's roots"}},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			w := newWorld(t, pebbletest.Config{})
			if test.key.PrivateKey == nil {
				test.key = test.cert
			}
			w.cfg.DirectoryURL, w.cfg.Dir = "", ""
			w.cfg.CertFile, w.cfg.KeyFile = filepath.Join(t.TempDir(), "cert.pem"), filepath.Join(t.TempDir(), "key.pem")
			chain, _ := acmetest.PEM(t, test.cert)
			_, key := acmetest.PEM(t, test.key)
			w.write(w.cfg.CertFile, string(chain))
			w.write(w.cfg.KeyFile, string(key))
			w.cfg.systemRoots = issuer.Roots()
			if test.noRoots {
				w.cfg.systemRoots = x509.NewCertPool()
			}
			w.cfg.now = func() time.Time { return time.Now().Add(test.now) }
			w.want(w.check(), test.want...)
		})
	}
}

// https://www.rfc-editor.org/rfc/rfc8659#section-4 and https://www.rfc-editor.org/rfc/rfc8657
func TestJudgeCAA(t *testing.T) {
	t.Parallel()
	tests := []struct {
		records []string // flags tag value
		level   Level
		text    string
		methods string
	}{
		{[]string{`0 issue "ca.example"`}, OK, "allows this CA", ""},
		{[]string{`0 ISSUE " CA.Example "`}, OK, "allows this CA", ""},
		{[]string{`0 issue "other.example"`, `0 issue "ca.example"`}, OK, "allows this CA", ""},
		{[]string{`0 issue "other.example"`}, Problem, "allows other.example alone, and this CA is ca.example", ""},
		{[]string{`0 issue ";"`}, Problem, "allows nobody", ""},
		{[]string{`0 issue ""`}, Problem, "allows nobody", ""},
		{[]string{`0 issue "%%%%%"`}, Problem, "allows %%%%% alone", ""},
		{[]string{`0 issue "ca.example; x"`}, Problem, "is malformed", ""},
		{[]string{`0 issue "ca.example x"`}, Problem, "is malformed", ""},
		{[]string{`0 issue "ca.example; a=1; a=2"`}, Problem, "is malformed", ""},
		{[]string{`0 issue "ca.example; policy=ev;"`}, Problem, "is malformed", ""},
		{[]string{`0 issue "ca.example; policy=ev"`}, OK, "allows this CA", ""},
		{[]string{`0 issuewild ";"`}, OK, "does not restrict", ""},
		{[]string{`0 issuewild ";"`, `0 issue "ca.example"`}, OK, "allows this CA", ""},
		{[]string{`128 issue "ca.example"`}, OK, "allows this CA", ""},
		{[]string{`0 tbs "x"`}, OK, "does not restrict", ""},
		{[]string{`128 tbs "x"`, `0 issue "ca.example"`}, Problem, `critical property "tbs"`, ""},
		{[]string{`0 issue "ca.example; accounturi=https://ca.example/acct/7"`}, OK, "allows this CA", ""},
		{[]string{`0 issue "ca.example; accounturi=https://ca.example/acct/8"`}, Problem, "and ours is https://ca.example/acct/7", ""},
		{[]string{`0 issue "ca.example; accounturi=https://ca.example/acct/8"`, `0 issue "ca.example"`}, OK, "allows this CA", ""},
		{[]string{`0 issue "ca.example; validationmethods=dns-01"`}, Problem, "allows validation by dns-01 alone", ""},
		{[]string{`0 issue "ca.example; validationmethods=dns-01,http-01"`}, OK, "by http-01 alone", "http-01"},
		{[]string{`0 issue "ca.example; validationmethods=http-01"`, `0 issue "ca.example; validationmethods=tls-alpn-01"`}, OK, "allows this CA", ""},
	}
	for _, test := range tests {
		var set []*dns.CAA
		for _, r := range test.records {
			rr, err := dns.NewRR("example.org. CAA " + r)
			if err != nil {
				t.Fatal(err)
			}
			set = append(set, rr.(*dns.CAA))
		}
		v := judgeCAA(set, []string{"ca.example"}, "https://ca.example/acct/7", nil)
		if v.level != test.level || !strings.Contains(v.text, test.text) || strings.Join(v.methods, ",") != test.methods {
			t.Errorf("judgeCAA(%v) = %v %q %v, want %v, %q, %s", test.records, v.level, v.text, v.methods, test.level, test.text, test.methods)
		}
	}
}

func TestMountOf(t *testing.T) {
	t.Parallel()
	const mountinfo = `27 1 0:50 / / rw,relatime - overlay overlay rw
28 27 8:1 /vol /data rw shared:1 master:2 - ext4 /dev/sda1 rw
29 27 8:1 /x /with\040space rw - xfs /dev/sda1 rw
30 27 8:2 /over /data rw - btrfs /dev/sdb rw
short line
`
	for _, test := range []struct{ path, point, root, fstype string }{
		{"/", "/", "/", "overlay"},
		{"/database", "/", "/", "overlay"},
		{"/data", "/data", "/over", "btrfs"},
		{"/data/acme", "/data", "/over", "btrfs"},
		{"/with space/a", "/with space", "/x", "xfs"},
	} {
		m, err := mountOf(strings.NewReader(mountinfo), test.path)
		if want := (mount{test.root, test.point, test.fstype}); err != nil || m != want {
			t.Errorf("mountOf(%q) = %+v, %v, want %+v", test.path, m, err, want)
		}
	}
	if _, err := mountOf(strings.NewReader(""), "/"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("mountOf without mounts: %v", err)
	}
}

// A check reports whether the shared store can be used. A server on that store answers its probes.
func TestShared(t *testing.T) {
	t.Parallel()
	srv := redistest.Start(t)
	tlsLn, plainLn := acmetest.Listen(t), acmetest.Listen(t)
	w := newWorld(t, pebbletest.Config{TLSPort: acmetest.Port(tlsLn), HTTPPort: acmetest.Port(plainLn)})
	files := valkey.NewFiles(valkey.Config{Address: srv.Addr})
	t.Cleanup(func() { files.Close() })
	w.cfg.Shared, w.cfg.SealKeys = files, [][]byte{acmetest.SealKey(1)}
	if err := os.Chmod(w.cfg.Dir, 0o700); err != nil {
		t.Fatal(err)
	}
	w.want(w.check(), "ok shared store: redis://"+srv.Addr+"/0?prefix=plusminus can be written", "ok challenges: by http-01 and by tls-alpn-01")

	s := serve(t, w.cfg.Config, tlsLn, plainLn, true)
	s.waitReady(t)
	acmetest.WaitFor(t, "certificate in the store", func() bool {
		return srv.Do("EXISTS", "{plusminus}:file:acme/"+store.DirectoryName(w.ca.DirectoryURL)+"/"+checked) == "1"
	})
	for _, ln := range append(w.cfg.HTTP.Listeners, w.cfg.TLS.Listeners...) {
		ln.Close()
	}
	w.routes[publicV4+":80"], w.routes[publicV4+":443"] = plainLn.Addr().String(), tlsLn.Addr().String()
	w.routes["127.0.0.1:80"], w.routes["127.0.0.1:443"] = plainLn.Addr().String(), tlsLn.Addr().String()
	w.cfg.HTTP, w.cfg.TLS = Port{Running: "127.0.0.1:80"}, Port{Running: "127.0.0.1:443"}
	w.want(w.check(), "ok certificate: there is one, valid until", "ok account: the CA knows",
		"ok port 80: the plusminus that runs here answers", "ok port 443: the plusminus that runs here answers")

	w.cfg.SealKeys = [][]byte{acmetest.SealKey(2)}
	unknown := []string{"warning port 80: nothing can be put where", "warning port 443: nothing can be put where", "warning challenges: cannot be told"}
	w.want(w.check(), append(unknown, "problem shared store: all replicas need the same key")...)
	srv.Kill()
	acmetest.WaitFor(t, "refused connection", func() bool { // the first request may meet the end of an old one
		_, _, err := files.Get(t.Context(), "x")
		return err != nil && strings.Contains(err.Error(), "refused")
	})
	w.want(w.check(), append(unknown, "problem shared store: refused")...)
	if entries, err := os.ReadDir(w.cfg.Dir); err != nil || len(entries) != 1 { // the server's copies
		t.Errorf("left behind: %v, %v", entries, err)
	}
}
