package hub

import (
	"fmt"
	"os"
	"regexp"
	"strings"
	"testing"
	"time"
	"unsafe"
)

// page returns the text of a file in docs.
func page(t *testing.T, name string) string {
	t.Helper()
	data, err := os.ReadFile("../docs/" + name)
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

// TestReadme checks facts in docs, in deploy and in doc comments that this package's constants decide.
func TestReadme(t *testing.T) {
	protocol := page(t, "protocol.md")
	docs := strings.Join(strings.Fields(protocol+page(t, "limits.md")+page(t, "operations.md")), " ")
	perRefill := map[time.Duration]string{time.Second: "second"}[notActionsEvery] // in the docs' words
	for _, want := range []string{
		fmt.Sprintf("%d messages at once that are no actions, or more than one a %s for long; an action resets the count | 1008", maxNotActions, perRefill),
		fmt.Sprintf("messages of a client that are no actions, since its last action | %d at once, and one more each %s | 1008", maxNotActions-1, perRefill),
		fmt.Sprintf("| 1008 | %d messages at once that are no actions, or more than one a %s for long;", maxNotActions, perRefill),
		fmt.Sprintf("Of a client that has left, the server still reads at most %d KB, for at most %s", maxLostRead>>10, map[time.Duration]string{time.Second: "a second"}[lostTimeout]),
		fmt.Sprintf("a message over %d bytes", MaxMessage),
		fmt.Sprintf("more than %d values behind", recentValues),
		fmt.Sprintf("does not answer for %v seconds, actions are refused", storeTimeout.Seconds()),
		fmt.Sprintf("takes nothing for %.0f seconds", stallTimeout.Seconds()),
		fmt.Sprintf("%d bytes; %d fragments | 1009; 1008", MaxMessage, maxFragments),
		fmt.Sprintf("control frames and refused messages of a client | %d,%03d in %.0f seconds", maxExcess/1000, maxExcess%1000, excessTime.Seconds()),
		fmt.Sprintf("come back after %.0f to %.0f seconds, and when the server stops after %.0f to %.0f", retryLeast.Seconds(), retryMost.Seconds(), restartLeast.Seconds(), restartMost.Seconds()),
		fmt.Sprintf("Every %d to %d seconds a comment", pingEvery, pingEvery+pingJitter),
		fmt.Sprintf("acknowledged nothing for %.0f seconds", ackTimeout.Seconds()),
		fmt.Sprintf("ends the stream if it is more than %d bytes", MaxMessage),
		fmt.Sprintf("with more than %d clients less often: %.1f ms for each", usersEvery/usersPace, usersPace.Seconds()*1000),
		fmt.Sprintf("clients are closed with %d", codeStopping),
		fmt.Sprintf("how V has changed in the last %d seconds", historyLength),
		fmt.Sprintf("have at most %d,%03d points, %d MB", maxPoints/1000, maxPoints%1000, maxPoints*int(unsafe.Sizeof(point{}))>>20),
		fmt.Sprintf("%d at once, more of them one each %d ms", drainSlice/drainPace, drainPace.Milliseconds()),
	} {
		if !strings.Contains(docs, want) {
			t.Errorf("docs do not say %q", want)
		}
	}
	for file, facts := range map[string][]string{
		"../deploy/prometheus/rules.yml": {
			fmt.Sprintf("at %v s actions are refused", storeTimeout.Seconds()),
			fmt.Sprintf("takes more than %v seconds counts", storeTimeout.Seconds()),
			fmt.Sprintf("took nothing for %v seconds", stallTimeout.Seconds()),
		},
		"../deploy/grafana/dashboard.json": {
			fmt.Sprintf("From %v s on actions are refused", storeTimeout.Seconds()),
			fmt.Sprintf("took nothing for %v seconds", stallTimeout.Seconds()),
		},
		"doc.go": {
			fmt.Sprintf("without progress for %v seconds", stallTimeout.Seconds()),
			fmt.Sprintf("worked on a commit for %v seconds", storeTimeout.Seconds()),
		},
		"hub.go": {
			fmt.Sprintf("Up to %d clients are closed at once", drainSlice/drainPace),
			fmt.Sprintf("at most %v seconds, to", closeTimeout.Seconds()),
			fmt.Sprintf("at most another %v seconds", storeTimeout.Seconds()),
		},
		"events.go": {
			fmt.Sprintf("%d messages at once that are not actions, or more than one a %s for long", maxNotActions, perRefill),
			fmt.Sprintf("no progress for %v seconds", stallTimeout.Seconds()),
			fmt.Sprintf("more than %d KB of answers", maxTail>>10),
		},
		"conn.go":               {fmt.Sprintf("would keep more than %d KB", maxTail>>10)},
		"counts.go":             {fmt.Sprintf("did not answer within %v seconds", storeTimeout.Seconds())},
		"../deploy/haproxy.cfg": {fmt.Sprintf("pings a silent client after %d s at most, and disconnects it %d s later", pingEvery+pingJitter, pongTimeout)},
	} {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		for _, fact := range facts {
			if !strings.Contains(string(text), fact) {
				t.Errorf("%s does not say %q", file, fact)
			}
		}
	}
	_, table, _ := strings.Cut(protocol, "| code of an error |")
	table, _, _ = strings.Cut(table, "\n\n")
	codes := map[string]bool{}
	for _, m := range regexp.MustCompile("(?m)^\\| `([a-z_]+)` \\|").FindAllStringSubmatch(table, -1) {
		codes[m[1]] = true
	}
	for _, r := range refusals {
		if !codes[r.code] {
			t.Errorf("docs/protocol.md's table of errors has no %q", r.code)
		}
		delete(codes, r.code)
	}
	for code := range codes {
		t.Errorf("docs/protocol.md's table of errors has %q, which is never sent", code)
	}
}

// TestReadmeCloses checks that the table of closes in docs/limits.md has each reason with its status code.
func TestReadmeCloses(t *testing.T) {
	_, table, _ := strings.Cut(page(t, "limits.md"), "| `plusminus_closes_total`, reason |")
	table, _, _ = strings.Cut(table, "\n\n")
	codes := map[Reason]string{}
	for _, row := range regexp.MustCompile("(?m)^\\| (`[^|]*) \\| ([0-9, ]+) \\|").FindAllStringSubmatch(table, -1) {
		told := strings.Split(row[2], ", ")
		for i, m := range regexp.MustCompile("`([a-z_0-9]+)`").FindAllStringSubmatch(row[1], -1) {
			codes[Reason(m[1])] = told[min(i, len(told)-1)]
		}
	}
	for reason := range closeCodes {
		if want := fmt.Sprint(reason.StatusCode()); codes[reason] != want {
			t.Errorf("docs/limits.md has %q for %s, want %s", codes[reason], reason, want)
		}
		delete(codes, reason)
	}
	for reason := range codes {
		t.Errorf("docs/limits.md has %s, which is not a reason of a close", reason)
	}
}

// TestReadmeReplacingTheCounter checks that the files and declarations that docs/extend.md names exist, in
// message.go and in the poll's.
func TestReadmeReplacingTheCounter(t *testing.T) {
	_, section, _ := strings.Cut(page(t, "extend.md"), "## Replacing the counter\n")
	section, _, _ = strings.Cut(section, "\n#")
	files := regexp.MustCompile("`((?:hub|static|internal)/[a-z/]+\\.[a-z]+|[a-z]+\\.go)`").FindAllStringSubmatch(section, -1)
	if len(files) < 8 {
		t.Errorf("docs/extend.md names only the files %v, want at least 8", files)
	}
	for _, m := range files {
		if _, err := os.Stat("../" + m[1]); err != nil {
			t.Errorf("docs/extend.md names a file that does not exist: %v", err)
		}
	}
	var names []string
	for _, row := range regexp.MustCompile("(?m)^\\| ((?:`[A-Za-z]+`(?:, )?)+) \\|").FindAllStringSubmatch(section, -1) {
		for _, m := range regexp.MustCompile("`([A-Za-z]+)`").FindAllStringSubmatch(row[1], -1) {
			names = append(names, m[1])
		}
	}
	if len(names) < 10 {
		t.Errorf("docs/extend.md's table has only %q, want at least 10 names", names)
	}
	for _, file := range []string{"message.go", "testdata/poll/message.go"} {
		source, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		for _, name := range names {
			if !regexp.MustCompile(`(?m)^(?:func|type) ` + name + `\b`).Match(source) {
				t.Errorf("docs/extend.md names %s, which %s does not declare", name, file)
			}
		}
	}
}
