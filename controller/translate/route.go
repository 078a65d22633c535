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
	"github.com/ambit-mesh/ambit/api/workload"
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
	// RouteReasonConflicted: routes of another kind are attached there, which go first
	// (GEP-1294, which names it; the API has no constant).
	RouteReasonConflicted gateway.RouteConditionReason = "Conflicted"
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
	a := attaching{services: services, bound: bound}
	for _, o := range oldestFirst(routes.GRPC) {
		c := routeConversion{services: services, namespace: o.Namespace, name: o.Name, kind: GRPCRoute, hostnames: len(o.Spec.Hostnames)}
		a.attach(o, o.Spec.ParentRefs, &mesh.Route{Kind: mesh.Route_GRPC, Rules: c.grpcRules(o.Spec.Rules)}, &c)
	}
	for _, o := range oldestFirst(routes.HTTP) {
		c := routeConversion{services: services, namespace: o.Namespace, name: o.Name, kind: HTTPRoute, hostnames: len(o.Spec.Hostnames)}
		a.attach(o, o.Spec.ParentRefs, &mesh.Route{Kind: mesh.Route_HTTP, Rules: c.httpRules(o.Spec.Rules)}, &c)
	}
	for _, o := range oldestFirst(routes.TLS) {
		c := routeConversion{services: services, namespace: o.Namespace, name: o.Name, kind: TLSRoute}
		var rules []*mesh.RouteRule
		for i, rule := range o.Spec.Rules {
			rules = append(rules, c.streamRule(i, rule.Name, rule.BackendRefs))
		}
		a.attach(o, o.Spec.ParentRefs, &mesh.Route{Kind: mesh.Route_TLS, Hostnames: hostnames(o.Spec.Hostnames), Rules: rules}, &c)
	}
	for _, o := range oldestFirst(routes.TCP) {
		c := routeConversion{services: services, namespace: o.Namespace, name: o.Name, kind: TCPRoute}
		var rules []*mesh.RouteRule
		for i, rule := range o.Spec.Rules {
			rules = append(rules, c.streamRule(i, rule.Name, rule.BackendRefs))
		}
		a.attach(o, o.Spec.ParentRefs, &mesh.Route{Kind: mesh.Route_TCP, Rules: rules}, &c)
	}
	a.settle(r)
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

// attaching finds out where routes belong, in the order of the precedence of their kinds.
type attaching struct {
	services *serviceIndex
	bound    func(*service) bool
	found    []*routeAttachment
}

// routeAttachment is one route at one of its parents.
type routeAttachment struct {
	field      string
	route      *mesh.Route
	conversion *routeConversion
	outcome    *Route
	ref        gateway.ParentReference
	service    *service
	// ports that are asked for; 0 stands for all of them.
	ports   []uint32
	refusal *unattached
}

// attach a route to each of its parents that is a Service. Parents of other kinds are the
// business of others.
func (a *attaching) attach(o metav1.Object, parents []gateway.ParentReference, route *mesh.Route, c *routeConversion) {
	outcome := &Route{Kind: c.kind, Namespace: o.GetNamespace(), Name: o.GetName(), UID: o.GetUID(), Generation: o.GetGeneration()}
	route.Namespace, route.Name, route.Created = o.GetNamespace(), o.GetName(), o.GetCreationTimestamp().Unix()
	for i, ref := range parents {
		if !isService(ref.Group, ref.Kind, gateway.GroupName, "Gateway") {
			continue
		}
		at := &routeAttachment{field: fmt.Sprintf("spec.parentRefs[%d]", i), route: route, conversion: c, outcome: outcome, ref: ref}
		at.service, at.ports, at.refusal = a.parent(at.field, o.GetNamespace(), ref)
		a.found = append(a.found, at)
	}
}

// place is a port of a Service, for one group of routes: those of a client's namespace,
// or with consumer "" those of the Service's own.
type place struct {
	service, consumer string
	port              uint32
}

