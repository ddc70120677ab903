package acme

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"time"

	"plusminus/acme/internal/cahttp"
	"plusminus/acme/internal/store"
)

// A plan is what has to be remembered of one name at one CA, over restarts and by all replicas, so
// that neither a crash loop nor many processes ask the CA for more than one patient process would.
//
// It is written before an attempt as if that had failed, and corrected after: a process that dies in
// the middle leaves the worst that can have happened.
type plan struct {
	Saved time.Time `json:"saved"` // when it was written

	// shift is how much the times in memory were taken back from those in the file, see parsePlan.
	shift time.Duration

	// The schedule.
	Failures     int           `json:"failures,omitempty"`      // attempts in a row without a certificate
	FailingSince time.Time     `json:"failing_since,omitzero"`  // the first of these
	NotBefore    time.Time     `json:"not_before,omitzero"`     // when the next attempt may be made
	RetryAfter   time.Time     `json:"retry_after,omitzero"`    // before which the CA does not want to see us at all
	LastError    *LastError    `json:"last_error,omitempty"`    // of the last attempt; nil after success
	Free         bool          `json:"free,omitempty"`          // the last attempt failed before the CA counted anything
	Interrupted  bool          `json:"interrupted,omitempty"`   // an attempt began and did not end
	Order        *pendingOrder `json:"pending_order,omitempty"` // what it was about, or what is still open

	// The local budget.
	Failed []time.Time `json:"failed_validations,omitempty"` // in the last hour
	Issued []time.Time `json:"issued,omitempty"`             // in the last week

	// What was learnt.
	Challenge  string       `json:"challenge,omitempty"`   // the type that succeeded last
	NoReplaces string       `json:"no_replaces,omitempty"` // the certificate, by its ARI id, that the CA does not let us name
	Renewal    *renewalInfo `json:"renewal,omitempty"`     // what the CA says about renewing
}

// A pending order is one that the CA knows of, with the key whose certificate it is to be.
type pendingOrder struct {
	URL string `json:"url"`
	Key []byte `json:"key"` // PEM

	// Final is set before the CA is told to issue: from then on there may be a certificate.
	Final bool `json:"final,omitempty"`

	Since time.Time `json:"since,omitzero"`  // when it was placed
	Taken int       `json:"taken,omitempty"` // how often it was taken up since
}

// An order that was taken up so often, and for so long, is left alone: the CA has forgotten it, or will
// never be done with it.
const (
	maxTaken = 3
	maxOpen  = time.Hour
)

// hopeless reports whether the order is to be left alone. forced says that an operator does not want to
// wait: then having been taken up once is enough.
func (o *pendingOrder) hopeless(now time.Time, forced bool) bool {
	return o.Taken >= maxTaken && now.Sub(o.Since) >= maxOpen || forced && o.Taken > 0
}

// loadPlan returns the plan for name. A missing one is empty; one that is damaged is so too, and has
// been set aside. The error says that it cannot be read now.
func loadPlan(st store.Store, name string, now time.Time) (*plan, error) {
	pl, err := store.Load(st, name+store.PlanSuffix, func(data []byte) (*plan, error) { return parsePlan(data, now) })
	if errors.Is(err, fs.ErrNotExist) {
		return new(plan), nil
	}
	return pl, err
}

// parsePlan reads a plan. If it was written in what is the future by our clock, then the clock was ahead
// or is behind, and which of the two cannot be told. Taken as they are, its times could keep us waiting for
// years; left out, a machine that starts with its clock behind would forget what the CA has counted. So
// they are taken back as if it had been written just now, and moved forward again by save.
func parsePlan(data []byte, now time.Time) (*plan, error) {
	pl := new(plan)
	if err := json.Unmarshal(data, pl); err != nil {
		return nil, err
	}
	if ahead := pl.Saved.Sub(now); ahead > cahttp.MaxSkew {
		pl.shift = ahead
		pl.move(-ahead)
	}
	return pl, nil
}

