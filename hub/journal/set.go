package journal

import (
	"errors"
	"fmt"
	"io/fs"
	"time"

	"plusminus/hub"
)

// Value returns the value in the journal in folder dir. If there is no journal, it returns
// [ErrNone] and makes none. Its other errors are those of [Open].
func Value(dir string) (hub.Value, error) { return readValue(osSystem{}, dir) }

func readValue(sys system, dir string) (v hub.Value, err error) {
	j, err := open(sys, dir, nil)
	if err != nil {
		return v, err
	}
	return j.now.Value, j.Close()
}

// Change reports what [Set] has done.
type Change struct {
	Was   hub.Value // the value before, if Had
	Had   bool      // whether there was a value before
	Aside string    // the new path of an unreadable journal; "" if there was none
}

// Set writes value to the journal in folder dir. If there is no journal, or it was removed,
// Set makes one. A damaged journal is renamed, and a new one takes its place.
//
// Set returns [hub.ErrRange] for a value out of range, [ErrInUse] if another process has the
// folder, and [ErrMany] or [ErrNewer] as [Open] does.
func Set(dir string, value hub.Value) (Change, error) { return set(osSystem{}, dir, value) }

func set(sys system, dir string, value hub.Value) (c Change, err error) {
	if _, err := hub.ParseValue(string(hub.AppendValue(nil, value))); err != nil {
		return c, err
	}
	f, err := openFolder(sys, dir, true)
	if err != nil {
		return c, err
	}
	j := &Journal{folder: f}
	defer func() { err = errors.Join(err, j.Close()) }()
	switch err := j.open(nil); {
	case err == nil:
		c.Was, c.Had = j.now.Value, true
		return c, j.store(hub.Snapshot{Version: j.now.Version + 1, Value: value})
	case errors.Is(err, ErrDamaged):
		if c.Aside, err = j.moveAside(); err != nil {
			return c, err
		}
	case !errors.Is(err, ErrNone):
		return c, err
	}
	if err := j.create(hub.Snapshot{Version: 1, Value: value}); err != nil {
		return c, err
	}
	return c, j.settle()
}

// moveAside renames an unreadable journal and returns its new path, or "" if there is no file.
func (f *folder) moveAside() (string, error) {
	name := f.path + time.Now().UTC().Format(".damaged-20060102T150405Z")
	err := f.sys.Rename(f.path, name)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return "", nil
	case err != nil:
		return "", fmt.Errorf("moving the counter away: %w", err)
	}
	return name, nil
}

// RenewMany is [OpenMany] for an operator who goes on without the old values: a damaged journal is renamed, and a new one
// takes its place. It also makes one if the journal was removed. aside is the new path of the damaged journal, or "".
func RenewMany(dir string, maxCounters int) (m *Many, aside string, err error) {
	return renewMany(osSystem{}, dir, newMany(maxCounters))
}

func renewMany(sys system, dir string, m *Many) (_ *Many, aside string, err error) {
	if m.folder, err = openFolder(sys, dir, true); err != nil {
		return nil, "", err
	}
	if err = m.open(true); errors.Is(err, ErrDamaged) {
		m.closeFile()
		if aside, err = m.moveAside(); err == nil {
			err = m.begin(hub.Snapshot{})
		}
		if err == nil {
			err = m.settle()
		}
	}
	if err != nil {
		return nil, aside, errors.Join(err, m.Close())
	}
	return m, aside, nil
}