// settle who gets which port, and note what is to be said about it. Of several kinds at a
// port only the first counts (GEP-1294); the others are not sent, and told so.
func (a *attaching) settle(r *routeIndex) {
	first := make(map[place]*routeAttachment)
	for _, at := range a.found {
		for _, port := range at.wanted() {
			if p := at.place(port); first[p] == nil {
				first[p] = at
			}
		}
	}
	for _, at := range a.found {
		var won, lost []uint32
		for _, port := range at.wanted() {
			if first[at.place(port)].route.Kind == at.route.Kind {
				won = append(won, port)
			} else {
				lost = append(lost, port)
			}
		}
		var remark string
		if len(lost) > 0 {
			var others []string
			for _, port := range lost {
				o := first[at.place(port)].outcome
				if other := fmt.Sprintf("%s %s/%s", o.Kind, o.Namespace, o.Name); !slices.Contains(others, other) {
					others = append(others, other)
				}
			}
			remark = fmt.Sprintf("%s: at %s of Service %s/%s goes first what is attached of another kind: %s",
				at.field, portList(lost), at.service.Namespace, at.service.Name, strings.Join(others, ", "))
		}
		switch {
		case at.refusal != nil:
		case len(lost) == 0:
			won = at.ports // 0 stays 0
		case len(won) == 0:
			at.refusal = &unattached{RouteReasonConflicted, remark}
		}
		if at.refusal == nil {
			for _, port := range won {
				r.put(at.service, port, at.route)
			}
		}
		if len(at.outcome.Parents) == 0 {
			r.outcomes = append(r.outcomes, at.outcome)
		}
		at.outcome.Parents = append(at.outcome.Parents, RouteParent{Ref: at.ref, Conditions: at.conversion.conditions(at.refusal, remark)})
	}
}

// wanted are the ports, each by its number.
func (at *routeAttachment) wanted() []uint32 {
	if at.refusal != nil || !slices.Contains(at.ports, 0) {
		return at.ports
	}
	var all []uint32
	for _, p := range at.service.Spec.Ports {
		if isTCP(p) {
			all = append(all, uint32(p.Port))
		}
	}
	return all
}

func (at *routeAttachment) place(port uint32) place {
	p := place{service: at.service.key, port: port}
	if at.route.Namespace != at.service.Namespace {
		p.consumer = at.route.Namespace
	}
	return p
}

func portList(ports []uint32) string {
	text := strings.Trim(strings.Join(strings.Fields(fmt.Sprint(ports)), ", "), "[]")
	if len(ports) == 1 {
		return "port " + text
	}
	return "ports " + text
}

