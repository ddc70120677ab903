package e2e

import (
	"encoding/json"
	"io"
	"strings"
	"syscall"
	"testing"

	"github.com/coder/websocket"
)

// The first line about an address that is full says that most clients have it: all may be visitors whose own
// addresses a proxy hides.
func TestSharedAddressIsNamed(t *testing.T) {
	t.Parallel()
	cmd := command(t, "-plain", "-http", "127.0.0.1:0", "-admin", "off", "-store", "memory", "-max-clients-per-ip", "2", "-log-format", "json")
	stderr, err := cmd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	log := json.NewDecoder(stderr)
	s := &plusminus{t: t}
	for s.addrs.HTTP == "" {
		var line struct{ HTTP string }
		if err := log.Decode(&line); err != nil {
			t.Fatalf("reading the log: %v", err)
		}
		s.addrs.HTTP = line.HTTP
	}
	rest := make(chan string, 1)
	go func() {
		b, _ := io.ReadAll(io.MultiReader(log.Buffered(), stderr))
		rest <- string(b)
	}()
	for range 2 {
		s.join("ws://localhost/")
	}
	if _, _, err := s.dial("ws://localhost/", websocket.DialOptions{}); err == nil {
		t.Error("a third client joined, want 429")
	}
	if err := cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	output := <-rest
	if err := cmd.Wait(); err != nil {
		t.Errorf("after SIGTERM: %v, want exit status 0", err)
	}
	for _, want := range []string{`"reason":"address_full"`, "2 of 2 clients have this private address", `docs/run.md, \"When all clients have one address\"`} {
		if !strings.Contains(output, want) {
			t.Errorf("the log has no %s:\n%s", want, output)
		}
	}
}
