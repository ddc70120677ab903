package ingress

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"slices"
)

// Addresses are what [Listen] listens on: host:port as net.Listen takes it.
type Addresses struct {
	HTTPS       []string
	HTTP, Admin string // "" is off
}

// Listeners are open listeners.
type Listeners struct {
	HTTPS       []net.Listener
	HTTP, Admin net.Listener // nil is off
}

// Listen opens listeners on all addresses, or none. A socket that systemd passes under the name of a
// flag ("https", "http" or "admin") takes the place of that flag's addresses. The error names the
// flags.
func Listen(ctx context.Context, on Addresses) (*Listeners, error) {
	passed, err := passedListeners(on)
	if err != nil {
		return nil, err
	}
	lns := &Listeners{HTTPS: passed["https"]}
	var errs []error
	open := func(flagName, addr string) net.Listener {
		if lns := passed[flagName]; len(lns) > 0 {
			return lns[0]
		}
		// No TCP keep-alive probes every 15 seconds: the hub pings its clients, and net/http bounds
		// all other connections.
		lc := net.ListenConfig{KeepAlive: -1}
		ln, err := lc.Listen(ctx, "tcp", addr)
		if err != nil {
			errs = append(errs, ListenError(flagName, err))
		}
		return ln
	}
	if len(lns.HTTPS) == 0 {
		for _, addr := range on.HTTPS {
			if ln := open("https", addr); ln != nil {
				lns.HTTPS = append(lns.HTTPS, ln)
			}
		}
	}
	if on.HTTP != "" {
		lns.HTTP = open("http", on.HTTP)
	}
	if on.Admin != "" {
		lns.Admin = open("admin", on.Admin)
	}
	if len(errs) > 0 {
		lns.Close()
		return nil, errors.Join(errs...)
	}
	return lns, nil
}

// ListenError adds the flag, and what to do about it, to an error of net.Listen.
func ListenError(flagName string, err error) error {
	hint := ""
	switch {
	case AddressInUse(err):
		hint = "; is another server or another plusminus running? stop it, or choose another port"
	case errors.Is(err, fs.ErrPermission):
		hint = "; ports below 1024 need root, CAP_NET_BIND_SERVICE, or sysctl net.ipv4.ip_unprivileged_port_start=0"
	}
	return fmt.Errorf("-%s: %w%s", flagName, err, hint)
}

// AddressInUse reports whether err is that of a port on which another socket listens.
func AddressInUse(err error) bool { return errors.Is(err, addressInUse) }

func isAny(err error, targets []error) bool {
	return slices.ContainsFunc(targets, func(target error) bool { return errors.Is(err, target) })
}

// Close closes all listeners.
func (l *Listeners) Close() {
	l.ClosePublic()
	closeAll(l.Admin)
}

// ClosePublic closes all listeners but the admin listener.
func (l *Listeners) ClosePublic() { closeAll(append(slices.Clip(l.HTTPS), l.HTTP)...) }

func closeAll(lns ...net.Listener) {
	for _, ln := range lns {
		if ln != nil {
			_ = ln.Close() // fails if a server has closed it already
		}
	}
}

// Addresses returns where the listeners listen.
func (l *Listeners) Addresses() Addresses {
	var a Addresses
	for _, ln := range l.HTTPS {
		a.HTTPS = append(a.HTTPS, ln.Addr().String())
	}
	if l.HTTP != nil {
		a.HTTP = l.HTTP.Addr().String()
	}
	if l.Admin != nil {
		a.Admin = l.Admin.Addr().String()
	}
	return a
}

// Balanced puts the public listeners of l behind the trusted load balancers: those have to send a
// PROXY protocol header. Without load balancers it changes nothing.
func (in *Ingress) Balanced(l *Listeners) {
	if len(in.loadBalancers) == 0 {
		return
	}
	for i, ln := range l.HTTPS {
		l.HTTPS[i] = newProxyListener(ln, in.loadBalancers, in.events)
	}
	if l.HTTP != nil {
		l.HTTP = newProxyListener(l.HTTP, in.loadBalancers, in.events)
	}
}
