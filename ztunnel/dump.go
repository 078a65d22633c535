package main

import (
	"crypto/x509"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/ambit-mesh/ambit/internal/conns"
	"github.com/ambit-mesh/ambit/internal/spiffe"
	"github.com/ambit-mesh/ambit/internal/workload"
	"github.com/ambit-mesh/ambit/ztunnel/pods"
)

// dumps registers the sections of the configuration dump.
func (z *ztunnel) dumps() {
	z.admin.Dump("config", z.dumpConfig)
	z.admin.Dump("workloads", func() any { return sorted(maps.Collect(z.store.Snapshot().Workloads())) })
	z.admin.Dump("services", func() any { return sorted(maps.Collect(z.store.Snapshot().Services())) })
	z.admin.Dump("pods", func() any { return z.pods.Statuses() })
	z.admin.Dump("certificates", z.dumpCertificates)
	z.admin.Dump("connections", z.dumpConnections)
	z.admin.Dump("guards", z.dataplane.dumpGuards)
	z.admin.Dump("tunnelled", z.dataplane.dumpTunnelled)
	z.admin.Dump("egress", z.dataplane.dumpEgress)
	z.admin.Dump("endpoints", func() any { return z.endpoints.Statuses() })
	z.admin.Dump("cni", func() any {
		return map[string]any{"chain_file": z.cni.File(), "problems": z.cni.Problems(), "never_held": z.settings.NeverHeld}
	})
}

func sorted[T any](byKey map[string]T) []T {
	all := make([]T, 0, len(byKey))
	for _, key := range slices.Sorted(maps.Keys(byKey)) {
		all = append(all, byKey[key])
	}
	return all
}

func (z *ztunnel) dumpConfig() any {
	snapshot := z.store.Snapshot()
	var rejected []string
	for _, r := range snapshot.Rejected() {
		rejected = append(rejected, r.Error())
	}
	return map[string]any{
		"node":           z.settings.NodeName,
		"controller":     z.settings.Controller,
		"connected":      z.feed.Connected(),
		"version":        snapshot.Version(),
		"trust_domain":   snapshot.TrustDomain(),
		"cluster_id":     snapshot.ClusterID(),
		"pod_ranges":     snapshot.PodRanges(),
		"service_ranges": snapshot.ServiceRanges(),
		"policies":       snapshot.Authorizations(),
		"rejected":       rejected,
		"problems":       z.observed.Problems(),
	}
}

// dumpedCertificate is one identity of the node's pods.
type dumpedCertificate struct {
	Identity string     `json:"identity"`
	Expires  *time.Time `json:"expires"` // nil while there is none
	Serial   string     `json:"serial,omitempty"`
	Pods     []string   `json:"pods"`
}

func (z *ztunnel) dumpCertificates() any {
	byIdentity := make(map[string]*dumpedCertificate)
	for _, status := range z.pods.Statuses() {
		id, err := spiffe.New(z.settings.TrustDomain, status.Namespace, status.ServiceAccount)
		if err != nil || status.NetNS == "" {
			continue
		}
		certificate, ok := byIdentity[id.String()]
		if !ok {
			certificate = &dumpedCertificate{Identity: id.String(), Serial: z.certs.Serial(id)}
			if expires, ok := z.certs.Expires(id); ok {
				certificate.Expires = &expires
			}
			byIdentity[id.String()] = certificate
		}
		certificate.Pods = append(certificate.Pods, status.Namespace+"/"+status.Name)
	}
	return sorted(byIdentity)
}

// dumpedConnection is one live connection.
type dumpedConnection struct {
	Direction      conns.Direction `json:"direction"`
	Transport      conns.Transport `json:"transport"`
	Source         string          `json:"source"`
	SourceID       string          `json:"source_identity,omitempty"`
	Destination    string          `json:"destination"`
	DestinationID  string          `json:"destination_identity,omitempty"`
	Tunnel         string          `json:"tunnel,omitempty"`
	Service        string          `json:"service,omitempty"`
	Started        time.Time       `json:"started"`
	BytesToServer  int64           `json:"bytes_to_server"`
	BytesToClients int64           `json:"bytes_to_client"`
}

func (z *ztunnel) dumpConnections() any {
	all := []dumpedConnection{}
	for _, c := range z.conns.Live() {
		d := dumpedConnection{
			Direction: c.Direction, Transport: c.Transport, Started: c.Started,
			Source: c.Source.Addr.String(), SourceID: identity(c.Source.Identity),
			Destination: c.Destination.Addr.String(), DestinationID: identity(c.Destination.Identity),
		}
		if c.Tunnel.IsValid() {
			d.Tunnel = c.Tunnel.String()
		}
		if c.Service != nil {
			d.Service = c.Service.Key
		}
		d.BytesToServer, d.BytesToClients = c.Bytes()
		all = append(all, d)
	}
	return all
}

func identity(id spiffe.ID) string {
	if id.IsZero() {
		return ""
	}
	return id.String()
}

func sameRoots(a, b []*x509.Certificate) bool {
	return slices.EqualFunc(a, b, func(x, y *x509.Certificate) bool { return x.Equal(y) })
}

// register adds the metrics of the process's own.
func (z *ztunnel) register() error {
	for _, collector := range []prometheus.Collector{podCollector{z.pods}, verdictCollector{z.node}, workloadCollector(z.store)} {
		if err := z.metrics.Registry.Register(collector); err != nil {
			return fmt.Errorf("register metrics: %w", err)
		}
	}
	return nil
}

func workloadCollector(store *workload.Store) prometheus.Collector {
	return prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "ambit_config_addresses", Help: "Workloads and services known to this node.",
	}, func() float64 { return float64(store.Snapshot().Count(workload.AddressType)) })
}

// podCollector counts the node's pods by state.
type podCollector struct{ pods *pods.Pods }

func (podCollector) desc() *prometheus.Desc {
	return prometheus.NewDesc("ambit_pods", "Pods of this node by the state of their capture.", []string{"state"}, nil)
}

func (c podCollector) Describe(descs chan<- *prometheus.Desc) { descs <- c.desc() }

func (c podCollector) Collect(metrics chan<- prometheus.Metric) {
	counts := make(map[string]int)
	for _, status := range c.pods.Statuses() {
		counts[status.StateName]++
	}
	for state, n := range counts {
		metrics <- prometheus.MustNewConstMetric(c.desc(), prometheus.GaugeValue, float64(n), state)
	}
}

// verdictCollector counts what the kernel's programs decided.
type verdictCollector struct{ node *node }

func (verdictCollector) desc() *prometheus.Desc {
	return prometheus.NewDesc("ambit_redirect_verdicts_total", "Decisions of the redirection in the kernel.", []string{"verdict"}, nil)
}

func (c verdictCollector) Describe(descs chan<- *prometheus.Desc) { descs <- c.desc() }

func (c verdictCollector) Collect(metrics chan<- prometheus.Metric) {
	opened, err := c.node.get()
	if err != nil {
		return
	}
	verdicts, err := opened.Verdicts()
	if err != nil {
		metrics <- prometheus.NewInvalidMetric(c.desc(), err)
		return
	}
	for verdict, n := range verdicts {
		metrics <- prometheus.MustNewConstMetric(c.desc(), prometheus.CounterValue, float64(n), verdict)
	}
}
