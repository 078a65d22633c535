// Package binding tells what labels bind to which waypoint: the controller, which
// carries it out, and the command line, which explains it, read them alike.
//
// An object's own label goes before that of its namespace. What names a waypoint
// that is not there, or that gives no consent, is bound to it all the same: nobody
// gets past it.
//
// It is pure. What being bound means for traffic is the controller's matter.
package binding

import (
	"cmp"
	"slices"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/types"
	gateway "sigs.k8s.io/gateway-api/apis/v1"
)

const (
	// Class is the GatewayClass of waypoints.
	Class = "ambit-waypoint"
	// Listener is the one listener that a waypoint has.
	Listener = "mesh"
	// Protocol of that listener.
	Protocol = "HBONE"
	// Port of that listener, of the waypoint's Service and of its pods.
	Port = 15008
	// GatewayLabel names, on a pod and on what else belongs to a Gateway, that Gateway.
	GatewayLabel = "gateway.networking.k8s.io/gateway-name"

	// Label, on a namespace, a Service or a pod, names the waypoint; NamespaceLabel
	// beside it the waypoint's namespace, if it is another one.
	Label          = "ambit.mesh/use-waypoint"
	NamespaceLabel = "ambit.mesh/use-waypoint-namespace"
	// None takes back what the namespace's label says.
	None = "none"
	// ForLabel, on a waypoint, says what of a labelled namespace it is for.
	ForLabel = "ambit.mesh/waypoint-for"
	// FallbackAnnotation, on what is bound, says what happens while its waypoint has
	// no endpoint: FallbackDirect, or else connections are refused.
	FallbackAnnotation = "ambit.mesh/waypoint-fallback"
	FallbackDirect     = "direct"

	// RemovingLabel, on the system namespace, has bindings go, or with the value
	// RemovingAll the mesh with them: ambit uninstall sets one after the other.
	RemovingLabel     = "ambit.mesh/removing"
	RemovingWaypoints = "waypoints"
	RemovingAll       = "true"

	// Condition, on a waypoint's Gateway and on each bound Service, tells how far that is.
	Condition = "ambit.mesh/Bound"
	// ReadyCondition, on each bound Service, tells whether its waypoint can do its part.
	ReadyCondition = "ambit.mesh/Ready"
	// ConditionManager applies both to Services.
	ConditionManager = "ambit-controller-bound"
)

// Reasons of a Service's Condition. InForce and Direct are of one that is true.
const (
	// InForce: clients go through the waypoint, and the pods let in nobody else.
	InForce = "InForce"
	// Direct: as its owner wishes, the pods let in clients without the waypoint.
	Direct = "Direct"
	// Pending: the waypoint is not ready, or some node has not heard of it: clients may
	// still go straight.
	Pending = "Pending"
	// Leaving: no label binds it any more, and some node or the waypoint has not heard of
	// that, or older connections have not had their time to end.
	Leaving = "Leaving"
	// NotCaptured: who addresses a pod that is not captured gets past the waypoint.
	NotCaptured = "NotCaptured"
	// NotFound, NotAllowed and PortConflict: nobody gets through. The waypoint is not
	// there, or does not consent; or the Service is not bound, and another one that
	// uses the same port of the same pods is.
	NotFound     = "WaypointNotFound"
	NotAllowed   = "NotAllowed"
	PortConflict = "PortConflict"
)

// Reasons of the ReadyCondition, besides those of why nobody gets through.
const (
	// Ready: the waypoint has pods that are, and all of them work with the binding as it
	// is now.
	Ready = "WaypointReady"
	// NotReady: it has no pod that is.
	NotReady = "WaypointNotReady"
	// NotAcknowledged: some pod of it does not work with the binding as it is now.
	NotAcknowledged = "NotAcknowledged"
)

// Scope is what of a namespace a waypoint is for.
type Scope string

// The scopes, as the label has them.
const (
	ForService  Scope = "service"
	ForWorkload Scope = "workload"
	ForAll      Scope = "all"
	ForNone     Scope = "none"
)

// Services tells whether the Services of a labelled namespace are bound.
func (s Scope) Services() bool { return s == ForService || s == ForAll }

// Workloads tells whether the pods of a labelled namespace are bound.
func (s Scope) Workloads() bool { return s == ForWorkload || s == ForAll }

// ScopeOf is what a waypoint is for; a label that means nothing means the default,
// and is to be reported.
func ScopeOf(g *gateway.Gateway) (scope Scope, known bool) {
	value, ok := g.Labels[ForLabel]
	switch scope := Scope(value); {
	case !ok:
		return ForService, true
	case scope == ForService, scope == ForWorkload, scope == ForAll, scope == ForNone:
		return scope, true
	}
	return ForService, false
}

