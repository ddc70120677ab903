package main

import (
	"flag"
	"io"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// deployFiles returns the files of deploy that have one of these extensions, and their text.
func deployFiles(t *testing.T, extensions ...string) map[string]string {
	t.Helper()
	files := make(map[string]string)
	err := filepath.WalkDir("deploy", func(file string, d fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case d.IsDir() && d.Name() == "check":
			return fs.SkipDir // a module of its own
		case slices.Contains(extensions, filepath.Ext(file)):
			text, err := os.ReadFile(file)
			files[file] = string(text)
			return err
		}
		return nil
	})
	if err != nil || len(files) == 0 {
		t.Fatalf("%d files, %v", len(files), err)
	}
	return files
}

// Each file that runs plusminus does so with settings that it understands.
func TestDeployFlags(t *testing.T) {
	known := make(map[string]bool)
	new(options).flags().VisitAll(func(f *flag.Flag) { known[envName(f.Name)] = true })
	var (
		variable = regexp.MustCompile(`\bPLUSMINUS_[A-Z_]+`)
		plain    = regexp.MustCompile(`(?m)^(?: +|Environment=)?(PLUSMINUS_[A-Z_]+)(?:=|: +)(.*)$`) // .env, units, Compose
		pair     = regexp.MustCompile(`- name: (PLUSMINUS_[A-Z_]+)\n +value: (.*)\n`)               // Kubernetes
		comment  = regexp.MustCompile(`(?m)^ *#.*$`)
	)
	tried := 0
	for file, text := range deployFiles(t, ".yml", ".yaml", ".env", ".service") {
		for _, m := range variable.FindAllString(text, -1) {
			if !known[m] {
				t.Errorf("%s sets %s, and there is no such flag", file, m)
			}
		}
		text = comment.ReplaceAllString(text, "")
		env := make(map[string]string)
		for _, m := range append(plain.FindAllStringSubmatch(text, -1), pair.FindAllStringSubmatch(text, -1)...) {
			value := strings.Trim(m[2], `"`)
			value = regexp.MustCompile(`\$\{DOMAIN:[^}]*\}`).ReplaceAllString(value, "counter.example.com")
			if strings.HasSuffix(m[1], "_KEY_FILE") {
				key := filepath.Join(t.TempDir(), "key")
				if err := os.WriteFile(key, []byte("MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY=\n"), 0o600); err != nil {
					t.Fatal(err)
				}
				value = key
			}
			env[m[1]] = value
		}
		names := slices.Collect(maps.Keys(env))
		for _, m := range variable.FindAllString(text, -1) {
			if !slices.Contains(names, m) {
				t.Errorf("%s has %s in a place where this test does not see its value", file, m)
			}
		}
		if len(env) == 0 {
			continue
		}
		tried++
		lookup := func(name string) (string, bool) { value, ok := env[name]; return value, ok }
		if _, err := parseConfig(nil, lookup, io.Discard); err != nil {
			t.Errorf("%s has %v: %v", file, env, err)
		}
	}
	if tried != 6 {
		t.Errorf("tried the settings of %d files, want those of 2 for Compose, 2 for Kubernetes, and of systemd's unit and its settings", tried)
	}
}

// The units are right in systemd's own eyes, and leave little to somebody who has got in.
func TestDeploySystemd(t *testing.T) {
	if _, err := exec.LookPath("systemd-analyze"); err != nil {
		t.Skip("systemd-analyze is missing (Debian: apt install systemd)")
	}
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	var units []string
	for file, text := range deployFiles(t, ".service", ".socket") {
		unit := filepath.Join(dir, filepath.Base(file))
		text = strings.ReplaceAll(text, "/usr/local/bin/plusminus", exe) // verify looks whether it is there
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
	// It says what it does not understand, and exits with 0 all the same.
	if out := analyze(append([]string{"verify"}, units...)...); out != "" {
		t.Errorf("systemd-analyze verify:\n%s", out)
	}
	// An exposure of 1.5 of 10; a unit without any of it has 9.6.
	analyze("security", "--offline=true", "--no-pager", "--threshold=15", filepath.Join(dir, "plusminus.service"))

	for file, text := range deployFiles(t, ".socket") {
		m := regexp.MustCompile(`(?m)^FileDescriptorName=(.*)$`).FindStringSubmatch(text)
		if m == nil || new(options).flags().Lookup(m[1]) == nil {
			t.Errorf("%s names its socket %q, and flags of that name say where to listen", file, m)
		}
	}
}
