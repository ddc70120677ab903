// Command autocert is a minimal server that gets its certificate by autocert, and a peer in
// bench start. It sets only what autocert's documentation sets. So it orders the certificate
// when the first visitor connects, and the visitor waits for it.
package main

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"flag"
	"fmt"
	"net/http"
	"os"

	"golang.org/x/crypto/acme"
	"golang.org/x/crypto/acme/autocert"
)

func main() {
	domain := flag.String("domain", "", "`name` to serve")
	addr := flag.String("https", ":443", "TLS `address` to listen on")
	directory := flag.String("directory", acme.LetsEncryptURL, "directory `URL` of the CA")
	root := flag.String("root", "", "PEM `file` with the root that verifies the certificate of the CA's API")
	cache := flag.String("cache", "cache", "`folder` for certificates and the account key")
	flag.Parse()
	if err := serve(*domain, *addr, *directory, *root, *cache); err != nil {
		fmt.Fprintln(os.Stderr, "autocert:", err)
		os.Exit(1)
	}
}

func serve(domain, addr, directory, root, cache string) error {
	pem, err := os.ReadFile(root)
	if err != nil {
		return err
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(pem) {
		return errors.New("no certificate in " + root)
	}
	transport := http.DefaultTransport.(*http.Transport).Clone()
	transport.TLSClientConfig = &tls.Config{RootCAs: roots}

	m := &autocert.Manager{
		Prompt:     autocert.AcceptTOS,
		HostPolicy: autocert.HostWhitelist(domain),
		Cache:      autocert.DirCache(cache),
		Client:     &acme.Client{DirectoryURL: directory, HTTPClient: &http.Client{Transport: transport}},
	}
	ln, err := tls.Listen("tcp", addr, m.TLSConfig())
	if err != nil {
		return err
	}
	return http.Serve(ln, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		fmt.Fprintln(w, "hello")
	}))
}
