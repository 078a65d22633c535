package endpoints

import "github.com/prometheus/client_golang/prometheus"

// metrics have no label for an endpoint: which ones are ejected is in the log
// and in the dump.
type metrics struct {
	ejections, picks *prometheus.CounterVec
	withheld, panics prometheus.Counter
}

func newMetrics(reg prometheus.Registerer, r *Registry) *metrics {
	m := &metrics{
		ejections: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "ambit_endpoint_ejections_total", Help: "Endpoints of services that were ejected, by why the last connection to them failed.",
		}, []string{"reason"}),
		withheld: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "ambit_endpoint_ejections_withheld_total", Help: "Failures that ejected nobody, because half of the service's endpoints are ejected already.",
		}),
		picks: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "ambit_endpoint_picks_total", Help: "Endpoints chosen for connections to services, by the nearest that client and endpoint have in common: node, zone, region, elsewhere, or unknown.",
		}, []string{"locality"}),
		panics: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "ambit_endpoint_panic_picks_total", Help: "Ejected endpoints chosen because all that could be used were ejected.",
		}),
	}
	reg.MustRegister(m.ejections, m.withheld, m.picks, m.panics, prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "ambit_endpoints_ejected", Help: "Endpoints that are ejected now.",
	}, func() float64 { return float64(r.ejected()) }))
	return m
}

// Picked counts an endpoint that was chosen for a connection to its service.
func (r *Registry) Picked(locality string, panicked bool) {
	r.metrics.picks.WithLabelValues(locality).Inc()
	if panicked {
		r.metrics.panics.Inc()
	}
}
