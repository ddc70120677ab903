package main

import (
	"bytes"
	"cmp"
	"encoding/base64"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"math"
	"net"
	"net/netip"
	"net/url"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/net/idna"

	"plusminus/acme"
	"plusminus/hub"
	"plusminus/hub/valkey"
)

// config is the command line, understood and found possible.
type config struct {
	domains  []acme.Domain // at least one
	noDomain bool          // none was given: domains is the default
	https    []string      // TLS addresses; none with plain
	http     string        // plain address; "" is off
	plain    bool
	admin    string // "" is off
	data     string
	memory   bool           // the value lives in memory
	shared   *valkey.Config // or on this server; or else in a file
	sealKeys [][]byte       // certificates are shared through that server, sealed with these; nil keeps them in data

	cert, key string // both or neither

	directory  string // "" is Let's Encrypt
	caRoot     string // file name; "" is the system's roots
	email      string
	eabKID     string
	eabKeyFile string
	profile    string
	reuseKey   bool

	fallback           string // directory; "" is none
	fallbackEABKID     string
	fallbackEABKeyFile string

	proxyProtocol   networks // whose PROXY protocol headers are believed
	trustedProxies  networks // whose X-Forwarded-For is believed
	origins         []hub.Origin
	maxClients      int
	askedClients    int   // -max-clients
	maxClientsErr   error // why maxClients is not what was asked for, or should not be
	maxArrivals     int
	maxClientsPerIP int     // 0 is no cap
	connectionRate  float64 // 0 is no limit
	actionRate      float64
	actionBurst     int

	drain     time.Duration
	logLevel  slog.Level
	logFormat string // "auto", "text" or "json"

	logAddresses bool // those of peers are logged
}

// keepsFiles reports whether the data folder is needed.
func (c *config) keepsFiles() bool {
	return !c.memory && c.shared == nil || !c.plain && c.cert == ""
}

// storeName returns what the counter lives in, as -store has it, but without a password.
func (c *config) storeName() string {
	switch {
	case c.memory:
		return "memory"
	case c.shared != nil:
		return c.shared.String()
	}
	return "file"
}

// A usageError says what is wrong with the command line, and what to do about it.
type usageError struct{ err error }

func (e usageError) Error() string { return e.err.Error() }
func (e usageError) Unwrap() error { return e.err }

const usageHead = `plusminus serves a counter that everyone changes together, over WebSockets and TLS,
with certificates that it obtains and renews itself.

Usage:

  plusminus [flags]               serve
  plusminus check [flags]         tell what would keep it from its certificates, and what fits this machine
  plusminus renew [flags]         have a running plusminus renew its certificates now
  plusminus value get [flags]     print the counter of a plusminus that is stopped
  plusminus value set N [flags]   set it
  plusminus healthcheck [flags]   exit 0 if a running plusminus is ready, 1 if not
  plusminus version               print the version

With no flag at all it serves https://localhost:8443 with a certificate from a local CA.

Flags:

`

const usageTail = `
Every flag is also an environment variable: -acme-email is PLUSMINUS_ACME_EMAIL. A flag
wins. Exit status: 0 after a clean stop, 2 for wrong usage, 1 for anything else.
`

// list is a flag that may be repeated, and takes several values with commas between.
type list []string

func (l *list) String() string { return strings.Join(*l, ",") }

func (l *list) Set(s string) error {
	for v := range strings.SplitSeq(s, ",") {
		if v = strings.TrimSpace(v); v == "" {
			return errors.New("an empty value in the list")
		}
		*l = append(*l, v)
	}
	return nil
}

// options are the flags as they were typed.
type options struct {
	domain, https, origin             list
	proxyProtocol, trustedProxies     list
	http, admin, data, store          string
	storePassword, storeRoot          string
	storeKey                          string
	cert, key                         string
	directory, caRoot, email, profile string
	eabKID, eabKeyFile                string
	fallback                          string
	fallbackEABKID, fallbackEABKey    string
	staging, plain, reuseKey          bool
	maxClients, maxClientsPerIP       int
	connectionRate, actionRate        float64
	actionBurst                       int
	drain                             time.Duration
	logLevel, logFormat               string
	logAddresses                      bool

	set map[string]bool // the flags that were given, on the command line or in the environment
}

