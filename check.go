package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"os"
	"strings"
	"syscall"
	"time"

	"plusminus/acme"
)

const checkHead = `plusminus check tells what would keep plusminus from getting its certificates here, before
an order is spent on finding out. Give it the flags that the server is to have, or run it
beside a server that is running: on the same data folder, that one answers the probes.

It looks at what the machine has room for, the data folder, the CA, the clock, each domain's
DNS and CAA records, and asks this machine on ports 80 and 443 at each public address, as the CA would. It makes no
account, places no order, and takes seconds, at most about half a minute.

Usage:

  plusminus check [flags]

Each line it prints is marked ok, warning or problem. A warning is a risk, or something that
cannot be told from inside. Exit status: 0 without a problem, 1 with one, 2 for wrong usage.

Flags, as the server has them:

`

// errProblems is returned when a check found problems, which it has told about itself.
var errProblems = errors.New("the check found problems")

// check tells what a server with the configuration can expect of the machine, and what would keep it from
// getting its certificates. dial makes its connections; nil is the real thing.
func check(ctx context.Context, cfg *config, stdout io.Writer, m machine, dial func(context.Context, string, string) (net.Conn, error)) error {
	out := &checkPrinter{w: stdout}
	out.machine(m, cfg)
	c := acme.CheckConfig{Config: acme.Config{Dir: cfg.data}, Dial: dial}
	if cfg.plain {
		out.say(acme.LevelOK, "certificates", "none with -plain: the proxy in front has them")
	} else {
		var closeFiles func()
		var err error
		if c.Config, closeFiles, err = acmeConfig(cfg); err != nil {
			return err
		}
		defer closeFiles()
	}
	if !cfg.keepsFiles() {
		c.Dir = ""
	}
	out.listen(ctx, cfg, &c)
	if err := acme.Check(ctx, c, out.print); err != nil {
		if ctx.Err() != nil {
			return errors.New("the check was stopped before its end")
		}
		return err
	}
	return out.conclude()
}

// checkPrinter prints findings, and counts them.
type checkPrinter struct {
	w      io.Writer
	group  string // what the last one was under
	counts [acme.LevelProblem + 1]int
	err    error // the first of writing
}

func (p *checkPrinter) printf(format string, args ...any) {
	if _, err := fmt.Fprintf(p.w, format, args...); p.err == nil {
		p.err = err
	}
}

func (p *checkPrinter) print(f acme.Finding) {
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

func (p *checkPrinter) say(level acme.Level, subject, format string, args ...any) {
	p.print(acme.Finding{Subject: subject, Level: level, Text: fmt.Sprintf(format, args...)})
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
	problems, warnings := p.counts[acme.LevelProblem], p.counts[acme.LevelWarning]
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
		return errProblems
	}
	return nil
}

// listen opens the listeners that the server would have and lets c answer on them. Where a port is in
// use, it is left to c to find out who answers there.
func (p *checkPrinter) listen(ctx context.Context, cfg *config, c *acme.CheckConfig) {
	runs := false // a plusminus, as far as its admin listener tells
	if cfg.admin != "" {
		runs = alive(ctx, cfg.admin)
	}
	open := func(flagName, addr string) acme.Port {
		ln, err := net.Listen("tcp", addr)
		switch {
		case err == nil && cfg.plain:
			ln.Close()
		case err == nil:
			return acme.Port{Listeners: []net.Listener{ln}}
		case !errors.Is(err, syscall.EADDRINUSE):
			p.say(acme.LevelProblem, "listener", "%v", listenError(flagName, err))
			return acme.Port{}
		case runs:
			p.say(acme.LevelOK, "listener", "-%s %s is in use, and a plusminus runs here", flagName, addr)
		default:
			p.say(acme.LevelWarning, "listener", "-%s %s is in use: if that is not a plusminus, the server cannot start", flagName, addr)
		}
		return acme.Port{Running: dialable(addr)}
	}
	for _, addr := range cfg.https {
		port := open("https", addr)
		c.TLS.Listeners = append(c.TLS.Listeners, port.Listeners...)
		if c.TLS.Running == "" || strings.HasSuffix(addr, ":443") {
			c.TLS.Running = port.Running
		}
	}
	if cfg.http != "" {
		c.HTTP = open("http", cfg.http)
	}
}

// alive reports whether a plusminus answers on the admin address.
func alive(ctx context.Context, admin string) bool {
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+dialable(admin)+"/livez", nil)
	if err != nil {
		return false
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return false
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, 64))
	return err == nil && string(body) == "alive\n"
}

// checkUsage prints the help of the command.
func checkUsage(w io.Writer) {
	fmt.Fprint(w, checkHead)
	fs := new(options).flags()
	fs.SetOutput(w)
	fs.PrintDefaults()
}

// runCheck is the command "check".
func runCheck(ctx context.Context, args []string, stdout io.Writer) error {
	cfg, err := parseConfig(args, os.LookupEnv, io.Discard)
	if errors.Is(err, flag.ErrHelp) {
		checkUsage(stdout)
	}
	if err != nil {
		return err
	}
	log.SetOutput(io.Discard) // net/http's client tells it about servers that speak something else
	return check(ctx, cfg, stdout, machineHere(), nil)
}
