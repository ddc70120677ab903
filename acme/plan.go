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

// A plan is what must be remembered of one domain at one CA, across restarts and for all replicas. With it,
// neither a crash loop nor many replicas send the CA more orders than one process that keeps running.
//
// A plan is written before an attempt as if the attempt had failed, and corrected afterwards. A process that dies
// in between leaves the worst case on the disk.
type plan struct {
	Saved time.Time `json:"saved"` // when it was written

	// shift is how far the times in memory lie before those in the file; see parsePlan.
	shift time.Duration

	// The schedule.
	Failures     int           `json:"failures,omitempty"`      // attempts in a row without a certificate
	FailingSince time.Time     `json:"failing_since,omitzero"`  // when the first of these was
	NotBefore    time.Time     `json:"not_before,omitzero"`     // the earliest time of the next attempt
	RetryAfter   time.Time     `json:"retry_after,omitzero"`    // the CA wants no request before this time
	LastError    *LastError    `json:"last_error,omitempty"`    // of the last attempt; nil after success
	Free         bool          `json:"free,omitempty"`          // the last attempt failed before the CA counted anything
	Interrupted  bool          `json:"interrupted,omitempty"`   // an attempt has begun and not ended
	Order        *pendingOrder `json:"pending_order,omitempty"` // the order of that attempt, or one that is still open
	Ordered      time.Time     `json:"ordered,omitzero"`        // when the last order was placed

	// Times that count against the CA's limits.
	Failed []time.Time `json:"failed_validations,omitempty"` // in the last hour
	Issued []time.Time `json:"issued,omitempty"`             // in the last week

	// Learnt from the CA.
	Challenge  string        `json:"challenge,omitempty"`   // the type that succeeded last
	NoReplaces string        `json:"no_replaces,omitempty"` // ARI id of the certificate that the CA does not accept in `replaces`
	Life       time.Duration `json:"life,omitempty"`        // of the last certificate; 0 if unknown
	Renewal    *renewalInfo  `json:"renewal,omitempty"`     // when the CA wants the certificate renewed

	// Unsaved is a certificate that is not in its own file, with its key, in PEM: it could not be stored, or it is not valid
	// yet, and the file has one that is.
	Unsaved []byte `json:"unsaved,omitempty"`
}

// A pendingOrder is an order at the CA that is not finished.
type pendingOrder struct {
	URL string `json:"url"`

	// Final is set before finalize is sent. From then on the CA may have issued, for a key that only the attempt knows.
	Final bool `json:"final,omitempty"`

	Taken int `json:"taken,omitempty"` // how many attempts have continued it
}

// maxTaken is how many attempts continue an order. Then the CA will not finish it.
const maxTaken = 3

// loadPlan returns the plan for name. It returns an empty plan if there is none, or if the plan was damaged and is
// set aside. The error says that the plan cannot be read now.
func loadPlan(st store.Store, name string, now time.Time) (*plan, error) {
	pl, err := store.Load(st, name+store.PlanSuffix, func(data []byte) (*plan, error) { return parsePlan(data, now) })
	if errors.Is(err, fs.ErrNotExist) {
		return new(plan), nil
	}
	return pl, err
}

// parsePlan reads a plan. If the plan was saved in the future by our clock, then the clock was ahead at that time,
// or is behind now; there is no way to tell which. With its times unchanged, attempts could wait for years. Without
// its times, a machine that starts with its clock behind would forget the CA's limits. So parsePlan moves all times
// back as if the plan had been saved just now, and save moves them forward again.
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

