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

// announcedExtension says whose word is taken though clients need not come through it.
const announcedExtension = "ambit.mesh/waypoint-announced"

// Stage is how far a binding is. It goes up as those who have to know have
// acknowledged the one before, and down as something is bound no longer; zero is unbound.
type Stage int

// The stages.
const (
	// Announced: the waypoint knows of it, and its word is taken by what it is to stand
	// before. Clients go straight there.
	Announced Stage = iota + 1
	// Led: clients are sent through the waypoint. Others are let in.
	Led
	// Enforced: nobody else is let in.
	Enforced
)

// Bindings remember how far they are.
type Bindings interface {
	// Standing is what stands before something that labels bind to a waypoint now, or
	// to none if its name is empty.
	Standing(t Target, waypoint types.NamespacedName) Standing
}

// Target is a Service or a pod, as it is bound to a waypoint.
type Target struct{ Kind, Namespace, Name string }

// Standing is a waypoint that stands before something, or is about to.
type Standing struct {
	Waypoint types.NamespacedName
	// Stage is zero if none does.
	Stage Stage
	// From, if there is one, is the waypoint that it takes over from. Nobody but the two
	// is let in meanwhile; until it is led, clients go through that one.
	From types.NamespacedName
	// Leaving: no label binds it any more.
	Leaving bool
}

// takesOver tells whether another waypoint stands before it as well.
func (s Standing) takesOver() bool { return s.From.Name != "" }

// guarded tells whether nobody is let in who comes past its waypoints.
func (s Standing) guarded() bool { return s.Stage == Enforced || s.takesOver() }

// all waypoints that know of it, and whose word is taken.
func (s Standing) all() []types.NamespacedName {
	switch {
	case s.Stage == 0:
		return nil
	case s.takesOver():
		return []types.NamespacedName{s.Waypoint, s.From}
	}
	return []types.NamespacedName{s.Waypoint}
}

// leads is the waypoint that clients are sent through, if they are.
func (s Standing) leads() (waypoint types.NamespacedName, ok bool) {
	if s.Stage == Announced {
		return s.From, s.takesOver()
	}
	return s.Waypoint, s.Stage > Announced
}

// announced is the waypoint whose word is taken although it is not, or need not be,
// the one that clients come through.
func (s Standing) announced() (waypoint types.NamespacedName, ok bool) {
	if s.Stage == Led && s.takesOver() {
		return s.From, true
	}
	return s.Waypoint, s.Stage == Announced || s.Stage == Led
}

// waypoints are the Gateways of our class, and who is bound to them.
type waypoints struct {
	binding.Waypoints
	config   Config
	bindings Bindings
	// ready are those that have a pod which is.
	ready map[types.NamespacedName]bool
	// removing: the mesh is on its way out, and no label binds anything.
	removing bool
	// of are the answers so far, for Services and pods: they may change meanwhile, and all
	// of a result is made of the same ones.
	of map[metav1.Object]Standing
}

func indexWaypoints(in Input, pods *podIndex) *waypoints {
	w := &waypoints{
		Waypoints: binding.Index(in.Gateways, in.Namespaces), config: in.Config, bindings: in.Bindings,
		ready: make(map[types.NamespacedName]bool), of: make(map[metav1.Object]Standing),
	}
	for _, n := range in.Namespaces {
		if value := n.Labels[binding.RemovingLabel]; n.Name == in.Config.SystemNamespace && (value == binding.RemovingWaypoints || value == binding.RemovingAll) {
			w.removing = true
		}
	}
	for _, p := range pods.all {
		if w.IsPod(p.Pod) && p.ready() {
			w.ready[types.NamespacedName{Namespace: p.Namespace, Name: p.Labels[binding.GatewayLabel]}] = true
		}
	}
	return w
}

// beforeService is what stands before a Service.
func (w *waypoints) beforeService(s *service) Standing {
	return w.before("Service", s.Service, func() (types.NamespacedName, bool) { return w.OfService(s.Service) })
}

// beforePod is what stands before a pod that is addressed itself.
func (w *waypoints) beforePod(p *pod) Standing {
	return w.before("Pod", p.Pod, func() (types.NamespacedName, bool) { return w.OfPod(p.Pod) })
}

