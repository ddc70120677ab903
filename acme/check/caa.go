package check

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/miekg/dns"
)

// relevantCAA returns the CAA records that apply to name, and the name that has them: "the first CAA RRset" on the
// way up the tree, the root excluded. set is nil if there are none.
// https://www.rfc-editor.org/rfc/rfc8659#section-3
func (r *resolver) relevantCAA(ctx context.Context, name string) (at string, set []*dns.CAA, err error) {
	for at = name; at != ""; _, at, _ = strings.Cut(at, ".") {
		answer, err := r.query(ctx, at, dns.TypeCAA)
		if err != nil {
			return at, nil, err
		}
		for _, rr := range answer.Answer { // also those of an alias's target
			if caa, ok := rr.(*dns.CAA); ok {
				set = append(set, caa)
			}
		}
		if set != nil {
			return at, set, nil
		}
	}
	return "", nil, nil
}

// A caaVerdict says what CAA records mean for one CA.
type caaVerdict struct {
	level   Level
	text    string
	methods []string // the challenges that they permit, of those that we can answer; nil is all
}

// criticalFlag means "If set, indicates that the Property is critical": a CA that does not know the property must not
// issue. https://www.rfc-editor.org/rfc/rfc8659#section-4.1
const criticalFlag = 128

// judgeCAA applies the records to a CA with the given identities, for a name without wildcard. account is the URL of
// our account there, empty if there is none yet. accountErr says why it is not known.
func judgeCAA(set []*dns.CAA, identities []string, account string, accountErr error) caaVerdict {
	var issue []*dns.CAA
	for _, rr := range set {
		switch strings.ToLower(rr.Tag) {
		case "issue":
			issue = append(issue, rr)
		case "issuewild", "iodef", "issuemail":
		default:
			if rr.Flag&criticalFlag != 0 {
				return caaVerdict{level: Problem, text: fmt.Sprintf("the critical property %q is one that no CA needs to know: it would refuse", rr.Tag)}
			}
		}
	}
	if len(issue) == 0 {
		return caaVerdict{text: "does not restrict who may certify the name"}
	}
	if len(identities) == 0 {
		var values []string
		for _, rr := range issue {
			values = append(values, rr.Value)
		}
		return caaVerdict{level: Warning, text: "allows: " + strings.Join(values, ", ") + "; whether that is this CA cannot be told without caaIdentities in its directory"}
	}

	// One record that permits the CA is enough.
	var methods, reasons, others []string
	var doubt error
	fits := false
	for _, rr := range issue {
		domain, params, err := parseIssue(rr.Value)
		if err != nil {
			reasons = append(reasons, fmt.Sprintf("%q is malformed and allows nobody", rr.Value))
			continue
		}
		if !slices.ContainsFunc(identities, func(id string) bool { return strings.EqualFold(id, domain) }) {
			others = append(others, domain)
			continue
		}
		// https://www.rfc-editor.org/rfc/rfc8657#section-3
		if uri, ok := params["accounturi"]; ok && uri != account {
			switch {
			case accountErr != nil:
				doubt = fmt.Errorf("allows the account %s alone, and it is not known whether that is ours", uri)
			case account == "":
				reasons = append(reasons, fmt.Sprintf("allows the account %s alone, and the server would make another", uri))
				continue
			default:
				reasons = append(reasons, fmt.Sprintf("allows the account %s alone, and ours is %s", uri, account))
				continue
			}
		}
		// https://www.rfc-editor.org/rfc/rfc8657#section-4
		if value, ok := params["validationmethods"]; ok {
			n := len(methods)
			for _, m := range challengeTypes() {
				if slices.Contains(strings.Split(value, ","), m) {
					methods = append(methods, m)
				}
			}
			if len(methods) == n {
				reasons = append(reasons, fmt.Sprintf("allows validation by %s alone, and we answer %s", value, strings.Join(challengeTypes(), " and ")))
				continue
			}
		} else {
			methods = challengeTypes()
		}
		fits = true
	}
	if !fits {
		if len(reasons) == 0 {
			allowed := "nobody"
			if others = slices.DeleteFunc(others, func(s string) bool { return s == "" }); len(others) > 0 {
				allowed = strings.Join(others, ", ") + " alone"
			}
			reasons = []string{fmt.Sprintf("allows %s, and this CA is %s", allowed, strings.Join(identities, ", "))}
		}
		return caaVerdict{level: Problem, text: strings.Join(reasons, "; ")}
	}
	v := caaVerdict{text: "allows this CA"}
	slices.Sort(methods)
	if methods = slices.Compact(methods); len(methods) < len(challengeTypes()) {
		v.methods = methods
		v.text += ", by " + strings.Join(methods, ", ") + " alone"
	}
	if doubt != nil {
		v.level, v.text = Warning, doubt.Error()
	}
	return v
}

// parseIssue parses an issue value: "[issuer-domain-name] *WSP [";" parameters]". It returns the domain and the tags in
// lower case. An empty domain permits no CA.
// https://www.rfc-editor.org/rfc/rfc8659#section-4.2
func parseIssue(value string) (domain string, params map[string]string, err error) {
	const blank = " \t"
	domain, rest, _ := strings.Cut(value, ";")
	domain = strings.ToLower(strings.Trim(domain, blank))
	if strings.ContainsAny(domain, blank+"=") {
		return "", nil, errors.New("no domain name")
	}
	params = make(map[string]string)
	if strings.Trim(rest, blank) == "" {
		return domain, params, nil
	}
	for part := range strings.SplitSeq(rest, ";") {
		tag, v, ok := strings.Cut(strings.Trim(part, blank), "=")
		tag, v = strings.ToLower(strings.Trim(tag, blank)), strings.Trim(v, blank)
		if _, twice := params[tag]; !ok || tag == "" || twice || strings.ContainsAny(v, blank) {
			return "", nil, errors.New("no parameter")
		}
		params[tag] = v
	}
	return domain, params, nil
}

// checkCAA reports what the CAA records mean for each CA. It returns the verdict for the CA, or nothing if there are
// no records or they cannot be looked up.
func (s *domainCheck) checkCAA() []caaVerdict {
	ctx, cancel := context.WithTimeout(s.ctx, timeout)
	defer cancel()
	at, set, err := s.dns.relevantCAA(ctx, s.name)
	var rcode *rcodeError
	switch {
	case errors.As(err, &rcode):
		level := Problem
		if s.inside {
			level = Warning // private CAs rarely check CAA
		}
		// "…failure to complete the lookup": https://www.rfc-editor.org/rfc/rfc8659#section-6.2
		s.say(level, "CAA", "the DNS answers %v when asked for the CAA records of %s, and then a CA refuses: the name's DNS servers, or their DNSSEC, have to be mended", err, at)
		return nil
	case err != nil:
		s.say(Warning, "CAA", "could not be looked up for %s: %v", at, err)
		return nil
	case set == nil:
		s.say(OK, "CAA", "no record: any CA may certify the name")
		return nil
	}
	var verdicts []caaVerdict
	for _, ca := range s.cas {
		if ca.err != nil && ca.fallback {
			continue // tell has reported that
		}
		v := judgeCAA(set, ca.directory.CAA, ca.account, ca.accountErr)
		which := ""
		if ca.fallback {
			which = ", for the fallback CA"
			v.level = min(v.level, Warning)
		} else {
			verdicts = append(verdicts, v)
		}
		s.say(v.level, "CAA", "the record of %s%s: %s", at, which, v.text)
	}
	return verdicts
}
