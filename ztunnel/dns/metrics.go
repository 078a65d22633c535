package dns

import "github.com/prometheus/client_golang/prometheus"

// Metrics are those of all pods together.
type Metrics struct {
	questions *prometheus.CounterVec
	upstream  *prometheus.CounterVec
	seconds   prometheus.Histogram
	inFlight  prometheus.Gauge
}

// NewMetrics registers the metrics.
func NewMetrics(registerer prometheus.Registerer) *Metrics {
	m := &Metrics{
		questions: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "ambit_dns_questions_total",
			Help: "What captured pods asked DNS servers, by transport and by what became of it: answered, no_answer, overloaded, malformed, refused, dropped.",
		}, []string{"transport", "result"}),
		upstream: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "ambit_dns_resolver_failures_total",
			Help: "Questions that one of the node's resolvers did not answer, by reason: timeout, unreachable, malformed, refused.",
		}, []string{"reason"}),
		seconds: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "ambit_dns_answer_seconds", Help: "Time until a pod's question was answered.",
			Buckets: prometheus.ExponentialBuckets(0.0005, 2.7, 10),
		}),
		inFlight: prometheus.NewGauge(prometheus.GaugeOpts{Name: "ambit_dns_in_flight", Help: "Questions of captured pods that wait for an answer."}),
	}
	registerer.MustRegister(m.questions, m.upstream, m.seconds, m.inFlight)
	return m
}
