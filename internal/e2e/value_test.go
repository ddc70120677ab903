package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestValueCommand reads and sets the counter of a stopped server. The next server continues with that value.
func TestValueCommand(t *testing.T) {
	t.Parallel()
	data := filepath.Join(t.TempDir(), "data")
	run := func(args string, env ...string) (out string, status int) {
		t.Helper()
		cmd := command(t, strings.Fields(args)...)
		cmd.Env = append(cmd.Env, env...)
		b, err := cmd.CombinedOutput()
		return string(b), exitStatus(err)
	}
	for _, tt := range []struct {
		args   string
		status int
		want   string // the whole output if the status is 0, else a part of it
	}{
		{"value", 2, "needs get, set, remove, list, export or import"},
		{"value put 3", 2, "needs get, set, remove, list, export or import"},
		{"value get a b", 2, `unexpected argument "b"`},
		{"value get a/b", 2, "a name has letters"},
		{"value set likes x", 2, `"x" is not a number`},
		{"value set likes 1e3", 2, `"1e3" is not a number`},
		{"value remove", 2, "the name is missing"},
		{"value set", 2, "the number is missing"},
		{"value set -data " + data + " 3", 2, "with N before the flags"},
		{"value set 1e3", 2, "is not a number"},
		{"value set 9007199254740992", 2, "from -9007199254740991 to 9007199254740991"},
		{"value set -9007199254740992", 2, "out of range"},
		{"value set 99999999999999999999", 2, "out of range"},
		{"value set 3 -store memory -admin 127.0.0.1:1", 1, "asking the running plusminus"},
		{"value get likes -data " + data, 1, "there is no counter yet"},
		{"value get -data " + data, 1, "there is no counter yet"},
		{"value set 3 -data " + data, 0, "the counter is 3\n"},
		{"value set -9007199254740991 -data " + data, 0, "the counter is -9007199254740991; it was 3\n"},
		{"value get -data " + data, 0, "-9007199254740991\n"},
		{"value set +40 --data=" + data, 0, "the counter is 40; it was -9007199254740991\n"},
	} {
		out, status := run(tt.args)
		if status != tt.status || status == 0 && out != tt.want || !strings.Contains(out, tt.want) {
			t.Errorf("plusminus %s: exit status %d and %q, want %d and %q", tt.args, status, out, tt.status, tt.want)
		}
	}
	for _, args := range []string{"value -h", "value get -h", "value set -h", "value set 3 --help"} {
		if out, status := run(args); !strings.Contains(out, "plusminus value set [NAME] N [flags]") || status != 0 {
			t.Errorf("plusminus %s: exit status %d and %q, want the help", args, status, out)
		}
	}

	s := start(t, "-data", data)
	ws := s.join("wss://localhost/")
	wantRead(t, ws, `{"count":1,"type":"users"}`, `{"type":"state","value":40}`)
	for _, args := range []string{"value get", "value set 1"} {
		if out, status := run(args, "PLUSMINUS_DATA="+data); status != 1 || !strings.Contains(out, data) || !strings.Contains(out, "stop that plusminus first") {
			t.Errorf("plusminus %s while a server runs: exit status %d and %q, want 1, the folder and what to do", args, status, out)
		}
	}
	send(t, ws, plus)
	wantRead(t, ws, `{"type":"state","value":41}`)
	ws.CloseNow()
	if err := s.stop(); err != nil {
		t.Fatal(err)
	}
	if out, status := run("value get", "PLUSMINUS_DATA="+data); out != "41\n" || status != 0 {
		t.Errorf("plusminus value get after the server: exit status %d and %q, want 0 and 41", status, out)
	}
}

// TestDamagedCounter damages or removes the counter's file. The server does not start and says what to do, and that
// advice works.
func TestDamagedCounter(t *testing.T) {
	t.Parallel()
	data := t.TempDir()
	counter := filepath.Join(data, "counter.db")
	serve := []string{"-data", data, "-https", "127.0.0.1:0", "-http", "off", "-admin", "off"}
	for _, tt := range []struct {
		name   string
		damage func() error
		want   string
	}{
		{"damaged", func() error { return os.WriteFile(counter, []byte("rubbish"), 0o600) }, "restore a copy"},
		{"gone", func() error { return os.Remove(counter) }, "it is gone"},
	} {
		if out, err := command(t, "value", "set", "5", "-data", data).CombinedOutput(); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		if err := tt.damage(); err != nil {
			t.Fatal(err)
		}
		out, err := command(t, serve...).CombinedOutput()
		advice := "plusminus value set N -data " + data
		if exitStatus(err) != 1 || !strings.Contains(string(out), tt.want) || !strings.Contains(string(out), advice) {
			t.Errorf("%s: %v and %q, want exit status 1, %q and %q", tt.name, err, out, tt.want, advice)
		}
		out, err = command(t, strings.Fields(strings.Replace(advice, "N", "6", 1))[1:]...).CombinedOutput()
		if err != nil {
			t.Errorf("%s: the advice: %v: %s", tt.name, err, out)
		}
		if out, err := command(t, "value", "get", "-data", data).CombinedOutput(); string(out) != "6\n" {
			t.Errorf("%s: then value get = %q, %v, want 6", tt.name, out, err)
		}
	}
}

