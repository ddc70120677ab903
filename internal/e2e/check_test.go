package e2e

import (
	"bytes"
	"strings"
	"testing"
)

// TestCheckExitStatus runs plusminus check and compares its exit status and output.
func TestCheckExitStatus(t *testing.T) {
	t.Parallel()
	local := []string{"-data", "d", "-http", "127.0.0.1:0", "-https", "127.0.0.1:0", "-admin", "off"}
	for _, test := range []struct {
		args   []string
		status int
		stdout string
		stderr string
	}{
		{local, 0, "no problems, ", ""},
		{append(local, "-cert", "a.pem", "-key", "b.pem"), 1, "\n1 problem, ", ""},
		{[]string{"-domian", "x"}, 2, "", "unknown flag -domian: did you mean -domain?"},
		{[]string{"extra"}, 2, "", "unexpected argument"},
		{[]string{"-h"}, 0, "plusminus check [flags]", ""},
	} {
		cmd := command(t, append([]string{"check"}, test.args...)...)
		var stdout, stderr bytes.Buffer
		cmd.Stdout, cmd.Stderr = &stdout, &stderr
		err := cmd.Run()
		if got := exitStatus(err); got != test.status {
			t.Errorf("plusminus check %q: exit status %d, want %d", test.args, got, test.status)
		}
		if !strings.Contains(stdout.String(), test.stdout) || !strings.Contains(stderr.String(), test.stderr) || test.stderr == "" && stderr.Len() > 0 {
			t.Errorf("plusminus check %q: stdout %q, stderr %q, want %q and %q", test.args, stdout.String(), stderr.String(), test.stdout, test.stderr)
		}
	}
}
