package main

import (
	"bytes"
	"io"
	"os/exec"
	"strings"
	"testing"
)

func TestParseInfo(t *testing.T) {
	info := parseInfo("# Stats\r\ntotal_net_input_bytes:123\r\ncmdstat_publish:calls=7,usec=9\r\nrole:master\r\n")
	if len(info) != 2 || info["total_net_input_bytes"] != 123 || info["cmdstat_publish"] != 7 {
		t.Errorf("parseInfo = %v", info)
	}
}

// TestStoreCommand measures each load for a short time. The command itself checks the counter.
func TestStoreCommand(t *testing.T) {
	if _, err := exec.LookPath("redis-server"); err != nil {
		t.Skip("redis-server is missing (Debian: apt install redis-server)")
	}
	var out bytes.Buffer
	// With -1 the command does not execute this process again to move it to one core.
	if err := storeCommand(t.Context(), []string{"-replicas", "2", "-for", "300ms", "-server-cpu", "-1", "-load-cpu", "-1"}, &out, io.Discard); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"| 2 | idle | 0 |", "| 2 | paced |", "| 2 | flat out |"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("no %q in\n%s", want, out.String())
		}
	}
}
