package acme

import (
	"bytes"
	"cmp"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net/http"
	"net/netip"
	"net/url"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	xacme "golang.org/x/crypto/acme"

	"plusminus/acme/internal/cahttp"
	"plusminus/acme/internal/certs"
)

const (
	// The wait between polls of an order or authorization, where the CA does not name one. It begins short, because
	// a validation takes about a round trip; x/crypto always waits a second. It doubles up to lastPoll.
	firstPoll = 20 * time.Millisecond
	lastPoll  = time.Second

	// maxPoll bounds the wait between polls that a CA may name. A CA that names a day would keep an attempt silent until its
	// end, and the key of a certificate is lost then.
	maxPoll = time.Minute

	// patience bounds how long an attempt asks again after finalize, when an answer was lost, or a replica of the CA
	// does not know yet what another one has done.
	patience = time.Minute

	// lastChance is how long before the end of an attempt it polls for the last time.
	lastChance = 10 * time.Second

	// maxChain bounds the certificates of a chain. Public CAs send two or three.
	maxChain = 10

	// statusAgain is no CA's status. As for every 5xx, x/crypto's client sends its request again, with a new nonce.
	statusAgain = 599
)

var (
	errNothingPending = errors.New("the order that was pending is no longer there")
	errNoChallenge    = errors.New("no challenge succeeded")
	errNotBegun       = errors.New("the CA accepted the request, and does not issue")
	errUnreadable     = errors.New("the CA's answer cannot be read")
	errNotOurs        = errors.New("acme: autocert asks for what the attempt does not need")
)

// A transport is the [http.RoundTripper] of one attempt, between autocert and the CA. It makes the attempt keep to
// the plan, and adds what autocert does not offer:
//
//   - it looks the account up before autocert makes one;
//   - it adds `profile` and `replaces` to newOrder, and orders without them if the CA refuses that;
//   - it answers newOrder with the order that an earlier attempt left open;
//   - it hides the challenge types that are not to be tried, and refuses newOrder when none is left;
//   - it polls sooner than after a second, but not before the time that the CA names;
//   - it keeps the CA's reason for each failure, most of which autocert drops;
//   - it counts a certificate before it can be issued, and failed validations;
//   - it asks again when an answer was lost after finalize, which would cost the certificate;
//   - it keeps the chain, and gives autocert a stand-in for it;
//   - it refuses all requests when the attempt is over.
type transport struct {
	// Immutable after newTransport.
	is      *issuer
	address netip.Addr         // to order a certificate for; invalid if the attempt is for a name
	key     *ecdsa.PrivateKey  // the account's
	ctx     context.Context    // the attempt's; autocert's own contexts last longer
	cancel  context.CancelFunc // ends ctx

	// Safe from any goroutine.
	finalizing atomic.Bool // finalize was sent

	// mu is held during each request, but not while it waits. The attempt makes one request at a time. The goroutines in which autocert
	// deactivates authorizations run beside it, and outlive it.
	mu sync.Mutex
	// Guarded by mu.
	*attempt
	directory xacme.Directory // empty until it has been fetched
	profile   string          // for newOrder; may be empty
	replaces  string          // ARI id for newOrder; may be empty
	refused   error           // why replaces was dropped; nil if it was not
	unknown   bool            // the CA does not know the account yet
	account   string          // URL of the account; empty until the CA has named it
	unlisted  string          // why profile was dropped; empty if it was not
	release   func()          // lets other attempts register; nil unless this one does
	continues bool            // this attempt has asked for the order of an earlier one

	types    []string                   // the challenge types that are still to be tried
	open     bool                       // there is an order, and no validation of it has failed
	steps    map[string]string          // URL of a resource of that order -> step of a failure there
	offered  map[string]json.RawMessage // URL of a challenge that is to be tried -> the challenge
	accepted string                     // the type of the challenge that the CA was told to validate
	answer   string                     // the name of the answer in the token store; may be empty
	storeErr error                      // why the answer could not be stored
	ready    bool                       // all authorizations are valid
	csr      []byte                     // the payload of finalize; nil until it is sent
	denial   error                      // why finalize was not accepted; nil if it was
	chain    []*x509.Certificate        // what the CA issued; nil until it has come
	resend   string                     // the URL of finalize, if the next poll sends it again; otherwise empty

	polled string    // the URL that was polled last before finalize
	polls  int       // how often in a row, or since finalize
	capped bool      // the CA named a wait above maxPoll, and that was logged
	since  time.Time // when the CA's first wrong answer after finalize came; zero if the last one was right

	protected string // header of the request in progress, in base64url

	step string // of the last request
	err  error  // of the last request; nil if the CA answered as it should
}

