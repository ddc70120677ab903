package ingress

import (
	"crypto/tls"
	"errors"
	"io"
	"log/slog"
	"net"
	"os"
	"sync"
	"time"

	"plusminus/hub"
)

// An Outcome is how a TLS handshake ended. It is a label in metrics and a key in the log.
type Outcome string

const (
	HandshakeOK            Outcome = "ok"
	HandshakeChallenge     Outcome = "challenge"      // a CA has validated a tls-alpn-01 challenge
	HandshakeTimeout       Outcome = "timeout"        // took longer than handshakeTimeout
	HandshakeGone          Outcome = "gone"           // the peer closed the connection, or the gate did to make room
	HandshakeUnknownName   Outcome = "unknown_name"   // the server name is not one of ours
	HandshakeNoCertificate Outcome = "no_certificate" // the name has no certificate yet
	HandshakeRejected      Outcome = "rejected"       // the peer sent an alert: it does not trust the certificate, for one
	HandshakeHTTP          Outcome = "http"           // HTTP without TLS
	HandshakeJunk          Outcome = "junk"           // neither TLS nor HTTP
	HandshakeOther         Outcome = "other"          // no version or cipher in common, for one: the log has the error
)

func outcomes() []Outcome {
	return []Outcome{
		HandshakeOK, HandshakeChallenge, HandshakeTimeout, HandshakeGone, HandshakeUnknownName,
		HandshakeNoCertificate, HandshakeRejected, HandshakeHTTP, HandshakeJunk, HandshakeOther,
	}
}

// handshakeTimeout bounds a TLS handshake from the moment that the connection is accepted. It is
// enough for a handshake over a bad mobile connection.
const handshakeTimeout = 10 * time.Second

// TLSListener returns a listener that speaks TLS, as config says, on connections that pass the gate.
// The gate computes their handshakes in turn, and counts how each ends. config must not offer HTTP/2,
// which WebSockets do not need.
func (g *Gate) TLSListener(ln net.Listener, config *tls.Config) net.Listener {
	config = config.Clone()
	configFor, certificateFor := config.GetConfigForClient, config.GetCertificate
	config.GetConfigForClient = func(hello *tls.ClientHelloInfo) (*tls.Config, error) {
		// A CA's hello takes no turn. It costs only the lookup of its challenge, on a disk or a
		// server that may hang, and no visitor may wait for that.
		if !wantsChallenge(hello) && !arrivalOf(hello.Conn).compute() {
			return nil, net.ErrClosed
		}
		if configFor != nil {
			return configFor(hello)
		}
		return nil, nil
	}
	if certificateFor != nil {
		config.GetCertificate = func(hello *tls.ClientHelloInfo) (*tls.Certificate, error) {
			if wantsChallenge(hello) {
				select {
				case g.lookups <- struct{}{}:
					defer func() { <-g.lookups }()
				default:
					return nil, certificateError{errLookups}
				}
			}
			cert, err := certificateFor(hello)
			if err != nil {
				return nil, certificateError{err}
			}
			if a := arrivalOf(hello.Conn); cert == nil && a != nil {
				a.unknownName = true
			}
			return cert, nil
		}
	}
	return &tlsListener{g.Listener(ln), g, config}
}

// protocolChallenge is the only protocol of a CA's hello: "The "acme-tls/1" protocol does not carry
// application data." https://www.rfc-editor.org/rfc/rfc8737#section-4
const protocolChallenge = "acme-tls/1"

// wantsChallenge reports whether the hello is that of a CA, or of a stranger that imitates one.
func wantsChallenge(hello *tls.ClientHelloInfo) bool {
	return len(hello.SupportedProtos) == 1 && hello.SupportedProtos[0] == protocolChallenge
}

// maxLookups is how many challenges may be looked up at once. A CA asks for a few, from several
// places. Only while the store of the challenges hangs can there be more.
const maxLookups = 64

var errLookups = errors.New("too many challenges are being looked up")

// A certificateError is why a peer gets no certificate.
type certificateError struct{ error }

func (e certificateError) Unwrap() error { return e.error }

