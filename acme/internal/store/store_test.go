package store

import (
	"path/filepath"
	"strings"
	"testing"
)

func TestDirectoryName(t *testing.T) {
	t.Parallel()
	const letsEncrypt = "https://acme-v02.api.letsencrypt.org/directory"
	seen := make(map[string]string)
	for _, u := range []string{letsEncrypt, "https://acme-staging-v02.api.letsencrypt.org/directory", "https://localhost:14000/dir", "https://localhost:14000/dir2", "https://[::1]:1/../x"} {
		name := DirectoryName(u)
		if other, ok := seen[name]; ok {
			t.Errorf("%s and %s share the folder %s", u, other, name)
		}
		seen[name] = u
		if name != filepath.Base(name) || strings.ContainsAny(name, `:\[]`) {
			t.Errorf("DirectoryName(%s) = %q is no plain file name", u, name)
		}
	}
	if got := DirectoryName(letsEncrypt); !strings.HasPrefix(got, "acme-v02.api.letsencrypt.org-") {
		t.Errorf("DirectoryName(%s) = %q, want it to begin with the host", letsEncrypt, got)
	}
}
