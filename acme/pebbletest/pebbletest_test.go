package pebbletest

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/miekg/dns"
	"golang.org/x/crypto/acme"
)

const patience = 20 * time.Second // how long a test waits for something that must happen

// TestMain fails if a goroutine is left when the tests have ended, and with them all CAs.
func TestMain(m *testing.M) {
	code := m.Run()
	if code == 0 {
		http.DefaultTransport.(*http.Transport).CloseIdleConnections()
		if left := leaked(); left != nil {
			fmt.Fprintf(os.Stderr, "%d goroutines left:\n\n%s\n", len(left), strings.Join(left, "\n\n"))
			code = 1
		}
	}
	os.Exit(code)
}

// leaked returns the goroutines that do not end, except its own and Pebble's processTasks.
func leaked() (left []string) {
	for deadline := time.Now().Add(5 * time.Second); time.Now().Before(deadline); time.Sleep(10 * time.Millisecond) {
		buf := make([]byte, 4<<20)
		left = nil
		for g := range strings.SplitSeq(string(buf[:runtime.Stack(buf, true)]), "\n\n") {
			if !strings.Contains(g, "va.VAImpl.processTasks") && !strings.Contains(g, "pebbletest.TestMain") && !strings.Contains(g, "os/signal.") {
				left = append(left, g)
			}
		}
		if left == nil {
			return nil
		}
	}
	return left
}

// A client is a client of one CA. It repeats only requests that met a badNonce, and polls without waits.
type client struct {
	*acme.Client
	t  testing.TB
	ca *CA

	mu sync.Mutex
	// Guarded by mu.
	retryAfter []string // the headers so far
}

func newClient(t testing.TB, ca *CA) *client {
	t.Helper()
	transport := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: ca.DirectoryRoots}}
	t.Cleanup(transport.CloseIdleConnections)
	c := &client{t: t, ca: ca}
	c.Client = &acme.Client{
		Key:          newKey(t),
		DirectoryURL: ca.DirectoryURL,
		UserAgent:    "test",
		RetryBackoff: func(n int, _ *http.Request, res *http.Response) time.Duration {
			if res.StatusCode == http.StatusBadRequest && n < 50 {
				return time.Millisecond
			}
			return 0
		},
	}
	c.HTTPClient = &http.Client{Transport: roundTripper(func(r *http.Request) (*http.Response, error) {
		res, err := transport.RoundTrip(r)
		if err != nil {
			return nil, err
		}
		if after := res.Header.Get("Retry-After"); after != "" {
			c.mu.Lock()
			c.retryAfter = append(c.retryAfter, after)
			c.mu.Unlock()
		}
		if res.StatusCode == http.StatusOK && r.Method == http.MethodPost {
			time.Sleep(2 * time.Millisecond)
			res.Header.Set("Retry-After", time.Unix(0, 0).UTC().Format(http.TimeFormat)) // else x/crypto waits a second
		}
		return res, nil
	})}
	return c
}

type roundTripper func(*http.Request) (*http.Response, error)

func (f roundTripper) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

func newKey(t testing.TB) *ecdsa.PrivateKey {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

// registered returns a client with an account.
func registered(t testing.TB, ca *CA) *client {
	t.Helper()
	c := newClient(t, ca)
	if err := c.register(t.Context()); err != nil {
		t.Fatal(err)
	}
	return c
}

func (c *client) register(ctx context.Context) error {
	_, err := c.Register(ctx, new(acme.Account), acme.AcceptTOS)
	return err
}

// authorize accepts the challenge of the given type for all authorizations of order that are not yet valid,
// and waits for them.
func (c *client) authorize(ctx context.Context, order *acme.Order, challenge string) error {
	var pending []string
	for _, url := range order.AuthzURLs {
		authz, err := c.GetAuthorization(ctx, url)
		if err != nil {
			return err
		}
		if authz.Status == acme.StatusValid {
			continue
		}
		i := slices.IndexFunc(authz.Challenges, func(ch *acme.Challenge) bool { return ch.Type == challenge })
		if _, err := c.Accept(ctx, authz.Challenges[i]); err != nil {
			return err
		}
		pending = append(pending, url)
	}
	for _, url := range pending {
		if _, err := c.WaitAuthorization(ctx, url); err != nil {
			return err
		}
	}
	return nil
}

// issue gets a certificate for name by the challenge, and returns its chain.
func (c *client) issue(ctx context.Context, name, challenge string) ([]*x509.Certificate, error) {
	order, err := c.AuthorizeOrder(ctx, acme.DomainIDs(name))
	if err != nil {
		return nil, err
	}
	if err := c.authorize(ctx, order, challenge); err != nil {
		return nil, err
	}
	csr, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{DNSNames: []string{name}}, newKey(c.t))
	if err != nil {
		return nil, err
	}
	der, _, err := c.CreateCertFromOrder(ctx, order, csr, true)
	if err != nil {
		return nil, err
	}
	return x509.ParseCertificates(slices.Concat(der...))
}

