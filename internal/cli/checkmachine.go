package cli

import (
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"

	"plusminus/acme/check"
	"plusminus/internal/config"
	"plusminus/internal/machine"
)

// machine reports what the machine has room for. A server runs in any case.
func (p *checkPrinter) machine(m machine.Machine, cfg *config.Config) {
	fitting, err := m.Capacity().Fit(cfg.MaxClients)
	clients := uint64(fitting)
	var why []string
	if m.Files > 0 {
		byFiles := machine.Machine{Files: m.Files}.Capacity()
		why = append(why, fmt.Sprintf("%s by the file limit, four fifths of %s less a reserve", thousands(uint64(byFiles.Clients)), thousands(m.Files)))
	}
	if m.Memory > 0 {
		byMemory := machine.Machine{Memory: m.Memory}.Capacity()
		of := "the memory"
		if m.Container {
			of = "the container's limit"
		}
		why = append(why, fmt.Sprintf("%s by memory, %d KB for each in half of %s, %s", thousands(uint64(byMemory.Clients)), machine.ClientMemory>>10, of, bytesText(m.Memory)))
	}
	switch {
	case len(why) == 0:
		p.say(check.Warning, "clients", "neither the file limit nor the memory is known here: set -max-clients")
	case err != nil:
		p.say(check.Warning, "clients", "-max-clients is %s, %v; room is for %s", thousands(uint64(cfg.MaxClients)), err, strings.Join(why, "; "))
	default:
		p.say(check.OK, "clients", "up to %s: room is for %s", thousands(clients), strings.Join(why, "; "))
	}
	if m.Files > 0 && m.Files < 10_000 {
		p.say(check.Warning, "file limit", "%s open files, one for each client: raise it (ulimit -n, docker --ulimit nofile=100000:100000, systemd LimitNOFILE=100000)", thousands(m.Files))
	}
	p.addresses(m, cfg)
	p.sysctls(m, clients)
}

// addresses reports whether clients keep their own addresses on the way into a container, as far as that can be seen
// from inside. A network of Docker without IPv6 gives all clients that come over IPv6 the address of its gateway.
// https://github.com/moby/moby/issues/17666
func (p *checkPrinter) addresses(m machine.Machine, cfg *config.Config) {
	if !m.Contained || cfg.MaxClientsPerIP == 0 || len(cfg.LoadBalancers) > 0 || len(cfg.TrustedProxies) > 0 {
		return
	}
	gateways := m.Gateways()
	for _, g := range gateways {
		if g.Is4() && g.IsPrivate() && !slices.ContainsFunc(gateways, netip.Addr.Is6) {
			p.say(check.Warning, "addresses", "this container has no IPv6: clients that come over IPv6 (with a rootless engine, all) have the address of its gateway, %s, "+
				"and together count as one with %d clients at most: docs/run.md, \"When all clients have one address\"", g, cfg.MaxClientsPerIP)
			return
		}
	}
}

// enoughQueue is how many connections the kernel's queues should hold: all clients that reconnect in
// the second after a restart. It is Linux's own default since 5.4.
const enoughQueue = 4096

// kernelMemory is about what the kernel keeps for a client that is not blocked, in bytes.
const kernelMemory = 8 << 10

// sysctls reports which settings of the kernel are worth changing for a number of clients. The
// defaults of all others are right. (net.ipv4.ip_local_port_range, for example, limits outgoing
// connections, and a server opens few.)
func (p *checkPrinter) sysctls(m machine.Machine, clients uint64) {
	var fine []string
	look := func(name string, good func(uint64) bool, format string, args ...any) {
		value, ok := m.Sysctl(name)
		switch {
		case !ok:
		case good(value):
			fine = append(fine, name)
		default:
			p.say(check.Warning, "sysctl", "%s is %s: %s", name, thousands(value), fmt.Sprintf(format, args...))
		}
	}
	atLeast := func(n uint64) func(uint64) bool { return func(value uint64) bool { return value >= n } }
	look("net.core.somaxconn", atLeast(enoughQueue),
		"only so many connections can wait to be accepted, and after a restart all clients reconnect; set it to %d", enoughQueue)
	look("net.ipv4.tcp_max_syn_backlog", atLeast(enoughQueue/4),
		"only so many connections can be half open; set it to %d", enoughQueue)
	look("net.ipv4.tcp_syncookies", atLeast(1),
		"a flood of forged SYNs can lock all clients out; set it to 1")
	look("net.ipv4.tcp_abort_on_overflow", func(value uint64) bool { return value == 0 },
		"a connection that arrives while the queue is full is refused, and would wait otherwise; set it to 0")
	look("net.netfilter.nf_conntrack_max", atLeast(2*clients),
		"if connections are tracked here (by Docker, or a firewall), the kernel drops new ones beyond that; set it to %d", 2*clients)
	// Its third number is the limit, in pages.
	pages := (clients*kernelMemory + uint64(os.Getpagesize()) - 1) / uint64(os.Getpagesize())
	look("net.ipv4.tcp_mem", atLeast(pages),
		"all TCP connections together may use only so many pages of memory; set the last of its three numbers to %d", pages)
	if len(fine) > 0 {
		p.say(check.OK, "sysctl", "right for %s clients: %s", thousands(clients), strings.Join(fine, ", "))
	}
}

// thousands returns n with commas.
func thousands(n uint64) string {
	s := strconv.FormatUint(n, 10)
	for i := len(s) - 3; i > 0; i -= 3 {
		s = s[:i] + "," + s[i:]
	}
	return s
}

// bytesText returns a size for people.
func bytesText(n uint64) string {
	if n < 1<<30 {
		return fmt.Sprintf("%d MB", n>>20)
	}
	return fmt.Sprintf("%.1f GB", float64(n)/(1<<30))
}
