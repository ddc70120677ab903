package config

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net/netip"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"plusminus/acme"
	"plusminus/hub"
)

// flagGroups is a [flag.FlagSet] that knows the order of its flags, and which belong together.
type flagGroups struct {
	set    *flag.FlagSet
	groups []flagGroup
}

type flagGroup struct {
	title string   // "" for the flags that most servers need
	names []string // of the flags, in the order of their declaration
}

func newFlagGroups() *flagGroups {
	f := &flagGroups{set: flag.NewFlagSet("plusminus", flag.ContinueOnError)}
	f.set.SetOutput(io.Discard) // errors are printed once, by main
	f.set.Usage = func() {}
	return f
}

// group begins a group of flags.
func (f *flagGroups) group(title string) { f.groups = append(f.groups, flagGroup{title: title}) }

// add notes the name of a flag in the group that was begun last.
func (f *flagGroups) add(name string) {
	g := &f.groups[len(f.groups)-1]
	g.names = append(g.names, name)
}

func (f *flagGroups) value(v flag.Value, name, usage string) {
	f.add(name)
	f.set.Var(v, name, usage)
}

func (f *flagGroups) string(p *string, name, value, usage string) {
	f.add(name)
	f.set.StringVar(p, name, value, usage)
}

func (f *flagGroups) bool(p *bool, name string, value bool, usage string) {
	f.add(name)
	f.set.BoolVar(p, name, value, usage)
}

func (f *flagGroups) int(p *int, name string, value int, usage string) {
	f.add(name)
	f.set.IntVar(p, name, value, usage)
}

func (f *flagGroups) float(p *float64, name string, value float64, usage string) {
	f.add(name)
	f.set.Float64Var(p, name, value, usage)
}

func (f *flagGroups) duration(p *time.Duration, name string, value time.Duration, usage string) {
	f.add(name)
	f.set.DurationVar(p, name, value, usage)
}

// parse parses args, and then the environment variables of the flags that args do not have. It
// returns the names of the flags that were given in either way. The error joins all that is wrong,
// or is [flag.ErrHelp].
func (f *flagGroups) parse(args []string, lookupEnv func(string) (string, bool)) (given map[string]bool, err error) {
	var errs []error
	for {
		err := f.set.Parse(args)
		if errors.Is(err, flag.ErrHelp) {
			return nil, err
		}
		args = f.set.Args()
		if err == nil {
			break
		}
		if name, ok := strings.CutPrefix(err.Error(), "flag provided but not defined: -"); ok {
			err = f.unknown(name)
			if len(args) > 0 && !strings.HasPrefix(args[0], "-") {
				args = args[1:] // probably its value
			}
		}
		errs = append(errs, err)
	}
	if len(args) > 0 {
		errs = append(errs, fmt.Errorf("unexpected argument %q: only flags may follow", args[0]))
	}

	given = make(map[string]bool)
	f.set.Visit(func(fl *flag.Flag) { given[fl.Name] = true })
	f.set.VisitAll(func(fl *flag.Flag) {
		value, ok := lookupEnv(EnvName(fl.Name))
		if !ok || value == "" || given[fl.Name] { // a compose file sets a variable without a value to ""
			return
		}
		given[fl.Name] = true
		if err := f.set.Set(fl.Name, value); err != nil {
			errs = append(errs, fmt.Errorf("invalid value %q for %s: %w", value, EnvName(fl.Name), err))
		}
	})
	for name, why := range removed {
		if value, ok := lookupEnv(EnvName(name)); ok && value != "" {
			errs = append(errs, fmt.Errorf("%s is no longer supported: %s", EnvName(name), why))
		}
	}
	return given, errors.Join(errs...)
}

// removed has the flags of earlier versions: why each was removed, and what to do.
var removed = map[string]string{
	"reuse-key": "each certificate has a new key, since autocert makes it. Remove the setting. For clients that pin a key, " +
		"let another program renew the certificate, and serve its files with -cert and -key",
}

// unknown returns the error for a flag that does not exist.
func (f *flagGroups) unknown(name string) error {
	if why, ok := removed[name]; ok {
		return fmt.Errorf("-%s is no longer supported: %s", name, why)
	}
	var names []string
	f.set.VisitAll(func(fl *flag.Flag) { names = append(names, fl.Name) })
	if nearest := Nearest(name, names); nearest != "" {
		return fmt.Errorf("unknown flag -%s: did you mean -%s?", name, nearest)
	}
	return fmt.Errorf("unknown flag -%s", name)
}

// print prints the help of all flags, group by group.
func (f *flagGroups) print(w io.Writer) {
	for i, g := range f.groups {
		if i > 0 {
			fmt.Fprintf(w, "\n%s:\n\n", g.title)
		}
		for _, name := range g.names {
			fl := f.set.Lookup(name)
			one := flag.NewFlagSet("", flag.ContinueOnError)
			one.SetOutput(w)
			one.Var(fl.Value, fl.Name, fl.Usage)
			one.Lookup(name).DefValue = fl.DefValue // the value may have changed since
			one.PrintDefaults()
		}
	}
}

// list is a flag that may be repeated, and takes several values with commas between.
type list []string

func (l *list) String() string { return strings.Join(*l, ",") }

