package ca

import (
	"errors"

	"github.com/prometheus/client_golang/prometheus"
)

// keeperMetrics are ambit_ca_* about what signs and what is trusted.
type keeperMetrics struct {
	problem *prometheus.GaugeVec
	expiry  prometheus.Gauge
	roots   *prometheus.GaugeVec
	waiting prometheus.Gauge
}

func newKeeperMetrics(registerer prometheus.Registerer) keeperMetrics {
	m := keeperMetrics{
		problem: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "ambit_ca_issuer_problem", Help: "1 for what is wrong with what signs now, by code.",
		}, []string{"code"}),
		expiry: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "ambit_ca_issuer_expiry_timestamp_seconds", Help: "When the first certificate above the leaves ends.",
		}),
		roots: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "ambit_ca_roots", Help: "Roots in the trust bundle, by phase.",
		}, []string{"phase"}),
		waiting: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "ambit_ca_rotation_waiting", Help: "Nodes whose acknowledgement a rotation of the root waits for.",
		}),
	}
	m.report(nil)
	if registerer != nil {
		registerer.MustRegister(m.problem, m.expiry, m.roots, m.waiting)
	}
	return m
}

func (m keeperMetrics) report(err error) {
	for _, code := range issuerCodes {
		m.problem.WithLabelValues(string(code)).Set(0)
	}
	if p, ok := errors.AsType[*Problem](err); ok {
		m.problem.WithLabelValues(string(p.Code)).Set(1)
	}
}

func (m keeperMetrics) state(s state) {
	counts := map[phase]int{}
	for _, t := range s.bundle {
		counts[t.Phase]++
	}
	for _, p := range []phase{announced, signing, retiring} {
		m.roots.WithLabelValues(string(p)).Set(float64(counts[p]))
	}
	m.expiry.Set(float64(s.issuer.end().Unix()))
}
