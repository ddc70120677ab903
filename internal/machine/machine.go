// Package machine knows how much room there is: the file limit, the memory, and the settings of the
// kernel. It knows the default gateways, too. It also keeps the process within its memory. It starts no goroutine.
package machine

import (
	"errors"
	"io/fs"
	"log/slog"
	"math"
	"os"
	"strconv"
	"strings"

	"github.com/KimMachineGun/automemlimit/memlimit"
)

// Machine holds the limits and figures of this machine or container.
type Machine struct {
	Files     uint64 // the limit of open files; 0 is not known
	Memory    uint64 // bytes, at most the 4 GB that a 32-bit process can address; 0 is not known
	Container bool   // Memory is the limit of a container
	Contained bool   // the process runs in a container of Docker or Podman
	Sysctls   fs.FS  // settings of the kernel, as below /proc/sys
	Net       fs.FS  // the kernel's tables of routes, as below /proc/net; nil is not known
}

// Here returns this machine.
func Here() Machine {
	m := Machine{Files: fileLimit(), Contained: contained(), Sysctls: os.DirFS("/proc/sys"), Net: os.DirFS("/proc/net")}
	if limit, err := memlimit.FromCgroup(); err == nil {
		m.Memory, m.Container = limit, true
	} else if limit, err := memlimit.FromSystem(); err == nil {
		m.Memory = limit
	}
	m.Memory = min(m.Memory, math.MaxUint)
	return m
}

// Sysctl returns the last number of a setting of the kernel, and whether there is one.
func (m Machine) Sysctl(name string) (uint64, bool) {
	text, err := fs.ReadFile(m.Sysctls, strings.ReplaceAll(name, ".", "/"))
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

const (
	// ClientMemory is what one client may take, in bytes, the kernel's share included.
	ClientMemory = 32 << 10

	// arrivalMemory is the same for a connection that has not joined the hub: a goroutine with the
	// stack of a TLS handshake, net/http's buffers, and a request header.
	arrivalMemory = 64 << 10

	// mostReserve is how many file descriptors are kept for the rest: listeners, the CA, the admin
	// listener, the store, DNS. At worst a few dozen are in use.
	mostReserve = 64
)

// Capacity is how many connections the machine has room for. Clients and arrivals together leave file
// descriptors for the rest, so no number of strangers keeps the CA, the store or an operator from
// what they need.
type Capacity struct {
	Clients  int // that have joined the hub
	Arrivals int // that have not

	files uint64 // the limit of open files
}

// Capacity returns what the machine has room for. What is not known counts as unlimited.
func (m Machine) Capacity() Capacity {
	files, memory := uint64(math.MaxInt32), uint64(math.MaxUint64)
	if m.Files > 0 {
		files = min(files, m.Files)
	}
	if m.Memory > 0 {
		memory = m.Memory
	}
	return capacityFor(files, memory)
}

// capacityFor divides the file descriptors and the memory, which is in bytes. Arrivals get a fifth of the
// descriptors and an eighth of the memory. Clients get the other descriptors and half of the memory.
func capacityFor(files, memory uint64) Capacity {
	usable := files - min(mostReserve, files/4)
	return Capacity{
		Clients:  int(min(usable-usable/5, max(1, memory/2/ClientMemory), math.MaxInt32)),
		Arrivals: int(min(usable/5, max(1, memory/8/arrivalMemory), math.MaxInt32)),
		files:    files,
	}
}

// Fit returns how many clients there may be if asked are wanted; 0 asks for as many as fit. The error
// says why they are fewer than asked, or may be too many.
func (c Capacity) Fit(asked int) (int, error) {
	most := int(c.files-min(mostReserve, c.files/4)) - c.Arrivals
	switch {
	case asked == 0:
		return c.Clients, nil
	case asked > most:
		return most, errors.New("lowered to what the file limit allows: raise it (ulimit -n, docker --ulimit nofile, systemd LimitNOFILE)")
	case asked > c.Clients:
		return asked, errors.New("more than fit into the memory if all of them keep the server busy")
	}
	return asked, nil
}

// memoryRatio is how much of a container's memory limit the Go runtime may fill before it collects
// garbage as often as it takes. The rest is for the kernel's socket buffers, which the limit includes.
const memoryRatio = 0.8

// LimitMemory makes the Go runtime stay below the memory limit of the container, if there is one and
// GOMEMLIMIT is not set. A server that really needs more memory is only delayed on its way to its end;
// [Capacity] keeps it from needing more.
func LimitMemory(log *slog.Logger) {
	limit, err := memlimit.Set(memlimit.WithRatio(memoryRatio))
	if err != nil {
		log.Debug("the memory limit of the container is not known", "err", err)
	} else if limit < math.MaxInt64 {
		log.Info("memory limit", "gomemlimit", limit)
	}
}
