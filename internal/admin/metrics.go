package admin

import (
	"context"
	"net/http"
	"strconv"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"plusminus/acme"
	"plusminus/acme/export"
	"plusminus/hub"
)

// A metric is one number, or one for each set of label values.
type metric struct {
	desc *prometheus.Desc
	kind prometheus.ValueType
}

func newMetric(kind prometheus.ValueType, name, help string, labels ...string) metric {
	return metric{prometheus.NewDesc("plusminus_"+name, help, labels, nil), kind}
}

// A histogram is a metric of durations.
type histogram struct{ desc *prometheus.Desc }

func newHistogram(name, help string) histogram {
	return histogram{prometheus.NewDesc("plusminus_"+name, help, nil, nil)}
}

// All metrics. docs/metrics.md explains each. Times are seconds since 1970, as everywhere in
// Prometheus; a metric of a time is absent while there is no such time.
var (
	metricInfo  = newMetric(prometheus.GaugeValue, "build_info", "Always 1.", "version")
	metricReady = newMetric(prometheus.GaugeValue, "ready", "1 if clients can be served, as /readyz says.")

	metricClients = newMetric(prometheus.GaugeValue, "clients", "Clients that have joined.")
	metricMax     = newMetric(prometheus.GaugeValue, "clients_max", "The most clients that may join.")
	metricJoined  = newMetric(prometheus.CounterValue, "clients_joined_total", "Clients that have joined since the start.")
	metricBehind  = newMetric(prometheus.GaugeValue, "clients_behind", "Clients that have not been sent the newest value, those whose sweep is under way included.")
	metricBlocked = newMetric(prometheus.GaugeValue, "clients_blocked", "Clients whose socket took less than was written.")
	metricUsers   = newMetric(prometheus.GaugeValue, "users", "Clients of all replicas that share the store.")
	metricHubs    = newMetric(prometheus.GaugeValue, "replicas", "Replicas that share the store, this one included.")

	metricReceived  = newMetric(prometheus.CounterValue, "messages_received_total", "Messages from clients.")
	metricSent      = newMetric(prometheus.CounterValue, "messages_sent_total", "Messages to clients, by type.", "type")
	metricRefused   = newMetric(prometheus.CounterValue, "messages_refused_total", "Messages from clients that were refused, by the code of the error.", "code")
	metricActions   = newMetric(prometheus.CounterValue, "actions_total", "Actions by outcome: counted, or the code of the error.", "outcome")
	metricUndecided = newMetric(prometheus.CounterValue, "actions_undecided_total", "Actions that the store had not answered in time. Their outcome is counted in actions_total when it answers.")
	metricMerged    = newMetric(prometheus.CounterValue, "changes_merged_total", "Values that were not sent to a client because a newer one was, summed over clients.")
	metricSweeps    = newHistogram("sweep_duration_seconds", "How long sweeps took. A sweep writes the newest state to each client of a shard that is behind.")

	metricValue       = newMetric(prometheus.GaugeValue, "value", "The value of the counter.")
	metricStore       = newMetric(prometheus.GaugeValue, "store_up", "1 if the counter can be stored.")
	metricOutages     = newMetric(prometheus.CounterValue, "store_outages_total", "How often the store has become unusable: it failed, did not answer in time, or could not be reached.")
	metricApplies     = newHistogram("store_apply_duration_seconds", "How long the store took to apply a batch of actions.")
	metricApplyErrors = newMetric(prometheus.CounterValue, "store_errors_total", "Batches that the store failed to apply.")
	metricEpoch       = newMetric(prometheus.GaugeValue, "store_epoch", "1, plus one for each time that a shared store was replaced, flushed or set back.")

	// Only with -counters.
	metricCounters        = newMetric(prometheus.GaugeValue, "counters", "Counters that are stored, without the default one.")
	metricCountersMax     = newMetric(prometheus.GaugeValue, "counters_max", "How many counters may be stored.")
	metricCountersWatched = newMetric(prometheus.GaugeValue, "counters_watched", "Counters that have clients of this replica, without the default one.")
	metricCountersMade    = newMetric(prometheus.CounterValue, "counters_made_total", "Counters that this replica has made.")
	metricCountersRefused = newMetric(prometheus.CounterValue, "counters_refused_total", "Attempts to make a counter that were refused, by reason: the code of the error.", "reason")
	metricCounterValue    = newMetric(prometheus.GaugeValue, "counter_value", "The value of a counter that -counters lists in full.", "counter")
	metricCounterUsers    = newMetric(prometheus.GaugeValue, "counter_users", "The clients that watch a counter that -counters lists in full.", "counter")

	metricArrivals   = newMetric(prometheus.GaugeValue, "arrivals", "Connections that have not joined the hub: in a TLS handshake, loading the page, or silent.")
	metricRefusals   = newMetric(prometheus.CounterValue, "refusals_total", "Connections and requests refused before they joined the hub, by reason.", "reason")
	metricCloses     = newMetric(prometheus.CounterValue, "closes_total", "Clients whose connection has ended, by status code (1006: none was sent) and reason.", "code", "reason")
	metricHandshakes = newMetric(prometheus.CounterValue, "handshakes_total", "TLS handshakes by outcome.", "outcome")
	metricLinesLost  = newMetric(prometheus.CounterValue, "log_lines_lost_total", "Lines of the log that were dropped because they were not read in time, or could not be written.")
	metricPanics     = newMetric(prometheus.CounterValue, "panics_total", "Bugs that ended one connection; the log has the stack.")

	metricValid     = newMetric(prometheus.GaugeValue, "certificate_valid", "1 if visitors are served a certificate that is valid now.", "domain", "source")
	metricNotBefore = newMetric(prometheus.GaugeValue, "certificate_not_before_timestamp_seconds", "When the certificate that is served becomes valid.", "domain", "source")
	metricNotAfter  = newMetric(prometheus.GaugeValue, "certificate_not_after_timestamp_seconds", "When the certificate that is served expires, or the first certificate of its chain.", "domain", "source")
	metricNext      = newMetric(prometheus.GaugeValue, "certificate_next_attempt_timestamp_seconds", "When the next certificate is ordered.", "domain", "source")
	metricWindow    = newMetric(prometheus.GaugeValue, "certificate_renewal_window_start_timestamp_seconds", "Start of the window in which the CA wants the certificate renewed (RFC 9773).", "domain", "source")
	metricWindowEnd = newMetric(prometheus.GaugeValue, "certificate_renewal_window_end_timestamp_seconds", "End of the window in which the CA wants the certificate renewed (RFC 9773).", "domain", "source")

	metricAttempts    = newMetric(prometheus.CounterValue, "acme_attempts_total", "Attempts to get a certificate, by outcome: ok, or the step that failed.", "domain", "ca", "outcome")
	metricFailures    = newMetric(prometheus.GaugeValue, "acme_failures", "Attempts in a row without a certificate.", "domain", "ca")
	metricBackoff     = newMetric(prometheus.GaugeValue, "acme_backoff_until_timestamp_seconds", "The earliest time of the next attempt.", "domain", "ca")
	metricValidations = newMetric(prometheus.GaugeValue, "acme_failed_validations_left", "Validations that may still fail within the hour.", "domain", "ca")
	metricIssuedLeft  = newMetric(prometheus.GaugeValue, "acme_certificates_left", "Certificates that may still be obtained within the week.", "domain", "ca")
	metricUnsaved     = newMetric(prometheus.GaugeValue, "acme_certificate_unsaved", "1 if the CA's certificate is served but could not be stored.", "domain", "ca")
	metricSkew        = newMetric(prometheus.GaugeValue, "acme_clock_skew_seconds", "The CA's clock minus this machine's, at the last request.", "domain", "ca")
	metricLastError   = newMetric(prometheus.GaugeValue, "acme_last_error_timestamp_seconds", "When the last attempt failed, and why. Absent after a success.", "domain", "ca", "step", "type", "reason", "hint")

	// Only with -export.
	metricExported       = newMetric(prometheus.GaugeValue, "export_last_success_timestamp_seconds", "When the exported files were last written, or found to be right.", "domain")
	metricExportFailures = newMetric(prometheus.CounterValue, "export_failures_total", "How often the exported files could not be written or read.", "domain")
	metricHookRuns       = newMetric(prometheus.CounterValue, "export_hook_runs_total", "Runs of -export-hook that have ended, by result.", "domain", "result")
	metricHookPending    = newMetric(prometheus.GaugeValue, "export_hook_pending", "1 if -export-hook has not succeeded for the present files yet.", "domain")
)

