package ingress

import (
	"net/netip"
	"os"
	"strings"
	"testing"

	"plusminus/hub"
)

func TestSharedHint(t *testing.T) {
	gateways := []netip.Addr{netip.MustParseAddr("172.17.0.1"), netip.MustParseAddr("203.0.113.1"),
		netip.MustParseAddr("fd00::1"), netip.MustParseAddr("2001:db8::1")}
	const gateway, most = "default gateway", "private address"
	for _, tt := range []struct {
		reason         hub.Reason
		address        string
		clients, total int
		want           string // part of it; "" is no hint
	}{
		{hub.ReasonAddressFull, "172.17.0.1/32", 64, 64, gateway},
		{ReasonAddressRate, "172.17.0.1/32", 0, 1000, gateway},
		{ReasonAddressConnections, "172.17.0.1/32", 0, 0, gateway},
		{hub.ReasonAddressFull, "203.0.113.1/32", 1, 64, gateway}, // a router that forwards a port with NAT
		{hub.ReasonAddressFull, "fd00::/64", 1, 64, gateway},
		{hub.ReasonAddressFull, "2001:db8::/64", 64, 64, ""},
		{hub.ReasonFull, "172.17.0.1/32", 64, 64, ""},
		{hub.ReasonOrigin, "172.17.0.1/32", 64, 64, ""},
		{hub.ReasonAddressFull, "10.1.2.3/32", 64, 127, "64 of 127 clients have this " + most},
		{hub.ReasonAddressFull, "10.1.2.3/32", 64, 128, ""},
		{hub.ReasonAddressFull, "127.0.0.1/32", 2, 2, most},
		{hub.ReasonAddressFull, "169.254.1.1/32", 2, 2, most},
		{ReasonAddressRate, "10.1.2.3/32", 0, 0, ""},
		{hub.ReasonAddressFull, "192.0.2.1/32", 64, 64, ""}, // one visitor who opens many
	} {
		got := SharedHint(tt.reason, netip.MustParsePrefix(tt.address), gateways, tt.clients, tt.total)
		if (got == "") != (tt.want == "") || !strings.Contains(got, tt.want) {
			t.Errorf("SharedHint(%s, %s, %d of %d) = %q, want %q", tt.reason, tt.address, tt.clients, tt.total, got, tt.want)
		}
	}
	if got := SharedHint(ReasonAddressRate, netip.Prefix{}, gateways, 0, 0); got != "" {
		t.Errorf("SharedHint without an address = %q, want none", got)
	}
}

// The hints name a heading of docs/run.md.
func TestSharedPage(t *testing.T) {
	page, err := os.ReadFile("../../docs/run.md")
	if err != nil {
		t.Fatal(err)
	}
	_, heading, _ := strings.Cut(sharedPage, ", ")
	if !strings.Contains(string(page), "\n## "+strings.Trim(heading, `"`)+"\n") {
		t.Errorf("docs/run.md has no heading %s", heading)
	}
}
