package waypoint

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/types"
	gateway "sigs.k8s.io/gateway-api/apis/v1"

	"github.com/ambit-mesh/ambit/api/v1alpha1"
	"github.com/ambit-mesh/ambit/cli/kube"
	"github.com/ambit-mesh/ambit/internal/binding"
)

// List returns the waypoints of a namespace, or of all if that is empty, ordered by
// namespace and name.
func List(ctx context.Context, cluster *kube.Cluster, namespace string) ([]*View, error) {
	objects, err := gateways(ctx, cluster, "")
	if err != nil {
		return nil, err
	}
	var all []*gateway.Gateway
	for i := range objects {
		g, err := decode(&objects[i])
		if err != nil {
			return nil, err
		}
		all = append(all, g)
	}
	w, err := readWorld(ctx, cluster, all)
	if err != nil {
		return nil, err
	}
	views := []*View{}
	for _, g := range all {
		if binding.IsWaypoint(g) && (namespace == "" || g.Namespace == namespace) {
			views = append(views, w.view(g))
		}
	}
	slices.SortFunc(views, func(a, b *View) int {
		return cmp.Or(strings.Compare(a.Namespace, b.Namespace), strings.Compare(a.Name, b.Name))
	})
	return views, nil
}

// find returns one waypoint.
func find(ctx context.Context, cluster *kube.Cluster, namespace, name string) (*View, error) {
	views, err := List(ctx, cluster, namespace)
	if err != nil {
		return nil, err
	}
	for _, v := range views {
		if v.Name == name {
			return v, nil
		}
	}
	return nil, fmt.Errorf("there is no waypoint %s/%s: `ambit waypoint list` shows those there are, `ambit waypoint apply -n %s --name %s` makes one", namespace, name, namespace, name)
}

// world is what may be bound.
type world struct {
	waypoints  binding.Waypoints
	namespaces []corev1.Namespace
	services   []corev1.Service
	pods       []corev1.Pod
	// workloads are the states of pods' own bindings, by namespace/name.
	workloads map[string]string
}

func readWorld(ctx context.Context, cluster *kube.Cluster, all []*gateway.Gateway) (*world, error) {
	core := cluster.Typed.CoreV1()
	namespaces, err := core.Namespaces().List(ctx, metav1.ListOptions{})
	if err != nil {
		return nil, fmt.Errorf("list namespaces: %w", err)
	}
	services, err := core.Services("").List(ctx, metav1.ListOptions{})
	if err != nil {
		return nil, fmt.Errorf("list services: %w", err)
	}
	pods, err := core.Pods("").List(ctx, metav1.ListOptions{})
	if err != nil {
		return nil, fmt.Errorf("list pods: %w", err)
	}
	w := &world{namespaces: namespaces.Items, services: services.Items, pods: pods.Items, workloads: map[string]string{}}
	var pointers []*corev1.Namespace
	for i := range w.namespaces {
		pointers = append(pointers, &w.namespaces[i])
	}
	w.waypoints = binding.Index(all, pointers)
	list, err := cluster.Dynamic.Resource(v1alpha1.GroupVersion.WithResource("workloads")).List(ctx, metav1.ListOptions{})
	switch {
	case apierrors.IsNotFound(err): // Ambit is not installed: nobody says anything of pods
	case err != nil:
		return nil, fmt.Errorf("list workloads.ambit.mesh: %w", err)
	default:
		for _, item := range list.Items {
			state, _, _ := unstructured.NestedString(item.Object, "status", "binding")
			w.workloads[item.GetNamespace()+"/"+item.GetName()] = state
		}
	}
	return w, nil
}