func (l *list) Set(s string) error {
	return each(s, func(v string) error {
		*l = append(*l, v)
		return nil
	})
}

// each calls f with each of the values in s, which have commas between.
func each(s string, f func(string) error) error {
	for v := range strings.SplitSeq(s, ",") {
		if v = strings.TrimSpace(v); v == "" {
			return errors.New("an empty value in the list")
		}
		if err := f(v); err != nil {
			if v != s {
				return fmt.Errorf("%q: %w", v, err) // the error of package flag has all of s
			}
			return err
		}
	}
	return nil
}

// domains is a list of domains.
type domains []acme.Domain

func (d *domains) String() string { return "" }

func (d *domains) Set(s string) error {
	return each(s, func(v string) error {
		domain, err := parseDomain(v)
		if err == nil && !slices.Contains(*d, domain) {
			*d = append(*d, domain)
		}
		return err
	})
}

// origins is a list of origins.
type origins []hub.Origin

func (o *origins) String() string { return "" }

func (o *origins) Set(s string) error {
	return each(s, func(v string) error {
		origin, err := hub.ParseOrigin(v)
		*o = append(*o, origin)
		return err
	})
}

// frameOrigins is a list of origins that a Content-Security-Policy can name.
type frameOrigins []string

func (o *frameOrigins) String() string { return "" }

func (o *frameOrigins) Set(s string) error {
	return each(s, func(v string) error {
		source, err := parseFrameOrigin(v)
		if err == nil && !slices.Contains(*o, source) {
			*o = append(*o, source)
		}
		return err
	})
}

// source is the form of a host that a Content-Security-Policy can name.
// https://www.w3.org/TR/CSP3/#grammardef-host-source
var source = regexp.MustCompile(`^[a-z][a-z0-9+.-]*://(\*\.)?[a-z0-9_.-]+(:\*|:[0-9]+)?$`)

// parseFrameOrigin parses one value of -frame-origin, and returns it as it stands in a Content-Security-Policy.
func parseFrameOrigin(s string) (string, error) {
	switch s {
	case "*":
		return "", errors.New("name the origins: a page that anyone may frame can be hidden under other buttons, so that visitors click what they do not see")
	case "null":
		return "", errors.New("a page without an origin of its own cannot be named here: give it an address, https://host")
	}
	origin, err := hub.ParseOrigin(s)
	if err != nil {
		return "", fmt.Errorf("%q is no origin of a page: write https://host, https://host:port, https://host:* or https://*.host", s)
	}
	text := origin.String()
	if !source.MatchString(text) {
		return "", fmt.Errorf("%q cannot be named in a Content-Security-Policy, which has no IPv6 addresses: use a host name", s)
	}
	return text, nil
}

// networks is a list of networks.
type networks []netip.Prefix

func (n *networks) String() string { return "" }

func (n *networks) Set(s string) error {
	return each(s, func(v string) error {
		network, err := parseNetwork(v)
		*n = append(*n, network)
		return err
	})
}

// parseNetwork parses a network, such as 10.0.0.0/8 or 2001:db8::/32, or one address.
func parseNetwork(s string) (netip.Prefix, error) {
	if ip, err := netip.ParseAddr(s); err == nil && ip.Zone() == "" {
		ip = ip.Unmap()
		return netip.PrefixFrom(ip, ip.BitLen()), nil
	}
	p, err := netip.ParsePrefix(s)
	switch {
	case err != nil || p.Addr().Is4In6():
		return p, errors.New("not a network: write 10.0.0.0/8, 2001:db8::/32, or one address")
	case p != p.Masked():
		return p, fmt.Errorf("bits are set behind the first %d: write %v", p.Bits(), p.Masked())
	}
	return p, nil
}

// level is a level of the log.
type level slog.Level

func (l *level) String() string { return strings.ToLower(slog.Level(*l).String()) }

func (l *level) Set(s string) error {
	if (*slog.Level)(l).UnmarshalText([]byte(s)) != nil {
		return errors.New("use debug, info, warn or error")
	}
	return nil
}

// fileMode is a mode of files in octal.
type fileMode fs.FileMode

func (m *fileMode) String() string { return fmt.Sprintf("%04o", fs.FileMode(*m)) }

func (m *fileMode) Set(s string) error {
	n, err := strconv.ParseUint(s, 8, 32)
	switch {
	case err != nil || n > 0o777:
		return errors.New("write the mode in octal, such as 0600, or 0640 for a group")
	case n&0o111 != 0:
		return fmt.Errorf("the files are no programs: write %04o; their folders get x by themselves", n&0o666)
	case n&0o400 == 0:
		return fmt.Errorf("plusminus itself must be able to read the files: write %04o", n|0o400)
	case n&0o022 != 0:
		return fmt.Errorf("nobody else needs to write the files: write %04o", n&^0o022)
	}
	*m = fileMode(n)
	return nil
}

// choice is one of several words.
type choice struct {
	p     *string
	words []string
}

func (c *choice) String() string {
	if c.p == nil { // package flag asks a zero value for its default
		return ""
	}
	return *c.p
}

func (c *choice) Set(s string) error {
	if !slices.Contains(c.words, s) {
		return fmt.Errorf("use one of %s", strings.Join(c.words, ", "))
	}
	*c.p = s
	return nil
}