// move adds d to all times that our clock gave. Times that the CA gave stay.
func (pl *plan) move(d time.Duration) {
	for _, t := range []*time.Time{&pl.Saved, &pl.FailingSince, &pl.NotBefore, &pl.RetryAfter, &pl.Ordered} {
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
	for _, times := range [][]time.Time{pl.Failed, pl.Issued} {
		for i := range times {
			times[i] = times[i].Add(d)
		}
	}
}

// follow adapts the plan to the clock, which was set by jump since the last look. It moves a plan that lies in the
// future back, as parsePlan does. It moves a plan that was moved back forward again when the clock is corrected.
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

// save writes the plan, and returns when the plan survives a crash.
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

// clone returns a copy. Changes to one of the two do not show in the other.
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

// begin records that an attempt begins that may fail the given number of validations.
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

// cutOff returns the error to show for an attempt that began and did not end.
func (pl *plan) cutOff() *LastError {
	return &LastError{When: pl.Saved, Reason: "the attempt was cut off: the process ended during it"}
}

// settled records that there is a good certificate after all: another CA gave one, or a certificate that was not valid yet
// has become valid. The counts against this CA's limits stay; its failures no longer matter.
func (pl *plan) settled() {
	pl.Failures, pl.FailingSince, pl.NotBefore, pl.LastError, pl.Free = 0, time.Time{}, time.Time{}, nil, false
}

// failed records an attempt that gave no certificate. before is the plan from before the attempt.
func (pl *plan) failed(f *failure, before *plan, now time.Time, random float64) {
	pl.Interrupted = false
	if pl.FailingSince.IsZero() {
		pl.FailingSince = now
	}
	pl.Failures = before.Failures
	if f.retryAfter.IsZero() {
		pl.Failures++ // with a Retry-After, the failure says nothing about our own configuration
	}
	if pl.Free = f.free; f.free {
		// Long waits protect the CA's limits. After an outage of a network or a disk of one hour, the next attempt
		// must not wait for a day.
		pl.Failures = min(pl.Failures, 2)
	}
	pl.RetryAfter = f.retryAfter
	pl.NotBefore = retryTime(now, pl.Failures, f.retryAfter, random)
	if !f.validFrom.IsZero() { // until then there is nothing better to do
		pl.NotBefore = latest(pl.NotBefore, earliest(f.validFrom, now.Add(day)))
	}
	if minute := now.Add(retryWait(1)); before.LastError != nil && now.Sub(before.LastError.When) < time.Minute {
		pl.NotBefore = latest(pl.NotBefore, minute) // a CA that says "in a second" again and again gets a minute
	}
	pl.LastError = f.lastError(now)
	pl.Failed = append(slices.Clone(before.Failed), slices.Repeat([]time.Time{now}, f.validations)...)
	if f.step != "certificate" { // that comes after the challenges
		pl.Challenge = "" // the next attempt tries all types
	}
}

// restarted records that this is a new process. The operator may have corrected the cause, so an attempt that the
// CA does not count may be made again within a minute of the last one, but not at each restart of a crash loop.
func (pl *plan) restarted() {
	if pl.Free && pl.LastError != nil {
		if soon := pl.LastError.When.Add(retryWait(1)); soon.Before(pl.NotBefore) {
			pl.NotBefore = soon
		}
	}
}

// notResumed records that an interrupted attempt could not be finished. begin has counted it already.
func (pl *plan) notResumed(f *failure, now time.Time) {
	pl.Interrupted = false
	pl.RetryAfter = f.retryAfter
	pl.NotBefore = latest(pl.NotBefore, f.retryAfter)
	pl.LastError = f.lastError(now)
}

// succeeded records that there is a certificate. before is the plan from before the attempt.
func (pl *plan) succeeded(before *plan, failedValidations int, challenge string, now time.Time) {
	*pl = plan{
		Failed:    append(slices.Clone(before.Failed), slices.Repeat([]time.Time{now}, failedValidations)...),
		Issued:    pl.Issued,
		Ordered:   pl.Ordered,
		Life:      pl.Life,
		Challenge: cmp.Or(challenge, before.Challenge),
	}
}

// attemptTime returns the earliest time, now or later, for an attempt.
func (pl *plan) attemptTime(now time.Time) time.Time {
	return latest(pl.allowedTime(now), pl.NotBefore)
}

// allowedTime returns the earliest time, now or later, that the CA's Retry-After and the budget allow.
func (pl *plan) allowedTime(now time.Time) time.Time {
	return latest(now, pl.RetryAfter, spareAt(pl.Failed, maxFailed, failedWindow, now),
		spareAt(pl.Issued, issuedLimit(pl.Life), issuedWindow, now))
}

// nextOrderTime returns the earliest time for another order, whatever the reason. interval is [orderInterval], or less in
// tests.
func (pl *plan) nextOrderTime(now time.Time, interval time.Duration) time.Time {
	if pl.Life > 0 {
		interval = min(interval, pl.Life/4)
	}
	return earliest(pl.Ordered, now).Add(interval) // later only if the clock was ahead
}

// refusal returns a *NotYetError if an attempt that an operator asks for is not allowed now, and nil otherwise.
func (pl *plan) refusal(now time.Time) error {
	at := pl.allowedTime(now)
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

// challenges returns the challenge types to try in one attempt, in order. possible are the types that this server
// can answer.
//
// The type that succeeded last is tried alone, so no renewal begins with a validation that is known to fail. If it
// fails, the next attempt tries all types. If the budget does not allow all types, successive attempts begin with
// different ones.
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
