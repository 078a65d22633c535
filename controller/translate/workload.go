package translate

import (
	"net/netip"
	"strings"

	corev1 "k8s.io/api/core/v1"

	"github.com/ambit-mesh/ambit/api/workload"
	"github.com/ambit-mesh/ambit/controller/resource"
)

// defaultTrustDomain is what an empty trust domain means on the wire.
const defaultTrustDomain = "cluster.local"

// nodeIndex has the locality of every node.
type nodeIndex map[string]*workload.Locality

func indexNodes(nodes []*corev1.Node) nodeIndex {
	index := make(nodeIndex, len(nodes))
	for _, n := range nodes {
		region, zone := n.Labels[corev1.LabelTopologyRegion], n.Labels[corev1.LabelTopologyZone]
		if region != "" || zone != "" {
			index[n.Name] = &workload.Locality{Region: region, Zone: zone}
		}
	}
	return index
}

func workloadUID(clusterID string, p *pod) string {
	return strings.Join([]string{clusterID, "", "Pod", p.Namespace, p.Name}, "/")
}

// workloadOfPod describes a pod, and the ports of services that it serves now.
func workloadOfPod(p *pod, services map[string]*workload.PortList, nodes nodeIndex, in Input) *workload.Workload {
	name, kind := ownerOf(p.Pod)
	w := &workload.Workload{
		Uid:               workloadUID(in.Config.ClusterID, p),
		Name:              p.Name,
		Namespace:         p.Namespace,
		Addresses:         rawAddresses(p.addresses),
		ClusterId:         in.Config.ClusterID,
		TrustDomain:       wireTrustDomain(in.Config.TrustDomain),
		ServiceAccount:    p.Spec.ServiceAccountName,
		Node:              p.Spec.NodeName,
		Locality:          nodes[p.Spec.NodeName],
		CanonicalName:     canonicalName(p.Labels, name),
		CanonicalRevision: canonicalRevision(p.Labels),
		WorkloadType:      kind,
		WorkloadName:      name,
		Services:          services,
	}
	if len(services) == 0 && !p.ready() {
		w.Status = workload.WorkloadStatus_UNHEALTHY
	}
	switch {
	case p.Spec.HostNetwork:
		w.NetworkMode = workload.NetworkMode_HOST_NETWORK
	case in.Captured.Has(p.UID):
		w.TunnelProtocol = workload.TunnelProtocol_HBONE
	}
	return w
}

// workloadOfEndpoint describes an endpoint that is not a pod. Its address may be
// a node's, or shared by several of them: it identifies no workload.
func workloadOfEndpoint(e *external, nodes nodeIndex, config Config) *workload.Workload {
	w := &workload.Workload{
		Uid: strings.Join([]string{config.ClusterID, "discovery.k8s.io", "EndpointSlice",
			e.slice.Namespace, e.slice.Name, e.addr.String()}, "/"),
		Name:              e.slice.Name,
		Namespace:         e.slice.Namespace,
		Addresses:         rawAddresses([]netip.Addr{e.addr}),
		ClusterId:         config.ClusterID,
		TrustDomain:       wireTrustDomain(config.TrustDomain),
		Node:              e.node,
		Locality:          nodes[e.node],
		NetworkMode:       workload.NetworkMode_HOST_NETWORK,
		CanonicalName:     e.service.Name,
		CanonicalRevision: latestRevision,
		WorkloadType:      workload.WorkloadType_POD,
		WorkloadName:      e.service.Name,
		Services:          map[string]*workload.PortList{e.service.key: e.ports},
	}
	if w.Locality == nil && e.zone != "" {
		w.Locality = &workload.Locality{Zone: e.zone}
	}
	return w
}

// workloadRelations are the keys under which a workload is found.
func workloadRelations(w *workload.Workload) resource.Relations {
	r := resource.Relations{Node: w.Node}
	if w.NetworkMode == workload.NetworkMode_STANDARD {
		r.Aliases = addressAliases(w.Addresses)
	}
	for key := range w.Services {
		r.SentWith = append(r.SentWith, key)
	}
	return r
}

func wireTrustDomain(trustDomain string) string {
	if trustDomain == defaultTrustDomain {
		return ""
	}
	return trustDomain
}

// rawAddresses are addresses as the protocol has them.
func rawAddresses(addresses []netip.Addr) [][]byte {
	raw := make([][]byte, len(addresses))
	for i, addr := range addresses {
		raw[i] = addr.AsSlice()
	}
	return raw
}

// addressAliases are the keys network/IP, in the one network that there is.
func addressAliases(raw [][]byte) []string {
	var aliases []string
	for _, b := range raw {
		if addr, ok := netip.AddrFromSlice(b); ok {
			aliases = append(aliases, "/"+addr.String())
		}
	}
	return aliases
}