// mustIssue is issue for a CA with AlwaysValid.
func (c *client) mustIssue(name string) *x509.Certificate {
	c.t.Helper()
	chain, err := c.issue(c.t.Context(), name, "http-01")
	if err != nil {
		c.t.Fatal(err)
	}
	return chain[0]
}

// get fetches path. If the body is cut, it returns the part that arrived.
func (c *client) get(ctx context.Context, path string) (*http.Response, string, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, strings.TrimSuffix(c.ca.DirectoryURL, DirectoryPath)+path, nil)
	if err != nil {
		return nil, "", err
	}
	req.Header.Set("User-Agent", "test")
	res, err := c.HTTPClient.Do(req)
	if err != nil {
		return nil, "", err
	}
	defer res.Body.Close()
	body, err := io.ReadAll(res.Body)
	return res, string(body), err
}

// renewalInfo fetches the renewal info of cert. It fails the test if the answer does not conform to RFC 9773.
func (c *client) renewalInfo(ctx context.Context, cert *x509.Certificate) (start, end time.Time, explanation string, err error) {
	id := base64.RawURLEncoding.EncodeToString(cert.AuthorityKeyId) + "." +
		base64.RawURLEncoding.EncodeToString(cert.SerialNumber.Bytes()) // Pebble's are never negative in DER
	var info struct {
		SuggestedWindow struct{ Start, End time.Time }
		ExplanationURL  string
	}
	res, body, err := c.get(ctx, RenewalInfoPath+id)
	if err == nil && res.StatusCode != http.StatusOK {
		err = errors.New(res.Status)
	}
	if err == nil {
		err = json.Unmarshal([]byte(body), &info)
	}
	return info.SuggestedWindow.Start, info.SuggestedWindow.End, info.ExplanationURL, err
}

// kind returns the type of the CA's problem, without its prefix.
func kind(err error) string {
	var e *acme.Error
	if !errors.As(err, &e) {
		return ""
	}
	return strings.TrimPrefix(e.ProblemType, "urn:ietf:params:acme:error:")
}

func waitFor(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(patience); !ok(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("no %s within %v", what, patience)
		}
	}
}

// A failures is a [testing.TB] that records whether it failed.
type failures struct {
	testing.TB
	n atomic.Int32
}

func (f *failures) Errorf(string, ...any) { f.n.Add(1) }

// TestSteps injects each fault into each step. The client must fail in that step, send nothing further, and succeed
// when the fault is lifted. This also shows that the path constants are right.
func TestSteps(t *testing.T) {
	t.Parallel()
	faults := []struct {
		name  string
		fault Fault
	}{
		{"hang", Hang},
		{"drop", Drop},
		{"drop answer", DropAnswer},
		{"truncate", Truncate},
		{"garbage", Garbage},
		{"html", HTML(http.StatusServiceUnavailable)},
		{"problem", Problem(http.StatusForbidden, "unauthorized", "no", "")},
		{"late", Delay(5*time.Millisecond, Drop)},
	}
	for _, path := range []string{DirectoryPath, NewNoncePath, NewAccountPath, NewOrderPath, AuthorizationPath,
		ChallengePath, FinalizePath, OrderPath, CertificatePath, RenewalInfoPath} {
		t.Run(strings.Trim(path, "/"), func(t *testing.T) {
			t.Parallel()
			ca := Start(t, Config{AlwaysValid: true})
			everything := func(ctx context.Context) error {
				c := newClient(t, ca)
				if err := c.register(ctx); err != nil {
					return err
				}
				chain, err := c.issue(ctx, "a.example.com", "http-01")
				if err == nil {
					_, _, _, err = c.renewalInfo(ctx, chain[0])
				}
				return err
			}
			for _, f := range faults {
				ctx, cancel := context.WithCancel(t.Context())
				before := ca.Count(path)
				lift := ca.Inject(path, -1, func(w http.ResponseWriter, r *http.Request) {
					if f.name == "hang" {
						time.AfterFunc(30*time.Millisecond, cancel)
					} else {
						time.AfterFunc(300*time.Millisecond, cancel) // x/crypto polls again after an answer that it cannot parse
					}
					f.fault(w, r)
				})
				err := everything(ctx)
				if err == nil {
					t.Errorf("%s: got a certificate, want an error", f.name)
				}
				all := ca.Requests()
				if path != NewNoncePath { // which is the first request
					all = slices.DeleteFunc(all, func(r Request) bool { return r.Path == NewNoncePath })
				}
				if last := all[len(all)-1].Path; !match(path, last) || ca.Count(path) == before {
					t.Errorf("%s: last request went to %s, want %s", f.name, last, path)
				}
				// A HEAD has no body to say so.
				if f.name == "problem" && path != NewNoncePath && path != RenewalInfoPath && kind(err) != "unauthorized" {
					t.Errorf("%s: %v, want unauthorized", f.name, err)
				}
				lift()
				cancel()
			}
			if err := everything(t.Context()); err != nil {
				t.Errorf("lifted: %v", err)
			}
		})
	}
}

