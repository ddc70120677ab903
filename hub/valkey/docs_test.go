package valkey

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// docs returns the text of README.md and of all pages under docs.
func docs(t *testing.T) string {
	t.Helper()
	pages, err := filepath.Glob("../../docs/*.md")
	if err != nil {
		t.Fatal(err)
	}
	var all strings.Builder
	for _, page := range append(pages, "../../README.md") {
		text, err := os.ReadFile(page)
		if err != nil {
			t.Fatal(err)
		}
		all.Write(text)
	}
	return all.String()
}

// The docs state facts that this package decides.
func TestDocs(t *testing.T) {
	t.Parallel()
	text := strings.Join(strings.Fields(docs(t)), " ")
	for _, want := range []string{
		fmt.Sprintf("sends the actions of %d ms (with more than %d replicas: %d µs for each)", pace.Milliseconds(), pace/pacePerHub, pacePerHub.Microseconds()),
		fmt.Sprintf("out of `users` within %.0f s", (silence + beatEvery).Seconds()),
		fmt.Sprintf("within %.0f s even when nobody acts", (beatEvery + answerTimeout).Round(time.Second).Seconds()),
		fmt.Sprintf("at most %d a second to each replica", time.Second/quiet),
	} {
		if !strings.Contains(text, want) {
			t.Errorf("README.md and docs do not say %q", want)
		}
	}
}
