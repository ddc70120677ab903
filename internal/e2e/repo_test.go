package e2e

import (
	"bytes"
	"encoding/xml"
	"go/parser"
	"go/token"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// TestPages checks all pages: each relative link and picture leads to a file, and each #anchor to a heading. README
// links to each page of docs, and has at most readmeLines lines.
func TestPages(t *testing.T) {
	t.Parallel()
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
				t.Errorf("%s has two headings %q, want one", file, m[1])
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
				t.Errorf("%s links to %s, which has no such heading", file, target)
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

// TestPackageComments checks that each package has exactly one package comment.
func TestPackageComments(t *testing.T) {
	t.Parallel()
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

// levels are the packages of internal, from the top down. A package imports packages of lower levels only.
var levels = [][]string{{"cli"}, {"server"}, {"admin"}, {"ingress", "config", "logging"}, {"store", "machine"}}

// TestImports checks that imports point one way, and that hub, acme and static import nothing of internal and nothing
// of each other.
func TestImports(t *testing.T) {
	t.Parallel()
	level := map[string]int{"main": -1}
	for i, names := range levels {
		for _, name := range names {
			level["internal/"+name] = i
		}
	}
	// Packages that a folder must not import: hub knows no certificates, acme no WebSockets, and none of the three
	// knows flags.
	unknown := map[string][]string{
		"hub":    {"flag", "golang.org/x/crypto"},
		"acme":   {"flag", "github.com/coder/websocket"},
		"static": {"flag"},
	}
	walkGo(t, func(file string) {
		if strings.HasSuffix(file, "_test.go") {
			return
		}
		from := path.Dir(file)
		if from == "." {
			from = "main"
		}
		top, _, _ := strings.Cut(from, "/")
		f, err := parser.ParseFile(token.NewFileSet(), file, nil, parser.ImportsOnly)
		if err != nil {
			t.Error(err)
			return
		}
		for _, spec := range f.Imports {
			imported := strings.Trim(spec.Path.Value, `"`)
			ours, isOurs := strings.CutPrefix(imported, "plusminus/")
			to, inside := level[ours]
			switch {
			case unknown[top] != nil && isOurs:
				if other, _, _ := strings.Cut(ours, "/"); other != top {
					t.Errorf("%s imports %s", file, imported)
				}
			case strings.HasPrefix(ours, "internal/") && isOurs:
				if at, ok := level[from]; !ok || !inside || to <= at {
					t.Errorf("%s imports %s, which is not below it", file, imported)
				}
			case slices.ContainsFunc(unknown[top], func(p string) bool { return imported == p || strings.HasPrefix(imported, p+"/") }):
				t.Errorf("%s imports %s", file, imported)
			}
		}
	})
}

// TestTop checks that main.go is the only Go file at the top of the repository.
func TestTop(t *testing.T) {
	t.Parallel()
	files, err := filepath.Glob("*.go")
	if err != nil || !slices.Equal(files, []string{"main.go"}) {
		t.Errorf("the Go files at the top are %v, %v, want main.go", files, err)
	}
}

// TestGoMod checks that go.mod has no replace or exclude directive: with one, go install of this module fails.
func TestGoMod(t *testing.T) {
	t.Parallel()
	mod, err := os.ReadFile("go.mod")
	if err != nil {
		t.Fatal(err)
	}
	if regexp.MustCompile(`(?m)^\s*(replace|exclude)\b`).Match(mod) {
		t.Error("go.mod has a replace or exclude directive, want none")
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

// TestDiagram compares the goroutines and channels in the picture action.svg with those in hub/doc.go.
func TestDiagram(t *testing.T) {
	t.Parallel()
	svg, err := os.ReadFile(filepath.Join(".ci", "pictures", "action.svg"))
	if err != nil {
		t.Fatal(err)
	}
	doc, err := os.ReadFile(filepath.Join("hub", "doc.go"))
	if err != nil {
		t.Fatal(err)
	}
	find := func(in []byte, expression string) []string {
		var names []string
		for _, m := range regexp.MustCompile(expression).FindAllSubmatch(in, -1) {
			names = append(names, string(m[1]))
		}
		slices.Sort(names)
		return slices.Compact(names)
	}
	for what, expressions := range map[string][2]string{
		"goroutines": {`(?m)^//\t(\S+) +one\b`, `class="box goroutine".*\n<text class="name"[^>]*>([^<]*)<`},
		"channels":   {`--(\w+)-->`, `class="channel"[^>]*>([^<]*)<`},
	} {
		want, got := find(doc, expressions[0]), find(svg, expressions[1])
		if len(want) < 3 || !slices.Equal(got, want) {
			t.Errorf("%s in action.svg = %q, want those of hub/doc.go: %q", what, got, want)
		}
	}
	d := xml.NewDecoder(bytes.NewReader(svg))
	for {
		if _, err := d.Token(); err == io.EOF {
			break
		} else if err != nil {
			t.Fatal(err)
		}
	}
}
