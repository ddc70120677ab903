//go:build unix

package export

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"plusminus/acme/internal/acmetest"
)

const name = "mail.example"

var fileNames = []string{"cert.pem", "chain.pem", "fullchain.pem", "privkey.pem"}

// A source is what a test exports: one certificate for name.
type source struct {
	served  atomic.Pointer[tls.Certificate]
	changed chan struct{}
}

func newSource(cert *tls.Certificate) *source {
	s := &source{changed: make(chan struct{}, 1)}
	s.served.Store(cert)
	return s
}

// serve changes the certificate.
func (s *source) serve(cert *tls.Certificate) {
	s.served.Store(cert)
	select {
	case s.changed <- struct{}{}:
	default:
	}
}

func (s *source) config(t testing.TB, dir string) Config {
	log := slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelDebug}))
	return Config{Dir: dir, Names: []string{name}, Served: func(string) *tls.Certificate { return s.served.Load() },
		Changed: s.changed, Mode: 0o600, Logger: log}
}

// open returns an exporter, which does not run.
func open(t testing.TB, cfg Config) *Exporter {
	t.Helper()
	e, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return e
}

// run runs an exporter until the test ends, or until stop is called.
func run(t testing.TB, cfg Config) (e *Exporter, stop func()) {
	t.Helper()
	e = open(t, cfg)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- e.Run(ctx) }()
	stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run = %v, want nil", err)
		}
	})
	t.Cleanup(stop)
	return e, stop
}

func issue(t testing.TB, i *acmetest.Issuer, names ...string) *tls.Certificate {
	t.Helper()
	cert := i.Issue(t, time.Hour, names...)
	return &cert
}

// wantPair checks that the files are those of want, in the form in which certbot writes them.
func wantPair(t testing.TB, dir string, want *tls.Certificate) {
	t.Helper()
	read := func(file string) []byte {
		data, err := os.ReadFile(filepath.Join(dir, name, file))
		if err != nil {
			t.Fatal(err)
		}
		return data
	}
	pair, err := tls.X509KeyPair(read("fullchain.pem"), read("privkey.pem"))
	if err != nil {
		t.Fatal(err)
	}
	if !slices.EqualFunc(pair.Certificate, want.Certificate, slices.Equal) {
		t.Errorf("fullchain.pem is not the chain that is served")
	}
	if got, want := string(read("fullchain.pem")), string(read("cert.pem"))+string(read("chain.pem")); got != want {
		t.Errorf("fullchain.pem = %q, want cert.pem and chain.pem: %q", got, want)
	}
	if block, rest := pem.Decode(read("cert.pem")); block == nil || !slices.Equal(block.Bytes, want.Certificate[0]) || len(rest) > 0 {
		t.Errorf("cert.pem is not the leaf alone")
	}
	if block, rest := pem.Decode(read("privkey.pem")); block == nil || block.Type != "PRIVATE KEY" || len(rest) > 0 {
		t.Errorf("privkey.pem is not one PKCS#8 block")
	}
	for _, file := range fileNames {
		if target, err := os.Readlink(filepath.Join(dir, name, file)); err != nil || target != "current/"+file {
			t.Errorf("%s leads to %q, %v", file, target, err)
		}
	}
}

// pairs returns the names of the folders with pairs, and wants nothing in the folder of name but what belongs there.
func pairs(t testing.TB, dir string) []string {
	t.Helper()
	entries, err := os.ReadDir(filepath.Join(dir, name))
	if err != nil {
		t.Fatal(err)
	}
	var found []string
	for _, e := range entries {
		switch {
		case e.IsDir() && pairFolder.MatchString(e.Name()):
			found = append(found, e.Name())
		case e.Name() != current && !slices.Contains(fileNames, e.Name()):
			t.Errorf("%s was left behind", e.Name())
		}
	}
	return found
}

