package certs_test

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"plusminus/acme/internal/acmetest"
	"plusminus/acme/internal/certs"
)

// A byte order mark, which some editors write, is not part of the first block. UTF-16 is named.
func TestByteOrderMark(t *testing.T) {
	t.Parallel()
	chain, key := acmetest.PEM(t, acmetest.NewIssuer(t).Issue(t, time.Hour, "a.example"))
	dir := t.TempDir()
	certFile, keyFile := filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem")
	for _, test := range []struct{ certMark, keyMark, want string }{
		{"", "", ""},
		{"\xef\xbb\xbf", "\xef\xbb\xbf", ""},
		{"\xff\xfe", "", "cert.pem: it is UTF-16 text"},
		{"", "\xfe\xff", "key.pem: it is UTF-16 text"},
	} {
		if err := errors.Join(os.WriteFile(certFile, append([]byte(test.certMark), chain...), 0o600), os.WriteFile(keyFile, append([]byte(test.keyMark), key...), 0o600)); err != nil {
			t.Fatal(err)
		}
		certPEM, keyPEM, err := certs.ReadFiles(certFile, keyFile)
		if err == nil {
			_, err = certs.ParseFiles(certFile, keyFile, certPEM, keyPEM)
		}
		if (err == nil) != (test.want == "") || err != nil && !strings.Contains(err.Error(), test.want) {
			t.Errorf("marks %q and %q: %v, want %q", test.certMark, test.keyMark, err, test.want)
		}
	}
}

// A link that leads nowhere is named together with what it leads to. ls shows the link.
func TestLinkLeadsNowhere(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	live := filepath.Join(dir, "live", "a.example")
	if err := errors.Join(os.MkdirAll(live, 0o700), os.Symlink("../../archive/a.example/cert1.pem", filepath.Join(live, "cert.pem")),
		os.Symlink(live, filepath.Join(dir, "current")), os.Symlink("loop", filepath.Join(dir, "loop"))); err != nil {
		t.Skipf("needs symbolic links: %v", err)
	}
	for path, want := range map[string]string{
		filepath.Join(live, "cert.pem"): fmt.Sprintf("%s is a link to ../../archive/a.example/cert1.pem, and %s is not there",
			filepath.Join(live, "cert.pem"), filepath.Join(dir, "archive")),
		filepath.Join(dir, "current", "key.pem"): fmt.Sprintf("%s is a link to %s, and %s is not there",
			filepath.Join(dir, "current"), live, filepath.Join(live, "key.pem")),
		filepath.Join(live, "other.pem"): "no such file",
		filepath.Join(dir, "loop"):       "loop",
	} {
		_, _, err := certs.ReadFiles(path, path)
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", path, err, want)
		}
		if strings.Contains(want, "not there") && !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s: %v does not wrap fs.ErrNotExist", path, err)
		}
	}
}
