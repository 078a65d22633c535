package egress

import (
	"log/slog"
	"net/netip"
	"slices"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/ambit-mesh/ambit/internal/workload"
)

// Metrics are those of all pods together.
type Metrics struct {
	refused *prometheus.CounterVec
	trial   *prometheus.CounterVec
}

// NewMetrics registers the metrics.
func NewMetrics(registerer prometheus.Registerer) *Metrics {
	m := &Metrics{
		refused: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "ambit_egress_refused_total", Help: "Connections of pods that an EgressPolicy did not let out of the mesh, by policy.",
		}, []string{"policy"}),
		trial: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "ambit_egress_would_refuse_total", Help: "Connections of pods that an EgressPolicy on trial would not have let out of the mesh, by policy.",
		}, []string{"policy"}),
	}
	registerer.MustRegister(m.refused, m.trial)
	return m
}

// Pod is the way out of one pod. Its methods may be called concurrently.
type Pod struct {
	// Names that it asked for.
	Names *Names

	source  func() *workload.Workload
	metrics *Metrics
	logger  *slog.Logger
}

// NewPod makes a Pod. source is the pod as its own node knows it.
func NewPod(source func() *workload.Workload, metrics *Metrics, logger *slog.Logger) *Pod {
	return &Pod{Names: NewNames(), source: source, metrics: metrics, logger: logger}
}

// Rules are what policies say of the pod now.
func (p *Pod) Rules(s *workload.Snapshot) Rules { return Of(s, p.source()) }

// Flow is a TCP connection to dst, with the names that this has now, besides those that it was opened under.
func (p *Pod) Flow(dst netip.AddrPort, opened []string) Flow {
	names := slices.Concat(opened, p.Names.Of(dst.Addr()))
	slices.Sort(names)
	return Flow{Protocol: TCP, Destination: dst, Names: slices.Compact(names)}
}

// Open decides about a new connection, which is counted.
func (p *Pod) Open(s *workload.Snapshot, f Flow) Decision {
	d := p.Rules(s).Decide(f)
	if d.Outcome == Refused {
		for _, key := range d.Policies {
			p.metrics.refused.WithLabelValues(key).Inc()
		}
	}
	for _, key := range d.WouldRefuse {
		p.metrics.trial.WithLabelValues(key).Inc()
		p.logger.Info("egress policy on trial would refuse", "policy", key, "dst.addr", f.Destination.String(), "dst.names", f.Names)
	}
	return d
}
