//go:build unix

package certbot_test

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"plusminus/acme/internal/acmetest"
	"plusminus/acme/internal/certbot"
)

// certbot closes its folders to all users but root. Another user learns which folder that is, and what to do.
func TestClosed(t *testing.T) {
	t.Parallel()
	if dir := os.Getenv("CERTBOT_TEST_DIR"); dir != "" { // in the second process
		_, skipped := certbot.Scan(dir, []string{"a.example"}, false, time.Now())
		fmt.Printf("%+v\n", skipped)
		return
	}
	if os.Geteuid() != 0 {
		t.Skip("needs root, to try as another user")
	}
	dir, err := os.MkdirTemp("", "certbot-test-*") // t.TempDir is closed to other users
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	self, err := os.ReadFile(os.Args[0])
	if err != nil {
		t.Fatal(err)
	}
	program := filepath.Join(dir, "test")
	if err := os.WriteFile(program, self, 0o755); err != nil {
		t.Fatal(err)
	}
	os.Chmod(dir, 0o755)
	acmetest.Lineage(t, dir, "a.example", acmetest.NewIssuer(t).Issue(t, time.Hour, "a.example"))
	scan := func() string {
		cmd := exec.Command(program, "-test.run", "^TestClosed$")
		cmd.Dir, cmd.Env = dir, []string{"CERTBOT_TEST_DIR=" + dir}
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65532, Gid: 65532}}
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		return string(out)
	}
	live, archive := filepath.Join(dir, "live"), filepath.Join(dir, "archive")
	const hint = "give this process's group, 65532, read access to both"
	got := scan()
	t.Log(got)
	if !strings.Contains(got, "this process runs as uid 65532 and gid 65532, and "+live+" has mode 0700") || !strings.Contains(got, hint) {
		t.Errorf("with a closed live: %s", got)
	}
	for _, path := range []string{live, filepath.Join(live, "a.example")} {
		os.Chmod(path, 0o755)
	}
	if got = scan(); !strings.Contains(got, archive+" has mode 0700") || !strings.Contains(got, hint) {
		t.Errorf("with a closed archive: %s", got)
	}
	// The commands of docs/run.md.
	for _, command := range []string{"chgrp -R 65532 " + live + " " + archive, "chmod -R g+rX " + live + " " + archive} {
		if out, err := exec.Command("/bin/sh", "-c", command).CombinedOutput(); err != nil {
			t.Fatalf("%s: %v: %s", command, err, out)
		}
	}
	if got = scan(); !strings.HasPrefix(got, "[]\n") {
		t.Errorf("after the commands of docs/run.md: %s", got)
	}
}
