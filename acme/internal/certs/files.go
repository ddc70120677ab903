package certs

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

// ReadFiles reads a chain and its key.
func ReadFiles(certFile, keyFile string) (certPEM, keyPEM []byte, err error) {
	if certPEM, err = readPEM(certFile); err != nil {
		return nil, nil, fmt.Errorf("reading certificate: %w", err)
	}
	if keyPEM, err = readPEM(keyFile); err != nil {
		return nil, nil, fmt.Errorf("reading key: %w", err)
	}
	return certPEM, keyPEM, nil
}

// The marks with which some editors begin a text file.
const (
	utf8Mark    = "\xef\xbb\xbf"
	utf16Little = "\xff\xfe"
	utf16Big    = "\xfe\xff"
)

// readPEM reads a PEM file. It removes a byte order mark: with one, the first block would not begin a line, and a decoder
// skips it without a word.
func readPEM(path string) ([]byte, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, Explain(path, err)
	}
	if bytes.HasPrefix(data, []byte(utf16Little)) || bytes.HasPrefix(data, []byte(utf16Big)) {
		return nil, fmt.Errorf("%s: it is UTF-16 text; save it as ASCII or UTF-8", path)
	}
	return bytes.TrimPrefix(data, []byte(utf8Mark)), nil
}

// Explain returns err, which reading path gave, with what ls does not show: where a link leads, and who may not read what.
func Explain(path string, err error) error {
	seen, missing, link := follow(path)
	switch {
	case errors.Is(err, fs.ErrPermission):
		if info, err := os.Stat(seen); err == nil {
			seen += fmt.Sprintf(" has mode %04o", info.Mode().Perm())
		}
		return fmt.Errorf("%w: this process runs as uid %d and gid %d, and %s", err, os.Geteuid(), os.Getegid(), seen)
	case errors.Is(err, fs.ErrNotExist) && link != "":
		return fmt.Errorf("%w: %s, and %s is not there; in a container, mount a folder that has both", err, link, missing)
	}
	return err
}

// follow walks along path and its symbolic links. seen is the last file or folder that this process can see, and missing the
// first that it cannot, if any. link says where the last link on the way leads; it is empty if there was none.
func follow(path string) (seen, missing, link string) {
	const separator = string(filepath.Separator)
	path, err := filepath.Abs(path)
	if err != nil {
		return path, "", ""
	}
	root := filepath.VolumeName(path) + separator
	parts := func(path string) []string { return strings.Split(strings.TrimPrefix(path, root), separator) }
	seen = root
	rest := parts(path)
	for links := 0; len(rest) > 0 && links < 40; { // Linux, too, gives up after 40 links
		next := filepath.Join(seen, rest[0])
		info, err := os.Lstat(next)
		if err != nil {
			return seen, next, link
		}
		rest = rest[1:]
		if info.Mode()&fs.ModeSymlink == 0 {
			seen = next
			continue
		}
		target, err := os.Readlink(next)
		if err != nil {
			return seen, next, link
		}
		links++
		link = next + " is a link to " + target
		if !filepath.IsAbs(target) {
			target = filepath.Join(seen, target)
		}
		seen, rest = root, append(parts(target), rest...)
	}
	return seen, "", link
}

// ParseFiles returns the certificate in the contents of two files, and refuses a file that is half written.
// Its errors name the file that is at fault, or both files if they do not fit together.
func ParseFiles(certFile, keyFile string, certPEM, keyPEM []byte) (*tls.Certificate, error) {
	rest := certPEM
	for n := 0; ; n++ {
		var block *pem.Block
		if block, rest = pem.Decode(rest); block == nil {
			if n == 0 {
				return nil, fmt.Errorf("%s: no PEM block", certFile)
			}
			break
		}
		if block.Type != "CERTIFICATE" {
			continue
		}
		if _, err := x509.ParseCertificate(block.Bytes); err != nil {
			return nil, fmt.Errorf("%s: certificate %d: %w", certFile, n+1, err)
		}
	}
	// tls.X509KeyPair ignores a last block that is not complete.
	if bytes.Contains(rest, []byte("-----BEGIN")) {
		return nil, fmt.Errorf("%s: ends inside a PEM block", certFile)
	}
	if block, _ := pem.Decode(keyPEM); block == nil {
		return nil, fmt.Errorf("%s: no PEM block", keyFile)
	}
	c, err := tls.X509KeyPair(certPEM, keyPEM)
	if err != nil {
		return nil, fmt.Errorf("certificate %s and key %s: %w", certFile, keyFile, err)
	}
	return &c, nil
}
