package acme

import (
	"bytes"
	"cmp"
	"context"
	"crypto/ecdsa"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync"
	"time"

	xacme "golang.org/x/crypto/acme"

	"plusminus/acme/internal/cahttp"
)

const (
	// The wait between polls of an order or authorization, where the CA does not name one. It begins short, because
	// a validation takes about a round trip; x/crypto always waits a second. It doubles up to lastPoll.
	firstPoll = 20 * time.Millisecond
	lastPoll  = time.Second

	// patience bounds how long an attempt asks again for a resource of its order that the CA does not give: the
	// answer was lost, or a replica of the CA does not know the resource yet.
	patience = time.Minute

	// maxHold bounds how long a chain is held back that is not valid yet.
	maxHold = 3 * time.Minute

	// statusAgain is no CA's status. As for every 5xx, x/crypto's client sends its request again, with a new nonce.
	statusAgain = 599
)

var (
	errNothingPending = errors.New("the order that was pending is no longer there")
	errNoChallenge    = errors.New("no challenge succeeded")
	errUnreadable     = errors.New("the CA's answer cannot be read")
	errNotOurs        = errors.New("acme: autocert asks for what the attempt does not need")
)

// A transport is the [http.RoundTripper] of one attempt, between autocert and the CA. It makes the attempt keep to
// the plan, and adds what autocert does not offer:
//
//   - it looks the account up before autocert makes one;
//   - it adds `profile` and `replaces` to newOrder, and orders without them if the CA refuses them;
//   - it answers newOrder with the order that an earlier attempt left open;
//   - it hides the challenge types that are not to be tried, and refuses newOrder when none is left;
//   - it polls sooner than after a second, but not before the time that the CA names;
//   - it asks again when an answer was lost, since after finalize a lost answer would cost a certificate;
//   - it keeps the CA's reason for each failure, most of which autocert drops;
//   - it counts a certificate before it can be issued, and failed validations;
//   - it holds a chain back that is not valid yet, since autocert would throw it away;
//   - it refuses all requests when the attempt is over.
type transport struct {
	// Immutable after newTransport.
	is     *issuer
	key    *ecdsa.PrivateKey  // the account's
	ctx    context.Context    // the attempt's; autocert's own contexts last longer
	cancel context.CancelFunc // ends ctx

	// mu is held during each request. The attempt makes one request at a time. The goroutines in which autocert
	// deactivates authorizations run beside it, and outlive it.
	mu sync.Mutex
	// Guarded by mu.
	*attempt
	directory xacme.Directory // empty until it has been fetched
	profile   string          // for newOrder; may be empty
	replaces  string          // ARI id for newOrder; may be empty
	refused   error           // why replaces was dropped; nil if it was not
	unknown   bool            // the CA does not know the account yet
	release   func()          // lets other attempts register; nil unless this one does
	looked    bool            // the order of an earlier attempt was looked at

	types    []string                   // the challenge types that are still to be tried
	open     bool                       // there is an order, and no validation of it has failed
	steps    map[string]string          // URL of a resource of that order -> step of a failure there
	offered  map[string]json.RawMessage // URL of a challenge that is to be tried -> the challenge
	accepted string                     // the type of the challenge that the CA was told to validate
	lost     bool                       // the answer to that was lost
	answer   string                     // the name of the answer in the token store; may be empty
	storeErr error                      // the answer could not be stored

	csr    string         // payload of finalize; empty until it is sent
	denied *http.Response // the CA's refusal of finalize; nil if it did not refuse
	denial error          // the error of the last finalize; nil if it was accepted
	resend bool           // the next poll of the order is a finalize

	polled string    // the URL that was polled last
	polls  int       // how often in a row
	since  time.Time // when the first answer of those failed that are asked for again; zero if none did

	step string // of the last request
	err  error  // of the last request; nil if the CA answered as it should
}

func newTransport(ctx context.Context, is *issuer, a *attempt, key *ecdsa.PrivateKey) *transport {
	ctx, cancel := context.WithCancel(ctx)
	return &transport{is: is, key: key, ctx: ctx, cancel: cancel, attempt: a, profile: is.profile, replaces: a.replaces, types: a.challenges}
}