// metrics collects the values of all metrics at each request. It implements [prometheus.Collector].
type metrics struct {
	admin *Admin
}

// newMetrics returns the handler of /metrics.
func newMetrics(a *Admin) http.Handler {
	r := prometheus.NewRegistry()
	r.MustRegister(metrics{a}, collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return promhttp.HandlerFor(r, promhttp.HandlerOpts{})
}

// Describe sends nothing: which metrics there are depends on the domains and on what has happened.
func (metrics) Describe(chan<- *prometheus.Desc) {}

// Collect implements [prometheus.Collector].
func (m metrics) Collect(out chan<- prometheus.Metric) {
	tell := func(m metric, value float64, labels ...string) {
		out <- prometheus.MustNewConstMetric(m.desc, m.kind, value, labels...)
	}
	cfg := m.admin.cfg
	tell(metricInfo, 1, cfg.Version)
	tell(metricReady, flag01(m.admin.Ready() == nil))

	tellStats(tell, cfg.Hub.Stats())
	if st := cfg.Hub.CountersStats(context.Background()); st != nil {
		tellCounters(tell, st, cfg.MaxCounters)
	}
	counts := cfg.Hub.Counts()
	tellCounts(tell, counts)
	out <- constHistogram(metricSweeps, &counts.Sweeps)
	out <- constHistogram(metricApplies, &counts.Applies)
	tellEvents(tell, cfg.Events.Counts())
	for outcome, n := range cfg.Gate.Handshakes() {
		tell(metricHandshakes, float64(n), string(outcome))
	}
	tell(metricArrivals, float64(cfg.Gate.Arrivals()))
	lost := uint64(0)
	if cfg.LinesLost != nil {
		lost = cfg.LinesLost()
	}
	tell(metricLinesLost, float64(lost))
	for _, st := range cfg.Certificates.Status() {
		tellCertificate(tell, st)
	}
	if cfg.Export != nil {
		for _, st := range cfg.Export.Status() {
			tellExport(tell, st)
		}
	}
}

func tellStats(tell func(metric, float64, ...string), st hub.Stats) {
	tell(metricClients, float64(st.Clients))
	if st.Max > 0 {
		tell(metricMax, float64(st.Max))
	}
	tell(metricBehind, float64(st.Behind))
	tell(metricBlocked, float64(st.Blocked))
	tell(metricUsers, float64(st.Users))
	if !st.Unknown {
		tellValue(tell, metricValue, st.Value)
	}
	if st.Epoch > 0 {
		tell(metricHubs, float64(st.Hubs))
		tell(metricEpoch, float64(st.Epoch))
	}
	tell(metricStore, flag01(st.Store == ""))
}

// tellCounters tells of the counters besides the default one. The label counter has only names that an operator lists in full:
// strangers cannot make series.
func tellCounters(tell func(metric, float64, ...string), st *hub.CountersStats, most int) {
	tell(metricCounters, float64(st.Stored))
	if most > 0 {
		tell(metricCountersMax, float64(most))
	}
	tell(metricCountersWatched, float64(st.Watched))
	tell(metricCountersMade, float64(st.Made))
	for reason, n := range st.NotMade {
		tell(metricCountersRefused, float64(n), string(reason))
	}
	for _, c := range st.Named {
		tellValue(tell, metricCounterValue, c.Value, c.Name)
		tell(metricCounterUsers, float64(c.Users), c.Name)
	}
}

// tellValue tells a value of a counter.
func tellValue(tell func(metric, float64, ...string), m metric, value hub.Value, labels ...string) {
	tell(m, float64(value), labels...)
}

func tellCounts(tell func(metric, float64, ...string), c hub.Counts) {
	tell(metricJoined, float64(c.Joined))
	tell(metricReceived, float64(c.Received))
	tell(metricSent, float64(c.SentUsers), "users")
	tell(metricSent, float64(c.SentStates), "state")
	tell(metricSent, float64(c.SentErrors), "error")
	for code, n := range c.Refused {
		tell(metricRefused, float64(n), code)
	}
	for outcome, n := range c.Actions {
		tell(metricActions, float64(n), outcome)
	}
	tell(metricUndecided, float64(c.Undecided))
	tell(metricMerged, float64(c.Merged))
	tell(metricOutages, float64(c.Outages))
	tell(metricApplyErrors, float64(c.ApplyErrors))
}

func constHistogram(h histogram, d *hub.Durations) prometheus.Metric {
	buckets := make(map[float64]uint64)
	n := uint64(0)
	for i, bound := range hub.DurationBounds {
		n += d.Counts[i]
		buckets[bound.Seconds()] = n
	}
	return prometheus.MustNewConstHistogram(h.desc, d.Count(), d.Sum.Seconds(), buckets)
}

func tellEvents(tell func(metric, float64, ...string), t hub.EventCounts) {
	for reason, n := range t.Refusals {
		tell(metricRefusals, float64(n), string(reason))
	}
	for reason, n := range t.Closes {
		tell(metricCloses, float64(n), strconv.Itoa(reason.StatusCode()), string(reason))
	}
	tell(metricPanics, float64(t.Panics))
}

func tellCertificate(tell func(metric, float64, ...string), st acme.Status) {
	tellTime := func(m metric, t time.Time, labels ...string) {
		if !t.IsZero() {
			tell(m, float64(t.UnixMilli())/1000, labels...)
		}
	}
	tell(metricValid, flag01(st.Problem == ""), st.Domain, st.Source)
	tellTime(metricNotBefore, st.NotBefore, st.Domain, st.Source)
	tellTime(metricNotAfter, st.Ends, st.Domain, st.Source)
	tellTime(metricNext, st.NextAttempt, st.Domain, st.Source)
	if st.Renewal != nil {
		tellTime(metricWindow, st.Renewal.Start, st.Domain, st.Source)
		tellTime(metricWindowEnd, st.Renewal.End, st.Domain, st.Source)
	}
	for _, ca := range st.CAs {
		for outcome, n := range ca.Attempts {
			tell(metricAttempts, float64(n), st.Domain, ca.Directory, outcome)
		}
		tell(metricFailures, float64(ca.Failures), st.Domain, ca.Directory)
		tellTime(metricBackoff, ca.BackoffUntil, st.Domain, ca.Directory)
		tell(metricValidations, float64(ca.ValidationsLeft), st.Domain, ca.Directory)
		tell(metricIssuedLeft, float64(ca.CertificatesLeft), st.Domain, ca.Directory)
		tell(metricUnsaved, flag01(ca.Unsaved), st.Domain, ca.Directory)
		tell(metricSkew, ca.ClockSkew, st.Domain, ca.Directory)
		if e := ca.LastError; e != nil {
			tellTime(metricLastError, e.When, st.Domain, ca.Directory, e.Step, e.Type, e.Reason, e.Hint)
		}
	}
}

func tellExport(tell func(metric, float64, ...string), st export.Status) {
	if !st.LastSuccess.IsZero() {
		tell(metricExported, float64(st.LastSuccess.UnixMilli())/1000, st.Name)
	}
	tell(metricExportFailures, float64(st.Failures), st.Name)
	for result, n := range st.HookRuns {
		tell(metricHookRuns, float64(n), st.Name, result)
	}
	if st.HookRuns != nil {
		tell(metricHookPending, flag01(st.HookPending), st.Name)
	}
}

func flag01(b bool) float64 {
	if b {
		return 1
	}
	return 0
}
