package acme

import (
	"cmp"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net/netip"
	"net/url"
	"strings"
	"time"

	xacme "golang.org/x/crypto/acme"

	"plusminus/acme/internal/cahttp"
)

// Directory URLs of Let's Encrypt. No browser trusts the certificates of the staging directory. Its limits
// are high enough for experiments.
const (
	LetsEncrypt        = xacme.LetsEncryptURL
	LetsEncryptStaging = "https://acme-staging-v02.api.letsencrypt.org/directory"
)

// Config says what to serve and where certificates come from. Domains and Dir are needed. Every other zero
// value works.
type Config struct {
	// Domains are the names and addresses to serve, each once. A client that names no server, as every client does that
	// connects to an address, gets the certificate of the address that it connected to, if that is one of the domains.
	// Otherwise it gets that of the first address among the domains, and without one that of the first domain.
	Domains []Domain

	// Dir is the data folder. New makes it, with mode 0700, if it is missing. To lose it costs a new account,
	// new certificates (Let's Encrypt gives 5 a week for one set of names), and a new local root that clients
	// have to trust again.
	Dir string

	// CertFile and KeyFile are PEM files that another program renews: the chain, leaf first, and its private
	// key. Set both or neither. When set, they serve every domain, and nothing is ordered.
	CertFile, KeyFile string

	// DirectoryURL is the https URL of the CA's ACME directory. Empty is [LetsEncrypt]. Accounts and
	// certificates of different directories are kept apart.
	DirectoryURL string

	// RootCAs are the roots that the CA's own TLS certificate is verified with. Nil is the system's roots. It
	// does not affect visitors.
	RootCAs *x509.CertPool

	// Email is the contact address of a new account, without "mailto:". Empty is none. An account that exists
	// keeps its own.
	Email string

	// EABKeyID and EABKey bind the account to an account that the operator has with the CA (RFC 8555 section
	// 7.3.4). EABKey is the key itself, not its base64. Set both or neither.
	EABKeyID string
	EABKey   []byte

	// Profile is the certificate profile to order (draft-ietf-acme-profiles), such as "shortlived". Empty lets
	// the CA choose. If the CA does not offer the profile, its default is ordered, with a warning. Profile is for names:
	// an IP address is always ordered with the profile "shortlived".
	Profile string

	// FallbackURL is the directory of a second CA. It is asked when the first CA has failed for at least three
	// hours, and for at least half of the life that was left in the served certificate. Empty is none. Its
	// account and certificates are kept apart. FallbackEABKeyID and FallbackEABKey are its EABKeyID and EABKey.
	// Profile applies to it, too, if it offers that profile.
	FallbackURL      string
	FallbackEABKeyID string
	FallbackEABKey   []byte

	// ImportDir is the folder of certbot, /etc/letsencrypt. New takes a valid certificate and its key over for each ACME
	// domain that has none stored at any CA, so that none is ordered. It reads the folder only then. Empty is none.
	ImportDir string

	// Shared holds what replicas on several machines share in place of Dir: certificates, account keys, plans,
	// answers to challenges, and locks. Everything but names is sealed with SealKeys. Dir then holds copies of
	// certificates and account keys, and the local CA. Nil shares only Dir.
	Shared Shared

	// SealKeys have [SealKeySize] bytes each; see [ParseSealKeys]. The first one seals, all open. To replace a
	// key: add the new one behind the old one on all replicas, then put it first, then remove the old one when
	// all certificates have been renewed.
	SealKeys [][]byte

	// Logger gets what an operator should know. Nil discards it.
	Logger *slog.Logger

	// Test hooks. Zero values are replaced by withDefaults.
	now            func() time.Time
	random         func() float64 // in [0, 1)
	lookInterval   time.Duration
	orderInterval  time.Duration
	requestTimeout time.Duration
	patience       time.Duration
	systemRoots    *x509.CertPool // nil is the system's; for PubliclyTrusted
}

// withDefaults returns cfg with a value for each field that has a default.
func (cfg Config) withDefaults() Config {
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	if cfg.now == nil {
		cfg.now = time.Now
	}
	if cfg.random == nil {
		cfg.random = rand.Float64
	}
	cfg.DirectoryURL = cmp.Or(cfg.DirectoryURL, LetsEncrypt)
	cfg.lookInterval = cmp.Or(cfg.lookInterval, lookInterval)
	cfg.orderInterval = cmp.Or(cfg.orderInterval, orderInterval)
	cfg.patience = cmp.Or(cfg.patience, patience)
	cfg.requestTimeout = cmp.Or(cfg.requestTimeout, cahttp.RequestTimeout)
	return cfg
}

// Validate returns the errors for which [New] would refuse the configuration, joined. It reads no files.
func (cfg *Config) Validate() error {
	var errs []error
	add := func(format string, a ...any) { errs = append(errs, fmt.Errorf("acme: "+format, a...)) }

	if len(cfg.Domains) == 0 {
		add("no domains")
	}
	if cfg.Dir == "" {
		add("no data folder")
	}
	if (cfg.CertFile == "") != (cfg.KeyFile == "") {
		add("a certificate file and a key file need each other")
	}
	if cfg.CertFile != "" && cfg.ImportDir != "" {
		add("certificate files are served as they are: there is nothing to import")
	}
	if (cfg.EABKeyID == "") != (len(cfg.EABKey) == 0) || (cfg.FallbackEABKeyID == "") != (len(cfg.FallbackEABKey) == 0) {
		add("external account binding needs both a key id and a key")
	}
	for _, address := range []string{cfg.DirectoryURL, cfg.FallbackURL} {
		if u, err := url.Parse(address); address != "" && (err != nil || u.Scheme != "https" || u.Host == "") {
			add("directory %q is not an https URL", address)
		}
	}
	if cfg.FallbackURL == cmp.Or(cfg.DirectoryURL, LetsEncrypt) {
		add("the fallback is the CA itself: %s", cfg.FallbackURL)
	}
	seen := make(map[string]bool)
	for _, d := range cfg.Domains {
		switch {
		case seen[d.Name]:
			add("domain %q is given twice", d.Name)
		case strings.HasPrefix(d.Name, "*."):
			add("domain %q: wildcards cannot be certified here", d.Name)
		case !validName(d.Name):
			add("domain %q is not a normalised host name or IP address", d.Name)
		case d.Local && !IsLocal(d.Name):
			add("domain %q is public: the local CA must not certify it", d.Name)
		}
		seen[d.Name] = true
	}
	return errors.Join(errs...)
}

// validName reports whether name is normalised as [Domain] says. It is strict, since name becomes a file
// name.
func validName(name string) bool {
	if ip, err := netip.ParseAddr(name); err == nil {
		return ip.String() == name && ip.Zone() == ""
	}
	if len(name) > 253 { // RFC 1035 section 2.3.4, without the first length byte and the root's
		return false
	}
	for label := range strings.SplitSeq(name, ".") {
		if label == "" || len(label) > 63 || strings.Trim(label, "abcdefghijklmnopqrstuvwxyz0123456789-_") != "" {
			return false
		}
	}
	return true
}
