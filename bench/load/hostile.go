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
	NeverRead Misdeed = iota // connects, and reads nothing from then on
	Rubbish                  // sends messages that are no actions
	Drop                     // connects and vanishes without a word
	HalfOpen                 // stops half-way through the TLS handshake
	Misdeeds                 // how many there are
)

const (
	// neverReadFor is how long a client that reads nothing stays, if it is let: longer
	// than it takes to fill its buffers at a few values a second.
	neverReadFor = 2 * time.Minute

	// halfOpenFor is how long a client waits in the middle of a handshake.
	halfOpenFor = time.Minute
)

// Misbehave does one misdeed once: it connects, and returns when its connection has
// ended, by whomever.
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
	c := &Client{crowd: cr, conn: tls.Client(tcp, cr.tls)}
	dialCtx, done := context.WithTimeout(ctx, dialTimeout)
	_, err = c.handshake(dialCtx)
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
		return tcp.SetLinger(0) // what was not read makes a reset in any case
	}
	// Rubbish: it reads, or it would not see the end.
	go func() {
		_, _ = io.Copy(io.Discard, c.conn)
		tcp.Close()
	}()
	messages := [][]byte{[]byte("rubbish"), []byte(`{"action":"explode"}`), []byte(`[1,2`), {0xff, 0xfe}}
	for i := 0; ; i++ {
		if err := c.Send(appendFrame(nil, opText, messages[i%len(messages)])); err != nil {
			return nil // the server has had enough
		}
		time.Sleep(50 * time.Millisecond)
	}
}

// halfOpen sends the start of a ClientHello and waits.
func halfOpen(tcp net.Conn) error {
	// A handshake record of 512 bytes, of which 48 come.
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
		return nil // the server would have waited longer
	}
	return nil
}
