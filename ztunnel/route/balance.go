package route

import (
	"net/netip"
	"slices"

	"github.com/ambit-mesh/ambit/internal/workload"
)

// balance chooses an endpoint and its target for dst, an address and port of
// service: among those that may be used, the nearest; among these the client's
// own one, or one by chance, by weight. Those to be avoided count as not there.
//
// It looks at the endpoints twice rather than copy them: a service may have
// thousands, and a connection should cost no memory for that.
func balance(r Request, service *workload.Service, dst netip.AddrPort, endpoints []*workload.Workload, pick Picker) (*workload.Workload, netip.AddrPort, bool) {
	source := r.Source
	nearest, total := -1, uint64(0)
	for _, w := range endpoints {
		_, rank, ok := usable(source, service, dst, w)
		if !ok || rank < nearest || slices.Contains(r.Avoid, w.UID) {
			continue
		}
		if rank > nearest {
			nearest, total = rank, 0
		}
		total += uint64(w.Weight)
	}
	if total == 0 {
		return nil, netip.AddrPort{}, false
	}

	var (
		chosen  *workload.Workload
		address netip.AddrPort
		client  netip.Addr
		sticky  = false
		best    uint64
		left    uint64
	)
	if service.Affinity > 0 {
		client, sticky = source.Address(dst.Addr())
	}
	if !sticky {
		left = pick(total)
	}
	for _, w := range endpoints {
		target, rank, ok := usable(source, service, dst, w)
		if !ok || rank != nearest || slices.Contains(r.Avoid, w.UID) {
			continue
		}
		if sticky {
			if score := rendezvous(client, w.UID); chosen == nil || score > best {
				chosen, address, best = w, target, score
			}
			continue
		}
		if left < uint64(w.Weight) {
			return w, target, true
		}
		left -= uint64(w.Weight)
	}
	return chosen, address, chosen != nil
}

// usable tells whether w may be used for dst, where, and how near it is.
func usable(source *workload.Workload, service *workload.Service, dst netip.AddrPort, w *workload.Workload) (target netip.AddrPort, rank int, ok bool) {
	port, hasPort := w.Target(service.Key, dst.Port())
	addr, hasAddr := w.Address(dst.Addr())
	if !hasPort || !hasAddr || w.Weight == 0 || w.Network != source.Network {
		return netip.AddrPort{}, 0, false
	}
	if !w.Healthy && !service.AllowUnhealthy {
		return netip.AddrPort{}, 0, false
	}
	switch service.Mode {
	case workload.Strict:
		ok = shared(source, w, service.Scopes) == len(service.Scopes)
	case workload.Failover:
		rank, ok = shared(source, w, service.Scopes), true
	default:
		ok = true
	}
	return netip.AddrPortFrom(addr, port), rank, ok
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

// rendezvous scores an endpoint for a client. The highest score wins, so that
// all nodes agree without a table, and a client moves only if its endpoint goes.
func rendezvous(client netip.Addr, uid string) uint64 {
	// FNV-1a, 64 bits.
	const offset, prime = 0xcbf29ce484222325, 0x100000001b3
	x := uint64(offset)
	for _, b := range client.As16() {
		x = (x ^ uint64(b)) * prime
	}
	for i := range len(uid) {
		x = (x ^ uint64(uid[i])) * prime
	}
	// Its high bits hardly depend on the last bytes, and names differ in just
	// these: finish as splitmix64 does.
	x = (x ^ x>>30) * 0xbf58476d1ce4e5b9
	x = (x ^ x>>27) * 0x94d049bb133111eb
	return x ^ x>>31
}
