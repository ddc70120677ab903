package hub

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// TestReplacingTheCounter does what docs/extend.md describes: it replaces one file of the hub to turn the counter
// into a poll. It tests the hub with testdata/poll/message.go instead of message.go, and builds the stores and
// the program with it, after changing one line of the program.
func TestReplacingTheCounter(t *testing.T) {
	if testing.Short() {
		t.Skip("builds the program")
	}
	if _, err := exec.LookPath("go"); err != nil {
		t.Skip("the go command is not in PATH")
	}
	dir, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	poll := filepath.Join(dir, "testdata", "poll")
	replace := map[string]string{
		filepath.Join(dir, "message.go"):   filepath.Join(poll, "message.go"),
		filepath.Join(dir, "poll_test.go"): filepath.Join(poll, "poll_test.go"), // replaces this file
	}
	// The other tests of the hub expect the counter.
	tests, err := filepath.Glob(filepath.Join(dir, "*_test.go"))
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range tests {
		if name := filepath.Base(file); name != "fake_test.go" && name != "poll_test.go" {
			replace[file] = "" // an overlay without this file
		}
	}
	metrics := filepath.Join(filepath.Dir(dir), "internal", "admin", "metrics.go")
	text, err := os.ReadFile(metrics)
	if err != nil {
		t.Fatal(err)
	}
	const line = "\ttell(m, float64(value), labels...)\n"
	if strings.Count(string(text), strings.TrimSpace(line)) != 1 {
		t.Fatalf("metrics.go does not have the line %q, which docs/extend.md names", line)
	}
	replace[metrics] = filepath.Join(t.TempDir(), "metrics.go")
	changed := strings.Replace(string(text), line, "\tfor _, n := range value {\n\t\ttell(m, float64(n), labels...)\n\t}\n", 1)
	if err := os.WriteFile(replace[metrics], []byte(changed), 0o600); err != nil {
		t.Fatal(err)
	}

	overlay, err := json.Marshal(map[string]any{"Replace": replace})
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "overlay.json")
	if err := os.WriteFile(file, overlay, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, args := range [][]string{
		{"test", "-overlay", file, "-count=1", "-v", "-run", "^(TestPoll|TestVotesAsText)$", "."},
		{"build", "-overlay", file, "-o", os.DevNull, ".."}, // includes the stores
	} {
		out, err := exec.CommandContext(t.Context(), "go", args...).CombinedOutput()
		if err != nil || args[0] == "test" && strings.Count(string(out), "--- PASS") != 2 {
			t.Errorf("go %s: %v\n%s", strings.Join(args, " "), err, out)
		}
	}
}
