package ingress

import (
	"fmt"
	"os"
	"strings"
	"testing"
)

// TestLimitsPage compares the numbers in docs/limits.md with the constants of this package.
func TestLimitsPage(t *testing.T) {
	data, err := os.ReadFile("../../docs/limits.md")
	if err != nil {
		t.Fatal(err)
	}
	page := strings.Join(strings.Fields(string(data)), " ")
	for _, want := range []string{
		fmt.Sprintf("TLS handshake; request header | %.0f seconds", handshakeTimeout.Seconds()),
		fmt.Sprintf("10 seconds and %d KB | closed", MaxHeader>>10),
		fmt.Sprintf("have more than %d KB together", MaxHeader>>10),
		fmt.Sprintf("half of the processors; up to %d more wait", maxWaiting),
		fmt.Sprintf("not finished in %.0f seconds", handshakeTimeout.Seconds()),
	} {
		if !strings.Contains(page, want) {
			t.Errorf("docs/limits.md does not say %q", want)
		}
	}
}
