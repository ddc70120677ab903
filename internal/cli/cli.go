// Package cli has the commands of the program: to serve, and check, renew, value, healthcheck and
// version.
package cli

import (
	"cmp"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"os/signal"
	"runtime/debug"
	"strings"
	"sync"
	"syscall"
	"time"

	"plusminus/internal/admin"
	"plusminus/internal/config"
	"plusminus/internal/logging"
	"plusminus/internal/server"
)

// Environment is what a command gets from the process, beside its arguments.
type Environment struct {
	Version        string // "" is the version of the build, if it has one
	LookupEnv      func(name string) (string, bool)
	Stdin          io.Reader
	Stdout, Stderr io.Writer
}

func (e Environment) version() string {
	if e.Version != "" {
		return e.Version
	}
	if info, ok := debug.ReadBuildInfo(); ok {
		return cmp.Or(info.Main.Version, "unknown")
	}
	return "unknown"
}

// parse parses the flags of a command. help gets the help if it is asked for.
func (e Environment) parse(args []string, help io.Writer) (*config.Config, error) {
	return config.Parse(args, e.LookupEnv, help)
}

// Run runs the command that args name: without a command, it serves. It returns when that is done or,
// for a server, when ctx ends. The error is a [config.UsageError], [flag.ErrHelp] after the help was
// printed, [ErrProblems], or says what failed.
func Run(ctx context.Context, args []string, env Environment) error {
	if len(args) == 0 || strings.HasPrefix(args[0], "-") {
		return serve(ctx, args, env)
	}
	command, args := args[0], args[1:]
	switch command {
	case "check":
		return runCheck(ctx, args, env)
	case "renew":
		return renew(ctx, args, env)
	case "value":
		return value(args, env)
	case "healthcheck":
		return healthcheck(ctx, args, env)
	case "version":
		_, err := fmt.Fprintln(env.Stdout, "plusminus", env.version())
		return err
	}
	return config.UsageError{Err: unknownCommand(command)}
}

func unknownCommand(command string) error {
	if nearest := config.Nearest(command, []string{"check", "renew", "value", "healthcheck", "version"}); nearest != "" {
		return fmt.Errorf("unknown command %q: did you mean %s?", command, nearest)
	}
	return fmt.Errorf("unknown command %q: the commands are check, renew, value, healthcheck and version; without one, plusminus serves", command)
}

// serve runs a server until ctx ends.
func serve(ctx context.Context, args []string, env Environment) error {
	hangup := make(chan os.Signal, 1) // first of all, since an uncaught SIGHUP ends the process
	signal.Notify(hangup, syscall.SIGHUP)
	defer signal.Stop(hangup)

	cfg, err := env.parse(args, env.Stdout)
	if err != nil {
		return err
	}
	// If the reader of the log ends, the server serves on. (By default SIGPIPE would end the process, as it
	// does for the other commands: plusminus check | head.) The commands of -export-hook would inherit an ignored signal,
	// but not one that is caught.
	signal.Notify(make(chan os.Signal, 1), syscall.SIGPIPE)
	log, queue := logging.New(logging.Config{Level: cfg.LogLevel, Format: cfg.LogFormat, Addresses: cfg.LogAddresses}, env.Stderr)
	defer queue.Close()
	logging.TakeStandardLog(log)
	srv, err := server.New(ctx, cfg, server.Options{Version: env.version(), Log: log, LinesLost: queue.Lost})
	if err != nil {
		return err
	}
	var reloads sync.WaitGroup
	defer reloads.Wait()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	reloads.Go(func() {
		for {
			select {
			case <-hangup:
				log.Info("SIGHUP: looking at the certificates")
				srv.Reload()
			case <-ctx.Done():
				return
			}
		}
	})
	return srv.Run(ctx)
}

// healthcheck asks the server that runs with the same configuration whether it is ready.
func healthcheck(ctx context.Context, args []string, env Environment) error {
	cfg, err := env.parse(args, env.Stdout)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	return ask(ctx, cfg, http.MethodGet, "/readyz", env.Stdout)
}

// renew makes the server that runs with the same configuration renew the certificates of the domains
// that are given, or its only one. It prints how each went.
func renew(ctx context.Context, args []string, env Environment) error {
	cfg, err := env.parse(args, env.Stdout)
	if err != nil {
		return err
	}
	if !cfg.DomainGiven {
		return ask(ctx, cfg, http.MethodPost, "/renew", env.Stdout)
	}
	var errs []error
	for _, d := range cfg.Domains {
		err := ask(ctx, cfg, http.MethodPost, "/renew?domain="+url.QueryEscape(d.Name), env.Stdout)
		if err != nil {
			err = fmt.Errorf("%s: %w", d.Name, err)
		}
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// ask sends a request to the running server, and prints the answer.
func ask(ctx context.Context, cfg *config.Config, method, target string, stdout io.Writer) error {
	text, err := admin.Ask(ctx, cfg.Admin, method, target)
	if err != nil {
		return err
	}
	_, err = fmt.Fprintln(stdout, text)
	return err
}

// isHelp reports whether err is the answer to -h.
func isHelp(err error) bool { return errors.Is(err, flag.ErrHelp) }
