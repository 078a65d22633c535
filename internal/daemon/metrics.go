package daemon

import (
	"context"
	"net/http"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
)

// Metrics is the server that Prometheus reads.
type Metrics struct {
	// Registry is where to register.
	Registry *prometheus.Registry
}

// NewMetrics makes a registry with the process's and the runtime's figures.
func NewMetrics() *Metrics {
	m := &Metrics{Registry: prometheus.NewRegistry()}
	m.Registry.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	build := prometheus.NewGauge(prometheus.GaugeOpts{
		Name: "ambit_build_info", Help: "1, with the version of the binary.", ConstLabels: prometheus.Labels{"version": Version},
	})
	build.Set(1)
	m.Registry.MustRegister(build)
	return m
}

const (
	// scrapesAtOnce bounds what collecting everything anew for each request costs.
	scrapesAtOnce = 4
	scrapeTimeout = 30 * time.Second
)

// Run serves /metrics, also under its name in the field, until ctx ends.
func (m *Metrics) Run(ctx context.Context, address string) error {
	handler := promhttp.HandlerFor(m.Registry, promhttp.HandlerOpts{
		Registry: m.Registry, MaxRequestsInFlight: scrapesAtOnce, Timeout: scrapeTimeout,
	})
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", handler)
	mux.Handle("GET /stats/prometheus", handler)
	return serve(ctx, address, mux)
}
