package acme

import (
	"crypto/tls"
	"log/slog"
	"net/http"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	xacme "golang.org/x/crypto/acme"

	"plusminus/acme/internal/acmetest"
	"plusminus/acme/internal/certs"
	"plusminus/acme/internal/store"
	"plusminus/acme/pebbletest"
)

// clientOf returns a client for the account of is.
func clientOf(t *testing.T, ca *pebbletest.CA, is *issuer) *xacme.Client {
	t.Helper()
	key, err := is.accountKey(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return &xacme.Client{Key: key, DirectoryURL: ca.DirectoryURL, HTTPClient: &http.Client{
		Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: ca.DirectoryRoots}}}}
}

// An account that was deactivated is replaced in the same attempt. The old key is set aside. Replicas that
// have the old key in memory take the new one over.
func TestAccountDeactivated(t *testing.T) {
	t.Parallel()
	tlsLn := acmetest.Listen(t)
	ca, cfg := startCA(t, pebbletest.Config{TLSPort: acmetest.Port(tlsLn)}, domain)
	s := serve(t, cfg, tlsLn, acmetest.Listen(t))
	s.waitReady(t)
	other := serveLater(t, cfg)
	other.run()
	old := clientOf(t, ca, s.issuers[0])
	if err := old.DeactivateReg(t.Context()); err != nil {
		t.Fatal(err)
	}
	serial := s.status(t, domain).Serial
	if err := s.Renew(t.Context(), domain); err != nil {
		t.Fatal(err)
	}
	if s.status(t, domain).Serial == serial {
		t.Error("the certificate is the old one")
	}
	acmetest.WaitFor(t, "the other replica's look", func() bool { return other.status(t, domain).Serial == s.status(t, domain).Serial })
	if err := other.Renew(t.Context(), domain); err != nil {
		t.Fatal(err)
	}
	if e := s.log.one("account key set aside"); e.level != slog.LevelWarn || e.attrs["ca"] != ca.DirectoryURL || e.attrs["err"] == "" {
		t.Errorf("logged %v, want a warning with the CA and its reason", e)
	}
	if e := other.log.logged("account key set aside"); len(e) != 0 {
		t.Errorf("the other replica logged %v, want nothing", e)
	}
	a, b := clientOf(t, ca, s.issuers[0]), clientOf(t, ca, other.issuers[0])
	if a.Key == old.Key || !slices.Equal(acctURL(t, a), acctURL(t, b)) {
		t.Errorf("accounts %v and %v, want one new one", acctURL(t, a), acctURL(t, b))
	}
	aside, err := filepath.Glob(s.issuers[0].store.Path("*.deactivated-*"))
	if err != nil || len(aside) != 1 {
		t.Fatalf("set aside: %v, %v, want the key", aside, err)
	}
	s.stop()
	other.stop()
	restarted := serveLater(t, cfg)
	if got := clientOf(t, ca, restarted.issuers[0]); !slices.Equal(acctURL(t, got), acctURL(t, a)) {
		t.Errorf("account after a restart: %v, want %v", acctURL(t, got), acctURL(t, a))
	}
	folder := store.NewFolder(filepath.Dir(aside[0]), nil, nil)
	if key, err := store.Load(folder, filepath.Base(aside[0]), certs.ParseKey); err != nil || !key.Equal(old.Key) {
		t.Errorf("the key that was set aside: %v, want the old one", err)
	}
}

func acctURL(t *testing.T, c *xacme.Client) []string {
	t.Helper()
	account, err := c.GetReg(t.Context(), "")
	if err != nil {
		t.Fatal(err)
	}
	return append([]string{account.URI}, account.Contact...)
}

