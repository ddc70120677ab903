package cli

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"slices"

	"plusminus/hub"
	"plusminus/internal/config"
	"plusminus/internal/store"
)

const valueHelp = `plusminus value reads or sets the counter in the data folder of a stopped server.
(The value of a running server is at https://DOMAIN/state; its clients change it.)

Usage:

  plusminus value get [flags]      print the value
  plusminus value set N [flags]    set it to N, from -9007199254740991 to 9007199254740991

Run it as the user that the server runs as. "value set" also works on a counter that is damaged or
gone: it keeps a file that cannot be read under another name. Exit status: 0 if done, 2 for wrong
usage, 1 for anything else, such as a server that runs on the folder.

It takes the server's flags and environment variables, and needs only one:

  -data folder
    	folder of the counter (default "data"; PLUSMINUS_DATA)
`

// value is the command "value".
func value(args []string, env Environment) error {
	asksHelp := func(arg string) bool { return slices.Contains([]string{"-h", "-help", "--h", "--help"}, arg) }
	action := ""
	if len(args) > 0 {
		action, args = args[0], args[1:]
	}
	if asksHelp(action) {
		fmt.Fprint(env.Stdout, valueHelp)
		return flag.ErrHelp
	}
	if action != "get" && action != "set" {
		return config.UsageError{Err: errors.New("plusminus value needs get or set: plusminus value get [flags], or plusminus value set N [flags]")}
	}
	var n hub.Value
	if action == "set" && (len(args) == 0 || !asksHelp(args[0])) {
		var err error
		if n, args, err = valueArgument(args); err != nil {
			return config.UsageError{Err: err}
		}
	}
	cfg, err := env.parse(args, io.Discard)
	if isHelp(err) {
		fmt.Fprint(env.Stdout, valueHelp)
	}
	if err != nil {
		return err
	}
	file, ok := cfg.Store.(store.File)
	switch {
	case !ok:
		return config.UsageError{Err: fmt.Errorf("the counter of -store %s is not in the data folder: read it at https://DOMAIN/state", cfg.Store)}
	case action == "get":
		return valueGet(file, cfg.Data, env.Stdout)
	}
	return valueSet(file, cfg.Data, n, env.Stdout)
}

// valueArgument takes the number off the front of args. It stands before the flags since it may look
// like one.
func valueArgument(args []string) (n hub.Value, rest []string, err error) {
	if len(args) == 0 {
		return n, nil, errors.New("the number is missing: plusminus value set N [flags]")
	}
	n, err = hub.ParseValue(args[0])
	switch {
	case errors.Is(err, hub.ErrRange):
		return n, nil, fmt.Errorf("%s is out of range: it goes from %d to %d", args[0], int64(-hub.MaxValue), int64(hub.MaxValue))
	case err != nil:
		return n, nil, fmt.Errorf("%q is not a number: plusminus value set N [flags], with N first", args[0])
	}
	return n, args[1:], nil
}

func valueGet(file store.File, data string, stdout io.Writer) error {
	n, err := file.Value(data)
	if err != nil {
		return err
	}
	_, err = fmt.Fprintf(stdout, "%s\n", hub.AppendValue(nil, n))
	return err
}

func valueSet(file store.File, data string, n hub.Value, stdout io.Writer) error {
	if err := os.MkdirAll(data, 0o700); err != nil {
		return fmt.Errorf("making the data folder: %w", err)
	}
	change, err := file.SetValue(data, n)
	if err != nil {
		return err
	}
	was := ""
	switch {
	case change.Had:
		was = fmt.Sprintf("; it was %s", hub.AppendValue(nil, change.Was))
	case change.Aside != "":
		was = "; the file that could not be read is now " + change.Aside
	}
	_, err = fmt.Fprintf(stdout, "the counter is %s%s\n", hub.AppendValue(nil, n), was)
	return err
}