func (o *options) flags() *flag.FlagSet {
	fs := flag.NewFlagSet("plusminus", flag.ContinueOnError)
	fs.Var(&o.domain, "domain", "serve this `name`; repeatable, or several with commas (default localhost).\n"+
		"localhost, *.localhost, *.test, *.internal and IP addresses are local: their\n"+
		"certificates come from a CA of our own in the data folder, unless -acme-directory is set")
	fs.Var(&o.https, "https", "TLS `addresses` to listen on, with commas between\n(default :443, or :8443 when every domain is local)")
	fs.StringVar(&o.http, "http", "", "plain `address` to listen on, for challenges and redirects, or off\n(default :80, or :8080 when every domain is local)")
	fs.BoolVar(&o.plain, "plain", false, "no TLS at all: serve on -http, behind a proxy that ends TLS and passes the Host on")
	fs.StringVar(&o.admin, "admin", "127.0.0.1:9180", "admin `address`, for /livez, /readyz, /status, /metrics and\nPOST /renew?domain=; or off")
	fs.StringVar(&o.data, "data", "data", "`folder` for certificates, account keys and the counter; made with mode 0700")
	fs.StringVar(&o.store, "store", "file", "where the counter lives: `file` (in the data folder), memory (0 at each start), or a Valkey\n"+
		"or Redis server that replicas share: redis://user:password@host:port/db?prefix=name, or\nrediss:// for TLS")
	fs.StringVar(&o.storePassword, "store-password-file", "", "`file` with the password for -store; read again at each connection")
	fs.StringVar(&o.storeRoot, "store-ca-root", "", "PEM `file`: trust this root, and no other, for -store rediss://")
	fs.StringVar(&o.storeKey, "store-key-file", "", "`file` with a key (openssl rand -base64 32): share certificates through -store redis://, too,\nencrypted with it; without it they stay in -data")
	fs.StringVar(&o.cert, "cert", "", "PEM `file` with a certificate chain to serve in place of ACME; with -key.\nBoth are reloaded when they change")
	fs.StringVar(&o.key, "key", "", "PEM `file` with the private key of -cert")
	fs.StringVar(&o.directory, "acme-directory", "", "directory `URL` of the CA (default Let's Encrypt)")
	fs.BoolVar(&o.staging, "staging", false, "use Let's Encrypt's staging CA, whose certificates no browser trusts")
	fs.StringVar(&o.caRoot, "acme-ca-root", "", "PEM `file`: trust this root, and no other, when talking to the CA")
	fs.StringVar(&o.email, "acme-email", "", "`address` that the CA may write to; Let's Encrypt does not")
	fs.StringVar(&o.eabKID, "acme-eab-kid", "", "key `id` of an external account binding, if the CA asks for one")
	fs.StringVar(&o.eabKeyFile, "acme-eab-key-file", "", "`file` with its HMAC key in base64url")
	fs.StringVar(&o.profile, "acme-profile", "", "certificate `profile` to ask the CA for, such as tlsserver or shortlived;\nthe CA's default if it has no such profile")
	fs.BoolVar(&o.reuseKey, "reuse-key", false, "have renewals certify the same key, for those who pin it; or else each has a new one")
	fs.StringVar(&o.fallback, "acme-fallback", "", "directory `URL` of a second CA, asked when the first has failed for hours")
	fs.StringVar(&o.fallbackEABKID, "acme-fallback-eab-kid", "", "key `id` of an external account binding with the second CA")
	fs.StringVar(&o.fallbackEABKey, "acme-fallback-eab-key-file", "", "`file` with its HMAC key in base64url")
	fs.Var(&o.origin, "origin", "let pages of this `origin` connect, too: https://host, https://host:port, https://host:*\n(any port), https://*.host (every name below it) or * (any page); repeatable\n(default the domains)")
	fs.IntVar(&o.maxClients, "max-clients", 0, "`number` of clients in all; 0 is what the file limit and the memory allow")
	fs.IntVar(&o.maxClientsPerIP, "max-clients-per-ip", 64, "`number` of clients of one IPv4 address or IPv6 /64; 0 is no limit, as is -plain\nwithout -trusted-proxies or -proxy-protocol (there all have the proxy's address)")
	fs.Float64Var(&o.connectionRate, "connection-rate", 10, "WebSocket `connections` and streams a second that one IPv4 address or IPv6 /64 may open in the\nlong run, after -max-clients-per-ip of them (at least 10) at once; 0 is no limit, and the default if that is 0")
	fs.Var(&o.proxyProtocol, "proxy-protocol", "`networks` of TCP load balancers, such as 10.0.0.0/8, that have to say with a PROXY protocol\nheader (version 1 or 2) whose connections they pass on; from elsewhere a header is refused.\nRepeatable, or several with commas")
	fs.Var(&o.trustedProxies, "trusted-proxies", "`networks` of proxies, such as 127.0.0.1 or 10.0.0.0/8, whose X-Forwarded-For is believed:\nthe last address in it that is no trusted proxy's is the client's. Repeatable, or several\nwith commas")
	fs.Float64Var(&o.actionRate, "action-rate", 20, "`actions` a second that a client may send in the long run; 0 is no limit")
	fs.IntVar(&o.actionBurst, "action-burst", 40, "`actions` that a client may send at once")
	fs.DurationVar(&o.drain, "drain", 10*time.Second, "how long a stop may take to hand clients over: they are told to come back (1012),\na few at a time")
	fs.StringVar(&o.logLevel, "log-level", "info", "`least` level to log: debug, info, warn or error")
	fs.BoolVar(&o.logAddresses, "log-addresses", true, "log the IP addresses of those who connect; with =false no line has any but our own")
	fs.StringVar(&o.logFormat, "log-format", "auto", "text, json, or auto: text on a terminal, json elsewhere")
	return fs
}

