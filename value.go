package main

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"slices"

	"plusminus/hub"
	"plusminus/hub/journal"
)

const valueHelp = `plusminus value reads or sets the counter in the data folder of a server that is stopped.
(The value of a server that runs is at https://DOMAIN/state; it is changed by its clients.)

Usage:

  plusminus value get [flags]      print the value
  plusminus value set N [flags]    make it N, from -9007199254740991 to 9007199254740991

Run it as the user that the server runs as. A counter that is damaged or gone can be set, too:
what cannot be read is kept under another name. Exit status: 0 if done, 2 for wrong usage,
1 for anything else, such as a server that runs on the folder.

It takes the server's flags and environment variables, and needs only one:

  -data folder
    	folder of the counter (default "data"; PLUSMINUS_DATA)
`

// value is the command "value".
func value(args []string, lookupEnv func(string) (string, bool), stdout io.Writer) error {
	isHelp := func(arg string) bool { return slices.Contains([]string{"-h", "-help", "--h", "--help"}, arg) }
	action := ""
	if len(args) > 0 {
		action, args = args[0], args[1:]
	}
	if isHelp(action) {
		fmt.Fprint(stdout, valueHelp)
		return flag.ErrHelp
	}
	if action != "get" && action != "set" {
		return usageError{errors.New("plusminus value wants get or set: plusminus value get [flags], or plusminus value set N [flags]")}
	}
	var n hub.Value
	if action == "set" && (len(args) == 0 || !isHelp(args[0])) {
		var err error
		if n, args, err = valueArgument(args); err != nil {
			return usageError{err}
		}
	}
	cfg, err := parseConfig(args, lookupEnv, io.Discard)
	if errors.Is(err, flag.ErrHelp) {
		fmt.Fprint(stdout, valueHelp)
	}
	switch {
	case err != nil:
		return err
	case cfg.memory:
		return usageError{errors.New("there is no counter to read or set with -store memory: it begins at 0")}
	case cfg.shared != nil:
		return usageError{errors.New("the counter of -store redis:// is on the server: read it at https://DOMAIN/state")}
	case action == "get":
		return valueGet(cfg, stdout)
	}
	return valueSet(cfg, n, stdout)
}

// valueArgument takes the number off the front of args. It comes before the flags since it
// may look like one.
func valueArgument(args []string) (n hub.Value, rest []string, err error) {
	if len(args) == 0 {
		return n, nil, errors.New("the number is missing: plusminus value set N [flags]")
	}
	n, err = hub.ParseValue(args[0])
	switch {
	case errors.Is(err, hub.ErrRange):
		return n, nil, fmt.Errorf("%s is out of range: it goes from %d to %d", args[0], -hub.MaxValue, hub.MaxValue)
	case err != nil:
		return n, nil, fmt.Errorf("%q is no number: plusminus value set N [flags], with N first", args[0])
	}
	return n, args[1:], nil
}

func valueGet(cfg *config, stdout io.Writer) error {
	n, err := journal.Value(cfg.data)
	if err != nil {
		return valueError(cfg, err)
	}
	_, err = fmt.Fprintf(stdout, "%s\n", hub.AppendValue(nil, n))
	return err
}

func valueSet(cfg *config, n hub.Value, stdout io.Writer) error {
	if err := makeFolder(cfg.data); err != nil {
		return err
	}
	change, err := journal.Set(cfg.data, n)
	if err != nil {
		return valueError(cfg, err)
	}
	was := ""
	switch {
	case change.Had:
		was = fmt.Sprintf("; it was %s", hub.AppendValue(nil, change.Was))
	case change.Aside != "":
		was = "; what could not be read is in " + change.Aside
	}
	_, err = fmt.Fprintf(stdout, "the counter is %s%s\n", hub.AppendValue(nil, n), was)
	return err
}

func valueError(cfg *config, err error) error {
	if errors.Is(err, journal.ErrInUse) {
		return fmt.Errorf("%w: stop that plusminus first (its value is at /state)", err)
	}
	return journalError(cfg, err)
}

// openJournal opens the journal for the server.
func openJournal(cfg *config) (*journal.Journal, error) {
	j, err := journal.Open(cfg.data)
	if errors.Is(err, journal.ErrInUse) {
		return nil, fmt.Errorf("%w: stop that plusminus, or give this one a -data folder of its own", err)
	}
	return j, journalError(cfg, err)
}

// journalError adds to an error of the journal what the operator can do.
func journalError(cfg *config, err error) error {
	set := "plusminus value set N -data " + cfg.data
	switch {
	case errors.Is(err, journal.ErrDamaged):
		return fmt.Errorf("%w: put back a copy, or say where to go on: %s", err, set)
	case errors.Is(err, journal.ErrNewer):
		return fmt.Errorf("%w: start that version again, or move the file away and say where to go on: %s", err, set)
	case errors.Is(err, journal.ErrNone):
		return fmt.Errorf("%w; a server makes one at its first start, or you: %s", err, set)
	case errors.Is(err, os.ErrPermission):
		return fmt.Errorf("%w; its files must belong to the user that plusminus runs as, uid %d", err, os.Getuid())
	}
	return err
}