func newTransport(ctx context.Context, is *issuer, a *attempt, key *ecdsa.PrivateKey) *transport {
	ctx, cancel := context.WithCancel(ctx)
	t := &transport{is: is, key: key, ctx: ctx, cancel: cancel, attempt: a, profile: is.profile, replaces: a.replaces, types: a.challenges}
	if addr, ok := parseAddress(a.name); ok {
		t.address, t.profile = addr, AddressProfile
	}
	return t
}

// close refuses all further requests, and waits for the one in progress.
func (t *transport) close() {
	t.cancel()
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.release != nil {
		t.release()
	}
	t.steps, t.offered, t.chain = nil, nil, nil // autocert keeps the transport for ever
}

// end ends the attempt, and returns err. The goroutines that autocert starts when it has failed get no answer.
func (t *transport) end(step string, err error) error {
	t.step, t.err = step, err
	t.cancel()
	return err
}

// An object is what a transport reads of an answer: an order, an authorization, a challenge or a problem document.
type object struct {
	Type, URL      string
	Status         any // a string; in problem documents a number
	Authorizations []string
	Finalize       string
	Certificate    string
	Challenges     []json.RawMessage
	Error          json.RawMessage
	raw            []byte // the body
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
	body, err := req.GetBody()
	if err != nil {
		return nil, err
	}
	var m jws
	if err := json.NewDecoder(body).Decode(&m); err != nil {
		return nil, err
	}
	payload, err := base64.RawURLEncoding.DecodeString(m.Payload)
	if err != nil {
		return nil, err
	}
	t.protected = m.Protected
	address := req.URL.String()
	switch step := t.steps[address]; {
	case address == t.directory.RegURL:
		return t.register(req)
	case address == t.directory.OrderURL:
		return t.order(req, payload)
	case address == t.account:
		res, _, err := t.ask(req, "account")
		return res, err
	case step == "" || step == "authorization" && (t.ready || len(payload) > 0):
		// autocert deactivates authorizations that a failure leaves pending. But the next attempt continues the order.
		return nil, errNotOurs
	case step == "authorization":
		return t.authorization(req)
	case step == "order":
		return t.poll(req)
	case step == "finalize":
		t.csr, t.polls = payload, 0
		t.finalizing.Store(true)
		return t.finalize(req)
	case step == "certificate":
		return t.certificate(req)
	default:
		return t.accept(req, step)
	}
}

// backoff is [xacme.Client.RetryBackoff].
func (t *transport) backoff(n int, req *http.Request, res *http.Response) time.Duration {
	t.mu.Lock()
	defer t.mu.Unlock()
	d := cahttp.RetryBackoff(n, req, res)
	if res.StatusCode == statusAgain || d == 0 && req.URL.String() == t.directory.OrderURL && t.dropReplaces() {
		return time.Millisecond
	}
	return d
}

// ask sends req, and records its step and its error. The body of the answer can still be read. An answer that only
// refuses the nonce is no error: the client sends its request again.
func (t *transport) ask(req *http.Request, step string) (*http.Response, *object, error) {
	nonce := req.Method == http.MethodHead
	switch {
	case nonce && (t.step == "" || t.step == "directory"):
		step = "newAccount"
	case nonce:
		step = t.step
	}
	res, err := t.is.base.RoundTrip(req)
	// The client repeats a request that met a 5xx, but not the one for a nonce. After finalize that would be its end.
	for n := 1; nonce && (err == nil && res.StatusCode >= 500 || err != nil && t.csr != nil); n++ {
		wait := min(time.Duration(n)*100*time.Millisecond, lastPoll)
		if t.csr == nil {
			wait = cahttp.RetryBackoff(n, req, res)
		}
		if wait == 0 || t.csr != nil && !t.patient(wait) || t.ctx.Err() != nil {
			break
		}
		t.pause(req, wait)
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
	if o.Certificate != "" && t.steps != nil {
		t.steps[o.Certificate] = "certificate"
	}
	if nonce && res.Header.Get("Replay-Nonce") != "" {
		return res, o, nil // perhaps for a goroutine of autocert's
	}
	t.step, t.err = step, nil
	if problem := cahttp.ParseProblem(res.StatusCode, res.Header, o.raw); res.StatusCode >= 400 && !isBadNonce(problem) {
		t.err = problem
	}
	return res, o, nil
}

// register answers newAccount. It looks the account up before a new one is made: a CA may accept an external
// account binding only once, so it must be sent only once.
func (t *transport) register(req *http.Request) (*http.Response, error) {
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
		if err := t.sign(req, req.URL.String(), []byte(`{"onlyReturnExisting":true}`)); err != nil {
			return nil, err
		}
	}
	res, _, err := t.ask(req, "newAccount")
	switch {
	case err != nil:
		return nil, err
	case !t.unknown && kindOf(t.err) == "accountDoesNotExist":
		t.unknown = true
		return again(), nil
	case cahttp.Deactivated(t.err):
		return nil, t.end("newAccount", t.err)
	case res.StatusCode < 300:
		t.account = res.Header.Get("Location")
		t.release()
	}
	return res, nil
}

