package translate

import (
	"cmp"
	"maps"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/ambit-mesh/ambit/api/mesh"
	"github.com/ambit-mesh/ambit/api/v1alpha1"
	"github.com/ambit-mesh/ambit/api/workload"
	"github.com/ambit-mesh/ambit/controller/resource"
)

// The names of Extensions of workloads.
const (
	mutualTLSExtension = "ambit.mesh/mutual-tls"
	egressExtension    = "ambit.mesh/egress-policies"
)

// PolicyKind is a kind of policy object.
type PolicyKind string

// The kinds of policies.
const (
	AuthorizationPolicy PolicyKind = "AuthorizationPolicy"
	EgressPolicy        PolicyKind = "EgressPolicy"
	PeerAuthentication  PolicyKind = "PeerAuthentication"

	RequestAuthentication PolicyKind = "RequestAuthentication"
)

// Reason why a policy is not in force as it is written, or does not do what its
// author may think.
type Reason string

const (
	// Invalid: a field means nothing. The stricter reading is sent.
	Invalid Reason = "Invalid"
	// RequiresWaypoint: no waypoint enforces a field. The stricter reading is sent.
	RequiresWaypoint Reason = "RequiresWaypoint"
	// TargetNotFound: what the policy is for is not there.
	TargetNotFound Reason = "TargetNotFound"
	// Overridden: another policy decides in its place.
	Overridden Reason = "Overridden"
	// NoRules: it is in force, and does nothing.
	NoRules Reason = "NoRules"
)

// Problem is what is to be said about a field.
type Problem struct {
	Reason Reason
	// Field as in spec.rules[0].from[0].source.ipBlocks[1]; empty for the whole.
	Field   string
	Message string
}

// Policy is what became of one policy object.
type Policy struct {
	Kind            PolicyKind
	Namespace, Name string
	UID             types.UID
	Generation      int64
	// Version is a hash of its content as nodes have it.
	Version string
	// DryRun: nothing is refused because of it.
	DryRun   bool
	Problems []Problem
	// Workloads is the number of pods that it applies to.
	Workloads int
	// Resources are what a node that enforces it needs.
	Resources []Ref
	// Nodes are those that have to enforce it: captured pods that it applies to
	// run there. The names are of Address resources that they need besides, those
	// that say that the policy applies.
	Nodes map[string][]string
	// Uncaptured are by node the pods that it applies to, that run and are to be captured, and are not: since when each is to be.
	Uncaptured map[string][]time.Time
	// Waypoints are those that have to enforce it, namespace/name of their Gateways,
	// sorted, and AtWaypoints what they need.
	Waypoints   []string
	AtWaypoints []Ref
}

// Ref names a resource.
type Ref struct{ Type, Name string }

func newPolicy(kind PolicyKind, o metav1.Object) *Policy {
	p := &Policy{
		Kind: kind, Namespace: o.GetNamespace(), Name: o.GetName(), UID: o.GetUID(), Generation: o.GetGeneration(),
		Nodes: make(map[string][]string), Uncaptured: make(map[string][]time.Time),
	}
	const field = "metadata.annotations[" + v1alpha1.DryRunAnnotation + "]"
	switch value, ok := o.GetAnnotations()[v1alpha1.DryRunAnnotation]; {
	case value == "true":
		p.DryRun = true
	case ok && value != "false":
		p.say(Invalid, field, "is neither true nor false: the policy is enforced")
	}
	return p
}

// unread says of fields that this version does not know how the policy is read therefore.
func (p *Policy) unread(fields []string, reading string) {
	for _, field := range fields {
		p.say(Invalid, field, "is not known to this version of Ambit: "+reading)
	}
}

// ID is kind, namespace and name.
func (p *Policy) ID() string { return string(p.Kind) + " " + p.key() }

func (p *Policy) key() string { return p.Namespace + "/" + p.Name }

