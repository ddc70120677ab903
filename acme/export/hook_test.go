//go:build unix

package export

import (
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"plusminus/acme/internal/acmetest"
)

// A lockedLog is a log that is read while it is written.
type lockedLog struct {
	mu  sync.Mutex
	buf strings.Builder
}

func (l *lockedLog) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.Write(p)
}

func (l *lockedLog) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.String()
}

// hooked returns a configuration with a hook, and the log.
func hooked(t testing.TB, s *source, dir, hook string) (Config, *lockedLog) {
	cfg := s.config(t, dir)
	log := new(lockedLog)
	cfg.Hook, cfg.Logger = hook, slog.New(slog.NewTextHandler(log, nil))
	t.Cleanup(func() {
		if t.Failed() {
			t.Log(log)
		}
	})
	return cfg, log
}

// lines returns the lines of a file that a hook writes; none if there is no file.
func lines(path string) []string {
	data, _ := os.ReadFile(path)
	return strings.Split(strings.TrimSuffix(string(data), "\n"), "\n")[:strings.Count(string(data), "\n")]
}

// The hook runs once after each change, also after one that happened while no process ran or that it failed for, and not
// at a start without a change.
func TestHook(t *testing.T) {
	// Not parallel: it sets the environment of the process.
	t.Setenv("PLUSMINUS_STORE", "redis://user:secret@localhost")
	t.Setenv("HOOK_TEST", "kept")
	dir, out := t.TempDir(), filepath.Join(t.TempDir(), "out")
	issuer := acmetest.NewIssuer(t)
	s := newSource(issue(t, issuer, name, "www."+name))
	cfg, log := hooked(t, s, dir, `openssl() { :; }; echo "$PLUSMINUS_DOMAIN,$PLUSMINUS_EXPORT,$RENEWED_LINEAGE,$RENEWED_DOMAINS,$HOOK_TEST,$PLUSMINUS_STORE" >>`+out+`; echo to the log; echo too >&2`)
	want := func(what string, n int) {
		t.Helper()
		acmetest.WaitFor(t, what, func() bool { return len(lines(out)) == n })
		path := filepath.Join(dir, name)
		line := fmt.Sprintf("%s,%s,%s,%s www.%s,kept,", name, path, path, name, name)
		if got := lines(out)[n-1]; got != line {
			t.Errorf("%s: the hook got %q, want %q", what, got, line)
		}
	}
	quiet := func(what string, n int) {
		t.Helper()
		time.Sleep(300 * time.Millisecond)
		if got := len(lines(out)); got != n {
			t.Errorf("%s: %d runs of the hook, want %d", what, got, n)
		}
	}
	e, stop := run(t, cfg)
	want("run after the first export", 1)
	acmetest.WaitFor(t, "result", func() bool { return e.Status()[0].HookRuns["ok"] == 1 })
	if st := e.Status()[0]; st.HookPending || st.HookRuns["failed"] != 0 {
		t.Errorf("Status = %+v, want no pending hook", st)
	}
	for _, line := range []string{`msg="export hook says" domain=mail.example line="to the log"`, `line=too`} {
		if !strings.Contains(log.String(), line) {
			t.Errorf("the log has no %s:\n%s", line, log)
		}
	}
	s.serve(issue(t, issuer, name, "www."+name))
	want("run after a change", 2)
	acmetest.WaitFor(t, "result", func() bool { return e.Status()[0].HookRuns["ok"] == 2 })
	stop()

	e, stop = run(t, cfg)
	acmetest.WaitFor(t, "look", func() bool { return !e.Status()[0].LastSuccess.IsZero() })
	quiet("a restart without a change", 2)
	stop()

	s.serve(issue(t, issuer, name, "www."+name))
	_, stop = run(t, cfg)
	want("run after a change while no process ran", 3)
	stop()
}

// A hook that fails is tried again, also by the next process, and harms nothing else.
func TestHookFails(t *testing.T) {
	t.Parallel()
	dir, out := t.TempDir(), filepath.Join(t.TempDir(), "out")
	s := newSource(issue(t, acmetest.NewIssuer(t), name))
	cfg, log := hooked(t, s, dir, "echo run >>"+out+"; exit 3")
	e, stop := run(t, cfg)
	acmetest.WaitFor(t, "failure", func() bool { return e.Status()[0].HookRuns["failed"] == 1 })
	wantPair(t, dir, s.served.Load())
	if !e.Status()[0].HookPending || !strings.Contains(log.String(), `msg="export hook failed" domain=mail.example err="exit status 3"`) {
		t.Errorf("Status = %+v, and the log is %s", e.Status()[0], log)
	}
	stop()
	cfg.hookRetry = 50 * time.Millisecond
	e, stop = run(t, cfg)
	acmetest.WaitFor(t, "another try", func() bool { return e.Status()[0].HookRuns["failed"] == 3 })
	stop()
	cfg.Hook = "echo good >>" + out
	e, _ = run(t, cfg)
	acmetest.WaitFor(t, "success", func() bool { return e.Status()[0].HookRuns["ok"] == 1 && !e.Status()[0].HookPending })
}

