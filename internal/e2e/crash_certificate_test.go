package e2e

import (
	"math/rand/v2"
	"net/http"
	"strings"
	"testing"
	"time"

	"plusminus/acme/pebbletest"
)

// The process is killed as the CA takes each of its requests, before the CA works on it or just after. The
// next process goes on where the first one was: no order is lost that the CA told of, no certificate that
// it made. Only an attempt of which nothing is known has to be made again, a minute later or when asked.
func TestKilledAtEachStep(t *testing.T) {
	t.Parallel()
	for _, at := range []struct {
		name, path string
		resumes    bool // the next process needs no new order and no wait
		lost       bool // what the CA did could not be known
	}{
		{"newAccount", pebbletest.NewAccountPath, false, false},
		{"newOrder", pebbletest.NewOrderPath, false, true},
		{"authorization", pebbletest.AuthorizationPath, true, false},
		{"challenge", pebbletest.ChallengePath, true, true}, // nobody answers: a failed validation
		{"order", pebbletest.OrderPath, true, false},
		{"finalize", pebbletest.FinalizePath, true, false},
		{"certificate", pebbletest.CertificatePath, true, false},
	} {
		for _, when := range []string{"before", "after"} {
			t.Run(at.name+" "+when, func(t *testing.T) {
				t.Parallel()
				m, ca := newCertifiedProcess(t, pebbletest.Config{})
				killed := make(chan struct{})
				ca.Inject(at.path, 1, func(w http.ResponseWriter, r *http.Request) {
					defer close(killed)
					m.kill()
					if when == "after" {
						pebbletest.DropAnswer(w, r)
					} else {
						pebbletest.Drop(w, r)
					}
				})
				m.start()
				<-killed
				m.start()
				m.waitUp()
				lost := at.lost && when == "after"
				if !at.resumes || lost {
					for deadline := time.Now().Add(time.Minute); !m.ready(); time.Sleep(100 * time.Millisecond) {
						// Perhaps it is still finding out that there is nothing to go on with.
						resp, body := m.post("http://"+m.addrs.Admin+"/renew", nil)
						if resp.StatusCode != 200 && time.Now().After(deadline) {
							t.Fatalf("POST /renew = %s %s", resp.Status, body)
						}
					}
				}
				m.waitReady()
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

				serial := m.serial("counter.test")
				m.kill()
				m.start()
				m.waitUp()
				m.waitReady() // it may have been killed between serving the certificate and storing it
				if got := m.serial("counter.test"); got != serial || ca.Orders() != want {
					t.Errorf("after another kill: serial %s, %d orders, want %s and %d", got, ca.Orders(), serial, want)
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
	m, ca := newCertifiedProcess(t, pebbletest.Config{TLSPort: 1}) // no server listens on this port
	patient, reference := newCertifiedProcess(t, pebbletest.Config{TLSPort: 1})
	for _, ca := range []*pebbletest.CA{ca, reference} {
		ca.Inject(pebbletest.NewOrderPath, -1, pebbletest.Delay(300*time.Millisecond, pebbletest.Forward))
	}
	// waitAttempt waits until the first attempt of a process has failed.
	waitAttempt := func(m *process) {
		t.Helper()
		m.waitUp()
		waitUntil(t, "/readyz to state the time of the next attempt", func() bool {
			_, body := m.get("http://"+m.addrs.Admin+"/readyz", "")
			return strings.Contains(body, "next attempt at 20")
		})
	}
	patient.start()
	kills := 8
	if *long {
		kills = 40
	}
	for range kills {
		m.start()
		time.Sleep(time.Duration(rand.Float64() * float64(time.Second/2)))
		m.kill()
	}
	waitAttempt(patient)
	if got, want := ca.Orders(), reference.Orders(); got > want || want == 0 {
		t.Errorf("the killed process made %d orders, the other one %d, want no more and not 0", got, want)
	}
	if got, want := ca.FailedValidations(), reference.FailedValidations(); got > want || want == 0 {
		t.Errorf("the killed process had %d failed validations, the other one %d, want no more and not 0", got, want)
	}
	m.start()
	waitAttempt(m)
}
