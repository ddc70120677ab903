package cli

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"testing/fstest"

	"plusminus/acme/check"
	"plusminus/internal/config"
	"plusminus/internal/machine"
)

// A container whose network has no IPv6 is told what that does to its clients' addresses, unless they come from
// elsewhere or do not matter.
func TestCheckAddresses(t *testing.T) {
	gateway := netip.MustParseAddr("172.17.0.1").As4()
	route := fmt.Sprintf("eth0 00000000 %08X 0003 0 0 0 00000000 0 0 0\n", binary.NativeEndian.Uint32(gateway[:]))
	const zero = "00000000000000000000000000000000"
	route6 := zero + " 00 " + zero + " 00 fd000000000000000000000000000001 00000400 00000003 00000000 00000003 eth0\n"
	v4 := fstest.MapFS{"route": {Data: []byte(route)}}
	both := fstest.MapFS{"route": v4["route"], "ipv6_route": {Data: []byte(route6)}}
	networks := []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")}
	for _, tt := range []struct {
		name string
		m    machine.Machine
		cfg  config.Config
		want bool
	}{
		{"a container without IPv6", machine.Machine{Contained: true, Net: v4}, config.Config{MaxClientsPerIP: 64}, true},
		{"a container with IPv6", machine.Machine{Contained: true, Net: both}, config.Config{MaxClientsPerIP: 64}, false},
		{"no container", machine.Machine{Net: v4}, config.Config{MaxClientsPerIP: 64}, false},
		{"no gateway", machine.Machine{Contained: true}, config.Config{MaxClientsPerIP: 64}, false},
		{"no limit per address", machine.Machine{Contained: true, Net: v4}, config.Config{}, false},
		{"PROXY protocol", machine.Machine{Contained: true, Net: v4}, config.Config{MaxClientsPerIP: 64, LoadBalancers: networks}, false},
		{"trusted proxies", machine.Machine{Contained: true, Net: v4}, config.Config{MaxClientsPerIP: 64, TrustedProxies: networks}, false},
	} {
		var out bytes.Buffer
		(&checkPrinter{w: &out}).addresses(tt.m, &tt.cfg)
		if got := strings.Contains(out.String(), "warning  addresses: this container has no IPv6") && strings.Contains(out.String(), "172.17.0.1"); got != tt.want {
			t.Errorf("%s: printed %q, want a warning is %v", tt.name, out.String(), tt.want)
		}
	}
}

// goodMachine is a machine for which the check has no warning.
var goodMachine = machine.Machine{
	Files: 100_000, Memory: 16 << 30,
	Sysctls: sysctls("net/core/somaxconn=4096", "net/ipv4/tcp_mem=1 2 1000000"),
}

// sysctls returns a file system like /proc/sys with these settings, each NAME=VALUE.
func sysctls(settings ...string) fstest.MapFS {
	m := fstest.MapFS{}
	for _, s := range settings {
		name, value, _ := strings.Cut(s, "=")
		m[name] = &fstest.MapFile{Data: []byte(value + "\n")}
	}
	return m
}

// TestCheckMachine compares the lines about a machine.
func TestCheckMachine(t *testing.T) {
	for _, tt := range []struct {
		name    string
		m       machine.Machine
		clients int      // asked for
		want    []string // the beginning of each line, in order
	}{
		{"good", goodMachine, 79949, []string{
			"ok       clients: up to 79,949: room is for 79,949 by the file limit, four fifths of 100,000 less a reserve; 262,144 by memory, 32 KB for each in half of the memory, 16.0 GB",
			"ok       sysctl: right for 79,949 clients: net.core.somaxconn, net.ipv4.tcp_mem",
		}},
		{"more than fit the files", goodMachine, 79950, []string{
			"warning  clients: -max-clients is 79,950, lowered to what the file limit allows: raise it (ulimit -n, docker --ulimit nofile, systemd LimitNOFILE); room is for 79,949 by the file limit",
			"ok       sysctl: ",
		}},
		{"a small container", machine.Machine{Files: 1_000_000, Memory: 256 << 20, Container: true, Sysctls: sysctls()}, 4097, []string{
			"warning  clients: -max-clients is 4,097, more than fit into the memory if all of them keep the server busy; room is for 799,949 by the file limit, four fifths of 1,000,000 less a reserve; 4,096 by memory, 32 KB for each in half of the container's limit, 256 MB",
		}},
		{"few files", machine.Machine{Files: 1024, Memory: 1 << 30, Sysctls: sysctls()}, 768, []string{
			"ok       clients: up to 768: ",
			"warning  file limit: 1,024 open files, one for each client: raise it",
		}},
		{"old settings", machine.Machine{Files: 100_000, Memory: 16 << 30, Sysctls: sysctls("net/core/somaxconn=128", "net/ipv4/tcp_max_syn_backlog=128",
			"net/ipv4/tcp_syncookies=0", "net/ipv4/tcp_abort_on_overflow=1", "net/netfilter/nf_conntrack_max=65536", "net/ipv4/tcp_mem=10000 13000 19000")}, 40000, []string{
			"ok       clients: ",
			"warning  sysctl: net.core.somaxconn is 128: only so many connections can wait to be accepted, and after a restart all clients reconnect; set it to 4096",
			"warning  sysctl: net.ipv4.tcp_max_syn_backlog is 128: ",
			"warning  sysctl: net.ipv4.tcp_syncookies is 0: ",
			"warning  sysctl: net.ipv4.tcp_abort_on_overflow is 1: ",
			"warning  sysctl: net.netfilter.nf_conntrack_max is 65,536: if connections are tracked here (by Docker, or a firewall), the kernel drops new ones beyond that; set it to 80000",
			"warning  sysctl: net.ipv4.tcp_mem is 19,000: ",
		}},
		{"nothing known", machine.Machine{Sysctls: sysctls("net/core/somaxconn=junk", "net/ipv4/tcp_mem=")}, 1000, []string{
			"warning  clients: neither the file limit nor the memory is known here",
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var out bytes.Buffer
			p := &checkPrinter{w: &out}
			p.machine(tt.m, &config.Config{MaxClients: tt.clients})
			lines := strings.Split(strings.TrimSuffix(out.String(), "\n"), "\n")[1:] // without the name of the group
			if !slices.EqualFunc(lines, tt.want, func(line, want string) bool { return strings.HasPrefix(line, "  "+want) }) {
				t.Errorf("printed\n%s\nwant\n%s", strings.Join(lines, "\n"), strings.Join(tt.want, "\n"))
			}
			if n := p.counts[check.Problem]; n != 0 {
				t.Errorf("problems = %d, want 0: the server would run", n)
			}
		})
	}
}
