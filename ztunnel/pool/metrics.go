package pool

import "github.com/prometheus/client_golang/prometheus"

// Metrics are those of all pools of a process together.
type Metrics struct {
	tunnels     prometheus.Gauge
	dials       *prometheus.CounterVec
	dialSeconds prometheus.Histogram
	retries     prometheus.Counter
}

// NewMetrics registers the metrics.
func NewMetrics(reg prometheus.Registerer) *Metrics {
	m := &Metrics{
		tunnels: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "ambit_pool_tunnels", Help: "Established outbound tunnels.",
		}),
		dials: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "ambit_pool_dials_total", Help: "Outbound tunnels dialed, by result.",
		}, []string{"result"}),
		dialSeconds: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "ambit_pool_dial_seconds", Help: "Time to establish an outbound tunnel, TCP and TLS.",
			// From a local handshake to dialTimeout.
			Buckets: prometheus.ExponentialBuckets(0.0005, 2.7, 11),
		}),
		retries: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "ambit_pool_retries_total", Help: "Streams tried on another tunnel because the first had not processed them.",
		}),
	}
	reg.MustRegister(m.tunnels, m.dials, m.dialSeconds, m.retries)
	return m
}
