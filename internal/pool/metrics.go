package pool

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// Metrics are those of all pools of a process together.
type Metrics struct {
	tunnels, streams              prometheus.Gauge
	dials, ends                   *prometheus.CounterVec
	dialSeconds, handshakeSeconds prometheus.Histogram
	waitSeconds, ageSeconds       prometheus.Histogram
	retries                       prometheus.Counter
}

// NewMetrics registers the metrics.
func NewMetrics(reg prometheus.Registerer) *Metrics {
	// From a local round trip to dialTimeout.
	setUp := prometheus.ExponentialBuckets(0.0005, 2.7, 11)
	histogram := func(name, help string, buckets []float64) prometheus.Histogram {
		return prometheus.NewHistogram(prometheus.HistogramOpts{Name: name, Help: help, Buckets: buckets})
	}
	m := &Metrics{
		tunnels: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "ambit_pool_tunnels", Help: "Established outbound tunnels.",
		}),
		streams: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "ambit_pool_streams", Help: "Connections in outbound tunnels.",
		}),
		dials: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "ambit_pool_dials_total", Help: "Outbound tunnels dialed, by result.",
		}, []string{"result"}),
		ends: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "ambit_pool_tunnel_ends_total", Help: "Outbound tunnels that ended: closed in order, silent peers, peers no longer trusted, what a peer did, failed otherwise.",
		}, []string{"reason"}),
		dialSeconds:      histogram("ambit_pool_dial_seconds", "Time to establish an outbound tunnel, TCP and TLS.", setUp),
		handshakeSeconds: histogram("ambit_pool_handshake_seconds", "Time of the TLS handshake of an outbound tunnel.", setUp),
		waitSeconds:      histogram("ambit_pool_wait_seconds", "Time that connections waited for an outbound tunnel to be established.", setUp),
		// From a second to three weeks.
		ageSeconds: histogram("ambit_pool_tunnel_age_seconds", "Age of outbound tunnels when they ended.", prometheus.ExponentialBuckets(1, 5, 10)),
		retries: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "ambit_pool_retries_total", Help: "Streams tried on another tunnel because the first had not processed them.",
		}),
	}
	reg.MustRegister(m.tunnels, m.streams, m.dials, m.ends, m.dialSeconds, m.handshakeSeconds, m.waitSeconds, m.ageSeconds, m.retries)
	return m
}

// Handshake records a TLS handshake, which is a part of the pool's Dial.
func (m *Metrics) Handshake(took time.Duration) { m.handshakeSeconds.Observe(took.Seconds()) }