// The files follow what is served, in one step. The pair before stays until the next change. What is deleted or
// changed by others comes back.
func TestExport(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "certs")
	issuer := acmetest.NewIssuer(t)
	first := issue(t, issuer, name)
	s := newSource(first)
	e := open(t, s.config(t, dir))
	e.pass(t.Context())
	wantPair(t, dir, first)
	inode := func() uint64 {
		info, err := os.Stat(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		return info.Sys().(*syscall.Stat_t).Ino
	}
	folder := inode()
	kept := pairs(t, dir)

	for range 3 {
		next := issue(t, issuer, name)
		s.serve(next)
		e.pass(t.Context())
		wantPair(t, dir, next)
		now := pairs(t, dir)
		if len(now) != 2 || !slices.Contains(now, kept[0]) {
			t.Errorf("after a change there are the pairs %q, want the new one and the former one, %s", now, kept[0])
		}
		kept = slices.DeleteFunc(now, func(p string) bool { return p == kept[0] })
	}
	if inode() != folder {
		t.Error("the folder of the name was replaced, so that a mount of it shows the old one")
	}

	now := s.served.Load()
	before := pairs(t, dir)
	e.pass(t.Context())
	if got := pairs(t, dir); !slices.Equal(got, before) {
		t.Errorf("without a change, the pairs %q became %q", before, got)
	}
	for what, spoil := range map[string]func() error{
		"a deleted key":        func() error { return os.Remove(filepath.Join(dir, name, "current", "privkey.pem")) },
		"a deleted link":       func() error { return os.Remove(filepath.Join(dir, name, "cert.pem")) },
		"a deleted current":    func() error { return os.Remove(filepath.Join(dir, name, "current")) },
		"a changed file":       func() error { return os.WriteFile(filepath.Join(dir, name, "chain.pem"), []byte("x"), 0o600) },
		"a changed mode":       func() error { return os.Chmod(filepath.Join(dir, name, "privkey.pem"), 0o644) },
		"a deleted folder":     func() error { return os.RemoveAll(filepath.Join(dir, name)) },
		"everything deleted":   func() error { return os.RemoveAll(dir) },
		"leftovers of a crash": func() error { return os.MkdirAll(filepath.Join(dir, name, unfinished+"1"), 0o700) },
	} {
		if err := spoil(); err != nil {
			t.Fatal(err)
		}
		e.pass(t.Context())
		t.Log("after", what)
		wantPair(t, dir, now)
		pairs(t, dir)
	}
	if st := e.Status()[0]; st.Failures != 0 || time.Since(st.LastSuccess) > time.Minute || st.HookRuns != nil {
		t.Errorf("Status = %+v, want no failures and a success now", st)
	}
}

// Run exports at its start, and soon after a change.
func TestRun(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	issuer := acmetest.NewIssuer(t)
	s := newSource(issue(t, issuer, name))
	run(t, s.config(t, dir))
	for range 3 {
		acmetest.WaitFor(t, "export", func() bool {
			target, _ := os.Readlink(filepath.Join(dir, name, current))
			return strings.HasPrefix(target, serial(s.served.Load())+"-")
		})
		wantPair(t, dir, s.served.Load())
		s.serve(issue(t, issuer, name))
	}
}

// A pair that is not valid for the name replaces nothing, and is not written at all.
func TestInvalid(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	now := time.Now()
	good := issue(t, acmetest.NewIssuer(t), name)
	expired := acmetest.SelfSigned(t, name, now.Add(-2*time.Hour), now.Add(-time.Hour))
	early := acmetest.SelfSigned(t, name, now.Add(time.Hour), now.Add(2*time.Hour))
	other := acmetest.SelfSigned(t, "other.example", now.Add(-time.Hour), now.Add(time.Hour))
	s := newSource(nil)
	e := open(t, s.config(t, dir))
	bad := []*tls.Certificate{nil, &expired, &early, &other}
	for _, cert := range bad {
		s.serve(cert)
		e.pass(t.Context())
		if _, err := os.Lstat(filepath.Join(dir, name)); !errors.Is(err, fs.ErrNotExist) {
			t.Fatalf("a folder was made for %v", cert)
		}
	}
	s.serve(good)
	e.pass(t.Context())
	for _, cert := range bad {
		s.serve(cert)
		e.pass(t.Context())
		wantPair(t, dir, good)
	}
}