func (w *waypoints) before(kind string, o metav1.Object, labelled func() (types.NamespacedName, bool)) Standing {
	if found, ok := w.of[o]; ok {
		return found
	}
	name, ok := labelled()
	if ok = ok && !w.removing; !ok {
		name = types.NamespacedName{}
	}
	var found Standing
	switch {
	case w.bindings != nil:
		found = w.bindings.Standing(Target{kind, o.GetNamespace(), o.GetName()}, name)
		if found.Leaving && w.Gateway(found.Waypoint) == nil { // nobody to lead anywhere
			if found = (Standing{}); ok {
				found = Standing{Waypoint: name, Stage: Announced}
			}
		}
	case ok:
		found = Standing{Waypoint: name, Stage: Enforced}
	}
	w.of[o] = found
	return found
}

// bindsService tells whether a waypoint stands before a Service, or is about to.
func (w *waypoints) bindsService(s *service) bool { return w.beforeService(s).Stage > 0 }

// bindsPod tells whether one stands before a pod that is addressed itself, or is about to.
func (w *waypoints) bindsPod(p *pod) bool { return w.beforePod(p).Stage > 0 }

// serviceKey of the Service by which a waypoint is found.
func (w *waypoints) serviceKey(name types.NamespacedName) string {
	return name.Namespace + "/" + w.hostname(name)
}

func (w *waypoints) hostname(name types.NamespacedName) string {
	return name.Name + "." + name.Namespace + ".svc." + w.config.ClusterDomain
}

// address is where a waypoint is found: its Service, which may not be there.
func (w *waypoints) address(name types.NamespacedName) *workload.GatewayAddress {
	return &workload.GatewayAddress{
		Destination: &workload.GatewayAddress_Hostname{Hostname: &workload.NamespacedHostname{
			Namespace: name.Namespace, Hostname: w.hostname(name),
		}},
		HboneMtlsPort: binding.Port,
	}
}

// WaypointAlias is the key under which a waypoint asks for what is for it.
func WaypointAlias(name types.NamespacedName) string { return waypointAlias + name.String() }

const waypointAlias = "waypoint/"

// Bound is something that labels bind to a waypoint.
type Bound struct {
	// Kind is Service or Pod.
	Kind      string
	Namespace string
	Name      string
	UID       types.UID
	Waypoint  types.NamespacedName
	// Target is the name of its Binding.
	Target string
	// Stage is how far this publication takes it; zero of what is not bound. From and
	// Leaving are as in Standing.
	Stage   Stage
	From    types.NamespacedName
	Leaving bool
	// Ready: the waypoint has a pod that is.
	Ready bool
	// Direct: its pods let in clients without the waypoint, as its owner wishes.
	Direct bool
	// Uncaptured is how many of its endpoints, or of itself, nobody guards.
	Uncaptured int
	// Reason and Problem are why nobody gets through; empty if that is up to the
	// waypoint's pods.
	Reason, Problem string
}

// bindService has clients of a Service go through its waypoint.
func (o *output) bindService(s *service, w *waypoints, routes []*mesh.Route, requests *requests, authentications *authentications) {
	before := w.beforeService(s)
	if before.Stage == 0 {
		return
	}
	var extensions []*workload.Extension
	s.message.Waypoint, extensions = w.say(before, s.Service)
	s.message.Extensions = append(s.message.Extensions, extensions...)
	o.bind("Service", s, before, w, s.uncaptured, s.key, func(name types.NamespacedName) *mesh.Binding {
		return &mesh.Binding{
			Target: &mesh.Binding_Service{Service: s.key}, Waypoint: name.String(), Routes: routes, Policies: requests.forService(s.Service, name),
			Authentications: authentications.forService(s, name), ClaimHeaders: authentications.claimHeaders(s, routes),
		}
	})
}

// bindPod has clients of a pod go through its waypoint.
func (o *output) bindPod(p *pod, message *workload.Workload, w *waypoints, authentications *authentications) {
	before := w.beforePod(p)
	if before.Stage == 0 {
		return
	}
	var extensions []*workload.Extension
	message.Waypoint, extensions = w.say(before, p.Pod)
	message.Extensions = append(message.Extensions, extensions...)
	uncaptured := 0
	if message.TunnelProtocol != workload.TunnelProtocol_HBONE {
		uncaptured = 1
	}
	o.bind("Pod", p, before, w, uncaptured, message.Uid, func(name types.NamespacedName) *mesh.Binding {
		return &mesh.Binding{
			Target: &mesh.Binding_Workload{Workload: message.Uid}, Waypoint: name.String(), Authentications: authentications.forPod(p, name),
		}
	})
}

