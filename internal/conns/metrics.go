package conns

import (
	"slices"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/ambit-mesh/ambit/internal/spiffe"
	"github.com/ambit-mesh/ambit/internal/workload"
)

// labelNames of the ecosystem's TCP metrics, in the order of labelValues.
var labelNames = []string{
	"reporter",
	"source_workload", "source_canonical_service", "source_canonical_revision", "source_workload_namespace",
	"source_principal", "source_app", "source_version", "source_cluster",
	"destination_service", "destination_service_namespace", "destination_service_name",
	"destination_workload", "destination_canonical_service", "destination_canonical_revision", "destination_workload_namespace",
	"destination_principal", "destination_app", "destination_version", "destination_cluster",
	"request_protocol", "response_flags", "connection_security_policy",
	"source_region", "source_zone", "destination_region", "destination_zone",
}

type labelValues [27]string

const (
	// seriesTTL is how long the series of peers without a connection is kept:
	// longer than any sensible scrape interval or rate window, short enough
	// that pods that came and went do not pile up.
	seriesTTL = time.Hour
	// sweepEvery is how often such series are looked for.
	sweepEvery = 10 * time.Minute
)

type metrics struct {
	// Fixed after newMetrics.
	now                                      func() time.Time
	opened, closed, received, sent, failures *prometheus.CounterVec
	live                                     *prometheus.GaugeVec
	ends, cut, retries, refused              *prometheus.CounterVec

	mu sync.Mutex
	// Guarded by mu.
	series  map[labelValues]*series
	sweptAt time.Time
}

// series is the counters of one set of labels: those of live connections or, if
// the labels have a failure's flags, that of failed ones.
type series struct {
	labels                         labelValues
	opened, closed, received, sent prometheus.Counter
	failed                         prometheus.Counter
	// Guarded by metrics.mu.
	live   int
	usedAt time.Time
}

func newMetrics(reg prometheus.Registerer, now func() time.Time) *metrics {
	vec := func(name, help string, labels []string) *prometheus.CounterVec {
		v := prometheus.NewCounterVec(prometheus.CounterOpts{Name: name, Help: help}, labels)
		reg.MustRegister(v)
		return v
	}
	m := &metrics{
		now:      now,
		opened:   vec("istio_tcp_connections_opened_total", "TCP connections opened.", labelNames),
		closed:   vec("istio_tcp_connections_closed_total", "TCP connections closed.", labelNames),
		received: vec("istio_tcp_received_bytes_total", "Bytes from client to server.", labelNames),
		sent:     vec("istio_tcp_sent_bytes_total", "Bytes from server to client.", labelNames),
		failures: vec("istio_tcp_connections_failed_total", "TCP connections that were refused or could not be established.", labelNames),
		ends: vec("ambit_connection_ends_total", "Connections by why they ended or were refused.",
			[]string{"direction", "reason"}),
		cut: vec("ambit_connections_cut_total", "Live connections that were ended because they are not admitted any more, by why.",
			[]string{"direction", "reason"}),
		retries: vec("ambit_connection_retries_total", "Endpoints of services that could not be reached, so that another one was tried, by why.",
			[]string{"reason"}),
		refused: vec("ambit_hbone_refused_total", "Tunnels that were not let in, or were ended for what their peers did or because they are no longer trusted, by why.",
			[]string{"reason"}),
		live: prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: "ambit_connections", Help: "Live connections."},
			[]string{"direction", "transport"}),
		series:  map[labelValues]*series{},
		sweptAt: now(),
	}
	reg.MustRegister(m.live)
	return m
}

func (m *metrics) open(a *Attempt) *series {
	m.mu.Lock()
	s := m.seriesLocked(labelsOf(a, "-"))
	if s.opened == nil {
		l := s.labels[:]
		s.opened, s.closed = m.opened.WithLabelValues(l...), m.closed.WithLabelValues(l...)
		s.received, s.sent = m.received.WithLabelValues(l...), m.sent.WithLabelValues(l...)
	}
	s.live++
	m.mu.Unlock()
	s.opened.Inc()
	m.live.WithLabelValues(string(a.Direction), string(a.Transport)).Inc()
	return s
}

