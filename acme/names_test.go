package acme

import (
	"net/netip"
	"testing"
)

func TestWhyNotPublic(t *testing.T) {
	t.Parallel()
	for _, addr := range []string{"10.0.0.1", "172.16.0.1", "192.168.0.1", "127.0.0.1", "169.254.1.1", "100.64.0.1", "100.127.255.255",
		"0.0.0.0", "224.0.0.1", "192.0.2.1", "198.51.100.1", "203.0.113.1", "198.18.0.1", "240.0.0.1", "255.255.255.255", "192.0.0.1",
		"::1", "::", "fe80::1", "fc00::1", "fd00::1", "ff02::1", "2001:db8::1", "64:ff9b::1", "::ffff:10.0.0.1", "3fff::1"} {
		if WhyNotPublic(netip.MustParseAddr(addr)) == "" {
			t.Errorf("WhyNotPublic(%s) is empty", addr)
		}
	}
	for _, addr := range []string{"1.1.1.1", "100.63.255.255", "100.128.0.0", "172.32.0.1", "2606:4700::1", "2a00::1", "::ffff:1.1.1.1"} {
		if what := WhyNotPublic(netip.MustParseAddr(addr)); what != "" {
			t.Errorf("WhyNotPublic(%s) = %q", addr, what)
		}
	}
}

func TestWhyLocal(t *testing.T) {
	t.Parallel()
	for name, want := range map[string]string{
		"localhost":             "the machine itself",
		"a.localhost":           "a name under localhost",
		"counter.test":          "a name under test",
		"counter.internal":      "a name under internal",
		"test":                  "",
		"contest":               "",
		"counter.example.com":   "",
		"localhost.example.com": "",
		"203.0.113.7":           "an address for documentation",
		"192.168.1.2":           "a private address",
		"fd00::1":               "a private address",
		"1.1.1.1":               "",
		"2606:4700::1":          "",
	} {
		if got := WhyLocal(name); got != want || IsLocal(name) != (want != "") {
			t.Errorf("WhyLocal(%q) = %q, IsLocal = %v, want %q", name, got, IsLocal(name), want)
		}
	}
}
