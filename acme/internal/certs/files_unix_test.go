//go:build unix

package certs_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"plusminus/acme/internal/certs"
)

// The error of a file that may not be read names the user of this process, and the folder or file that is closed.
func TestPermission(t *testing.T) {
	t.Parallel()
	if dir := os.Getenv("CERTS_TEST_DIR"); dir != "" { // in the second process
		_, _, err := certs.ReadFiles(filepath.Join(dir, "live/cert.pem"), filepath.Join(dir, "live/cert.pem"))
		os.Stdout.WriteString(err.Error())
		os.Exit(0)
	}
	dir := t.TempDir()
	for _, d := range []string{"live", "archive"} {
		if err := os.Mkdir(filepath.Join(dir, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	file := filepath.Join(dir, "archive", "cert1.pem")
	if err := os.WriteFile(file, nil, 0); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("../archive/cert1.pem", filepath.Join(dir, "live", "cert.pem")); err != nil {
		t.Fatal(err)
	}
	read := func() string {
		t.Helper()
		if os.Geteuid() != 0 {
			_, _, err := certs.ReadFiles(filepath.Join(dir, "live/cert.pem"), filepath.Join(dir, "live/cert.pem"))
			return err.Error()
		}
		for d := dir; d != "/" && d != os.TempDir(); d = filepath.Dir(d) {
			os.Chmod(d, 0o755)
		}
		// root may read everything, so another user tries.
		self, err := os.ReadFile("/proc/self/exe")
		if err != nil {
			self, err = os.ReadFile(os.Args[0])
		}
		if err != nil {
			t.Fatal(err)
		}
		binary := filepath.Join(dir, "test")
		if err := os.WriteFile(binary, self, 0o755); err != nil {
			t.Fatal(err)
		}
		cmd := exec.Command(binary, "-test.run", "^TestPermission$")
		cmd.Dir, cmd.Env = dir, []string{"CERTS_TEST_DIR=" + dir}
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65532, Gid: 65532}}
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		return string(out)
	}
	if got := read(); !strings.Contains(got, file+" has mode 0000") {
		t.Errorf("closed file: %s", got)
	}
	if err := os.Chmod(filepath.Join(dir, "archive"), 0o600); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.Chmod(filepath.Join(dir, "archive"), 0o700) })
	got := read()
	if !strings.Contains(got, filepath.Join(dir, "archive")+" has mode 0600") || !strings.Contains(got, "permission denied: this process runs as uid ") {
		t.Errorf("closed folder: %s", got)
	}
	t.Log(got)
}
