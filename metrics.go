package main

import (
	"net/http"
	"strconv"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"plusminus/acme"
	"plusminus/hub"
)

// A metric is what is told of one thing under one name.
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

// All of them, which the tables of docs/metrics.md explain. Times are seconds since 1970, as everywhere in
// Prometheus; a metric is left out while there is no such time.
var (
	metricInfo  = newMetric(prometheus.GaugeValue, "build_info", "Always 1.", "version")
	metricReady = newMetric(prometheus.GaugeValue, "ready", "1 if clients can be served, as /readyz says.")

	metricClients = newMetric(prometheus.GaugeValue, "clients", "Clients that have joined.")
	metricMax     = newMetric(prometheus.GaugeValue, "clients_max", "How many clients there may be.")
	metricJoined  = newMetric(prometheus.CounterValue, "clients_joined_total", "Clients that have joined since the start.")
	metricBehind  = newMetric(prometheus.GaugeValue, "clients_behind", "Clients that have not been sent the newest value; those that a sweep has not come to are among them.")
	metricBlocked = newMetric(prometheus.GaugeValue, "clients_blocked", "Clients that do not take what they are sent.")
	metricUsers   = newMetric(prometheus.GaugeValue, "users", "Clients of all replicas that share the store.")
	metricHubs    = newMetric(prometheus.GaugeValue, "replicas", "Replicas that share the store, this one included.")

	metricReceived  = newMetric(prometheus.CounterValue, "messages_received_total", "Messages of clients.")
	metricSent      = newMetric(prometheus.CounterValue, "messages_sent_total", "Messages to clients, by type.", "type")
	metricRefused   = newMetric(prometheus.CounterValue, "messages_refused_total", "Messages of clients that were refused, by the code of the error.", "code")
	metricActions   = newMetric(prometheus.CounterValue, "actions_total", "Actions by outcome: counted, or the code of the error.", "outcome")
	metricUndecided = newMetric(prometheus.CounterValue, "actions_undecided_total", "Actions that the store had not answered in time; when it has, actions_total has their outcome.")
	metricMerged    = newMetric(prometheus.CounterValue, "changes_merged_total", "Values that a client was not sent because a newer one was, summed over clients.")
	metricSweeps    = newHistogram("sweep_duration_seconds", "How long sweeps took. One writes the newest state to all clients of a shard that are behind.")

	metricValue       = newMetric(prometheus.GaugeValue, "value", "The counter.")
	metricStore       = newMetric(prometheus.GaugeValue, "store_up", "1 if the counter can be stored.")
	metricOutages     = newMetric(prometheus.CounterValue, "store_outages_total", "How often the store has become unusable: it failed, did not answer in time, or was out of reach.")
	metricApplies     = newHistogram("store_apply_duration_seconds", "How long the store took for a batch of actions.")
	metricApplyErrors = newMetric(prometheus.CounterValue, "store_errors_total", "Batches that the store failed to take.")
	metricEpoch       = newMetric(prometheus.GaugeValue, "store_epoch", "1, and one more each time that a shared store turned out to have been replaced, flushed or set back.")

	metricArrivals   = newMetric(prometheus.GaugeValue, "arrivals", "Connections that have not joined the hub: TLS handshakes, page visitors, and those that say nothing.")
	metricRefusals   = newMetric(prometheus.CounterValue, "refusals_total", "Connections and requests refused before they joined the hub, by reason.", "reason")
	metricCloses     = newMetric(prometheus.CounterValue, "closes_total", "Clients whose connection has ended, by status code (1006 is none sent) and reason.", "code", "reason")
	metricHandshakes = newMetric(prometheus.CounterValue, "handshakes_total", "TLS handshakes by outcome.", "outcome")
	metricPanics     = newMetric(prometheus.CounterValue, "panics_total", "Bugs that ended one connection; the log has the stack.")

	metricValid     = newMetric(prometheus.GaugeValue, "certificate_valid", "1 if visitors are served a certificate that is valid now.", "domain", "source")
	metricNotBefore = newMetric(prometheus.GaugeValue, "certificate_not_before_timestamp_seconds", "When the certificate that is served becomes valid.", "domain", "source")
	metricNotAfter  = newMetric(prometheus.GaugeValue, "certificate_not_after_timestamp_seconds", "When the certificate that is served expires.", "domain", "source")
	metricNext      = newMetric(prometheus.GaugeValue, "certificate_next_attempt_timestamp_seconds", "When a new certificate is asked for next.", "domain", "source")
	metricWindow    = newMetric(prometheus.GaugeValue, "certificate_renewal_window_start_timestamp_seconds", "From when on the CA wants the certificate renewed (RFC 9773).", "domain", "source")
	metricWindowEnd = newMetric(prometheus.GaugeValue, "certificate_renewal_window_end_timestamp_seconds", "Until when the CA wants the certificate renewed (RFC 9773).", "domain", "source")

	metricAttempts    = newMetric(prometheus.CounterValue, "acme_attempts_total", "Attempts to get a certificate, by outcome: ok, or the step that failed.", "domain", "ca", "outcome")
	metricFailures    = newMetric(prometheus.GaugeValue, "acme_failures", "Attempts in a row that gave no certificate.", "domain", "ca")
	metricBackoff     = newMetric(prometheus.GaugeValue, "acme_backoff_until_timestamp_seconds", "Before when the CA is not asked again.", "domain", "ca")
	metricValidations = newMetric(prometheus.GaugeValue, "acme_failed_validations_left", "Validations that may still fail within the hour.", "domain", "ca")
	metricIssuedLeft  = newMetric(prometheus.GaugeValue, "acme_certificates_left", "Certificates that may still be obtained within the week.", "domain", "ca")
	metricUnsaved     = newMetric(prometheus.GaugeValue, "acme_certificate_unsaved", "1 if the CA's certificate is served but could not be stored.", "domain", "ca")
	metricSkew        = newMetric(prometheus.GaugeValue, "acme_clock_skew_seconds", "The CA's clock less ours, when it was asked last.", "domain", "ca")
	metricLastError   = newMetric(prometheus.GaugeValue, "acme_last_error_timestamp_seconds", "When the last attempt failed, and why. Gone after success.", "domain", "ca", "step", "type", "reason", "hint")
)