// close refuses all further requests, and waits for the one in progress.
func (t *transport) close() {
	t.cancel()
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.release != nil {
		t.release()
	}
	t.steps, t.offered = nil, nil // autocert keeps the transport for as long as the certificate lives
}

// An object is what a transport reads of an answer: an order, an authorization, a challenge or a problem document.
type object struct {
	Status         any // a string; in problem documents a number
	Authorizations []string
	Finalize       string
	Certificate    string
	Challenges     []json.RawMessage
	Error          json.RawMessage

	raw []byte // the body
}

// A challengeObject is one of an authorization's challenges.
type challengeObject struct {
	Type, URL string
	Status    string
	Error     json.RawMessage
}

// RoundTrip implements [http.RoundTripper].
func (t *transport) RoundTrip(req *http.Request) (*http.Response, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if err := t.ctx.Err(); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancel(req.Context())
	defer cancel()
	defer context.AfterFunc(t.ctx, cancel)()
	req = req.WithContext(ctx)
	if req.Method != http.MethodPost {
		res, _, err := t.ask(req, "directory")
		return res, err
	}
	m, err := readJWS(req)
	if err != nil {
		return nil, err
	}
	address := req.URL.String()
	switch step := t.steps[address]; {
	case address == t.directory.RegURL:
		return t.register(req, m)
	case address == t.directory.OrderURL:
		return t.order(req, m)
	case step == "":
		return nil, errNotOurs // of an order that has failed, or whose authorizations are valid
	case step == "authorization":
		return t.authorization(req, m)
	case step == "order":
		return t.poll(req, m)
	case step == "finalize":
		return t.finalize(req, m)
	case step == "certificate":
		return t.certificate(req)
	default:
		return t.accept(req, address, step)
	}
}

// backoff is [xacme.Client.RetryBackoff].
func (t *transport) backoff(n int, req *http.Request, res *http.Response) time.Duration {
	if res.StatusCode == statusAgain {
		return time.Millisecond // RoundTrip has waited, and bounds the repetitions
	}
	d := cahttp.RetryBackoff(n, req, res)
	t.mu.Lock()
	defer t.mu.Unlock()
	if d == 0 && req.URL.String() == t.directory.OrderURL && t.dropReplaces() {
		return time.Millisecond
	}
	return d
}

// ask sends req, and records its step and its error. The body of the answer can still be read.
func (t *transport) ask(req *http.Request, step string) (*http.Response, *object, error) {
	nonce := req.Method == http.MethodHead
	switch {
	case nonce && (t.step == "" || t.step == "directory"):
		step = "newAccount"
	case nonce:
		step = t.step
	}
	res, err := t.is.base.RoundTrip(req)
	// The client repeats a request that met a 5xx, but not the one for a nonce.
	for n := 1; nonce && err == nil && res.StatusCode >= 500; n++ {
		wait := cahttp.RetryBackoff(n, req, res)
		if wait == 0 {
			break
		}
		cahttp.Pause(req.Context(), wait)
		res, err = t.is.base.RoundTrip(req)
	}
	if err != nil {
		if t.ctx.Err() == nil {
			t.step, t.err = step, &url.Error{Op: req.Method, URL: req.URL.String(), Err: err}
		}
		return nil, nil, err
	}
	if skew, ok := cahttp.Skew(res.Header, t.is.now()); ok {
		t.skew = skew
	}
	o := new(object)
	if o.raw, err = io.ReadAll(res.Body); err != nil {
		return nil, nil, err
	}
	setBody(res, o.raw)
	json.Unmarshal(o.raw, o) // what is not JSON has no fields
	failed := res.StatusCode >= 400 && !cahttp.IsBadNonce(o.raw)
	if !nonce || failed || res.Header.Get("Replay-Nonce") == "" {
		t.step, t.err = step, nil
	}
	if failed {
		t.err = cahttp.ParseProblem(res.StatusCode, res.Header, o.raw)
	}
	return res, o, nil
}

