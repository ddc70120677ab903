package main

import (
	"fmt"
	"io/fs"
	"math"
	"os"
	"strconv"
	"strings"
	"syscall"

	"github.com/KimMachineGun/automemlimit/memlimit"

	"plusminus/acme"
)

// machine is what plusminus check knows of the machine, or of the container.
type machine struct {
	files     uint64 // the limit of open files; 0 is not known
	memory    uint64 // bytes; 0 is not known
	container bool   // memory is the limit of a container
	sysctls   fs.FS  // as below /proc/sys; what is not there is not looked at
}

// machineHere returns this machine.
func machineHere() machine {
	m := machine{sysctls: os.DirFS("/proc/sys")}
	var files syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &files); err == nil {
		m.files = uint64(files.Cur)
	}
	if limit, err := memlimit.FromCgroup(); err == nil {
		m.memory, m.container = limit, true
	} else if limit, err := memlimit.FromSystem(); err == nil {
		m.memory = limit
	}
	return m
}

// room returns how many connections it has room for.
func (m machine) room() room { return roomFor(m.known()) }

// known returns the limits, and for those that are not known what nobody reaches.
func (m machine) known() (files, memory uint64) {
	files, memory = math.MaxInt32, math.MaxUint64
	if m.files > 0 {
		files = min(files, m.files)
	}
	if m.memory > 0 {
		memory = m.memory
	}
	return files, memory
}

// machine tells what the machine is good for. None of it keeps a server from running.
func (p *checkPrinter) machine(m machine, cfg *config) {
	fitting, err := m.room().fit(cfg.askedClients)
	clients := uint64(fitting)
	files, memory := m.known()
	var why []string
	if m.files > 0 {
		fit := uint64(roomFor(files, math.MaxUint64).clients)
		why = append(why, fmt.Sprintf("%s by the file limit, four fifths of %s less a reserve", thousands(fit), thousands(m.files)))
	}
	if m.memory > 0 {
		fit := uint64(roomFor(math.MaxInt32, memory).clients)
		of := "the memory"
		if m.container {
			of = "the container's limit"
		}
		why = append(why, fmt.Sprintf("%s by memory, %d KB for each in half of %s, %s", thousands(fit), clientMemory>>10, of, bytesText(m.memory)))
	}
	switch {
	case len(why) == 0:
		p.say(acme.LevelWarning, "clients", "neither the file limit nor the memory is known here: set -max-clients")
	case err != nil:
		p.say(acme.LevelWarning, "clients", "-max-clients is %s, %v; room is for %s", thousands(uint64(cfg.askedClients)), err, strings.Join(why, "; "))
	default:
		p.say(acme.LevelOK, "clients", "up to %s: room is for %s", thousands(clients), strings.Join(why, "; "))
	}
	if m.files > 0 && m.files < 10_000 {
		p.say(acme.LevelWarning, "file limit", "%s open files, one for each client: raise it (ulimit -n, docker --ulimit nofile=100000:100000, systemd LimitNOFILE=100000)", thousands(m.files))
	}
	p.sysctls(m, clients)
}

// enoughQueue is what the kernel's queues should hold: all who come back in the second after a
// restart. It is Linux's own default since 5.4.
const enoughQueue = 4096

// kernelMemory is about what the kernel keeps for a client that takes what it is sent, in bytes.
const kernelMemory = 8 << 10

// sysctls tells which of the kernel's settings are worth changing for a number of clients. Those that
// are not listed here are right as they come; net.ipv4.ip_local_port_range, for one, is for those who
// connect, and a server does not.
func (p *checkPrinter) sysctls(m machine, clients uint64) {
	var fine []string
	look := func(name string, good func(uint64) bool, format string, args ...any) {
		value, ok := m.sysctl(name)
		switch {
		case !ok:
		case good(value):
			fine = append(fine, name)
		default:
			p.say(acme.LevelWarning, "sysctl", "%s is %s: %s", name, thousands(value), fmt.Sprintf(format, args...))
		}
	}
	atLeast := func(n uint64) func(uint64) bool { return func(value uint64) bool { return value >= n } }
	look("net.core.somaxconn", atLeast(enoughQueue),
		"so many connections can wait to be accepted, and after a restart all come back; set it to %d", enoughQueue)
	look("net.ipv4.tcp_max_syn_backlog", atLeast(enoughQueue/4),
		"so many connections can be half open; set it to %d", enoughQueue)
	look("net.ipv4.tcp_syncookies", atLeast(1),
		"a flood of forged SYNs keeps everybody else out; set it to 1")
	look("net.ipv4.tcp_abort_on_overflow", func(value uint64) bool { return value == 0 },
		"who comes while the queue is full is refused, and would wait otherwise; set it to 0")
	look("net.netfilter.nf_conntrack_max", atLeast(2*clients),
		"if connections are tracked here (by Docker, or a firewall), new ones are dropped beyond that; set it to %d", 2*clients)
	// Its third number is the limit, in pages.
	pages := (clients*kernelMemory + uint64(os.Getpagesize()) - 1) / uint64(os.Getpagesize())
	look("net.ipv4.tcp_mem", atLeast(pages),
		"so many pages of memory may all TCP connections use; set the last of its three numbers to %d", pages)
	if len(fine) > 0 {
		p.say(acme.LevelOK, "sysctl", "right for %s clients: %s", thousands(clients), strings.Join(fine, ", "))
	}
}

// sysctl returns the last number of a setting, and whether it is there.
func (m machine) sysctl(name string) (uint64, bool) {
	text, err := fs.ReadFile(m.sysctls, strings.ReplaceAll(name, ".", "/"))
	if err != nil {
		return 0, false
	}
	fields := strings.Fields(string(text))
	if len(fields) == 0 {
		return 0, false
	}
	value, err := strconv.ParseUint(fields[len(fields)-1], 10, 64)
	return value, err == nil
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
