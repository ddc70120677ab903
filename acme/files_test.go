package acme

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"plusminus/acme/internal/acmetest"
)

// A live is a folder like certbot's live/<name>: two symlinks, relative, into an archive.
type live struct {
	t       testing.TB
	dir     string
	version int
}

func newLive(t testing.TB) *live {
	l := &live{t: t, dir: t.TempDir()}
	for _, d := range []string{"live/example.com", "archive/example.com"} {
		if err := os.MkdirAll(filepath.Join(l.dir, d), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	return l
}

func (l *live) path(name string) string {
	return filepath.Join(l.dir, "live/example.com", name+".pem")
}

func (l *live) config(domains ...string) (Config, *recorder) {
	cfg, log := localConfig(l.t, filepath.Join(l.dir, "data"), domains...)
	for i := range cfg.Domains {
		cfg.Domains[i].Local = false
	}
	cfg.CertFile, cfg.KeyFile = l.path("fullchain"), l.path("privkey")
	return cfg, log
}

// archive writes the next version of name. point makes the symlink lead to it, as certbot does: it removes the
// symlink and makes it again.
func (l *live) archive(name string, data []byte) {
	l.t.Helper()
	path := filepath.Join(l.dir, "archive/example.com", fmt.Sprintf("%s%d.pem", name, l.version))
	if err := os.WriteFile(path, data, 0o600); err != nil {
		l.t.Fatal(err)
	}
}

func (l *live) point(name string) {
	l.t.Helper()
	if err := os.Remove(l.path(name)); err != nil && !os.IsNotExist(err) {
		l.t.Fatal(err)
	}
	if err := os.Symlink(fmt.Sprintf("../../archive/example.com/%s%d.pem", name, l.version), l.path(name)); err != nil {
		l.t.Fatal(err)
	}
}

// next archives the next version of both files. The symlinks stay.
func (l *live) next(cert tls.Certificate) {
	l.t.Helper()
	l.version++
	chain, key := acmetest.PEM(l.t, cert)
	l.archive("fullchain", chain)
	l.archive("privkey", key)
}

// renew archives the next version of both files, and makes both symlinks lead to it.
func (l *live) renew(cert tls.Certificate) {
	l.next(cert)
	l.point("privkey")
	l.point("fullchain")
}

// serving reports whether p serves cert for name.
func serving(p *Provider, name string, cert tls.Certificate) bool {
	got, err := p.getCertificate(&tls.ClientHelloInfo{ServerName: name})
	return err == nil && bytes.Equal(got.Certificate[0], cert.Certificate[0]) && len(got.Certificate) == len(cert.Certificate)
}

func TestFiles(t *testing.T) {
	t.Parallel()
	l, testCA := newLive(t), acmetest.NewIssuer(t)
	old := testCA.Issue(t, 90*day, domain)
	l.renew(old)
	cfg, log := l.config(domain, "second.example.com")
	cfg.systemRoots = testCA.Roots()
	p, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	if !serving(p, domain, old) || !serving(p, "second.example.com", old) {
		t.Errorf("the files do not serve every domain")
	}
	if e := log.one("does not cover"); e.attrs["domain"] != "second.example.com" {
		t.Errorf("logged %v, want the domain that is not covered", e)
	}
	if err := p.Complete(); err == nil || !strings.Contains(err.Error(), "second.example.com: the certificate is for other names: "+domain) {
		t.Errorf("Complete = %v, want it to name the domain that is not covered", err)
	}
	if !p.PubliclyTrusted(domain) || p.PubliclyTrusted("second.example.com") {
		t.Errorf("PubliclyTrusted is not exactly for the covered domain")
	}
	if st := p.Status()[0]; st.Source != "files" || st.Directory != "" || !st.NotAfter.Equal(old.Leaf.NotAfter) {
		t.Errorf("Status = %+v", st)
	}

	// Both symlinks at once: adopted at the second look.
	good := testCA.Issue(t, 90*day, domain, "second.example.com")
	l.renew(good)
	p.files.look()
	if !serving(p, domain, old) {
		t.Errorf("adopted at the first look: it may be half written")
	}
	p.files.look()
	if !serving(p, domain, good) || !serving(p, "second.example.com", good) {
		t.Errorf("not adopted at the second look")
	}
	if e := log.one("certificate files adopted"); e.attrs["not_after"] != fmt.Sprint(good.Leaf.NotAfter) {
		t.Errorf("logged %v, want not_after %v", e, good.Leaf.NotAfter)
	}
	if err := p.Complete(); err != nil {
		t.Errorf("Complete = %v, want nil", err)
	}

	// One symlink after the other, with a pause in which they do not match.
	next := testCA.Issue(t, 90*day, domain, "second.example.com")
	l.next(next)
	l.point("privkey")
	for range 5 {
		p.files.look()
	}
	if !serving(p, domain, good) {
		t.Errorf("a key that does not match was adopted")
	}
	if e := log.one("no good"); !strings.Contains(e.attrs["err"], l.path("fullchain")) || !strings.Contains(e.attrs["err"], l.path("privkey")) {
		t.Errorf("logged %v, want it to name both files", e)
	}
	if last := p.Status()[0].LastError; last == nil || !strings.Contains(last.Reason, l.path("privkey")) {
		t.Errorf("LastError = %+v, want what is the matter with the files", last)
	}
	l.point("fullchain")
	p.files.look()
	p.files.look()
	if !serving(p, domain, next) {
		t.Errorf("not adopted once the second symlink was there")
	}
	if last := p.Status()[0].LastError; last != nil {
		t.Errorf("LastError = %+v after success, want nil", last)
	}

	// The same fault at the next renewal is logged again.
	l.next(testCA.Issue(t, 90*day, domain))
	l.point("privkey")
	p.files.look()
	p.files.look()
	if got := len(log.logged("no good")); got != 2 {
		t.Errorf("the same problem after an adoption was logged %d times in all, want 2", got)
	}
}

// Files that would make things worse are not adopted: an expired pair, and one that is not valid yet, which is adopted when
// it is. A domain that the new pair does not cover keeps the old one.
func TestFilesWorse(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		l, testCA := newLive(t), acmetest.NewIssuer(t)
		old := testCA.Issue(t, 90*day, domain, "second.example.com")
		l.renew(old)
		cfg, log := l.config(domain, "second.example.com")
		p, err := New(cfg)
		if err != nil {
			t.Fatal(err)
		}
		looks := func() {
			for range 3 {
				p.files.look()
			}
		}
		for what, pair := range map[string]struct{ from, to time.Duration }{"expired": {-2 * day, -day}, "not valid yet": {time.Hour, 90 * day}} {
			next := acmetest.Sign(t, &x509.Certificate{DNSNames: []string{domain}, NotBefore: time.Now().Add(pair.from), NotAfter: time.Now().Add(pair.to)}, nil)
			l.renew(next)
			looks()
			if !serving(p, domain, old) || p.Complete() != nil {
				t.Errorf("%s: the new pair is served", what)
			}
			if last := p.Status()[0].LastError; last == nil || !strings.Contains(last.Reason, "the certificate ") {
				t.Errorf("%s: LastError = %+v, want what is the matter", what, last)
			}
			if pair.from > 0 {
				time.Sleep(pair.from)
				looks()
				if !serving(p, domain, next) || !serving(p, "second.example.com", old) || p.Complete() != nil {
					t.Errorf("%s: an hour later Complete = %v, want it served where it covers the name", what, p.Complete())
				}
				l.renew(old)
				looks()
			}
		}
		if got := len(log.logged("no good")); got != 2 {
			t.Errorf("%d faults logged, want 2", got)
		}
	})
}

