package acme

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net/http"
	"net/url"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	xacme "golang.org/x/crypto/acme"
)

const (
	// attemptTimeout bounds an attempt from the first request to the certificate. What is open then is
	// taken up by the next attempt.
	attemptTimeout = 10 * time.Minute

	// maxSkew is how far our clock may be from the CA's for an order to make sense. Beyond it, the
	// certificate may not be valid yet by our clock, or have expired, and the next order would follow.
	maxSkew = 10 * time.Minute
)

// The two challenge types that can be answered with nothing but this server.
const (
	tlsALPN01 = "tls-alpn-01" // RFC 8737
	http01    = "http-01"     // RFC 8555 section 8.3
)

// The files of the account key and its copy.
const (
	accountKeyName   = "acme_account+key" // autocert's caches call it so too
	accountKeyBackup = accountKeyName + ".backup"
)

// An issuer places orders with one CA directory, for one account.
type issuer struct {
	// Immutable after newIssuer.
	directory string
	profile   string
	email     string
	eab       *xacme.ExternalAccountBinding // nil if the CA needs none
	store     store
	copies    *folder // what is used if store has no account key; nil if store is a folder itself
	tokens    *tokens
	conns     *http.Transport
	base      *bounded // over conns
	now       func() time.Time
	log       *slog.Logger

	// Safe from any goroutine.
	accounts chan struct{} // holds one element while a newAccount request is under way; never closed

	mu sync.Mutex
	// Guarded by mu.
	key *ecdsa.PrivateKey // the account's; nil until it could be read
}

// newIssuer opens the directory's state, which has the given name in the folder dir, and loads the account
// key or makes one. If what is shared is away now, that is done when the key is needed.
func newIssuer(ctx context.Context, cfg *Config, seal *sealer, directory, dir, name string, tokens *tokens) (*issuer, error) {
	store, copies, err := openStore(cfg, seal, dir, name)
	if err != nil {
		return nil, err
	}
	conns := newTransport(cfg.RootCAs)
	is := &issuer{
		directory: directory,
		profile:   cfg.Profile,
		email:     cfg.Email,
		store:     store,
		copies:    copies,
		tokens:    tokens,
		conns:     conns,
		base:      &bounded{conns, cfg.requestTimeout},
		now:       cfg.now,
		log:       cfg.Logger,
		accounts:  make(chan struct{}, 1),
	}
	if cfg.EABKeyID != "" {
		is.eab = &xacme.ExternalAccountBinding{KID: cfg.EABKeyID, Key: cfg.EABKey}
	}
	if _, err := is.accountKey(ctx); err != nil && !errors.Is(err, errAway) {
		return nil, fmt.Errorf("acme: account key: %w", err)
	}
	return is, nil
}

// openStore opens the folder called name in dir or, if cfg has replicas share things otherwise, what has
// the same name there; then copies is the folder.
func openStore(cfg *Config, seal *sealer, dir, name string) (st store, copies *folder, err error) {
	f, err := openFolder(filepath.Join(dir, name), cfg.now, cfg.Logger)
	switch {
	case cfg.Shared == nil:
		return f, nil, err
	case err != nil:
		cfg.Logger.Warn("no copies in the data folder: a start while the shared store is away would find nothing to serve", "err", err)
		f = &folder{dir: filepath.Join(dir, name), now: cfg.now, log: cfg.Logger}
	}
	return &sharedStore{shared: cfg.Shared, seal: seal, prefix: "acme/" + name + "/", copies: f, now: cfg.now, log: cfg.Logger}, f, nil
}

// accountKey returns the account key, which it reads or makes unless that is done.
func (is *issuer) accountKey(ctx context.Context) (*ecdsa.PrivateKey, error) {
	is.mu.Lock()
	defer is.mu.Unlock()
	if is.key != nil {
		return is.key, nil
	}
	return is.loadKeyLocked(ctx)
}

func (is *issuer) loadKeyLocked(ctx context.Context) (*ecdsa.PrivateKey, error) {
	key, err := loadAccountKey(ctx, is.store, is.knownKeyLocked, is.log)
	if err == nil {
		is.key = key
	}
	return key, err
}

