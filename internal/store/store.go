// Package store names the places where the counter can live, and opens them. To add a place: write
// its hub.Store, add a type here that implements [Spec], and let [Parse] return it.
package store

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"os"
	"strings"

	"plusminus/hub"
	"plusminus/hub/journal"
	"plusminus/hub/valkey"
)

// A Spec names a place where the counter lives.
type Spec interface {
	// String returns the place as -store names it, without a password.
	String() string

	// UsesData reports whether the counter is in the data folder.
	UsesData() bool

	// Open opens the place. data is the data folder. The second result closes the store.
	Open(data string, log *slog.Logger) (hub.Store, func() error, error)

	// OpenMany is Open for a server with -counters. limit bounds the counters that the place holds besides the default one;
	// 0 is no limit.
	OpenMany(data string, limit int, log *slog.Logger) (hub.Counters, func() error, error)
}

// Parse parses the value of -store. Its errors never hold a password.
func Parse(s string) (Spec, error) {
	switch {
	case s == "file":
		return File{}, nil
	case s == "memory":
		return Memory{}, nil
	case strings.Contains(s, ":"):
		cfg, err := valkey.ParseURL(s)
		return Valkey{cfg}, err
	}
	return nil, fmt.Errorf("%q is unknown: use file, memory, or redis://host:port", s)
}

// File is a file in the data folder (package journal).
type File struct{}

// Memory is the memory of the process: the counter starts at 0 each time.
type Memory struct{}

// Valkey is a Valkey or Redis server, which replicas share.
type Valkey struct{ valkey.Config }

func (File) String() string { return "file" }
func (File) UsesData() bool { return true }

// Open implements [Spec].
func (File) Open(data string, _ *slog.Logger) (hub.Store, func() error, error) {
	j, err := journal.Open(data)
	if err != nil {
		return nil, nil, explainOpen(data, err)
	}
	return j, j.Close, nil
}

// OpenMany implements [Spec]. It takes over a folder with one counter.
func (File) OpenMany(data string, limit int, log *slog.Logger) (hub.Counters, func() error, error) {
	before, _ := journal.Format(data) // OpenMany finds the same errors
	m, err := journal.OpenMany(data, orNoLimit(limit))
	if err != nil {
		return nil, nil, explainOpen(data, err)
	}
	if before == 1 {
		log.Info("the data folder holds many counters from now on: it needs -counters, and this version or a newer one", "data", data)
	}
	return m, m.Close, nil
}

// explainOpen is explain for a server that starts.
func explainOpen(data string, err error) error {
	if errors.Is(err, journal.ErrInUse) {
		return fmt.Errorf("%w: stop that plusminus, or give this one a -data folder of its own", err)
	}
	return explain(data, err)
}

func (Memory) String() string { return "memory" }
func (Memory) UsesData() bool { return false }

// Open implements [Spec].
func (Memory) Open(string, *slog.Logger) (hub.Store, func() error, error) {
	return new(hub.Memory), func() error { return nil }, nil
}

// OpenMany implements [Spec].
func (Memory) OpenMany(_ string, limit int, _ *slog.Logger) (hub.Counters, func() error, error) {
	return &hub.Memory{Max: limit}, func() error { return nil }, nil
}

func (Valkey) UsesData() bool { return false }

// Open implements [Spec]. It does not wait for the server: a replica that starts while the server is
// away is not ready until the server answers.
func (v Valkey) Open(_ string, log *slog.Logger) (hub.Store, func() error, error) {
	v.Logger = log
	log.Info("sharing the counter", "store", v.String())
	s := valkey.New(v.Config)
	return s, s.Close, nil
}

// OpenMany implements [Spec]. It does not wait for the server, either.
func (v Valkey) OpenMany(_ string, limit int, log *slog.Logger) (hub.Counters, func() error, error) {
	v.Logger = log
	log.Info("sharing the counters", "store", v.String())
	s := valkey.NewMany(v.Config, orNoLimit(limit))
	return s, s.Close, nil
}

// orNoLimit returns limit for a store, whose limit 0 would be none.
func orNoLimit(limit int) int {
	if limit == 0 {
		return math.MaxInt
	}
	return limit
}

// Reopen opens the counters in the data folder of a stopped server. The error wraps [journal.ErrOne] for a folder with one
// counter, and [journal.ErrInUse] if a server uses it.
func (File) Reopen(data string) (hub.Counters, func() error, error) {
	m, err := journal.ReopenMany(data, math.MaxInt)
	if err != nil {
		return nil, nil, explainOffline(data, err)
	}
	return m, m.Close, nil
}

// Value returns the counter in the data folder of a stopped server.
func (File) Value(data string) (hub.Value, error) {
	n, err := journal.Value(data)
	return n, explainOffline(data, err)
}

// SetValue sets the default counter in the data folder of a stopped server. A file that cannot be read is kept under another
// name, with all counters in it.
func (File) SetValue(data string, n hub.Value) (journal.Change, error) {
	change, err := journal.Set(data, n)
	if errors.Is(err, journal.ErrMany) {
		change, err = setMany(data, n)
	}
	return change, explainOffline(data, err)
}

func setMany(data string, n hub.Value) (c journal.Change, err error) {
	m, aside, err := journal.RenewMany(data, math.MaxInt)
	if err != nil {
		return c, err
	}
	was, _ := m.Load(context.Background()) // does not fail
	c = journal.Change{Was: was.Value, Had: aside == "", Aside: aside}
	change := []hub.Change{{Set: &n}}
	m.ApplyAll(context.Background(), change)
	return c, errors.Join(change[0].Err, m.Close())
}

func explainOffline(data string, err error) error {
	if errors.Is(err, journal.ErrInUse) {
		return fmt.Errorf("%w: stop that plusminus first (its value is at /state)", err)
	}
	return explain(data, err)
}

// explain adds to an error of the journal what the operator can do.
func explain(data string, err error) error {
	set := "plusminus value set N -data " + data
	switch {
	case errors.Is(err, journal.ErrDamaged):
		return fmt.Errorf("%w: restore a copy, or set the value to go on from: %s", err, set)
	case errors.Is(err, journal.ErrMany):
		return fmt.Errorf("%w: start the server with -counters, as before", err)
	case errors.Is(err, journal.ErrNewer):
		return fmt.Errorf("%w: start that version again, or move the file away and set the value to go on from: %s", err, set)
	case errors.Is(err, journal.ErrNone):
		return fmt.Errorf("%w; a server makes one at its first start, or you do: %s", err, set)
	case errors.Is(err, os.ErrPermission):
		return fmt.Errorf("%w; its files must belong to the user that plusminus runs as, uid %d", err, os.Getuid())
	}
	return err
}