// move adds d to all times, save those that are a CA's.
func (pl *plan) move(d time.Duration) {
	for _, t := range []*time.Time{&pl.Saved, &pl.FailingSince, &pl.NotBefore, &pl.RetryAfter} {
		if !t.IsZero() {
			*t = t.Add(d)
		}
	}
	if pl.LastError != nil {
		e := *pl.LastError
		e.When = e.When.Add(d)
		pl.LastError = &e
	}
	if pl.Renewal != nil {
		pl.Renewal.FetchAfter = pl.Renewal.FetchAfter.Add(d)
	}
	if pl.Order != nil {
		pl.Order.Since = pl.Order.Since.Add(d)
	}
	for _, times := range [][]time.Time{pl.Failed, pl.Issued} {
		for i := range times {
			times[i] = times[i].Add(d)
		}
	}
}

// follow takes account of what the clock did since the plan was looked at last: it was set by jump. A
// plan of what is now the future is taken back, as parsePlan does, and one that was taken back is moved
// forward if the clock was set right since.
func (pl *plan) follow(now time.Time, jump time.Duration) {
	if ahead := pl.Saved.Sub(now); ahead > cahttp.MaxSkew {
		pl.shift += ahead
		pl.move(-ahead)
	} else if jump > cahttp.MaxSkew && pl.shift > 0 {
		d := min(pl.shift, jump)
		pl.shift -= d
		pl.move(d)
	}
}

// save writes the plan down, and returns once it is safe.
func (pl *plan) save(st store.Store, name string, now time.Time) error {
	pl.Saved = now
	pl.Failed = recent(pl.Failed, failedWindow, now)
	pl.Issued = recent(pl.Issued, issuedWindow, now)
	written := pl.clone()
	written.move(pl.shift)
	data, err := json.MarshalIndent(written, "", "  ")
	if err != nil {
		return err
	}
	if err := st.Write(name+store.PlanSuffix, append(data, '\n')); err != nil {
		return fmt.Errorf("storing the plan: %w", err)
	}
	return nil
}

// clone returns a copy that shares nothing which either side changes.
func (pl *plan) clone() *plan {
	c := *pl
	c.Failed, c.Issued = slices.Clone(pl.Failed), slices.Clone(pl.Issued)
	if pl.Order != nil {
		order := *pl.Order
		c.Order = &order
	}
	if pl.Renewal != nil {
		info := *pl.Renewal
		c.Renewal = &info
	}
	return &c
}

// begin records that an attempt begins which may fail so many validations.
func (pl *plan) begin(now time.Time, validations int, random float64) {
	pl.Failures++
	if pl.FailingSince.IsZero() {
		pl.FailingSince = now
	}
	pl.NotBefore = retryTime(now, pl.Failures, time.Time{}, random)
	pl.Interrupted, pl.Free = true, false
	for range validations {
		pl.Failed = append(pl.Failed, now)
	}
}

// cutOff is why there is no certificate when an attempt that began did not end.
func (pl *plan) cutOff() *LastError {
	return &LastError{When: pl.Saved, Reason: "the attempt was cut off: the process ended before it did"}
}

// elsewhere records that another CA gave a certificate: what this one has counted stands, and what it
// failed in is no more of interest.
func (pl *plan) elsewhere() {
	pl.Failures, pl.FailingSince, pl.NotBefore, pl.LastError, pl.Free = 0, time.Time{}, time.Time{}, nil, false
}

