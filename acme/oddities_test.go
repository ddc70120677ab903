package acme

import (
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"plusminus/acme/internal/acmetest"
	"plusminus/acme/pebbletest"
)

// Answers of real CAs that a client must survive, each with its price: the orders beyond the one that every
// certificate needs. None costs more than one.
func TestOddities(t *testing.T) {
	t.Parallel()
	// after injects a fault for the next n requests to path, once finalize has been answered.
	after := func(ca *pebbletest.CA, path string, n int, fault pebbletest.Fault) {
		ca.Inject(pebbletest.FinalizePath, 1, func(w http.ResponseWriter, r *http.Request) {
			ca.Inject(path, n, fault)
			pebbletest.Forward(w, r)
		})
	}
	lagging := pebbletest.Problem(404, "malformed", "No such resource", "")
	for _, test := range []struct {
		name  string
		fault func(*pebbletest.CA)
		more  int  // orders beyond the first
		fails bool // the first attempt fails, and the next one continues the order
		stop  bool // the process ends while its order is processing
	}{
		// https://go.dev/issue/52597
		{name: "finalize is answered with ready", fault: func(ca *pebbletest.CA) {
			ca.Inject(pebbletest.FinalizePath, 1, showing("ready"))
			ca.Inject(pebbletest.OrderPath, 1, pebbletest.Forward)
			ca.Inject(pebbletest.OrderPath, 3, showing("ready"))
		}},
		// https://go.dev/issue/77704
		{name: "finalize without Location", fault: func(ca *pebbletest.CA) {
			ca.Inject(pebbletest.FinalizePath, 1, func(w http.ResponseWriter, r *http.Request) {
				rec := httptest.NewRecorder()
				pebbletest.Forward(rec, r)
				rec.Header().Del("Location")
				send(w, rec, rec.Body.Bytes())
			})
		}},
		// https://github.com/cert-manager/cert-manager/issues/8939
		{name: "404 of the authorization from a replica that lags", fault: func(ca *pebbletest.CA) {
			ca.Inject(pebbletest.AuthorizationPath, 3, lagging)
		}, fails: true},
		{name: "404 of the challenge from a replica that lags", fault: func(ca *pebbletest.CA) {
			ca.Inject(pebbletest.ChallengePath, 3, lagging)
		}, fails: true},
		{name: "404 of the order from a replica that lags", fault: func(ca *pebbletest.CA) {
			ca.Inject(pebbletest.OrderPath, 3, lagging)
		}, fails: true, more: 1},
		{name: "404 of finalize from a replica that lags", fault: func(ca *pebbletest.CA) {
			ca.Inject(pebbletest.FinalizePath, 1, lagging)
		}},
		{name: "404 of the order after finalize", fault: func(ca *pebbletest.CA) {
			after(ca, pebbletest.OrderPath, 3, lagging)
		}},
		{name: "404 of the certificate from a replica that lags", fault: func(ca *pebbletest.CA) {
			ca.Inject(pebbletest.CertificatePath, 3, lagging)
		}},
		{name: "answer to finalize lost", fault: func(ca *pebbletest.CA) {
			ca.Inject(pebbletest.FinalizePath, 1, pebbletest.DropAnswer)
		}},
		{name: "neither an answer nor a nonce after finalize", fault: func(ca *pebbletest.CA) {
			ca.Inject(pebbletest.FinalizePath, 1, func(w http.ResponseWriter, r *http.Request) {
				ca.Inject(pebbletest.NewNoncePath, 4, pebbletest.Drop)
				ca.Inject(pebbletest.NewNoncePath, 5, pebbletest.HTML(502))
				pebbletest.DropAnswer(w, r)
			})
		}},
		{name: "finalize lost", fault: func(ca *pebbletest.CA) {
			ca.Inject(pebbletest.FinalizePath, 1, pebbletest.Drop)
		}},
		{name: "answers about the order lost after finalize", fault: func(ca *pebbletest.CA) {
			after(ca, pebbletest.OrderPath, 3, pebbletest.DropAnswer)
		}},
		{name: "answer with the certificate lost", fault: func(ca *pebbletest.CA) {
			ca.Inject(pebbletest.CertificatePath, 3, pebbletest.DropAnswer)
		}},
		{name: "503 after finalize", fault: func(ca *pebbletest.CA) {
			after(ca, pebbletest.OrderPath, 2, pebbletest.Problem(503, "serverInternal", "busy", "1"))
		}},
		{name: "processing for long", fault: func(ca *pebbletest.CA) {
			after(ca, pebbletest.OrderPath, 12, pebbletest.Processing(""))
		}},
		{name: "processing while the process ends", fault: func(ca *pebbletest.CA) {
			after(ca, pebbletest.OrderPath, 20, pebbletest.Processing(""))
		}, stop: true, more: 1}, // the key is lost
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			tlsLn := acmetest.Listen(t)
			ca, cfg := startCA(t, pebbletest.Config{TLSPort: acmetest.Port(tlsLn)}, domain)
			test.fault(ca)
			s := serve(t, cfg, tlsLn, acmetest.Listen(t))
			if test.stop {
				acmetest.WaitFor(t, "processing", func() bool { return ca.Count(pebbletest.OrderPath) > 5 })
				s.stop()
				s = serve(t, cfg, acmetest.Listen(t), acmetest.Listen(t)) // the first listener still answers challenges
			}
			waitEnd(t, s)
			for range 3 {
				if s.Ready() != nil && (test.stop || test.fails) {
					s.Renew(t.Context(), domain)
				}
			}
			s.waitReady(t)
			s.stop()
			left := s.status(t, domain).CAs[0].CertificatesLeft
			t.Logf("%d orders, %d failed validations, %d of %d certificates left", ca.Orders(), ca.FailedValidations(), left, maxIssued)
			wantLeft := maxIssued - 1
			if test.stop {
				wantLeft--
			}
			if want := 1 + test.more; ca.Orders() != want || left != wantLeft {
				t.Errorf("%d orders, %d certificates left, want %d and %d", ca.Orders(), left, want, wantLeft)
			}
			if e := s.log.logged("no certificate obtained"); len(e) > 0 && !test.stop && !test.fails {
				t.Errorf("logged %v, want no failure", e)
			}
			if got := ca.FailedValidations(); got != 0 {
				t.Errorf("%d failed validations, want none", got)
			}
			s.leaf(t, domain, ca.IssuingRoots)
		})
	}
}

// showing lets Pebble answer, but shows an order with the given status.
func showing(status string) pebbletest.Fault {
	return func(w http.ResponseWriter, r *http.Request) {
		rec := httptest.NewRecorder()
		pebbletest.Forward(rec, r)
		var order map[string]any
		body := rec.Body.Bytes()
		if json.Unmarshal(body, &order) == nil && rec.Code < 300 {
			order["status"] = status
			delete(order, "certificate")
			body, _ = json.Marshal(order)
		}
		send(w, rec, body)
	}
}

// send sends body with the header of rec.
func send(w http.ResponseWriter, rec *httptest.ResponseRecorder, body []byte) {
	for name, values := range rec.Header() {
		if !strings.EqualFold(name, "Content-Length") {
			w.Header()[name] = values
		}
	}
	w.WriteHeader(rec.Code)
	w.Write(body)
}
