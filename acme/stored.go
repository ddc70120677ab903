package acme

import (
	"errors"
	"log/slog"
	"path/filepath"
	"time"

	"plusminus/acme/internal/certs"
	"plusminus/acme/internal/store"
)

// Stored is what earlier runs of a server stored for one domain at the first CA.
type Stored struct {
	Certificate bool       // there is a stored certificate, valid or not
	NotAfter    time.Time  // of the stored certificate, if it is valid now; otherwise zero
	Damaged     string     // the place of the stored certificate, if it is damaged; otherwise empty
	LastError   *LastError // of the last attempt; nil after success
	NextAttempt time.Time  // the earliest time of the next attempt
}

// ReadStored returns what a server with the configuration cfg would find for domain at the time now. It reads
// the data folder, or cfg.Shared if that is set, and changes nothing. Errors count as nothing stored.
func ReadStored(cfg Config, domain string, now time.Time) Stored {
	cfg = cfg.withDefaults()
	name := store.DirectoryName(cfg.DirectoryURL)
	clock, log := func() time.Time { return now }, slog.New(slog.DiscardHandler)
	var st store.Store = store.NewFolder(filepath.Join(cfg.Dir, store.ACME, name), clock, log)
	if cfg.Shared != nil {
		seal, err := store.NewSealer(cfg.SealKeys)
		if err != nil {
			return Stored{}
		}
		st = store.NewShared(cfg.Shared, seal, name, nil, clock, log)
	}

	var found Stored
	data, err := st.Read(domain)
	if err == nil {
		if cert, err := certs.ParsePair(domain, data); err == nil {
			found.Certificate = true
			if certs.Invalidity(cert.Leaf, domain, now) == "" {
				found.NotAfter = cert.Leaf.NotAfter
			}
		}
	} else if errors.Is(err, store.ErrDamaged) {
		found.Damaged = st.Path(domain)
	}
	data, err = st.Read(domain + store.PlanSuffix)
	if err != nil {
		return found
	}
	pl, err := parsePlan(data, now)
	if err != nil {
		return found
	}
	pl.restarted()
	found.LastError, found.NextAttempt = pl.LastError, pl.attemptTime(now)
	return found
}
