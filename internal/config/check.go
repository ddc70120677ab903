package config

import (
	"cmp"
	"fmt"
	"math"
	"net"
	"net/url"
	"slices"
	"strconv"
	"strings"

	"plusminus/acme"
	"plusminus/hub"
	"plusminus/internal/store"
)

// check adds what is wrong to p, and fills in the defaults that depend on other flags. given has the
// names of the flags that were given.
func (c *Config) check(given map[string]bool, p *problems) {
	c.checkDomains(given, p)
	c.checkListeners(given, p)
	c.checkStore(p)
	c.checkCertificates(given, p)
	c.checkExport(given, p)
	c.checkImport(p)
	c.checkLimits(given, p)
	if c.Data == "" {
		p.add("-data: name a folder")
	}
	if c.Drain <= 0 {
		p.add("-drain: %v is not a time in which a server can stop; the default is 10s", c.Drain)
	}
}

func (c *Config) checkDomains(given map[string]bool, p *problems) {
	c.DomainGiven = given["domain"]
	if len(c.Domains) == 0 && !c.DomainGiven {
		c.Domains = []acme.Domain{{Name: "localhost", Local: true}}
	}
	ownCA := c.ACMEDirectory != ""
	for i := range c.Domains {
		if err := settle(&c.Domains[i], ownCA); err != nil {
			p.add("-domain %q: %w", c.Domains[i].Name, err)
		}
	}
}

// allLocal reports whether no certificate comes from a CA that speaks ACME.
func (c *Config) allLocal() bool {
	return !slices.ContainsFunc(c.Domains, func(d acme.Domain) bool { return !d.Local })
}

