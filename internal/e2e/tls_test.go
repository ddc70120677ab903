package e2e

import (
	"context"
	"crypto/tls"
	"io"
	"net/http"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// tlsDial connects to s with config, sends a request, and returns the state of the TLS connection.
func (s *plusminus) tlsDial(config *tls.Config) (tls.ConnectionState, error) {
	s.t.Helper()
	config.RootCAs, config.ServerName = s.roots, "localhost"
	nc, err := (&tls.Dialer{Config: config}).DialContext(s.t.Context(), "tcp", s.addrs.HTTPS[0])
	if err != nil {
		return tls.ConnectionState{}, err
	}
	defer nc.Close()
	// The request is needed because the session tickets of TLS 1.3 come after the handshake.
	nc.SetDeadline(time.Now().Add(time.Minute))
	if _, err := io.WriteString(nc, "GET /state HTTP/1.0\r\nHost: localhost\r\n\r\n"); err != nil {
		return tls.ConnectionState{}, err
	}
	_, err = io.Copy(io.Discard, nc)
	return nc.(*tls.Conn).ConnectionState(), err
}

// TestTLSVersions checks which versions of TLS the server accepts.
func TestTLSVersions(t *testing.T) {
	t.Parallel()
	s := start(t)
	for _, tt := range []struct {
		version uint16
		ok      bool
	}{
		{tls.VersionTLS10, false},
		{tls.VersionTLS11, false},
		{tls.VersionTLS12, true},
		{tls.VersionTLS13, true},
	} {
		state, err := s.tlsDial(&tls.Config{MinVersion: tt.version, MaxVersion: tt.version, NextProtos: []string{"h2", "http/1.1"}})
		if (err == nil) != tt.ok || err == nil && (state.Version != tt.version || state.NegotiatedProtocol != "http/1.1") {
			t.Errorf("%s: version %x, protocol %q, %v, want ok %v and http/1.1", tls.VersionName(tt.version), state.Version, state.NegotiatedProtocol, err, tt.ok)
		}
	}
}

// TestCipherSuites offers each cipher suite for TLS 1.2 that Go knows, one at a time. The server accepts those with
// forward secrecy and authenticated encryption.
func TestCipherSuites(t *testing.T) {
	t.Parallel()
	s := start(t)
	accepted := 0
	for _, suite := range append(tls.CipherSuites(), tls.InsecureCipherSuites()...) {
		if suite.SupportedVersions[0] == tls.VersionTLS13 {
			continue // Go has no setting for these
		}
		modern := strings.Contains(suite.Name, "_GCM_") || strings.Contains(suite.Name, "_CHACHA20_")
		want := modern && strings.HasPrefix(suite.Name, "TLS_ECDHE_ECDSA_") // the certificate's key is ECDSA
		_, err := s.tlsDial(&tls.Config{MaxVersion: tls.VersionTLS12, CipherSuites: []uint16{suite.ID}})
		if (err == nil) != want {
			t.Errorf("%s: %v, want ok %v", suite.Name, err, want)
		}
		if err == nil {
			accepted++
		}
	}
	if accepted != 3 {
		t.Errorf("the server accepts %d suites, want 3", accepted)
	}
}

// TestSessionResumption checks that a second connection resumes the TLS session of the first one.
func TestSessionResumption(t *testing.T) {
	t.Parallel()
	s := start(t)
	for _, version := range []uint16{tls.VersionTLS12, tls.VersionTLS13} {
		cache := tls.NewLRUClientSessionCache(1)
		for _, resumed := range []bool{false, true} {
			state, err := s.tlsDial(&tls.Config{MinVersion: version, MaxVersion: version, ClientSessionCache: cache})
			if err != nil || state.DidResume != resumed {
				t.Errorf("%s: resumed %v, %v, want %v", tls.VersionName(version), state.DidResume, err, resumed)
			}
		}
	}
}

// TestRenegotiation checks that the server disconnects a client that renegotiates, which costs the server far more than
// the client. Go's client cannot renegotiate, so OpenSSL does.
func TestRenegotiation(t *testing.T) {
	t.Parallel()
	openssl, err := exec.LookPath("openssl")
	if err != nil {
		t.Skip("OpenSSL is not installed (Debian: openssl)")
	}
	s := start(t)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	// A line with R alone makes s_client renegotiate.
	cmd := exec.CommandContext(ctx, openssl, "s_client", "-connect", s.addrs.HTTPS[0], "-servername", "localhost", "-tls1_2")
	cmd.Stdin = strings.NewReader("R\n")
	out, err := cmd.CombinedOutput()
	_, after, ok := strings.Cut(string(out), "RENEGOTIATING")
	if !ok || !strings.Contains(after, "SSL alert number") || exitStatus(err) != 1 {
		t.Errorf("openssl s_client: %v and\n%s\nwant an alert after it has begun to renegotiate", err, out)
	}
}

// TestHSTS checks that the server sends HSTS with a certificate that the system trusts, for requests to port 443.
func TestHSTS(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	roots := writeCertificate(t, dir, "localhost")
	s := newFakeSystemd(t, []string{"https", "admin"}, "-http", "off",
		"-cert", filepath.Join(dir, "cert.pem"), "-key", filepath.Join(dir, "key.pem"))
	s.env = []string{"SSL_CERT_FILE=" + filepath.Join(dir, "cert.pem")} // the CAs that the system trusts
	s.start()
	s.waitReady()
	s.roots = roots
	for _, tt := range []struct{ host, want string }{
		{"localhost", "max-age=31536000"},
		{"localhost:443", "max-age=31536000"},
		{"localhost.", "max-age=31536000"},
		{"localhost:8443", ""},
	} {
		resp, _ := s.get("https://localhost/", tt.host)
		if got := resp.Header.Get("Strict-Transport-Security"); got != tt.want || resp.StatusCode != http.StatusOK {
			t.Errorf("Host %s: %s, HSTS %q, want 200 and %q", tt.host, resp.Status, got, tt.want)
		}
	}
	resp, _ := s.get("https://localhost/", "other.example")
	if got := resp.Header.Get("Strict-Transport-Security"); got != "" {
		t.Errorf("Host other.example: HSTS %q, want none", got)
	}
}
