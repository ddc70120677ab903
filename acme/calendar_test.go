package acme

import (
	"net/http"
	"testing"
	"testing/synctest"
	"time"

	"plusminus/acme/pebbletest"
)

// A year of Let's Encrypt's coming profiles on fake time, with Pebble as the CA and autocert as its client. Visitors
// have a valid certificate all the time, each certificate costs one order, and a CA that reuses authorizations for a few
// hours only is asked to validate again. The certificates expire in that year, and the Managers that obtained them
// notice, but order nothing.
// https://letsencrypt.org/docs/profiles/
func TestCalendar(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		profile     string
		life, reuse time.Duration
	}{
		{"classic from 2027-02-10", 64 * day, 10 * day},
		{"tlsserver, and classic from 2028-02-16", 45 * day, 7 * time.Hour},
		{"shortlived", 160 * time.Hour, 7 * time.Hour},
	} {
		t.Run(test.profile, func(t *testing.T) {
			t.Parallel()
			// Outside of the bubble: Pebble cannot be stopped.
			ca, cfg := startCA(t, pebbletest.Config{AlwaysValid: true, AuthorizationReuse: 100, Profiles: map[string]time.Duration{"other": 90 * day, test.profile: test.life}}, domain)
			cfg.Profile, cfg.lookInterval = test.profile, 6*time.Hour
			log := &recorder{t: t}
			cfg.Logger = newLogger(log)
			dir := t.TempDir()
			pacePolls(t, ca)
			synctest.Test(t, func(t *testing.T) {
				validated := time.Time{}
				ca.Intercept(pebbletest.NewOrderPath, func(w http.ResponseWriter, r *http.Request) {
					if time.Since(validated) > test.reuse {
						ca.ExpireAuthorizations()
						validated = time.Now()
					}
					pebbletest.Forward(w, r)
				})
				p, stop := runInBubble(t, cfg, dir, ca)
				sleep(time.Hour)
				var renewed []time.Time
				serial := ""
				span := 365 * day
				if !*long {
					span = min(span, 8*test.life) // so that the first certificates have expired long before
				}
				for end := time.Now().Add(span); time.Now().Before(end); sleep(6 * time.Hour) {
					st := p.Status()[0]
					if st.Problem != "" {
						t.Fatalf("after %d certificates: %s", len(renewed), st.Problem)
					}
					if st.Serial != serial {
						serial, renewed = st.Serial, append(renewed, time.Now())
						if got := (st.NotAfter.Sub(st.NotBefore) + time.Second).Truncate(time.Minute); got != test.life {
							t.Fatalf("certificate lives %v, want %v", got, test.life)
						}
						// A refused finalize leaves an order with a valid authorization. The next attempt uses both, a minute later.
						if len(renewed) == 2 {
							ca.Inject(pebbletest.FinalizePath, 1, pebbletest.Problem(403, "caa", "forbidden today", ""))
						}
					}
				}
				stop()
				for i := 1; i < len(renewed); i++ {
					if age := renewed[i].Sub(renewed[i-1]); age < test.life/3 || age > test.life*19/20+6*time.Hour {
						t.Errorf("certificate %d was replaced after %v of %v", i, age, test.life)
					}
				}
				if got := ca.Orders(); got != len(renewed) {
					t.Errorf("%d orders for %d certificates", got, len(renewed))
				}
				if got := ca.Count(pebbletest.ChallengePath); got != len(renewed) {
					t.Errorf("%d validations for %d certificates, want one for each", got, len(renewed))
				}
				if got := len(log.logged("no certificate obtained")); got != 1 {
					t.Errorf("%d failed attempts, want the one that was refused", got)
				}
				t.Logf("%d certificates, %d orders, %d validations", len(renewed), ca.Orders(), ca.Count(pebbletest.ChallengePath))
			})
		})
	}
}
