package acme

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"slices"

	xacme "golang.org/x/crypto/acme"
	"golang.org/x/crypto/acme/autocert"

	"plusminus/acme/internal/cahttp"
	"plusminus/acme/internal/challenge"
)

// AddressProfile is the only profile with which Let's Encrypt certifies IP addresses. Its certificates are valid for 160
// hours. A CA whose directory lists profiles without this one gets no order; one that lists no profiles at all gets an
// order without profile. https://letsencrypt.org/docs/profiles/#shortlived
const AddressProfile = "shortlived"

// fetchAddress gets a certificate for the IP address of t (RFC 8738), which autocert cannot order (golang/crypto#336). It
// does for an address what autocert.Manager does for a name, and sends its requests through the same transport. So the
// plan, the budget and what the transport adds hold for it, too. The result has only the key.
func (t *transport) fetchAddress(client *xacme.Client) (*tls.Certificate, error) {
	if len(t.directory.Profiles) == 0 {
		t.profile = ""
	} else if _, ok := t.directory.Profiles[AddressProfile]; !ok {
		return nil, t.end("directory", &cahttp.ProfileError{Profile: AddressProfile, Offered: t.profiles()})
	}
	account := &xacme.Account{ExternalAccountBinding: t.is.eab}
	if t.is.email != "" {
		account.Contact = []string{"mailto:" + t.is.email}
	}
	if _, err := client.Register(t.ctx, account, autocert.AcceptTOS); err != nil && !errors.Is(err, xacme.ErrAccountAlreadyExists) {
		return nil, err
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	// "CSR contains IP address in Common Name" is what Let's Encrypt refuses, so there is no common name.
	csr, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{IPAddresses: []net.IP{t.address.AsSlice()}}, key)
	if err != nil {
		return nil, err
	}
	for {
		order, err := client.AuthorizeOrder(t.ctx, xacme.IPIDs(t.name))
		if err != nil {
			return nil, err
		}
		if err := t.authorize(client, order); err != nil {
			// A failed validation has made the order invalid. The transport ends the attempt if no challenge type is
			// left, or if something else has failed.
			continue
		}
		_, _, err = client.CreateCertFromOrder(t.ctx, order, csr, true)
		return &tls.Certificate{PrivateKey: key}, err
	}
}

// authorize makes the CA validate the address, unless order is ready.
func (t *transport) authorize(client *xacme.Client, order *xacme.Order) error {
	if order.Status == xacme.StatusReady {
		return nil
	}
	for _, address := range order.AuthzURLs {
		authorization, err := client.GetAuthorization(t.ctx, address)
		if err != nil {
			return err
		}
		if authorization.Status != xacme.StatusPending {
			continue
		}
		if err := t.fulfil(client, authorization.Challenges); err != nil {
			return err
		}
		if _, err := client.WaitAuthorization(t.ctx, address); err != nil {
			return err
		}
	}
	_, err := client.WaitOrder(t.ctx, order.URI)
	return err
}

// fulfil answers the first of the challenges, and tells the CA that the answer is there. The transport has left only those
// that are to be tried. tls-alpn-01 comes first, as with autocert.
func (t *transport) fulfil(client *xacme.Client, challenges []*xacme.Challenge) error {
	for _, typ := range []string{challenge.TLSALPN01, challenge.HTTP01} {
		i := slices.IndexFunc(challenges, func(c *xacme.Challenge) bool { return c.Type == typ })
		if i < 0 {
			continue
		}
		name, answer, err := challenge.Answer(client, typ, t.name, challenges[i].Token)
		if err == nil {
			err = cache{t}.Put(t.ctx, name, answer)
		}
		if err == nil {
			_, err = client.Accept(t.ctx, challenges[i])
		}
		return err
	}
	return fmt.Errorf("no challenge to try for %s", t.name)
}