// register answers newAccount. It looks the account up before a new one is made: a CA may accept an external
// account binding only once, so it must be sent only once.
func (t *transport) register(req *http.Request, m *jws) (*http.Response, error) {
	if t.release == nil {
		// Pebble fails one of two newAccount requests for the same key at the same time. Other CAs may, too.
		select {
		case t.is.accounts <- struct{}{}:
			t.release = func() { <-t.is.accounts; t.release = nil }
		case <-req.Context().Done():
			return nil, req.Context().Err()
		}
	}
	if !t.unknown {
		m.setPayload(map[string]any{"onlyReturnExisting": true})
		if err := m.sign(req, t.key); err != nil {
			return nil, err
		}
	}
	res, _, err := t.ask(req, "newAccount")
	if err != nil {
		return nil, err
	}
	if !t.unknown && kindOf(t.err) == "accountDoesNotExist" {
		t.unknown = true
		return again(), nil
	}
	if res.StatusCode < 300 {
		t.release()
	}
	return res, nil
}

// order answers newOrder.
func (t *transport) order(req *http.Request, m *jws) (*http.Response, error) {
	switch {
	case t.open:
		// autocert drops the error of a challenge or a poll, and begins again with the next challenge type. But the
		// order is still good, and the next attempt continues it.
		return nil, t.end(t.step, cmp.Or(t.err, errUnreadable))
	case t.plan.Order != nil:
		return t.continued(req, m)
	case len(t.types) == 0: // autocert places one more order only to say so
		return nil, t.end("authorization", errNoChallenge)
	case t.resume:
		return nil, t.end("order", errNothingPending)
	}
	if _, ok := t.directory.Profiles[xacme.ProfileName(t.profile)]; t.profile != "" && !ok {
		t.dropProfile("the directory does not list it")
	}
	fields := m.payload()
	for name, value := range map[string]string{"profile": t.profile, "replaces": t.replaces} {
		if value != "" {
			fields[name] = value
		}
	}
	m.setPayload(fields)
	if err := m.sign(req, t.key); err != nil {
		return nil, err
	}
	t.ordered, t.ignored = true, true
	res, o, err := t.ask(req, "newOrder")
	if err != nil {
		return nil, err
	}
	var refused *xacme.Error
	if errors.As(t.err, &refused) {
		t.ignored = refused.StatusCode >= 500
		switch {
		case t.profile != "" && kindOf(refused) == "invalidProfile":
			t.dropProfile(refused.Detail)
			return again(), nil
		case refused.StatusCode < 500 && t.dropReplaces():
			return again(), nil
		}
		return res, nil
	}
	if res.StatusCode != http.StatusCreated || o.Finalize == "" {
		return res, nil // a bad nonce, or no order
	}
	t.ignored = false
	if t.refused != nil {
		t.is.log.Info("order placed without naming the certificate that it replaces", "domain", t.name, "err", t.refused)
		t.plan.NoReplaces = t.attempt.replaces
	}
	t.plan.Order = &pendingOrder{URL: res.Header.Get("Location"), Since: t.is.now()}
	if err := t.save(); err != nil {
		return nil, t.end("newOrder", &cahttp.StoreError{Err: err})
	}
	t.begin(o)
	return res, nil
}

// end ends the attempt, and returns err. The goroutines that autocert starts when it has failed ask for nothing more.
func (t *transport) end(step string, err error) error {
	t.step, t.err = step, err
	t.cancel()
	return err
}

