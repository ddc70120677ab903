// Package logging sets up the program's logger: its format, its queue, so that a log that is not read
// stops nobody, and the removal of addresses. Each queue has one goroutine.
package logging

import (
	"io"
	"log"
	"log/slog"
	"os"
)

// Config sets the level and the form of the log.
type Config struct {
	Level     slog.Level // the lowest level that appears
	Format    string     // "text", "json", or "auto": text if the writer is a terminal, else JSON
	Addresses bool       // whether the log has the IP addresses of peers
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

// isTerminal reports whether w is a terminal.
func isTerminal(w io.Writer) bool {
	f, ok := w.(*os.File)
	if !ok {
		return false
	}
	info, err := f.Stat()
	return err == nil && info.Mode()&os.ModeCharDevice != 0
}

// TakeStandardLog sends the lines that libraries print with package log to l, at level Warn. Without it these lines are
// not JSON, and they keep their addresses.
func TakeStandardLog(l *slog.Logger) {
	log.SetFlags(0)
	log.SetOutput(slog.NewLogLogger(l.Handler(), slog.LevelWarn).Writer())
}