// A folder that certbot keeps, and other files with the names of ours, are left alone. The failure is logged once and
// counted.
func TestForeign(t *testing.T) {
	t.Parallel()
	for what, put := range map[string]func(dir string) error{
		"a link of certbot": func(dir string) error { return os.Symlink("../../archive/x/cert1.pem", filepath.Join(dir, "cert.pem")) },
		"a file":            func(dir string) error { return os.WriteFile(filepath.Join(dir, "privkey.pem"), []byte("mine"), 0o600) },
		"a folder":          func(dir string) error { return os.Mkdir(filepath.Join(dir, current), 0o700) },
	} {
		dir := t.TempDir()
		if err := errors.Join(os.Mkdir(filepath.Join(dir, name), 0o700), put(filepath.Join(dir, name))); err != nil {
			t.Fatal(err)
		}
		before := tree(t, filepath.Join(dir, name))
		var log strings.Builder
		s := newSource(issue(t, acmetest.NewIssuer(t), name))
		cfg := s.config(t, dir)
		cfg.Logger = slog.New(slog.NewTextHandler(&log, nil))
		e := open(t, cfg)
		e.pass(t.Context())
		e.pass(t.Context())
		after := tree(t, filepath.Join(dir, name))
		for file, is := range before {
			if after[file] != is {
				t.Errorf("%s: %s was %q and is %q", what, file, is, after[file])
			}
		}
		if n := strings.Count(log.String(), "certificate not exported"); n != 1 || !strings.Contains(log.String(), "is not a link that plusminus has made") {
			t.Errorf("%s: logged %d times: %s", what, n, log.String())
		}
		if st := e.Status()[0]; st.Failures != 2 || !st.LastSuccess.IsZero() {
			t.Errorf("%s: Status = %+v, want 2 failures", what, st)
		}
	}
}

// tree returns what is in a folder: the targets of links, and the contents of files.
func tree(t testing.TB, dir string) map[string]string {
	t.Helper()
	found := make(map[string]string)
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		path := filepath.Join(dir, e.Name())
		if target, err := os.Readlink(path); err == nil {
			found[e.Name()] = "-> " + target
		} else if data, err := os.ReadFile(path); err == nil {
			found[e.Name()] = string(data)
		} else {
			found[e.Name()] = "folder"
		}
	}
	return found
}

// TestCrash kills a process at each step of an export, the first one and a later one. The files are those of the pair before
// or of the new one, all four, at each moment; before the first pair there is none of them. The next export succeeds and leaves
// nothing behind.
func TestCrash(t *testing.T) {
	t.Parallel()
	if spec := os.Getenv("EXPORT_TEST_CRASH"); spec != "" { // in the second process
		crash(t, spec)
		return
	}
	issuer := acmetest.NewIssuer(t)
	old, new := issue(t, issuer, name), issue(t, issuer, name)
	for _, later := range []bool{false, true} {
		var before, after int
		for step := 1; ; step++ {
			dir := t.TempDir()
			s := newSource(old)
			if later {
				open(t, s.config(t, dir)).pass(t.Context())
			}
			chain, key := acmetest.PEM(t, *new)
			spec := filepath.Join(t.TempDir(), "spec")
			if err := os.WriteFile(spec, append(chain, key...), 0o600); err != nil {
				t.Fatal(err)
			}
			cmd := exec.Command(os.Args[0], "-test.run", "^TestCrash$")
			cmd.Env = append(os.Environ(), fmt.Sprintf("EXPORT_TEST_CRASH=%d %s %s", step, spec, dir))
			out, err := cmd.CombinedOutput()
			if err == nil {
				if step < 10 {
					t.Fatalf("the export has only %d steps: %s", step-1, out)
				}
				t.Logf("later %v: %d steps, %d before the change and %d after it", later, step-1, before, after)
				break
			}
			if status, ok := cmd.ProcessState.Sys().(syscall.WaitStatus); !ok || !status.Signaled() {
				t.Fatalf("step %d: %v: %s", step, err, out)
			}
			_, err = os.Stat(filepath.Join(dir, name, "fullchain.pem"))
			switch {
			case err != nil && !later:
				before++
				for _, file := range fileNames {
					if _, err := os.Stat(filepath.Join(dir, name, file)); !errors.Is(err, fs.ErrNotExist) {
						t.Errorf("step %d: there is %s without fullchain.pem: %v", step, file, err)
					}
				}
			case later && after == 0 && served(t, dir).Equal(old.Leaf):
				before++
				wantPair(t, dir, old)
			default:
				after++
				wantPair(t, dir, new)
			}
			s.serve(new)
			open(t, s.config(t, dir)).pass(t.Context())
			wantPair(t, dir, new)
			if n := len(pairs(t, dir)); n > 2 {
				t.Errorf("step %d: the next export leaves %d pairs, want 2 at most", step, n)
			}
		}
		if before == 0 || after == 0 {
			t.Errorf("%d crashes before the change and %d after it, want both", before, after)
		}
	}
}