// continued answers newOrder with the plan's order, unless that can no longer be used.
func (t *transport) continued(req *http.Request, m *jws) (*http.Response, error) {
	order := t.plan.Order
	if !t.looked && order.hopeless(t.is.now(), t.impatient) {
		t.is.log.Warn("order given up: the CA does not finish it", "domain", t.name, "ca", t.is.directory,
			"order", order.URL, "placed", order.Since, "taken_up", order.Taken)
		t.plan.Order = nil
		return again(), nil
	}
	if !t.looked {
		t.looked = true
		order.Taken++
		if err := t.save(); err != nil {
			return nil, t.end("order", &cahttp.StoreError{Err: err})
		}
	}
	m.Payload = ""
	if err := m.signFor(order.URL, req, t.key); err != nil { // POST-as-GET
		return nil, err
	}
	res, o, err := t.ask(req, "order")
	switch {
	case err != nil:
		return nil, err
	case res.StatusCode == http.StatusOK && (o.Status == xacme.StatusPending || o.Status == xacme.StatusReady):
		t.begin(o)
		res.StatusCode = http.StatusCreated
		res.Header.Set("Location", order.URL)
	case res.StatusCode == http.StatusOK && o.Finalize != "" || final(t.err):
		if o.Status == xacme.StatusValid || o.Status == xacme.StatusProcessing {
			// Its key was in the memory of the process that sent finalize.
			t.is.log.Warn("certificate lost: the attempt that ordered it ended before it was stored", "domain", t.name,
				"ca", t.is.directory, "order", order.URL)
		}
		t.plan.Order = nil
		return again(), nil
	}
	return res, nil
}

// begin records the resources of the plan's order. Requests for others are refused.
func (t *transport) begin(o *object) {
	t.open, t.accepted, t.lost, t.since = true, "", false, time.Time{}
	t.steps = map[string]string{t.plan.Order.URL: "order", o.Finalize: "finalize"}
	if o.Status == xacme.StatusPending {
		for _, z := range o.Authorizations {
			t.steps[z] = "authorization"
		}
	}
}

// dropProfile makes the attempt order the CA's default profile. A certificate with another lifetime is better than
// none.
func (t *transport) dropProfile(why string) {
	var offered []string
	for name := range t.directory.Profiles {
		offered = append(offered, string(name))
	}
	slices.Sort(offered)
	t.is.log.Warn("certificate profile not available: ordering the CA's default", "domain", t.name,
		"profile", t.profile, "reason", why, "offered", strings.Join(offered, ", "))
	t.profile = ""
}

// dropReplaces makes the attempt order without `replaces` if that may help, and reports whether it may. The certificate
// may have been replaced already, or belong to another account or CA, or the CA may fail over the field each time. A
// certificate is worth more than the rate limit exemption that the field brings.
func (t *transport) dropReplaces() bool {
	var refused *xacme.Error
	if t.replaces == "" || !errors.As(t.err, &refused) || refused.ProblemType == "" || refused.StatusCode == http.StatusTooManyRequests {
		return false
	}
	t.refused, t.replaces = refused, ""
	return true
}

// authorization answers a request for the authorization of the name.
func (t *transport) authorization(req *http.Request, m *jws) (*http.Response, error) {
	if m.Payload != "" {
		return nil, errNotOurs // autocert deactivates it after a failure, but the next attempt continues the order
	}
	res, o, err := t.ask(req, slices.Concat(t.types, []string{"authorization"})[0])
	if err == nil && t.err == nil && res.StatusCode < 300 && o.Status == nil {
		t.err = errUnreadable
	}
	if err != nil || t.err != nil || res.StatusCode >= 300 {
		return t.doubt(req, res, err)
	}
	t.since = time.Time{}
	switch o.Status {
	case xacme.StatusPending, xacme.StatusProcessing:
		if t.accepted == "" {
			t.offer(res, o)
		} else {
			t.wait(req, res)
		}
	case xacme.StatusValid:
		t.challenge = cmp.Or(t.accepted, t.challenge)
		t.forget()
	case xacme.StatusInvalid:
		t.invalid(o)
		t.forget()
	default: // deactivated, expired or revoked: x/crypto's client would poll it for ever
		t.plan.Order = nil
		return nil, t.end(t.step, fmt.Errorf("the authorization is %v", o.Status))
	}
	return res, nil
}