// TestDrop checks which dropped requests Pebble has seen.
func TestDrop(t *testing.T) {
	t.Parallel()
	ca := Start(t, Config{})
	for name, tt := range map[string]struct {
		fault Fault
		want  error
	}{
		"drop":        {Drop, nil},
		"hang":        {Hang, nil},
		"drop answer": {DropAnswer, acme.ErrAccountAlreadyExists},
		"truncate":    {Truncate, acme.ErrAccountAlreadyExists},
		"garbage":     {Garbage, nil},
	} {
		c := newClient(t, ca)
		ctx, cancel := context.WithCancel(t.Context())
		ca.Inject(NewAccountPath, 1, func(w http.ResponseWriter, r *http.Request) {
			time.AfterFunc(50*time.Millisecond, cancel) // ends what hangs
			tt.fault(w, r)
		})
		if err := c.register(ctx); err == nil {
			t.Errorf("%s: first newAccount succeeded", name)
		}
		cancel()
		if err := c.register(t.Context()); err != tt.want {
			t.Errorf("%s: second newAccount = %v, want %v", name, err, tt.want)
		}
	}
}

func TestAnswers(t *testing.T) {
	t.Parallel()
	ca := Start(t, Config{})
	c := newClient(t, ca)
	_, whole, err := c.get(t.Context(), DirectoryPath)
	if err != nil {
		t.Fatal(err)
	}

	ca.Inject(DirectoryPath, 1, Truncate)
	res, body, err := c.get(t.Context(), DirectoryPath)
	if err != io.ErrUnexpectedEOF || body != whole[:len(whole)/2] || res.StatusCode != http.StatusOK {
		t.Errorf("Truncate: %d of %d bytes, %v", len(body), len(whole), err)
	}

	ca.Inject(DirectoryPath, 1, Garbage)
	if res, body, err := c.get(t.Context(), DirectoryPath); err != nil || res.StatusCode != 200 || json.Valid([]byte(body)) {
		t.Errorf("Garbage: %v %q %v", res, body, err)
	}

	ca.Inject(DirectoryPath, 1, HTML(502))
	if res, body, err := c.get(t.Context(), DirectoryPath); err != nil || res.StatusCode != 502 ||
		res.Header.Get("Content-Type") != "text/html" || !strings.Contains(body, "Bad Gateway") {
		t.Errorf("HTML: %v %q %v", res, body, err)
	}

	const d = 50 * time.Millisecond
	ca.Inject(DirectoryPath, 1, Delay(d, Forward))
	begin := time.Now()
	if _, body, err := c.get(t.Context(), DirectoryPath); err != nil || body != whole || time.Since(begin) < d {
		t.Errorf("Delay: %q %v after %v", body, err, time.Since(begin))
	}

	ca.Inject(NewAccountPath, 1, Problem(429, "rateLimited", "too many", "7200"))
	var e *acme.Error
	if err := c.register(t.Context()); !errors.As(err, &e) || e.StatusCode != 429 || kind(err) != "rateLimited" ||
		e.Detail != "too many" || e.Header.Get("Retry-After") != "7200" {
		t.Errorf("Problem: %v", err)
	}
}

