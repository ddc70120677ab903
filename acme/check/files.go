package check

import (
	"crypto/tls"
	"time"

	"plusminus/acme/internal/certs"
)

// checkFiles checks a certificate and key that another program renews.
func (c *checker) checkFiles() {
	const subject = "certificate file"
	file := c.cfg.CertFile
	certPEM, keyPEM, err := certs.ReadFiles(file, c.cfg.KeyFile)
	var cert *tls.Certificate
	if err == nil {
		cert, err = certs.ParseFiles(file, c.cfg.KeyFile, certPEM, keyPEM)
	}
	if err != nil {
		c.say(Problem, subject, "%v", err)
		return
	}
	leaf, now := cert.Leaf, c.cfg.now()
	left := leaf.NotAfter.Sub(now)
	switch until := leaf.NotAfter.UTC().Format(time.RFC3339); {
	case left < 0:
		c.say(Problem, subject, "%s expired at %s: the program that renews it has not done so", file, until)
	case now.Before(leaf.NotBefore):
		c.say(Problem, subject, "%s is valid only from %s: is this machine's clock right?", file, leaf.NotBefore.UTC().Format(time.RFC3339))
	case left < leaf.NotAfter.Sub(leaf.NotBefore)/6:
		c.say(Warning, subject, "%s expires at %s, and should have been renewed by now", file, until)
	default:
		c.say(OK, subject, "%s and its key fit, and are valid until %s", file, until)
	}
	for _, d := range c.cfg.Domains {
		finding := Finding{Domain: d.Name, Subject: subject, Level: OK, Text: "covers the name"}
		switch {
		case leaf.VerifyHostname(d.Name) != nil:
			finding.Level, finding.Text = Problem, "is for other names: "+list(certs.Names(leaf))
		case left > 0 && !certs.Trusted(cert, d.Name, c.cfg.systemRoots, now):
			finding.Level = Warning
			finding.Text = "covers the name, but is not trusted by this system's roots: visitors need its root"
			if problem := certs.ChainProblem(cert, now); problem != "" {
				finding.Text = "covers the name, but its chain has a fault: " + problem
			}
		}
		c.report(finding)
	}
}
