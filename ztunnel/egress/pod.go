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
	trials  *trials
}

// NewMetrics registers the metrics.
func NewMetrics(registerer prometheus.Registerer) *Metrics {
	m := &Metrics{
		refused: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "ambit_egress_refused_total", Help: "Connections of pods that an EgressPolicy did not let out of the mesh, by policy.",
		}, []string{"policy"}),
		trials: newTrials(registerer),
	}
	registerer.MustRegister(m.refused)
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
		p.tell(key, f.Protocol.String(), f, 1)
	}
	return d
}

// Packets are some that are not carried by ztunnel, and that policies on trial would have dropped.
type Packets struct {
	// Protocol is IP's number.
	Protocol uint8
	// Source is that of one of them; what cannot be read is the zero Addr.
	Source      netip.Addr
	Destination netip.AddrPort // with a port of UDP and TCP, else zero
	Count       uint64
}

// Tried counts what the policies that are on trial by some rules would have dropped.
func (p *Pod) Tried(r Rules, some Packets) {
	f := Flow{Destination: some.Destination, Names: p.Names.Of(some.Destination.Addr())}
	for _, key := range r.Trial() {
		p.tell(key, protocolOf(some.Protocol), f, some.Count, "src.addr", some.Source.String(), "ip_protocol", some.Protocol)
	}
}

// TriedRest is Tried of packets that were not told apart.
func (p *Pod) TriedRest(r Rules, count uint64) {
	for _, key := range r.Trial() {
		p.tellAs(trial{key, p.whose(), others, others}, count)
	}
}
