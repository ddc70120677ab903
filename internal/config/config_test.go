package config

import (
	"io"
	"io/fs"
	"slices"
	"strings"
	"testing"

	"plusminus/acme"
	"plusminus/internal/store"
)

// parse parses a command line with spaces between arguments, and an environment of NAME=value.
func parse(args string, env ...string) (*Config, error) {
	return Parse(strings.Fields(args), func(name string) (string, bool) {
		for _, e := range env {
			if value, ok := strings.CutPrefix(e, name+"="); ok {
				return value, true
			}
		}
		return "", false
	}, io.Discard)
}

// TestDomains compares the domains that Parse reads from -domain.
func TestDomains(t *testing.T) {
	for _, tt := range []struct {
		args string
		want []acme.Domain
	}{
		{"", []acme.Domain{{Name: "localhost", Local: true}}},
		{"-domain counter.example.com", []acme.Domain{{Name: "counter.example.com"}}},
		{"--domain=Counter.Example.COM.", []acme.Domain{{Name: "counter.example.com"}}},
		{"-domain bücher.example", []acme.Domain{{Name: "xn--bcher-kva.example"}}},
		{"-domain XN--BCHER-KVA.example", []acme.Domain{{Name: "xn--bcher-kva.example"}}},
		{"-domain a.example,b.example -domain a.example", []acme.Domain{{Name: "a.example"}, {Name: "b.example"}}},
		{"-domain a.test,x.localhost,y.internal", []acme.Domain{{Name: "a.test", Local: true}, {Name: "x.localhost", Local: true}, {Name: "y.internal", Local: true}}},
		{"-domain a.test -acme-directory https://ca.test/dir", []acme.Domain{{Name: "a.test"}}},
		{"-domain 192.0.2.1,[2001:DB8::0:1]", []acme.Domain{{Name: "192.0.2.1", Local: true}, {Name: "2001:db8::1", Local: true}}},
		{"-domain 1.1.1.1,[2606:4700::0:1111],::ffff:9.9.9.9,10.0.0.1", []acme.Domain{{Name: "1.1.1.1"}, {Name: "2606:4700::1111"}, {Name: "9.9.9.9"}, {Name: "10.0.0.1", Local: true}}},
		{"-domain 127.0.0.1,::1,192.0.2.1 -acme-directory https://ca.test/dir", []acme.Domain{{Name: "127.0.0.1"}, {Name: "::1"}, {Name: "192.0.2.1"}}},
		{"-domain 1.1.1.1,192.0.2.1 -staging", []acme.Domain{{Name: "1.1.1.1"}, {Name: "192.0.2.1", Local: true}}},
	} {
		cfg, err := parse(tt.args)
		if err != nil {
			t.Errorf("%s: %v", tt.args, err)
		} else if !slices.Equal(cfg.Domains, tt.want) {
			t.Errorf("%s: domains %+v, want %+v", tt.args, cfg.Domains, tt.want)
		}
	}
}

// TestAddresses compares the listeners' addresses and their defaults.
func TestAddresses(t *testing.T) {
	for _, tt := range []struct {
		args        string
		https       []string
		http, admin string
	}{
		{"", []string{":8443"}, ":8080", "127.0.0.1:9180"},
		{"-domain a.example,localhost", []string{":443"}, ":80", "127.0.0.1:9180"},
		{"-domain a.example -https :443,[::1]:6789 -http off -admin off", []string{":443", "[::1]:6789"}, "", ""},
		{"-plain -domain a.example", nil, ":80", "127.0.0.1:9180"},
		{"-plain -http :9000", nil, ":9000", "127.0.0.1:9180"},
	} {
		cfg, err := parse(tt.args)
		if err != nil {
			t.Errorf("%s: %v", tt.args, err)
		} else if !slices.Equal(cfg.HTTPS, tt.https) || cfg.HTTP != tt.http || cfg.Admin != tt.admin {
			t.Errorf("%s: https %q, http %q, admin %q, want %q, %q, %q", tt.args, cfg.HTTPS, cfg.HTTP, cfg.Admin, tt.https, tt.http, tt.admin)
		}
	}
}

