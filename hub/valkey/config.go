package valkey

import (
	"crypto/tls"
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

// DefaultPrefix is the prefix of all key names unless the URL gives another.
const DefaultPrefix = "plusminus"

// Config says where the server is and how to log in. [ParseURL] makes one.
type Config struct {
	// Address is host:port of the primary. The name is resolved for each connection, and an
	// error reply ends a connection. So the name may move to another server.
	Address string

	// TLS configures TLS, and needs a ServerName. nil means plain TCP.
	TLS *tls.Config

	// Username and Password are those of the server's ACL. Without a Username, Password is that
	// of the user "default". PasswordFile, if set, replaces Password. It is read for each
	// connection, without the newline at its end, so a password can change while the program runs.
	Username, Password, PasswordFile string

	// DB is the number of the database.
	DB int

	// Prefix begins the names of all keys. It stands in braces, so that all keys are in one hash
	// slot of a cluster. "" means [DefaultPrefix]. Replicas with the same server, DB and Prefix
	// share one counter.
	Prefix string

	// Logger gets an error line when the server has lost changes, and when the outcome of a batch
	// stays unknown. nil discards them. No line holds a password.
	Logger *slog.Logger
}

// errURL is the error for a URL that cannot be parsed. It quotes neither the URL nor the error
// of net/url, since both may hold a password.
var errURL = errors.New("write redis://user:password@host:port/db?prefix=name (rediss:// for TLS); in a password, characters other than letters and digits are written like %2F")

// ParseURL parses redis://[user:password@]host[:port][/db][?prefix=name]. The scheme rediss
// means TLS; valkey and valkeys mean the same as redis and rediss. The default port is 6379
// and the default db 0. No error holds a password.
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
			return Config{}, fmt.Errorf("%q is not a database number: %w", db, errURL)
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

// password returns the password for the next login.
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

// String returns the URL of the server without user and password.
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
