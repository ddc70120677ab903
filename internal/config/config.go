// Package config turns the command line and the environment into one [Config]. It is pure: it reads
// no file, opens nothing and asks the kernel nothing, so that the same words mean the same on every
// machine. What needs that is a step after it (package server).
//
// To add a flag: declare its field and its flag here, use the field, and add a row to docs/flags.md.
package config

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net/netip"
	"strings"
	"time"

	"plusminus/acme"
	"plusminus/hub"
	"plusminus/internal/store"
)

// Config is the whole configuration of a server. [Parse] makes one. It does not change afterwards.
//
// The comment of each field names its flag; the flag's help text says what it means.
type Config struct {
	// Domains has at least one element. Each is normalised, and appears once. DomainGiven reports
	// whether -domain was given: if not, Domains is the default, localhost.
	Domains     []acme.Domain // -domain
	DomainGiven bool

	Data      string     // -data
	Store     store.Spec // -store; without its password file and roots, which are read later
	storeText string     // -store as it was given; may hold a password
	Staging   bool       // -staging; ACMEDirectory is set accordingly

	// HTTPS is empty with Plain. HTTP and Admin are empty if they are off.
	HTTPS       []string      // -https
	HTTP, Admin string        // -http, -admin
	Plain       bool          // -plain
	Drain       time.Duration // -drain

	CertFile, KeyFile string // -cert, -key; both or neither

	ACMEDirectory      string // -acme-directory; "" is Let's Encrypt
	ACMECARoot         string // -acme-ca-root, a file; "" is the system's roots
	ACMEEmail          string // -acme-email
	ACMEProfile        string // -acme-profile
	EABKeyID           string // -acme-eab-kid
	EABKeyFile         string // -acme-eab-key-file
	Fallback           string // -acme-fallback; "" is none
	FallbackEABKeyID   string // -acme-fallback-eab-kid
	FallbackEABKeyFile string // -acme-fallback-eab-key-file

	Export      string      // -export, a folder; "" is none
	ExportMode  fs.FileMode // -export-mode
	ExportGroup string      // -export-group; "" is none
	ExportHook  string      // -export-hook; "" is none
	Import      string      // -import, a folder; "" is none

	StorePasswordFile string // -store-password-file
	StoreCARoot       string // -store-ca-root
	StoreKeyFile      string // -store-key-file

	LoadBalancers  []netip.Prefix // -proxy-protocol
	TrustedProxies []netip.Prefix // -trusted-proxies

	// Origins are those of -origin, and before them those of our own pages.
	Origins []hub.Origin // -origin

	// FrameOrigins are source expressions of a Content-Security-Policy. If there is none, no page may frame ours.
	FrameOrigins []string // -frame-origin

	Counters    []string // -counters; empty if there is only the default counter
	MaxCounters int      // -max-counters

	MaxClients      int     // -max-clients, as it was given; 0 asks the machine
	MaxClientsPerIP int     // -max-clients-per-ip; 0 is no cap
	ConnectionRate  float64 // -connection-rate; 0 is no limit
	ActionRate      float64 // -action-rate; 0 is no limit
	ActionBurst     int     // -action-burst

	LogLevel     slog.Level // -log-level
	LogFormat    string     // -log-format: "auto", "text" or "json"
	LogAddresses bool       // -log-addresses
}

// UsesData reports whether the server keeps files in the data folder: the counter, or certificates
// from a CA.
func (c *Config) UsesData() bool {
	return c.Store.UsesData() || !c.Plain && c.CertFile == ""
}

// DomainNames returns the names of Domains.
func (c *Config) DomainNames() []string {
	names := make([]string, len(c.Domains))
	for i, d := range c.Domains {
		names[i] = d.Name
	}
	return names
}

// A UsageError says what is wrong with the command line or the environment, and what to do about
// it. The program exits with status 2.
type UsageError struct{ Err error }

func (e UsageError) Error() string { return e.Err.Error() }
func (e UsageError) Unwrap() error { return e.Err }

