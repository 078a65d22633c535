package server

import (
	"cmp"
	"errors"
	"fmt"
	"slices"

	"github.com/ambit-mesh/ambit/api/mesh"
	"github.com/ambit-mesh/ambit/internal/conns"
	"github.com/ambit-mesh/ambit/internal/workload"
	"github.com/ambit-mesh/ambit/waypoint/target"
)

// RouteInvalid: the route for connections that is attached cannot be carried out.
const RouteInvalid conns.Reason = "RouteInvalid"

// routed is where a connection without requests goes: by the TCPRoutes attached to the
// port, of which the oldest counts, or else to what was addressed. own tells that it is
// that. Its error is always a *conns.Failure.
func routed(s *workload.Snapshot, t *target.Target, namespace string, pick func(n uint64) uint64) (service *workload.Service, port uint16, own bool, err error) {
	route := attached(t, namespace)
	if route == nil {
		return t.Service, t.EndpointPort(), true, nil
	}
	fail := func(format string, args ...any) (*workload.Service, uint16, bool, error) {
		return nil, 0, false, conns.Fail(RouteInvalid, fmt.Errorf("route %s/%s: %w", route.GetNamespace(), route.GetName(), fmt.Errorf(format, args...)))
	}
	if route.GetKind() != mesh.Route_TCP || len(route.GetRules()) == 0 {
		return fail("%w", errors.New("this version carries out no such route"))
	}
	rule := route.GetRules()[0]
	backend := draw(rule.GetBackends(), pick)
	switch {
	case rule.GetInvalid() != "":
		return fail("%s", rule.GetInvalid())
	case backend == nil:
		return fail("no backend gets connections")
	case backend.GetInvalid() != "":
		return fail("backend: %s", backend.GetInvalid())
	}
	service, ok := s.Service(backend.GetService())
	if !ok {
		return fail("backend %s is not known", backend.GetService())
	}
	if _, ok := service.Port(uint16(backend.GetPort())); !ok || backend.GetPort() > 65535 {
		return fail("backend %s has no port %d", backend.GetService(), backend.GetPort())
	}
	return service, uint16(backend.GetPort()), t.Service != nil && service.Key == t.Service.Key, nil
}

// attached is the route that counts; those of the client's own namespace, if there are
// any, in place of all others.
func attached(t *target.Target, namespace string) *mesh.Route {
	var producers, consumers []*mesh.Route
	for _, r := range t.Routes() {
		connections := r.GetKind() == mesh.Route_TCP || r.GetKind() == mesh.Route_TLS
		switch {
		case !connections || r.GetPort() != 0 && r.GetPort() != uint32(t.Port.Service):
		case !r.GetConsumer():
			producers = append(producers, r)
		case r.GetNamespace() == namespace:
			consumers = append(consumers, r)
		}
	}
	if len(consumers) > 0 {
		producers = consumers
	}
	if len(producers) == 0 {
		return nil
	}
	return slices.MinFunc(producers, func(a, b *mesh.Route) int {
		return cmp.Or(cmp.Compare(a.GetCreated(), b.GetCreated()), cmp.Compare(a.GetNamespace(), b.GetNamespace()), cmp.Compare(a.GetName(), b.GetName()))
	})
}

// draw takes a backend by the weights; nil if none has any.
func draw(backends []*mesh.RouteBackend, pick func(n uint64) uint64) *mesh.RouteBackend {
	var total uint64
	for _, b := range backends {
		total += uint64(b.GetWeight())
	}
	if total == 0 {
		return nil
	}
	at := pick(total)
	for _, b := range backends {
		weight := uint64(b.GetWeight())
		if at < weight {
			return b
		}
		at -= weight
	}
	return nil
}