// metrics collects what /metrics shows from those who know it, each time somebody looks.
type metrics struct {
	health *health
}

// newMetrics returns the handler of /metrics.
func newMetrics(h *health) http.Handler {
	r := prometheus.NewRegistry()
	r.MustRegister(metrics{h}, collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return promhttp.HandlerFor(r, promhttp.HandlerOpts{})
}

// Describe sends nothing: what is told depends on the domains and on what has happened.
func (metrics) Describe(chan<- *prometheus.Desc) {}

// Collect implements [prometheus.Collector].
func (m metrics) Collect(out chan<- prometheus.Metric) {
	tell := func(m metric, value float64, labels ...string) {
		out <- prometheus.MustNewConstMetric(m.desc, m.kind, value, labels...)
	}
	tell(metricInfo, 1, versionString())
	tell(metricReady, flag01(m.health.ready() == nil))

	tellStats(tell, m.health.hub.Stats())
	counts := m.health.hub.Counts()
	tellCounts(tell, counts)
	out <- constHistogram(metricSweeps, &counts.Sweeps)
	out <- constHistogram(metricApplies, &counts.Applies)
	tellEvents(tell, m.health.events.Tallies())
	tell(metricArrivals, float64(m.health.gate.Arrivals()))

	if m.health.certs == nil {
		return
	}
	for _, st := range m.health.certs.Status() {
		tellCertificate(tell, st)
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
		tell(metricValue, float64(st.Value))
	}
	if st.Epoch > 0 {
		tell(metricHubs, float64(st.Hubs))
		tell(metricEpoch, float64(st.Epoch))
	}
	tell(metricStore, flag01(st.Store == ""))
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

func tellEvents(tell func(metric, float64, ...string), t hub.Tallies) {
	for reason, n := range t.Refusals {
		tell(metricRefusals, float64(n), string(reason))
	}
	for reason, n := range t.Closes {
		tell(metricCloses, float64(n), strconv.Itoa(reason.StatusCode()), string(reason))
	}
	for outcome, n := range t.Handshakes {
		tell(metricHandshakes, float64(n), string(outcome))
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
	tellTime(metricNotAfter, st.NotAfter, st.Domain, st.Source)
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

func flag01(b bool) float64 {
	if b {
		return 1
	}
	return 0
}