type tlsListener struct {
	net.Listener
	gate   *Gate
	config *tls.Config
}

func (l *tlsListener) Accept() (net.Conn, error) {
	nc, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	if c, ok := nc.(*conn); ok {
		c.first = true
	}
	return &tlsConn{Conn: tls.Server(nc, l.config), gate: l.gate}, nil
}

// tlsConn is a TLS connection that makes its own handshake, so that its error is counted: net/http
// would keep it to itself. The handshake runs in the goroutine that first reads, or asks for the
// connection's state, as net/http does before all else. It is a [hub.Handshaker].
type tlsConn struct {
	*tls.Conn
	gate *Gate
	once sync.Once
	err  error // of the handshake

	answers answers
}

// watch implements watched.
func (c *tlsConn) watch() *answers { return &c.answers }

// Write implements net.Conn.
func (c *tlsConn) Write(p []byte) (int, error) {
	c.answers.written(c.RemoteAddr(), p)
	return c.Conn.Write(p)
}

// TLSConn implements [hub.Handshaker].
func (c *tlsConn) TLSConn() *tls.Conn { return c.Conn }

// ConnectionState returns the state after the handshake.
func (c *tlsConn) ConnectionState() tls.ConnectionState {
	c.once.Do(c.handshake)
	return c.Conn.ConnectionState()
}

// Read implements net.Conn. After a handshake that failed it returns [io.EOF].
func (c *tlsConn) Read(p []byte) (int, error) {
	c.once.Do(c.handshake)
	if c.err != nil {
		return 0, io.EOF
	}
	return c.Conn.Read(p)
}

// arrivalOf returns the arrival of nc, or nil.
func arrivalOf(nc net.Conn) *arrival {
	c, ok := nc.(*conn)
	if !ok {
		return nil
	}
	return c.arrival.Load()
}

// earlyOf returns the first bytes that were read from nc, if they begin an HTTP request.
func earlyOf(nc net.Conn) []byte {
	c, ok := nc.(*conn)
	if !ok {
		return nil
	}
	return c.early
}

var errChallenge = errors.New("ingress: the CA has seen the challenge's certificate")

func (c *tlsConn) handshake() {
	a := arrivalOf(c.NetConn())
	// SetDeadline fails on a closed connection only, where the handshake fails, too.
	_ = c.SetDeadline(time.Now().Add(handshakeTimeout))
	c.err = c.Handshake()
	outcome := outcomeOf(c.err, a)
	switch {
	case outcome == HandshakeHTTP:
		c.gate.answerHTTP(c.NetConn(), earlyOf(c.NetConn()))
	case c.err == nil && c.Conn.ConnectionState().NegotiatedProtocol == protocolChallenge:
		outcome, c.err = HandshakeChallenge, errChallenge
	case c.err == nil:
		_ = c.SetDeadline(time.Time{}) // net/http has its own
	}
	if outcome == HandshakeOK || outcome == HandshakeChallenge {
		c.gate.handshakes.Count(outcome)
		return
	}
	c.gate.handshakes.Note(outcome, slog.LevelInfo, "TLS handshake failed",
		"remote", hub.AddressOf(c.RemoteAddr().String()), "err", c.err, "reason", outcome)
}

// outcomeOf returns how a handshake ended that returned err.
func outcomeOf(err error, a *arrival) Outcome {
	var (
		record tls.RecordHeaderError
		op     *net.OpError
	)
	switch {
	case err == nil:
		return HandshakeOK
	case errors.As(err, new(certificateError)):
		return HandshakeNoCertificate
	case a != nil && a.unknownName:
		return HandshakeUnknownName
	case errors.Is(err, os.ErrDeadlineExceeded):
		return HandshakeTimeout
	case errors.As(err, &record):
		if looksLikeHTTP(record.RecordHeader[:]) {
			return HandshakeHTTP
		}
		return HandshakeJunk
	case errors.As(err, &op) && op.Op == "remote error":
		return HandshakeRejected
	case errors.As(err, &op) && op.Op == "local error":
		return HandshakeOther
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, net.ErrClosed), op != nil:
		return HandshakeGone
	}
	return HandshakeOther
}
