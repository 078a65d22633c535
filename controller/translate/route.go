package translate

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	gateway "sigs.k8s.io/gateway-api/apis/v1"

	"github.com/ambit-mesh/ambit/api/mesh"
	"github.com/ambit-mesh/ambit/internal/binding"
)

// RouteKind is a kind of route object.
type RouteKind string

// The kinds of routes.
const (
	HTTPRoute RouteKind = "HTTPRoute"
	GRPCRoute RouteKind = "GRPCRoute"
	TLSRoute  RouteKind = "TLSRoute"
	TCPRoute  RouteKind = "TCPRoute"
)

// Reasons of ours beside those of the Gateway API.
const (
	// RouteReasonNoWaypoint: nothing stands before the Service that could route.
	RouteReasonNoWaypoint gateway.RouteConditionReason = "NoWaypoint"
)

// Routes are the route objects of a cluster.
type Routes struct {
	HTTP []*gateway.HTTPRoute
	GRPC []*gateway.GRPCRoute
	TLS  []*gateway.TLSRoute
	TCP  []*gateway.TCPRoute
}

// Route is what became of one route object.
type Route struct {
	Kind            RouteKind
	Namespace, Name string
	UID             types.UID
	Generation      int64
	// Parents are those that are Services, in the object's order.
	Parents []RouteParent
}

// RouteParent is what is to be said of a route at one of its parents.
type RouteParent struct {
	Ref gateway.ParentReference
	// Conditions without times and generations: Accepted, ResolvedRefs, and
	// PartiallyInvalid where that is so.
	Conditions []metav1.Condition
}

// routeIndex finds the routes of Services.
type routeIndex struct {
	byService map[string][]*mesh.Route // by the Service's key
	outcomes  []*Route
}

// of returns the routes that are attached to a Service, in an order that does
// not depend on the order of the objects.
func (r *routeIndex) of(s *service) []*mesh.Route { return r.byService[s.key] }

// indexRoutes attaches routes to the Services that they name as parents. bound
// tells whether a waypoint stands before a Service.
//
// A rule that cannot be carried out stays in its place and is answered with 500:
// what it was for would otherwise get to where another rule, or none, sends it.
func indexRoutes(routes Routes, services *serviceIndex, bound func(*service) bool) *routeIndex {
	r := &routeIndex{byService: make(map[string][]*mesh.Route)}
	a := attaching{index: r, services: services, bound: bound}
	for _, o := range oldestFirst(routes.HTTP) {
		c := routeConversion{services: services, namespace: o.Namespace}
		a.attach(HTTPRoute, o, o.Spec.ParentRefs, &mesh.Route{
			Kind: mesh.Route_HTTP, Hostnames: hostnames(o.Spec.Hostnames), Rules: c.httpRules(o.Spec.Rules),
		}, &c)
	}
	for _, o := range oldestFirst(routes.GRPC) {
		c := routeConversion{services: services, namespace: o.Namespace}
		a.attach(GRPCRoute, o, o.Spec.ParentRefs, &mesh.Route{
			Kind: mesh.Route_GRPC, Hostnames: hostnames(o.Spec.Hostnames), Rules: c.grpcRules(o.Spec.Rules),
		}, &c)
	}
	for _, o := range oldestFirst(routes.TLS) {
		c := routeConversion{services: services, namespace: o.Namespace}
		var rules []*mesh.RouteRule
		for i, rule := range o.Spec.Rules {
			rules = append(rules, c.streamRule(i, rule.Name, rule.BackendRefs))
		}
		a.attach(TLSRoute, o, o.Spec.ParentRefs, &mesh.Route{Kind: mesh.Route_TLS, Hostnames: hostnames(o.Spec.Hostnames), Rules: rules}, &c)
	}
	for _, o := range oldestFirst(routes.TCP) {
		c := routeConversion{services: services, namespace: o.Namespace}
		var rules []*mesh.RouteRule
		for i, rule := range o.Spec.Rules {
			rules = append(rules, c.streamRule(i, rule.Name, rule.BackendRefs))
		}
		a.attach(TCPRoute, o, o.Spec.ParentRefs, &mesh.Route{Kind: mesh.Route_TCP, Rules: rules}, &c)
	}
	for _, attached := range r.byService {
		slices.SortFunc(attached, func(a, b *mesh.Route) int {
			return cmp.Or(cmp.Compare(a.Kind, b.Kind), cmp.Compare(a.Created, b.Created),
				strings.Compare(a.Namespace, b.Namespace), strings.Compare(a.Name, b.Name), cmp.Compare(a.Port, b.Port))
		})
	}
	slices.SortFunc(r.outcomes, func(a, b *Route) int {
		return cmp.Or(strings.Compare(string(a.Kind), string(b.Kind)),
			strings.Compare(a.Namespace, b.Namespace), strings.Compare(a.Name, b.Name))
	})
	return r
}

// attaching puts routes where they belong.
type attaching struct {
	index    *routeIndex
	services *serviceIndex
	bound    func(*service) bool
}