// envName returns the environment variable of a flag.
func envName(flagName string) string {
	return "PLUSMINUS_" + strings.ToUpper(strings.ReplaceAll(flagName, "-", "_"))
}

// parseConfig understands args and the environment. It returns [flag.ErrHelp] after
// printing the help to help, or a usageError.
func parseConfig(args []string, lookupEnv func(string) (string, bool), help io.Writer) (*config, error) {
	var o options
	fs := o.flags()
	fs.SetOutput(io.Discard) // errors are printed once, by main
	fs.Usage = func() {}
	err := fs.Parse(args)
	if errors.Is(err, flag.ErrHelp) {
		fs.SetOutput(help)
		fmt.Fprint(help, usageHead)
		fs.PrintDefaults()
		fmt.Fprint(help, usageTail)
		return nil, err
	}
	if err != nil {
		return nil, usageError{err}
	}
	if fs.NArg() > 0 {
		return nil, usageError{fmt.Errorf("unexpected argument %q: only flags may follow", fs.Arg(0))}
	}

	o.set = make(map[string]bool)
	fs.Visit(func(f *flag.Flag) { o.set[f.Name] = true })
	var errs []error
	fs.VisitAll(func(f *flag.Flag) {
		value, ok := lookupEnv(envName(f.Name))
		if !ok || value == "" || o.set[f.Name] { // a compose file sets what it has no value for to ""
			return
		}
		o.set[f.Name] = true
		if err := fs.Set(f.Name, value); err != nil {
			errs = append(errs, fmt.Errorf("invalid value %q for %s: %w", value, envName(f.Name), err))
		}
	})
	if len(errs) > 0 {
		return nil, usageError{errors.Join(errs...)}
	}
	cfg, err := o.config()
	if err != nil {
		return nil, usageError{err}
	}
	return cfg, nil
}

// problems collects all that is wrong, so that a person can mend it in one go.
type problems []error

func (p *problems) add(format string, args ...any) { *p = append(*p, fmt.Errorf(format, args...)) }

// config checks the options and turns them into what the program works with. The error
// names all that is wrong.
func (o *options) config() (*config, error) {
	c := &config{
		https: o.https, http: o.http, plain: o.plain, admin: o.admin,
		data: o.data, memory: o.store == "memory",
		cert: o.cert, key: o.key,
		directory: o.directory, caRoot: o.caRoot, email: o.email, profile: o.profile,
		eabKID: o.eabKID, eabKeyFile: o.eabKeyFile, reuseKey: o.reuseKey,
		fallback: o.fallback, fallbackEABKID: o.fallbackEABKID, fallbackEABKeyFile: o.fallbackEABKey,
		maxClientsPerIP: o.maxClientsPerIP, connectionRate: o.connectionRate,
		actionRate: o.actionRate, actionBurst: o.actionBurst,
		drain: o.drain, logFormat: o.logFormat, logAddresses: o.logAddresses,
	}
	var p problems
	o.checkDomains(c, &p)
	allLocal := !slices.ContainsFunc(c.domains, func(d acme.Domain) bool { return !d.Local })
	o.checkListeners(c, allLocal, &p)
	o.checkCertificates(c, allLocal, &p)
	o.checkClients(c, &p)
	o.checkOthers(c, &p)
	return c, errors.Join(p...)
}