func (p *Policy) say(reason Reason, field, message string) {
	p.Problems = append(p.Problems, Problem{Reason: reason, Field: field, Message: message})
}

// targets are the pods that policies can apply to: those with a network of their own.
type targets struct {
	system      string
	clusterID   string
	captured    Captured
	awaits      func(*pod) (since time.Time, awaits bool) // is to be captured, and is not
	leaves      func(*pod) bool                           // is to be let go, whether it is captured or not
	all         []*pod
	byNamespace map[string][]*pod
	attached    map[*pod]*attachment
}

// attachment is what policies make of a pod's workload.
type attachment struct {
	authorizations []string
	mutualTLS      mesh.MutualTLS_Mode // MODE_UNSPECIFIED: nothing is said
	// awaited: it is to be captured, and is not; strictPorts refuse plaintext besides.
	awaited     bool
	strictPorts []uint32
	egress      []string
}

// to says on a workload which policies apply to it; nil says nothing.
func (a *attachment) to(w *workload.Workload) {
	if a == nil {
		return
	}
	w.AuthorizationPolicies = a.authorizations
	if a.mutualTLS != mesh.MutualTLS_MODE_UNSPECIFIED {
		w.Extensions = append(w.Extensions, extension(mutualTLSExtension, &mesh.MutualTLS{
			Mode: a.mutualTLS, AwaitsCapture: a.awaited, StrictPorts: a.strictPorts,
		}))
	}
	if a.awaited && a.mutualTLS == mesh.MutualTLS_STRICT {
		w.TunnelProtocol = workload.TunnelProtocol_HBONE
	}
	if len(a.egress) > 0 {
		w.Extensions = append(w.Extensions, extension(egressExtension, &mesh.EgressPolicies{Names: a.egress}))
	}
}

func newTargets(in Input, pods *podIndex, w *waypoints) *targets {
	t := &targets{
		system: in.Config.SystemNamespace, clusterID: in.Config.ClusterID, captured: in.Captured,
		byNamespace: make(map[string][]*pod), attached: make(map[*pod]*attachment),
	}
	t.awaits = func(p *pod) (since time.Time, awaits bool) {
		if in.Enrolled == nil || in.Captured.Has(p.UID) || w.IsPod(p.Pod) {
			return time.Time{}, false
		}
		return in.Enrolled.Since(p.UID)
	}
	t.leaves = func(p *pod) bool { return in.Leaving != nil && in.Leaving.Has(p.UID) }
	for _, p := range pods.all {
		if !p.Spec.HostNetwork {
			t.all = append(t.all, p)
			t.byNamespace[p.Namespace] = append(t.byNamespace[p.Namespace], p)
		}
	}
	return t
}

// in returns the pods that a policy of a namespace can select from.
func (t *targets) in(namespace string) []*pod {
	if namespace == t.system {
		return t.all
	}
	return t.byNamespace[namespace]
}

// selected returns the pods that a policy of a namespace is for.
func (t *targets) selected(namespace string, selector *v1alpha1.WorkloadSelector) []*pod {
	all := t.in(namespace)
	if !selects(selector) {
		return all
	}
	var selected []*pod
	for _, p := range all {
		if matches(selector, p.Labels) {
			selected = append(selected, p)
		}
	}
	return selected
}

// of returns what is attached to a pod.
func (t *targets) of(p *pod) *attachment {
	a := t.attached[p]
	if a == nil {
		a = &attachment{}
		t.attached[p] = a
	}
	return a
}

// enforce notes that a policy applies to a pod. With attached, the pod's
// workload says so.
func (t *targets) enforce(policy *Policy, p *pod, attached bool) {
	policy.Workloads++
	if !t.captured.Has(p.UID) {
		// Before it runs it is held until it is captured.
		if since, awaits := t.awaits(p); awaits && p.Status.Phase == corev1.PodRunning {
			policy.Uncaptured[p.Spec.NodeName] = append(policy.Uncaptured[p.Spec.NodeName], since)
		}
		return
	}
	names := policy.Nodes[p.Spec.NodeName]
	if attached {
		names = append(names, workloadUID(t.clusterID, p))
	}
	policy.Nodes[p.Spec.NodeName] = names
}