// TestInject checks which request gets which Fault.
func TestInject(t *testing.T) {
	t.Parallel()
	ca := Start(t, Config{})
	c := newClient(t, ca)
	status := func(path string) int {
		t.Helper()
		res, _, err := c.get(t.Context(), path)
		if err != nil {
			t.Fatal(err)
		}
		return res.StatusCode
	}
	expect := func(want ...int) {
		t.Helper()
		var got []int
		for range want {
			got = append(got, status(DirectoryPath))
		}
		if !slices.Equal(got, want) {
			t.Errorf("answers %v, want %v", got, want)
		}
	}

	ca.Inject(DirectoryPath, 2, Forward)
	ca.Inject(DirectoryPath, 1, HTML(501))
	lift := ca.Inject(DirectoryPath, -1, HTML(502))
	expect(200, 200, 501, 502, 502)
	if got := status(NewNoncePath); got != 204 {
		t.Errorf("newNonce: %d, want 204", got)
	}
	ca.Intercept(DirectoryPath, HTML(503))
	expect(502)
	lift()
	lift()
	expect(503, 503)
	ca.Intercept(AnyPath, HTML(504))
	expect(503)
	if got := status(NewNoncePath); got != 504 {
		t.Errorf("newNonce: %d, want 504", got)
	}
	ca.Intercept(DirectoryPath, nil)
	expect(504)
	ca.Intercept(AnyPath, nil)
	expect(200)
	ca.Inject(AnyPath, 1, HTML(505))()
	expect(200)
	if got := ca.Count(DirectoryPath); got != 12 {
		t.Errorf("Count = %d, want 12", got)
	}

	// Of many concurrent requests, exactly n get the Fault.
	ca.Inject(DirectoryPath, 5, HTML(506))
	var wg sync.WaitGroup
	var hit atomic.Int32
	for range 20 {
		wg.Go(func() {
			if res, _, err := c.get(t.Context(), DirectoryPath); err != nil {
				t.Error(err)
			} else if res.StatusCode == 506 {
				hit.Add(1)
			}
		})
	}
	wg.Wait()
	if hit.Load() != 5 {
		t.Errorf("%d of 20 answers were injected, want 5", hit.Load())
	}
}

func TestHang(t *testing.T) {
	t.Parallel()
	ca := Start(t, Config{})
	c := newClient(t, ca)
	ctx, cancel := context.WithCancel(t.Context())
	over := make(chan struct{}, 2)
	ca.Inject(AnyPath, 2, func(w http.ResponseWriter, r *http.Request) {
		cancel()
		defer func() { over <- struct{}{} }()
		Hang(w, r)
	})

	if _, _, err := c.get(ctx, DirectoryPath); !errors.Is(err, context.Canceled) {
		t.Errorf("get = %v, want %v", err, context.Canceled)
	}
	select {
	case <-over:
	case <-time.After(patience):
		t.Fatal("Hang did not notice that the client gave up")
	}

	failed := make(chan error)
	go func() {
		_, _, err := c.get(t.Context(), DirectoryPath)
		failed <- err
	}()
	waitFor(t, "second request", func() bool { return ca.Count(DirectoryPath) == 2 })
	begin := time.Now()
	ca.Stop()
	if d := time.Since(begin); d > 3*time.Second {
		t.Errorf("Stop took %v", d)
	}
	if err := <-failed; err == nil {
		t.Error("the CA stopped, and the request succeeded")
	}
	ca.Stop()
	for _, addr := range []string{strings.TrimSuffix(strings.TrimPrefix(ca.DirectoryURL, "https://"), DirectoryPath), ca.DNSAddr()} {
		if conn, err := net.Dial("tcp", addr); err == nil {
			conn.Close()
			t.Errorf("%s still accepts", addr)
		}
	}
}

// TestEnvironment starts CAs with different Configs at the same time.
func TestEnvironment(t *testing.T) {
	t.Parallel()
	var wg sync.WaitGroup
	for i := range 12 {
		wg.Go(func() {
			cfg := Config{NonceReject: 100 * (i % 2), AlwaysValid: i%3 == 0}
			ca := Start(t, cfg)
			c := newClient(t, ca)
			err := c.register(t.Context())
			if want := []string{"", "badNonce"}[i%2]; kind(err) != want || (err != nil) != (want != "") {
				t.Errorf("NonceReject %d: newAccount = %v", cfg.NonceReject, err)
			}
			if cfg.NonceReject > 0 {
				return
			}
			if _, err := c.issue(t.Context(), "a.example.com", "http-01"); (err == nil) != cfg.AlwaysValid {
				t.Errorf("AlwaysValid %v: issue = %v", cfg.AlwaysValid, err)
			}
		})
	}
	// Making a CA takes too little time for two to overlap by chance; this makes them overlap.
	for i := range 10 {
		wg.Go(func() {
			withEnvironment(map[string]string{"PEBBLE_TEST": fmt.Sprint(i)}, func() {
				time.Sleep(time.Millisecond)
				if got := os.Getenv("PEBBLE_TEST"); got != fmt.Sprint(i) {
					t.Errorf("PEBBLE_TEST is %q, want %d", got, i)
				}
			})
		})
	}
	wg.Wait()
	environmentMu.Lock()
	defer environmentMu.Unlock()
	for _, v := range os.Environ() {
		if strings.HasPrefix(v, "PEBBLE_") {
			t.Errorf("%s is left in the environment", v)
		}
	}
}

