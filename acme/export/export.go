// Package export keeps served certificates in files for other programs, such as a mail server on the same machine.
//
// The files of a name have the names and the form that certbot gives them:
//
//	<Dir>/<name>/cert.pem       -> current/cert.pem        the certificate
//	<Dir>/<name>/chain.pem      -> current/chain.pem       the rest of its chain; empty if there is no rest
//	<Dir>/<name>/fullchain.pem  -> current/fullchain.pem   both
//	<Dir>/<name>/privkey.pem    -> current/privkey.pem     the private key, PKCS#8
//	<Dir>/<name>/current        -> <serial>-<number>       a folder with the four files, which never change
//
// # One step
//
// A new pair is written to a folder of its own and synced. Then one rename replaces the link current. So all four files
// change at once, and a crash leaves the old pair or the new one. <Dir>/<name> stays the same folder, so a container may
// mount it. This is how Kubernetes updates the files of a Secret.
//
// A reader that resolves current once always gets a pair that fits, for example with os.OpenRoot or openat(2). A reader that
// opens fullchain.pem and then privkey.pem can meet the rename in between. It should read again if key and certificate do
// not fit, or be reloaded by the hook, when both files are in place. The pair before stays until the next change.
//
// # What is exported
//
// A pair is written only if it is valid for the name at that moment. Otherwise the files stay as they are: an expired pair
// stays, and nothing is written before the first certificate. Links and files that this package has not made are never
// replaced: in a folder of certbot, export fails.
//
// # Goroutines
//
// [Exporter.Run] compares and writes: at its start, after each change, and once a minute, which also puts right what was
// deleted or has failed. With a hook it starts one more goroutine, which runs one hook at a time, and waits for it before it
// returns. The two share the folders and a channel.
//
// Several exporters may write to one folder: each holds the lock <Dir>/.plusminus+lock while it writes.
package export

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"maps"
	"os"
	"os/user"
	"path/filepath"
	"runtime"
	"strconv"
	"sync"
	"time"

	"plusminus/acme/internal/certs"
	"plusminus/acme/internal/store"
)

// interval is how often the files are compared with what is served. It is also the wait after a failure.
const interval = time.Minute

// Config says what to export and where to. All fields but Group and Hook are required.
type Config struct {
	// Dir is the folder in which each name has a folder of its own. New makes it if it is missing. A folder that exists
	// keeps its owner and mode.
	Dir string

	// Names are the names to export. Each becomes the name of a folder.
	Names []string

	// Served returns what is served for a name, or nil. It must be safe for concurrent use.
	Served func(name string) *tls.Certificate

	// Changed gets a value after each change of what is served.
	Changed <-chan struct{}

	// Mode is the mode of the files. Folders also have x where Mode has r, and rwx for their owner.
	Mode fs.FileMode

	// Group is the name or number of the group of files and folders. Empty leaves that to the system. The process must be
	// a member of the group, or root.
	Group string

	// Hook is a command for /bin/sh that runs after each change of a name's files. Empty is none.
	Hook string

	// Logger gets what an operator should know.
	Logger *slog.Logger

	// Test hooks. New replaces zero values, but for step, which is called before each change of the file system.
	step        func()
	hookTimeout time.Duration
	hookRetry   time.Duration
}

// Validate returns the errors of cfg that a restart does not mend, joined: a group that does not exist, and a hook where
// there is no shell. It changes nothing.
func (cfg *Config) Validate() error {
	if runtime.GOOS == "windows" {
		return errors.New("not supported on Windows, which cannot replace a link in one step")
	}
	_, errGroup := groupID(cfg.Group)
	var errHook error
	if _, err := os.Stat(shell); cfg.Hook != "" && err != nil {
		errHook = fmt.Errorf("no command can be run here, since there is no %s, as in the image of plusminus; "+
			"instead, let the container that uses the files look for changes, and reload there", shell)
	}
	return errors.Join(errGroup, errHook)
}

// groupID returns the number of a group that is given by name or number, or -1 for "".
func groupID(group string) (int, error) {
	if group == "" {
		return -1, nil
	}
	if id, err := strconv.ParseUint(group, 10, 31); err == nil {
		return int(id), nil
	}
	g, err := user.LookupGroup(group)
	if err != nil {
		return 0, fmt.Errorf("there is no group %q here (in a container without /etc/group, give its number): %w", group, err)
	}
	return strconv.Atoi(g.Gid)
}

// Status is the state of one name's files.
type Status struct {
	Name        string
	LastSuccess time.Time      // when the files were last written, or found to be right; zero if never
	Failures    uint64         // how often they could not be written or read since the start
	HookRuns    map[string]int // how often the hook has ended since the start, by result: "ok" or "failed"; nil without a hook
	HookPending bool           // the hook has not succeeded for the present files yet; false without a hook
}

// An Exporter keeps files. Status is safe for concurrent use, also while Run runs. Run must be called once.
type Exporter struct {
	// Immutable after New.
	cfg   Config
	log   *slog.Logger
	names []*folder
	lock  *store.Folder
	wake  chan struct{} // pass -> runHooks; buffer 1, since one look finds all changes; never closed

	mu sync.Mutex
	// Guarded by mu.
	status map[string]*Status
}