// TestEnvironment checks that variables set flags, and that the command line has priority over them.
func TestEnvironment(t *testing.T) {
	cfg, err := parse("-acme-email flag@a.example", "PLUSMINUS_ACME_EMAIL=env@a.example", "PLUSMINUS_DOMAIN=a.example,b.example",
		"PLUSMINUS_STAGING=true", "PLUSMINUS_DRAIN=")
	if err != nil {
		t.Fatal(err)
	}
	if cfg.ACMEEmail != "flag@a.example" || len(cfg.Domains) != 2 || cfg.ACMEDirectory != acme.LetsEncryptStaging {
		t.Errorf("email %q, domains %v, directory %q, want the flag's, two, and staging", cfg.ACMEEmail, cfg.Domains, cfg.ACMEDirectory)
	}
}

// TestUsageErrors checks that an error names the flag and says what to do, and that Parse reports all errors at once.
func TestUsageErrors(t *testing.T) {
	for _, tt := range []struct{ args, want string }{
		{"-domain https://a.example/", `invalid value "https://a.example/" for flag -domain: give the name alone`},
		{"-domain a.example:443", "the port goes to -https"},
		{"-domain *.a.example", "wildcards"},
		{"-domain counter", `-domain "counter": not a public name`},
		{"-domain a..example", "-domain: not a host name"},
		{"-domain a_b.example", "-domain: not a host name"},
		{"-domain fe80::1%eth0", "zone"},
		{"-domain 1.2.3.4.5", "ends in a number"},
		{"-domain 256.1.1.1", "ends in a number"},
		{"-domain ,", "-domain"},
		{"-acme-directory https://ca.test/dir", "give -domain such a name"},
		{"-acme-directory ca.test -domain a.example", "-acme-directory"},
		{"-staging", "-staging does nothing here"},
		{"-staging -acme-directory https://ca.test/ -domain a.example", "exclude each other"},
		{"-https 443", "-https: \"443\" is not an address"},
		{"-https :70000", "needs a port"},
		{"-http 80", "-http: \"80\""},
		{"-admin x", "-admin"},
		{"-plain -https :443", "-plain and -https"},
		{"-plain -http off", "-plain needs -http"},
		{"-plain -cert a -key b", "-plain and -cert"},
		{"-cert a", "-cert and -key go together"},
		{"-key a", "-cert and -key go together"},
		{"-cert a -key b -staging -domain a.example", "-staging and -cert"},
		{"-acme-eab-kid x", "-acme-eab-key-file"},
		{"-origin a.example", "-origin: \"a.example\" is no origin"},
		{"-frame-origin a.example", "-frame-origin: \"a.example\" is no origin of a page"},
		{"-frame-origin https://a.example/page", "-frame-origin: \"https://a.example/page\" is no origin of a page"},
		{"-frame-origin *", "-frame-origin: name the origins"},
		{"-frame-origin null", "-frame-origin: a page without an origin of its own"},
		{"-frame-origin https://[2001:db8::1]", "-frame-origin: \"https://[2001:db8::1]\" cannot be named in a Content-Security-Policy"},
		{"-frame-origin app://a;script-src", "-frame-origin"},
		{"-max-clients -1", "-max-clients"},
		{"-max-clients-per-ip -1", "-max-clients-per-ip"},
		{"-proxy-protocol lb.example", "-proxy-protocol: not a network: write 10.0.0.0/8, 2001:db8::/32, or one address"},
		{"-proxy-protocol 10.0.0.1/8", "-proxy-protocol: bits are set behind the first 8: write 10.0.0.0/8"},
		{"-proxy-protocol ::ffff:10.0.0.0/104", "-proxy-protocol: not a network"},
		{"-trusted-proxies proxy.example", "-trusted-proxies: not a network"},
		{"-trusted-proxies 10.0.0.1,proxy.example", `-trusted-proxies: "proxy.example": not a network`},
		{"-connection-rate NaN", "-connection-rate: NaN is not a number of connections a second"},
		{"-connection-rate -1", "-connection-rate"},
		{"-action-rate NaN", "-action-rate"},
		{"-action-rate -1", "-action-rate"},
		{"-action-burst 0", "-action-burst"},
		{"-store disk", "-store: \"disk\" is unknown: use file, memory, or redis://host:port"},
		{"-store redis://", "-store: the host is missing"},
		{"-store http://localhost", "-store: write redis://"},
		{"-store redis://localhost?db=1", "only one prefix=name"},
		{"-store redis://u:p@localhost -store-password-file go.mod", "has a password already"},
		{"-store redis://localhost -store-ca-root go.mod", "-store-ca-root: roots are for TLS: use -store rediss://"},
		{"-store memory -store-password-file go.mod", "are for -store redis://"},
		{"-store file -store-key-file go.mod", "are for -store redis://"},
		{"-store redis://localhost -store-key-file go.mod", "every domain is local"},
		{"-store redis://localhost -domain a.example.com -plain -store-key-file go.mod", "-store-key-file and -plain exclude each other"},
		{"-export-hook true", "-export-hook needs -export"},
		{"-export-mode 0640 -export-group 8", "-export-mode needs -export: the folder for the files\n-export-group needs -export"},
		{"-export d -plain", "-plain and -export exclude each other"},
		{"-export d -export-mode 9", "-export-mode: write the mode in octal"},
		{"-export d -export-mode 01600", "-export-mode: write the mode in octal"},
		{"-export d -export-mode 750", "-export-mode: the files are no programs: write 0640"},
		{"-export d -export-mode 0040", "-export-mode: plusminus itself must be able to read the files: write 0440"},
		{"-export d -export-mode 0660", "-export-mode: nobody else needs to write the files: write 0640"},
		{"-import d", "-import does nothing here, since every domain is local"},
		{"-import d -domain a.example -plain", "-plain and -import exclude each other"},
		{"-import d -domain a.example -cert a -key b", "-cert and -import exclude each other"},
		{"-data=", "-data: name a folder"},
		{"-drain 0s", "-drain"},
		{"-log-level loud", "-log-level"},
		{"-log-format xml", "-log-format"},
		{"-log-format xml -max-clients x -nonsense y -drain 0s", "-log-format: use one of auto, text, json\n" +
			`invalid value "x" for flag -max-clients: parse error` + "\nunknown flag -nonsense\n-drain: 0s is not a time"},
		{"-nonsense", "unknown flag -nonsense"},
		{"-domian a.example", "unknown flag -domian: did you mean -domain?"},
		{"-acme-mail a@b.example", "did you mean -acme-email?"},
		{"extra", `unexpected argument "extra"`},
		{"-reuse-key", "-reuse-key is no longer supported: each certificate has a new key, since autocert makes it. Remove the setting."},
		{"-reuse-key=false -domain a.example", "serve its files with -cert and -key"},
	} {
		_, err := parse(tt.args)
		if _, ok := err.(UsageError); !ok || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: %v, want a usage error with %q", tt.args, err, tt.want)
		}
	}
	_, err := parse("-domain a.example", "PLUSMINUS_REUSE_KEY=true")
	if want := "PLUSMINUS_REUSE_KEY is no longer supported"; err == nil || !strings.Contains(err.Error(), want) {
		t.Errorf("with PLUSMINUS_REUSE_KEY: %v, want a usage error with %q", err, want)
	}
}

