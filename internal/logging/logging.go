// Package logging sets up the program's logger: its format, its queue, so that a log that is not read
// stops nobody, and the removal of addresses. Each queue has one goroutine.
package logging

import (
	"io"
	"log"
	"log/slog"
	"os"
)

// Config says what the log looks like.
type Config struct {
	Level     slog.Level
	Format    string // "text", "json", or "auto": text if the writer is a terminal, else JSON
	Addresses bool   // keep the IP addresses of peers in the log
}

// New returns a logger whose lines go through a queue to w, and the queue, which the caller closes. To
// log never waits for w.
func New(cfg Config, w io.Writer) (*slog.Logger, *Queue) {
	opts := &slog.HandlerOptions{Level: cfg.Level}
	text := cfg.Format == "text" || cfg.Format == "auto" && isTerminal(w)
	handler := func(w io.Writer) slog.Handler {
		if text {
			return slog.NewTextHandler(w, opts)
		}
		return slog.NewJSONHandler(w, opts)
	}
	q := newQueue(w, handler)
	h := newQueueHandler(q, handler)
	if !cfg.Addresses {
		h = anonymousHandler{h}
	}
	return slog.New(h), q
}

func isTerminal(w io.Writer) bool {
	f, ok := w.(*os.File)
	if !ok {
		return false
	}
	info, err := f.Stat()
	return err == nil && info.Mode()&os.ModeCharDevice != 0
}

// TakeStandardLog sends what libraries print with package log to l. Otherwise these lines would not
// be JSON, and their addresses would stay.
func TakeStandardLog(l *slog.Logger) {
	log.SetFlags(0)
	log.SetOutput(slog.NewLogLogger(l.Handler(), slog.LevelWarn).Writer())
}