// New makes the folder and tries to write to it as cfg says. It does not export yet. The error says what an operator must
// correct.
func New(cfg Config) (*Exporter, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	group, err := groupID(cfg.Group)
	if err != nil {
		return nil, err
	}
	if cfg.Dir, err = filepath.Abs(cfg.Dir); err != nil {
		return nil, err
	}
	cfg.hookTimeout, cfg.hookRetry = cmp.Or(cfg.hookTimeout, hookTimeout), cmp.Or(cfg.hookRetry, hookRetry)
	e := &Exporter{cfg: cfg, log: cfg.Logger, lock: store.NewFolder(cfg.Dir, time.Now, cfg.Logger),
		wake: make(chan struct{}, 1), status: make(map[string]*Status)}
	for _, name := range cfg.Names {
		e.names = append(e.names, &folder{name: name, path: filepath.Join(cfg.Dir, name), access: access{cfg.Mode, group}, step: cfg.step})
		e.status[name] = &Status{Name: name, HookRuns: map[string]int{"ok": 0, "failed": 0}}
	}
	if err := e.try(access{cfg.Mode, group}); err != nil {
		return nil, fmt.Errorf("%w; %s", err, hint(err))
	}
	if cfg.Mode&0o004 != 0 {
		e.log.Warn("exported private keys can be read by every user who reaches the folder", "folder", cfg.Dir, "mode", fmt.Sprintf("%04o", cfg.Mode))
	}
	return e, nil
}

// try makes the folder if it is missing, and a file in it, which it removes.
func (e *Exporter) try(a access) error {
	if err := e.makeDir(a); err != nil {
		return err
	}
	f, err := os.CreateTemp(e.cfg.Dir, ".write-test-*")
	if err != nil {
		return err
	}
	return errors.Join(a.give(f.Name(), a.mode), f.Close(), os.Remove(f.Name()))
}

// makeDir makes the folder of all names if it is missing.
func (e *Exporter) makeDir(a access) error {
	if info, err := os.Stat(e.cfg.Dir); err == nil && info.IsDir() {
		return nil
	}
	if err := os.MkdirAll(e.cfg.Dir, 0o700); err != nil {
		return err
	}
	return a.give(e.cfg.Dir, a.folderMode())
}

// hint says what an operator should look at after err.
func hint(err error) string {
	var pe *fs.PathError
	switch {
	case errors.As(err, &pe) && pe.Op == "chown":
		return fmt.Sprintf("only root, or a member of the group, can give files to it; this process has uid %d, gid %d and the groups %s "+
			"(docker run --group-add, systemd SupplementaryGroups=)", os.Geteuid(), os.Getegid(), groups())
	case errors.Is(err, fs.ErrPermission):
		return fmt.Sprintf("the folder must belong to the user that plusminus runs as, uid %d", os.Geteuid())
	case errors.Is(err, errForeign):
		return "move it away, or export to a folder of its own"
	}
	return "check the folder's owner, mode and free space"
}

// groups returns the groups of this process for an error.
func groups() string {
	ids, err := os.Getgroups()
	if err != nil {
		return "unknown"
	}
	return fmt.Sprint(ids)
}

// Run keeps the files until ctx is done, and then returns nil. A hook that runs at that moment is ended.
//
// A failure is logged in one line when it begins, counted in Status, and tried again each minute.
func (e *Exporter) Run(ctx context.Context) error {
	var hooks sync.WaitGroup
	defer hooks.Wait()
	if e.cfg.Hook != "" {
		hooks.Go(func() { e.runHooks(ctx) })
	}
	ticker := time.NewTicker(interval)
	defer ticker.Stop()
	for {
		e.pass(ctx)
		select {
		case <-ctx.Done():
			return nil
		case <-e.cfg.Changed:
		case <-ticker.C:
		}
	}
}

// pass compares the files of all names with what is served, and writes those that differ.
func (e *Exporter) pass(ctx context.Context) {
	err := e.makeDir(e.names[0].access)
	if err == nil {
		var release func()
		if release, err = store.WaitLock(ctx, e.lock, ".plusminus"); err == nil {
			defer release()
		}
	}
	for _, f := range e.names {
		cert := e.cfg.Served(f.name)
		if ctx.Err() != nil || cert == nil || certs.Invalidity(cert.Leaf, f.name, time.Now()) != "" {
			continue
		}
		wrote, errWrite := false, err
		if errWrite == nil {
			wrote, errWrite = f.keep(cert)
		}
		if errWrite != nil && ctx.Err() != nil {
			continue
		}
		e.note(f, cert, wrote, errWrite)
	}
	select {
	case e.wake <- struct{}{}:
	default: // a look is pending
	}
}

// note records and logs how a pass went for one name.
func (e *Exporter) note(f *folder, cert *tls.Certificate, wrote bool, err error) {
	e.mu.Lock()
	st := e.status[f.name]
	if err == nil {
		st.LastSuccess = time.Now()
	} else {
		st.Failures++
	}
	e.mu.Unlock()
	failing := f.failing
	f.failing = ""
	switch {
	case err != nil:
		f.failing = err.Error()
		if f.failing != failing {
			e.log.Error("certificate not exported: trying again every minute", "domain", f.name, "folder", f.path, "err", err, "hint", hint(err))
		}
	case wrote:
		e.log.Info("certificate exported", "domain", f.name, "folder", f.path, "serial", serial(cert), "not_after", cert.Leaf.NotAfter)
	case failing != "":
		e.log.Info("exported certificate is right again", "domain", f.name, "folder", f.path)
	}
}

// Status returns the state of the files of each name, in the order of Config.Names.
func (e *Exporter) Status() []Status {
	e.mu.Lock()
	defer e.mu.Unlock()
	var all []Status
	for _, name := range e.cfg.Names {
		st := *e.status[name]
		st.HookRuns = nil
		if e.cfg.Hook != "" {
			st.HookRuns = maps.Clone(e.status[name].HookRuns)
		}
		all = append(all, st)
	}
	return all
}