// selects tells whether a selector picks some of the pods rather than all.
func selects(selector *v1alpha1.WorkloadSelector) bool {
	return selector != nil && len(selector.MatchLabels) > 0
}

func matches(selector *v1alpha1.WorkloadSelector, labels map[string]string) bool {
	for key, value := range selector.MatchLabels {
		if have, ok := labels[key]; !ok || have != string(value) {
			return false
		}
	}
	return true
}

// level is how specific a policy is. A selector is more specific than none, the
// own namespace than the whole mesh.
type level int

const (
	meshLevel level = iota
	namespaceLevel
	meshSelectorLevel
	selectorLevel
	// unreadLevel is of what could not be read, which may have been as specific as any.
	unreadLevel
)

func (t *targets) level(namespace string, selector *v1alpha1.WorkloadSelector) level {
	switch isSystem := namespace == t.system; {
	case selects(selector) && isSystem:
		return meshSelectorLevel
	case selects(selector):
		return selectorLevel
	case isSystem:
		return meshLevel
	}
	return namespaceLevel
}

// oldestFirst sorts objects so that the result does not depend on the order in
// which they come, and the first of several is the one that was there first.
func oldestFirst[T metav1.Object](all []T) []T {
	return slices.SortedFunc(slices.Values(all), func(a, b T) int {
		created, other := a.GetCreationTimestamp(), b.GetCreationTimestamp()
		return cmp.Or(created.Compare(other.Time),
			strings.Compare(a.GetNamespace(), b.GetNamespace()), strings.Compare(a.GetName(), b.GetName()))
	})
}

// policies resolves which policies apply to which pods, and publishes them.
func (o *output) policies(in Input, pods *podIndex, services *serviceIndex, serving *serving, w *waypoints, r *requests) *targets {
	t := newTargets(in, pods, w)
	o.authorizationPolicies(in, t, targetsOfRefs{in: in, targets: t, services: services, serving: serving, waypoints: w}, r)
	modes := o.peerAuthentications(in.PeerAuthentications, t)
	denials := o.egressPolicies(in.EgressPolicies, t)
	o.namespaces(in.Namespaces, t, modes, denials)
	for _, a := range t.attached {
		slices.Sort(a.authorizations)
		slices.Sort(a.egress)
	}
	return t
}

// publishPolicy adds the resource that a policy is, and the outcome.
func (o *output) publishPolicy(p *Policy, name string, r *resource.Resource, err error) {
	if err != nil {
		// What protobuf cannot express is not sent at all. Nobody can have
		// matched it either: Kubernetes' names and API are UTF-8 throughout.
		p.say(Invalid, "", err.Error())
	} else {
		o.resources.Add(r)
		p.Version = r.Version
		p.Resources = append(p.Resources, Ref{Type: r.Body.TypeUrl, Name: name})
	}
	o.outcomes = append(o.outcomes, p)
}

// namespaces publishes what pods are held to before they are known.
func (o *output) namespaces(all []*corev1.Namespace, t *targets, modes *modeSources, denials *denialSources) {
	names := make(map[string]bool)
	for _, n := range all {
		names[n.Name] = true
	}
	for name := range t.byNamespace {
		names[name] = true
	}
	for _, name := range slices.Sorted(maps.Keys(names)) {
		strict, denied := modes.mayBeStrict(name), denials.mayDeny(name)
		if !strict && !denied {
			continue
		}
		mode := mesh.MutualTLS_PERMISSIVE
		if strict {
			mode = mesh.MutualTLS_STRICT
		}
		o.add(name, &mesh.Namespace{Name: name, MutualTls: mode, EgressDenied: denied}, resource.Relations{})
	}
}