// offer leaves those challenges in res, an authorization, that are to be tried.
func (t *transport) offer(res *http.Response, o *object) {
	offered := []json.RawMessage{}
	t.offered = make(map[string]json.RawMessage)
	for _, raw := range o.Challenges {
		var c challengeObject
		json.Unmarshal(raw, &c)
		if slices.Contains(t.types, c.Type) {
			offered = append(offered, raw)
			t.steps[c.URL], t.offered[c.URL] = c.Type, raw
		}
	}
	setField(res, o, "challenges", offered)
	if len(offered) > 0 {
		return
	}
	for _, typ := range t.types {
		t.problems = append(t.problems, &cahttp.Problem{Step: typ, Detail: "the CA does not offer this challenge for the name"})
	}
	t.step, t.err = "authorization", errNoChallenge
}

// invalid records a failed validation. It makes the order invalid, too.
func (t *transport) invalid(o *object) {
	t.validations++
	t.plan.Order, t.open, t.steps = nil, false, nil
	tried, n := []string{t.accepted}, len(t.problems)
	for _, raw := range o.Challenges {
		var c challengeObject
		if json.Unmarshal(raw, &c) == nil && c.Error != nil {
			tried = append(tried, c.Type)
			t.problems = append(t.problems, cahttp.NewProblem(c.Type, cahttp.ParseProblem(0, nil, c.Error)))
		}
	}
	if len(t.problems) == n {
		t.problems = append(t.problems, &cahttp.Problem{Step: t.step, Detail: "the validation failed, and the CA does not say why"})
	}
	t.types = slices.DeleteFunc(slices.Clone(t.types), func(typ string) bool { return slices.Contains(tried, typ) })
}

// forget deletes the answer to a challenge. Until the CA has said that it is done, it may still ask for the answer.
func (t *transport) forget() {
	if t.answer != "" {
		t.is.tokens.Delete(t.ctx, t.answer)
		t.answer = ""
	}
}

// accept answers a request to validate the challenge at address.
func (t *transport) accept(req *http.Request, address, typ string) (*http.Response, error) {
	if t.storeErr != nil {
		return nil, t.end(typ, &cahttp.StoreError{Err: t.storeErr})
	}
	known := t.offered[address]
	var c challengeObject
	json.Unmarshal(known, &c)
	t.accepted = typ
	if c.Status == xacme.StatusProcessing {
		return answer(http.StatusOK, known), nil // the CA was told so before this attempt
	}
	res, o, err := t.ask(req, typ)
	lagging := err == nil && res.StatusCode == http.StatusNotFound
	if t.lost && final(t.err) && !lagging {
		t.err = nil
		return answer(http.StatusOK, known), nil // the CA is validating; the authorization will have the result
	}
	if err == nil && t.err == nil && res.StatusCode < 300 && o.Status == nil {
		t.err = errUnreadable
	}
	if err != nil || t.err != nil {
		t.lost = t.lost || !lagging
		return t.doubt(req, res, err)
	}
	return res, nil
}

// poll answers a request for the order.
func (t *transport) poll(req *http.Request, m *jws) (*http.Response, error) {
	if t.resend {
		m.Payload = t.csr
		for address, step := range t.steps {
			if step == "finalize" {
				if err := m.signFor(address, req, t.key); err != nil {
					return nil, err
				}
			}
		}
		res, err := t.finalized(req)
		t.resend = err == nil && t.err == nil && res.StatusCode >= 300 // a bad nonce
		return res, err
	}
	res, o, err := t.ask(req, "order")
	if err == nil && t.err == nil && res.StatusCode < 300 && o.Status == nil {
		t.err = errUnreadable
	}
	if err != nil || t.err != nil || res.StatusCode >= 300 {
		res, err = t.doubt(req, res, err)
		if final(t.err) && (res == nil || res.StatusCode != statusAgain) {
			t.plan.Order = nil
		}
		return res, err
	}
	switch {
	case o.Status == xacme.StatusInvalid:
		var problem *xacme.Error
		if o.Error != nil {
			problem = cahttp.ParseProblem(0, nil, o.Error)
		}
		t.err = cmp.Or(t.denial, error(&xacme.OrderError{OrderURL: req.URL.String(), Status: xacme.StatusInvalid, Problem: problem}))
		if t.csr != "" {
			t.step = "finalize"
			t.uncount()
		}
		t.plan.Order = nil
		return res, nil
	case o.Status == xacme.StatusReady && t.csr != "":
		return t.stillReady(req, res, o)
	}
	t.since = time.Time{}
	if o.Status == xacme.StatusPending || o.Status == xacme.StatusProcessing {
		t.wait(req, res)
		return res, nil
	}
	// autocert now looks whether authorizations are left to deactivate. There are none.
	for address, step := range t.steps {
		if step == "authorization" {
			delete(t.steps, address)
		}
	}
	if o.Certificate != "" {
		t.steps[o.Certificate] = "certificate"
	}
	return res, nil
}

