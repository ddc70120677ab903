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

// A process that is killed many times, each time within a second of its start, while its orders take that
// long and its challenges fail, costs no more orders and failed validations than one that is left alone:
// those of one attempt.
func TestCrashLoop(t *testing.T) {
	t.Parallel()
	m, ca := newCertifiedProcess(t, pebbletest.Config{TLSPort: 1}) // where nobody answers
	patient, reference := newCertifiedProcess(t, pebbletest.Config{TLSPort: 1})
	for _, ca := range []*pebbletest.CA{ca, reference} {
		ca.Inject(pebbletest.NewOrderPath, -1, pebbletest.Delay(300*time.Millisecond, pebbletest.Forward))
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
	if got, want := ca.Orders(), reference.Orders(); got > want || want == 0 {
		t.Errorf("%d orders by a process that is killed, %d by one that is not", got, want)
	}
	if got, want := ca.FailedValidations(), reference.FailedValidations(); got > want || want == 0 {
		t.Errorf("%d failed validations of a process that is killed, %d of one that is not", got, want)
	}
	m.start()
	m.waitUp()
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(10 * time.Millisecond) {
		_, body := m.get("http://"+m.addrs.Admin+"/readyz", "")
		if strings.Contains(body, "next attempt at 20") {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("GET /readyz = %q, want when the next attempt is", body)
		}
	}
}
