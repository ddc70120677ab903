package hub

import (
	"bytes"
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// TestEventsAreSampled checks that the first event of a reason is logged at once, and later ones more and more
// rarely, each with the number of events without a line.
func TestEventsAreSampled(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var lines bytes.Buffer
		e := NewEvents(EventsConfig{Logger: slog.New(slog.NewTextHandler(&lines, nil))})
		take := func() string {
			defer lines.Reset()
			return lines.String()
		}
		e.Refused(ReasonOrigin, "remote", "a")
		if got := take(); !strings.Contains(got, `level=INFO msg="connection refused" remote=a reason=origin`) {
			t.Errorf("the first event is logged as %q", got)
		}
		var at []string
		for second := range 3 * 60 * 60 {
			time.Sleep(time.Second)
			e.Refused(ReasonOrigin, "remote", "a")
			if got := take(); got != "" {
				_, suppressed, _ := strings.Cut(strings.TrimSpace(got), "suppressed=")
				at = append(at, fmt.Sprintf("%d:%s", (second+1)/60, suppressed))
			}
		}
		if got, want := strings.Join(at, " "), "1:59 3:119 7:239 15:479 31:959 63:1919 123:3599"; got != want {
			t.Errorf("lines at minutes %s, want %s", got, want)
		}
		e.Refused(ReasonFull)
		if got := take(); !strings.Contains(got, "level=WARN") || !strings.Contains(got, "reason=full") {
			t.Errorf("the first event of another reason is logged as %q", got)
		}
		time.Sleep(3 * sampleLongest) // the series ends
		e.Refused(ReasonOrigin)
		take()
		time.Sleep(sampleEvery)
		e.Refused(ReasonOrigin)
		if take() == "" {
			t.Error("no line one minute after the first line of a new series")
		}
		if n := e.Counts().Refusals[ReasonOrigin]; n != 1+3*60*60+2 {
			t.Errorf("Counts().Refusals[%q] = %d, want %d", ReasonOrigin, n, 1+3*60*60+2)
		}
	})
}
