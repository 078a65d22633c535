package balance

import "github.com/ambit-mesh/ambit/internal/workload"

// Nearness is how near an endpoint of a service is to the client, whatever the
// service prefers.
type Nearness uint8

const (
	// Unplaced: where one of them runs is not known.
	Unplaced Nearness = iota
	// Elsewhere: another region or, of unknown regions, another zone.
	Elsewhere
	SameRegion
	SameZone
	SameNode
)

func (n Nearness) String() string {
	switch n {
	case SameNode:
		return "node"
	case SameZone:
		return "zone"
	case SameRegion:
		return "region"
	case Elsewhere:
		return "elsewhere"
	}
	return "unknown"
}

// NearnessOf differs from shared in what it makes of unknown localities: two of
// them are not the same place to whoever reads a metric.
func NearnessOf(a, b *workload.Workload) Nearness {
	switch {
	case shares(a, b, workload.Node):
		return SameNode
	case a.Locality.Region != b.Locality.Region && a.Locality.Region != "" && b.Locality.Region != "":
		return Elsewhere
	case a.Locality.Zone != "" && a.Locality.Zone == b.Locality.Zone:
		return SameZone
	case a.Locality.Region != "" && a.Locality.Region == b.Locality.Region:
		return SameRegion
	case a.Locality.Zone != "" && b.Locality.Zone != "":
		return Elsewhere
	}
	return Unplaced
}

// shared counts the scopes that both have in common, up to the first that they have not.
func shared(a, b *workload.Workload, scopes []workload.Scope) int {
	for i, scope := range scopes {
		if !shares(a, b, scope) {
			return i
		}
	}
	return len(scopes)
}

// shares takes two unknown localities for the same: where no node has a zone,
// zones must not keep what follows them from being looked at.
func shares(a, b *workload.Workload, scope workload.Scope) bool {
	switch scope {
	case workload.Region:
		return a.Locality.Region == b.Locality.Region
	case workload.Zone:
		return a.Locality.Zone == b.Locality.Zone
	case workload.Subzone:
		return a.Locality.Subzone == b.Locality.Subzone
	case workload.Node:
		return a.Node != "" && a.Node == b.Node && a.ClusterID == b.ClusterID
	case workload.Cluster:
		return a.ClusterID == b.ClusterID
	case workload.Network:
		return a.Network == b.Network
	}
	return false
}