// A half-written file is never served. Each fault is logged once.
func TestFilesHalfWritten(t *testing.T) {
	t.Parallel()
	l, testCA := newLive(t), acmetest.NewIssuer(t)
	old := testCA.Issue(t, 90*day, domain)
	l.renew(old)
	cfg, log := l.config(domain)
	p, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	next := testCA.Issue(t, 90*day, domain)
	l.renew(next)
	chain, key := acmetest.PEM(t, next)
	leafEnd := bytes.Index(chain, []byte("-----END CERTIFICATE-----\n")) + len("-----END CERTIFICATE-----\n")
	for _, test := range []struct {
		name       string
		chain, key []byte
		want       string // in the warning
	}{
		{"empty chain", nil, key, "fullchain.pem: no PEM block"},
		{"half a leaf", chain[:leafEnd/2], key, "fullchain.pem: no PEM block"},
		{"leaf only", chain[:leafEnd], key, "fullchain.pem: the chain is cut short"},
		{"leaf and half an intermediate", chain[:leafEnd+200], key, "fullchain.pem: ends inside a PEM block"},
		{"empty key", chain, nil, "privkey.pem: no PEM block"},
		{"half a key", chain, key[:len(key)/2], "privkey.pem: no PEM block"},
	} {
		warnings := len(log.logged(""))
		l.archive("fullchain", test.chain)
		l.archive("privkey", test.key)
		for range 4 {
			p.files.look()
		}
		if !serving(p, domain, old) {
			t.Errorf("%s: the old pair is no longer served", test.name)
		}
		logged := log.logged("")[warnings:]
		want := 1
		if test.name == "half a leaf" || test.name == "half a key" {
			want = 0 // the same error as in the case before
		}
		if len(logged) != want {
			t.Errorf("%s: logged %v, want each distinct problem once", test.name, logged)
		}
		if all := log.logged("no good"); !strings.Contains(all[len(all)-1].attrs["err"], test.want) {
			t.Errorf("%s: logged %v, want %q", test.name, all[len(all)-1], test.want)
		}
	}
	// A missing file.
	if err := os.Remove(l.path("privkey")); err != nil {
		t.Fatal(err)
	}
	p.files.look()
	p.files.look()
	if e := log.one("cannot be read"); !strings.Contains(e.attrs["err"], l.path("privkey")) {
		t.Errorf("logged %v, want it to name the file", e)
	}
	l.renew(next)
	p.files.look()
	if !serving(p, domain, old) {
		t.Errorf("adopted at the first look")
	}
	p.files.look()
	if !serving(p, domain, next) {
		t.Errorf("not adopted once it was whole")
	}
	// Files that change between two looks.
	for range 4 {
		l.renew(testCA.Issue(t, 90*day, domain))
		p.files.look()
		if !serving(p, domain, next) {
			t.Errorf("adopted while still changing")
		}
	}
}