func TestNonceReject(t *testing.T) {
	t.Parallel()
	ca := Start(t, Config{NonceReject: 50})
	c := registered(t, ca)
	const orders = 20
	for range orders {
		if _, err := c.AuthorizeOrder(t.Context(), acme.DomainIDs("a.example.com")); err != nil {
			t.Fatal(err)
		}
	}
	// None is refused in 1 of 2^20 cases.
	if got := ca.Orders(); got <= orders {
		t.Errorf("%d requests for %d orders, want more", got, orders)
	}
}

func TestAuthorizationReuse(t *testing.T) {
	t.Parallel()
	for _, reuse := range []int{0, 100} {
		ca := Start(t, Config{AlwaysValid: true, AuthorizationReuse: reuse})
		c := registered(t, ca)
		c.mustIssue("a.example.com")
		want, n := acme.StatusReady, 10
		if reuse == 0 {
			want, n = acme.StatusPending, 200 // plain Pebble would answer 2 of them as ready
		}
		for range n {
			order, err := c.AuthorizeOrder(t.Context(), acme.DomainIDs("a.example.com"))
			if err != nil {
				t.Fatal(err)
			}
			if order.Status != want {
				t.Fatalf("AuthorizationReuse %d: order is %s, want %s", reuse, order.Status, want)
			}
		}
	}
}

func TestValidationSleep(t *testing.T) {
	t.Parallel()
	c := registered(t, Start(t, Config{AlwaysValid: true, ValidationSleep: time.Second}))
	// Three validations of six names each: that none draws a second happens in 1 of 2^18 cases.
	order, err := c.AuthorizeOrder(t.Context(), acme.DomainIDs("a.test", "b.test", "c.test", "d.test", "e.test", "f.test"))
	if err != nil {
		t.Fatal(err)
	}
	begin := time.Now()
	if err := c.authorize(t.Context(), order, "http-01"); err != nil {
		t.Fatal(err)
	}
	if d := time.Since(begin); d < time.Second {
		t.Errorf("validations took %v, want a second", d)
	}
}

func TestStrict(t *testing.T) {
	t.Parallel()
	for _, strict := range []bool{false, true} {
		c := registered(t, Start(t, Config{Strict: strict}))
		order, err := c.AuthorizeOrder(t.Context(), acme.DomainIDs("a.example.com"))
		if err != nil {
			t.Fatal(err)
		}
		// x/crypto says "resource", as ACME v1 had it.
		err = c.RevokeAuthorization(t.Context(), order.AuthzURLs[0])
		if strict && kind(err) != "malformed" || !strict && err != nil {
			t.Errorf("Strict %v: RevokeAuthorization = %v", strict, err)
		}
	}
}

func TestBlockedDomains(t *testing.T) {
	t.Parallel()
	c := registered(t, Start(t, Config{BlockedDomains: []string{"www.blocked.test"}}))
	for name, want := range map[string]string{
		"www.blocked.test": "rejectedIdentifier", "below.www.blocked.test": "rejectedIdentifier", "other.blocked.test": "",
	} {
		if _, err := c.AuthorizeOrder(t.Context(), acme.DomainIDs(name)); kind(err) != want || (err != nil) != (want != "") {
			t.Errorf("order for %s = %v, want %q", name, err, want)
		}
	}
	// Pebble compares label by label and does not check that there is another label.
	if _, err := c.AuthorizeOrder(t.Context(), acme.DomainIDs("blocked.test")); err == nil || kind(err) != "" {
		t.Errorf("order for blocked.test = %v, want a cut connection", err)
	}
}