// TestValueOfManyCounters runs the command against a server that runs, and then on its folder when it has stopped.
func TestValueOfManyCounters(t *testing.T) {
	t.Parallel()
	data := t.TempDir()
	s := start(t, "-plain", "-domain", "localhost", "-data", data, "-counters", "*", "-action-rate", "0")
	run := func(input, args string) (out string, status int) {
		t.Helper()
		cmd := command(t, strings.Fields("value "+args+" -data "+data+" -admin "+s.addrs.Admin)...)
		cmd.Stdin = strings.NewReader(input)
		b, err := cmd.CombinedOutput()
		return string(b), exitStatus(err)
	}
	want := func(input, args string, status int, want string) {
		t.Helper()
		if out, got := run(input, args); got != status || status == 0 && out != want || !strings.Contains(out, want) {
			t.Errorf("plusminus value %s: exit status %d and %q, want %d and %q", args, got, out, status, want)
		}
	}
	ws := s.watch("/c/likes")
	wantRead(t, ws, `{"count":1,"type":"users"}`, `{"type":"state","value":0}`)
	want("", "set likes 7", 0, "the counter likes is 7\n")
	wantRead(t, ws, `{"type":"state","value":7}`) // like any other value
	ws.CloseNow()
	want("", "set -5", 0, "the counter is -5\n")
	want("", "set door.a -2", 0, "the counter door.a is -2\n")
	const exported = "{\"counter\":\"\",\"value\":-5}\n{\"counter\":\"door.a\",\"value\":-2}\n{\"counter\":\"likes\",\"value\":7}\n"
	both := func() {
		t.Helper()
		want("", "get likes", 0, "7\n")
		want("", "get", 0, "-5\n")
		want("", "get other", 1, "there is no such counter")
		want("", "list", 0, "(default) -5\ndoor.a -2\nlikes 7\n")
		want("", "list door", 0, "door.a -2\n")
		want("", "export", 0, exported)
		want("{\"counter\":\"a\",\"value\":1}\n{\"counter\":\"b\"\n", "import", 1, "line 2: it is not like")
		want("{\"counter\":\"a\",\"value\":1}\n{\"counter\":\"a\",\"value\":2}\n", "import", 1, "line 2: the counter a is there twice; nothing is imported")
		want("{\"counter\":\"a b\",\"value\":1}\n", "import", 1, "line 1: a name has")
		want("{\"value\":1}\n", "import", 1, "line 1: it is not like")
		want("{\"counter\":\"a\",\"value\":9007199254740992}\n", "import", 1, "line 1: ")
		want("", "get a", 1, "there is no such counter")
		want("", "set new 1", 0, "the counter new is 1\n")
		want("", "remove new", 0, "the counter new is removed\n")
		want("", "remove new", 1, "there is no such counter")
		want("", "set likes 9", 0, "the counter likes is 9\n")
		want(exported, "import", 0, "3 counters imported\n")
		want("", "export", 0, exported)
	}
	both()
	if err := s.stop(); err != nil {
		t.Fatal(err)
	}
	both()
	s = start(t, "-plain", "-domain", "localhost", "-data", data, "-counters", "*")
	if _, body := s.request("GET", "/c/likes/state", "", nil); body != `{"value":7,"users":0}` {
		t.Errorf("likes after a restart: %s", body)
	}

	// More than one answer has.
	var lines strings.Builder
	for i := range 1200 {
		fmt.Fprintf(&lines, "{\"counter\":\"n%04d\",\"value\":%d}\n", i, i)
	}
	want(lines.String(), "import", 0, "1200 counters imported\n")
	if out, _ := run("", "export"); !strings.HasSuffix(out, lines.String()) {
		t.Errorf("the export of %d bytes does not end with what was imported", len(out))
	}

	// A folder that is damaged beyond repair. The error says what helps.
	if err := s.stop(); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(data, "counter.db")
	content, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for i := 8192; i < 8192+16384; i++ { // the log, both copies
		content[i] = 0
	}
	if err := os.WriteFile(path, content, 0o600); err != nil {
		t.Fatal(err)
	}
	want("", "get", 1, "set the value to go on from: plusminus value set N -data ")
	want("", "set likes 3", 1, "set the value to go on from: plusminus value set N -data ")
	out, status := run("", "set 12")
	if aside, err := filepath.Glob(path + ".damaged-*"); status != 0 || err != nil || len(aside) != 1 || out != "the counter is 12; the file that could not be read is now "+aside[0]+"\n" {
		t.Errorf("value set on a damaged folder: exit status %d and %q; set aside: %v, %v", status, out, aside, err)
	}
	want("", "set likes 3", 0, "the counter likes is 3\n")
	want("", "list", 0, "(default) 12\nlikes 3\n")

	// A server without -counters, and one without a folder.
	one := start(t, "-plain", "-domain", "localhost", "-store", "memory")
	for _, args := range []string{"-store memory", ""} {
		args := strings.Fields("value get " + args + " -admin " + one.addrs.Admin)
		if zero, err := command(t, args...).CombinedOutput(); err != nil || string(zero) != "0\n" {
			t.Errorf("plusminus %s of a server without -counters = %q, %v, want 0", args, zero, err)
		}
	}
	if out, err := command(t, "value", "get", "-data", data, "-admin", one.addrs.Admin).CombinedOutput(); err != nil || string(out) != "12\n" {
		t.Errorf("value get of a folder beside a server without one = %q, %v, want the folder's 12", out, err)
	}
	if out, err := command(t, "value", "set", "3", "-store", "memory", "-admin", one.addrs.Admin).CombinedOutput(); exitStatus(err) != 1 || !strings.Contains(string(out), "without -counters") {
		t.Errorf("value set of a server without -counters = %q, %v", out, err)
	}
}