// IsWaypoint tells whether a Gateway is one of ours.
func IsWaypoint(g *gateway.Gateway) bool { return g.Spec.GatewayClassName == Class }

// Waypoints are the Gateways of our class, and the namespaces whose labels name them.
type Waypoints struct {
	byName     map[types.NamespacedName]*gateway.Gateway
	namespaces map[string]*corev1.Namespace
}

// Index returns the waypoints among some Gateways. Of namespaces only names and
// labels are looked at.
func Index(gateways []*gateway.Gateway, namespaces []*corev1.Namespace) Waypoints {
	w := Waypoints{byName: make(map[types.NamespacedName]*gateway.Gateway), namespaces: make(map[string]*corev1.Namespace, len(namespaces))}
	for _, g := range gateways {
		if IsWaypoint(g) {
			w.byName[types.NamespacedName{Namespace: g.Namespace, Name: g.Name}] = g
		}
	}
	for _, n := range namespaces {
		w.namespaces[n.Name] = n
	}
	return w
}

// Gateway of a waypoint; nil if there is none.
func (w Waypoints) Gateway(name types.NamespacedName) *gateway.Gateway { return w.byName[name] }

// IsPod tells whether a pod is a waypoint's own: it has the label and the service
// account that the controller gave it.
func (w Waypoints) IsPod(p *corev1.Pod) bool {
	name := p.Labels[GatewayLabel]
	return name != "" && !p.Spec.HostNetwork && p.Spec.ServiceAccountName == name &&
		w.byName[types.NamespacedName{Namespace: p.Namespace, Name: name}] != nil
}

// IsService tells whether a Service is a waypoint's own.
func (w Waypoints) IsService(s *corev1.Service) bool {
	return s.Labels[GatewayLabel] == s.Name && w.byName[types.NamespacedName{Namespace: s.Namespace, Name: s.Name}] != nil
}

// Named is the waypoint that labels of something in a namespace name.
func Named(labels map[string]string, namespace string) (name types.NamespacedName, ok bool) {
	value := labels[Label]
	if value == "" || value == None {
		return types.NamespacedName{}, false
	}
	return types.NamespacedName{Namespace: cmp.Or(labels[NamespaceLabel], namespace), Name: value}, true
}

// wanted is the waypoint that labels ask for: the object's own ones, or else those
// of its namespace. own tells which.
func (w Waypoints) wanted(o metav1.Object) (name types.NamespacedName, own, ok bool) {
	all := o.GetLabels()
	if _, own = all[Label]; !own {
		n := w.namespaces[o.GetNamespace()]
		if n == nil {
			return types.NamespacedName{}, false, false
		}
		all = n.Labels
	}
	name, ok = Named(all, o.GetNamespace())
	return name, own, ok
}

// OfService is the waypoint that a Service is bound to.
func (w Waypoints) OfService(s *corev1.Service) (types.NamespacedName, bool) {
	if w.IsService(s) {
		return types.NamespacedName{}, false
	}
	name, own, ok := w.wanted(s)
	if !ok {
		return types.NamespacedName{}, false
	}
	if g := w.byName[name]; g != nil && !own {
		scope, _ := ScopeOf(g)
		return name, scope.Services()
	}
	return name, true
}

// OfPod is the waypoint that a pod is bound to when it is addressed itself.
func (w Waypoints) OfPod(p *corev1.Pod) (types.NamespacedName, bool) {
	if w.IsPod(p) || p.Spec.HostNetwork {
		return types.NamespacedName{}, false
	}
	name, own, ok := w.wanted(p)
	if !ok {
		return types.NamespacedName{}, false
	}
	if own {
		return name, true
	}
	g := w.byName[name]
	if g == nil {
		return types.NamespacedName{}, false // for Services, unless it says otherwise
	}
	scope, _ := ScopeOf(g)
	return name, scope.Workloads()
}

// Consents tells whether a waypoint takes what is of another namespace: its
// listener's allowedRoutes say so.
func (w Waypoints) Consents(name types.NamespacedName, namespace string) bool {
	g := w.byName[name]
	if g == nil {
		return false
	}
	if namespace == name.Namespace {
		return true
	}
	return slices.ContainsFunc(g.Spec.Listeners, func(l gateway.Listener) bool {
		if l.AllowedRoutes == nil || l.AllowedRoutes.Namespaces == nil || l.AllowedRoutes.Namespaces.From == nil {
			return false
		}
		switch allowed := l.AllowedRoutes.Namespaces; *allowed.From {
		case gateway.NamespacesFromAll:
			return true
		case gateway.NamespacesFromSelector:
			selector, err := metav1.LabelSelectorAsSelector(allowed.Selector)
			n := w.namespaces[namespace]
			return err == nil && n != nil && selector.Matches(labels.Set(n.Labels))
		}
		return false
	})
}
