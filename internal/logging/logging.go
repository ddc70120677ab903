// Package logging sets up the program's logger. It starts no goroutine.
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

// New returns a logger on w.
func New(cfg Config, w io.Writer) *slog.Logger {
	opts := &slog.HandlerOptions{Level: cfg.Level}
	var h slog.Handler = slog.NewJSONHandler(w, opts)
	if cfg.Format == "text" || cfg.Format == "auto" && isTerminal(w) {
		h = slog.NewTextHandler(w, opts)
	}
	if !cfg.Addresses {
		h = anonymousHandler{h}
	}
	return slog.New(h)
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
