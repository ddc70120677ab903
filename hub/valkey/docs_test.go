package valkey

import (
	"fmt"
	"os"
	"strings"
	"testing"
	"time"
)

// docs/replicas.md states facts that this package decides.
func TestReadme(t *testing.T) {
	data, err := os.ReadFile("../../docs/replicas.md")
	if err != nil {
		t.Fatal(err)
	}
	page := strings.Join(strings.Fields(string(data)), " ")
	for _, want := range []string{
		fmt.Sprintf("sends the actions of %d ms (with more than %d replicas: %d µs for each)", pace.Milliseconds(), pace/pacePerHub, pacePerHub.Microseconds()),
		fmt.Sprintf("out of `users` within %.0f s", (silence + beatEvery).Seconds()),
		fmt.Sprintf("within %.0f s even when nobody acts", (beatEvery + answerTimeout).Round(time.Second).Seconds()),
		fmt.Sprintf("at most %d a second to each replica", time.Second/quiet),
	} {
		if !strings.Contains(page, want) {
			t.Errorf("docs/replicas.md does not say %q", want)
		}
	}
}
