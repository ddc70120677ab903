package machine

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"slices"
	"testing"
	"testing/fstest"
)

func TestGateways(t *testing.T) {
	// hex4 writes an IPv4 address as /proc/net/route does.
	hex4 := func(s string) string {
		b := netip.MustParseAddr(s).As4()
		return fmt.Sprintf("%08X", binary.NativeEndian.Uint32(b[:]))
	}
	route := "Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\tWindow\tIRTT\n" +
		"eth0\t00000000\t" + hex4("172.17.0.1") + "\t0003\t0\t0\t0\t00000000\t0\t0\t0\n" +
		"eth0\t" + hex4("172.17.0.0") + "\t00000000\t0001\t0\t0\t0\t" + hex4("255.255.0.0") + "\t0\t0\t0\n" +
		"eth0\t" + hex4("10.0.0.0") + "\t" + hex4("172.17.0.9") + "\t0003\t0\t0\t0\t" + hex4("255.0.0.0") + "\t0\t0\t0\n" +
		"tun0\t00000000\t00000000\t0001\t0\t0\t0\t00000000\t0\t0\t0\n" + // a default route without a gateway
		"junk\n"
	zero := "00000000000000000000000000000000"
	route6 := "fd000000000000000000000000000000 40 " + zero + " 00 " + zero + " 00000100 00000001 00000000 00000001     eth0\n" +
		zero + " 00 " + zero + " 00 fd000000000000000000000000000001 00000400 00000003 00000000 00000003     eth0\n" +
		zero + " 00 " + zero + " 00 " + zero + " ffffffff 00000001 00000000 00200200       lo\n" +
		zero + " 00 " + zero + " 00 fd 00000400 00000003 00000000 00000003     eth0\n"
	for _, tt := range []struct {
		name string
		m    Machine
		want []netip.Addr
	}{
		{"both", Machine{Net: fstest.MapFS{"route": {Data: []byte(route)}, "ipv6_route": {Data: []byte(route6)}}},
			[]netip.Addr{netip.MustParseAddr("172.17.0.1"), netip.MustParseAddr("fd00::1")}},
		{"a container without IPv6", Machine{Net: fstest.MapFS{"route": {Data: []byte(route)}}}, []netip.Addr{netip.MustParseAddr("172.17.0.1")}},
		{"no files", Machine{Net: fstest.MapFS{}}, nil},
		{"no network", Machine{}, nil},
	} {
		if got := tt.m.Gateways(); !slices.Equal(got, tt.want) {
			t.Errorf("%s: Gateways() = %v, want %v", tt.name, got, tt.want)
		}
	}
}