func (o *options) checkDomains(c *config, p *problems) {
	names := o.domain
	if len(names) == 0 {
		c.noDomain, names = true, list{"localhost"}
	}
	for _, name := range names {
		d, err := parseDomain(name, o.directory != "")
		if err != nil {
			p.add("-domain %q: %w", name, err)
		} else if !slices.Contains(c.domains, d) {
			c.domains = append(c.domains, d)
		}
	}
}

func (o *options) checkListeners(c *config, allLocal bool, p *problems) {
	httpsDefault, httpDefault := ":443", ":80"
	if allLocal {
		httpsDefault, httpDefault = ":8443", ":8080"
	}
	if len(c.https) == 0 && !o.plain {
		c.https = list{httpsDefault}
	}
	if c.http == "" {
		c.http = httpDefault
	}
	for _, addr := range c.https {
		if err := checkAddress(addr); err != nil {
			p.add("-https: %w", err)
		}
	}
	orOff := func(name string, addr *string) {
		if *addr == "off" {
			*addr = ""
		} else if err := checkAddress(*addr); err != nil {
			p.add("-%s: %w; or off", name, err)
		}
	}
	orOff("http", &c.http)
	orOff("admin", &c.admin)
	if !o.plain {
		return
	}
	switch {
	case o.set["https"]:
		p.add("-plain and -https exclude each other: -plain serves on -http, without TLS")
	case c.http == "":
		p.add("-plain needs -http: that is where it serves")
	}
}

func (o *options) checkCertificates(c *config, allLocal bool, p *problems) {
	fromFiles := o.cert != "" || o.key != ""
	if fromFiles && (o.cert == "" || o.key == "") {
		p.add("-cert and -key go together: give both files")
	}
	if fromFiles && o.plain {
		p.add("-plain and -cert exclude each other: the proxy in front has the certificate")
	}
	for _, name := range []string{"acme-directory", "staging", "acme-profile", "acme-eab-kid", "acme-fallback", "reuse-key"} {
		if o.set[name] && fromFiles {
			p.add("-%s and -cert exclude each other: with -cert no CA is asked", name)
		}
	}
	switch {
	case o.staging && o.directory != "":
		p.add("-staging and -acme-directory exclude each other: -staging is Let's Encrypt's own test directory")
	case o.staging && allLocal && len(c.domains) > 0:
		p.add("-staging does nothing here, since every domain is local: add -domain with a public name")
	case o.staging:
		c.directory = acme.LetsEncryptStaging
	case o.directory != "":
		checkDirectory("acme-directory", o.directory, p)
	}
	if o.fallback != "" {
		checkDirectory("acme-fallback", o.fallback, p)
		if o.fallback == cmp.Or(c.directory, acme.LetsEncrypt) {
			p.add("-acme-fallback: %s is the first CA already", o.fallback)
		}
	}
	if o.caRoot != "" {
		if _, err := os.Stat(o.caRoot); err != nil {
			p.add("-acme-ca-root: %w", err)
		}
	}
	if (o.eabKID == "") != (o.eabKeyFile == "") {
		p.add("-acme-eab-kid and -acme-eab-key-file go together: give both")
	}
	if (o.fallbackEABKID == "") != (o.fallbackEABKey == "") {
		p.add("-acme-fallback-eab-kid and -acme-fallback-eab-key-file go together: give both")
	}
	if o.fallbackEABKID != "" && o.fallback == "" {
		p.add("-acme-fallback-eab-kid needs -acme-fallback: the second CA's directory")
	}
}

// checkDirectory checks that the flag of this name is the URL of a directory.
func checkDirectory(name, value string, p *problems) {
	if u, err := url.Parse(value); err != nil || u.Scheme != "https" || u.Host == "" {
		p.add("-%s: %q is no https:// URL", name, value)
	}
}