// order answers newOrder, whose payload is given.
func (t *transport) order(req *http.Request, payload []byte) (*http.Response, error) {
	switch {
	case t.open:
		// autocert drops the error of a challenge or a poll, and begins again with the next challenge type. But the
		// order is still good, and the next attempt continues it.
		return nil, t.end(t.step, cmp.Or(t.err, errUnreadable))
	case t.plan.Order != nil:
		return t.continued(req)
	case len(t.types) == 0: // autocert places one more order only to say so
		return nil, t.end("authorization", errNoChallenge)
	case t.resume:
		return nil, t.end("order", errNothingPending)
	}
	if _, ok := t.directory.Profiles[xacme.ProfileName(t.profile)]; t.profile != "" && !ok {
		t.profile, t.unlisted = "", "the directory does not list it"
	}
	fields := make(map[string]any)
	if err := json.Unmarshal(payload, &fields); err != nil {
		return nil, err
	}
	if t.profile != "" {
		fields["profile"] = t.profile
	}
	if t.replaces != "" {
		// "Clients SHOULD include this field in new-order requests if there is a clear predecessor certificate"
		// https://www.rfc-editor.org/rfc/rfc9773#section-5
		fields["replaces"] = t.replaces
	}
	payload, err := json.Marshal(fields)
	if err == nil {
		err = t.sign(req, req.URL.String(), payload)
	}
	if err != nil {
		return nil, err
	}
	t.ordered, t.ignored = true, true
	res, o, err := t.ask(req, "newOrder")
	var refused *xacme.Error
	switch {
	case err != nil:
		return nil, err
	case errors.As(t.err, &refused):
		t.ignored = refused.StatusCode >= 500
		if refused.StatusCode < 500 && (t.dropProfile(refused, true) || t.dropReplaces() || t.dropProfile(refused, false)) {
			return again(), nil
		}
		return res, nil
	case res.StatusCode != http.StatusCreated || o.Finalize == "":
		return res, nil // a bad nonce, or no order
	}
	t.ignored, t.plan.Ordered = false, t.is.now()
	if t.unlisted != "" {
		t.is.log.Warn("certificate profile not available: ordering the CA's default", "domain", t.name, "profile", t.is.profile,
			"reason", t.unlisted, "offered", t.profiles())
		t.unlisted = "" // said once
	}
	if t.refused != nil {
		t.is.log.Info("order placed without naming the certificate that it replaces", "domain", t.name, "err", t.refused)
		t.plan.NoReplaces = t.attempt.replaces
	}
	t.plan.Order = &pendingOrder{URL: res.Header.Get("Location")}
	if err := t.save(); err != nil {
		return nil, t.end("newOrder", &cahttp.StoreError{Err: err})
	}
	t.begin(o)
	return res, nil
}

// continued answers newOrder with the plan's order. If that can no longer be used, the client asks for a new one.
func (t *transport) continued(req *http.Request) (*http.Response, error) {
	address := t.plan.Order.URL
	if !t.continues {
		t.continues = true
		t.plan.Order.Taken++
	}
	if t.plan.Order.Taken > maxTaken {
		t.is.log.Warn("order given up: the CA does not finish it", "domain", t.name, "ca", t.is.directory, "order", address)
		t.plan.Order = nil
		return again(), nil
	}
	if err := t.sign(req, address, nil); err != nil { // POST-as-GET
		return nil, err
	}
	res, o, err := t.ask(req, "order")
	switch {
	case err != nil || t.err == nil && res.StatusCode >= 400: // lost, or a bad nonce
		return res, err
	case t.err == nil && (o.Status == xacme.StatusPending || o.Status == xacme.StatusReady):
		t.begin(o)
		res.StatusCode = http.StatusCreated
		res.Header.Set("Location", address)
		return res, nil
	case o.Status == xacme.StatusValid || o.Status == xacme.StatusProcessing:
		// Its key was in the memory of the process that sent finalize.
		t.is.log.Warn("certificate lost: the attempt that ordered it ended before it was stored", "domain", t.name, "ca", t.is.directory, "order", address)
	}
	t.plan.Order = nil
	return again(), nil
}

