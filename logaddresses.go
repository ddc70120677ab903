package main

import (
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"regexp"
	"slices"
	"strings"
)

// An anonymousHandler leaves IP addresses out of all that is logged, wherever they stand: in the
// message, in an error's text, in a list. Who logs need not think of it, net/http's lines and
// errors of the system included. What stays are loopback, and addresses under keys that hold what
// we listen on or serve.
type anonymousHandler struct{ slog.Handler }

// ownKeys are the keys under which addresses are ours, as the command line has them.
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

func anonymousAttrs(attrs []slog.Attr) []slog.Attr {
	var out []slog.Attr
	for _, a := range attrs {
		if a, ok := anonymousAttr(a); ok {
			out = append(out, a)
		}
	}
	return out
}

// anonymousAttr returns a without addresses, and reports whether there is anything left to say.
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

// addressPattern finds what may be an address: with a port, or the length of a prefix, if there is one.
var addressPattern = regexp.MustCompile(`(` +
	`\[(?:[0-9A-Fa-f:]+:[0-9A-Fa-f:.]*)(?:%[^\]\s]+)?\](?::\d+)?|` + // [IPv6], perhaps with a port
	`[0-9A-Fa-f]*:[0-9A-Fa-f:]*:[0-9A-Fa-f:.]*(?:%\w+)?(?:/\d+)?|` + // IPv6
	`\d+\.\d+\.\d+\.\d+(?::\d+|/\d+)?` + // IPv4
	`)`)

// anonymous returns s without addresses.
func anonymous(s string) string {
	return addressPattern.ReplaceAllStringFunc(s, func(found string) string {
		end := len(found)
		ip, ok := parseAddress(found)
		for !ok && end > max(0, len(found)-3) && strings.ContainsRune(".:", rune(found[end-1])) { // it ends a sentence, perhaps
			end--
			ip, ok = parseAddress(found[:end])
		}
		if !ok || ip.IsLoopback() || ip.IsUnspecified() {
			return found
		}
		return "(address)" + found[end:]
	})
}

func parseAddress(s string) (netip.Addr, bool) {
	if p, err := netip.ParsePrefix(s); err == nil {
		return p.Addr(), true
	}
	return parseHop(s)
}