// view gathers all there is to say of a waypoint.
func (w *world) view(g *gateway.Gateway) *View {
	name := types.NamespacedName{Namespace: g.Namespace, Name: g.Name}
	scope, _ := binding.ScopeOf(g)
	v := &View{
		Namespace: g.Namespace, Name: g.Name, For: string(scope), Namespaces: allowed(g), Addresses: []string{},
		Conditions: g.Status.Conditions, Created: g.CreationTimestamp.UTC(), Bound: w.bound(name), generation: g.Generation,
		labelled: w.labelled(name),
	}
	for _, a := range g.Status.Addresses {
		v.Addresses = append(v.Addresses, a.Value)
	}
	if v.Conditions == nil {
		v.Conditions = []metav1.Condition{}
	}
	v.Programmed = meta.IsStatusConditionTrue(v.Conditions, string(gateway.GatewayConditionProgrammed))
	return v
}

// allowed are the namespaces that may use a waypoint.
func allowed(g *gateway.Gateway) string {
	for _, l := range g.Spec.Listeners {
		if l.AllowedRoutes == nil || l.AllowedRoutes.Namespaces == nil || l.AllowedRoutes.Namespaces.From == nil {
			continue
		}
		switch *l.AllowedRoutes.Namespaces.From {
		case gateway.NamespacesFromAll:
			return "all"
		case gateway.NamespacesFromSelector:
			return "selector"
		}
	}
	return "same"
}

func (w *world) bound(name types.NamespacedName) []Bound {
	bound := []Bound{}
	for i := range w.services {
		s := &w.services[i]
		said := meta.FindStatusCondition(s.Status.Conditions, binding.Condition)
		own, ok := w.waypoints.OfService(s)
		switch {
		case ok && own == name:
			b := Bound{Kind: "Service", Namespace: s.Namespace, Name: s.Name, State: Unknown, By: by("service", s.Labels)}
			if said != nil {
				b.State, b.InForce, b.Message = said.Reason, said.Status == metav1.ConditionTrue, said.Message
			} else {
				b.Message = "no controller has said anything of it"
			}
			bound = append(bound, b)
		case !ok && said != nil && said.Reason == binding.PortConflict && strings.Contains(said.Message, "waypoint "+name.String()+":"):
			bound = append(bound, Bound{Kind: "Service", Namespace: s.Namespace, Name: s.Name, State: said.Reason, Message: said.Message, By: "nothing"})
		}
	}
	for i := range w.pods {
		p := &w.pods[i]
		if own, ok := w.waypoints.OfPod(p); !ok || own != name || p.Status.Phase == corev1.PodSucceeded || p.Status.Phase == corev1.PodFailed {
			continue
		}
		b := Bound{Kind: "Pod", Namespace: p.Namespace, Name: p.Name, By: by("pod", p.Labels)}
		b.State = cmp.Or(w.workloads[p.Namespace+"/"+p.Name], Unknown)
		b.InForce = b.State == binding.InForce || b.State == binding.Direct
		if b.State == Unknown {
			b.Message = "no controller has said anything of it: is the pod in the mesh?"
		}
		bound = append(bound, b)
	}
	slices.SortFunc(bound, func(a, b Bound) int {
		return cmp.Or(-strings.Compare(a.Kind, b.Kind), strings.Compare(a.Namespace, b.Namespace), strings.Compare(a.Name, b.Name))
	})
	return bound
}

func by(kind string, labels map[string]string) string {
	if _, own := labels[binding.Label]; own {
		return kind
	}
	return "namespace"
}

// labelled are those whose own labels name a waypoint.
func (w *world) labelled(name types.NamespacedName) (all []labelled) {
	add := func(kind, namespace, object, inNamespace string, labels map[string]string) {
		if named, ok := binding.Named(labels, inNamespace); ok && named == name {
			all = append(all, labelled{kind, namespace, object})
		}
	}
	for _, n := range w.namespaces {
		add("namespace", "", n.Name, n.Name, n.Labels)
	}
	for _, s := range w.services {
		add("service", s.Namespace, s.Name, s.Namespace, s.Labels)
	}
	for _, p := range w.pods {
		add("pod", p.Namespace, p.Name, p.Namespace, p.Labels)
	}
	return all
}

// age of a waypoint; a zero time has none.
func (v *View) age(now time.Time) time.Duration {
	if v.Created.IsZero() {
		return 0
	}
	return now.Sub(v.Created)
}
