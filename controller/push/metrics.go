package push

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/protobuf/proto"
)

// metrics of the server, all named ambit_push_*. Types are labelled by their
// type URL's last part.
type metrics struct {
	clients      prometheus.Gauge
	publication  prometheus.Gauge
	resources    *prometheus.GaugeVec
	responses    *prometheus.CounterVec
	sent         *prometheus.CounterVec
	removed      *prometheus.CounterVec
	bytes        *prometheus.CounterVec
	nacks        *prometheus.CounterVec
	refused      *prometheus.CounterVec
	acknowledged *prometheus.HistogramVec
	resumed      *prometheus.CounterVec
}

func newMetrics(registerer prometheus.Registerer) *metrics {
	counter := func(name, help, label string) *prometheus.CounterVec {
		return prometheus.NewCounterVec(prometheus.CounterOpts{Name: name, Help: help}, []string{label})
	}
	m := &metrics{
		clients: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "ambit_push_clients", Help: "Proxies with an open configuration stream."}),
		publication: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "ambit_push_publication", Help: "Number of the latest publication since the start."}),
		resources: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "ambit_push_resources", Help: "Resources in the latest publication."}, []string{"type"}),
		responses: counter("ambit_push_responses_total", "Responses sent to proxies.", "type"),
		sent:      counter("ambit_push_resources_sent_total", "Resources sent to proxies.", "type"),
		removed:   counter("ambit_push_resources_removed_total", "Removals sent to proxies.", "type"),
		bytes:     counter("ambit_push_bytes_total", "Bytes of responses sent to proxies, before compression.", "type"),
		nacks:     counter("ambit_push_nacks_total", "Responses that a proxy rejected.", "type"),
		refused:   counter("ambit_push_refused_streams_total", "Streams that were refused.", "reason"),
		resumed: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "ambit_push_resumed_resources_total",
			Help: "Resources of proxies that came back with what they had: unchanged ones are not sent again.",
		}, []string{"type", "outcome"}),
		acknowledged: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name:    "ambit_push_ack_seconds",
			Help:    "From sending a response to its acknowledgement.",
			Buckets: prometheus.ExponentialBuckets(0.001, 4, 9), // 1 ms to 65 s
		}, []string{"type"}),
	}
	if registerer != nil {
		registerer.MustRegister(m.clients, m.publication, m.resources, m.responses, m.sent,
			m.removed, m.bytes, m.nacks, m.refused, m.acknowledged, m.resumed)
	}
	return m
}

func (m *metrics) published(w *world) {
	m.publication.Set(float64(w.publication))
	for typeURL, s := range w.sets {
		m.resources.WithLabelValues(shortType(typeURL)).Set(float64(len(s.byName)))
	}
}

func (m *metrics) sending(r *response) {
	kind := shortType(r.message.TypeUrl)
	m.responses.WithLabelValues(kind).Inc()
	m.sent.WithLabelValues(kind).Add(float64(len(r.message.Resources)))
	m.removed.WithLabelValues(kind).Add(float64(len(r.message.RemovedResources)))
	m.bytes.WithLabelValues(kind).Add(float64(proto.Size(r.message)))
	if r.resumed {
		m.resumed.WithLabelValues(kind, "unchanged").Add(float64(r.unchanged))
		m.resumed.WithLabelValues(kind, "sent").Add(float64(len(r.message.Resources)))
		m.resumed.WithLabelValues(kind, "removed").Add(float64(len(r.message.RemovedResources)))
	}
}

func (m *metrics) answered(r *response, v verdict) {
	kind := shortType(r.message.TypeUrl)
	m.acknowledged.WithLabelValues(kind).Observe(time.Since(r.sent).Seconds())
	if v == refused {
		m.nacks.WithLabelValues(kind).Inc()
	}
}
