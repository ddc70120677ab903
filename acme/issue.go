package acme

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"time"

	xacme "golang.org/x/crypto/acme"

	"plusminus/acme/internal/cahttp"
	"plusminus/acme/internal/certs"
	"plusminus/acme/internal/challenge"
)

// attemptTimeout bounds an attempt from the first request to the certificate. The next attempt continues an
// order that is still open then.
const attemptTimeout = 10 * time.Minute

// An orderFlow is one call of [issuer.obtain]: the attempt, and the conversation with the CA.
type orderFlow struct {
	*attempt
	client    *xacme.Client
	directory xacme.Directory
	transport *transport
}

// errNothingPending is the failure of an attempt that was to finish an order that is no more.
var errNothingPending = errors.New("the order that was pending is no longer there")

// obtain makes the attempt. A name must not be attempted twice at the same time: its challenges would
// overwrite each other. The error is a *failure unless ctx is done, which ends the attempt.
func (is *issuer) obtain(ctx context.Context, a *attempt) (*tls.Certificate, error) {
	whole := ctx
	ctx, cancel := context.WithTimeout(ctx, attemptTimeout)
	defer cancel()
	flow := &orderFlow{attempt: a}
	cert, step, err := is.run(ctx, flow)
	if flow.transport != nil {
		a.skew = flow.transport.skew
	}
	if err == nil {
		return cert, nil
	}
	if whole.Err() != nil {
		return nil, whole.Err()
	}
	if ctx.Err() != nil {
		err = fmt.Errorf("the CA was not done within %v", attemptTimeout)
	}
	f := newFailure(a.problems, step, err, is.now())
	f.validations = a.validations
	f.free = (!a.ordered || a.ignored) && a.validations == 0
	return nil, f
}

// run makes the attempt. If it fails, step says in what: a resource of RFC 8555 section 7.1, or a
// challenge type.
func (is *issuer) run(ctx context.Context, a *orderFlow) (cert *tls.Certificate, step string, err error) {
	account, err := is.accountKey(ctx)
	if err != nil {
		return nil, "store", &cahttp.StoreError{Err: err}
	}
	a.transport = &transport{base: is.base, key: account, now: is.now, replaces: a.replaces}
	a.client = &xacme.Client{
		Key:          account,
		DirectoryURL: is.directory,
		HTTPClient:   &http.Client{Transport: a.transport},
		UserAgent:    cahttp.UserAgent,
		RetryBackoff: cahttp.RetryBackoff,
	}
	if a.directory, err = a.client.Discover(ctx); err != nil {
		return nil, "directory", err
	}
	a.transport.newOrder = a.directory.OrderURL
	if skew := a.transport.skew; skew.Abs() > cahttp.MaxSkew {
		return nil, "clock", &cahttp.ClockError{Skew: skew}
	}
	if err := is.register(ctx, a.client); err != nil {
		return nil, "newAccount", err
	}
	order, key, err := is.pending(ctx, a)
	if err != nil {
		return nil, "order", err
	}
	if order == nil && a.resume {
		return nil, "order", errNothingPending
	}

	for types := a.challenges; order == nil || order.Status == xacme.StatusPending; types = types[1:] {
		if len(types) == 0 || order == nil && a.resume {
			return nil, "authorization", errors.New("no challenge succeeded") // a.problems say why
		}
		if order == nil {
			if order, key, err = is.order(ctx, a); err != nil {
				return nil, "newOrder", err
			}
			if order.Status != xacme.StatusPending {
				break // the CA remembers an earlier validation
			}
		}
		valid, err := is.authorize(ctx, a, order, types[0])
		if err != nil {
			return nil, types[0], err
		}
		switch {
		case valid:
			if order, err = is.await(ctx, a, order); err != nil {
				return nil, "order", err
			}
		case a.plan.Order == nil:
			order = nil // it failed with its authorization
		}
	}
	chain, step, err := is.finish(ctx, a, order, key)
	if err != nil {
		return nil, step, err
	}
	if cert, err = pair(a.name, key, chain); err != nil {
		a.plan.Order = nil // it will not get better
		return nil, "certificate", err
	}
	return cert, "", nil
}

// pending returns the order that an earlier attempt left, with its key, or nil if there is none that
// can be finished.
func (is *issuer) pending(ctx context.Context, a *orderFlow) (*xacme.Order, *ecdsa.PrivateKey, error) {
	if a.plan.Order == nil {
		return nil, nil, nil
	}
	key, err := certs.ParseKey(a.plan.Order.Key)
	if err == nil && a.plan.Order.hopeless(is.now(), a.impatient) {
		is.log.Warn("order given up: the CA does not come to an end with it", "domain", a.name, "ca", is.directory,
			"order", a.plan.Order.URL, "placed", a.plan.Order.Since, "taken_up", a.plan.Order.Taken)
		err = errNothingPending
	}
	if err == nil {
		a.plan.Order.Taken++
		if err := a.save(); err != nil {
			return nil, nil, &cahttp.StoreError{Err: err}
		}
		var order *xacme.Order
		order, err = a.client.GetOrder(ctx, a.plan.Order.URL)
		if err == nil && order.Status != xacme.StatusInvalid {
			return order, key, nil
		}
		if err != nil && !final(err) {
			return nil, nil, err
		}
	}
	a.plan.Order = nil
	return nil, nil, nil
}

