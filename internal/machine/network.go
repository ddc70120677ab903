package machine

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"io/fs"
	"net/netip"
	"os"
	"strconv"
	"strings"
)

// gatewayFlag is RTF_GATEWAY of linux/route.h: the route leads through a gateway.
const gatewayFlag = 0x2

// Gateways returns the default gateways of the machine, or of the container. It knows those of Linux only.
// https://man7.org/linux/man-pages/man5/proc_pid_net.5.html
func (m Machine) Gateways() []netip.Addr {
	if m.Net == nil {
		return nil
	}
	var gateways []netip.Addr
	// Iface Destination Gateway Flags RefCnt Use Metric Mask MTU Window IRTT, addresses in the machine's byte order
	for _, f := range m.routes("route", 8) {
		to, err1 := strconv.ParseUint(f[1], 16, 32)
		gateway, err2 := strconv.ParseUint(f[2], 16, 32)
		flags, err3 := strconv.ParseUint(f[3], 16, 32)
		mask, err4 := strconv.ParseUint(f[7], 16, 32)
		if err1 != nil || err2 != nil || err3 != nil || err4 != nil || to != 0 || mask != 0 || flags&gatewayFlag == 0 {
			continue
		}
		var b [4]byte
		binary.NativeEndian.PutUint32(b[:], uint32(gateway))
		gateways = append(gateways, netip.AddrFrom4(b))
	}
	// destination, its length, source, its length, next hop, metric, references, uses, flags, interface
	for _, f := range m.routes("ipv6_route", 10) {
		next, err1 := hex.DecodeString(f[4])
		flags, err2 := strconv.ParseUint(f[8], 16, 32)
		if gateway, ok := netip.AddrFromSlice(next); err1 == nil && err2 == nil && ok && f[1] == "00" && flags&gatewayFlag != 0 {
			gateways = append(gateways, gateway)
		}
	}
	return gateways
}

// routes returns the fields of each line of a file that has at least n of them.
func (m Machine) routes(name string, n int) [][]string {
	data, err := fs.ReadFile(m.Net, name)
	if err != nil {
		return nil
	}
	var all [][]string
	for lines := bufio.NewScanner(bytes.NewReader(data)); lines.Scan(); {
		if fields := strings.Fields(lines.Text()); len(fields) >= n {
			all = append(all, fields)
		}
	}
	return all
}

// contained reports whether Docker or Podman has started the process in a container.
func contained() bool {
	for _, name := range []string{"/.dockerenv", "/run/.containerenv"} {
		if _, err := os.Stat(name); err == nil {
			return true
		}
	}
	return false
}
