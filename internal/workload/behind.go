package workload

import (
	"slices"
	"strings"
)

// Stand is a waypoint that stands before a port of a workload.
type Stand struct {
	Gateway *Gateway
	// Fallback: as long as the waypoint has no endpoint, what is behind it is reached without.
	Fallback bool
	// Service through which the port is bound; nil if the workload is bound itself.
	Service *Service
}

// Stands lists the waypoints that stand before a port of a workload: its own, and
// those of the Services that use the port, by name. Mostly there are none.
func (s *Snapshot) Stands(w *Workload, port uint16) (found []Stand) {
	if w.Waypoint != nil {
		found = append(found, Stand{Gateway: w.Waypoint, Fallback: w.WaypointFallback})
	}
	own := len(found)
	for key, ports := range w.Services {
		if !slices.ContainsFunc(ports, func(p Port) bool { return p.Target == port }) {
			continue
		}
		if service, ok := s.services.get(key); ok && service.Waypoint != nil {
			found = append(found, Stand{Gateway: service.Waypoint, Fallback: service.WaypointFallback, Service: service})
		}
	}
	if services := found[own:]; len(services) > 1 {
		slices.SortFunc(services, func(a, b Stand) int { return strings.Compare(a.Service.Key, b.Service.Key) })
	}
	return found
}

// Speakers lists the waypoints whose word is taken about who connects to a port of a
// workload: those that stand before it, and those that are going to, or did until just now.
func (s *Snapshot) Speakers(w *Workload, port uint16) (found []*Gateway) {
	for _, stand := range s.Stands(w, port) {
		found = append(found, stand.Gateway)
	}
	if w.WaypointAnnounced != nil {
		found = append(found, w.WaypointAnnounced)
	}
	for key, ports := range w.Services {
		service, ok := s.services.get(key)
		if ok && service.WaypointAnnounced != nil && slices.ContainsFunc(ports, func(p Port) bool { return p.Target == port }) {
			found = append(found, service.WaypointAnnounced)
		}
	}
	return found
}

// StandsThere tells whether a workload is a pod of the waypoint: it takes tunnels
// itself, and its Service, or its address, is the waypoint's.
func (g *Gateway) StandsThere(w *Workload) bool {
	if !w.NativeTunnel || w.Protocol != HBONE {
		return false
	}
	if g.ServiceKey == "" {
		return slices.Contains(w.Addresses, g.Address)
	}
	_, ok := w.Services[g.ServiceKey]
	return ok
}
