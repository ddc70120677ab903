package e2e

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// deployFiles returns the text of each file in deploy whose path there matches one of the patterns.
func deployFiles(t *testing.T, patterns ...string) map[string]string {
	t.Helper()
	texts := make(map[string]string)
	for _, pattern := range patterns {
		files, err := filepath.Glob("deploy/" + pattern)
		if err != nil || len(files) == 0 {
			t.Fatalf("deploy has %d files %s, %v", len(files), pattern, err)
		}
		for _, file := range files {
			text, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			texts[file] = string(text)
		}
	}
	return texts
}

// TestDeploySystemd checks the units with systemd-analyze: they are valid, and confine a process that an attacker
// controls.
func TestDeploySystemd(t *testing.T) {
	t.Parallel()
	if _, err := exec.LookPath("systemd-analyze"); err != nil {
		t.Skip("systemd-analyze is not installed (Debian: systemd)")
	}
	exe := command(t).Path
	dir := t.TempDir()
	var units []string
	for file, text := range deployFiles(t, "systemd/*.service", "systemd/*.socket") {
		unit := filepath.Join(dir, filepath.Base(file))
		text = strings.ReplaceAll(text, "/usr/local/bin/plusminus", exe) // verify wants the program to exist
		if err := os.WriteFile(unit, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		units = append(units, unit)
	}
	analyze := func(args ...string) string {
		t.Helper()
		cmd := exec.CommandContext(t.Context(), "systemd-analyze", args...)
		cmd.Env = append(os.Environ(), "SYSTEMD_UNIT_PATH="+dir+":")
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Errorf("systemd-analyze %s: %v\n%s", args[0], err, out)
		}
		return string(out)
	}
	// systemd-analyze verify prints its warnings and exits with 0 all the same.
	if out := analyze(append([]string{"verify"}, units...)...); out != "" {
		t.Errorf("systemd-analyze verify:\n%s", out)
	}
	// An exposure of at most 1.5 of 10. A unit without hardening has 9.6.
	analyze("security", "--offline=true", "--no-pager", "--threshold=15", filepath.Join(dir, "plusminus.service"))

	for file, text := range deployFiles(t, "systemd/*.socket") {
		m := regexp.MustCompile(`(?m)^FileDescriptorName=(.*)$`).FindStringSubmatch(text)
		if m == nil || !slices.Contains([]string{"https", "http", "admin"}, m[1]) {
			t.Errorf("%s has FileDescriptorName= %q, want https, http or admin", file, m)
		}
	}
}