func (m *metrics) close(c *Conn, reason Reason) {
	c.series.closed.Inc()
	m.live.WithLabelValues(string(c.Direction), string(c.Transport)).Dec()
	m.ends.WithLabelValues(string(c.Direction), string(reason)).Inc()
	m.mu.Lock()
	defer m.mu.Unlock()
	c.series.live--
	c.series.usedAt = m.now()
}

func (m *metrics) fail(a *Attempt, reason Reason) {
	m.ends.WithLabelValues(string(a.Direction), string(reason)).Inc()
	m.mu.Lock()
	defer m.mu.Unlock()
	s := m.seriesLocked(labelsOf(a, reason.Flags()))
	if s.failed == nil {
		s.failed = m.failures.WithLabelValues(s.labels[:]...)
	}
	s.failed.Inc()
}

func (m *metrics) seriesLocked(labels labelValues) *series {
	now := m.now()
	if now.Sub(m.sweptAt) >= sweepEvery {
		m.sweptAt = now
		m.sweepLocked(now)
	}
	s, ok := m.series[labels]
	if !ok {
		s = &series{labels: labels}
		m.series[labels] = s
	}
	s.usedAt = now
	return s
}

func (m *metrics) sweepLocked(now time.Time) {
	for labels, s := range m.series {
		if s.live > 0 || now.Sub(s.usedAt) < seriesTTL {
			continue
		}
		for _, v := range []*prometheus.CounterVec{m.opened, m.closed, m.received, m.sent, m.failures} {
			v.DeleteLabelValues(labels[:]...)
		}
		delete(m.series, labels)
	}
}

// LabelNames are those of the ecosystem's metrics of connections, which those of
// requests have as well.
func LabelNames() []string { return labelNames }

// Labels are the values for them: of requests, by their protocol and flags.
func Labels(a *Attempt, protocol, flags string) []string {
	l := labelsOf(a, flags)
	l[slices.Index(labelNames, "request_protocol")] = protocol
	return l[:]
}

func labelsOf(a *Attempt, flags string) labelValues {
	reporter := "source"
	switch a.Direction {
	case Inbound:
		reporter = "destination"
	case Waypoint:
		reporter = "waypoint"
	}
	// Both peers of a local connection are known for certain and nothing of it
	// is readable on a wire: who looks for unprotected traffic must not find it.
	security := ""
	if a.Transport == HBONE || a.Transport == Local {
		security = "mutual_tls"
	}
	src, dst, svc := labelsOfPeer(a.Source), labelsOfPeer(a.Destination), a.Service
	if svc == nil {
		svc = &workload.Service{}
	}
	l := labelValues{
		reporter,
		src.workload, src.canonicalName, src.canonicalRevision, src.namespace,
		src.principal, src.canonicalName, src.canonicalRevision, src.cluster,
		svc.Hostname, svc.Namespace, svc.Name,
		dst.workload, dst.canonicalName, dst.canonicalRevision, dst.namespace,
		dst.principal, dst.canonicalName, dst.canonicalRevision, dst.cluster,
		"tcp", flags, security,
		src.region, src.zone, dst.region, dst.zone,
	}
	for i := range l {
		if l[i] == "" {
			l[i] = "unknown"
		}
	}
	return l
}

type peerLabels struct {
	workload, canonicalName, canonicalRevision, namespace, principal, cluster, region, zone string
}

func labelsOfPeer(p Peer) peerLabels {
	var l peerLabels
	if p.Identity != (spiffe.ID{}) {
		l.principal, l.namespace = p.Identity.String(), p.Identity.Namespace
	}
	if w := p.Workload; w != nil {
		l.workload, l.namespace, l.cluster = w.Owner, w.Namespace, w.ClusterID
		l.canonicalName, l.canonicalRevision = w.CanonicalName, w.CanonicalRevision
		l.region, l.zone = w.Locality.Region, w.Locality.Zone
	}
	return l
}