func (o *options) checkClients(c *config, p *problems) {
	c.origins = ownOrigins(c.domains, c.plain)
	for _, s := range o.origin {
		origin, err := hub.ParseOrigin(s)
		if err != nil {
			p.add("-origin: %w", err)
		}
		c.origins = append(c.origins, origin)
	}
	c.proxyProtocol = parseNetworks("proxy-protocol", o.proxyProtocol, p)
	c.trustedProxies = parseNetworks("trusted-proxies", o.trustedProxies, p)
	if o.maxClients < 0 {
		p.add("-max-clients: %d is below 0", o.maxClients)
	}
	here := machineHere().room()
	c.maxArrivals = here.arrivals
	c.askedClients = max(o.maxClients, 0)
	c.maxClients, c.maxClientsErr = here.fit(c.askedClients)
	if o.maxClientsPerIP < 0 {
		p.add("-max-clients-per-ip: %d is below 0; 0 is no limit", o.maxClientsPerIP)
	}
	if o.plain && !o.set["max-clients-per-ip"] && len(c.proxyProtocol) == 0 && len(c.trustedProxies) == 0 {
		c.maxClientsPerIP = 0 // all have the proxy's address
	}
	if c.maxClientsPerIP == 0 && !o.set["connection-rate"] {
		c.connectionRate = 0 // an address is not one visitor
	}
	checkRate("connection-rate", o.connectionRate, "connections", p)
	checkRate("action-rate", o.actionRate, "actions", p)
	if o.actionBurst < 1 {
		p.add("-action-burst: %d is below 1, and nobody could count; for no limit use -action-rate 0", o.actionBurst)
	}
}

func parseNetworks(flagName string, values list, p *problems) networks {
	var ns networks
	for _, s := range values {
		n, err := parseNetwork(s)
		if err != nil {
			p.add("-%s: %w", flagName, err)
		}
		ns = append(ns, n)
	}
	return ns
}

// checkRate checks that the flag of this name is a number of things a second.
func checkRate(name string, rate float64, things string, p *problems) {
	if !(rate >= 0) || math.IsInf(rate, 1) { // NaN, too
		p.add("-%s: %v is no number of %s a second; 0 is no limit", name, rate, things)
	}
}

func (o *options) checkOthers(c *config, p *problems) {
	o.checkStore(c, p)
	if o.data == "" {
		p.add("-data: name a folder")
	}
	if o.drain <= 0 {
		p.add("-drain: %v is no time to stop in; the default is 10s", o.drain)
	}
	if err := c.logLevel.UnmarshalText([]byte(o.logLevel)); err != nil {
		p.add("-log-level: %q is none: use debug, info, warn or error", o.logLevel)
	}
	if !slices.Contains([]string{"auto", "text", "json"}, o.logFormat) {
		p.add("-log-format: %q is none: use auto, text or json", o.logFormat)
	}
}

func (o *options) checkStore(c *config, p *problems) {
	if strings.Contains(o.store, ":") { // and may hold a password, which is not to be shown
		shared, err := valkey.ParseURL(o.store)
		if err != nil {
			p.add("-store: %w", err)
			return
		}
		c.shared = &shared
	} else if o.store != "file" && o.store != "memory" {
		p.add("-store: %q is none: use file, memory, or redis://host:port", o.store)
		return
	}
	if c.shared == nil {
		if o.storePassword != "" || o.storeRoot != "" || o.storeKey != "" {
			p.add("-store-password-file, -store-ca-root and -store-key-file are for -store redis:// and rediss://")
		}
		return
	}
	if o.storeKey != "" {
		o.checkStoreKey(c, p)
	}
	if o.storePassword != "" {
		if c.shared.Password != "" {
			p.add("-store-password-file: -store has a password already")
		}
		if _, err := os.ReadFile(o.storePassword); err != nil {
			p.add("-store-password-file: %w", err)
		}
		c.shared.PasswordFile = o.storePassword
	}
	if o.storeRoot != "" {
		if err := c.shared.TrustRoots(o.storeRoot); err != nil {
			p.add("-store-ca-root: %w", err)
		}
	}
}

