package server

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	"github.com/ambit-mesh/ambit/api/mesh"
	"github.com/ambit-mesh/ambit/internal/conns"
	"github.com/ambit-mesh/ambit/internal/skew"
	"github.com/ambit-mesh/ambit/internal/workload"
	"github.com/ambit-mesh/ambit/waypoint/target"
)

const (
	// RouteInvalid: the route for connections that is attached cannot be carried out.
	RouteInvalid conns.Reason = "RouteInvalid"
	// RouteUnmatched: routes are attached, and none of them is for such a connection.
	RouteUnmatched conns.Reason = "RouteUnmatched"
)

// routed is where a connection without requests goes: by the routes attached to the
// port, or else to what was addressed. own tells that it is that. Its error is always a
// *conns.Failure.
func routed(s *workload.Snapshot, t *target.Target, routes []*mesh.Route, name string, pick func(n uint64) uint64) (service *workload.Service, port uint16, own bool, err error) {
	if len(routes) == 0 {
		return t.Service, t.EndpointPort(), true, nil
	}
	route := choose(routes, name)
	if route == nil {
		return nil, 0, false, conns.Fail(RouteUnmatched, fmt.Errorf("no route of the service is for the name %q", name))
	}
	fail := func(format string, args ...any) (*workload.Service, uint16, bool, error) {
		return nil, 0, false, conns.Fail(RouteInvalid, fmt.Errorf("route %s/%s: %w", route.GetNamespace(), route.GetName(), fmt.Errorf(format, args...)))
	}
	if err := skew.Check(route); err != nil {
		return fail("%w", err)
	}
	if len(route.GetRules()) == 0 {
		return fail("has no rules")
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

// ofRequests tells whether routes are of requests: those are not asked about connections.
func ofRequests(routes []*mesh.Route) bool {
	return slices.ContainsFunc(routes, func(r *mesh.Route) bool {
		return r.GetKind() == mesh.Route_HTTP || r.GetKind() == mesh.Route_GRPC
	})
}

// byName tells whether routes go by the name that a client of TLS asks for.
func byName(routes []*mesh.Route) bool {
	return slices.ContainsFunc(routes, func(r *mesh.Route) bool { return r.GetKind() == mesh.Route_TLS })
}

// choose the route with the most specific hostname that the name matches; of those the
// oldest. Nil if there is none.
func choose(routes []*mesh.Route, name string) *mesh.Route {
	var chosen *mesh.Route
	var best int
	for _, r := range routes {
		specific := -1
		if len(r.GetHostnames()) == 0 {
			specific = 0
		}
		for _, hostname := range r.GetHostnames() {
			specific = max(specific, specificity(hostname, name))
		}
		if specific >= 0 && (chosen == nil || cmp.Or(cmp.Compare(best, specific), older(r, chosen)) < 0) {
			chosen, best = r, specific
		}
	}
	return chosen
}

func older(a, b *mesh.Route) int {
	return cmp.Or(cmp.Compare(a.GetCreated(), b.GetCreated()), cmp.Compare(a.GetNamespace(), b.GetNamespace()), cmp.Compare(a.GetName(), b.GetName()))
}

// specificity of a hostname for a name that it matches, else -1: names go before
// wildcards, long ones before short ones. A wildcard stands for one label or more.
func specificity(hostname, name string) int {
	if suffix, wild := strings.CutPrefix(hostname, "*"); wild {
		if len(name) > len(suffix) && strings.HasSuffix(name, suffix) {
			return len(hostname)
		}
		return -1
	}
	if hostname != name {
		return -1
	}
	return len(hostname) + longestName
}

// longestName is the most bytes that a name of DNS has.
const longestName = 255

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