// TestConnectionRate checks that an address has no rate where it may stand for many visitors, unless -connection-rate
// sets one.
func TestConnectionRate(t *testing.T) {
	for _, tt := range []struct {
		args string
		want float64
	}{
		{"", 10},
		{"-max-clients-per-ip 1000", 10},
		{"-max-clients-per-ip 0", 0},
		{"-plain", 0},
		{"-plain -max-clients-per-ip 10", 10},
		{"-plain -connection-rate 3", 3},
		{"-connection-rate 0", 0},
	} {
		cfg, err := parse(tt.args)
		if err != nil || cfg.ConnectionRate != tt.want {
			t.Errorf("%s: rate %v, %v, want %v", tt.args, cfg.ConnectionRate, err, tt.want)
		}
	}
}

// TestStorePasswordIsNotShown checks that no error about -store contains the password.
func TestStorePasswordIsNotShown(t *testing.T) {
	for _, url := range []string{"redis://u:secret/1@localhost", "redis://u:secret%@localhost", "redis://:secret", "u:secret@localhost", "redis://u:secret@localhost?x=1"} {
		for _, err := range []error{second(parse("-store " + url)), second(parse("", "PLUSMINUS_STORE="+url))} {
			if err == nil || strings.Contains(err.Error(), "secret") {
				t.Errorf("-store %s: %v, want an error without the password", url, err)
			}
		}
	}
	cfg, err := parse("", "PLUSMINUS_STORE=redis://u:secret@localhost/2?prefix=a")
	if err != nil {
		t.Fatal(err)
	}
	if server, ok := cfg.Store.(store.Valkey); !ok || server.Password != "secret" || server.DB != 2 || server.Prefix != "a" {
		t.Errorf("PLUSMINUS_STORE: store = %+v, want the password secret, database 2 and prefix a", cfg.Store)
	}
}