// knownKeyLocked returns the account key as far as it is known without the store, or nil.
func (is *issuer) knownKeyLocked() *ecdsa.PrivateKey {
	if is.key != nil || is.copies == nil {
		return is.key
	}
	key, _ := load(is.copies, accountKeyName, parseKey)
	return key
}

// restore stores the account key again if it is gone, or takes over the one that another replica has
// stored since.
func (is *issuer) restore() error {
	if v, err := is.store.version(accountKeyName); err != nil || v != "" {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), openTimeout)
	defer cancel()
	is.mu.Lock()
	defer is.mu.Unlock()
	_, err := is.loadKeyLocked(ctx)
	return err
}

// newTransport returns what carries requests to a CA. roots is whom to trust; nil is the system's roots.
func newTransport(roots *x509.CertPool) *http.Transport {
	conns := http.DefaultTransport.(*http.Transport).Clone()
	conns.TLSClientConfig = &tls.Config{RootCAs: roots}
	return conns
}

// loadAccountKey returns the account key, or its copy, or a new one. Losing it would cost the limits
// that the CA keeps by account, and the right to name a certificate as replaced. What known returns, unless it
// is nil, is taken before a new one is made.
func loadAccountKey(ctx context.Context, st store, known func() *ecdsa.PrivateKey, log *slog.Logger) (*ecdsa.PrivateKey, error) {
	read := func() (key, saved *ecdsa.PrivateKey, err error) {
		key, err = load(st, accountKeyName, parseKey)
		saved, errSaved := load(st, accountKeyBackup, parseKey)
		for _, err := range []error{err, errSaved} {
			if err != nil && !errors.Is(err, fs.ErrNotExist) && key == nil && saved == nil {
				return nil, nil, err // it is there, and making another would lose it
			}
		}
		return key, saved, nil
	}
	if key, saved, err := read(); err == nil && key != nil && saved != nil && key.Equal(saved) {
		return key, nil // without a lock, for which the disk would have to be writable
	}
	release, err := waitLock(ctx, st, accountKeyName) // replicas that start together share one account
	if err != nil {
		return nil, err
	}
	defer release()
	key, saved, err := read()
	ok, okSaved := key != nil, saved != nil
	switch {
	case err != nil:
		return nil, err
	case ok && okSaved && key.Equal(saved):
		return key, nil
	case !ok && okSaved:
		key = saved
		log.Warn("account key restored from its copy", "file", st.path(accountKeyName))
	case !ok:
		if key = known(); key != nil {
			break
		}
		if key, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader); err != nil {
			return nil, err
		}
	}
	data, err := encodeKey(key)
	if err != nil {
		return nil, err
	}
	for _, name := range []string{accountKeyName, accountKeyBackup} {
		if err := st.write(name, data); err != nil {
			if ok || okSaved { // the disk is in trouble, but we have what we need
				log.Warn("account key not copied", "file", st.path(name), "err", err)
				break
			}
			return nil, err
		}
	}
	return key, nil
}

// directoryName returns the name of the folder in which a CA directory's state is kept: its host, to
// be read by people, and a part of the URL's hash, since one host can have several directories.
func directoryName(directoryURL string) string {
	sum := sha256.Sum256([]byte(directoryURL))
	host := "ca"
	if u, err := url.Parse(directoryURL); err == nil {
		host = strings.NewReplacer(":", "_", "[", "", "]", "", "/", "_").Replace(u.Host)
	}
	return host + "-" + hex.EncodeToString(sum[:4])
}

// stored returns the certificate that is stored for name; it may have expired. The error is
// [fs.ErrNotExist] if there is none of use, as [load] says.
func (is *issuer) stored(name string) (*tls.Certificate, error) { return storedIn(is.store, name) }

func storedIn(st store, name string) (*tls.Certificate, error) {
	return load(st, name, func(data []byte) (*tls.Certificate, error) {
		cert, err := tls.X509KeyPair(data, data)
		if err != nil {
			return nil, err
		}
		return &cert, cert.Leaf.VerifyHostname(name)
	})
}

