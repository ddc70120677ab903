package load

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"time"
)

// A Misdeed is what a hostile client does.
type Misdeed int

const (
	NeverRead Misdeed = iota // reads nothing after the opening handshake
	Rubbish                  // sends messages that are not actions
	Drop                     // connects, and closes TCP without a close frame
	HalfOpen                 // stops in the middle of the TLS handshake
	Misdeeds                 // the number of misdeeds
)

const (
	// neverReadFor is how long a client that reads nothing stays connected. A few values per
	// second fill its buffers in less time.
	neverReadFor = 2 * time.Minute

	// halfOpenFor is how long a client stops in the middle of a handshake.
	halfOpenFor = time.Minute
)

// Misbehave does one misdeed once: it connects, and returns when either side has ended the
// connection. It is safe from any goroutine.
func (cr *Crowd) Misbehave(ctx context.Context, m Misdeed) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	tcp, err := cr.dialTCP(ctx, m == NeverRead)
	if err != nil {
		return err
	}
	defer tcp.Close()
	context.AfterFunc(ctx, func() { tcp.Close() })
	if m == HalfOpen {
		return halfOpen(tcp)
	}
	c := &Client{crowd: cr, of: cr.standard, conn: tls.Client(tcp, cr.tls)}
	dialCtx, done := context.WithTimeout(ctx, dialTimeout)
	_, err = c.handshake(dialCtx, "")
	done()
	if err != nil {
		return err
	}
	switch m {
	case Drop:
		return nil
	case NeverRead:
		select {
		case <-ctx.Done():
		case <-time.After(neverReadFor):
		}
		return tcp.SetLinger(0) // closing with unread data sends a reset in any case
	}
	// Rubbish: it reads, to notice when the server closes the connection.
	go func() {
		_, _ = io.Copy(io.Discard, c.conn)
		tcp.Close()
	}()
	messages := [][]byte{[]byte("rubbish"), []byte(`{"action":"explode"}`), []byte(`[1,2`), {0xff, 0xfe}}
	for i := 0; ; i++ {
		if err := c.Send(appendFrame(nil, opText, messages[i%len(messages)])); err != nil {
			return nil // the server has closed the connection
		}
		time.Sleep(50 * time.Millisecond)
	}
}

// halfOpen sends the start of a ClientHello and waits.
func halfOpen(tcp net.Conn) error {
	// The header of a handshake record of 512 bytes, and only the first 48 bytes of the record.
	// https://www.rfc-editor.org/rfc/rfc8446#section-5.1
	hello := make([]byte, 53)
	copy(hello, []byte{22, 3, 1, 2, 0, 1, 0, 1, 0xfc, 3, 3})
	if _, err := tcp.Write(hello); err != nil {
		return err
	}
	if err := tcp.SetReadDeadline(time.Now().Add(halfOpenFor)); err != nil {
		return err
	}
	var one [1]byte
	_, err := tcp.Read(one[:])
	var timeout net.Error
	if errors.As(err, &timeout) && timeout.Timeout() {
		return nil // the server waits longer than halfOpenFor
	}
	return nil
}
