package translate

import (
	"fmt"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/types"

	"github.com/ambit-mesh/ambit/api/v1alpha1"
	"github.com/ambit-mesh/ambit/api/workload"
	"github.com/ambit-mesh/ambit/internal/binding"
)

// targetsOfRefs finds the pods that stand for the Services and waypoints which a
// policy names. On connections that come through no waypoint these pods enforce it:
// what it denies they refuse, and what it allows they cannot tell apart from
// what else comes to them, so that it allows nothing.
type targetsOfRefs struct {
	in       Input
	targets  *targets
	services *serviceIndex
	serving  *serving

	waypoints *waypoints
}

// provider says what is wrong with who is to be asked. It tells whether it means anything.
func (r targetsOfRefs) provider(p *Policy, object *v1alpha1.AuthorizationPolicy, all *requests) bool {
	provider, err := all.provider(object)
	if err != nil {
		field, message, _ := strings.Cut(err.Error(), ": ")
		p.say(Invalid, "spec.provider"+field, message+": everything is denied")
		return false
	}
	s := r.services.byKey(provider.GetService())
	if s == nil || !slices.ContainsFunc(s.message.GetPorts(), func(port *workload.Port) bool { return port.GetServicePort() == provider.GetPort() }) {
		p.say(TargetNotFound, "spec.provider", fmt.Sprintf("there is no Service %s with port %d: what the rules match is denied", provider.GetService(), provider.GetPort()))
	}
	return true
}

// without counts the pods that no waypoint stands before: neither before themselves nor
// before a Service that they serve.
func (r targetsOfRefs) without(pods []*pod) (n int) {
	for _, p := range pods {
		behind := r.waypoints.bindsPod(p)
		for key := range r.serving.ofPod[p] {
			if s := r.services.byKey(key); s != nil && !behind {
				behind = r.waypoints.bindsService(s)
			}
		}
		if !behind && !r.waypoints.IsPod(p.Pod) {
			n++
		}
	}
	return n
}

// resolve returns the pods that a policy's targets stand for, and says what is
// to be said of them.
func (r targetsOfRefs) resolve(p *Policy, object *v1alpha1.AuthorizationPolicy) []*pod {
	effect := "the pods behind it refuse what it denies"
	if object.Spec.Action == v1alpha1.AuthorizationAllow || object.Spec.Action == "" {
		effect = "the pods behind it refuse what no other policy allows"
	}
	wanted := make(map[*pod]bool)
	for i, ref := range object.Spec.TargetRefs {
		field := fmt.Sprintf("spec.targetRefs[%d]", i)
		switch {
		case ref.Kind == "Service" && (ref.Group == "" || ref.Group == "core"):
			s := r.services.byName[types.NamespacedName{Namespace: object.Namespace, Name: ref.Name}]
			if s == nil {
				p.say(TargetNotFound, field, "there is no Service "+object.Namespace+"/"+ref.Name)
				continue
			}
			if !r.waypoints.bindsService(s) {
				p.say(RequiresWaypoint, field, "no waypoint serves Service "+object.Namespace+"/"+ref.Name+": "+effect)
			}
			r.ofService(s, wanted)
		case ref.Kind == "Gateway" && ref.Group == "gateway.networking.k8s.io":
			name := types.NamespacedName{Namespace: object.Namespace, Name: ref.Name}
			if r.waypoints.Gateway(name) == nil {
				p.say(TargetNotFound, field, "there is no Gateway "+name.String()+" of class "+binding.Class+": "+effect)
			}
			r.ofWaypoint(name, wanted)
		default:
			p.say(Invalid, field, fmt.Sprintf("%s %s is nothing that a policy can be for: it is for every pod of the namespace", ref.Kind, ref.Name))
			for _, pod := range r.targets.byNamespace[object.Namespace] {
				wanted[pod] = true
			}
		}
	}
	var pods []*pod
	for _, pod := range r.targets.all { // in their order
		if wanted[pod] {
			pods = append(pods, pod)
		}
	}
	return pods
}

// ofService adds the pods that serve a Service, or will.
func (r targetsOfRefs) ofService(s *service, wanted map[*pod]bool) {
	selector := labels.SelectorFromSet(s.Spec.Selector)
	for _, p := range r.targets.byNamespace[s.Namespace] {
		if len(s.Spec.Selector) > 0 && selector.Matches(labels.Set(p.Labels)) {
			wanted[p] = true
		}
	}
	for p, byService := range r.serving.ofPod {
		if _, ok := byService[s.key]; ok {
			wanted[p] = true
		}
	}
}

// ofWaypoint adds the pods whose traffic is to pass a waypoint.
func (r targetsOfRefs) ofWaypoint(waypoint types.NamespacedName, wanted map[*pod]bool) {
	namespaces := make(map[string]*corev1.Namespace, len(r.in.Namespaces))
	for _, n := range r.in.Namespaces {
		namespaces[n.Name] = n
	}
	for _, p := range r.targets.all {
		labels := p.Labels
		if _, ok := labels[binding.Label]; !ok {
			if n := namespaces[p.Namespace]; n != nil {
				labels = n.Labels
			}
		}
		if boundTo(labels, p.Namespace, waypoint) {
			wanted[p] = true
		}
	}
	for _, s := range r.services.all {
		if boundTo(s.Labels, s.Namespace, waypoint) {
			r.ofService(s, wanted)
		}
	}
}

func boundTo(labels map[string]string, namespace string, waypoint types.NamespacedName) bool {
	name, ok := binding.Named(labels, namespace)
	return ok && name == waypoint
}