// attach a route to each of its parents that is a Service, and note what is to be
// said about that. Parents of other kinds are the business of others.
func (a attaching) attach(kind RouteKind, o metav1.Object, parents []gateway.ParentReference, route *mesh.Route, c *routeConversion) {
	outcome := &Route{Kind: kind, Namespace: o.GetNamespace(), Name: o.GetName(), UID: o.GetUID(), Generation: o.GetGeneration()}
	route.Namespace, route.Name, route.Created = o.GetNamespace(), o.GetName(), o.GetCreationTimestamp().Unix()
	for i, ref := range parents {
		if !isService(ref.Group, ref.Kind, gateway.GroupName, "Gateway") {
			continue
		}
		field := fmt.Sprintf("spec.parentRefs[%d]", i)
		parent := RouteParent{Ref: ref}
		s, ports, refusal := a.parent(field, o.GetNamespace(), ref)
		if refusal == nil {
			for _, port := range ports {
				a.put(s, port, route)
			}
		}
		parent.Conditions = c.conditions(refusal)
		outcome.Parents = append(outcome.Parents, parent)
	}
	if len(outcome.Parents) > 0 {
		a.index.outcomes = append(a.index.outcomes, outcome)
	}
}

// put a copy of the route at a Service's port, once.
func (a attaching) put(s *service, port uint32, route *mesh.Route) {
	for _, other := range a.index.byService[s.key] {
		if other.Kind == route.Kind && other.Namespace == route.Namespace && other.Name == route.Name && (other.Port == port || other.Port == 0) {
			return // several parentRefs say the same
		}
	}
	a.index.byService[s.key] = append(a.index.byService[s.key], &mesh.Route{
		Kind: route.Kind, Namespace: route.Namespace, Name: route.Name, Created: route.Created,
		Port: port, Consumer: route.Namespace != s.Namespace, Hostnames: route.Hostnames, Rules: route.Rules,
	})
}

// unattached is why a route is not accepted at a parent.
type unattached struct {
	reason  gateway.RouteConditionReason
	message string
}

// parent finds the Service that a route wants to be attached to, and the ports: 0
// stands for all of them.
func (a attaching) parent(field, namespace string, ref gateway.ParentReference) (*service, []uint32, *unattached) {
	if ref.Namespace != nil {
		namespace = string(*ref.Namespace)
	}
	name := types.NamespacedName{Namespace: namespace, Name: string(ref.Name)}
	s := a.services.byName[name]
	if s == nil {
		return nil, nil, &unattached{gateway.RouteReasonNoMatchingParent, fmt.Sprintf("%s: there is no Service %s", field, name)}
	}
	var ports []uint32
	switch {
	case ref.Port == nil && (ref.SectionName == nil || *ref.SectionName == ""):
		ports = []uint32{0}
	default:
		for _, p := range s.Spec.Ports {
			if isTCP(p) && (ref.Port == nil || *ref.Port == p.Port) && (ref.SectionName == nil || string(*ref.SectionName) == p.Name) {
				ports = append(ports, uint32(p.Port))
			}
		}
	}
	if len(ports) == 0 {
		return nil, nil, &unattached{gateway.RouteReasonNoMatchingParent,
			fmt.Sprintf("%s: Service %s has no TCP port %s", field, name, wantedPort(ref))}
	}
	if !a.bound(s) {
		return nil, nil, &unattached{RouteReasonNoWaypoint,
			fmt.Sprintf("%s: no waypoint stands before Service %s: label it, or its namespace, with %s=NAME", field, name, binding.Label)}
	}
	return s, ports, nil
}

func wantedPort(ref gateway.ParentReference) string {
	var wanted []string
	if ref.Port != nil {
		wanted = append(wanted, fmt.Sprint(*ref.Port))
	}
	if ref.SectionName != nil {
		wanted = append(wanted, fmt.Sprintf("named %q", *ref.SectionName))
	}
	return strings.Join(wanted, " ")
}

// isService tells whether a reference, with these for what it leaves out, is to a
// Service.
func isService(group *gateway.Group, kind *gateway.Kind, defaultGroup gateway.Group, defaultKind gateway.Kind) bool {
	if group != nil {
		defaultGroup = *group
	}
	if kind != nil {
		defaultKind = *kind
	}
	return defaultKind == "Service" && (defaultGroup == "" || defaultGroup == "core")
}

func hostnames(all []gateway.Hostname) (out []string) {
	for _, h := range all {
		out = append(out, strings.ToLower(string(h)))
	}
	return out
}

// finding is something that is wrong with a route.
type finding struct {
	reason  gateway.RouteConditionReason
	field   string
	message string
}

// routeConversion is of the rules of one route.
type routeConversion struct {
	services  *serviceIndex
	namespace string

	rules int
	// invalid are the rules that cannot be carried out, with the first finding of each.
	invalid []finding
	// unresolved are backends that are not there.
	unresolved []finding
}

