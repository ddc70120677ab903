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

// TestFlagTable compares the flags of docs/flags.md with those of the program.
func TestFlagTable(t *testing.T) {
	page, err := os.ReadFile("docs/flags.md")
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
	new(options).flags().VisitAll(func(f *flag.Flag) {
		value, ok := documented[f.Name]
		delete(documented, f.Name)
		if !ok {
			t.Errorf("docs/flags.md has no row for -%s", f.Name)
			return
		}
		// Defaults of false and 0 are said in words, and some depend on other flags.
		if d := f.DefValue; d != "" && d != "false" && d != "0" && !strings.Contains(value, d) {
			t.Errorf("docs/flags.md says that the default of -%s is %q, and it is %q", f.Name, value, d)
		}
	})
	for name := range documented {
		t.Errorf("docs/flags.md has a row for -%s, and there is no such flag", name)
	}
}

// TestPages checks that each relative link and picture of README, docs and the other pages leads to
// a file that exists, and each #anchor to a heading, that README links to each page of docs, and that
// README stays short.
func TestPages(t *testing.T) {
	const readmeLines = 230 // five screens
	var pages []string
	for _, pattern := range []string{"*.md", "docs/*.md", "bench/*.md", "deploy/*.md"} {
		files, err := filepath.Glob(pattern)
		if err != nil {
			t.Fatal(err)
		}
		pages = append(pages, files...)
	}
	var (
		text     = make(map[string]string)          // without code blocks
		anchors  = make(map[string]map[string]bool) // of the headings, as GitHub makes them
		linked   = make(map[string]bool)            // from README
		pictures int
		code     = regexp.MustCompile("(?ms)^```.*?^```$|^ {4}.*?$")
		heading  = regexp.MustCompile(`(?m)^#+ (.*)$`)
		link     = regexp.MustCompile(`(!?)\[[^\]]*\]\(([^)\s]*)\)|(?:src|srcset)="([^"]*)"`)
		dropped  = regexp.MustCompile(`[^\pL\pN _-]`)
	)
	for _, file := range pages {
		data, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		if lines := strings.Count(string(data), "\n"); file == "README.md" && lines > readmeLines {
			t.Errorf("README has %d lines, want at most %d", lines, readmeLines)
		}
		text[file] = code.ReplaceAllString(string(data), "")
		anchors[file] = make(map[string]bool)
		for _, m := range heading.FindAllStringSubmatch(text[file], -1) {
			anchor := strings.ReplaceAll(dropped.ReplaceAllString(strings.ToLower(m[1]), ""), " ", "-")
			if anchors[file][anchor] {
				t.Errorf("%s has two headings %q", file, m[1])
			}
			anchors[file][anchor] = true
		}
	}
	for _, file := range pages {
		for _, m := range link.FindAllStringSubmatch(text[file], -1) {
			target := m[2] + m[3]
			if m[1] != "" || m[3] != "" {
				pictures++
			}
			if strings.Contains(target, "://") {
				continue
			}
			name, anchor, hasAnchor := strings.Cut(target, "#")
			if name = path.Join(path.Dir(file), name); strings.HasPrefix(target, "#") {
				name = file
			}
			if _, err := os.Stat(filepath.FromSlash(name)); err != nil {
				t.Errorf("%s links to %s: %v", file, target, err)
			}
			if hasAnchor && !anchors[name][anchor] {
				t.Errorf("%s links to %s, and there is no such heading", file, target)
			}
			linked[name] = linked[name] || file == "README.md"
		}
		if strings.HasPrefix(file, "docs/") && !linked[file] {
			t.Errorf("README does not link to %s", file)
		}
	}
	if pictures < 4 {
		t.Errorf("the pages have %d pictures, want at least 4", pictures)
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