// stillReady answers a poll of an order that is ready although finalize was sent. x/crypto's client takes that for a
// failure: https://go.dev/issue/52597
func (t *transport) stillReady(req *http.Request, res *http.Response, o *object) (*http.Response, error) {
	switch {
	case t.denied != nil: // the CA meant it
		t.step, t.err = "finalize", t.denial
		t.uncount()
		return t.denied, nil
	case !t.patient(0):
		t.step, t.err = "finalize", cmp.Or(t.denial, error(&xacme.OrderError{OrderURL: req.URL.String(), Status: xacme.StatusReady}))
		return res, nil
	}
	t.resend = t.denial != nil // it has not arrived, or the CA has not begun
	setField(res, o, "status", xacme.StatusProcessing)
	t.wait(req, res)
	return res, nil
}

// uncount records that nothing was issued.
func (t *transport) uncount() {
	t.plan.Order.Final = false
	t.plan.Issued = t.plan.Issued[:max(len(t.plan.Issued)-1, 0)] // times older than a week may have been removed meanwhile
}

// finalize answers finalize, and counts the certificate before: from then on the CA may have issued.
func (t *transport) finalize(req *http.Request, m *jws) (*http.Response, error) {
	t.csr = m.Payload
	if !t.plan.Order.Final {
		t.plan.Order.Final = true
		t.plan.Issued = append(t.plan.Issued, t.is.now())
		if err := t.save(); err != nil {
			return nil, t.end("finalize", &cahttp.StoreError{Err: err})
		}
	}
	return t.finalized(req)
}

// finalized sends req, a finalize. If the CA does not accept it, the status of the order decides whether it has: a
// replica of the CA may not know what another one has done, and an answer may be lost after the CA has issued. With
// the answer, the key would be lost.
func (t *transport) finalized(req *http.Request) (*http.Response, error) {
	res, o, err := t.ask(req, "finalize")
	switch {
	case t.ctx.Err() != nil:
		return nil, t.ctx.Err()
	case err == nil && t.err == nil && res.StatusCode >= 300: // a bad nonce
		return res, nil
	}
	t.denied, t.denial = nil, t.err
	switch {
	case err == nil && t.err == nil && o.Status != nil:
		if o.Status == xacme.StatusReady {
			setField(res, o, "status", xacme.StatusProcessing)
		}
		if o.Certificate != "" {
			t.steps[o.Certificate] = "certificate"
		}
		return res, nil
	case err == nil && res.StatusCode == http.StatusTooManyRequests:
		return res, nil
	case err == nil && t.err == nil:
		t.denial = errUnreadable
	case final(t.err) && res.StatusCode != http.StatusNotFound:
		t.denied = res
	}
	return answer(http.StatusOK, []byte(`{"status":"processing"}`)), nil
}

// certificate answers a request for the chain. It holds a chain back until it is valid: autocert throws away what is not
// valid on arrival, after the CA has counted it.
func (t *transport) certificate(req *http.Request) (*http.Response, error) {
	res, o, err := t.ask(req, "certificate")
	var leaf *x509.Certificate
	if err == nil && t.err == nil && res.StatusCode == http.StatusOK {
		if leaf, err = firstCertificate(o.raw); err != nil {
			t.err, err = err, nil
		}
	}
	if leaf == nil {
		return t.doubt(req, res, err)
	}
	t.plan.Order = nil
	ahead := time.Until(leaf.NotBefore) // by the real clock, as in autocert
	if ahead > maxHold {
		t.plan.SkewLimit = maxHold - (ahead - t.skew)
		return nil, t.end("clock", &cahttp.ClockError{Skew: ahead, Lost: true})
	}
	cahttp.Pause(req.Context(), ahead)
	return res, nil
}

