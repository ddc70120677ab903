package server

import (
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"plusminus/internal/config"
)

// ReadFiles names the flag of every file that cannot be used.
func TestReadFiles(t *testing.T) {
	junk := filepath.Join(t.TempDir(), "junk")
	if err := os.WriteFile(junk, []byte("not base64!\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	const shared = "-domain a.example.com -store rediss://localhost "
	for _, tt := range []struct {
		args string
		want []string
	}{
		{"", nil},
		{"-acme-ca-root /nowhere/root.pem", []string{"-acme-ca-root: open /nowhere/root.pem"}},
		{"-acme-ca-root JUNK", []string{"-acme-ca-root: JUNK holds no PEM certificate"}},
		{"-acme-eab-kid a -acme-eab-key-file JUNK", []string{"-acme-eab-key-file: JUNK holds no base64url text"}},
		{shared + "-store-password-file /nowhere/password", []string{"-store-password-file: open /nowhere/password"}},
		{shared + "-store-password-file JUNK", nil},
		{shared + "-store-ca-root JUNK", []string{"-store-ca-root: JUNK holds no PEM certificate"}},
		{shared + "-store-key-file JUNK", []string{"-store-key-file: line 1 is "}},
		{shared + "-store-key-file /nowhere/key -store-ca-root JUNK", []string{"-store-key-file: open /nowhere/key", "-store-ca-root: JUNK"}},
	} {
		args := strings.Fields(strings.ReplaceAll(tt.args, "JUNK", junk))
		cfg, err := config.Parse(args, func(string) (string, bool) { return "", false }, io.Discard)
		if err != nil {
			t.Fatal(err)
		}
		_, err = ReadFiles(cfg)
		if len(tt.want) == 0 {
			if err != nil {
				t.Errorf("ReadFiles(%s) = %v", tt.args, err)
			}
			continue
		}
		for _, want := range tt.want {
			want = strings.ReplaceAll(want, "JUNK", junk)
			if !errors.As(err, new(config.UsageError)) || !strings.Contains(err.Error(), want) {
				t.Errorf("ReadFiles(%s) = %v, want a usage error with %q", tt.args, err, want)
			}
		}
	}
}
