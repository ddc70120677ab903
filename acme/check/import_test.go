package check

import (
	"testing"

	"plusminus/acme/internal/acmetest"
	"plusminus/acme/pebbletest"
)

// A check reports what the first start would take over from certbot, and why it would not.
func TestImport(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	want := func(patterns ...string) {
		t.Helper()
		w := newWorld(t, pebbletest.Config{}) // a check closes its listeners
		w.cfg.ImportDir = dir
		w.want(w.check(), patterns...)
	}
	want("warning import: not taken over: "+dir+"/live: ", "warning import: has no certificate to take over: the first start orders one")
	issuer := acmetest.NewIssuer(t)
	acmetest.Lineage(t, dir, "other.example", issuer.Issue(t, 90*day, "other.example"))
	want("warning import: has no certificate to take over: the first start orders one")
	path := acmetest.Lineage(t, dir, "example.org", issuer.Issue(t, 90*day, checked))
	want("ok import: the first start takes the certificate of " + path + " over, valid until")
}