func (c *Config) checkListeners(given map[string]bool, p *problems) {
	https, http := ":443", ":80"
	if c.allLocal() {
		https, http = ":8443", ":8080"
	}
	switch {
	case c.Plain && given["https"]:
		p.add("-plain and -https exclude each other: -plain serves on -http, without TLS")
	case len(c.HTTPS) == 0 && !c.Plain:
		c.HTTPS = []string{https}
	}
	c.HTTP = cmp.Or(c.HTTP, http)
	if c.Plain && c.HTTP == "off" {
		p.add("-plain needs -http: that is where it serves")
	}
	for _, addr := range c.HTTPS {
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
	orOff("http", &c.HTTP)
	orOff("admin", &c.Admin)
}

// checkAddress checks the form of an address to listen on.
func checkAddress(addr string) error {
	_, port, err := net.SplitHostPort(addr)
	if err != nil {
		return fmt.Errorf("%q is not an address: write :443, 192.0.2.1:443 or [2001:db8::1]:443", addr)
	}
	if _, err := strconv.ParseUint(port, 10, 16); err != nil {
		return fmt.Errorf("%q needs a port from 0 (any free one) to 65535", addr)
	}
	return nil
}

func (c *Config) checkStore(p *problems) {
	spec, err := store.Parse(c.storeText)
	if err != nil {
		p.add("-store: %w", err)
		return
	}
	c.Store = spec
	server, shared := spec.(store.Valkey)
	switch {
	case !shared && (c.StorePasswordFile != "" || c.StoreCARoot != "" || c.StoreKeyFile != ""):
		p.add("-store-password-file, -store-ca-root and -store-key-file are for -store redis:// and rediss://")
		return
	case !shared:
		return
	}
	if c.StorePasswordFile != "" && server.Password != "" {
		p.add("-store-password-file: -store has a password already")
	}
	if c.StoreCARoot != "" && server.TLS == nil {
		p.add("-store-ca-root: roots are for TLS: use -store rediss://")
	}
	if c.StoreKeyFile == "" {
		return
	}
	switch {
	case c.Plain:
		p.add("-store-key-file and -plain exclude each other: the proxy in front has the certificate")
	case c.CertFile != "":
		p.add("-store-key-file and -cert exclude each other: with -cert the certificate is in your files")
	case c.allLocal() && len(c.Domains) > 0:
		p.add("-store-key-file does nothing here: every domain is local, and each replica has a local CA of its own")
	}
}

func (c *Config) checkCertificates(given map[string]bool, p *problems) {
	fromFiles := c.CertFile != "" || c.KeyFile != ""
	if fromFiles && (c.CertFile == "" || c.KeyFile == "") {
		p.add("-cert and -key go together: give both files")
	}
	if fromFiles && c.Plain {
		p.add("-plain and -cert exclude each other: the proxy in front has the certificate")
	}
	for _, name := range []string{"acme-directory", "staging", "acme-profile", "acme-eab-kid", "acme-fallback"} {
		if given[name] && fromFiles {
			p.add("-%s and -cert exclude each other: with -cert no CA is asked", name)
		}
	}
	switch {
	case c.Staging && c.ACMEDirectory != "":
		p.add("-staging and -acme-directory exclude each other: -staging is Let's Encrypt's own test directory")
	case c.Staging && c.allLocal() && len(c.Domains) > 0:
		p.add("-staging does nothing here, since every domain is local: add -domain with a public name")
	case c.Staging:
		c.ACMEDirectory = acme.LetsEncryptStaging
	case c.ACMEDirectory != "":
		checkDirectory("acme-directory", c.ACMEDirectory, p)
	}
	if c.Fallback != "" {
		checkDirectory("acme-fallback", c.Fallback, p)
		if c.Fallback == cmp.Or(c.ACMEDirectory, acme.LetsEncrypt) {
			p.add("-acme-fallback: %s is the first CA already", c.Fallback)
		}
	}
	if (c.EABKeyID == "") != (c.EABKeyFile == "") {
		p.add("-acme-eab-kid and -acme-eab-key-file go together: give both")
	}
	if (c.FallbackEABKeyID == "") != (c.FallbackEABKeyFile == "") {
		p.add("-acme-fallback-eab-kid and -acme-fallback-eab-key-file go together: give both")
	}
	if c.FallbackEABKeyID != "" && c.Fallback == "" {
		p.add("-acme-fallback-eab-kid needs -acme-fallback: the second CA's directory")
	}
}

// checkExport checks the flags of the files for other programs.
func (c *Config) checkExport(given map[string]bool, p *problems) {
	for _, name := range []string{"export-mode", "export-group", "export-hook"} {
		if given[name] && c.Export == "" {
			p.add("-%s needs -export: the folder for the files", name)
		}
	}
	if c.Export != "" && c.Plain {
		p.add("-plain and -export exclude each other: the proxy in front has the certificate")
	}
}

func (c *Config) checkImport(p *problems) {
	switch {
	case c.Import == "":
	case c.Plain:
		p.add("-plain and -import exclude each other: the proxy in front has the certificate")
	case c.CertFile != "":
		p.add("-cert and -import exclude each other: with -cert the files are served where they are")
	case c.allLocal() && len(c.Domains) > 0:
		p.add("-import does nothing here, since every domain is local: add -domain with a public name")
	}
}

// checkDirectory checks that the value of the flag is the URL of a directory.
func checkDirectory(flagName, value string, p *problems) {
	if u, err := url.Parse(value); err != nil || u.Scheme != "https" || u.Host == "" {
		p.add("-%s: %q is not an https:// URL", flagName, value)
	}
}

func (c *Config) checkLimits(given map[string]bool, p *problems) {
	c.Origins = append(ownOrigins(c.Domains, c.Plain), c.Origins...)
	for _, pattern := range c.Counters {
		if err := hub.ValidPattern(pattern); err != nil {
			p.add("-counters: %w", err)
		}
	}
	if c.MaxCounters < 0 {
		p.add("-max-counters: %d is below 0; 0 is no limit", c.MaxCounters)
	}
	if c.MaxClients < 0 {
		p.add("-max-clients: %d is below 0", c.MaxClients)
	}
	if c.MaxClientsPerIP < 0 {
		p.add("-max-clients-per-ip: %d is below 0; 0 is no limit", c.MaxClientsPerIP)
	}
	if c.Plain && !given["max-clients-per-ip"] && len(c.LoadBalancers) == 0 && len(c.TrustedProxies) == 0 {
		c.MaxClientsPerIP = 0 // all clients have the proxy's address
	}
	if c.MaxClientsPerIP == 0 && !given["connection-rate"] {
		c.ConnectionRate = 0 // one address is many visitors
	}
	checkRate("connection-rate", c.ConnectionRate, "connections", p)
	checkRate("action-rate", c.ActionRate, "actions", p)
	if c.ActionBurst < 1 {
		p.add("-action-burst: %d is below 1, so that no action would count; for no limit use -action-rate 0", c.ActionBurst)
	}
}

// checkRate checks that the value of the flag is a number of things a second.
func checkRate(flagName string, rate float64, things string, p *problems) {
	if !(rate >= 0) || math.IsInf(rate, 1) { // NaN, too
		p.add("-%s: %v is not a number of %s a second; 0 is no limit", flagName, rate, things)
	}
}

// ownOrigins returns the origins of our own pages: each domain on any port, since the page may be
// served on one port and the hub on another. With plain the scheme may be http, too: there may be no
// proxy in front after all.
func ownOrigins(domains []acme.Domain, plain bool) []hub.Origin {
	var own []hub.Origin
	for _, d := range domains {
		schemes := []string{"https"}
		if plain {
			schemes = append(schemes, "http")
		}
		for _, scheme := range schemes {
			origin, err := hub.ParseOrigin(scheme + "://" + URLHost(d.Name) + ":*")
			if err != nil {
				continue // the domain is wrong, and was reported
			}
			own = append(own, origin)
		}
	}
	return own
}

// URLHost returns a domain as it stands in a URL: IPv6 addresses in brackets.
func URLHost(domain string) string {
	if strings.Contains(domain, ":") {
		return "[" + domain + "]"
	}
	return domain
}
