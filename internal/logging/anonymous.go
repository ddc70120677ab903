package logging

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"regexp"
	"slices"
	"strings"
)

// anonymousHandler replaces IP addresses in each record: in the message, in errors and in lists. It works for the lines
// of net/http and the errors of the system, too, and callers do nothing for it. It drops the attribute "remote". It
// keeps loopback addresses, unspecified addresses, and the values under ownKeys.
type anonymousHandler struct{ slog.Handler }

// ownKeys are the keys whose values are the server's own addresses, from the command line.
var ownKeys = []string{"https", "http", "admin", "url", "domains", "domain"}

// Handle implements slog.Handler.
func (h anonymousHandler) Handle(ctx context.Context, r slog.Record) error {
	out := slog.NewRecord(r.Time, r.Level, anonymous(r.Message), r.PC)
	r.Attrs(func(a slog.Attr) bool {
		if a, ok := anonymousAttr(a); ok {
			out.AddAttrs(a)
		}
		return true
	})
	return h.Handler.Handle(ctx, out)
}

// WithAttrs implements slog.Handler.
func (h anonymousHandler) WithAttrs(attrs []slog.Attr) slog.Handler {
	return anonymousHandler{h.Handler.WithAttrs(anonymousAttrs(attrs))}
}

// WithGroup implements slog.Handler.
func (h anonymousHandler) WithGroup(name string) slog.Handler {
	return anonymousHandler{h.Handler.WithGroup(name)}
}

// anonymousAttrs returns attrs without addresses.
func anonymousAttrs(attrs []slog.Attr) []slog.Attr {
	var out []slog.Attr
	for _, a := range attrs {
		if a, ok := anonymousAttr(a); ok {
			out = append(out, a)
		}
	}
	return out
}

// anonymousAttr returns a without addresses. It reports false if the record must not have a at all.
func anonymousAttr(a slog.Attr) (slog.Attr, bool) {
	a.Value = a.Value.Resolve()
	switch {
	case a.Key == "remote":
		return a, false
	case slices.Contains(ownKeys, a.Key):
		return a, true
	}
	switch a.Value.Kind() {
	case slog.KindGroup:
		a.Value = slog.GroupValue(anonymousAttrs(a.Value.Group())...)
	case slog.KindString:
		a.Value = slog.StringValue(anonymous(a.Value.String()))
	case slog.KindAny:
		text := fmt.Sprint(a.Value.Any())
		if without := anonymous(text); without != text {
			a.Value = slog.StringValue(without)
		}
	}
	return a, true
}

// addressPattern matches text that may be an address, with its port or prefix length.
var addressPattern = regexp.MustCompile(`(` +
	`\[(?:[0-9A-Fa-f:]+:[0-9A-Fa-f:.]*)(?:%[^\]\s]+)?\](?::\d+)?|` + // [IPv6], with or without a port
	`[0-9A-Fa-f]*:[0-9A-Fa-f:]*:[0-9A-Fa-f:.]*(?:%\w+)?(?:/\d+)?|` + // IPv6
	`\d+\.\d+\.\d+\.\d+(?::\d+|/\d+)?` + // IPv4
	`)`)

// anonymous returns s with "(address)" in place of each address, its port and its prefix length.
func anonymous(s string) string {
	return addressPattern.ReplaceAllStringFunc(s, func(found string) string {
		end := len(found)
		ip, ok := parseAddress(found)
		for !ok && end > max(0, len(found)-3) && strings.ContainsRune(".:", rune(found[end-1])) { // drop a dot or colon that ends a sentence
			end--
			ip, ok = parseAddress(found[:end])
		}
		if !ok || ip.IsLoopback() || ip.IsUnspecified() {
			return found
		}
		return "(address)" + found[end:]
	})
}

// parseAddress parses an address, with or without brackets, zone, port and prefix length.
func parseAddress(s string) (netip.Addr, bool) {
	if p, err := netip.ParsePrefix(s); err == nil {
		return p.Addr(), true
	}
	if host, _, err := net.SplitHostPort(s); err == nil {
		s = host
	}
	ip, err := netip.ParseAddr(strings.Trim(s, "[]"))
	return ip.Unmap().WithZone(""), err == nil
}
