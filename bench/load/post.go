package load

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"strconv"
	"sync"
	"sync/atomic"
	"time"
)

// A Poster acts on counters by POST over one connection, which it keeps. It watches none of them.
type Poster struct {
	// Immutable after ConnectPosters.
	host string
	conn *tls.Conn
	in   *bufio.Reader // of conn
}

// maxAnswer bounds the body of an answer in bytes.
const maxAnswer = 512

// ConnectPosters returns n posters. They are not clients of the crowd: the caller closes them.
func (cr *Crowd) ConnectPosters(ctx context.Context, n int) ([]*Poster, error) {
	var posters []*Poster
	for range n {
		p, err := cr.dialPoster(ctx)
		if err != nil {
			ClosePosters(posters)
			return nil, fmt.Errorf("connecting poster %d: %w", len(posters), err)
		}
		posters = append(posters, p)
	}
	return posters, nil
}

func (cr *Crowd) dialPoster(ctx context.Context) (*Poster, error) {
	ctx, cancel := context.WithTimeout(ctx, dialTimeout)
	defer cancel()
	tcp, err := cr.dialTCP(ctx, false)
	if err != nil {
		return nil, err
	}
	conn := tls.Client(tcp, cr.tls)
	if err := conn.HandshakeContext(ctx); err != nil {
		tcp.Close()
		return nil, fmt.Errorf("TLS: %w", err)
	}
	return &Poster{cr.host, conn, bufio.NewReaderSize(conn, 2048)}, nil
}

// ClosePosters closes the connections of posters.
func ClosePosters(posters []*Poster) {
	for _, p := range posters {
		p.conn.Close()
	}
}

// Make acts once on each of the counters, so that the server has all of them. Each action has another address in
// X-Forwarded-For, since plusminus limits how many counters one address makes.
func Make(ctx context.Context, posters []*Poster, counters []*Counter) error {
	return each(ctx, posters, func(i int, p *Poster) error {
		for ; i < len(counters) && ctx.Err() == nil; i += len(posters) {
			if err := p.act(counters[i], forwardedFor(i)); err != nil {
				return err
			}
		}
		return nil
	})
}

// Post makes the posters act for d. Each of them goes through all counters, or through its part of them if
// the number of posters divides that of the counters, and waits for the answer to an action before it sends the next one. Post
// returns how many actions the server has counted. It returns an error if a counter is not the sum of all actions on it.
func Post(ctx context.Context, posters []*Poster, counters []*Counter, d time.Duration) (int64, error) {
	var actions atomic.Int64
	end := time.Now().Add(d)
	err := each(ctx, posters, func(i int, p *Poster) error {
		for ; time.Now().Before(end) && ctx.Err() == nil; i = (i + len(posters)) % len(counters) {
			if err := p.act(counters[i%len(counters)], ""); err != nil {
				return err
			}
			actions.Add(1)
		}
		return nil
	})
	if err != nil {
		return 0, err
	}
	for _, c := range counters {
		if sent, newest := c.sent.Load(), c.newest.Load(); sent != newest {
			return 0, fmt.Errorf("%s is %d after %d actions", c.path, newest, sent)
		}
	}
	return actions.Load(), nil
}

// each calls f for all posters at the same time, and waits. When ctx ends, it closes their connections.
func each(ctx context.Context, posters []*Poster, f func(i int, p *Poster) error) error {
	stop := context.AfterFunc(ctx, func() { ClosePosters(posters) })
	defer stop()
	var wg sync.WaitGroup
	errs := make([]error, len(posters))
	for i, p := range posters {
		wg.Go(func() { errs[i] = f(i, p) })
	}
	wg.Wait()
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return errors.Join(errs...)
}

// act does one action on c. header has further header fields of the request.
func (p *Poster) act(c *Counter, header string) error {
	const body = `{"action":"plus"}`
	request := make([]byte, 0, 256)
	request = fmt.Appendf(request, "POST %s HTTP/1.1\r\nHost: %s\r\nContent-Length: %d\r\n%s\r\n%s", c.path, p.host, len(body), header, body)
	if _, err := p.conn.Write(request); err != nil {
		return err
	}
	status, answer, err := p.answer()
	if err != nil {
		return fmt.Errorf("POST %s: %w", c.path, err)
	}
	value, ok := parseInt(answer[bytes.LastIndexByte(answer, ':')+1:])
	if status != "200" || !ok {
		return fmt.Errorf("POST %s: the server answered %s %s", c.path, status, answer)
	}
	c.sent.Add(1)
	for newest := c.newest.Load(); value > newest && !c.newest.CompareAndSwap(newest, value); newest = c.newest.Load() {
	}
	return nil
}

// answer reads one answer, which must have a Content-Length.
func (p *Poster) answer() (status string, body []byte, err error) {
	length := -1
	for first := true; ; first = false {
		line, err := p.in.ReadSlice('\n')
		if err != nil {
			return "", nil, err
		}
		line = bytes.TrimRight(line, "\r\n")
		name, value, _ := bytes.Cut(line, []byte(": "))
		switch {
		case first:
			if rest, ok := bytes.CutPrefix(line, []byte("HTTP/1.1 ")); ok && len(rest) >= 3 {
				status = string(rest[:3])
			}
		case bytes.EqualFold(name, []byte("Content-Length")):
			if length, err = strconv.Atoi(string(value)); err != nil {
				return "", nil, err
			}
		case len(line) == 0:
			if status == "" || length < 0 || length > maxAnswer {
				return "", nil, errors.New("the answer has no status, or no length, or is too long")
			}
			body = make([]byte, length)
			_, err = io.ReadFull(p.in, body)
			return status, bytes.TrimSpace(body), err
		}
	}
}
