package main

import (
	"flag"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// TestFlagTable compares the flags of README with those of the program.
func TestFlagTable(t *testing.T) {
	readme, err := os.ReadFile("README.md")
	if err != nil {
		t.Fatal(err)
	}
	documented := map[string]string{} // flag -> default
	for _, row := range regexp.MustCompile("(?m)^\\| (`-[^|]*) \\| *([^|]*?) *\\|").FindAllStringSubmatch(string(readme), -1) {
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
	new(options).flags().VisitAll(func(f *flag.Flag) {
		value, ok := documented[f.Name]
		delete(documented, f.Name)
		if !ok {
			t.Errorf("README has no row for -%s", f.Name)
			return
		}
		// Defaults of false and 0 are said in words, and some depend on other flags.
		if d := f.DefValue; d != "" && d != "false" && d != "0" && !strings.Contains(value, d) {
			t.Errorf("README says that the default of -%s is %q, and it is %q", f.Name, value, d)
		}
	})
	for name := range documented {
		t.Errorf("README has a row for -%s, and there is no such flag", name)
	}
}

// TestPackageComments wants each package to have exactly one.
func TestPackageComments(t *testing.T) {
	count := map[string]int{}
	walkGo(t, func(file string) {
		dir := path.Dir(file)
		if strings.HasSuffix(file, "_test.go") {
			return
		}
		f, err := parser.ParseFile(token.NewFileSet(), file, nil, parser.ParseComments|parser.PackageClauseOnly)
		if err != nil {
			t.Error(err)
			return
		}
		if f.Doc != nil {
			count[dir]++
		} else {
			count[dir] += 0
		}
	})
	for dir, n := range count {
		if n != 1 {
			t.Errorf("package in %s has %d package comments, want 1", dir, n)
		}
	}
}

// TestImports keeps the walls of the house: the hub knows no certificates, acme knows no
// WebSockets, and neither knows flags.
func TestImports(t *testing.T) {
	forbidden := map[string][]string{
		"hub":    {"plusminus/acme", "plusminus/static", "flag", "golang.org/x/crypto"},
		"acme":   {"plusminus/hub", "plusminus/static", "flag", "github.com/coder/websocket"},
		"static": {"plusminus/hub", "plusminus/acme", "flag"},
	}
	walkGo(t, func(file string) {
		if strings.HasSuffix(file, "_test.go") {
			return
		}
		top, _, _ := strings.Cut(file, "/")
		f, err := parser.ParseFile(token.NewFileSet(), file, nil, parser.ImportsOnly)
		if err != nil {
			t.Error(err)
			return
		}
		for _, spec := range f.Imports {
			imported := strings.Trim(spec.Path.Value, `"`)
			if slices.ContainsFunc(forbidden[top], func(p string) bool { return imported == p || strings.HasPrefix(imported, p+"/") }) {
				t.Errorf("%s imports %s", file, imported)
			}
		}
	})
}

// TestGoMod wants no replace, which would make go install of this module fail.
func TestGoMod(t *testing.T) {
	mod, err := os.ReadFile("go.mod")
	if err != nil {
		t.Fatal(err)
	}
	if regexp.MustCompile(`(?m)^\s*(replace|exclude)\b`).Match(mod) {
		t.Error("go.mod has a replace or exclude directive")
	}
}

// walkGo calls f for each Go file of this module.
func walkGo(t *testing.T, f func(file string)) {
	t.Helper()
	err := filepath.WalkDir(".", func(file string, d fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case d.IsDir() && (d.Name() == "testdata" || file != "." && strings.HasPrefix(d.Name(), ".")):
			return fs.SkipDir
		case d.IsDir() && file != ".":
			if _, err := os.Stat(filepath.Join(file, "go.mod")); err == nil {
				return fs.SkipDir // a module of its own
			}
		case strings.HasSuffix(file, ".go"):
			f(filepath.ToSlash(file))
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}
