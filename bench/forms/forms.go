package main

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"

	"github.com/cockroachdb/pebble/v2"
	"go.etcd.io/bbolt"
	_ "modernc.org/sqlite"

	"plusminus/hub"
	"plusminus/hub/journal"
)

// form is a way to keep counters in files.
type form struct {
	name string
	open func(dir string) (store, error)
}

type store interface {
	set(n int, value int64) error // sets the first n counters to value in one commit, and returns when that is on disk
	get(i int) (int64, error)     // returns the value of a counter, or 0 if there is none
	Close() error
}

var forms = []form{
	{"journal", openMany}, // the others' ratios are to it
	{"bbolt", openBolt},
	{"SQLite", openSQLite},
	{"Pebble", openPebble},
}

func key(i int) string { return fmt.Sprintf("counter-%04d", i) }

// number parses a value. None is 0.
func number(text []byte) (int64, error) {
	if text == nil {
		return 0, nil
	}
	return strconv.ParseInt(string(text), 10, 64)
}

type many struct{ *journal.Many }

func openMany(dir string) (store, error) {
	m, err := journal.OpenMany(dir, 10_000)
	return many{m}, err
}

func (m many) set(n int, value int64) error {
	changes := make([]hub.Change, n)
	for i := range changes {
		changes[i] = hub.Change{Counter: key(i), Set: &value}
	}
	m.ApplyAll(context.Background(), changes)
	return changes[0].Err
}

func (m many) get(i int) (int64, error) {
	s, err := m.LoadCounter(context.Background(), key(i))
	return s.Value, err
}

type bolt struct{ *bbolt.DB }

var bucket = []byte("counters")

func openBolt(dir string) (store, error) {
	db, err := bbolt.Open(filepath.Join(dir, "bolt.db"), 0o600, nil)
	return bolt{db}, err
}

func (b bolt) set(n int, value int64) error {
	return b.Update(func(tx *bbolt.Tx) error {
		counters, err := tx.CreateBucketIfNotExists(bucket)
		for i := 0; i < n && err == nil; i++ {
			err = counters.Put([]byte(key(i)), strconv.AppendInt(nil, value, 10))
		}
		return err
	})
}

func (b bolt) get(i int) (v int64, err error) {
	err = b.View(func(tx *bbolt.Tx) error {
		if counters := tx.Bucket(bucket); counters != nil {
			v, err = number(counters.Get([]byte(key(i))))
		}
		return err
	})
	return v, err
}

type sqlite struct{ *sql.DB }

func openSQLite(dir string) (store, error) {
	db, err := sql.Open("sqlite", filepath.Join(dir, "sqlite.db")+"?_pragma=journal_mode(WAL)&_pragma=synchronous(FULL)")
	if err != nil {
		return nil, err
	}
	db.SetMaxOpenConns(1)
	if _, err := db.Exec("CREATE TABLE IF NOT EXISTS counters (name TEXT PRIMARY KEY, value INTEGER) WITHOUT ROWID"); err != nil {
		return nil, errors.Join(err, db.Close())
	}
	return sqlite{db}, nil
}

func (s sqlite) set(n int, value int64) error {
	tx, err := s.Begin()
	if err != nil {
		return err
	}
	defer tx.Rollback()
	put, err := tx.Prepare("INSERT INTO counters VALUES (?, ?) ON CONFLICT DO UPDATE SET value = excluded.value")
	for i := 0; i < n && err == nil; i++ {
		_, err = put.Exec(key(i), value)
	}
	if err != nil {
		return err
	}
	return tx.Commit()
}

func (s sqlite) get(i int) (v int64, err error) {
	err = s.QueryRow("SELECT value FROM counters WHERE name = ?", key(i)).Scan(&v)
	if errors.Is(err, sql.ErrNoRows) {
		err = nil
	}
	return v, err
}

type lsm struct{ *pebble.DB }

// quiet discards what Pebble logs. A fatal error ends the process, as with Pebble's own logger.
type quiet struct{}

func (quiet) Infof(string, ...any)  {}
func (quiet) Errorf(string, ...any) {}
func (quiet) Fatalf(string, ...any) { os.Exit(1) }

func openPebble(dir string) (store, error) {
	db, err := pebble.Open(filepath.Join(dir, "pebble"), &pebble.Options{Logger: quiet{}})
	return lsm{db}, err
}

func (l lsm) set(n int, value int64) error {
	b := l.NewBatch()
	for i := range n {
		if err := b.Set([]byte(key(i)), strconv.AppendInt(nil, value, 10), nil); err != nil {
			return err
		}
	}
	return b.Commit(pebble.Sync)
}

func (l lsm) get(i int) (int64, error) {
	text, c, err := l.Get([]byte(key(i)))
	if errors.Is(err, pebble.ErrNotFound) {
		return 0, nil
	}
	if err != nil {
		return 0, err
	}
	defer c.Close()
	return number(text)
}
