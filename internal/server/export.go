package server

import (
	"fmt"

	"plusminus/acme/export"
	"plusminus/internal/config"
)

// ExportConfig returns the configuration of package export, without its source and logger.
func ExportConfig(cfg *config.Config) export.Config {
	return export.Config{Dir: cfg.Export, Names: cfg.DomainNames(), Mode: cfg.ExportMode, Group: cfg.ExportGroup, Hook: cfg.ExportHook}
}

// openExport returns what keeps the files of -export, or nil without that flag.
func (s *Server) openExport(cfg *config.Config) (*export.Exporter, error) {
	if cfg.Export == "" {
		return nil, nil
	}
	p := s.certs.(fromProvider) // -plain and -export exclude each other
	c := ExportConfig(cfg)
	c.Served, c.Changed, c.Logger = p.Served, p.Changed(), s.log
	if err := c.Validate(); err != nil {
		return nil, config.UsageError{Err: fmt.Errorf("-export: %w", err)}
	}
	e, err := export.New(c)
	if err != nil {
		return nil, fmt.Errorf("-export: %w", err)
	}
	return e, nil
}
