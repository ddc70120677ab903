package cahttp

import (
	"crypto/x509"
	"errors"
	"net"
	"strings"

	"plusminus/acme/internal/challenge"
)

const notJSON = "the answer is not JSON"

// Hints for several rows of the table.
const (
	vantageHint  = "the CA's first validation succeeded, but its other vantage points see something else: does a firewall admit only some countries or networks, or does one of the name servers have old records?"
	caaHint      = "the domain's name servers fail at the question for CAA records: they must answer it, be it with none"
	dnssecHint   = "DNSSEC of the domain is broken: do the DS records at the registrar fit the keys of its zone?"
	resolveHint  = "the CA finds no address for the name: check its A and AAAA records"
	serversHint  = "the domain's name servers do not answer the CA: check them"
	redirectHint = "port 80 redirects to https, where the CA does not get the answer: let a proxy in front pass /.well-known/acme-challenge/ on without a redirect"
	closed80     = "connection refused on port 80: is it published? is an AAAA record stale?"
	closed443    = "connection refused on port 443: is it published? is an AAAA record stale?"
	away80       = "port 80 cannot be reached from outside: check firewall, port forwarding, and the AAAA record if there is one"
	away443      = "port 443 cannot be reached from outside, or another server answers there"
	other443     = "another server ends TLS on port 443: a proxy, or another machine that has the address in the DNS"
	circleHint   = "a proxy or CDN in front redirects in a circle: one that speaks http to this server (\"flexible\") meets our redirect to https"
	goneHint     = "there is no ACME directory at this URL: is -acme-directory right, or has the CA moved or closed?"
	eabHint      = "this CA wants an external account binding: get a key id and a key from its website, and give them with -acme-eab-kid and -acme-eab-key-file (-acme-fallback-eab-kid and -acme-fallback-eab-key-file for a second CA)"
)

// hints are the rows of [Problem.Hint]. The first row that fits counts. An empty field fits everything. Text is a part of the
// CA's words; those of Let's Encrypt are in letsencrypt/boulder, in the folders va and bdns.
var hints = []struct{ step, kind, text, hint string }{
	// About the name, whatever the challenge.
	{"", "", "During secondary validation", vantageHint},
	{"", "", "DNSSEC", dnssecHint},
	{"", "", "looking up CAA", caaHint},
	{"", "caa", "", "a CAA record in the DNS forbids this CA to certify the name"},
	{"", "dns", "SERVFAIL", serversHint},
	{"", "dns", "timed out", serversHint},
	{"", "dns", "", resolveHint},
	{"", "rejectedIdentifier", "", "the CA does not certify this name"},

	// About the account.
	{"", "rateLimited", "temporarily prevented", "the CA has paused this account for this name: follow the link in its message"},
	{"", "rateLimited", "", "a limit of the CA: only waiting helps; use its staging directory for experiments"},
	{"", "externalAccountRequired", "", eabHint},
	{"newAccount", "", "xternal account", eabHint},
	{"newAccount", "invalidContact", "", "the CA does not accept the address in -acme-email"},
	{"newAccount", "unsupportedContact", "", "the CA does not accept the address in -acme-email"},
	{"newAccount", "", "contact", "this CA wants a contact address: give it with -acme-email"},
	{"", "userActionRequired", "", "the CA wants a person to act, most often to agree to new terms of service"},
	{"", "invalidProfile", "", "the CA's directory lists the profiles that it has"},

	// About a challenge.
	{challenge.HTTP01, "", "edirect loop", circleHint},
	{challenge.HTTP01, "", "oo many redirects", circleHint},
	{challenge.HTTP01, "", "etching https://", redirectHint},
	{challenge.HTTP01, "", "Get \"https://", redirectHint},
	{challenge.HTTP01, "", "response from https://", redirectHint},
	{challenge.HTTP01, "", "refused", closed80},
	{challenge.HTTP01, "", "Timeout after connect", "port 80 takes the connection and does not answer: is something between the CA and this server that filters?"},
	{challenge.HTTP01, "connection", "", away80},
	{challenge.HTTP01, "", "Failed to connect", away80},
	{challenge.HTTP01, "unauthorized", "", "another server answers on port 80: check where the A and AAAA records of the name point, or which machine has the address"},
	{challenge.TLSALPN01, "", "only speaks HTTP", "what answers on port 443 speaks http: port 443 leads to the plain listener, or to a server that ends TLS elsewhere"},
	{challenge.TLSALPN01, "", "refused", closed443},
	{challenge.TLSALPN01, "connection", "", away443},
	{challenge.TLSALPN01, "", "Failed to connect", away443},
	{challenge.TLSALPN01, "unauthorized", "", other443},
	{challenge.TLSALPN01, "tls", "", other443},

	// About the CA.
	{"directory", "", notJSON, "what answers is not an ACME directory: is -acme-directory right, or does a proxy or a login page answer in place of the CA?"},
	{"directory", "", "RFC 8555", "what answers is not an ACME directory: is -acme-directory right?"},
	{"directory", "", "HTTP 404", goneHint},
	{"directory", "", "HTTP 410", goneHint},
	{"", "serverInternal", "", "the CA is in trouble: nothing to do here"},
	{"", "", "HTTP 5", "the CA is in trouble: nothing to do here"},
}

// Hint says what to check, or returns "" if the problem's own words are all there is to say.
func (p *Problem) Hint() string {
	fits := func(want, got string) bool { return want == "" || want == got }
	for _, row := range hints {
		if !fits(row.step, p.Step) || !fits(row.kind, p.Kind) || !strings.Contains(p.Detail, row.text) {
			continue
		}
		if p.Visit != "" {
			return row.hint + ": " + p.Visit
		}
		return row.hint
	}
	return ""
}

const clockHint = "set the clock, and keep it synchronised (NTP)"

// Hint says what to check when this machine could not ask the CA. It returns "" for other errors.
func Hint(err error) string {
	var unknown x509.UnknownAuthorityError
	var invalid x509.CertificateInvalidError
	var dnsErr *net.DNSError
	var opErr *net.OpError
	var useless *CertificateError
	switch {
	case errors.As(err, &useless) && useless.Skew.Abs() > FairSkew:
		return clockHint
	case errors.As(err, &useless):
		return "this machine's clock agrees with the CA's: ask the CA's operator about the times in its certificates"
	case errors.As(err, new(*StoreError)):
		return "check the data folder's owner, mode and free space"
	case errors.As(err, new(*ClockError)):
		return clockHint
	case errors.As(err, new(*ProfileError)):
		return "Let's Encrypt certifies IP addresses; this CA may do so for its customers only, or not at all"
	case errors.As(err, &unknown):
		return "the CA's own TLS certificate is not trusted here: does it need a root of its own, or is a proxy in between?"
	case errors.As(err, &invalid) && invalid.Reason == x509.Expired:
		return "the CA's own TLS certificate is not valid today: is this machine's clock right?"
	case errors.As(err, &dnsErr):
		return "this machine cannot resolve the CA's name: check its DNS"
	case errors.As(err, &opErr) && opErr.Op == "dial":
		return "this machine cannot reach the CA: check outgoing connections"
	}
	return ""
}
