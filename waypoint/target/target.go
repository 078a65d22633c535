// Package target finds what a connection through a waypoint is for.
//
// A service's address stands for the service, if that is bound to this waypoint; a
// pod's for the pod, if that is bound itself, or for the bound service that the pod
// serves there, with that one endpoint. Whatever else is asked for is refused.
//
// Invariants: Resolve is pure; what it finds has a binding.
package target

import (
	"crypto/x509"
	"fmt"
	"maps"
	"net/netip"
	"slices"

	"github.com/ambit-mesh/ambit/api/mesh"
	"github.com/ambit-mesh/ambit/internal/conns"
	"github.com/ambit-mesh/ambit/internal/workload"
)

const (
	// NotBound: what is asked for is not bound to this waypoint.
	NotBound conns.Reason = "NotBound"
	// UnknownPort: the service has no such port.
	UnknownPort conns.Reason = "UnknownPort"
)

// Client is who opened a connection: the peer of its tunnel.
type Client struct {
	conns.Peer
	// Certificate by which it proved its identity.
	Certificate *x509.Certificate
}

// Target is what a connection is for.
type Target struct {
	Binding *workload.Binding
	// Service that was addressed, and its port; nil and 0 of a workload.
	Service *workload.Service
	Port    workload.Port
	// Endpoint, if not nil, is the only one: the workload that was addressed.
	Endpoint *workload.Workload
	// Address of it, as it was asked for.
	Address netip.AddrPort
}

// meshPorts are ours in every captured pod: behind them is no application.
var meshPorts = []uint16{15001, 15006, 15008}

// Resolve finds what an address stands for. Its error is always a *conns.Failure.
func Resolve(s *workload.Snapshot, self *workload.Workload, dst netip.AddrPort) (*Target, error) {
	if slices.Contains(self.Addresses, dst.Addr()) {
		return nil, conns.Fail(conns.Loop, fmt.Errorf("%s is the waypoint itself", dst))
	}
	if services := s.ServicesByAddr(dst.Addr()); len(services) > 0 {
		return resolveService(s, services, dst)
	}
	if rejection, ok := s.RejectedByAddr(dst.Addr()); ok {
		return nil, conns.Fail(NotBound, fmt.Errorf("what %s stands for could not be read: %v", dst.Addr(), rejection))
	}
	w, ok := s.WorkloadByAddr(dst.Addr())
	if !ok {
		return nil, conns.Fail(NotBound, fmt.Errorf("nobody is known at %s", dst.Addr()))
	}
	if w.Protocol == workload.HBONE && slices.Contains(meshPorts, dst.Port()) {
		return nil, conns.Fail(conns.Loop, fmt.Errorf("port %d of %s is the mesh's own", dst.Port(), w.UID))
	}
	return resolveWorkload(s, w, dst)
}

func resolveService(s *workload.Snapshot, services []*workload.Service, dst netip.AddrPort) (*Target, error) {
	for _, service := range services {
		port, ok := service.Port(dst.Port())
		if !ok {
			continue
		}
		binding, ok := s.Binding(service.Key)
		if !ok {
			return nil, conns.Fail(NotBound, fmt.Errorf("service %s is not bound to this waypoint", service.Key))
		}
		return &Target{Binding: binding, Service: service, Port: port, Address: dst}, nil
	}
	return nil, conns.Fail(UnknownPort, fmt.Errorf("service %s has no port %d", services[0].Key, dst.Port()))
}

// resolveWorkload takes a pod's address for the bound service that the pod serves
// there, with that one endpoint, unless the pod is bound itself.
func resolveWorkload(s *workload.Snapshot, w *workload.Workload, dst netip.AddrPort) (*Target, error) {
	if binding, ok := s.Binding(w.UID); ok {
		return &Target{Binding: binding, Endpoint: w, Address: dst}, nil
	}
	for _, key := range slices.Sorted(maps.Keys(w.Services)) {
		binding, bound := s.Binding(key)
		service, known := s.Service(key)
		if !bound || !known {
			continue
		}
		for _, p := range w.Services[key] {
			if p.Target != dst.Port() {
				continue
			}
			if port, ok := service.Port(p.Service); ok {
				return &Target{Binding: binding, Service: service, Port: port, Endpoint: w, Address: dst}, nil
			}
		}
	}
	return nil, conns.Fail(NotBound, fmt.Errorf("port %d of %s is not bound to this waypoint", dst.Port(), w.UID))
}

// Led tells whether clients are to come through the waypoint whose pod self is, still.
func (t *Target) Led(self *workload.Workload) bool {
	to, _ := t.waypoints()
	return to != nil && to.StandsThere(self)
}

// Changes tells whether clients need not come through all of its waypoints, yet or any more.
func (t *Target) Changes() bool {
	_, announced := t.waypoints()
	return announced != nil
}

func (t *Target) waypoints() (to, announced *workload.Gateway) {
	if t.Service != nil {
		return t.Service.Waypoint, t.Service.WaypointAnnounced
	}
	return t.Endpoint.Waypoint, t.Endpoint.WaypointAnnounced
}

// EndpointPort is the port by which an endpoint is found: the service's, or its own.
func (t *Target) EndpointPort() uint16 {
	if t.Service == nil {
		return t.Address.Port()
	}
	return t.Port.Service
}

// Routes are those that are attached to what was addressed: a Service. Who addresses
// one of its pods wants that pod, subject to the Service's policies and to none of
// its routes (GEP-1324: routes are of a Service's front end).
func (t *Target) Routes() []*mesh.Route {
	if t.Service == nil || t.Endpoint != nil {
		return nil
	}
	return t.Binding.Routes
}

// kinds of routes, in the order in which they take precedence at a port.
var kinds = []mesh.Route_Kind{mesh.Route_GRPC, mesh.Route_HTTP, mesh.Route_TLS, mesh.Route_TCP}

// RoutesFor are those that count for a client: what its own namespace has attached to the
// port, if there is any of it, in place of what the Service's has; of several kinds the
// first. Whatever other namespaces attach is nothing to it.
func (t *Target) RoutesFor(namespace string) []*mesh.Route {
	var producers, consumers []*mesh.Route
	for _, r := range t.Routes() {
		switch {
		case r.GetPort() != 0 && r.GetPort() != uint32(t.Port.Service):
		case !r.GetConsumer():
			producers = append(producers, r)
		case r.GetNamespace() == namespace:
			consumers = append(consumers, r)
		}
	}
	if len(consumers) > 0 {
		producers = consumers
	}
	for _, kind := range kinds {
		if slices.ContainsFunc(producers, func(r *mesh.Route) bool { return r.GetKind() == kind }) {
			return slices.DeleteFunc(producers, func(r *mesh.Route) bool { return r.GetKind() != kind })
		}
	}
	return nil
}