// TestRetryAfter delays a validation to see it pending. The validation fails in the end and is counted.
func TestRetryAfter(t *testing.T) {
	t.Parallel()
	ln, err := net.Listen("tcp", "127.0.0.1:0") // accepts connections and sends nothing
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	ca := Start(t, Config{TLSPort: ln.Addr().(*net.TCPAddr).Port, RetryAfterAuthorization: 7 * time.Second})
	c := registered(t, ca)
	order, err := c.AuthorizeOrder(t.Context(), acme.DomainIDs("a.example.com"))
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	defer wg.Wait()
	wg.Go(func() {
		for begin := time.Now(); time.Since(begin) < patience; time.Sleep(time.Millisecond) {
			c.mu.Lock()
			seen := len(c.retryAfter) > 0
			c.mu.Unlock()
			if seen {
				break
			}
		}
		ln.Close() // which ends the validation
	})
	var e *acme.AuthorizationError
	if err := c.authorize(t.Context(), order, "tls-alpn-01"); !errors.As(err, &e) {
		t.Errorf("authorization = %v, want it to fail", err)
	}
	checkRetryAfter(t, c.retryAfter, 7*time.Second)
	if got := ca.FailedValidations(); got != 1 {
		t.Errorf("FailedValidations = %d, want 1", got)
	}

	wg.Wait()

	good := Start(t, Config{AlwaysValid: true, RetryAfterOrder: 9 * time.Second})
	issued := registered(t, good)
	issued.mustIssue("a.example.com")
	checkRetryAfter(t, issued.retryAfter, 9*time.Second)
	if got := good.FailedValidations(); got != 0 {
		t.Errorf("FailedValidations = %d, want 0", got)
	}
}

func checkRetryAfter(t testing.TB, got []string, want time.Duration) {
	t.Helper()
	if len(got) == 0 {
		t.Errorf("no Retry-After, want %v", want)
	}
	for _, v := range got {
		date, err := http.ParseTime(v)
		if v != fmt.Sprint(want.Seconds()) && (err != nil || time.Until(date) > want || time.Until(date) < want-patience) {
			t.Errorf("Retry-After = %q, want %v", v, want)
		}
	}
}

func TestProcessing(t *testing.T) {
	t.Parallel()
	ca := Start(t, Config{AlwaysValid: true})
	c := registered(t, ca)
	ca.Inject(OrderPath, 1, Processing("3"))
	ca.Inject(OrderPath, 2, Processing(""))
	c.mustIssue("a.example.com")
	if got := ca.Count(OrderPath); got < 4 {
		t.Errorf("order polled %d times, want 4 or, if Pebble takes its time, more", got)
	}
	if !slices.Equal(c.retryAfter, []string{"3"}) {
		t.Errorf("Retry-After = %q, want 3", c.retryAfter)
	}
}

func TestIntermediates(t *testing.T) {
	t.Parallel()
	for given, want := range map[int]int{0: 1, 1: 1, 3: 3} {
		ca := Start(t, Config{AlwaysValid: true, Intermediates: given})
		chain, err := registered(t, ca).issue(t.Context(), "a.example.com", "http-01")
		if err != nil {
			t.Fatal(err)
		}
		pool := x509.NewCertPool()
		for _, cert := range chain[1:] {
			pool.AddCert(cert)
		}
		verified, err := chain[0].Verify(x509.VerifyOptions{DNSName: "a.example.com", Roots: ca.IssuingRoots, Intermediates: pool})
		if err != nil || len(chain) != want+1 || len(verified[0]) != want+2 {
			t.Errorf("Intermediates %d: chain of %d, Verify = %v, want chain of %d", given, len(chain), err, want+1)
		}
	}
}

