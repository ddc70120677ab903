package certs

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"math/big"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// pair returns a chain of two certificates and the key of the first, in PEM.
func pair(t *testing.T) (chain, key []byte) {
	t.Helper()
	var ders [][]byte
	for n := range 2 {
		k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		template := &x509.Certificate{SerialNumber: big.NewInt(int64(n + 1)), DNSNames: []string{"a.example"}, NotAfter: time.Now().Add(time.Hour)}
		der, err := x509.CreateCertificate(rand.Reader, template, template, k.Public(), k)
		if err != nil {
			t.Fatal(err)
		}
		ders = append(ders, der)
		if n == 0 {
			if key, err = EncodeKey(k); err != nil {
				t.Fatal(err)
			}
		}
	}
	return EncodeChain(ders), key
}

// A byte order mark, which some editors write, is not part of the first block. UTF-16 is named.
func TestByteOrderMark(t *testing.T) {
	t.Parallel()
	chain, key := pair(t)
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
		certPEM, keyPEM, err := ReadFiles(certFile, keyFile)
		if err == nil {
			_, err = ParseFiles(certFile, keyFile, certPEM, keyPEM)
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
		_, _, err := ReadFiles(path, path)
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", path, err, want)
		}
		if strings.Contains(want, "not there") && !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s: %v does not wrap fs.ErrNotExist", path, err)
		}
	}
}
