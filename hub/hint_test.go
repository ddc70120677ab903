package hub

import (
	"bytes"
	"log/slog"
	"net/netip"
	"strings"
	"testing"
)

// A refusal's line has the hint of its reason, and what HintFor says of its address.
func TestHintFor(t *testing.T) {
	gateway, other := netip.MustParsePrefix("172.17.0.1/32"), netip.MustParsePrefix("192.0.2.1/32")
	for _, tt := range []struct {
		reason Reason
		remote netip.Prefix
		want   string
	}{
		{ReasonAddressFull, gateway, `hint="the limit; the gateway"`},
		{ReasonAddressFull, other, `hint="the limit"`},
		{ReasonOrigin, gateway, `hint="the gateway"`}, // without a hint of its own
		{ReasonOrigin, other, ""},
	} {
		var lines bytes.Buffer
		e := NewEvents(EventsConfig{
			Logger: slog.New(slog.NewTextHandler(&lines, nil)),
			Hints:  map[Reason]string{ReasonAddressFull: "the limit"},
			HintFor: func(_ Reason, remote netip.Prefix) string {
				if remote == gateway {
					return "the gateway"
				}
				return ""
			},
		})
		e.Refused(tt.reason, "remote", tt.remote)
		got := lines.String()
		if !strings.Contains(got, tt.want) || (tt.want == "") == strings.Contains(got, "hint=") {
			t.Errorf("Refused(%s, %v) logs %q, want %q", tt.reason, tt.remote, got, tt.want)
		}
	}
	// An attribute that is no address is left alone.
	NewEvents(EventsConfig{HintFor: func(Reason, netip.Prefix) string { panic("no address") }}).Refused(ReasonFull, "remote", "10.0.0.1:5")
}