func (o *options) checkStoreKey(c *config, p *problems) {
	ordered := slices.ContainsFunc(c.domains, func(d acme.Domain) bool { return !d.Local })
	switch {
	case o.plain:
		p.add("-store-key-file and -plain exclude each other: the proxy in front has the certificate")
	case o.cert != "":
		p.add("-store-key-file and -cert exclude each other: with -cert the certificate is in your files")
	case !ordered && len(c.domains) > 0:
		p.add("-store-key-file does nothing here, since every domain is local, and each replica has a CA of its own for those")
	}
	text, err := os.ReadFile(o.storeKey)
	if err == nil {
		c.sealKeys, err = acme.ParseSealKeys(text)
	}
	if err != nil {
		p.add("-store-key-file: %w", err)
	}
}

// hostNames maps what people type to what certificates say: lower case, and A-labels
// for other scripts. https://www.rfc-editor.org/rfc/rfc5891#section-5
var hostNames = idna.New(idna.MapForLookup(), idna.BidiRule(), idna.StrictDomainName(true), idna.VerifyDNSLength(true))

// parseDomain understands one -domain. ownCA says that -acme-directory is set, so that
// no name is local.
func parseDomain(s string, ownCA bool) (acme.Domain, error) {
	if ip, err := netip.ParseAddr(strings.Trim(s, "[]")); err == nil {
		switch {
		case ip.Zone() != "":
			return acme.Domain{}, fmt.Errorf("a certificate has no room for a zone: leave %%%s out", ip.Zone())
		case ownCA:
			return acme.Domain{}, errors.New("no certificates for IP addresses are ordered from a CA: use a host name, or leave -acme-directory out")
		}
		return acme.Domain{Name: ip.Unmap().String(), Local: true}, nil
	}
	switch {
	case strings.Contains(s, "/"):
		return acme.Domain{}, errors.New("give the name alone, such as counter.example.com, not a URL")
	case strings.Contains(s, ":"):
		return acme.Domain{}, errors.New("give the name alone; the port goes to -https")
	case strings.HasPrefix(s, "*."):
		return acme.Domain{}, errors.New("wildcards need a DNS challenge, which is not supported: list the names")
	}
	name, err := hostNames.ToASCII(strings.TrimSuffix(s, "."))
	if err != nil {
		return acme.Domain{}, fmt.Errorf("no host name: %w", err)
	}
	if acme.IsLocal(name) && !ownCA {
		return acme.Domain{Name: name, Local: true}, nil
	}
	if !strings.Contains(name, ".") {
		if ownCA {
			return acme.Domain{}, errors.New("-acme-directory is set, and CAs certify names with a dot only: give -domain such a name")
		}
		return acme.Domain{}, errors.New("no public name: use one like counter.example.com, or localhost or a name under .test to try things out")
	}
	return acme.Domain{Name: name}, nil
}

// checkAddress checks the form of an address to listen on.
func checkAddress(addr string) error {
	_, port, err := net.SplitHostPort(addr)
	if err != nil {
		return fmt.Errorf("%q is no address: write :443, 192.0.2.1:443 or [2001:db8::1]:443", addr)
	}
	if _, err := strconv.ParseUint(port, 10, 16); err != nil {
		return fmt.Errorf("%q has no port from 0 (any free one) to 65535", addr)
	}
	return nil
}

// ownOrigins returns the origins of our own pages: each domain on any port, since the
// page may be served on one port and the hub on another. Without TLS of our own the
// page may have come over http, if no proxy is in front after all.
func ownOrigins(domains []acme.Domain, plain bool) []hub.Origin {
	var origins []hub.Origin
	for _, d := range domains {
		schemes := []string{"https"}
		if plain {
			schemes = append(schemes, "http")
		}
		for _, scheme := range schemes {
			o, err := hub.ParseOrigin(scheme + "://" + urlHost(d.Name) + ":*")
			if err != nil {
				panic(err) // the name was checked
			}
			origins = append(origins, o)
		}
	}
	return origins
}

// readEABKey reads the HMAC key of an external account binding, which CAs print in
// base64url. No file is no key. https://www.rfc-editor.org/rfc/rfc8555#section-7.3.4
func readEABKey(file string) ([]byte, error) {
	if file == "" {
		return nil, nil
	}
	text, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	text = bytes.TrimRight(bytes.TrimSpace(text), "=")
	key, err := base64.RawURLEncoding.DecodeString(string(text))
	if err != nil || len(key) == 0 {
		return nil, fmt.Errorf("%s holds no base64url text", file)
	}
	return key, nil
}
