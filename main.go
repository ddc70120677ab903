// Plusminus serves one counter that everyone changes together, over WebSockets and TLS,
// with certificates that it obtains and renews itself. See README.md.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"syscall"
	"time"

	"plusminus/internal/cli"
	"plusminus/internal/config"
)

// version is set by the linker (-X main.version=…) in images and releases.
var version string

func main() {
	signaled, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	ctx, cancel := context.WithCancelCause(context.Background())
	context.AfterFunc(signaled, func() {
		stop() // before anyone can see that the process is stopping: a second signal ends it at once
		cancel(context.Cause(signaled))
	})
	cli.IgnoreFileSizeLimit()

	err := cli.Run(ctx, os.Args[1:], cli.Environment{
		Version: version, LookupEnv: os.LookupEnv, Stdin: os.Stdin, Stdout: os.Stdout, Stderr: os.Stderr,
	})
	switch {
	case err == nil, errors.Is(err, flag.ErrHelp):
		os.Exit(0)
	case errors.As(err, new(config.UsageError)):
		say("plusminus: %v\nplusminus -h lists the flags\n", err)
		os.Exit(2)
	case errors.Is(err, cli.ErrProblems):
		os.Exit(1) // they are printed already
	default:
		say("plusminus: %v\n", err)
		os.Exit(1)
	}
}

// say prints to stderr. It waits for at most a second: stderr may be a pipe that nobody reads.
func say(format string, args ...any) {
	printed := make(chan struct{})
	go func() {
		fmt.Fprintf(os.Stderr, format, args...)
		close(printed)
	}()
	select {
	case <-printed:
	case <-time.After(time.Second):
	}
}
