package config

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"

	"golang.org/x/net/idna"

	"plusminus/acme"
)

// hostNames maps what people type to what certificates say: lower case, and A-labels for names in
// other scripts. https://www.rfc-editor.org/rfc/rfc5891#section-5
var hostNames = idna.New(idna.MapForLookup(), idna.BidiRule(), idna.StrictDomainName(true), idna.VerifyDNSLength(true))

// parseDomain parses one value of -domain. Names that no public CA certifies are local; see settle.
func parseDomain(s string) (acme.Domain, error) {
	if ip, err := netip.ParseAddr(strings.Trim(s, "[]")); err == nil {
		if ip.Zone() != "" {
			return acme.Domain{}, fmt.Errorf("a certificate cannot have a zone: leave %%%s out", ip.Zone())
		}
		return domainOf(ip.Unmap().String()), nil
	}
	switch {
	case strings.Contains(s, "/"):
		return acme.Domain{}, errors.New("give the name alone, such as counter.example.com, not a URL")
	case strings.Contains(s, ":"):
		return acme.Domain{}, errors.New("give the name alone; the port goes to -https")
	case strings.HasPrefix(s, "*."):
		return acme.Domain{}, errors.New("wildcards need a DNS challenge, which is not supported: list the names")
	}
	name, err := hostNames.ToASCII(strings.TrimSuffix(s, "."))
	if err != nil {
		return acme.Domain{}, fmt.Errorf("not a host name: %w", err)
	}
	// Browsers take such a host for an IPv4 address. https://url.spec.whatwg.org/#ends-in-a-number-checker
	if last := name[strings.LastIndex(name, ".")+1:]; strings.Trim(last, "0123456789") == "" {
		return acme.Domain{}, errors.New("neither an IP address nor a host name: no host name ends in a number")
	}
	return domainOf(name), nil
}

func domainOf(name string) acme.Domain { return acme.Domain{Name: name, Local: acme.IsLocal(name)} }

// settle decides where the certificate of d comes from. ownCA says that -acme-directory is set: then
// every name and address is ordered from that CA.
func settle(d *acme.Domain, ownCA bool) error {
	d.Local = d.Local && !ownCA
	_, err := netip.ParseAddr(d.Name)
	switch {
	case err == nil, d.Local, strings.Contains(d.Name, "."):
		return nil
	case ownCA:
		return errors.New("-acme-directory is set, and a CA certifies only names with a dot, and addresses: give -domain such a name")
	}
	return errors.New("not a public name: use one like counter.example.com, or localhost or a name under .test to try things out")
}