// final reports whether err is the CA's last word on a resource: asking again would not help. What is no
// problem document is not the CA's word at all.
func final(err error) bool {
	var refused *xacme.Error
	if errors.As(err, &refused) {
		return refused.StatusCode/100 == 4 && refused.StatusCode != http.StatusTooManyRequests && refused.ProblemType != ""
	}
	// x/crypto takes "ready" for an error after finalize; it is a CA that has not got to it yet.
	var order *xacme.OrderError
	return errors.As(err, &order) && order.Status == xacme.StatusInvalid
}

// order places a new order, and stores what it takes to finish it.
func (is *issuer) order(ctx context.Context, a *orderFlow) (*xacme.Order, *ecdsa.PrivateKey, error) {
	key := a.reuse
	if key == nil {
		var err error
		if key, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader); err != nil {
			return nil, nil, err
		}
	}
	keyPEM, err := certs.EncodeKey(key)
	if err != nil {
		return nil, nil, err
	}
	var options []xacme.OrderOption
	if is.profile != "" {
		if _, ok := a.directory.Profiles[xacme.ProfileName(is.profile)]; ok {
			options = append(options, xacme.WithOrderIssuanceProfile(xacme.ProfileName(is.profile)))
		} else {
			is.withoutProfile(a, "the directory does not list it")
		}
	}

	a.ordered = true
	order, err := a.client.AuthorizeOrder(ctx, xacme.DomainIDs(a.name), options...)
	var refused *xacme.Error
	if errors.As(err, &refused) && cahttp.KindOf(refused.ProblemType) == "invalidProfile" && len(options) > 0 {
		is.withoutProfile(a, refused.Detail)
		options = nil
		order, err = a.client.AuthorizeOrder(ctx, xacme.DomainIDs(a.name))
	}
	if a.transport.replaces != "" && blamesReplaces(err) {
		// It may have been replaced already, or be another account's, or another CA's; or the CA stumbles
		// over it each time. The certificate matters more than what naming the old one saves.
		why := err
		a.transport.replaces = ""
		order, err = a.client.AuthorizeOrder(ctx, xacme.DomainIDs(a.name), options...)
		if err == nil {
			is.log.Info("order placed without naming the certificate that it replaces", "domain", a.name, "err", why)
			a.plan.NoReplaces = a.replaces
		}
	}
	if err != nil {
		a.ignored = !errors.As(err, &refused) || refused.StatusCode >= 500
		return nil, nil, err
	}
	a.plan.Order = &pendingOrder{URL: order.URI, Key: keyPEM, Since: is.now()}
	if err := a.save(); err != nil {
		return nil, nil, &cahttp.StoreError{Err: err}
	}
	return order, key, nil
}

// blamesReplaces reports whether an order that was answered with err may do better without naming the
// certificate that it replaces. That holds for all that the CA itself says, but that there are too many
// orders; trouble of its own, which was there again when the client repeated the order, included.
func blamesReplaces(err error) bool {
	var refused *xacme.Error
	return errors.As(err, &refused) && refused.ProblemType != "" && refused.StatusCode != http.StatusTooManyRequests
}

// withoutProfile says that the CA's default is ordered in place of the profile that is wanted. A
// certificate of another lifetime is better than none, and is renewed in its own time.
func (is *issuer) withoutProfile(a *orderFlow, why string) {
	var offered []string
	for name := range a.directory.Profiles {
		offered = append(offered, string(name))
	}
	slices.Sort(offered)
	is.log.Warn("certificate profile not to be had: ordering the CA's default", "domain", a.name,
		"profile", is.profile, "reason", why, "offered", strings.Join(offered, ", "))
}

// await returns the order when the CA has done with it what it is doing.
func (is *issuer) await(ctx context.Context, a *orderFlow, order *xacme.Order) (*xacme.Order, error) {
	order, err := a.client.WaitOrder(polling(ctx), order.URI)
	if err != nil && final(err) {
		a.plan.Order = nil
	}
	return order, err
}

