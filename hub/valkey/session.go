package valkey

import (
	"context"
	"errors"
	"fmt"
	"maps"
	mathrand "math/rand/v2"
	"slices"
	"time"

	"github.com/valkey-io/valkey-go"
)

// run keeps a connection until Close.
func (s *Store) run() {
	wait := firstPause
	for {
		began := time.Now()
		err := s.session()
		if s.stopping.Err() != nil {
			return
		}
		if _, ok := valkey.IsValkeyErr(err); !ok && time.Since(began) > beatEvery {
			wait = firstPause // the connection worked for a while
		}
		s.disconnected(err)
		// The random part spreads the hubs that lost the same server at the same moment.
		pause(s.stopping, wait/2+mathrand.N(wait))
		wait = min(2*wait, longestPause)
	}
}

// session makes a connection and uses it until something fails. It returns that error, or
// nil after Close.
func (s *Store) session() error {
	client, err := s.dial()
	if client != nil {
		defer s.running.Go(client.Close) // takes up to a second if the server is silent
	}
	if err != nil {
		return err
	}
	s.noteNodes(client)
	receiving, end := context.WithCancel(context.Background())
	defer end()
	subscribed := make(chan struct{}, 1) // receiver -> session; 1: one token is enough
	ended := make(chan error, 1)         // receiver -> session; 1: its only send never blocks
	s.running.Go(func() {
		ctx := valkey.WithOnSubscriptionHook(receiving, func(valkey.PubSubSubscription) {
			select {
			case subscribed <- struct{}{}:
			default:
			}
		})
		ended <- client.Receive(ctx, client.B().Subscribe().Channel(s.channels()...).Build(), s.receive)
	})
	select {
	case <-subscribed:
	case err := <-ended:
		return lost(err)
	case <-time.After(answerTimeout):
		return errNoAnswer
	case <-s.stopping.Done():
		return nil
	}
	s.restart()
	next := time.NewTimer(0)
	defer next.Stop()
	for {
		select {
		case <-next.C:
			if err := s.count(client); err != nil {
				return err
			}
			if err := s.beat(client); err != nil {
				return err
			}
		case <-s.wake:
			s.mu.Lock()
			overdue := s.overdue == client
			s.mu.Unlock()
			if overdue {
				return errNoAnswer
			}
		case err := <-ended:
			return lost(err)
		case <-s.stopping.Done():
			return s.signOff(client)
		}
		next.Reset(time.Until(s.nextWake()))
	}
}

// channels returns the channels that the hub receives messages from.
func (s *Store) channels() []string {
	channels := []string{s.standard.channel}
	if s.many {
		channels = append(channels, newCounter(&s.cfg, "any").channel)
	}
	return channels
}

// noteNodes keeps the addresses of a cluster's nodes, so that the next connection does not need the configured one.
func (s *Store) noteNodes(client valkey.Client) {
	var nodes []string
	if client.Mode() == valkey.ClientModeCluster {
		nodes = slices.Sorted(maps.Keys(client.Nodes()))
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.nodes = nodes
}

// disconnected records that there is no connection, and why.
func (s *Store) disconnected(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.client = nil
	s.err = fmt.Errorf("%s: %w", s.cfg.Address, why(err))
	s.triedLocked()
	s.sendNewsLocked()
}

// triedLocked records that the first attempt to connect is over.
func (s *Store) triedLocked() {
	select {
	case <-s.tried:
	default:
		close(s.tried)
	}
}

// wakeRun makes run look at nextWake again. It does not block.
func (s *Store) wakeRun() {
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

// connection returns the present connection. If there is none, connection returns the reason,
// or with wait set, waits for one until ctx ends.
func (s *Store) connection(ctx context.Context, wait bool) (valkey.Client, error) {
	for {
		s.mu.Lock()
		client, connected, err := s.client, s.connected, s.err
		s.mu.Unlock()
		switch {
		case client != nil:
			return client, nil
		case !wait && err == nil:
			return nil, notSentError{errors.New("there is no connection yet")}
		case !wait:
			return nil, notSentError{err}
		}
		select {
		case <-connected:
		case <-ctx.Done():
			return nil, notSentError{context.Cause(ctx)}
		}
	}
}

// pause waits for d, or until ctx ends.
func pause(ctx context.Context, d time.Duration) {
	select {
	case <-time.After(d):
	case <-ctx.Done():
	}
}
