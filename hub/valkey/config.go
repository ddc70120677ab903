package valkey

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/url"
	"os"
	"regexp"
	"strconv"
	"strings"
)

// DefaultPrefix begins the names of all keys unless the URL says otherwise.
const DefaultPrefix = "plusminus"

// Config says where the server is. [ParseURL] makes one.
type Config struct {
	// Address is host:port of the primary. It is resolved anew for each connection, so that
	// a name may move to another server; after an error reply the connection is made anew.
	Address string

	// TLS is how to talk TLS, or nil for plain TCP. A ServerName is wanted.
	TLS *tls.Config

	// Username and Password are of the server's ACL; without a username, Password is that
	// of the user "default". PasswordFile is read at each connection in place of Password,
	// without the line's end, so that a password can be changed while we run.
	Username, Password, PasswordFile string

	// DB is the number of the database.
	DB int

	// Prefix begins the names of all keys, in braces, which makes them one hash slot of a
	// cluster. "" is [DefaultPrefix]. Who has the same server, DB and Prefix has the same counter.
	Prefix string

	// Logger gets a line when the store turns out to be another one. nil discards it. It is
	// never given a password.
	Logger *slog.Logger
}

// errURL is all that is said of a URL that cannot be parsed: it may hold a password, and
// so may what net/url says of it.
var errURL = errors.New("write redis://user:password@host:port/db?prefix=name (rediss:// for TLS); in a password, characters other than letters and digits are written like %2F")

// ParseURL understands redis://[user:password@]host[:port][/db][?prefix=name], and the same
// with rediss for TLS, or with valkey and valkeys. The port is 6379 and db 0 unless they
// are given. No error of its holds a password.
func ParseURL(s string) (Config, error) {
	u, err := url.Parse(s)
	if err != nil || u.Opaque != "" || u.Fragment != "" {
		return Config{}, errURL
	}
	var c Config
	switch u.Scheme {
	case "redis", "valkey":
	case "rediss", "valkeys":
		c.TLS = &tls.Config{ServerName: u.Hostname(), MinVersion: tls.VersionTLS12}
	default:
		return Config{}, errURL
	}
	if u.Hostname() == "" {
		return Config{}, fmt.Errorf("the host is missing: %w", errURL)
	}
	port := u.Port()
	if port == "" {
		port = "6379"
	}
	if n, err := strconv.ParseUint(port, 10, 16); err != nil || n == 0 {
		return Config{}, errURL
	}
	c.Address = net.JoinHostPort(u.Hostname(), port)
	if u.User != nil {
		c.Username = u.User.Username()
		c.Password, _ = u.User.Password()
	}
	if db := strings.Trim(u.Path, "/"); db != "" {
		n, err := strconv.ParseUint(db, 10, 16)
		if err != nil {
			return Config{}, fmt.Errorf("%q is no number of a database: %w", db, errURL)
		}
		c.DB = int(n)
	}
	query, err := url.ParseQuery(u.RawQuery)
	if err != nil {
		return Config{}, errURL
	}
	for name, values := range query {
		if name != "prefix" || len(values) != 1 {
			return Config{}, fmt.Errorf("only one prefix=name may follow the question mark: %w", errURL)
		}
		if !prefixes.MatchString(values[0]) {
			return Config{}, fmt.Errorf("prefix %q: use up to 64 letters, digits, and . _ : -", values[0])
		}
		c.Prefix = values[0]
	}
	return c, nil
}

var prefixes = regexp.MustCompile(`^[A-Za-z0-9._:-]{1,64}$`)

// TrustRoots has TLS trust the PEM certificates in a file, and no others.
func (c *Config) TrustRoots(file string) error {
	if c.TLS == nil {
		return errors.New("roots are for TLS: use rediss://")
	}
	pem, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(pem) {
		return fmt.Errorf("%s holds no PEM certificate", file)
	}
	c.TLS.RootCAs = roots
	return nil
}

// password returns the password to log in with now.
func (c *Config) password() (string, error) {
	if c.PasswordFile == "" {
		return c.Password, nil
	}
	b, err := os.ReadFile(c.PasswordFile)
	if err != nil {
		return "", fmt.Errorf("reading the password: %w", err)
	}
	return strings.TrimRight(string(b), "\r\n"), nil
}

// String returns where the server is, without a password.
func (c Config) String() string {
	scheme := "redis"
	if c.TLS != nil {
		scheme = "rediss"
	}
	return fmt.Sprintf("%s://%s/%d?prefix=%s", scheme, c.Address, c.DB, c.prefix())
}

func (c Config) prefix() string {
	if c.Prefix == "" {
		return DefaultPrefix
	}
	return c.Prefix
}
