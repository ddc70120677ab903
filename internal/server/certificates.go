package server

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"errors"
	"fmt"
	"net/http"
	"os"
	"slices"

	"plusminus/acme"
	"plusminus/hub/valkey"
	"plusminus/internal/admin"
	"plusminus/internal/config"
	"plusminus/internal/store"
)

// certificates is all that differs between a server with TLS and one with -plain.
type certificates interface {
	admin.Certificates

	// Run obtains and renews certificates until ctx ends.
	Run(ctx context.Context) error

	// Reload reads certificate files again, and asks CAs when they want a renewal.
	Reload()

	// PubliclyTrusted reports whether browsers trust the certificate that is served for the domain.
	PubliclyTrusted(domain string) bool

	// TLSConfig returns the configuration of the TLS listeners. It is called before Run.
	TLSConfig() *tls.Config

	// plainHandler returns what the plain listener serves: page, or challenges and redirect. It is
	// called before Run.
	plainHandler(page, redirect http.Handler) http.Handler
}

// fromProvider serves TLS with the certificates of package acme.
type fromProvider struct{ *acme.Provider }

func (p fromProvider) plainHandler(_, redirect http.Handler) http.Handler {
	return p.HTTPHandler(redirect)
}

// noCertificates serves without TLS (-plain): there are no TLS listeners, and the plain one serves the
// page.
type noCertificates struct{}

func (noCertificates) Ready() error                                   { return nil }
func (noCertificates) Complete() error                                { return nil }
func (noCertificates) Status() []acme.Status                          { return []acme.Status{} }
func (noCertificates) Renew(context.Context, string) error            { return acme.ErrUnknownDomain }
func (noCertificates) Run(context.Context) error                      { return nil }
func (noCertificates) Reload()                                        {}
func (noCertificates) PubliclyTrusted(string) bool                    { return false }
func (noCertificates) TLSConfig() *tls.Config                         { return nil }
func (noCertificates) plainHandler(page, _ http.Handler) http.Handler { return page }

// openCertificates opens the certificates that cfg asks for.
func (s *Server) openCertificates(cfg *config.Config, files *Files) (certificates, error) {
	if cfg.Plain {
		return noCertificates{}, nil
	}
	c, closeShared := files.ACME(cfg)
	s.closers = append(s.closers, closeShared)
	c.Logger = s.log
	_, sharedCounter := files.Store.(store.Valkey)
	ordered := func(d acme.Domain) bool { return !d.Local }
	switch {
	case c.Shared != nil:
		s.log.Info("sharing certificates", "store", c.Shared.String())
	case sharedCounter && cfg.CertFile == "" && slices.ContainsFunc(cfg.Domains, ordered):
		s.log.Info("certificates stay in the data folder: with -store-key-file replicas share them through the store", "data", cfg.Data)
	}
	p, err := acme.New(c)
	return fromProvider{p}, err
}

// Files is what the files that a configuration names hold.
type Files struct {
	Store store.Spec // that of the configuration, with the roots and password file to use

	caRoots             *x509.CertPool // nil is the system's roots
	eabKey, fallbackKey []byte
	sealKeys            [][]byte
}

// ReadFiles reads the files that cfg names. The error is a [config.UsageError] that names the flag of
// each file that cannot be used.
func ReadFiles(cfg *config.Config) (*Files, error) {
	f := &Files{Store: cfg.Store}
	var errs []error
	read := func(flagName, file string, use func(data []byte) error) {
		if file == "" {
			return
		}
		data, err := os.ReadFile(file)
		if err == nil {
			err = use(data)
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("-%s: %w", flagName, err))
		}
	}
	read("acme-ca-root", cfg.ACMECARoot, func(data []byte) (err error) {
		f.caRoots, err = parseRoots(cfg.ACMECARoot, data)
		return err
	})
	read("acme-eab-key-file", cfg.EABKeyFile, func(data []byte) (err error) {
		f.eabKey, err = parseEABKey(cfg.EABKeyFile, data)
		return err
	})
	read("acme-fallback-eab-key-file", cfg.FallbackEABKeyFile, func(data []byte) (err error) {
		f.fallbackKey, err = parseEABKey(cfg.FallbackEABKeyFile, data)
		return err
	})
	read("store-key-file", cfg.StoreKeyFile, func(data []byte) (err error) {
		f.sealKeys, err = acme.ParseSealKeys(data)
		return err
	})
	if server, ok := cfg.Store.(store.Valkey); ok {
		read("store-password-file", cfg.StorePasswordFile, func([]byte) error {
			server.PasswordFile = cfg.StorePasswordFile // read again at each connection
			return nil
		})
		read("store-ca-root", cfg.StoreCARoot, func(data []byte) (err error) {
			server.TLS = server.TLS.Clone()
			server.TLS.RootCAs, err = parseRoots(cfg.StoreCARoot, data)
			return err
		})
		f.Store = server
	}
	if err := errors.Join(errs...); err != nil {
		return nil, config.UsageError{Err: err}
	}
	return f, nil
}

// ACME returns the configuration of package acme, without a logger. The second result closes the
// connection to the store that replicas share certificates through.
func (f *Files) ACME(cfg *config.Config) (acme.Config, func() error) {
	c := acme.Config{
		Domains:      cfg.Domains,
		Dir:          cfg.Data,
		CertFile:     cfg.CertFile,
		KeyFile:      cfg.KeyFile,
		ImportDir:    cfg.Import,
		DirectoryURL: cfg.ACMEDirectory,
		RootCAs:      f.caRoots,
		Email:        cfg.ACMEEmail,
		EABKeyID:     cfg.EABKeyID,
		EABKey:       f.eabKey,
		Profile:      cfg.ACMEProfile,

		FallbackURL:      cfg.Fallback,
		FallbackEABKeyID: cfg.FallbackEABKeyID,
		FallbackEABKey:   f.fallbackKey,
	}
	server, ok := f.Store.(store.Valkey)
	if !ok || f.sealKeys == nil {
		return c, func() error { return nil }
	}
	shared := valkey.NewFiles(server.Config)
	c.Shared, c.SealKeys = shared, f.sealKeys
	return c, func() error { shared.Close(); return nil }
}

// parseRoots parses PEM certificates, which were read from file.
func parseRoots(file string, data []byte) (*x509.CertPool, error) {
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(bytes.TrimPrefix(data, []byte("\xef\xbb\xbf"))) { // with a byte order mark, the first root would be skipped
		return nil, fmt.Errorf("%s holds no PEM certificate", file)
	}
	return roots, nil
}

// parseEABKey parses the HMAC key of an external account binding, which CAs print in base64url. It was
// read from file. https://www.rfc-editor.org/rfc/rfc8555#section-7.3.4
func parseEABKey(file string, data []byte) ([]byte, error) {
	data = bytes.TrimRight(bytes.TrimSpace(data), "=")
	key, err := base64.RawURLEncoding.DecodeString(string(data))
	if err != nil || len(key) == 0 {
		return nil, fmt.Errorf("%s holds no base64url text", file)
	}
	return key, nil
}
