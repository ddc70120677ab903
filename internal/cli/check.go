package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"strings"

	"plusminus/acme"
	"plusminus/acme/check"
	"plusminus/internal/admin"
	"plusminus/internal/config"
	"plusminus/internal/ingress"
	"plusminus/internal/machine"
	"plusminus/internal/server"
)

const checkHead = `plusminus check says what would keep plusminus from getting its certificates here, before an order is
spent on finding out. Give it the flags of the server. It may run beside a running server: on the same
data folder, that server answers the probes.

It looks at the machine's limits, the data folder, the CA, the clock, and each domain's DNS and CAA
records. Then it asks this machine on ports 80 and 443 at each public address, as the CA would. It makes
no account, places no order, and takes seconds, at most about half a minute.

Usage:

  plusminus check [flags]

Each line of the result is marked ok, warning or problem. A warning is a risk, or something that cannot
be told from inside. Exit status: 0 without a problem, 1 with one, 2 for wrong usage.

Flags, as those of the server. Most servers need only these:

`

// ErrProblems is returned by the command "check" when it has found problems, which it has printed.
var ErrProblems = errors.New("the check found problems")

// runCheck is the command "check".
func runCheck(ctx context.Context, args []string, env Environment) error {
	cfg, err := env.parse(args, io.Discard)
	if isHelp(err) {
		fmt.Fprint(env.Stdout, checkHead)
		config.PrintFlags(env.Stdout)
	}
	if err != nil {
		return err
	}
	log.SetOutput(io.Discard) // net/http's client logs answers that are not HTTP
	return checkAll(ctx, cfg, env.Stdout, machine.Here(), nil)
}

// checkAll reports what a server with the configuration can expect of the machine, and what would keep
// it from getting its certificates. dial makes its connections; nil is a [net.Dialer].
func checkAll(ctx context.Context, cfg *config.Config, stdout io.Writer, m machine.Machine, dial func(context.Context, string, string) (net.Conn, error)) error {
	files, err := server.ReadFiles(cfg)
	if err != nil {
		return err
	}
	out := &checkPrinter{w: stdout}
	out.machine(m, cfg)
	c := check.Config{Config: acme.Config{Dir: cfg.Data}, Dial: dial}
	if cfg.Plain {
		out.say(check.OK, "certificates", "none with -plain: the proxy in front has them")
	} else {
		var closeShared func() error
		c.Config, closeShared = files.ACME(cfg)
		defer closeShared()
	}
	if !cfg.UsesData() {
		c.Dir = ""
	}
	out.export(cfg)
	out.listen(ctx, cfg, &c)
	if err := check.Run(ctx, c, out.print); err != nil {
		if ctx.Err() != nil {
			return errors.New("the check was stopped before its end")
		}
		return err
	}
	return out.conclude()
}

// checkPrinter prints findings, and counts them by level.
type checkPrinter struct {
	w      io.Writer
	group  string // the heading of the last finding
	counts [check.Problem + 1]int
	err    error // the first error of writing
}

func (p *checkPrinter) printf(format string, args ...any) {
	if _, err := fmt.Fprintf(p.w, format, args...); p.err == nil {
		p.err = err
	}
}

func (p *checkPrinter) print(f check.Finding) {
	group := f.Domain
	if group == "" {
		group = "this machine and the CA"
	}
	if group != p.group {
		p.printf("%s\n", group)
		p.group = group
	}
	p.counts[f.Level]++
	p.printf("  %-7s  %s: %s\n", f.Level, f.Subject, f.Text)
}

func (p *checkPrinter) say(level check.Level, subject, format string, args ...any) {
	p.print(check.Finding{Subject: subject, Level: level, Text: fmt.Sprintf(format, args...)})
}

// conclude prints the summary.
func (p *checkPrinter) conclude() error {
	plural := func(n int, what string) string {
		switch n {
		case 0:
			return "no " + what + "s"
		case 1:
			return "1 " + what
		}
		return fmt.Sprintf("%d %ss", n, what)
	}
	problems, warnings := p.counts[check.Problem], p.counts[check.Warning]
	next := "plusminus can be started"
	switch {
	case problems > 0:
		next = "mend what is marked as a problem before plusminus is started"
	case warnings > 0:
		next = "read the warnings before plusminus is started"
	}
	p.printf("\n%s, %s: %s.\n", plural(problems, "problem"), plural(warnings, "warning"), next)
	switch {
	case p.err != nil:
		return p.err
	case problems > 0:
		return ErrProblems
	}
	return nil
}

// export reports what would keep a server from exporting its certificates. It makes no folder.
func (p *checkPrinter) export(cfg *config.Config) {
	if cfg.Export == "" {
		return
	}
	c := server.ExportConfig(cfg)
	if err := c.Validate(); err != nil {
		p.say(check.Problem, "export", "%v", err)
	}
}

// listen opens the listeners that the server would have, and lets c answer on them. Where a port is in
// use, c finds out what answers there.
func (p *checkPrinter) listen(ctx context.Context, cfg *config.Config, c *check.Config) {
	running := cfg.Admin != "" && admin.Alive(ctx, cfg.Admin)
	open := func(flagName, addr string) check.Port {
		ln, err := net.Listen("tcp", addr)
		switch {
		case err == nil && cfg.Plain:
			ln.Close()
		case err == nil:
			return check.Port{Listeners: []net.Listener{ln}}
		case !ingress.AddressInUse(err):
			p.say(check.Problem, "listener", "%v", ingress.ListenError(flagName, err))
			return check.Port{}
		case running:
			p.say(check.OK, "listener", "-%s %s is in use, and a plusminus runs here", flagName, addr)
		default:
			p.say(check.Warning, "listener", "-%s %s is in use: if that is not a plusminus, the server cannot start", flagName, addr)
		}
		return check.Port{Running: admin.Dialable(addr)}
	}
	for _, addr := range cfg.HTTPS {
		port := open("https", addr)
		c.TLS.Listeners = append(c.TLS.Listeners, port.Listeners...)
		if c.TLS.Running == "" || strings.HasSuffix(addr, ":443") {
			c.TLS.Running = port.Running
		}
	}
	if cfg.HTTP != "" {
		c.HTTP = open("http", cfg.HTTP)
	}
}
