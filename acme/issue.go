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

// obtain implements [certifier]. Two attempts for one name at the same time would overwrite each other's
// challenge answers.
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

// run makes the attempt. If it fails, step names the part that failed: a resource of RFC 8555 section 7.1, or a
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
			return nil, "authorization", errors.New("no challenge succeeded") // a.problems has the reasons
		}
		if order == nil {
			if order, key, err = is.order(ctx, a); err != nil {
				return nil, "newOrder", err
			}
			if order.Status != xacme.StatusPending {
				break // the CA reuses an earlier validation
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
			order = nil // a failed authorization makes its order invalid
		}
	}
	chain, step, err := is.finish(ctx, a, order, key)
	if err != nil {
		return nil, step, err
	}
	if cert, err = pair(a.name, key, chain); err != nil {
		a.plan.Order = nil // the same order would give the same chain
		return nil, "certificate", err
	}
	return cert, "", nil
}

// pending returns the order that an earlier attempt left open, and its key. It returns nil if there is none, or if
// it cannot be finished.
func (is *issuer) pending(ctx context.Context, a *orderFlow) (*xacme.Order, *ecdsa.PrivateKey, error) {
	if a.plan.Order == nil {
		return nil, nil, nil
	}
	key, err := certs.ParseKey(a.plan.Order.Key)
	if err == nil && a.plan.Order.hopeless(is.now(), a.impatient) {
		is.log.Warn("order given up: the CA does not finish it", "domain", a.name, "ca", is.directory,
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

// final reports whether err is the CA's final answer about a resource, so that asking again does not help. An
// answer without a problem document is not the CA's.
func final(err error) bool {
	var refused *xacme.Error
	if errors.As(err, &refused) {
		return refused.StatusCode/100 == 4 && refused.StatusCode != http.StatusTooManyRequests && refused.ProblemType != ""
	}
	// After finalize, x/crypto reports the status "ready" as an error. The CA has only not begun to issue.
	var order *xacme.OrderError
	return errors.As(err, &order) && order.Status == xacme.StatusInvalid
}

// order places a new order. It stores the order's URL and key in the plan.
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
		// The certificate may have been replaced already, or belong to another account or CA, or the CA may fail over the
		// field each time. A certificate is worth more than the rate limit exemption that the field brings.
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

// blamesReplaces reports whether an order that failed with err may succeed without `replaces`. That is possible for
// every problem document but 429, including a 5xx that the client has met several times in a row.
func blamesReplaces(err error) bool {
	var refused *xacme.Error
	return errors.As(err, &refused) && refused.ProblemType != "" && refused.StatusCode != http.StatusTooManyRequests
}

// withoutProfile logs that the CA's default profile is ordered in place of the configured one. A certificate with
// another lifetime is better than none.
func (is *issuer) withoutProfile(a *orderFlow, why string) {
	var offered []string
	for name := range a.directory.Profiles {
		offered = append(offered, string(name))
	}
	slices.Sort(offered)
	is.log.Warn("certificate profile not available: ordering the CA's default", "domain", a.name,
		"profile", is.profile, "reason", why, "offered", strings.Join(offered, ", "))
}

// await waits until the CA has finished processing the order, and returns it.
func (is *issuer) await(ctx context.Context, a *orderFlow, order *xacme.Order) (*xacme.Order, error) {
	order, err := a.client.WaitOrder(polling(ctx), order.URI)
	if err != nil && final(err) {
		a.plan.Order = nil
	}
	return order, err
}

// authorize has the CA validate the name by a challenge of type typ, and reports whether it succeeded. If it did
// not, the order can still be used only if the CA did not offer that challenge.
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
		// Unless the CA has said that it is done, it may still ask for the answer, so the token stays.
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

// accept asks the CA to validate the challenge. If the answer to that request is lost, accept sends it again: a CA
// that is already validating refuses the second one, or ignores it.
func accept(ctx context.Context, client *xacme.Client, c *xacme.Challenge) error {
	var err error
	for n := range 3 {
		if n > 0 {
			cahttp.Pause(ctx, time.Duration(n)*100*time.Millisecond)
		}
		_, err = client.Accept(ctx, c)
		switch {
		case n > 0 && final(err):
			return nil // the CA is validating; the authorization will have the result
		case err == nil || errors.As(err, new(*xacme.Error)):
			return err
		}
	}
	return err
}

// finish has the CA issue, unless it has done so, and returns the chain. If it fails, step names the part that
// failed.
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
	// No common name: it is limited to 64 bytes, and clients have ignored it for years.
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
		return nil, "finalize", err // no answer from the CA: the next attempt reads the order's status
	}
	// The CA refuses a finalize that the client repeated, although the first one was accepted. A replica of the CA may
	// also not know yet what another replica has done. The status of the order decides.
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
			return nil, "finalize", err // the CA may still begin
		}
		a.plan.Order.Final = false
	}
	a.plan.Issued = a.plan.Issued[:max(len(a.plan.Issued)-1, 0)] // nothing was issued; times older than a week may have been removed meanwhile
	return nil, "finalize", err
}

// pair returns chain with its key. It fails if the certificate is not the one that was ordered.
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
