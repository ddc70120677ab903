package main

import (
	"context"
	"io"
	"log"
	"log/slog"
	"os"
	"strings"
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

// quietHandler takes what net/http logs, and lowers to debug what any scanner on the
// internet can cause: at warning level it would bury what an operator has to see.
type quietHandler struct{ slog.Handler }

// Enabled implements slog.Handler.
func (h quietHandler) Enabled(ctx context.Context, _ slog.Level) bool {
	return true // Handle knows the level
}

// Handle implements slog.Handler.
func (h quietHandler) Handle(ctx context.Context, r slog.Record) error {
	if strings.HasPrefix(r.Message, "http: TLS handshake error") {
		r.Level = slog.LevelDebug
	}
	if !h.Handler.Enabled(ctx, r.Level) {
		return nil
	}
	return h.Handler.Handle(ctx, r)
}
