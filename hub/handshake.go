//go:build unix

package hub

import (
	"crypto/tls"
	"errors"
	"io"
	"net"
	"os"
	"sync"
	"time"
)

// handshakeTimeout bounds a TLS handshake, from the moment that the connection is accepted.
// It is enough for one over a bad mobile connection.
const handshakeTimeout = 10 * time.Second

// TLSListener returns a listener that speaks TLS as config says on connections that pass the
// gate, computes their handshakes in turn, and counts what became of each. config must not
// offer HTTP/2, which WebSockets do not need.
func (g *Gate) TLSListener(ln net.Listener, config *tls.Config) net.Listener {
	config = config.Clone()
	configFor, certificateFor := config.GetConfigForClient, config.GetCertificate
	config.GetConfigForClient = func(hello *tls.ClientHelloInfo) (*tls.Config, error) {
		// A CA's hello costs nearly nothing but a look for its challenge, which may be on a disk or
		// a server that hangs: nobody is to wait for that.
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

// wantsChallenge reports whether the hello is that of a CA, or of a stranger who says so.
func wantsChallenge(hello *tls.ClientHelloInfo) bool {
	return len(hello.SupportedProtos) == 1 && hello.SupportedProtos[0] == protocolChallenge
}

// maxLookups is how many challenges may be looked for at once. A CA asks for a few, from
// several places; only while that which holds them hangs can there be more.
const maxLookups = 64

var errLookups = errors.New("too many challenges are being looked for")

// A certificateError is why there is no certificate for a peer.
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
	return &tlsConn{Conn: tls.Server(nc, l.config), gate: l.gate}, nil
}

// tlsConn is a TLS connection whose handshake is ours, and not net/http's, which would keep
// the error to itself. It takes place in the goroutine that first asks for the connection's
// state, as net/http does before all else, or reads.
type tlsConn struct {
	*tls.Conn
	gate *Gate
	once sync.Once
	err  error // of the handshake
}

// tlsOf returns the TLS connection that nc is, or nil.
func tlsOf(nc net.Conn) *tls.Conn {
	switch c := nc.(type) {
	case *tls.Conn:
		return c
	case *tlsConn:
		return c.Conn
	}
	return nil
}

// arrivalOf returns what a gate knows of nc, or nil.
func arrivalOf(nc net.Conn) *arrival {
	c, ok := nc.(*conn)
	if !ok {
		return nil
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.arrival
}

// ConnectionState returns the state after the handshake.
func (c *tlsConn) ConnectionState() tls.ConnectionState {
	c.once.Do(c.handshake)
	return c.Conn.ConnectionState()
}

// Read implements net.Conn. After a handshake that failed there is nothing to read.
func (c *tlsConn) Read(p []byte) (int, error) {
	c.once.Do(c.handshake)
	if c.err != nil {
		return 0, io.EOF
	}
	return c.Conn.Read(p)
}

var errChallenge = errors.New("hub: the CA has seen the challenge's certificate")

func (c *tlsConn) handshake() {
	arrival := arrivalOf(c.NetConn())
	// It can fail on a closed connection only, and then the handshake does, too.
	_ = c.SetDeadline(time.Now().Add(handshakeTimeout))
	c.err = c.Handshake()
	outcome := outcomeOf(c.err, arrival)
	switch {
	case outcome == HandshakeHTTP:
		// As net/http does: whoever typed http:// is told.
		_, _ = io.WriteString(c.NetConn(), "HTTP/1.0 400 Bad Request\r\n\r\nClient sent an HTTP request to an HTTPS server.\n")
	case c.err == nil && c.Conn.ConnectionState().NegotiatedProtocol == protocolChallenge:
		outcome, c.err = HandshakeChallenge, errChallenge
	case c.err == nil:
		_ = c.SetDeadline(time.Time{}) // net/http has its own
	}
	c.gate.cfg.Events.handshake(outcome, "remote", AddressOf(c.RemoteAddr().String()), "err", c.err)
}

// protocolChallenge is what a CA speaks that looks at a challenge's certificate: "The
// "acme-tls/1" protocol does not carry application data."
// https://www.rfc-editor.org/rfc/rfc8737#section-4
const protocolChallenge = "acme-tls/1"

// outcomeOf returns what became of a handshake that ended with err.
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
		if looksLikeHTTP(record.RecordHeader) {
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

// looksLikeHTTP reports whether the bytes in the place of a record's header begin a request.
func looksLikeHTTP(header [5]byte) bool {
	switch string(header[:]) {
	case "GET /", "HEAD ", "POST ", "PUT /", "OPTIO":
		return true
	}
	return false
}
