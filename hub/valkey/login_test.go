package valkey

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"plusminus/hub/valkey/redistest"
)

// The ACL rule that the docs show is enough, over TLS. The error for a wrong password does not
// show the password.
func TestLogin(t *testing.T) {
	t.Parallel()
	cert, key := selfSigned(t)
	port := redistest.FreePort(t)
	srv := redistest.Start(t, "--tls-port", port, "--tls-cert-file", cert, "--tls-key-file", key, "--tls-auth-clients", "no")
	rule, _, _ := strings.Cut(aclRule(t), "\n")
	srv.Do(append([]string{"ACL", "SETUSER"}, strings.Fields(strings.Replace(rule, "PASSWORD", "s3cret:/?", 1))...)...)
	cfg, err := ParseURL("rediss://plusminus@127.0.0.1:" + port + "/2?prefix=plusminus")
	if err != nil {
		t.Fatal(err)
	}
	stranger := newMember(t, cfg)
	if _, err := stranger.Load(t.Context()); err == nil || !strings.Contains(err.Error(), "certificate") {
		t.Errorf("Load with the system's roots = %v, want an error about the certificate", err)
	}
	stranger.Close()
	pem, err := os.ReadFile(cert)
	if err != nil {
		t.Fatal(err)
	}
	cfg.TLS.RootCAs = x509.NewCertPool()
	cfg.TLS.RootCAs.AppendCertsFromPEM(pem)
	file := filepath.Join(t.TempDir(), "password")
	cfg.PasswordFile = file
	os.WriteFile(file, []byte("wr0ng\n"), 0o600)
	m := newMember(t, cfg)
	if _, err := m.Load(t.Context()); err == nil || !strings.Contains(err.Error(), "WRONGPASS") || strings.Contains(err.Error(), "wr0ng") {
		t.Errorf("Load with a wrong password = %v, want WRONGPASS without the password", err)
	}
	os.WriteFile(file, []byte("s3cret:/?\n"), 0o600) // corrected while the store runs
	m.awaitUp()
	m.mustApply(1)
	m.Announce("", 1)
	other := newMember(t, cfg)
	await(t, "another member has the news", 5*time.Second, func() bool { return other.news().Others == 1 })
	m.mustApply(1)
	await(t, "another member has the news", time.Second, func() bool { return other.news().Snapshot.Value == 2 })
	m.Close()
	await(t, "the member has stopped", time.Second, func() bool { return other.news().Others == 0 })
	files := NewFiles(cfg)
	defer files.Close()
	release := lock(t, files, "x")
	for _, life := range []time.Duration{0, time.Minute} {
		if err := files.Put(t.Context(), "one", "x", []byte("1"), life); err != nil {
			t.Error(err)
		}
	}
	if data, _, err := files.Get(t.Context(), "one"); err != nil || string(data) != "1" {
		t.Errorf("Get = %q, %v, want 1", data, err)
	}
	if err := files.Delete(t.Context(), "one"); err != nil {
		t.Error(err)
	}
	release()
	lock(t, files, "x")() // the lock is free again
	if strings.Contains(m.logs.String(), "s3cret") || strings.Contains(fmt.Sprint(m.cfg), "s3cret") {
		t.Error("the log or the Config shows the password")
	}
}

// aclRule returns the ACL rule that the docs show.
func aclRule(t *testing.T) string {
	t.Helper()
	_, rule, ok := strings.Cut(docs(t), "ACL SETUSER ")
	if !ok {
		t.Fatal("the docs show no ACL rule")
	}
	return strings.ReplaceAll(rule, "\\\n", " ")
}

// selfSigned makes a self-signed certificate for 127.0.0.1 and returns its files.
func selfSigned(t *testing.T) (certFile, keyFile string) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	pkcs8, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	certFile, keyFile = filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem")
	os.WriteFile(certFile, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), 0o600)
	os.WriteFile(keyFile, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: pkcs8}), 0o600)
	return certFile, keyFile
}
