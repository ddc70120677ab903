package config

import (
	"flag"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// TestFlagTable compares the flags of docs/flags.md with those of the program.
func TestFlagTable(t *testing.T) {
	page, err := os.ReadFile("../../docs/flags.md")
	if err != nil {
		t.Fatal(err)
	}
	documented := map[string]string{} // flag -> default
	for _, row := range regexp.MustCompile("(?m)^\\| (`-[^|]*) \\| *([^|]*?) *\\|").FindAllStringSubmatch(string(page), -1) {
		names := regexp.MustCompile("`-([a-z-]+)`").FindAllStringSubmatch(row[1], -1)
		values := strings.Split(row[2], ", ")
		for i, name := range names {
			value := row[2]
			if len(values) == len(names) {
				value = values[i]
			}
			documented[name[1]] = value
		}
	}
	groups := newFlagGroups()
	new(Config).declare(groups)
	groups.set.VisitAll(func(f *flag.Flag) {
		value, ok := documented[f.Name]
		delete(documented, f.Name)
		if !ok {
			t.Errorf("docs/flags.md has no row for -%s", f.Name)
			return
		}
		// The page gives defaults of false and 0 in words. Some defaults depend on other flags.
		if d := f.DefValue; d != "" && d != "false" && d != "0" && !strings.Contains(value, d) {
			t.Errorf("default of -%s in docs/flags.md = %q, want %q", f.Name, value, d)
		}
	})
	for name := range documented {
		t.Errorf("docs/flags.md has a row for -%s, which is no flag", name)
	}
}

// deployFiles returns the text of each file in deploy that has one of these extensions.
func deployFiles(t *testing.T, extensions ...string) map[string]string {
	t.Helper()
	files := make(map[string]string)
	err := filepath.WalkDir("../../deploy", func(file string, d fs.DirEntry, err error) error {
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

// TestDeployFlags parses the settings in each file of deploy.
func TestDeployFlags(t *testing.T) {
	known := make(map[string]bool)
	groups := newFlagGroups()
	new(Config).declare(groups)
	groups.set.VisitAll(func(f *flag.Flag) { known[EnvName(f.Name)] = true })
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
				t.Errorf("%s sets %s, which is no flag", file, m)
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
				t.Errorf("%s has %s in a form that this test cannot read", file, m)
			}
		}
		if len(env) == 0 {
			continue
		}
		tried++
		lookup := func(name string) (string, bool) { value, ok := env[name]; return value, ok }
		if _, err := Parse(nil, lookup, io.Discard); err != nil {
			t.Errorf("%s: Parse with %v: %v", file, env, err)
		}
	}
	if tried != 6 {
		t.Errorf("files with settings = %d, want 6: 2 for Compose, 2 for Kubernetes, systemd's unit and its settings", tried)
	}
}
