package main

import (
	"net/netip"
	"slices"
	"time"

	"github.com/ambit-mesh/ambit/internal/workload"
	"github.com/ambit-mesh/ambit/ztunnel/dns"
	"github.com/ambit-mesh/ambit/ztunnel/egress"
	"github.com/ambit-mesh/ambit/ztunnel/redirect"
)

// dnsDrain is how long a pod's connections to DNS servers live on: longer than
// an answer takes.
const dnsDrain = 5 * time.Second

// answer makes what answers the questions of a captured pod.
func (d *dataplane) answer(captured *redirect.Capture, c *capture, pod func() *workload.Workload) *dns.Proxy {
	return dns.New(dns.Config{
		Datagrams: captured.DNS, Streams: captured.DNSStream, Resolver: d.resolver,
		Learn: c.learn,
		Direct: func(server netip.AddrPort) (bool, error) {
			if !d.isResolver(pod()) {
				return false, nil
			}
			flow := egress.Flow{Protocol: egress.UDP, Destination: server}
			return true, c.egress.Rules(d.store.Snapshot()).Decide(flow).Error(flow)
		},
		Metrics: d.dnsMetrics, Logger: c.logger, DrainTimeout: dnsDrain,
	})
}

// isResolver tells whether a pod is one of those that the node's resolvers lead
// to, such as the cluster's DNS server in the mesh.
func (d *dataplane) isResolver(pod *workload.Workload) bool {
	snapshot := d.store.Snapshot()
	for _, server := range d.resolver.Servers() {
		if slices.Contains(pod.Addresses, server.Addr()) {
			return true
		}
		for _, service := range snapshot.ServicesByAddr(server.Addr()) {
			for _, endpoint := range snapshot.Endpoints(service.Key) {
				if endpoint.UID == pod.UID {
					return true
				}
			}
		}
	}
	return false
}

// resolverProblems of the node, coded.
func (z *ztunnel) resolverProblems() []string {
	if err := z.resolvers.Problem(); err != nil {
		return []string{"ResolversMissing: " + err.Error() + ": what captured pods ask DNS servers cannot be answered"}
	}
	return nil
}