// second returns the error of Parse.
func second(_ *Config, err error) error { return err }

// TestDefaultCap checks that -max-clients-per-ip has a default only if the server knows the clients' addresses.
func TestDefaultCap(t *testing.T) {
	for _, tt := range []struct {
		args string
		want int
	}{
		{"", 64},
		{"-plain", 0},
		{"-plain -max-clients-per-ip 7", 7},
		{"-plain -trusted-proxies 127.0.0.1", 64},
		{"-plain -proxy-protocol 127.0.0.1", 64},
		{"-plain -trusted-proxies 127.0.0.1 -max-clients-per-ip 0", 0},
	} {
		cfg, err := parse(tt.args)
		if err != nil || cfg.MaxClientsPerIP != tt.want {
			t.Errorf("%s: cap %v, %v, want %d", tt.args, cfg, err, tt.want)
		}
	}
}

// TestFrameOrigins checks that -frame-origin gives source expressions of a Content-Security-Policy.
func TestFrameOrigins(t *testing.T) {
	cfg, err := parse("-frame-origin https://Blog.example,https://blog.example:443 -frame-origin http://a.example:8080,https://b.example:*,https://*.c.example,https://bücher.example,app://host")
	if err != nil {
		t.Fatal(err)
	}
	want := []string{"https://blog.example", "http://a.example:8080", "https://b.example:*", "https://*.c.example", "https://xn--bcher-kva.example", "app://host"}
	if !slices.Equal(cfg.FrameOrigins, want) {
		t.Errorf("FrameOrigins = %q, want %q", cfg.FrameOrigins, want)
	}
	if cfg, err := parse(""); err != nil || len(cfg.FrameOrigins) != 0 {
		t.Errorf("without -frame-origin: %q, %v, want none", cfg.FrameOrigins, err)
	}
}

// TestExport checks the mode and the group of exported files.
func TestExport(t *testing.T) {
	for args, want := range map[string]fs.FileMode{"-export d": 0o600, "-export d -export-mode 640 -export-group mail": 0o640, "-export d -export-mode 0400": 0o400} {
		if cfg, err := parse(args); err != nil || cfg.Export != "d" || cfg.ExportMode != want || strings.Contains(args, "mail") != (cfg.ExportGroup == "mail") {
			t.Errorf("%s: %+v, %v, want mode %04o", args, cfg, err, want)
		}
	}
}
