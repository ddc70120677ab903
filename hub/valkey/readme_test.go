package valkey

import (
	"fmt"
	"os"
	"strings"
	"testing"
	"time"
)

// README states facts that this package decides.
func TestReadme(t *testing.T) {
	data, err := os.ReadFile("../../README.md")
	if err != nil {
		t.Fatal(err)
	}
	readme := strings.Join(strings.Fields(string(data)), " ")
	for _, want := range []string{
		fmt.Sprintf("sends the actions of %d ms (with more than %d replicas: %d µs for each)", pace.Milliseconds(), pace/pacePerHub, pacePerHub.Microseconds()),
		fmt.Sprintf("out of `users` within %.0f s", (silence + beatEvery).Seconds()),
		fmt.Sprintf("within %.0f s even when nobody acts", (beatEvery + answerTimeout).Round(time.Second).Seconds()),
		fmt.Sprintf("at most %d a second to each replica", time.Second/quiet),
	} {
		if !strings.Contains(readme, want) {
			t.Errorf("README does not say %q", want)
		}
	}
}
