package main

import (
	"io"
	"log"
	"log/slog"
	"os"
)

// newLogger returns a logger on w as cfg has it.
func newLogger(cfg *config, w io.Writer) *slog.Logger {
	opts := &slog.HandlerOptions{Level: cfg.logLevel}
	text := cfg.logFormat == "text"
	if cfg.logFormat == "auto" {
		if f, ok := w.(*os.File); ok {
			info, err := f.Stat()
			text = err == nil && info.Mode()&os.ModeCharDevice != 0
		}
	}
	var h slog.Handler = slog.NewJSONHandler(w, opts)
	if text {
		h = slog.NewTextHandler(w, opts)
	}
	if !cfg.logAddresses {
		h = anonymousHandler{h}
	}
	return slog.New(h)
}

// takeStandardLog has l log what libraries print with package log, which would be lines that
// are no JSON, and that nobody has left addresses out of.
func takeStandardLog(l *slog.Logger) {
	log.SetFlags(0)
	log.SetOutput(slog.NewLogLogger(l.Handler(), slog.LevelWarn).Writer())
}