// declare declares all flags on f, which sets the fields of c. The order of the groups, and of the
// flags in them, is that of the help.
func (c *Config) declare(f *flagGroups) {
	f.group("")
	f.value((*domains)(&c.Domains), "domain", "serve this `name` or IP address; repeatable, or several with commas between\n"+
		"(default localhost). localhost, *.localhost, *.test, *.internal and addresses that are not\n"+
		"public are local: they get certificates from a CA of plusminus's own in the data folder,\nunless -acme-directory is set")
	f.string(&c.Data, "data", "data", "`folder` for certificates, account keys and the counter; made with mode 0700")
	f.string(&c.storeText, "store", "file", "where the counter lives: `file` (in the data folder), memory (starts at 0 each time), or a\n"+
		"Valkey or Redis server that replicas share: redis://user:password@host:port/db?prefix=name,\nor rediss:// for TLS")
	f.value((*list)(&c.Counters), "counters", "hold more counters, whose names match these `patterns`: likes,door.* or * for any name;\n"+
		"each is at /c/NAME. Repeatable, or several with commas between (default none)")
	f.bool(&c.Staging, "staging", false, "use Let's Encrypt's staging CA to try things out; no browser trusts its certificates")

	f.group("Listeners")
	f.value((*list)(&c.HTTPS), "https", "TLS `addresses` to listen on, with commas between\n(default :443, or :8443 if every domain is local)")
	f.string(&c.HTTP, "http", "", "plain `address` to listen on, for challenges and redirects, or off\n(default :80, or :8080 if every domain is local)")
	f.string(&c.Admin, "admin", "127.0.0.1:9180", "admin `address`, for /livez, /readyz, /status, /metrics and\nPOST /renew?domain=; or off")
	f.bool(&c.Plain, "plain", false, "serve without TLS on -http, behind a proxy that ends TLS and passes the Host on")
	f.duration(&c.Drain, "drain", 10*time.Second, "`time` that a stop may take to hand clients over: they are told to reconnect (1012),\na few at a time")

	f.group("Certificates")
	f.string(&c.CertFile, "cert", "", "PEM `file` with a certificate chain to serve in place of one from a CA; needs -key.\nBoth files are read again when they change")
	f.string(&c.KeyFile, "key", "", "PEM `file` with the private key of -cert")
	f.string(&c.ACMEDirectory, "acme-directory", "", "directory `URL` of the CA (default Let's Encrypt)")
	f.string(&c.ACMECARoot, "acme-ca-root", "", "PEM `file`: trust this root alone when talking to the CA")
	f.string(&c.ACMEEmail, "acme-email", "", "`address` that the CA may write to; Let's Encrypt does not use it")
	f.string(&c.ACMEProfile, "acme-profile", "", "certificate `profile` to ask the CA for, such as tlsserver or shortlived;\nif the CA has no such profile, its default is used. IP addresses always get shortlived")
	f.string(&c.EABKeyID, "acme-eab-kid", "", "key `id` of an external account binding, if the CA asks for one")
	f.string(&c.EABKeyFile, "acme-eab-key-file", "", "`file` with the HMAC key of -acme-eab-kid, in base64url")
	f.string(&c.Fallback, "acme-fallback", "", "directory `URL` of a second CA, which is asked when the first has failed for hours")
	f.string(&c.FallbackEABKeyID, "acme-fallback-eab-kid", "", "key `id` of an external account binding with the second CA")
	f.string(&c.FallbackEABKeyFile, "acme-fallback-eab-key-file", "", "`file` with the HMAC key of -acme-fallback-eab-kid, in base64url")

	f.string(&c.Import, "import", "", "certbot's `folder`, /etc/letsencrypt: for domains without a certificate, at the first start, its\nvalid ones are taken over, so that none is ordered")
	f.string(&c.Export, "export", "", "`folder` in which to keep NAME/fullchain.pem, privkey.pem, cert.pem and chain.pem for other\nprograms, such as a mail server (default none)")
	c.ExportMode = 0o600
	f.value((*fileMode)(&c.ExportMode), "export-mode", "`mode` of the files of -export in octal; folders have x where files have r")
	f.string(&c.ExportGroup, "export-group", "", "`group` of the files of -export, by name or number; plusminus must be a member of it")
	f.string(&c.ExportHook, "export-hook", "", "`command` for /bin/sh after each change of the files of -export, such as \"nginx -s reload\"")

	f.group("Limits")
	f.value((*origins)(&c.Origins), "origin", "let pages of this `origin` connect, too: https://host, https://host:port, https://host:*\n"+
		"(any port), https://*.host (every name below it), app://host or another scheme of an app,\n"+
		"null (files, sandboxed frames) or * (any page); repeatable (default the domains)")
	f.value((*frameOrigins)(&c.FrameOrigins), "frame-origin", "let pages of this `origin` show the page in a frame: https://host, https://host:port, https://host:*,\n"+
		"https://*.host or the scheme of an app; repeatable (default none)")
	f.int(&c.MaxCounters, "max-counters", 10_000, "`number` of counters that -counters may make; 0 is no limit")
	f.int(&c.MaxClients, "max-clients", 0, "`number` of clients in all; 0 is what the file limit and the memory allow")
	f.int(&c.MaxClientsPerIP, "max-clients-per-ip", 64, "`number` of clients of one IPv4 address or IPv6 /64; 0 is no limit, and the default with -plain\n"+
		"unless -trusted-proxies or -proxy-protocol is set (all clients have the proxy's address)")
	f.float(&c.ConnectionRate, "connection-rate", 10, "WebSocket `connections` and streams a second that one IPv4 address or IPv6 /64 may open in\n"+
		"the long run, after -max-clients-per-ip of them (at least 10) at once; 0 is no limit, and\nthe default if -max-clients-per-ip is 0")
	f.float(&c.ActionRate, "action-rate", 20, "`actions` a second that a client may send in the long run; 0 is no limit")
	f.int(&c.ActionBurst, "action-burst", 40, "`actions` that a client may send at once")

	f.group("Proxies")
	f.value((*networks)(&c.LoadBalancers), "proxy-protocol", "`networks` of TCP load balancers, such as 10.0.0.0/8, that send a PROXY protocol header\n"+
		"(version 1 or 2) with the client's address; from any other address a header is refused.\nRepeatable, or several with commas between")
	f.value((*networks)(&c.TrustedProxies), "trusted-proxies", "`networks` of proxies, such as 127.0.0.1 or 10.0.0.0/8, whose X-Forwarded-For is trusted: the\n"+
		"last address in it that is not a trusted proxy's is the client's. Repeatable, or several\nwith commas between")

	f.group("Shared store")
	f.string(&c.StorePasswordFile, "store-password-file", "", "`file` with the password for -store redis://; read again at each connection")
	f.string(&c.StoreCARoot, "store-ca-root", "", "PEM `file`: trust this root alone for -store rediss://")
	f.string(&c.StoreKeyFile, "store-key-file", "", "`file` with a key (openssl rand -base64 32): replicas share certificates through\n-store redis://, encrypted with it; without it certificates stay in -data")

	f.group("Logs")
	f.value((*level)(&c.LogLevel), "log-level", "`least` level to log: debug, info, warn or error (default info)")
	f.value(&choice{&c.LogFormat, []string{"auto", "text", "json"}}, "log-format", "`format` of the log: text, json, or auto (text on a terminal, json elsewhere)")
	f.bool(&c.LogAddresses, "log-addresses", true, "log the IP addresses of clients; with =false the log has only the server's own")
}