// served returns the certificate in cert.pem.
func served(t testing.TB, dir string) *x509.Certificate {
	t.Helper()
	data, err := os.ReadFile(filepath.Join(dir, name, "cert.pem"))
	if err != nil {
		t.Fatal(err)
	}
	block, _ := pem.Decode(data)
	cert, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	return cert
}

// crash exports and kills this process at a step.
func crash(t *testing.T, spec string) {
	var at int
	var file, dir string
	if _, err := fmt.Sscan(spec, &at, &file, &dir); err != nil {
		t.Fatal(err)
	}
	data, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := tls.X509KeyPair(data, data)
	if err != nil {
		t.Fatal(err)
	}
	cfg := newSource(&cert).config(t, dir)
	cfg.step = func() {
		if at--; at == 0 {
			syscall.Kill(os.Getpid(), syscall.SIGKILL)
			select {} // the signal may come a moment later
		}
	}
	open(t, cfg).pass(t.Context())
}

// A reader that resolves current once finds a pair that fits at each moment, while certificates change as fast as they can.
func TestReaders(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	issuer := acmetest.NewIssuer(t)
	certs := []*tls.Certificate{issue(t, issuer, name), issue(t, issuer, name), issue(t, issuer, name)}
	s := newSource(certs[0])
	e := open(t, s.config(t, dir))
	e.pass(t.Context())
	done := make(chan struct{})
	var reads, gone int
	var reading sync.WaitGroup
	reading.Go(func() {
		for {
			select {
			case <-done:
				return
			default:
			}
			root, err := os.OpenRoot(filepath.Join(dir, name, current))
			if err != nil {
				t.Errorf("reading: %v", err)
				return
			}
			chain, err := root.ReadFile("fullchain.pem")
			key, errKey := root.ReadFile("privkey.pem")
			root.Close()
			if errors.Is(err, fs.ErrNotExist) || errors.Is(errKey, fs.ErrNotExist) {
				gone++ // two changes since it was opened
				continue
			}
			reads++
			if _, errPair := tls.X509KeyPair(chain, key); err != nil || errKey != nil || errPair != nil {
				t.Errorf("read %d: %v, %v, %v", reads, err, errKey, errPair)
				return
			}
		}
	})
	const changes = 100
	for i := range changes {
		s.serve(certs[i%len(certs)])
		e.pass(t.Context())
	}
	close(done)
	reading.Wait()
	t.Logf("%d pairs read during %d changes; %d readers were two changes late", reads, changes, gone)
	if reads == 0 {
		t.Error("no pair was read")
	}
}

// Several exporters on one folder do not disturb each other.
func TestSeveral(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	s := newSource(issue(t, acmetest.NewIssuer(t), name))
	var writing sync.WaitGroup
	for range 4 {
		e := open(t, s.config(t, dir))
		writing.Go(func() { e.pass(t.Context()) })
	}
	writing.Wait()
	wantPair(t, dir, s.served.Load())
	if got := pairs(t, dir); len(got) != 1 {
		t.Errorf("there are the pairs %q, want one", got)
	}
}

// Modes and group are those of the configuration, whatever the umask is. Folders have x where files have r.
func TestAccess(t *testing.T) {
	t.Parallel()
	group := os.Getegid()
	if os.Geteuid() == 0 {
		group = 4242 // which no system has
	}
	dir := filepath.Join(t.TempDir(), "certs")
	s := newSource(issue(t, acmetest.NewIssuer(t), name))
	cfg := s.config(t, dir)
	want := func(mode, folderMode fs.FileMode) {
		t.Helper()
		cfg.Mode, cfg.Group = mode, fmt.Sprint(group)
		open(t, cfg).pass(t.Context())
		for _, path := range []string{"", current, "privkey.pem", "cert.pem"} {
			info, err := os.Stat(filepath.Join(dir, name, path))
			if err != nil {
				t.Fatal(err)
			}
			mode := mode
			if info.IsDir() {
				mode = folderMode
			}
			if info.Mode().Perm() != mode || groupOf(info) != group {
				t.Errorf("%q has mode %04o and group %d, want %04o and %d", path, info.Mode().Perm(), groupOf(info), mode, group)
			}
		}
	}
	want(0o640, 0o750)
	if info, err := os.Stat(dir); err != nil || info.Mode().Perm() != 0o750 || groupOf(info) != group {
		t.Errorf("the folder of all names: %v, %v, want mode 0750 and group %d", info.Mode(), err, group)
	}
	want(0o400, 0o700)
	want(0o644, 0o755)
}

