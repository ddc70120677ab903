package export

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"plusminus/acme/internal/certs"
)

const (
	shell = "/bin/sh"

	// hookTimeout bounds one run of the hook. Reloading a server takes a second or two.
	hookTimeout = time.Minute

	// hookGrace is how long a hook has to end after SIGTERM. It is well below the ten seconds that a stop of the server
	// takes by default.
	hookGrace = 2 * time.Second

	// A failed hook is tried again after hookRetry, which doubles with each failure in a row up to hookRetryMax. The
	// program may not run yet, or nobody may look for hours.
	hookRetry    = time.Minute
	hookRetryMax = time.Hour

	// What is logged of the output of one run.
	hookLines     = 50
	hookLineBytes = 500
)

// A pending is a hook that has not succeeded for the present pair of a name.
type pending struct {
	pair     string // the folder of the pair
	done     bool   // it has succeeded, even if that could not be written
	failures int    // in a row
	retry    time.Time
}

// runHooks runs the hook for each pair for which it has not succeeded yet, one at a time, until ctx is done.
func (e *Exporter) runHooks(ctx context.Context) {
	hooks := make(map[string]*pending) // by name
	wait := hookRetryMax
	for {
		timer := time.NewTimer(wait)
		select {
		case <-ctx.Done():
			timer.Stop()
			return
		case <-e.wake: // the first pass, too, ends with this
		case <-timer.C:
		}
		timer.Stop()
		wait = hookRetryMax
		for _, f := range e.names {
			p := e.pendingHook(f, hooks[f.name])
			hooks[f.name] = p
			if p == nil || p.done {
				continue
			}
			if !time.Now().Before(p.retry) {
				if e.runHook(ctx, f, p); ctx.Err() != nil {
					return
				}
			}
			if !p.done {
				wait = min(wait, time.Until(p.retry))
			}
		}
	}
}

// pendingHook returns the state of the hook for the present pair of f, or nil if there is no pair. before is the result of
// the last call for f; nil at the first one.
func (e *Exporter) pendingHook(f *folder, before *pending) *pending {
	pair, err := os.Readlink(filepath.Join(f.path, current))
	if err != nil {
		return nil
	}
	p := before
	if p == nil || p.pair != pair {
		p = &pending{pair: pair}
		_, err := os.Stat(filepath.Join(f.path, pair, hookDone))
		p.done = err == nil
	}
	e.setPending(f, !p.done)
	return p
}

func (e *Exporter) setPending(f *folder, pending bool) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.status[f.name].HookPending = pending
}

// runHook runs the hook for the pair of p, and records how that went. If ctx ends the hook, it runs again at the next start.
func (e *Exporter) runHook(ctx context.Context, f *folder, p *pending) {
	began := time.Now()
	err := e.command(ctx, f, p.pair)
	if ctx.Err() != nil {
		return
	}
	took := time.Since(began).Round(time.Millisecond).String()
	result := "ok"
	if err != nil {
		result = "failed"
		p.retry = time.Now().Add(min(e.cfg.hookRetry<<min(p.failures, 10), hookRetryMax))
		p.failures++
		e.log.Warn("export hook failed", "domain", f.name, "err", err, "took", took, "failures", p.failures, "next_try", p.retry)
	} else {
		p.done = true
		e.log.Info("export hook done", "domain", f.name, "took", took)
		err := os.WriteFile(filepath.Join(f.path, p.pair, hookDone), nil, 0o600)
		if err != nil && !errors.Is(err, fs.ErrNotExist) { // the pair may have been replaced twice meanwhile
			e.log.Warn("the success of the export hook cannot be recorded: it runs again after a restart", "domain", f.name, "err", err)
		}
	}
	e.mu.Lock()
	e.status[f.name].HookRuns[result]++
	e.mu.Unlock()
	e.setPending(f, !p.done)
}

// command runs the hook once.
func (e *Exporter) command(ctx context.Context, f *folder, pair string) error {
	ctx, cancel := context.WithTimeout(ctx, e.cfg.hookTimeout)
	defer cancel()
	cmd := exec.CommandContext(ctx, shell, "-c", e.cfg.Hook)
	cmd.Env = append(hookEnvironment(os.Environ()), "PLUSMINUS_DOMAIN="+f.name, "PLUSMINUS_EXPORT="+f.path,
		"RENEWED_LINEAGE="+f.path, "RENEWED_DOMAINS="+strings.Join(domainsOf(filepath.Join(f.path, pair)), " "))
	out := &lineLogger{log: e.log, domain: f.name}
	cmd.Stdout, cmd.Stderr = out, out
	ownGroup(cmd)
	cmd.Cancel = func() error { return askGroup(cmd) }
	cmd.WaitDelay = hookGrace
	err := cmd.Run()
	out.flush()
	if ctx.Err() != nil && cmd.Process != nil {
		killGroup(cmd)
	}
	switch {
	case errors.Is(ctx.Err(), context.DeadlineExceeded):
		return fmt.Errorf("it was ended, since it took longer than %v", e.cfg.hookTimeout)
	case errors.Is(err, exec.ErrWaitDelay): // it has succeeded, and left a process that holds its output open
		return nil
	}
	return err
}

// hookEnvironment returns environ without the settings of plusminus, some of which are secrets.
func hookEnvironment(environ []string) []string {
	return slices.DeleteFunc(slices.Clone(environ), func(v string) bool { return strings.HasPrefix(v, "PLUSMINUS_") })
}

// domainsOf returns the names of the certificate in the folder of a pair.
func domainsOf(pair string) []string {
	data, err := os.ReadFile(filepath.Join(pair, "cert.pem"))
	if err != nil {
		return nil
	}
	chain, err := certs.ParseChain(data)
	if err != nil {
		return nil
	}
	return certs.Names(chain[0])
}

// A lineLogger logs what is written to it, line by line, up to a bound. It is for one goroutine.
type lineLogger struct {
	log    *slog.Logger
	domain string
	line   []byte // the last line, which has no end yet
	lines  int    // that were logged
}

// Write implements [io.Writer]. It never fails.
func (l *lineLogger) Write(p []byte) (int, error) {
	for rest := p; len(rest) > 0; {
		part, after, ended := bytes.Cut(rest, []byte("\n"))
		l.line = append(l.line, part[:min(len(part), hookLineBytes-min(len(l.line), hookLineBytes))]...)
		if ended {
			l.flush()
		}
		rest = after
	}
	return len(p), nil
}

// flush logs the last line, if there is one.
func (l *lineLogger) flush() {
	line := bytes.TrimRight(l.line, "\r ")
	l.line = l.line[:0]
	if len(line) == 0 {
		return
	}
	switch l.lines++; {
	case l.lines <= hookLines:
		l.log.Info("export hook says", "domain", l.domain, "line", string(line))
	case l.lines == hookLines+1:
		l.log.Info("export hook says more, which is not logged", "domain", l.domain)
	}
}
