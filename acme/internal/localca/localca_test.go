package localca

import (
	"crypto/x509"
	"log/slog"
	"testing"
	"time"
)

// A thief of the key can certify only local names.
func TestLocalConstraints(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	ca, err := Open(dir, time.Now, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AddCert(ca.Root())
	for name, want := range map[string]bool{"localhost": true, "x.test": true, "example.com": false, "test.example.com": false, "mytest": false} {
		cert, err := ca.Issue(name)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := cert.Leaf.Verify(x509.VerifyOptions{DNSName: name, Roots: pool}); (err == nil) != want {
			t.Errorf("certificate of the local CA for %s: %v, want it accepted: %v", name, err, want)
		}
	}
	if r := ca.Root(); !r.IsCA || r.MaxPathLen != 0 || !r.MaxPathLenZero || !r.PermittedDNSDomainsCritical {
		t.Errorf("root: IsCA %v, path length %d, constraints critical %v", r.IsCA, r.MaxPathLen, r.PermittedDNSDomainsCritical)
	}
	now := time.Now()
	if got := ca.Root().NotAfter; got.Before(now.AddDate(10, 0, -1)) || got.After(now.AddDate(10, 0, 1)) {
		t.Errorf("root lives until %v, want ten years", got)
	}
}
