package e2e

import (
	"math/rand/v2"
	"net/http"
	"strings"
	"testing"
	"time"

	"plusminus/acme/pebbletest"
)

// TestKilledAtEachStep kills the process at each of its requests to the CA, before the CA handles the request or just
// after. The next process continues the open order, if the first one had received its address. It cannot use a certificate
// that the CA has issued, since its key was in the memory of the first process: that costs one more order. Otherwise
// it makes a new attempt a minute later, or when an operator asks for one.
func TestKilledAtEachStep(t *testing.T) {
	t.Parallel()
	for _, at := range []struct {
		name, path string
		resumes    bool   // the next process needs no new order and no wait
		lost       string // the kills that cost one more order: "after" the CA has handled the request, or "before" it, too
	}{
		{"newAccount", pebbletest.NewAccountPath, false, ""},
		{"newOrder", pebbletest.NewOrderPath, false, "after"}, // the order's URL is not known
		{"authorization", pebbletest.AuthorizationPath, true, ""},
		{"challenge", pebbletest.ChallengePath, true, "after"}, // no process answers the CA: a failed validation
		{"order", pebbletest.OrderPath, true, ""},
		{"finalize", pebbletest.FinalizePath, true, "after"}, // the key of the certificate is lost
		{"certificate", pebbletest.CertificatePath, true, "before after"},
	} {
		for _, when := range []string{"before", "after"} {
			t.Run(at.name+" "+when, func(t *testing.T) {
				t.Parallel()
				p, ca := newCertifiedProcess(t, pebbletest.Config{})
				killed := make(chan struct{})
				ca.Inject(at.path, 1, func(w http.ResponseWriter, r *http.Request) {
					defer close(killed)
					p.kill()
					if when == "after" {
						pebbletest.DropAnswer(w, r)
					} else {
						pebbletest.Drop(w, r)
					}
				})
				p.start()
				<-killed
				p.start()
				p.waitUp()
				lost := strings.Contains(at.lost, when)
				if !at.resumes || lost {
					for deadline := time.Now().Add(time.Minute); !p.ready(); time.Sleep(100 * time.Millisecond) {
						// The first requests may fail: the process still looks for an order to continue.
						resp, body := p.post("http://"+p.addrs.Admin+"/renew", nil)
						if resp.StatusCode != 200 && time.Now().After(deadline) {
							t.Fatalf("POST /renew = %s %s", resp.Status, body)
						}
					}
				}
				p.waitReady()
				want := 1
				if at.name == "newOrder" || lost {
					want = 2
				}
				if got := ca.Orders(); got != want {
					t.Errorf("%d orders, want %d", got, want)
				}
				failed := 0
				if at.name == "challenge" && lost {
					failed = 1
				}
				if got := ca.FailedValidations(); got != failed {
					t.Errorf("%d failed validations, want %d", got, failed)
				}

				serial := p.serial("counter.test")
				p.kill()
				p.start()
				p.waitUp()
				p.waitReady() // the kill may have come between serving the certificate and storing it
				if got := p.serial("counter.test"); got != serial || ca.Orders() != want {
					t.Errorf("after another kill: serial %s and %d orders, want %s and %d", got, ca.Orders(), serial, want)
				}
			})
		}
	}
}

// TestCrashLoop kills a process many times, each time within half a second of its start. Orders take longer than
// usual, and challenges fail. All its lives together make at most the orders and failed validations of one attempt
// of a process that nothing kills.
func TestCrashLoop(t *testing.T) {
	t.Parallel()
	p, ca := newCertifiedProcess(t, pebbletest.Config{TLSPort: 1}) // no server listens on this port
	patient, reference := newCertifiedProcess(t, pebbletest.Config{TLSPort: 1})
	for _, ca := range []*pebbletest.CA{ca, reference} {
		ca.Inject(pebbletest.NewOrderPath, -1, pebbletest.Delay(300*time.Millisecond, pebbletest.Forward))
	}
	// waitAttempt waits until the first attempt of a process has failed.
	waitAttempt := func(p *process) {
		t.Helper()
		p.waitUp()
		waitUntil(t, "/readyz to state the time of the next attempt", func() bool {
			_, body := p.get("http://"+p.addrs.Admin+"/readyz", "")
			return strings.Contains(body, "next attempt at 20")
		})
	}
	patient.start()
	kills := 8
	if *long {
		kills = 40
	}
	for range kills {
		p.start()
		time.Sleep(time.Duration(rand.Float64() * float64(time.Second/2)))
		p.kill()
	}
	waitAttempt(patient)
	if got, want := ca.Orders(), reference.Orders(); got > want || want == 0 {
		t.Errorf("the killed process made %d orders, the other one %d, want no more and not 0", got, want)
	}
	if got, want := ca.FailedValidations(), reference.FailedValidations(); got > want || want == 0 {
		t.Errorf("the killed process had %d failed validations, the other one %d, want no more and not 0", got, want)
	}
	p.start()
	waitAttempt(p)
}