// An order that is refused together with its profile is placed once without it, unless a rate limit is the reason.
func TestProfileRefused(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		name, kind, detail string
		status, orders     int
		fails              bool
	}{
		{"not permitted", "unauthorized", "account ID 5 is not permitted to use certificate profile \"short\"", 403, 2, false},
		{"not known", "invalidProfile", "unknown", 400, 2, false},
		{"malformed", "malformed", "no", 400, 2, false},
		{"rate limit", "rateLimited", "too many certificates with this profile", 429, 1, true},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			tlsLn := acmetest.Listen(t)
			ca, cfg := startCA(t, pebbletest.Config{TLSPort: acmetest.Port(tlsLn), Profiles: map[string]time.Duration{"short": 6 * day}}, domain)
			cfg.Profile = "short"
			ca.Intercept(pebbletest.NewOrderPath, func(w http.ResponseWriter, r *http.Request) {
				orders := ca.NewOrders()
				if orders[len(orders)-1].Profile != "" {
					pebbletest.Problem(test.status, test.kind, test.detail, "")(w, r)
					return
				}
				pebbletest.Forward(w, r)
			})
			s := serve(t, cfg, tlsLn, acmetest.Listen(t))
			waitEnd(t, s)
			if got := ca.Orders(); got != test.orders || (s.Ready() == nil) == test.fails {
				t.Errorf("%d orders, Ready = %v, want %d", got, s.Ready(), test.orders)
			}
			if test.fails {
				return
			}
			if e := s.log.one("certificate profile not available"); e.level != slog.LevelWarn || !strings.Contains(e.attrs["reason"], test.detail) {
				t.Errorf("logged %v, want a warning with %q", e, test.detail)
			}
			acmetest.WaitFor(t, "renewal information", func() bool { return s.status(t, domain).Renewal != nil })
			if err := s.Renew(t.Context(), domain); err != nil {
				t.Fatal(err)
			}
			orders := ca.NewOrders()
			if last := orders[len(orders)-1]; last.Profile != "" || strings.Contains(test.detail, "profile") && last.Replaces == "" {
				t.Errorf("renewed by %+v, want what it replaces, and no profile", last)
			}
		})
	}
}

// An address that is configured later reaches the CA once. Without a new address, nothing is sent.
func TestContactLater(t *testing.T) {
	t.Parallel()
	tlsLn := acmetest.Listen(t)
	ca, cfg := startCA(t, pebbletest.Config{TLSPort: acmetest.Port(tlsLn)}, domain)
	s := serve(t, cfg, tlsLn, acmetest.Listen(t))
	s.waitReady(t)
	s.stop()
	client := clientOf(t, ca, s.issuers[0])
	if got := acctURL(t, client); len(got) != 1 {
		t.Fatalf("account %v, want one without a contact", got)
	}
	for i, email := range []string{"ops@example.com", "ops@example.com", "other@example.com"} {
		cfg.Email = email
		before := ca.Count(pebbletest.AccountPath)
		s := serve(t, cfg, tlsLn, acmetest.Listen(t))
		for range 2 {
			if err := s.Renew(t.Context(), domain); err != nil {
				t.Fatal(err)
			}
		}
		s.stop()
		want := 1
		if i == 1 {
			want = 0 // it is known already
		}
		if got := acctURL(t, client); len(got) != 2 || got[1] != "mailto:"+email || ca.Count(pebbletest.AccountPath)-before != want {
			t.Errorf("%s: account %v, %d updates, want the address and %d", email, got, ca.Count(pebbletest.AccountPath)-before, want)
		}
		pl := s.sites[0].authorities[0].plan
		pl.Issued = nil
		s.savePlan(s.sites[0], s.sites[0].authorities[0])
	}

	// A CA that refuses it gives a certificate all the same.
	cfg.Email = "refused@example.com"
	ca.Inject(pebbletest.AccountPath, 1, pebbletest.Problem(400, "invalidContact", "no such domain", ""))
	s = serve(t, cfg, tlsLn, acmetest.Listen(t))
	if err := s.Renew(t.Context(), domain); err != nil {
		t.Fatal(err)
	}
	if e := s.log.one("contact address not sent"); !strings.Contains(e.attrs["err"], "no such domain") {
		t.Errorf("logged %v, want the reason", e)
	}
}
