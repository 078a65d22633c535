package translate

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/ambit-mesh/ambit/api/mesh"
	"github.com/ambit-mesh/ambit/api/security"
	"github.com/ambit-mesh/ambit/api/workload"
	"github.com/ambit-mesh/ambit/controller/resource"
	"github.com/ambit-mesh/ambit/internal/binding"
)

// fallbackExtension says that what has it is reached without its waypoint while that
// has no endpoint.
const fallbackExtension = "ambit.mesh/waypoint-fallback"

// waypoints are the Gateways of our class, and who is bound to them.
type waypoints struct {
	binding.Waypoints
	config Config
}

func indexWaypoints(in Input) *waypoints {
	return &waypoints{binding.Index(in.Gateways, in.Namespaces), in.Config}
}

// ofService is the waypoint that a Service is bound to.
func (w *waypoints) ofService(s *service) (types.NamespacedName, bool) { return w.OfService(s.Service) }

// ofPod is the waypoint that a pod is bound to when it is addressed itself.
func (w *waypoints) ofPod(p *pod) (types.NamespacedName, bool) { return w.OfPod(p.Pod) }

// address is where a waypoint is found: its Service, which may not be there.
func (w *waypoints) address(name types.NamespacedName) *workload.GatewayAddress {
	return &workload.GatewayAddress{
		Destination: &workload.GatewayAddress_Hostname{Hostname: &workload.NamespacedHostname{
			Namespace: name.Namespace, Hostname: name.Name + "." + name.Namespace + ".svc." + w.config.ClusterDomain,
		}},
		HboneMtlsPort: binding.Port,
	}
}

// WaypointAlias is the key under which a waypoint asks for what is for it.
func WaypointAlias(name types.NamespacedName) string { return "waypoint/" + name.String() }

// Bound is something that labels bind to a waypoint.
type Bound struct {
	// Kind is Service or Pod.
	Kind      string
	Namespace string
	Name      string
	UID       types.UID
	Waypoint  types.NamespacedName
	// Enforced: its pods let in nobody but the waypoint, as far as they know.
	Enforced bool
	// Direct: its pods let in clients without the waypoint, as its owner wishes.
	Direct bool
	// Uncaptured is how many of its endpoints, or of itself, nobody guards.
	Uncaptured int
	// Reason and Problem are why nobody gets through; empty if that is up to the
	// waypoint's pods.
	Reason, Problem string
}

// bindService has clients of a Service go through its waypoint.
func (o *output) bindService(s *service, w *waypoints, routes []*mesh.Route, policies []string, authentications *authentications) {
	name, ok := w.ofService(s)
	if !ok {
		return
	}
	s.message.Waypoint = w.address(name)
	if s.Annotations[binding.FallbackAnnotation] == binding.FallbackDirect {
		s.message.Extensions = append(s.message.Extensions, extension(fallbackExtension, &mesh.WaypointFallback{}))
	}
	o.bind("Service", s, name, w, s.uncaptured, s.key, &mesh.Binding{
		Target: &mesh.Binding_Service{Service: s.key}, Waypoint: name.String(), Routes: routes, Policies: policies,
		Authentications: authentications.forService(s, name), ClaimHeaders: authentications.claimHeaders(s, routes),
	})
}

// bindPod has clients of a pod go through its waypoint.
func (o *output) bindPod(p *pod, message *workload.Workload, w *waypoints, authentications *authentications) {
	name, ok := w.ofPod(p)
	if !ok {
		return
	}
	message.Waypoint = w.address(name)
	if p.Annotations[binding.FallbackAnnotation] == binding.FallbackDirect {
		message.Extensions = append(message.Extensions, extension(fallbackExtension, &mesh.WaypointFallback{}))
	}
	uncaptured := 0
	if message.TunnelProtocol != workload.TunnelProtocol_HBONE {
		uncaptured = 1
	}
	o.bind("Pod", p, name, w, uncaptured, message.Uid, &mesh.Binding{
		Target: &mesh.Binding_Workload{Workload: message.Uid}, Waypoint: name.String(), Authentications: authentications.forPod(p, name),
	})
}

// bind publishes a Binding to a waypoint that is there and consents; without one
// the waypoint refuses.
func (o *output) bind(kind string, object metav1.Object, name types.NamespacedName, w *waypoints, uncaptured int, target string, message *mesh.Binding) {
	bound := &Bound{
		Kind: kind, Namespace: object.GetNamespace(), Name: object.GetName(), UID: object.GetUID(), Waypoint: name,
		Direct: object.GetAnnotations()[binding.FallbackAnnotation] == binding.FallbackDirect, Uncaptured: uncaptured,
	}
	switch {
	case w.Gateway(name) == nil:
		bound.Reason = binding.NotFound
		bound.Problem = fmt.Sprintf("there is no Gateway %s of class %s: connections are refused", name, binding.Class)
	case !w.Consents(name, object.GetNamespace()):
		bound.Reason = binding.NotAllowed
		bound.Problem = fmt.Sprintf("Gateway %s does not allow namespace %s in its listener's allowedRoutes: connections are refused", name, object.GetNamespace())
	default:
		o.add(target, message, resource.Relations{Aliases: []string{WaypointAlias(name)}})
	}
	o.bound = append(o.bound, bound)
}