// failed records how an attempt ended that gave no certificate. before is the plan as it was before
// the attempt.
func (pl *plan) failed(f *failure, before *plan, now time.Time, random float64) {
	pl.Interrupted = false
	if pl.FailingSince.IsZero() {
		pl.FailingSince = now
	}
	pl.Failures = before.Failures
	if f.retryAfter.IsZero() {
		pl.Failures++ // a CA that names the time has told us nothing about our own set-up
	}
	if pl.Free = f.free; f.free {
		// The long waits are for the sake of the CA's limits. A network or a disk that was away for an
		// hour must not keep us waiting for a day.
		pl.Failures = min(pl.Failures, 2)
	}
	pl.RetryAfter = f.retryAfter
	pl.NotBefore = retryTime(now, pl.Failures, f.retryAfter, random)
	if minute := now.Add(retryWait(1)); before.LastError != nil && now.Sub(before.LastError.When) < time.Minute {
		pl.NotBefore = latest(pl.NotBefore, minute) // "in a second", again and again, is no plan
	}
	pl.LastError = f.lastError(now)
	pl.Failed = append(slices.Clone(before.Failed), slices.Repeat([]time.Time{now}, f.validations)...)
	pl.Challenge = "" // the next attempt tries them all
}

// restarted says that the process is a new one. Somebody may have mended what was wrong, and an attempt
// that the CA does not count may then be made at once, but not in each round of a crash loop.
func (pl *plan) restarted() {
	if pl.Free && pl.LastError != nil {
		if soon := pl.LastError.When.Add(retryWait(1)); soon.Before(pl.NotBefore) {
			pl.NotBefore = soon
		}
	}
}

// notResumed records that an attempt which was cut off could not be finished. It was counted when it
// began.
func (pl *plan) notResumed(f *failure, now time.Time) {
	pl.Interrupted = false
	pl.RetryAfter = f.retryAfter
	pl.NotBefore = latest(pl.NotBefore, f.retryAfter)
	pl.LastError = f.lastError(now)
}

// succeeded records that there is a certificate.
func (pl *plan) succeeded(before *plan, failedValidations int, challenge string, now time.Time) {
	*pl = plan{
		Failed:    append(slices.Clone(before.Failed), slices.Repeat([]time.Time{now}, failedValidations)...),
		Issued:    pl.Issued,
		Challenge: cmp.Or(challenge, before.Challenge),
	}
}

// attemptTime returns the earliest time from now on at which an attempt may be made. life is that of
// the CA's certificates, 0 if unknown.
//
// forced says that an operator asks: then only what the CA said itself, and the budget, count.
func (pl *plan) attemptTime(now time.Time, life time.Duration, forced bool) time.Time {
	at := latest(now, pl.RetryAfter, pl.budgetTime(now, life))
	if forced {
		return at
	}
	return latest(at, pl.NotBefore)
}

func (pl *plan) budgetTime(now time.Time, life time.Duration) time.Time {
	return latest(spareAt(pl.Failed, maxFailed, failedWindow, now), spareAt(pl.Issued, issuedLimit(life), issuedWindow, now))
}

// refusal says why an attempt that an operator asks for is not made now, or returns nil.
func (pl *plan) refusal(now time.Time, life time.Duration) error {
	at := pl.attemptTime(now, life, true)
	if !at.After(now) {
		return nil
	}
	why := "it would go beyond what the CA allows in a week"
	switch {
	case pl.RetryAfter.After(now):
		why = "the CA said to come back later"
	case spareAt(pl.Failed, maxFailed, failedWindow, now).After(now):
		why = "it would go beyond the failed validations that the CA allows in an hour"
	}
	return &NotYetError{Reason: why, Until: at}
}

// challenges returns the challenge types to try in one attempt, in order. possible are those that we
// can answer.
//
// The one that succeeded last is tried alone: should it fail, the next attempt tries all of them, and
// meanwhile no renewal begins with a validation that is known to fail. When the budget is too small
// for all, the attempts take turns.
func (pl *plan) challenges(possible []string, now time.Time) []string {
	if slices.Contains(possible, pl.Challenge) {
		return []string{pl.Challenge}
	}
	left := maxFailed - len(recent(pl.Failed, failedWindow, now))
	if left >= len(possible) || len(possible) == 0 {
		return possible
	}
	i := pl.Failures % len(possible)
	return slices.Concat(possible[i:], possible[:i])[:max(left, 0)]
}