// begin records the resources of o, the plan's order. Requests for others are refused.
func (t *transport) begin(o *object) {
	t.open, t.accepted, t.ready = true, "", o.Status == xacme.StatusReady
	t.steps = map[string]string{t.plan.Order.URL: "order", o.Finalize: "finalize"}
	for _, z := range o.Authorizations {
		t.steps[z] = "authorization"
	}
}

// dropProfile makes the attempt order the CA's default profile if that may help, and reports whether it may. A CA may list a
// profile that it does not permit to every account. A certificate with another lifetime is better than none.
// named asks whether the refusal names the profile; otherwise the field `replaces` is tried first.
func (t *transport) dropProfile(refused *xacme.Error, named bool) bool {
	if t.profile == "" || t.address.IsValid() || refused.ProblemType == "" || refused.StatusCode == http.StatusTooManyRequests || kindOf(refused) == "rateLimited" ||
		named && kindOf(refused) != "invalidProfile" && !strings.Contains(strings.ToLower(refused.Detail), "profile") {
		return false
	}
	t.profile, t.unlisted = "", cahttp.OneLine(refused.Detail)
	return true
}

// profiles returns the names of the profiles that the CA offers.
func (t *transport) profiles() string {
	var offered []string
	for name := range t.directory.Profiles {
		offered = append(offered, string(name))
	}
	slices.Sort(offered)
	return strings.Join(offered, ", ")
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
func (t *transport) authorization(req *http.Request) (*http.Response, error) {
	res, o, err := t.ask(req, slices.Concat(t.types, []string{"authorization"})[0])
	if err != nil || res.StatusCode >= 300 {
		return res, err
	}
	switch o.Status {
	case xacme.StatusPending:
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
	case nil:
		t.err = errUnreadable
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
		var c object
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
		var c object
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

// accept answers a request to validate the challenge of type typ.
func (t *transport) accept(req *http.Request, typ string) (*http.Response, error) {
	if t.storeErr != nil {
		return nil, t.end(typ, &cahttp.StoreError{Err: t.storeErr})
	}
	t.accepted = typ
	var c object
	known := t.offered[req.URL.String()]
	if json.Unmarshal(known, &c) == nil && c.Status == xacme.StatusProcessing {
		return answer(http.StatusOK, known), nil // an earlier attempt has asked for that
	}
	res, _, err := t.ask(req, typ)
	return res, err
}

// poll answers a request for the order.
func (t *transport) poll(req *http.Request) (*http.Response, error) {
	if t.resend != "" {
		if err := t.sign(req, t.resend, t.csr); err != nil {
			return nil, err
		}
		return t.finalize(req)
	}
	res, o, err := t.ask(req, "order")
	if err == nil && t.err == nil && res.StatusCode < 300 && o.Status == nil {
		t.err = errUnreadable
	}
	if err != nil || t.err != nil || res.StatusCode >= 300 {
		return t.late(req, res, err)
	}
	switch {
	case o.Status == xacme.StatusInvalid:
		t.uncount()
		t.plan.Order = nil
		t.err = t.denial
		if t.err == nil {
			t.err = &xacme.OrderError{OrderURL: req.URL.String(), Status: xacme.StatusInvalid, Problem: cahttp.ParseProblem(0, nil, o.Error)}
		}
		if t.csr != nil {
			t.step = "finalize"
		}
		return res, nil
	case o.Status == xacme.StatusReady && final(t.denial):
		t.uncount()
		return nil, t.end("finalize", t.denial)
	case o.Status == xacme.StatusReady && t.csr != nil:
		// Finalize has not arrived, or the CA has not begun. x/crypto's client takes that for a failure:
		// https://go.dev/issue/52597
		header := res.Header
		if refused := (*xacme.Error)(nil); errors.As(t.denial, &refused) {
			header = refused.Header
		}
		wait := t.delay(req, header)
		if !t.patient(wait) {
			return nil, t.end("finalize", cmp.Or(t.denial, errNotBegun))
		}
		if t.denial != nil {
			t.resend = o.Finalize
		}
		setField(res, o, "status", xacme.StatusProcessing)
		t.pause(req, wait)
		pollAtOnce(res)
		return res, nil
	case o.Status == xacme.StatusPending || o.Status == xacme.StatusProcessing:
		t.wait(req, res)
	}
	t.since, t.ready = time.Time{}, t.ready || o.Status == xacme.StatusReady
	return res, nil
}

// uncount records that the order's certificate was not issued.
func (t *transport) uncount() {
	if t.plan.Order.Final {
		t.plan.Order.Final = false
		t.plan.Issued = t.plan.Issued[:max(len(t.plan.Issued)-1, 0)] // times older than a week may have been removed meanwhile
	}
}

// finalize answers finalize, and counts the certificate before: from then on the CA may have issued.
//
// If the CA does not accept finalize, or its answer is lost, the status of the order decides: the CA refuses a finalize
// that it has received before, and a replica may not know what another one has done. If the attempt ended here, the key
// would be lost.
func (t *transport) finalize(req *http.Request) (*http.Response, error) {
	if !t.plan.Order.Final {
		t.plan.Order.Final = true
		t.plan.Issued = append(t.plan.Issued, t.is.now())
		if err := t.save(); err != nil {
			return nil, t.end("finalize", &cahttp.StoreError{Err: err})
		}
	}
	res, o, err := t.ask(req, "finalize")
	switch {
	case t.ctx.Err() != nil:
		return nil, t.ctx.Err()
	case err == nil && (res.StatusCode == http.StatusTooManyRequests || res.StatusCode >= 300 && t.err == nil): // or a bad nonce
		return res, nil
	case err == nil && t.err == nil && o.Status == nil:
		t.err = errUnreadable
	}
	t.resend = ""
	if t.denial = t.err; t.denial != nil {
		res = answer(http.StatusOK, []byte(`{"status":"processing"}`))
		pollAtOnce(res)
		return res, nil
	}
	switch o.Status {
	case xacme.StatusReady: // see poll
		setField(res, o, "status", xacme.StatusProcessing)
		fallthrough
	case xacme.StatusProcessing:
		t.wait(req, res) // x/crypto's client asks for the order at once
	}
	return res, nil
}

// certificate answers a request for the chain. It keeps the chain, and gives autocert a stand-in for it.
//
// autocert throws away a certificate that is not valid at this moment, after the CA has counted it, and its key with it.
// But a certificate that is valid in five minutes is of use then. Also, a Manager cannot be stopped: it would renew what
// it has. A stand-in is valid for a century.
func (t *transport) certificate(req *http.Request) (*http.Response, error) {
	res, o, err := t.ask(req, "certificate")
	if err == nil && res.StatusCode == http.StatusOK {
		if t.chain, err = certs.ParseChain(o.raw); err != nil || len(t.chain) > maxChain {
			t.chain, t.err, err = nil, errUnreadable, nil
		}
	}
	if t.chain == nil {
		return t.late(req, res, err)
	}
	t.plan.Order = nil
	der, err := standIn(t.name, t.chain[0].PublicKey)
	if err != nil {
		return nil, t.end("certificate", err)
	}
	setBody(res, certs.EncodeChain([][]byte{der}))
	return res, nil
}

// standIn returns a certificate for name and the key. autocert checks that the key is the one that it made.
func standIn(name string, key any) ([]byte, error) {
	issuer, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	now := time.Now()
	template := &x509.Certificate{SerialNumber: big.NewInt(1), DNSNames: []string{name}, NotBefore: now.AddDate(0, 0, -1), NotAfter: now.AddDate(100, 0, 0)}
	return x509.CreateCertificate(rand.Reader, template, template, key, issuer)
}

// late answers a request that the CA did not answer as it should. After finalize, the client asks again, unless the CA
// has refused for good. Before finalize the attempt may end, since the next one continues the order.
func (t *transport) late(req *http.Request, res *http.Response, err error) (*http.Response, error) {
	badNonce := err == nil && t.err == nil
	if t.csr == nil || badNonce || final(t.err) || t.ctx.Err() != nil {
		return res, err
	}
	var header http.Header
	if res != nil {
		header = res.Header
	}
	wait := t.delay(req, header)
	if !t.patient(wait) {
		return res, err
	}
	t.pause(req, wait)
	return again(), nil
}

// pause waits for d. Requests of autocert's goroutines need not wait for that.
func (t *transport) pause(req *http.Request, d time.Duration) {
	t.mu.Unlock()
	defer t.mu.Lock()
	cahttp.Pause(req.Context(), d)
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
		if wait = max(at.Sub(t.is.now()), firstPoll); wait > maxPoll {
			if !t.capped {
				t.capped = true
				t.is.log.Warn("the CA asks for a long wait between polls: polling each minute", "domain", t.name, "ca", t.is.directory,
					"step", t.step, "retry_after", at)
			}
			wait = maxPoll
		}
	}
	// A CA may name a time that the attempt does not last to. It gets one more question before the key is lost.
	if deadline, ok := t.ctx.Deadline(); ok {
		if last := time.Until(deadline) - lastChance; last > 0 {
			wait = min(wait, last)
		}
	}
	t.pause(req, wait)
	pollAtOnce(res)
}

// pollAtOnce makes x/crypto's client ask again at once after res. Without the header it waits for a second.
func pollAtOnce(res *http.Response) {
	res.Header.Set("Retry-After", time.Unix(0, 0).UTC().Format(http.TimeFormat)) // a time in the past
}

// delay returns the wait before req is repeated after an answer that was not as it should be. header is that answer's; nil if
// there was none.
func (t *transport) delay(req *http.Request, header http.Header) time.Duration {
	wait := t.nextWait(req)
	if at, ok := cahttp.RetryAfter(header, t.is.now()); ok {
		wait = max(at.Sub(t.is.now()), wait)
	}
	return wait
}

// nextWait returns the wait before req is repeated, if the CA does not name one. All requests after finalize count as
// polls of the same thing.
func (t *transport) nextWait(req *http.Request) time.Duration {
	if address := req.URL.String(); address != t.polled && t.csr == nil {
		t.polled, t.polls = address, 0
	}
	t.polls++
	return min(firstPoll<<min(t.polls-1, 10), lastPoll)
}

// final reports whether err is the CA's final answer, so that asking again does not help. An answer without a problem
// document is not the CA's, and a 404 may come from a replica that lags.
func final(err error) bool {
	var refused *xacme.Error
	return errors.As(err, &refused) && refused.StatusCode/100 == 4 && refused.ProblemType != "" &&
		refused.StatusCode != http.StatusTooManyRequests && refused.StatusCode != http.StatusNotFound
}

// kindOf returns the CA's error type of err without its prefix, or "".
func kindOf(err error) string {
	var refused *xacme.Error
	if errors.As(err, &refused) {
		return cahttp.KindOf(refused.ProblemType)
	}
	return ""
}

// isBadNonce reports whether err refuses only the nonce, by the same rule as x/crypto's client.
func isBadNonce(err error) bool { return strings.EqualFold(kindOf(err), "badNonce") }

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
	if body, err := json.Marshal(fields); err == nil {
		setBody(res, body)
	}
}

// A jws is the body of a signed request (RFC 8555 section 6.2). A POST-as-GET has an empty payload.
type jws struct {
	Protected string `json:"protected"`
	Payload   string `json:"payload"`
	Signature string `json:"signature"`
}

// sign changes the URL and the payload of req, the request that RoundTrip was called for, and signs it again. Its nonce
// stays.
func (t *transport) sign(req *http.Request, address string, payload []byte) error {
	protected, err := base64.RawURLEncoding.DecodeString(t.protected)
	header := make(map[string]any)
	if err = errors.Join(err, json.Unmarshal(protected, &header)); err != nil {
		return err
	}
	header["url"] = address
	if protected, err = json.Marshal(header); err != nil {
		return err
	}
	m := jws{Protected: base64.RawURLEncoding.EncodeToString(protected), Payload: base64.RawURLEncoding.EncodeToString(payload)}
	// The JWS signature of ES256 is r and s, 32 bytes each: https://www.rfc-editor.org/rfc/rfc7518#section-3.4
	sum := sha256.Sum256([]byte(m.Protected + "." + m.Payload))
	r, s, err := ecdsa.Sign(rand.Reader, t.key, sum[:])
	if err != nil {
		return err
	}
	var sig [64]byte
	r.FillBytes(sig[:32])
	s.FillBytes(sig[32:])
	m.Signature = base64.RawURLEncoding.EncodeToString(sig[:])
	body, err := json.Marshal(m)
	if err != nil {
		return err
	}
	if req.URL, err = url.Parse(address); err != nil {
		return err
	}
	req.Host, req.ContentLength, req.Body = req.URL.Host, int64(len(body)), io.NopCloser(bytes.NewReader(body))
	req.GetBody = func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(body)), nil }
	return nil
}