// A hook has a time limit, after which its whole process group is ended. A stop of the server ends it, too.
func TestHookIsEnded(t *testing.T) {
	t.Parallel()
	for _, why := range []string{"time limit", "stop"} {
		t.Run(why, func(t *testing.T) {
			t.Parallel()
			out := filepath.Join(t.TempDir(), "out")
			s := newSource(issue(t, acmetest.NewIssuer(t), name))
			// The child and the grandchild ignore SIGTERM.
			cfg, log := hooked(t, s, t.TempDir(), `trap "" TERM; sh -c 'trap "" TERM; echo $$ >>`+out+`; while :; do sleep 1; done' & echo $$ >>`+out+`; while :; do sleep 1; done`)
			if why == "time limit" {
				cfg.hookTimeout = 500 * time.Millisecond
			}
			e, stop := run(t, cfg)
			acmetest.WaitFor(t, "two processes", func() bool { return len(lines(out)) == 2 })
			if why == "stop" {
				began := time.Now()
				stop()
				t.Logf("Run returned after %v", time.Since(began))
				if n := e.Status()[0].HookRuns["failed"]; n != 0 {
					t.Errorf("%d failures, want none: the stop has ended the hook", n)
				}
			} else {
				acmetest.WaitFor(t, "failure", func() bool { return e.Status()[0].HookRuns["failed"] == 1 })
				if !strings.Contains(log.String(), "it was ended, since it took longer than 500ms") {
					t.Errorf("the log is %s", log)
				}
			}
			for _, line := range lines(out) {
				pid, err := strconv.Atoi(line)
				if err != nil {
					t.Fatal(err)
				}
				acmetest.WaitFor(t, "end of a process of the hook", func() bool { return ended(pid) })
			}
		})
	}
}

// ended reports whether a process has ended. One that nobody waits for is a zombie.
func ended(pid int) bool {
	if syscall.Kill(pid, 0) == syscall.ESRCH {
		return true
	}
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	return err == nil && strings.Contains(string(data), ") Z ")
}

// A hook that starts a process and leaves it running has succeeded.
func TestHookLeavesProcess(t *testing.T) {
	t.Parallel()
	out := filepath.Join(t.TempDir(), "out")
	s := newSource(issue(t, acmetest.NewIssuer(t), name))
	cfg, _ := hooked(t, s, t.TempDir(), "sleep 60 & echo $! >"+out)
	e, _ := run(t, cfg)
	acmetest.WaitFor(t, "success", func() bool { return e.Status()[0].HookRuns["ok"] == 1 })
	pid, err := strconv.Atoi(lines(out)[0])
	if err != nil {
		t.Fatal(err)
	}
	if ended(pid) {
		t.Error("the process has ended")
	}
	syscall.Kill(pid, syscall.SIGKILL)
}

// What a hook prints is bounded in lines and in bytes.
func TestHookOutput(t *testing.T) {
	t.Parallel()
	s := newSource(issue(t, acmetest.NewIssuer(t), name))
	cfg, log := hooked(t, s, t.TempDir(), `head -c 100000 /dev/zero | tr '\0' x; echo; i=0; while [ $i -lt 200 ]; do echo line $i; i=$((i+1)); done; printf 'no end'`)
	e, _ := run(t, cfg)
	acmetest.WaitFor(t, "success", func() bool { return e.Status()[0].HookRuns["ok"] == 1 })
	if got := strings.Count(log.String(), "export hook says\""); got != hookLines {
		t.Errorf("%d lines logged, want %d", got, hookLines)
	}
	if got := strings.Count(log.String(), "x"); got < hookLineBytes || got > hookLineBytes+hookLines*50 {
		t.Errorf("the first line has about %d bytes, want %d", got, hookLineBytes)
	}
	if !strings.Contains(log.String(), "export hook says more, which is not logged") {
		t.Error("the log does not say that there was more")
	}
}