// put a copy of the route at a Service's port, once.
func (r *routeIndex) put(s *service, port uint32, route *mesh.Route) {
	for _, other := range r.byService[s.key] {
		if other.Kind == route.Kind && other.Namespace == route.Namespace && other.Name == route.Name && (other.Port == port || other.Port == 0) {
			return // several parentRefs say the same
		}
	}
	r.byService[s.key] = append(r.byService[s.key], &mesh.Route{
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
func (a *attaching) parent(field, namespace string, ref gateway.ParentReference) (*service, []uint32, *unattached) {
	if ref.Namespace != nil {
		namespace = string(*ref.Namespace)
	}
	name := types.NamespacedName{Namespace: namespace, Name: string(ref.Name)}
	s := a.services.byName[name]
	switch {
	case s == nil:
		return nil, nil, &unattached{gateway.RouteReasonNoMatchingParent, field + ": " + a.services.missing(name)}
	case s.headless():
		return nil, nil, &unattached{gateway.RouteReasonNoMatchingParent,
			fmt.Sprintf("%s: Service %s is headless: its clients address pods, which routes are not for", field, name)}
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
	services        *serviceIndex
	namespace, name string
	kind            RouteKind
	// hostnames is how many there are that say nothing at a Service.
	hostnames int

	rules int
	// invalid are the rules that cannot be carried out, with the first finding of each.
	invalid []finding
	// unresolved are backends that requests cannot go to, unmirrored those that get no copies.
	unresolved, unmirrored []finding
}

// refuse notes that a rule cannot be carried out. Only the first reason counts.
func (c *routeConversion) refuse(rule *mesh.RouteRule, reason gateway.RouteConditionReason, field, message string) {
	if rule.Invalid != "" {
		return
	}
	rule.Invalid = field + ": " + message
	c.invalid = append(c.invalid, finding{reason, field, message})
}

// conditions of the route at one parent; a remark is about what is accepted all the same.
func (c *routeConversion) conditions(refusal *unattached, remark string) []metav1.Condition {
	accepted := metav1.Condition{Type: string(gateway.RouteConditionAccepted), Status: metav1.ConditionTrue, Reason: string(gateway.RouteReasonAccepted)}
	resolved := metav1.Condition{Type: string(gateway.RouteConditionResolvedRefs), Status: metav1.ConditionTrue, Reason: string(gateway.RouteReasonResolvedRefs)}
	conditions := []metav1.Condition{accepted, resolved}
	switch {
	case refusal != nil:
		conditions[0].Status, conditions[0].Reason, conditions[0].Message = metav1.ConditionFalse, string(refusal.reason), refusal.message
	case len(c.invalid) > 0 && len(c.invalid) == c.rules:
		conditions[0].Status, conditions[0].Reason = metav1.ConditionFalse, string(c.invalid[0].reason)
		conditions[0].Message = "requests are answered with 500: " + sentence(c.invalid)
	default:
		var remarks []string
		if len(c.invalid) > 0 {
			remarks = append(remarks, "but for what PartiallyInvalid says")
			conditions = append(conditions, metav1.Condition{
				Type: string(gateway.RouteConditionPartiallyInvalid), Status: metav1.ConditionTrue, Reason: string(c.invalid[0].reason),
				// It has to begin like that, as the Gateway API has it.
				Message: "Dropped Rules: requests that match these are answered with 500: " + sentence(c.invalid),
			})
		}
		if remark != "" {
			remarks = append(remarks, remark)
		}
		if c.hostnames > 0 {
			remarks = append(remarks, "spec.hostnames: they mean nothing at a Service: match the header Host instead")
		}
		conditions[0].Message = strings.Join(remarks, "; ")
	}
	var unresolved []string
	if len(c.unresolved) > 0 {
		unresolved = append(unresolved, "their share of requests is answered with 500: "+sentence(c.unresolved))
	}
	if len(c.unmirrored) > 0 {
		unresolved = append(unresolved, "they get no copies of requests: "+sentence(c.unmirrored))
	}
	if all := append(c.unresolved, c.unmirrored...); len(all) > 0 {
		conditions[1].Status, conditions[1].Reason, conditions[1].Message = metav1.ConditionFalse, string(all[0].reason), strings.Join(unresolved, "; ")
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
	b, problem := c.target(field, ref.BackendObjectReference)
	if problem != nil {
		c.unresolved = append(c.unresolved, *problem)
		b = &mesh.RouteBackend{Invalid: problem.field + ": " + problem.message}
	}
	b.Weight = uint32(max(weight, 0))
	return b
}

// target resolves a reference to a Service and a port of it. A reference to another
// namespace needs nobody's consent: the client could have gone there itself (GEP-1294).
func (c *routeConversion) target(field string, ref gateway.BackendObjectReference) (*mesh.RouteBackend, *finding) {
	unresolved := func(reason gateway.RouteConditionReason, field, message string) (*mesh.RouteBackend, *finding) {
		return nil, &finding{reason, field, message}
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
		return unresolved(gateway.RouteReasonBackendNotFound, field+".name", c.services.missing(name))
	case ref.Port == nil:
		return unresolved(gateway.RouteReasonBackendNotFound, field+".port", "is needed: a Service may have several")
	}
	port := slices.IndexFunc(s.Spec.Ports, func(p corev1.ServicePort) bool { return isTCP(p) && p.Port == *ref.Port })
	if port < 0 {
		return unresolved(gateway.RouteReasonBackendNotFound, field+".port", fmt.Sprintf("Service %s has no TCP port %d", name, *ref.Port))
	}
	if problem := c.unspoken(appProtocol(s.Spec.Ports[port])); problem != "" {
		return unresolved(gateway.RouteReasonUnsupportedProtocol, field+".port", fmt.Sprintf("port %d of Service %s is said to speak %s", *ref.Port, name, problem))
	}
	return &mesh.RouteBackend{Service: s.key, Port: uint32(*ref.Port)}, nil
}

// unspoken is what a port speaks that requests of this kind of route cannot be sent by;
// empty if they can.
func (c *routeConversion) unspoken(app workload.AppProtocol) string {
	switch {
	case c.kind != HTTPRoute && c.kind != GRPCRoute:
	case app == workload.AppProtocol_TLS:
		return "TLS, which the waypoint does not begin"
	case app == workload.AppProtocol_HTTP11 && c.kind == GRPCRoute:
		return "HTTP/1.1, which gRPC cannot be carried by"
	}
	return ""
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