// say is what nodes get to know of a waypoint: to go through it once that is their part,
// and to take its word as long as that is not everybody's.
func (w *waypoints) say(before Standing, o metav1.Object) (to *workload.GatewayAddress, extensions []*workload.Extension) {
	if waypoint, ok := before.leads(); ok {
		to = w.address(waypoint)
		if o.GetAnnotations()[binding.FallbackAnnotation] == binding.FallbackDirect {
			extensions = append(extensions, extension(fallbackExtension, &mesh.WaypointFallback{}))
		}
	}
	if waypoint, ok := before.announced(); ok {
		extensions = append(extensions, extension(announcedExtension, &mesh.WaypointAnnounced{Service: w.serviceKey(waypoint)}))
	}
	return to, extensions
}

// bind publishes a Binding to each waypoint that is there and consents; without one
// the waypoint refuses.
func (o *output) bind(kind string, object metav1.Object, before Standing, w *waypoints, uncaptured int, target string, message func(waypoint types.NamespacedName) *mesh.Binding) {
	name := before.Waypoint
	bound := &Bound{
		Target: target, Stage: before.Stage, From: before.From, Leaving: before.Leaving, Ready: w.ready[name],
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
		o.add(target, message(name), resource.Relations{Aliases: []string{WaypointAlias(name)}})
	}
	if before.takesOver() && w.Gateway(before.From) != nil && w.Consents(before.From, object.GetNamespace()) {
		o.add(target+bindingOf+before.From.String(), message(before.From), resource.Relations{Aliases: []string{WaypointAlias(before.From)}})
	}
	o.bound = append(o.bound, bound)
}

// bindingOf goes before a waypoint's name in the name of its Binding, if another one is
// taking over from it.
const bindingOf = "@"

// passes notes which waypoints stand before a pod, and at each Service that it serves
// whether anybody guards it.
func (o *output) passes(p *pod, message *workload.Workload, w *waypoints, services *serviceIndex) {
	if w.IsPod(p.Pod) {
		return
	}
	var own, through []string
	if waypoint, ok := w.beforePod(p).leads(); ok {
		own = append(own, waypoint.String())
	}
	for key := range message.Services {
		s := services.byKey(key)
		if s == nil {
			continue
		}
		if message.TunnelProtocol != workload.TunnelProtocol_HBONE {
			s.uncaptured++
		}
		if waypoint, ok := w.beforeService(s).leads(); ok && !slices.Contains(own, waypoint.String()) {
			through = append(through, waypoint.String())
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
func (o *output) guard(p *pod, w *waypoints, t *targets, services *serviceIndex, serving map[string]*workload.PortList) {
	if p.Spec.HostNetwork {
		return
	}
	if before := w.beforePod(p); before.guarded() && p.Annotations[binding.FallbackAnnotation] != binding.FallbackDirect {
		t.attachGenerated(p, o.onlyThrough(p.Namespace, before.all(), nil))
	}
	ports := make(map[uint32][]types.NamespacedName) // who is let in
	enforced := make(map[uint32]bool)
	open := make(map[uint32]bool)
	for _, s := range services.all {
		before := w.beforeService(s)
		for _, port := range serving[s.key].GetPorts() {
			switch {
			case before.Stage == 0:
				continue
			case s.Annotations[binding.FallbackAnnotation] == binding.FallbackDirect:
				open[port.TargetPort] = true
				continue
			case before.guarded():
				enforced[port.TargetPort] = true
			}
			// One that is enforced closes the port for the others, however far they are.
			for _, waypoint := range before.all() {
				if !slices.Contains(ports[port.TargetPort], waypoint) {
					ports[port.TargetPort] = append(ports[port.TargetPort], waypoint)
				}
			}
		}
	}
	// Ports that are for the same waypoints go together.
	byWaypoints := make(map[string][]uint32)
	of := make(map[string][]types.NamespacedName)
	for port, names := range ports {
		if open[port] || !enforced[port] {
			delete(ports, port)
			continue
		}
		sortNames(names)
		key := fmt.Sprint(names)
		byWaypoints[key], of[key] = append(byWaypoints[key], port), names
	}
	for _, s := range services.all {
		if w.bindsService(s) {
			continue
		}
		for _, port := range serving[s.key].GetPorts() {
			if names := ports[port.TargetPort]; len(names) > 0 {
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
	sortNames(waypoints)
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

func sortNames(names []types.NamespacedName) {
	slices.SortFunc(names, func(a, b types.NamespacedName) int { return strings.Compare(a.String(), b.String()) })
}

// Of is what is bound.
func (b *Bound) Of() Target { return Target{b.Kind, b.Namespace, b.Name} }