// Visitors connect while certbot swaps the files. Each gets a certificate with its key.
func TestFilesUnderLoad(t *testing.T) {
	t.Parallel()
	l, testCA := newLive(t), acmetest.NewIssuer(t)
	l.renew(testCA.Issue(t, 90*day, domain))
	cfg, _ := l.config(domain)
	s := serve(t, cfg, acmetest.Listen(t), acmetest.Listen(t))
	roots := testCA.Roots()
	ctx, cancel := context.WithCancel(t.Context())
	var visitors sync.WaitGroup
	for range 2 {
		visitors.Go(func() {
			for ctx.Err() == nil {
				c, err := s.dial(t, &tls.Config{ServerName: domain, RootCAs: roots})
				if err != nil {
					t.Errorf("handshake during a swap: %v", err)
				}
				c.Close()
			}
		})
	}
	s.stop() // the test itself calls look, as often as it can
	var last tls.Certificate
	for i := range 30 {
		last = testCA.Issue(t, 90*day, domain)
		l.next(last)
		for _, name := range []string{"privkey", "fullchain"} {
			l.point(name)
			if i%3 != 0 {
				s.files.look()
				s.files.look()
			}
		}
	}
	s.files.look()
	s.files.look()
	cancel()
	visitors.Wait()
	if !serving(s.Provider, domain, last) {
		t.Errorf("the last pair is not served")
	}
}

// watch serves a change after two looks, and logs each stage of expiry once.
func TestFilesWatch(t *testing.T) {
	t.Parallel()
	l, testCA := newLive(t), acmetest.NewIssuer(t)
	synctest.Test(t, func(t *testing.T) {
		old := testCA.Issue(t, 90*day, domain)
		l.renew(old)
		cfg, log := l.config(domain)
		p, err := New(cfg)
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error)
		go func() { done <- p.Run(ctx) }()
		time.Sleep(pollInterval + pollInterval/2)
		next := testCA.Issue(t, 6*time.Minute, domain)
		l.renew(next)
		time.Sleep(pollInterval)
		if !serving(p, domain, old) {
			t.Errorf("adopted after one look")
		}
		time.Sleep(pollInterval)
		if !serving(p, domain, next) {
			t.Errorf("not adopted after two looks")
		}

		time.Sleep(4*time.Minute + 50*time.Second)
		if got := log.logged("about to expire"); len(got) != 0 {
			t.Errorf("logged %v with more than a sixth left", got)
		}
		time.Sleep(20 * time.Second)
		log.one("about to expire")
		if err := p.Ready(); err != nil {
			t.Errorf("Ready = %v shortly before the expiry, want nil", err)
		}
		time.Sleep(2 * time.Minute)
		log.one("about to expire")
		log.one("has expired")
		if err := p.Ready(); err == nil || !strings.Contains(err.Error(), "expired") {
			t.Errorf("Ready = %v, want it to say that the certificate expired", err)
		}
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run = %v, want nil", err)
		}
	})
}

func TestFilesRefusedAtStart(t *testing.T) {
	t.Parallel()
	testCA := acmetest.NewIssuer(t)
	chain, key := acmetest.PEM(t, testCA.Issue(t, 90*day, domain))
	_, otherKey := acmetest.PEM(t, testCA.Issue(t, 90*day, domain))
	for _, test := range []struct {
		name       string
		chain, key []byte // nil is no file
		want       []string
	}{
		{"no certificate", nil, key, []string{"cert.pem", "no such file"}},
		{"no key", chain, nil, []string{"key.pem", "no such file"}},
		{"empty certificate", []byte{}, key, []string{"cert.pem", "no PEM block"}},
		{"mismatch", chain, otherKey, []string{"cert.pem", "key.pem", "does not match"}},
		{"exchanged", key, chain, []string{"cert.pem"}},
	} {
		cfg, _ := localConfig(t, t.TempDir(), "localhost")
		cfg.CertFile, cfg.KeyFile = filepath.Join(cfg.Dir, "cert.pem"), filepath.Join(cfg.Dir, "key.pem")
		for path, data := range map[string][]byte{cfg.CertFile: test.chain, cfg.KeyFile: test.key} {
			if data == nil {
				continue
			}
			if err := os.WriteFile(path, data, 0o600); err != nil {
				t.Fatal(err)
			}
		}
		p, err := New(cfg)
		if err == nil || p != nil {
			t.Errorf("%s: New = %v, %v, want an error", test.name, p, err)
			continue
		}
		for _, want := range test.want {
			if !strings.Contains(err.Error(), want) {
				t.Errorf("%s: New = %v, want it to contain %q", test.name, err, want)
			}
		}
	}
}
