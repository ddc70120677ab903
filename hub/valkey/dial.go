package valkey

import (
	"context"
	"crypto/tls"
	"net"
	"time"

	"github.com/valkey-io/valkey-go"
)

// dial connects and logs in. The caller closes the client even if there is an error, unless
// the client is nil.
func (s *Store) dial() (valkey.Client, error) {
	s.mu.Lock()
	nodes := s.nodes
	s.mu.Unlock()
	if len(nodes) > 1 {
		client, err := s.cfg.dial(s.conns, "plusminus-"+s.id, append(nodes, s.cfg.Address)...)
		if err == nil {
			return client, nil
		}
		if client != nil {
			client.Close()
		}
	}
	return s.cfg.dial(s.conns, "plusminus-"+s.id, s.cfg.Address)
}

// dial connects and logs in to the server at one of the addresses, and if that is a node of a cluster, to the others.
// The connections close when until ends. name is shown by CLIENT
// LIST. The caller closes the client even if there is an error, unless the client is nil.
func (c *Config) dial(until context.Context, name string, addresses ...string) (valkey.Client, error) {
	password, err := c.password()
	if err != nil {
		return nil, err
	}
	return valkey.NewClient(valkey.ClientOption{
		InitAddress: addresses,
		TLSConfig:   c.TLS,
		Username:    c.Username,
		Password:    password,
		ClientName:  name,
		SelectDB:    c.DB,
		// This package decides what is sent again, and when.
		DisableRetry: true,
		DisableCache: true,
		// One connection carries messages and answers, so that both come in the server's order.
		// Its buffers are small, since lines are short.
		PipelineMultiplex:   -1,
		RingScaleEachConn:   8,
		ReadBufferEachConn:  8 << 10,
		WriteBufferEachConn: 8 << 10,
		// The client sends a PING after each second without an answer, and closes the connection if
		// none comes.
		Dialer:           net.Dialer{Timeout: dialTimeout, KeepAlive: time.Second},
		ConnWriteTimeout: answerTimeout,
		DialCtxFn: func(ctx context.Context, addr string, dialer *net.Dialer, config *tls.Config) (net.Conn, error) {
			return dialConn(ctx, until, addr, dialer, config)
		},
	})
}

// dialConn makes a connection that closes when until ends.
func dialConn(ctx, until context.Context, addr string, dialer *net.Dialer, config *tls.Config) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, dialTimeout)
	defer cancel()
	defer context.AfterFunc(until, cancel)()
	var conn net.Conn
	var err error
	if config != nil {
		conn, err = (&tls.Dialer{NetDialer: dialer, Config: config}).DialContext(ctx, "tcp", addr)
	} else {
		conn, err = dialer.DialContext(ctx, "tcp", addr)
	}
	if err != nil {
		return nil, err
	}
	return &cutConn{conn, context.AfterFunc(until, func() { conn.Close() })}, nil
}

// cutConn is a connection that a context can close. Close also forgets the context.
type cutConn struct {
	net.Conn
	forget func() bool
}

func (c *cutConn) Close() error {
	c.forget()
	return c.Conn.Close()
}
