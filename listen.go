package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"slices"
	"strings"
	"syscall"

	"plusminus/hub"
)

// addresses are those that the program listens on.
type addresses struct {
	HTTPS       []string
	HTTP, Admin string // "" is off
}

type listeners struct {
	https       []net.Listener
	http, admin net.Listener // nil is off
}

// listenAll opens all listeners of cfg, or none. Those that the process was started with
// take the place of the addresses of the flag of their name.
func listenAll(ctx context.Context, cfg *config) (*listeners, error) {
	passed, err := passedListeners(cfg)
	if err != nil {
		return nil, err
	}
	lns := &listeners{https: passed["https"]}
	var errs []error
	open := func(flagName, addr string) net.Listener {
		// The hub pings its clients, and net/http bounds everything else: TCP has no need to
		// probe each idle connection every 15 seconds.
		lc := net.ListenConfig{KeepAlive: -1}
		if lns := passed[flagName]; len(lns) > 0 {
			return lns[0]
		}
		ln, err := lc.Listen(ctx, "tcp", addr)
		if err != nil {
			errs = append(errs, listenError(flagName, err))
		}
		return ln
	}
	if len(lns.https) == 0 {
		for _, addr := range cfg.https {
			if ln := open("https", addr); ln != nil {
				lns.https = append(lns.https, ln)
			}
		}
	}
	if cfg.http != "" {
		lns.http = open("http", cfg.http)
	}
	if cfg.admin != "" {
		lns.admin = open("admin", cfg.admin)
	}
	if len(errs) > 0 {
		lns.close()
		return nil, errors.Join(errs...)
	}
	return lns, nil
}

// listenError adds what to do about err.
func listenError(flagName string, err error) error {
	hint := ""
	switch {
	case errors.Is(err, syscall.EADDRINUSE):
		hint = "; is another server or another plusminus running? stop it, or choose another port"
	case errors.Is(err, fs.ErrPermission):
		hint = "; ports below 1024 need root, CAP_NET_BIND_SERVICE, or sysctl net.ipv4.ip_unprivileged_port_start=0"
	}
	return fmt.Errorf("-%s: %w%s", flagName, err, hint)
}

func (l *listeners) close() {
	l.closePublic()
	closeAll(l.admin)
}

// closePublic closes those that visitors reach.
func (l *listeners) closePublic() { closeAll(append(slices.Clip(l.https), l.http)...) }

func closeAll(lns ...net.Listener) {
	for _, ln := range lns {
		if ln != nil {
			_ = ln.Close() // closed already, if a server has run on it
		}
	}
}

// believe has those that visitors reach believe PROXY protocol headers from some networks.
func (l *listeners) believe(from networks, events *hub.Events) {
	for i, ln := range l.https {
		l.https[i] = newProxyListener(ln, from, events)
	}
	if l.http != nil {
		l.http = newProxyListener(l.http, from, events)
	}
}

func (l *listeners) addresses() addresses {
	var a addresses
	for _, ln := range l.https {
		a.HTTPS = append(a.HTTPS, ln.Addr().String())
	}
	if l.http != nil {
		a.HTTP = l.http.Addr().String()
	}
	if l.admin != nil {
		a.Admin = l.admin.Addr().String()
	}
	return a
}

// httpsPort returns what a redirect to https needs behind the host: nothing if one of
// our addresses has the port that browsers use, or else the first one's port.
func httpsPort(addrs []string) string {
	first := ""
	for _, addr := range addrs {
		_, port, err := net.SplitHostPort(addr)
		switch {
		case err != nil:
		case port == "443":
			return ""
		case first == "":
			first = ":" + port
		}
	}
	return first
}

// pageURL returns where a browser finds the page, as far as it can be known here: in a
// container the ports may be published as others.
func pageURL(cfg *config, addrs addresses) string {
	scheme, port := "https", httpsPort(addrs.HTTPS)
	if cfg.plain {
		scheme, port = "http", ""
		if _, p, err := net.SplitHostPort(addrs.HTTP); err == nil && p != "80" {
			port = ":" + p
		}
	}
	return scheme + "://" + urlHost(cfg.domains[0].Name) + port + "/"
}

// urlHost returns a domain as it stands in a URL.
func urlHost(domain string) string {
	if strings.Contains(domain, ":") {
		return "[" + domain + "]" // an IPv6 address
	}
	return domain
}