// firstCertificate returns the first certificate of a chain in PEM.
func firstCertificate(chain []byte) (*x509.Certificate, error) {
	block, _ := pem.Decode(chain)
	if block == nil {
		return nil, errUnreadable
	}
	return x509.ParseCertificate(block.Bytes)
}

// doubt answers a request about the order that the CA did not answer as it should. If asking again may help, it waits
// and makes the client do so.
func (t *transport) doubt(req *http.Request, res *http.Response, err error) (*http.Response, error) {
	if t.ctx.Err() != nil || t.err == nil { // the attempt is over, or a bad nonce
		return res, err
	}
	var refused *xacme.Error
	lost := !errors.As(t.err, &refused) || refused.ProblemType == "" // or a page of a proxy
	lagging := refused != nil && refused.StatusCode == http.StatusNotFound
	late := t.csr != "" && !final(t.err) // the key is lost if the attempt ends now
	if !lost && !lagging && !late {
		return res, err
	}
	wait := t.nextWait(req)
	if refused != nil {
		if at, ok := cahttp.RetryAfter(refused.Header, t.is.now()); ok {
			wait = max(at.Sub(t.is.now()), wait)
		}
	}
	if !t.patient(wait) {
		return res, err
	}
	cahttp.Pause(req.Context(), wait)
	return again(), nil
}

// patient reports whether the attempt may wait for d and ask again.
func (t *transport) patient(d time.Duration) bool {
	if t.since.IsZero() {
		t.since = time.Now()
	}
	return time.Since(t.since)+d < t.is.patience
}

// wait waits before the client polls again. res is what it polled for.
func (t *transport) wait(req *http.Request, res *http.Response) {
	wait := t.nextWait(req)
	if at, ok := cahttp.RetryAfter(res.Header, t.is.now()); ok {
		wait = max(at.Sub(t.is.now()), firstPoll)
	}
	cahttp.Pause(req.Context(), wait)
	// A time in the past makes x/crypto ask again at once. Without the header it waits another second.
	res.Header.Set("Retry-After", time.Unix(0, 0).UTC().Format(http.TimeFormat))
}

// nextWait returns the wait before req is repeated, if the CA does not name one.
func (t *transport) nextWait(req *http.Request) time.Duration {
	if address := req.URL.String(); address != t.polled {
		t.polled, t.polls = address, 0
	}
	t.polls++
	return min(firstPoll<<min(t.polls-1, 10), lastPoll)
}

// final reports whether err is the CA's final answer about a resource, so that asking again does not help. An
// answer without a problem document is not the CA's.
func final(err error) bool {
	var refused *xacme.Error
	return errors.As(err, &refused) && refused.StatusCode/100 == 4 && refused.StatusCode != http.StatusTooManyRequests &&
		refused.ProblemType != ""
}

// kindOf returns the CA's error type of err without its prefix, or "".
func kindOf(err error) string {
	var refused *xacme.Error
	if errors.As(err, &refused) {
		return cahttp.KindOf(refused.ProblemType)
	}
	return ""
}

// again returns an answer after which the client sends its request again, with a new nonce.
func again() *http.Response { return answer(statusAgain, nil) }

// answer returns an answer that is not the CA's.
func answer(status int, body []byte) *http.Response {
	res := &http.Response{StatusCode: status, Header: make(http.Header)}
	setBody(res, body)
	return res
}

func setBody(res *http.Response, body []byte) { res.Body = io.NopCloser(bytes.NewReader(body)) }

// setField changes a field of o, the object in res.
func setField(res *http.Response, o *object, name string, value any) {
	fields := make(map[string]any)
	json.Unmarshal(o.raw, &fields)
	fields[name] = value
	body, err := json.Marshal(fields)
	if err == nil {
		setBody(res, body)
	}
}
