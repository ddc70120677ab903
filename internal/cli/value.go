package cli

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"plusminus/hub"
	"plusminus/hub/journal"
	"plusminus/internal/admin"
	"plusminus/internal/config"
	"plusminus/internal/store"
)

const valueHelp = `plusminus value reads and changes counters: those of the server that runs, over its admin listener,
or those in the data folder of a stopped server.

Usage:

  plusminus value get [NAME] [flags]      print the value of a counter
  plusminus value set [NAME] N [flags]    set it to N, from -9007199254740991 to 9007199254740991
  plusminus value remove NAME [flags]     remove it
  plusminus value list [PREFIX] [flags]   print the counters, a name and a value in each line
  plusminus value export [flags]          print all of them, a JSON object in each line
  plusminus value import [flags]          set counters to what export has printed, from standard input

Without NAME it is the default counter. Others need a server with -counters. Clients are sent a value
that is set like any other.

Run it as the user that the server runs as. On a stopped server, "value set N" also works on a counter
that is damaged or gone: it keeps a file that cannot be read under another name. Exit status: 0 if
done, 2 for wrong usage, 1 for anything else.

It takes the server's flags and environment variables, and needs at most these:

  -data folder
    	folder of the counters (default "data"; PLUSMINUS_DATA)
  -admin address
    	admin listener of the running server (default "127.0.0.1:9180"; PLUSMINUS_ADMIN)
`

// A book is where the command finds counters. The name "" is the default counter's.
type book interface {
	get(name string) (hub.Value, error)
	set(name string, v hub.Value) error
	remove(name string) error

	// list calls f for the counters whose names begin with prefix, in the order of their names. The default counter is the first
	// one, if prefix is empty.
	list(prefix string, f func(admin.Counter) error) error
}

// value is the command "value".
func value(args []string, env Environment) error {
	asksHelp := func(arg string) bool { return slices.Contains([]string{"-h", "-help", "--h", "--help"}, arg) }
	action := ""
	if len(args) > 0 {
		action, args = args[0], args[1:]
	}
	if asksHelp(action) || len(args) > 0 && asksHelp(args[0]) {
		fmt.Fprint(env.Stdout, valueHelp)
		return flag.ErrHelp
	}
	var name string
	var n hub.Value
	var err error
	switch action {
	case "get", "list":
		name, args = nameArgument(args)
	case "set":
		name, n, args, err = valueArguments(args)
	case "remove":
		if name, args = nameArgument(args); name == "" {
			err = errors.New("the name is missing: plusminus value remove NAME [flags]")
		}
	case "export", "import":
	default:
		err = errors.New("plusminus value needs get, set, remove, list, export or import: plusminus value get [NAME] [flags]")
	}
	if err == nil && name != "" && action != "list" {
		err = hub.ValidName(name)
	}
	if err != nil {
		return config.UsageError{Err: err}
	}
	cfg, err := env.parse(args, io.Discard)
	if isHelp(err) {
		fmt.Fprint(env.Stdout, valueHelp)
	}
	if err != nil {
		return err
	}
	running, err := runs(cfg, slices.ContainsFunc(args, isData))
	if err != nil {
		return err
	}
	if running {
		return valueAction(&runningBook{addr: cfg.Admin, ctx: context.Background()}, action, name, n, env)
	}
	file := cfg.Store.(store.File) // see runs
	if action == "set" && name == "" {
		return setOffline(file, cfg.Data, n, env.Stdout)
	}
	b, closeBook, err := openBook(file, cfg)
	if err != nil {
		return err
	}
	err = valueAction(b, action, name, n, env)
	return errors.Join(err, closeBook())
}