func TestRenewalInfo(t *testing.T) {
	t.Parallel()
	ca := Start(t, Config{AlwaysValid: true})
	c := registered(t, ca)
	cert := c.mustIssue("a.example.com")
	check := func(what string, wantStart, wantEnd time.Time, wantURL string) {
		t.Helper()
		start, end, url, err := c.renewalInfo(t.Context(), cert)
		if err != nil || !start.Round(time.Second).Equal(wantStart) || !end.Round(time.Second).Equal(wantEnd) || url != wantURL {
			t.Errorf("%s: %v to %v, %q, %v; want %v to %v, %q", what, start, end, url, err, wantStart, wantEnd, wantURL)
		}
	}
	ideal := cert.NotAfter.Add(-cert.NotAfter.Add(time.Second).Sub(cert.NotBefore) / 3).Round(time.Second)
	own := func(what string) {
		t.Helper()
		check(what, ideal.Add(-24*time.Hour), ideal.Add(24*time.Hour), "")
	}
	own("new")
	if !slices.Equal(c.retryAfter, []string{"21600"}) {
		t.Errorf("Retry-After = %q, want 6 h", c.retryAfter)
	}
	start := time.Now().Add(time.Minute).Truncate(time.Second)
	ca.SetRenewalInfo(cert, start, start.Add(time.Hour), "https://example.com/why")
	check("set", start, start.Add(time.Hour), "https://example.com/why")
	ca.SetRenewalInfo(cert, start, start.Add(-time.Hour), "")
	check("set to what is invalid", start, start.Add(-time.Hour), "")
	ca.SetRenewalInfoBody(cert, "nonsense")
	if _, _, _, err := c.renewalInfo(t.Context(), cert); err == nil {
		t.Error("nonsense was not sent as it is")
	}
	ca.ClearRenewalInfo(cert)
	own("cleared")

	if ca.Revoked(cert) {
		t.Error("Revoked before Revoke")
	}
	ca.Revoke(cert)
	if !ca.Revoked(cert) {
		t.Error("not Revoked after Revoke")
	}
	if _, end, _, err := c.renewalInfo(t.Context(), cert); err != nil || !end.Before(time.Now()) {
		t.Errorf("revoked: window ends %v, %v; want the past", end, err)
	}
	if other := c.mustIssue("b.example.com"); ca.Revoked(other) {
		t.Error("another certificate is Revoked")
	} else if err := c.RevokeCert(t.Context(), nil, other.Raw, acme.CRLReasonSuperseded); err != nil || !ca.Revoked(other) {
		t.Errorf("after RevokeCert = %v, Revoked = %v", err, ca.Revoked(other))
	}

	// Set and fetched at the same time, for -race.
	var wg sync.WaitGroup
	done := make(chan struct{})
	wg.Go(func() {
		for {
			select {
			case <-done:
				return
			default:
				ca.SetRenewalInfo(cert, start, start.Add(time.Hour), "")
			}
		}
	})
	for range 50 {
		if _, _, _, err := c.renewalInfo(t.Context(), cert); err != nil {
			t.Error(err)
		}
	}
	close(done)
	wg.Wait()

	tb := &failures{TB: t}
	another := Start(tb, Config{})
	another.SetRenewalInfo(cert, start, start, "")
	another.Revoke(cert)
	if tb.n.Load() != 2 {
		t.Errorf("a certificate of another CA failed the test %d times, want 2", tb.n.Load())
	}
}

func TestRequests(t *testing.T) {
	t.Parallel()
	ca := Start(t, Config{AlwaysValid: true, Profiles: map[string]time.Duration{"short": time.Hour}})
	c := registered(t, ca)
	if _, err := c.AuthorizeOrder(t.Context(), acme.DomainIDs("b.test", "a.test"), acme.WithOrderIssuanceProfile("short")); err != nil {
		t.Fatal(err)
	}
	ca.Inject(NewOrderPath, 1, Drop)
	c.AuthorizeOrder(t.Context(), acme.IPIDs("127.0.0.1"))
	// x/crypto does not support "replaces", so this request is not signed. It is recorded, too.
	payload := base64.RawURLEncoding.EncodeToString([]byte(`{"replaces":"AKI.serial"}`))
	for _, body := range []string{`{"payload":"` + payload + `"}`, "nonsense"} {
		res, err := c.HTTPClient.Post(strings.TrimSuffix(ca.DirectoryURL, DirectoryPath)+NewOrderPath, "application/jose+json", strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		res.Body.Close()
	}
	if got, want := fmt.Sprint(ca.NewOrders()), fmt.Sprint([]NewOrder{
		{Identifiers: []Identifier{{"dns", "b.test"}, {"dns", "a.test"}}, Profile: "short"},
		{Identifiers: []Identifier{{"ip", "127.0.0.1"}}},
		{Replaces: "AKI.serial"},
		{},
	}); got != want {
		t.Errorf("NewOrders = %s, want %s", got, want)
	}
	if ca.Orders() != 4 || ca.Count(NewOrderPath) != 4 || ca.Count(FinalizePath) != 0 || ca.Count(AnyPath) != len(ca.Requests()) {
		t.Errorf("Orders = %d, Count = %d; want 4", ca.Orders(), ca.Count(NewOrderPath))
	}
	var paths []string
	for _, r := range ca.Requests() {
		paths = append(paths, r.Method+" "+r.Path)
	}
	want := []string{"GET " + DirectoryPath, "HEAD " + NewNoncePath, "POST " + NewAccountPath, "POST " + NewOrderPath}
	if !slices.Equal(paths[:4], want) {
		t.Errorf("Requests = %q, want %q first", paths, want)
	}
	if r := ca.Requests()[2]; !strings.Contains(string(r.Payload), "termsOfServiceAgreed") || time.Since(r.At) > time.Minute {
		t.Errorf("newAccount is %q at %v", r.Payload, r.At)
	}
}

func TestShiftDate(t *testing.T) {
	t.Parallel()
	ca := Start(t, Config{})
	c := newClient(t, ca)
	check := func(want time.Duration) {
		t.Helper()
		res, _, err := c.get(t.Context(), DirectoryPath)
		if err != nil {
			t.Fatal(err)
		}
		date, err := http.ParseTime(res.Header.Get("Date"))
		if got := time.Until(date) - want; err != nil || got.Abs() > patience || len(res.Header["Date"]) != 1 {
			t.Errorf("Date = %q, want %v from now", res.Header["Date"], want)
		}
	}
	check(0)
	ca.ShiftDate(25 * time.Hour)
	check(25 * time.Hour)
	ca.Inject(DirectoryPath, 1, HTML(503))
	check(25 * time.Hour)
	ca.ShiftDate(-time.Hour)
	check(-time.Hour)
	ca.ShiftDate(0)
	check(0)
}

// TestDNS validates at an address that only the records name.
func TestDNS(t *testing.T) {
	t.Parallel()
	ln, err := net.Listen("tcp", "127.0.0.2:0")
	if err != nil {
		t.Skip(err) // not all systems have all of 127/8
	}
	ca := Start(t, Config{HTTPPort: ln.Addr().(*net.TCPAddr).Port, DNS: map[string]DNSRecords{
		// Pebble ignores a CAA record that permits no CA.
		"set.example.com":  {A: []string{"127.0.0.2"}, CAA: []string{`0 issue ";"`}},
		"none.example.com": {},
	}})
	c := registered(t, ca)
	server := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		answer, err := c.HTTP01ChallengeResponse(r.URL.Path[strings.LastIndexByte(r.URL.Path, '/')+1:])
		if err != nil {
			t.Error(err)
		}
		io.WriteString(w, answer)
	})}
	var wg sync.WaitGroup
	wg.Go(func() { server.Serve(ln) })
	defer wg.Wait()
	defer server.Close()

	for i, tt := range []struct {
		name, fails string
	}{
		{"set.example.com", ""},
		{"unset.example.com", "connection refused"},
		{"none.example.com", "could not resolve"},
	} {
		_, err := c.issue(t.Context(), tt.name, "http-01")
		var e *acme.AuthorizationError
		if tt.fails == "" && err != nil || tt.fails != "" && (!errors.As(err, &e) || !strings.Contains(e.Error(), tt.fails)) {
			t.Errorf("%s: %v, want %q", tt.name, err, tt.fails)
		}
		if got := ca.FailedValidations(); got != i {
			t.Errorf("%s: FailedValidations = %d, want %d", tt.name, got, i)
		}
	}
	ca.SetDNS("Late.example.com.", DNSRecords{A: []string{"127.0.0.2"}})
	if _, err := c.issue(t.Context(), "late.example.com", "http-01"); err != nil {
		t.Error(err)
	}
}