// passes notes which waypoints stand before a pod, and at each Service that it serves
// whether anybody guards it.
func (o *output) passes(p *pod, message *workload.Workload, w *waypoints, services *serviceIndex) {
	if w.IsPod(p.Pod) {
		return
	}
	var own, through []string
	if name, ok := w.ofPod(p); ok {
		own = append(own, name.String())
	}
	for key := range message.Services {
		s := services.byKey(key)
		if s == nil {
			continue
		}
		if message.TunnelProtocol != workload.TunnelProtocol_HBONE {
			s.uncaptured++
		}
		if name, ok := w.ofService(s); ok && !slices.Contains(own, name.String()) {
			through = append(through, name.String())
		}
	}
	slices.Sort(through)
	if all := append(own, slices.Compact(through)...); len(all) > 0 {
		o.through[p.UID] = all
	}
}

// waypointOnly begins the names of the authorizations that keep everybody but a
// waypoint away from what is behind it. No object of Kubernetes can have such a name.
const waypointOnly = "waypoint_only"

// guard keeps clients away from a pod's ports that are behind a waypoint, and from all
// of a pod that is bound itself: as soon as the binding is enforced. Only the
// waypoints of the bound Services that use a port are let in to it; what its owner
// wants to be reached without its waypoint is not guarded.
func (o *output) guard(p *pod, w *waypoints, t *targets, services *serviceIndex, serving map[string]*workload.PortList, enforced func(Binder) bool) {
	if p.Spec.HostNetwork {
		return
	}
	if name, ok := w.ofPod(p); ok && p.Annotations[binding.FallbackAnnotation] != binding.FallbackDirect && enforced(Binder{"Pod", p.Namespace, p.Name, name.String()}) {
		t.attachGenerated(p, o.onlyThrough(p.Namespace, []types.NamespacedName{name}, nil))
	}
	ports := make(map[uint32][]types.NamespacedName)
	open := make(map[uint32]bool)
	for _, s := range services.all {
		name, ok := w.ofService(s)
		for _, port := range serving[s.key].GetPorts() {
			switch {
			case !ok:
			case s.Annotations[binding.FallbackAnnotation] == binding.FallbackDirect, !enforced(Binder{"Service", s.Namespace, s.Name, name.String()}):
				open[port.TargetPort] = true
			case !slices.Contains(ports[port.TargetPort], name):
				ports[port.TargetPort] = append(ports[port.TargetPort], name)
			}
		}
	}
	// Ports that are for the same waypoints go together.
	byWaypoints := make(map[string][]uint32)
	of := make(map[string][]types.NamespacedName)
	for port, names := range ports {
		if open[port] {
			continue
		}
		slices.SortFunc(names, func(a, b types.NamespacedName) int { return strings.Compare(a.String(), b.String()) })
		key := fmt.Sprint(names)
		byWaypoints[key], of[key] = append(byWaypoints[key], port), names
	}
	for _, s := range services.all {
		if _, ok := w.ofService(s); ok {
			continue
		}
		for _, port := range serving[s.key].GetPorts() {
			if names := ports[port.TargetPort]; len(names) > 0 && !open[port.TargetPort] {
				o.conflict(s, port.TargetPort, names[0])
			}
		}
	}
	for _, key := range slices.Sorted(maps.Keys(byWaypoints)) {
		slices.Sort(byWaypoints[key])
		t.attachGenerated(p, o.onlyThrough(p.Namespace, of[key], byWaypoints[key]))
	}
}

// conflict notes a Service that is not bound, and uses a port that is: its clients are
// refused, since nobody could tell what they may from what they may not.
func (o *output) conflict(s *service, port uint32, waypoint types.NamespacedName) {
	for _, b := range o.bound {
		if b.Kind == "Service" && b.UID == s.UID && b.Namespace == s.Namespace && b.Name == s.Name {
			return
		}
	}
	o.bound = append(o.bound, &Bound{
		Kind: "Service", Namespace: s.Namespace, Name: s.Name, UID: s.UID, Waypoint: waypoint, Reason: binding.PortConflict,
		Problem: fmt.Sprintf("uses port %d of pods behind waypoint %s: it is not bound itself, so its clients are refused; bind it too, or give it another port", port, waypoint),
	})
}

// onlyThrough publishes the authorization that denies everybody but these waypoints
// these ports, all if none are given, and returns its name.
func (o *output) onlyThrough(namespace string, waypoints []types.NamespacedName, ports []uint32) string {
	name := waypointOnly + joinPorts(ports)
	match := &security.Match{DestinationPorts: ports}
	for _, w := range waypoints {
		name += "_by_" + w.Namespace + "." + w.Name
		identity := o.trustDomain + "/ns/" + w.Namespace + "/sa/" + w.Name
		match.NotPrincipals = append(match.NotPrincipals, &security.StringMatch{MatchType: &security.StringMatch_Exact{Exact: identity}})
	}
	key := namespace + "/" + name
	if _, ok := o.resources[resource.Authorization][key]; !ok {
		o.add(key, &security.Authorization{
			Name: name, Namespace: namespace, Scope: security.Scope_WORKLOAD_SELECTOR, Action: security.Action_DENY,
			Rules: []*security.Rule{{Clauses: []*security.Clause{{Matches: []*security.Match{match}}}}},
		}, resource.Relations{})
	}
	return key
}

// attachGenerated has a pod's workload name an authorization that no object stands for.
func (t *targets) attachGenerated(p *pod, key string) {
	a := t.of(p)
	a.authorizations = append(a.authorizations, key)
	slices.Sort(a.authorizations)
}

// Binder is a Service or a pod as it is bound: enforcing that waits until every node
// sends its clients to the waypoint.
type Binder struct{ Kind, Namespace, Name, Waypoint string }

// Binder of the binding.
func (b *Bound) Binder() Binder {
	return Binder{b.Kind, b.Namespace, b.Name, b.Waypoint.String()}
}
