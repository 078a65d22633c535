package certs

import (
	"github.com/prometheus/client_golang/prometheus"
)

var expiryDesc = prometheus.NewDesc("ambit_certificate_expiry_seconds", "Seconds until the held certificate of an identity ends.", []string{"identity"}, nil)

// metrics counts fetches, and collects how long certificates have to live.
type metrics struct {
	store   *Store
	fetches *prometheus.CounterVec
}

func newMetrics(registerer prometheus.Registerer, store *Store) metrics {
	m := metrics{store: store, fetches: prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "ambit_certificate_fetches_total", Help: "Certificates asked of the CA, by result.",
	}, []string{"result"})}
	if registerer != nil {
		registerer.MustRegister(m.fetches, m)
	}
	return m
}

func (m metrics) fetched(err error) {
	result := "success"
	if err != nil {
		result = "failure"
	}
	m.fetches.WithLabelValues(result).Inc()
}

// Describe and Collect make metrics a collector of the held certificates.
func (m metrics) Describe(out chan<- *prometheus.Desc) { out <- expiryDesc }

func (m metrics) Collect(out chan<- prometheus.Metric) {
	m.store.mu.Lock()
	defer m.store.mu.Unlock()
	for id, e := range m.store.entries {
		if e.certificate != nil {
			out <- prometheus.MustNewConstMetric(expiryDesc, prometheus.GaugeValue, e.certificate.Leaf.NotAfter.Sub(m.store.now()).Seconds(), id.String())
		}
	}
}