// valueAction does the action on b.
func valueAction(b book, action, name string, n hub.Value, env Environment) error {
	printValue := func(v hub.Value) error {
		_, err := fmt.Fprintf(env.Stdout, "%s\n", hub.AppendValue(nil, v))
		return err
	}
	switch action {
	case "get":
		v, err := b.get(name)
		if err != nil {
			return err
		}
		return printValue(v)
	case "set":
		if err := b.set(name, n); err != nil {
			return err
		}
		_, err := fmt.Fprintf(env.Stdout, "%s is %s\n", said(name), hub.AppendValue(nil, n))
		return err
	case "remove":
		if err := b.remove(name); err != nil {
			return err
		}
		_, err := fmt.Fprintf(env.Stdout, "%s is removed\n", said(name))
		return err
	case "list":
		return b.list(name, func(c admin.Counter) error {
			_, err := fmt.Fprintf(env.Stdout, "%s %s\n", listed(c.Name), hub.AppendValue(nil, c.Value))
			return err
		})
	case "export":
		lines := json.NewEncoder(env.Stdout)
		return b.list("", func(c admin.Counter) error { return lines.Encode(c) })
	}
	counters, err := readImport(env.Stdin)
	if err != nil {
		return err
	}
	for i, c := range counters {
		if err := b.set(c.Name, c.Value); err != nil {
			return fmt.Errorf("line %d, %s: %w; the lines before it are imported", i+1, said(c.Name), err)
		}
	}
	_, err = fmt.Fprintf(env.Stdout, "%d counters imported\n", len(counters))
	return err
}

// said is how a sentence names a counter.
func said(name string) string {
	if name == "" {
		return "the counter"
	}
	return "the counter " + name
}

// listed is how a list names a counter. No name has parentheses.
func listed(name string) string {
	if name == "" {
		return "(default)"
	}
	return name
}

// readImport reads what export prints. It reads all of it before anything is set.
func readImport(r io.Reader) ([]admin.Counter, error) {
	var counters []admin.Counter
	seen := make(map[string]bool)
	lines := bufio.NewScanner(r)
	for n := 1; lines.Scan(); n++ {
		c := admin.Counter{Name: "?"}
		decoder := json.NewDecoder(strings.NewReader(lines.Text()))
		decoder.DisallowUnknownFields()
		err := decoder.Decode(&c)
		switch {
		case err != nil || c.Name == "?":
			err = fmt.Errorf(`it is not like {"counter":"likes","value":3}`)
		case c.Name != "":
			err = hub.ValidName(c.Name)
		}
		if err == nil {
			_, err = hub.ParseValue(string(hub.AppendValue(nil, c.Value)))
		}
		if err == nil && seen[c.Name] {
			err = fmt.Errorf("%s is there twice", said(c.Name))
		}
		if err != nil {
			return nil, fmt.Errorf("line %d: %w; nothing is imported", n, err)
		}
		seen[c.Name] = true
		counters = append(counters, c)
	}
	return counters, lines.Err()
}

// nameArgument takes a name off the front of args, if there is one.
func nameArgument(args []string) (name string, rest []string) {
	if len(args) == 0 || strings.HasPrefix(args[0], "-") {
		return "", args
	}
	return args[0], args[1:]
}

// valueArguments takes [NAME] N off the front of args. N stands before the flags since it may look like one.
func valueArguments(args []string) (name string, n hub.Value, rest []string, err error) {
	if len(args) > 1 {
		_, err := hub.ParseValue(args[1]) // may begin like a flag
		if err == nil || errors.Is(err, hub.ErrRange) || !strings.HasPrefix(args[1], "-") {
			name, args = args[0], args[1:]
		}
	}
	if len(args) == 0 {
		return "", n, nil, errors.New("the number is missing: plusminus value set [NAME] N [flags]")
	}
	n, err = hub.ParseValue(args[0])
	switch {
	case errors.Is(err, hub.ErrRange):
		err = fmt.Errorf("%s is out of range: it goes from %d to %d", args[0], int64(-hub.MaxValue), int64(hub.MaxValue))
	case err != nil:
		err = fmt.Errorf("%q is not a number: plusminus value set [NAME] N [flags], with N before the flags", args[0])
	}
	return name, n, args[1:], err
}

// isData reports whether arg is the flag -data.
func isData(arg string) bool {
	name, _, _ := strings.Cut(strings.TrimLeft(arg, "-"), "=")
	return strings.HasPrefix(arg, "-") && name == "data"
}