func TestDNSAddr(t *testing.T) {
	t.Parallel()
	tb := &failures{TB: t}
	ca := Start(tb, Config{})
	ca.SetDNS("set.test", DNSRecords{A: []string{"192.0.2.1", "192.0.2.2"}, AAAA: []string{"2001:db8::1"}, CAA: []string{`0 issue "letsencrypt.org"`, `128 iodef "mailto:a@b.test"`}})
	ca.SetDNS("none.test", DNSRecords{})
	ca.SetDNS("set.test", DNSRecords{A: []string{"not an address"}})
	if tb.n.Load() != 1 {
		t.Errorf("malformed records failed the test %d times, want 1", tb.n.Load())
	}
	for _, tt := range []struct {
		name string
		kind uint16
		want []string
	}{
		{"set.test.", dns.TypeA, []string{"192.0.2.1", "192.0.2.2"}},
		{"sEt.TesT.", dns.TypeAAAA, []string{"2001:db8::1"}},
		{"set.test.", dns.TypeCAA, []string{`0 issue "letsencrypt.org"`, `128 iodef "mailto:a@b.test"`}},
		{"set.test.", dns.TypeTXT, nil},
		{"none.test.", dns.TypeA, nil},
		{"unset.test.", dns.TypeA, []string{"127.0.0.1"}},
		{"unset.test.", dns.TypeAAAA, nil},
	} {
		for _, network := range []string{"udp", "tcp"} {
			dnsClient := &dns.Client{Net: network}
			res, _, err := dnsClient.Exchange(new(dns.Msg).SetQuestion(tt.name, tt.kind), ca.DNSAddr())
			if err != nil {
				t.Fatal(err)
			}
			var got []string
			for _, rr := range res.Answer {
				got = append(got, strings.TrimPrefix(rr.String(), rr.Header().String()))
			}
			if res.Rcode != dns.RcodeSuccess || !slices.Equal(got, tt.want) {
				t.Errorf("%s %s over %s: %q, want %q", tt.name, dns.TypeToString[tt.kind], network, got, tt.want)
			}
		}
	}
}