// refuse notes that a rule cannot be carried out. Only the first reason counts.
func (c *routeConversion) refuse(rule *mesh.RouteRule, reason gateway.RouteConditionReason, field, message string) {
	if rule.Invalid != "" {
		return
	}
	rule.Invalid = field + ": " + message
	c.invalid = append(c.invalid, finding{reason, field, message})
}

// conditions of the route at one parent.
func (c *routeConversion) conditions(refusal *unattached) []metav1.Condition {
	accepted := metav1.Condition{Type: string(gateway.RouteConditionAccepted), Status: metav1.ConditionTrue, Reason: string(gateway.RouteReasonAccepted)}
	resolved := metav1.Condition{Type: string(gateway.RouteConditionResolvedRefs), Status: metav1.ConditionTrue, Reason: string(gateway.RouteReasonResolvedRefs)}
	conditions := []metav1.Condition{accepted, resolved}
	switch {
	case refusal != nil:
		conditions[0].Status, conditions[0].Reason, conditions[0].Message = metav1.ConditionFalse, string(refusal.reason), refusal.message
	case len(c.invalid) > 0 && len(c.invalid) == c.rules:
		conditions[0].Status, conditions[0].Reason = metav1.ConditionFalse, string(c.invalid[0].reason)
		conditions[0].Message = "requests are answered with 500: " + sentence(c.invalid)
	case len(c.invalid) > 0:
		conditions[0].Message = "but for what PartiallyInvalid says"
		conditions = append(conditions, metav1.Condition{
			Type: string(gateway.RouteConditionPartiallyInvalid), Status: metav1.ConditionTrue, Reason: string(c.invalid[0].reason),
			Message: "requests that match these are answered with 500: " + sentence(c.invalid),
		})
	}
	if len(c.unresolved) > 0 {
		conditions[1].Status, conditions[1].Reason = metav1.ConditionFalse, string(c.unresolved[0].reason)
		conditions[1].Message = "their share of requests is answered with 500: " + sentence(c.unresolved)
	}
	return conditions
}

// maxFindings are spelled out in a condition.
const maxFindings = 8

func sentence(all []finding) string {
	var parts []string
	for i, f := range all {
		if i == maxFindings {
			parts = append(parts, fmt.Sprintf("and %d more", len(all)-i))
			break
		}
		parts = append(parts, f.field+": "+f.message)
	}
	return strings.Join(parts, "; ")
}

// backend finds the Service that requests go on to.
func (c *routeConversion) backend(field string, ref gateway.BackendRef) *mesh.RouteBackend {
	weight := int32(1)
	if ref.Weight != nil {
		weight = *ref.Weight
	}
	b := c.target(field, ref.BackendObjectReference)
	b.Weight = uint32(max(weight, 0))
	return b
}

// target resolves a reference to a Service and a port of it. A reference to
// another namespace needs nobody's consent: the client could have gone there itself.
func (c *routeConversion) target(field string, ref gateway.BackendObjectReference) *mesh.RouteBackend {
	unresolved := func(reason gateway.RouteConditionReason, field, message string) *mesh.RouteBackend {
		c.unresolved = append(c.unresolved, finding{reason, field, message})
		return &mesh.RouteBackend{Invalid: field + ": " + message}
	}
	if !isService(ref.Group, ref.Kind, "", "Service") {
		kind := gateway.Kind("Service")
		if ref.Kind != nil {
			kind = *ref.Kind
		}
		var group gateway.Group
		if ref.Group != nil {
			group = *ref.Group
		}
		return unresolved(gateway.RouteReasonInvalidKind, field+".kind", fmt.Sprintf("%s of group %q is not served: a backend is a Service", kind, group))
	}
	name := types.NamespacedName{Namespace: c.namespace, Name: string(ref.Name)}
	if ref.Namespace != nil {
		name.Namespace = string(*ref.Namespace)
	}
	s := c.services.byName[name]
	switch {
	case s == nil:
		return unresolved(gateway.RouteReasonBackendNotFound, field+".name", fmt.Sprintf("there is no Service %s", name))
	case ref.Port == nil:
		return unresolved(gateway.RouteReasonBackendNotFound, field+".port", "is needed: a Service may have several")
	case !slices.ContainsFunc(s.Spec.Ports, func(p corev1.ServicePort) bool { return isTCP(p) && p.Port == *ref.Port }):
		return unresolved(gateway.RouteReasonBackendNotFound, field+".port", fmt.Sprintf("Service %s has no TCP port %d", name, *ref.Port))
	}
	return &mesh.RouteBackend{Service: s.key, Port: uint32(*ref.Port)}
}

// streamRule is a rule of a route that carries bytes as they are.
func (c *routeConversion) streamRule(i int, name *gateway.SectionName, backends []gateway.BackendRef) *mesh.RouteRule {
	c.rules++
	rule := &mesh.RouteRule{Name: sectionName(name)}
	for j, ref := range backends {
		rule.Backends = append(rule.Backends, c.backend(fmt.Sprintf("spec.rules[%d].backendRefs[%d]", i, j), ref))
	}
	return rule
}

func sectionName(name *gateway.SectionName) string {
	if name == nil {
		return ""
	}
	return string(*name)
}