// runs reports whether the command is about the server that answers on -admin: it has the counters of the data folder, or its
// counters are in no folder and no -data asks for one. In a container the flags of the server are not those of the command.
func runs(cfg *config.Config, folderAsked bool) (bool, error) {
	if _, ok := cfg.Store.(store.File); !ok {
		return true, nil
	}
	theirs, err := admin.Folder(context.Background(), cfg.Admin)
	if err != nil {
		return false, nil // openBook says so if a server has the folder all the same
	}
	if theirs == "" {
		return !folderAsked, nil
	}
	ours, err := filepath.Abs(cfg.Data)
	if err != nil {
		return false, err
	}
	a, errA := os.Stat(ours)
	b, errB := os.Stat(theirs)
	return ours == theirs || errA == nil && errB == nil && os.SameFile(a, b), nil
}

// openBook returns the counters in the data folder of a stopped server.
func openBook(file store.File, cfg *config.Config) (book, func() error, error) {
	many, closeMany, err := file.Reopen(cfg.Data)
	switch {
	case err == nil:
		return &folderBook{many}, closeMany, nil
	case errors.Is(err, journal.ErrOne):
		return &oneBook{file, cfg.Data}, func() error { return nil }, nil
	case errors.Is(err, journal.ErrInUse):
		return nil, nil, fmt.Errorf("%w, or name its admin listener with -admin", err)
	}
	return nil, nil, err
}

// runningBook has the counters of a server that runs.
type runningBook struct {
	addr string
	ctx  context.Context
}

func (b *runningBook) get(name string) (hub.Value, error) { return admin.Get(b.ctx, b.addr, name) }
func (b *runningBook) set(name string, v hub.Value) error { return admin.Set(b.ctx, b.addr, name, v) }
func (b *runningBook) remove(name string) error           { return admin.Remove(b.ctx, b.addr, name) }
func (b *runningBook) list(prefix string, f func(admin.Counter) error) error {
	return admin.List(b.ctx, b.addr, prefix, f)
}

// folderBook has the counters in the data folder of a stopped server.
type folderBook struct{ store hub.Counters }

var errNoCounter = errors.New("there is no such counter")

func (b *folderBook) get(name string) (hub.Value, error) {
	s, err := b.store.LoadCounter(context.Background(), name)
	if err == nil && s.Version == 0 && name != "" {
		err = errNoCounter
	}
	return s.Value, err
}

func (b *folderBook) set(name string, v hub.Value) error {
	return b.change(hub.Change{Counter: name, Set: &v})
}

func (b *folderBook) remove(name string) error {
	if _, err := b.get(name); err != nil {
		return err
	}
	return b.change(hub.Change{Counter: name, Remove: true})
}

func (b *folderBook) change(c hub.Change) error {
	changes := []hub.Change{c}
	b.store.ApplyAll(context.Background(), changes)
	return changes[0].Err
}

func (b *folderBook) list(prefix string, f func(admin.Counter) error) error {
	ctx := context.Background()
	if prefix == "" {
		s, err := b.store.Load(ctx)
		if err == nil {
			err = f(admin.Counter{Value: s.Value})
		}
		if err != nil {
			return err
		}
	}
	all, err := b.store.List(ctx, prefix, "", b.store.Len())
	for _, e := range all {
		if err := f(admin.Counter{Name: e.Counter, Value: e.Value}); err != nil {
			return err
		}
	}
	return err
}

// oneBook has the counter in the data folder of a stopped server that never had -counters.
type oneBook struct {
	file store.File
	data string
}

var errOnlyOne = errors.New("the data folder holds one counter: a start of the server with -counters makes room for more")

func (b *oneBook) get(name string) (hub.Value, error) {
	if name != "" {
		var none hub.Value
		return none, errOnlyOne
	}
	return b.file.Value(b.data)
}

func (b *oneBook) set(name string, v hub.Value) error {
	if name != "" {
		return errOnlyOne
	}
	_, err := b.file.SetValue(b.data, v)
	return err
}

func (b *oneBook) remove(string) error { return errOnlyOne }

func (b *oneBook) list(prefix string, f func(admin.Counter) error) error {
	if prefix != "" {
		return nil
	}
	v, err := b.file.Value(b.data)
	if err != nil {
		return err
	}
	return f(admin.Counter{Value: v})
}

// setOffline sets the default counter in the data folder of a stopped server, also if it is damaged or gone.
func setOffline(file store.File, data string, n hub.Value, stdout io.Writer) error {
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
