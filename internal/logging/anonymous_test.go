package logging

import (
	"bytes"
	"errors"
	"fmt"
	"log"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"
)

// TestAnonymous compares texts with and without addresses.
func TestAnonymous(t *testing.T) {
	for _, tt := range []struct{ in, want string }{
		{"http: TLS handshake error from 192.0.2.7:4711: EOF", "http: TLS handshake error from (address): EOF"},
		{"http: TLS handshake error from [2001:db8::7]:4711: EOF", "http: TLS handshake error from (address): EOF"},
		{"read tcp 10.0.0.1:443->192.0.2.7:4711: read: connection reset by peer", "read tcp (address)->(address): read: connection reset by peer"},
		{"read tcp [2001:db8::1]:443->[2001:db8::7]:4711: i/o timeout", "read tcp (address)->(address): i/o timeout"},
		{"from fe80::1%eth0", "from (address)"},
		{"from [fe80::1%eth0]:80", "from (address)"},
		{"from ::ffff:192.0.2.7", "from (address)"},
		{"2001:db8::/64 and 192.0.2.7/32", "(address) and (address)"},
		{"(192.0.2.7)", "((address))"},
		{"from 2001:db8::7: EOF", "from (address): EOF"},
		{"from 2001:db8::: EOF", "from (address): EOF"},
		{"192.0.2.7, 2001:DB8::7.", "(address), (address)."},
		{"dial tcp 127.0.0.1:6379: connect: connection refused", "dial tcp 127.0.0.1:6379: connect: connection refused"},
		{"[::]:443 and [::1]:443", "[::]:443 and [::1]:443"},
		{"at 13:20:44 on 2026-11-25", "at 13:20:44 on 2026-11-25"},
		{"Go 1.26.8, 300.1.2.3, v1.2.3.400", "Go 1.26.8, 300.1.2.3, v1.2.3.400"},
		{"acme: error: malformed", "acme: error: malformed"},
		{"serial 0a:35:ad", "serial 0a:35:ad"},
		{"goroutine 1 [running]:\nmain.main()\n\t/x/main.go:12 +0x1d", "goroutine 1 [running]:\nmain.main()\n\t/x/main.go:12 +0x1d"},
		{"::", "::"},
		{"", ""},
	} {
		if got := anonymous(tt.in); got != tt.want {
			t.Errorf("anonymous(%q) = %q, want %q", tt.in, got, tt.want)
		}
	}
}

// TestAnonymousHandler logs an address in each part of a record. The line has none of them, and keeps everything else.
func TestAnonymousHandler(t *testing.T) {
	var out bytes.Buffer
	logger, queue := New(Config{Format: "text"}, &out)
	const address = "192.0.2.7"
	ip := netip.MustParseAddr(address)
	logger.With("peer", ip).WithGroup("g").Info("from "+address,
		"remote", "here",
		"addr", netip.AddrPortFrom(ip, 1),
		"prefix", netip.PrefixFrom(ip, 24),
		"net", &net.TCPAddr{IP: ip.AsSlice(), Port: 1},
		"err", fmt.Errorf("reading: %w", &net.OpError{Op: "read", Net: "tcp", Addr: &net.TCPAddr{IP: ip.AsSlice()}, Err: os.ErrDeadlineExceeded}),
		"list", []string{"a", address},
		slog.Group("inner", "deep", address),
		"lazy", lazy(address),
		"n", 7, "took", time.Second, "plain", errors.New("as it is"), "https", []string{address + ":443"},
	)
	queue.Close()
	got := out.String()
	if _, after, ok := strings.Cut(got, "level=INFO "); !ok || after != `msg="from (address)" peer=(address) g.addr=(address) g.prefix=(address) g.net=(address)`+
		` g.err="reading: read tcp (address): i/o timeout" g.list="[a (address)]" g.inner.deep=(address) g.lazy=(address)`+
		` g.n=7 g.took=1s g.plain="as it is" g.https=[192.0.2.7:443]`+"\n" {
		t.Errorf("logged %s, want (address) in place of each address", got)
	}
}

// lazy is a value that slog resolves when it logs.
type lazy string

func (l lazy) LogValue() slog.Value { return slog.StringValue(string(l)) }

// TestTakeStandardLog checks that a line of package log goes to the logger.
func TestTakeStandardLog(t *testing.T) {
	defer log.SetFlags(log.Flags())
	defer log.SetOutput(log.Writer())
	var out bytes.Buffer
	logger, queue := New(Config{Format: "json"}, &out)
	TakeStandardLog(logger)
	log.Printf("Unsolicited response from %s", "192.0.2.7:80")
	queue.Close()
	if got := out.String(); !strings.HasSuffix(got, `"level":"WARN","msg":"Unsolicited response from (address)"}`+"\n") {
		t.Errorf("logged %s, want a JSON line without the address", got)
	}
}

// FuzzAnonymous checks that anonymous removes an address from any text before and after it.
func FuzzAnonymous(f *testing.F) {
	f.Add([]byte{192, 0, 2, 7}, "from ", ": EOF")
	f.Add([]byte("\x20\x01\x0d\xb8\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x07"), "read tcp [", "]:443")
	f.Add([]byte("\x20\x01\x0d\xb8\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"), "(", ":")
	f.Add([]byte("\xfe\x80\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x01"), "a,", "%eth0/64")
	f.Fuzz(func(t *testing.T, address []byte, before, behind string) {
		ip, ok := netip.AddrFromSlice(address)
		if !ok || ip.IsLoopback() || ip.Unmap().IsLoopback() || ip.IsUnspecified() || ip.Unmap().IsUnspecified() {
			return
		}
		if strings.Contains(before, ip.String()) || strings.Contains(behind, ip.String()) {
			return // there the address may be part of a longer word
		}
		for _, s := range []string{
			before + " " + ip.String() + " " + behind,
			before + " " + ip.String() + ": " + behind,
			before + " (" + netip.AddrPortFrom(ip, 4711).String() + ")" + behind,
			before + "->" + netip.AddrPortFrom(ip, 4711).String() + ": " + behind,
		} {
			if got := anonymous(s); strings.Contains(got, ip.String()) {
				t.Errorf("anonymous(%q) = %q, want no %s", s, got, ip)
			}
		}
	})
}