// keep stores cert for name.
func (is *issuer) keep(name string, cert *tls.Certificate) error {
	key, ok := cert.PrivateKey.(*ecdsa.PrivateKey)
	if !ok {
		return fmt.Errorf("key is a %T", cert.PrivateKey)
	}
	data, err := encodePair(key, cert.Certificate)
	if err != nil {
		return err
	}
	return is.store.write(name, data)
}

// client returns a client of the CA for one attempt, so that each attempt learns anew what the
// directory says and whether the account exists.
func (is *issuer) client(t *transport) *xacme.Client {
	return &xacme.Client{
		Key:          t.key,
		DirectoryURL: is.directory,
		HTTPClient:   &http.Client{Transport: t},
		UserAgent:    "plusminus",
		RetryBackoff: retryBackoff,
	}
}

// An attempt is one try to get a certificate for one name. It belongs to one goroutine.
type attempt struct {
	// What to do.
	name       string
	challenges []string          // to be tried in this order; not empty
	reuse      *ecdsa.PrivateKey // the key to certify; nil is a new one
	replaces   string            // ARI id of the certificate to replace; may be empty
	resume     bool              // only finish the pending order: place no new one
	impatient  bool              // somebody waits: do not go on for long with an order that leads nowhere

	// plan.Order is the order to go on with, if any, and is kept up to date with save, so that a
	// process that dies can be followed by one that goes on.
	plan *plan
	save func() error

	// What came of it.
	challenge   string     // the type that succeeded, if there had to be one
	validations int        // how many failed
	ordered     bool       // a newOrder was sent
	ignored     bool       // the CA was not able to consider it
	problems    []*problem // what failed on the way

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
	cert, step, err := is.run(ctx, a)
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
func (is *issuer) run(ctx context.Context, a *attempt) (cert *tls.Certificate, step string, err error) {
	account, err := is.accountKey(ctx)
	if err != nil {
		return nil, "store", &storeError{err}
	}
	a.transport = &transport{base: is.base, key: account, now: is.now, replaces: a.replaces}
	a.client = is.client(a.transport)
	if a.directory, err = a.client.Discover(ctx); err != nil {
		return nil, "directory", err
	}
	a.transport.newOrder = a.directory.OrderURL
	if skew := a.transport.skew; skew.Abs() > maxSkew {
		return nil, "clock", &clockError{skew}
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

// A clockError says by how much the CA's clock is ahead of ours.
type clockError struct{ skew time.Duration }

func (e *clockError) Error() string { return "nothing was ordered: " + e.off() }

// off says by how much the clock is off.
func (e *clockError) off() string {
	where := "behind"
	if e.skew < 0 {
		where = "ahead of"
	}
	return fmt.Sprintf("this machine's clock is %v %s the CA's", e.skew.Abs().Round(10*time.Second), where)
}

// A storeError says that a file could not be written.
type storeError struct{ err error }

func (e *storeError) Error() string {
	return "stopped before anything was issued, since it could not be stored: " + e.err.Error()
}
func (e *storeError) Unwrap() error { return e.err }

// register makes sure that there is an account. One that exists is only looked up, so that an external
// account binding, which a CA may accept but once, is sent but once.
func (is *issuer) register(ctx context.Context, client *xacme.Client) error {
	// A CA that is asked to make the same account twice at once may fail one of the two; Pebble does.
	select {
	case is.accounts <- struct{}{}:
		defer func() { <-is.accounts }()
	case <-ctx.Done():
		return ctx.Err()
	}
	_, err := client.GetReg(ctx, "")
	if !errors.Is(err, xacme.ErrNoAccount) {
		return err
	}
	account := &xacme.Account{ExternalAccountBinding: is.eab}
	if is.email != "" {
		account.Contact = []string{"mailto:" + is.email}
	}
	_, err = client.Register(ctx, account, xacme.AcceptTOS)
	if errors.Is(err, xacme.ErrAccountAlreadyExists) { // another replica was quicker
		return nil
	}
	return err
}

// pending returns the order that an earlier attempt left, with its key, or nil if there is none that
// can be finished.
func (is *issuer) pending(ctx context.Context, a *attempt) (*xacme.Order, *ecdsa.PrivateKey, error) {
	if a.plan.Order == nil {
		return nil, nil, nil
	}
	key, err := parseKey(a.plan.Order.Key)
	if err == nil && a.plan.Order.hopeless(is.now(), a.impatient) {
		is.log.Warn("order given up: the CA does not come to an end with it", "domain", a.name, "ca", is.directory,
			"order", a.plan.Order.URL, "placed", a.plan.Order.Since, "taken_up", a.plan.Order.Taken)
		err = errNothingPending
	}
	if err == nil {
		a.plan.Order.Taken++
		if err := a.save(); err != nil {
			return nil, nil, &storeError{err}
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
func (is *issuer) order(ctx context.Context, a *attempt) (*xacme.Order, *ecdsa.PrivateKey, error) {
	key := a.reuse
	if key == nil {
		var err error
		if key, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader); err != nil {
			return nil, nil, err
		}
	}
	keyPEM, err := encodeKey(key)
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
	if errors.As(err, &refused) && kindOf(refused.ProblemType) == "invalidProfile" && len(options) > 0 {
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
	a.plan.Order = &pending{URL: order.URI, Key: keyPEM, Since: is.now()}
	if err := a.save(); err != nil {
		return nil, nil, &storeError{err}
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
func (is *issuer) withoutProfile(a *attempt, why string) {
	var offered []string
	for name := range a.directory.Profiles {
		offered = append(offered, string(name))
	}
	slices.Sort(offered)
	is.log.Warn("certificate profile not to be had: ordering the CA's default", "domain", a.name,
		"profile", is.profile, "reason", why, "offered", strings.Join(offered, ", "))
}

// await returns the order when the CA has done with it what it is doing.
func (is *issuer) await(ctx context.Context, a *attempt, order *xacme.Order) (*xacme.Order, error) {
	order, err := a.client.WaitOrder(polling(ctx), order.URI)
	if err != nil && final(err) {
		a.plan.Order = nil
	}
	return order, err
}

// authorize proves that we answer for the name, by a challenge of type typ, and reports whether it did.
// If not, the order is still good only if the challenge was not offered.
func (is *issuer) authorize(ctx context.Context, a *attempt, order *xacme.Order, typ string) (bool, error) {
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
			a.problems = append(a.problems, &problem{step: typ, detail: "the CA does not offer this challenge for the name"})
			return false, nil
		}
		challenge := z.Challenges[i]
		token, answer, err := is.answer(a, challenge)
		if err != nil {
			return false, err
		}
		if err := is.tokens.Put(ctx, token, answer); err != nil {
			return false, &storeError{err}
		}
		if z.Status == xacme.StatusPending && challenge.Status == xacme.StatusPending {
			err = accept(ctx, a.client, challenge)
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
			a.problems = append(a.problems, authorizationProblems(typ, refused)...)
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
			pause(ctx, time.Duration(n)*100*time.Millisecond)
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

// answer returns what the responder has to answer to the challenge, and under which name it looks for it.
func (is *issuer) answer(a *attempt, c *xacme.Challenge) (token string, answer []byte, err error) {
	if c.Type == http01 {
		body, err := a.client.HTTP01ChallengeResponse(c.Token)
		return c.Token + "+http-01", []byte(body), err
	}
	cert, err := a.client.TLSALPN01ChallengeCert(c.Token, a.name)
	if err != nil {
		return "", nil, err
	}
	key, ok := cert.PrivateKey.(*ecdsa.PrivateKey)
	if !ok {
		return "", nil, fmt.Errorf("key of the challenge certificate is a %T", cert.PrivateKey)
	}
	answer, err = encodePair(key, cert.Certificate)
	return a.name + "+token", answer, err
}

// finish has the CA issue, unless it has done so, and returns the chain. If it fails, step says in what.
func (is *issuer) finish(ctx context.Context, a *attempt, order *xacme.Order, key *ecdsa.PrivateKey) (chain [][]byte, step string, err error) {
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
			return nil, "finalize", &storeError{err}
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
