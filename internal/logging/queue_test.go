package logging

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// newTestLog returns a logger at debug level, and what reads its lines.
func newTestLog(w io.Writer) (*slog.Logger, *Queue) {
	return New(Config{Level: slog.LevelDebug, Format: "text", Addresses: true}, w)
}

// A log that is not read delays nobody. Errors are kept when debug lines are lost, and once the log is
// read again, it says how many lines were lost.
func TestQueueIsNotRead(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r, w := io.Pipe()
		log, q := newTestLog(w)
		pad := strings.Repeat("x", 1000)
		for i := range 2 * maxQueued / 1000 {
			log.Debug("noise", "i", i, "pad", pad)
		}
		for i := range 10 {
			log.Error("important", "i", i)
		}
		lost := q.Lost()
		if lost < maxQueued/1000/2 {
			t.Errorf("%d lines are lost, want about half of %d", lost, 2*maxQueued/1000)
		}
		read := make(chan string)
		go func() {
			text, _ := io.ReadAll(r)
			read <- string(text)
		}()
		synctest.Wait()
		log.Info("later")
		q.Close()
		w.Close()
		text := <-read
		if n := strings.Count(text, "msg=important"); n != 10 {
			t.Errorf("%d of 10 errors were written", n)
		}
		if want := fmt.Sprintf(`msg="log lines lost: they were not read in time" n=%d`, lost); strings.Count(text, want) != 1 {
			t.Errorf("the log does not have %q once", want)
		}
		if n := strings.Count(text, "\n"); uint64(n)+lost != uint64(2*maxQueued/1000+10+1+1) {
			t.Errorf("%d lines were written and %d lost, want %d in all", n, lost, 2*maxQueued/1000+10+1+1)
		}
		if !strings.Contains(text, "msg=noise i=0 ") || strings.Index(text, "msg=noise i=0 ") > strings.Index(text, "msg=noise i=1 ") {
			t.Error("the lines are not in their order")
		}
		if i, j := strings.Index(text, "msg=important i=9"), strings.Index(text, "msg=later"); i > j {
			t.Error("a later line stands before an earlier one")
		}
	})
}

// Close waits for the reader for flushTimeout, and no longer.
func TestQueueClose(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r, w := io.Pipe()
		log, q := newTestLog(w)
		log.Info("stopped")
		began := time.Now()
		q.Close()
		if took := time.Since(began); took != flushTimeout {
			t.Errorf("Close took %v with a reader that does not read, want %v", took, flushTimeout)
		}
		log.Info("too late")
		if got := q.Lost(); got != 1 {
			t.Errorf("Lost() = %d, want the line after Close", got)
		}
		r.Close()
	})
	var out bytes.Buffer
	log, q := newTestLog(&out)
	for i := range 1000 {
		log.Info("line", "i", i)
	}
	q.Close()
	if n := strings.Count(out.String(), "\n"); n != 1000 {
		t.Errorf("%d of 1000 lines were written before Close returned", n)
	}
}

// brokenWriter fails, as a pipe does whose reader has ended.
type brokenWriter struct{}

func (brokenWriter) Write([]byte) (int, error) { return 0, errors.New("broken pipe") }

// Lines for a reader that has ended are counted as lost.
func TestQueueReaderEnded(t *testing.T) {
	log, q := newTestLog(brokenWriter{})
	log.Info("one")
	log.Info("two")
	q.Close()
	if got := q.Lost(); got != 2 {
		t.Errorf("Lost() = %d, want 2", got)
	}
}

// Attributes and groups of derived loggers reach the line, and loggers share one queue.
func TestQueueDerived(t *testing.T) {
	var out bytes.Buffer
	log, q := newTestLog(&out)
	log.With("a", 1).WithGroup("g").Info("derived", "b", 2)
	log.Info("plain")
	q.Close()
	if text := out.String(); !strings.Contains(text, "msg=derived a=1 g.b=2\n") || !strings.Contains(text, "msg=plain\n") {
		t.Errorf("logged %q", text)
	}
}
