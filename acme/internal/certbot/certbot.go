// Package certbot finds certificates in the folder of certbot, /etc/letsencrypt.
//
// certbot keeps a lineage, which is one certificate and its successors, under a name of its own: live/<name> has links to
// the newest files in archive. The name is often that of a domain, and may have a number behind it, as in
// example.com-0001. What a lineage is good for stands only in its certificate.
// https://eff-certbot.readthedocs.io/en/stable/using.html#where-are-my-certificates
package certbot

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"plusminus/acme/internal/certs"
)

// A Lineage is a certificate that certbot keeps, with its chain and key.
type Lineage struct {
	Path        string // its folder, below live
	Certificate *tls.Certificate
}

// A Skipped is a lineage that is not taken, or the folder of all lineages.
type Skipped struct {
	Path   string
	Reason string // one line
	Hint   string // what to do; may be empty
	Good   bool   // there is nothing wrong with it: it is for other names, or another one is valid for longer
}

// Scan returns the best lineage for each of the names that has one: valid at the time now, with a key that fits, and valid
// for longer than the others. staging permits certificates of Let's Encrypt's staging CA, which no browser trusts. dir is
// certbot's folder. Scan reads only.
func Scan(dir string, names []string, staging bool, now time.Time) (found map[string]*Lineage, skipped []Skipped) {
	found = make(map[string]*Lineage)
	live := filepath.Join(dir, "live")
	entries, err := os.ReadDir(live)
	if err != nil {
		return found, []Skipped{unreadable(live, certs.Explain(live, err))}
	}
	var lineages []*Lineage
	for _, entry := range entries {
		path := filepath.Join(live, entry.Name())
		if info, err := os.Stat(path); err == nil && !info.IsDir() { // README
			continue
		}
		certFile, keyFile := filepath.Join(path, "fullchain.pem"), filepath.Join(path, "privkey.pem")
		certPEM, keyPEM, err := certs.ReadFiles(certFile, keyFile)
		if err != nil {
			skipped = append(skipped, unreadable(path, err))
			continue
		}
		cert, err := certs.ParseFiles(certFile, keyFile, certPEM, keyPEM)
		if err != nil {
			skipped = append(skipped, Skipped{Path: path, Reason: err.Error()})
			continue
		}
		if ours := slices.ContainsFunc(names, func(name string) bool { return cert.Leaf.VerifyHostname(name) == nil }); !ours {
			skipped = append(skipped, Skipped{Path: path, Reason: "the certificate is for other names: " + strings.Join(certs.Names(cert.Leaf), ", "), Good: true})
			continue
		}
		if why := certs.Outdated(cert.Leaf, now); why != "" {
			skipped = append(skipped, Skipped{Path: path, Reason: why})
			continue
		}
		if !staging && isStaging(cert) {
			skipped = append(skipped, Skipped{Path: path, Reason: "the certificate is of Let's Encrypt's staging CA, which no browser trusts"})
			continue
		}
		lineages = append(lineages, &Lineage{path, cert})
	}
	for _, l := range lineages {
		for _, name := range names {
			if l.Certificate.Leaf.VerifyHostname(name) == nil && (found[name] == nil || l.ends().After(found[name].ends())) {
				found[name] = l
			}
		}
	}
	for _, l := range lineages {
		taken := false
		for _, best := range found {
			taken = taken || best == l
		}
		if !taken {
			skipped = append(skipped, Skipped{Path: l.Path, Reason: "another certificate for the same names is valid for longer", Good: true})
		}
	}
	return found, skipped
}

func (l *Lineage) ends() time.Time { return l.Certificate.Leaf.NotAfter }

// unreadable returns the result for a folder that cannot be read.
func unreadable(path string, err error) Skipped {
	s := Skipped{Path: path, Reason: err.Error()}
	switch {
	case errors.Is(err, fs.ErrPermission):
		s.Hint = fmt.Sprintf("certbot's folders live and archive are open to root alone: give this process's group, %d, read access to both", os.Getegid())
	case errors.Is(err, fs.ErrNotExist):
		s.Hint = "name the folder that has certbot's folders live and archive in it; in a container, mount all of it"
	}
	return s
}

// isStaging reports whether cert is of Let's Encrypt's staging CA. The names of its CAs contain a mark; those of before
// 2020 begin with "Fake LE". https://letsencrypt.org/docs/staging-environment/
func isStaging(cert *tls.Certificate) bool {
	for _, der := range cert.Certificate {
		if c, err := x509.ParseCertificate(der); err == nil {
			if issuer := c.Issuer.String(); strings.Contains(issuer, "(STAGING)") || strings.Contains(issuer, "CN=Fake LE ") {
				return true
			}
		}
	}
	return false
}