// What an operator must correct is an error at the start.
func TestNewRefuses(t *testing.T) {
	t.Parallel()
	if dir := os.Getenv("EXPORT_TEST_GROUP"); dir != "" { // in the second process, as another user
		s := newSource(nil)
		cfg := s.config(t, dir)
		cfg.Group = "4242"
		_, err := New(cfg)
		fmt.Println("New =", err)
		cfg.Dir, cfg.Group = filepath.Join(dir, "closed"), ""
		_, err = New(cfg)
		fmt.Println("New =", err)
		return
	}
	s := newSource(nil)
	cfg := s.config(t, filepath.Join(t.TempDir(), "file"))
	if err := os.WriteFile(cfg.Dir, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := New(cfg); err == nil || !strings.Contains(err.Error(), "not a directory") {
		t.Errorf("New with a file in place of the folder = %v", err)
	}
	cfg.Dir, cfg.Group = t.TempDir(), "no-such-group"
	if _, err := New(cfg); err == nil || !strings.Contains(err.Error(), `there is no group "no-such-group" here`) {
		t.Errorf("New with an unknown group = %v", err)
	}
	if os.Geteuid() != 0 {
		t.Log("not root: whether another user may give files to a group is not tried")
		return
	}
	dir, err := os.MkdirTemp("", "export-test-*") // t.TempDir is closed to other users
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	self, err := os.ReadFile(os.Args[0])
	if err != nil {
		t.Fatal(err)
	}
	program := filepath.Join(dir, "test")
	if err := errors.Join(os.WriteFile(program, self, 0o755), os.Mkdir(filepath.Join(dir, "closed"), 0o755), os.Chmod(dir, 0o777)); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(program, "-test.run", "^TestNewRefuses$")
	cmd.Dir, cmd.Env = dir, []string{"EXPORT_TEST_GROUP=" + dir}
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65532, Gid: 65532}}
	out, err := cmd.CombinedOutput()
	t.Logf("%s", out)
	for _, want := range []string{"only root, or a member of the group, can give files to it; this process has uid 65532, gid 65532",
		"the folder must belong to the user that plusminus runs as, uid 65532"} {
		if !strings.Contains(string(out), want) {
			t.Errorf("New as another user says %q, %v, want %q", out, err, want)
		}
	}
}

// The key is exported in the form that certbot writes, whatever form it came in.
func TestKeys(t *testing.T) {
	t.Parallel()
	cert := *issue(t, acmetest.NewIssuer(t), name)
	rsaKey, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []interface{ Equal(crypto.PrivateKey) bool }{cert.PrivateKey.(*ecdsa.PrivateKey), rsaKey} {
		cert.PrivateKey = want
		files, err := encode(&cert)
		if err != nil {
			t.Fatal(err)
		}
		block, _ := pem.Decode(files[3].data)
		if block == nil || block.Type != "PRIVATE KEY" {
			t.Fatalf("privkey.pem = %q, want PKCS#8", files[3].data)
		}
		if key, err := x509.ParsePKCS8PrivateKey(block.Bytes); err != nil || !want.Equal(key) {
			t.Errorf("privkey.pem has %T, %v, want the key that is served", key, err)
		}
	}
}

// A pair that cannot be written leaves nothing behind: the next try is a minute later, perhaps for days.
func TestFailureLeavesNothing(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "certs")
	cfg := newSource(issue(t, acmetest.NewIssuer(t), name)).config(t, dir)
	cfg.step = func() { // a file in the way of fill
		if found, err := filepath.Glob(filepath.Join(dir, name, unfinished+"*")); err == nil && len(found) == 1 {
			os.WriteFile(filepath.Join(found[0], "privkey.pem"), nil, 0o600)
		}
	}
	e := open(t, cfg)
	for range 3 {
		e.pass(t.Context())
	}
	if got := e.Status()[0]; got.Failures != 3 || !got.LastSuccess.IsZero() {
		t.Errorf("%+v, want three failures", got)
	}
	if found := pairs(t, dir); len(found) != 0 {
		t.Errorf("pairs %q after failures alone", found)
	}
}