// Parse parses args and the environment. A flag takes precedence over its environment variable, and an
// empty variable counts as missing. Parse returns [flag.ErrHelp] after it has printed the help to help,
// or a [UsageError] that names all that is wrong.
func Parse(args []string, lookupEnv func(string) (string, bool), help io.Writer) (*Config, error) {
	c := &Config{LogFormat: "auto"}
	f := newFlagGroups()
	c.declare(f)
	given, err := f.parse(args, lookupEnv)
	if errors.Is(err, flag.ErrHelp) {
		fmt.Fprint(help, usageHead)
		f.print(help)
		fmt.Fprint(help, usageTail)
		return nil, err
	}
	p := problems{}
	p.addAll(err)
	c.check(given, &p)
	if err := errors.Join(p...); err != nil {
		return nil, UsageError{err}
	}
	return c, nil
}

// PrintFlags prints the help of all flags.
func PrintFlags(w io.Writer) {
	f := newFlagGroups()
	new(Config).declare(f)
	f.print(w)
}

// EnvName returns the environment variable of a flag.
func EnvName(flagName string) string {
	return "PLUSMINUS_" + strings.ToUpper(strings.ReplaceAll(flagName, "-", "_"))
}

const usageHead = `plusminus serves a counter that everyone changes together, over WebSockets and TLS,
with certificates that it obtains and renews itself.

Usage:

  plusminus [flags]               serve
  plusminus check [flags]         say what would keep it from its certificates, and what this machine has room for
  plusminus renew [flags]         make a running plusminus renew its certificates now
  plusminus value get [flags]     print the counter. Its -h has set, list, export and more
  plusminus healthcheck [flags]   exit 0 if a running plusminus is ready, 1 if not
  plusminus version               print the version

Without any flag it serves https://localhost:8443 with a certificate from a local CA.

Most servers need only these:

`

const usageTail = `
Every flag is also an environment variable: -acme-email is PLUSMINUS_ACME_EMAIL. A flag
takes precedence. Exit status: 0 after a clean stop, 2 for wrong usage, 1 for anything else.
`

// problems collects all that is wrong, so that a person can mend it in one go.
type problems []error

func (p *problems) add(format string, args ...any) { *p = append(*p, fmt.Errorf(format, args...)) }

// addAll adds the errors that err joins.
func (p *problems) addAll(err error) {
	if joined, ok := err.(interface{ Unwrap() []error }); ok {
		*p = append(*p, joined.Unwrap()...)
	} else if err != nil {
		*p = append(*p, err)
	}
}