// authorize proves that we answer for the name, by a challenge of type typ, and reports whether it did.
// If not, the order is still good only if the challenge was not offered.
func (is *issuer) authorize(ctx context.Context, a *orderFlow, order *xacme.Order, typ string) (bool, error) {
	for _, url := range order.AuthzURLs {
		z, err := a.client.GetAuthorization(ctx, url)
		if err != nil {
			return false, err
		}
		if z.Status == xacme.StatusValid {
			continue
		}
		i := slices.IndexFunc(z.Challenges, func(c *xacme.Challenge) bool { return c.Type == typ })
		if i < 0 {
			a.problems = append(a.problems, &cahttp.Problem{Step: typ, Detail: "the CA does not offer this challenge for the name"})
			return false, nil
		}
		chal := z.Challenges[i]
		token, answer, err := challenge.Answer(a.client, typ, a.name, chal.Token)
		if err != nil {
			return false, err
		}
		if err := is.tokens.Put(ctx, token, answer); err != nil {
			return false, &cahttp.StoreError{Err: err}
		}
		if z.Status == xacme.StatusPending && chal.Status == xacme.StatusPending {
			err = accept(ctx, a.client, chal)
		}
		if err == nil {
			_, err = a.client.WaitAuthorization(polling(ctx), url)
		}
		// If the CA has not said that it is done, it may still be looking: then the token stays.
		if err == nil || final(err) || errors.As(err, new(*xacme.AuthorizationError)) {
			is.tokens.Delete(ctx, token)
		}
		var refused *xacme.AuthorizationError
		if errors.As(err, &refused) {
			a.validations++
			a.plan.Order = nil
			a.problems = append(a.problems, cahttp.AuthorizationProblems(typ, refused)...)
			return false, nil
		}
		if err != nil {
			return false, err
		}
		a.challenge = typ
	}
	return true, nil
}

// accept asks the CA to validate the challenge. Whether a request arrived whose answer was lost cannot be
// told, so it is sent again: a CA that is validating already says so, or does nothing.
func accept(ctx context.Context, client *xacme.Client, c *xacme.Challenge) error {
	var err error
	for n := range 3 {
		if n > 0 {
			cahttp.Pause(ctx, time.Duration(n)*100*time.Millisecond)
		}
		_, err = client.Accept(ctx, c)
		switch {
		case n > 0 && final(err):
			return nil // it has begun, and the authorization will tell
		case err == nil || errors.As(err, new(*xacme.Error)):
			return err
		}
	}
	return err
}

// finish has the CA issue, unless it has done so, and returns the chain. If it fails, step says in what.
func (is *issuer) finish(ctx context.Context, a *orderFlow, order *xacme.Order, key *ecdsa.PrivateKey) (chain [][]byte, step string, err error) {
	if order.Status == xacme.StatusProcessing {
		if order, err = is.await(ctx, a, order); err != nil {
			return nil, "order", err
		}
	}
	if order.Status == xacme.StatusValid {
		chain, err = a.client.FetchCert(ctx, order.CertURL, true)
		return chain, "certificate", err
	}

	if !a.plan.Order.Final {
		a.plan.Order.Final = true
		a.plan.Issued = append(a.plan.Issued, is.now())
		if err := a.save(); err != nil {
			return nil, "finalize", &cahttp.StoreError{Err: err}
		}
	}
	// No common name: it is limited to 64 bytes, and nothing has looked at it for years.
	csr, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{DNSNames: []string{a.name}}, key)
	if err != nil {
		return nil, "finalize", err
	}
	chain, _, err = a.client.CreateCertFromOrder(polling(ctx), order, csr, true)
	switch {
	case err == nil:
		return chain, "", nil
	case a.transport.last != order.FinalizeURL && a.transport.last != order.URI:
		return nil, "certificate", err
	case !errors.As(err, new(*xacme.Error)) && !errors.As(err, new(*xacme.OrderError)):
		return nil, "finalize", err // no answer: the next attempt looks what came of it
	}
	// A finalize that was repeated is refused although the first one went through, and one replica of the
	// CA may not know yet what another has done. The order tells.
	fresh, lookErr := a.client.GetOrder(ctx, order.URI)
	if lookErr != nil {
		return nil, "finalize", err
	}
	switch fresh.Status {
	case xacme.StatusValid, xacme.StatusProcessing:
		if fresh, err = is.await(ctx, a, fresh); err != nil {
			return nil, "order", err
		}
		chain, err = a.client.FetchCert(ctx, fresh.CertURL, true)
		return chain, "certificate", err
	case xacme.StatusInvalid:
		a.plan.Order = nil
	case xacme.StatusReady:
		if !final(err) {
			return nil, "finalize", err // it may still be taken up
		}
		a.plan.Order.Final = false
	}
	a.plan.Issued = a.plan.Issued[:max(len(a.plan.Issued)-1, 0)] // it was not; those of last week are gone from it
	return nil, "finalize", err
}

// pair returns chain with its key, if it is what was ordered.
func pair(name string, key *ecdsa.PrivateKey, chain [][]byte) (*tls.Certificate, error) {
	if len(chain) == 0 {
		return nil, errors.New("the CA's chain is empty")
	}
	leaf, err := x509.ParseCertificate(chain[0])
	if err != nil {
		return nil, err
	}
	if !key.PublicKey.Equal(leaf.PublicKey) {
		return nil, errors.New("the CA certified another key")
	}
	if err := leaf.VerifyHostname(name); err != nil {
		return nil, err
	}
	return &tls.Certificate{Certificate: chain, PrivateKey: key, Leaf: leaf}, nil
}
