package waypoint

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/types"
	gateway "sigs.k8s.io/gateway-api/apis/v1"

	"github.com/ambit-mesh/ambit/cli/kube"
	"github.com/ambit-mesh/ambit/cli/term"
	"github.com/ambit-mesh/ambit/internal/binding"
)

const (
	fieldManager = "ambit"
	modeLabel    = "ambit.mesh/dataplane-mode"
	// enrolWait is how long a namespace waits for the waypoint that it is to be bound to.
	enrolWait = 2 * time.Minute
)

// Options of Apply. What is empty is left as it is, or as it is by default.
type Options struct {
	Namespace, Name string
	// For is service, workload or all.
	For string
	// AllowNamespaces is same or all.
	AllowNamespaces string
	// EnrollNamespace binds the namespace to the waypoint by its label, once that is
	// programmed.
	EnrollNamespace bool
	// Wait until it is programmed, and what is bound is in force; zero does not wait.
	Wait time.Duration
}

// froms are the values of the listener's allowedRoutes.namespaces.from.
var froms = map[string]gateway.FromNamespaces{"": gateway.NamespacesFromSame, "same": gateway.NamespacesFromSame, "all": gateway.NamespacesFromAll}

func (o Options) check() error {
	switch binding.Scope(o.For) {
	case "", binding.ForService, binding.ForWorkload, binding.ForAll:
	default:
		return fmt.Errorf("--for %q: want service, workload or all", o.For)
	}
	if _, ok := froms[o.AllowNamespaces]; !ok {
		return fmt.Errorf("--allow-namespaces %q: want same or all", o.AllowNamespaces)
	}
	return nil
}

// Apply makes a waypoint, or changes the one that is there, and says what it did and
// what comes next.
func Apply(ctx context.Context, cluster *kube.Cluster, o Options, t *term.Terminal) error {
	if err := o.check(); err != nil {
		return err
	}
	namespace, err := cluster.Typed.CoreV1().Namespaces().Get(ctx, o.Namespace, metav1.GetOptions{})
	if err != nil {
		return fmt.Errorf("get namespace %s: %w", o.Namespace, err)
	}
	if named, ok := binding.Named(namespace.Labels, o.Namespace); o.EnrollNamespace && ok && named != (types.NamespacedName{Namespace: o.Namespace, Name: o.Name}) {
		return fmt.Errorf("namespace %s uses waypoint %s: take that back first, kubectl label namespace %s %s- %s-",
			o.Namespace, named, o.Namespace, binding.Label, binding.NamespaceLabel)
	}
	if err := applyGateway(ctx, cluster, o, t); err != nil {
		return err
	}
	if o.EnrollNamespace && namespace.Labels[binding.Label] != o.Name {
		// What is bound to a waypoint without a pod is refused.
		first := o
		first.Wait = cmp.Or(o.Wait, enrolWait)
		if err := wait(ctx, cluster, first, t); err != nil {
			return fmt.Errorf("namespace %s is not bound to it yet: %w", o.Namespace, err)
		}
	}
	if o.EnrollNamespace {
		if err := bindNamespace(ctx, cluster, namespace, o.Name, t); err != nil {
			return err
		}
	}
	if o.Wait > 0 {
		if err := wait(ctx, cluster, o, t); err != nil {
			return err
		}
	}
	return next(ctx, cluster, namespace, o, t)
}

func applyGateway(ctx context.Context, cluster *kube.Cluster, o Options, t *term.Terminal) error {
	all, err := gateways(ctx, cluster, o.Namespace)
	if err != nil {
		return err
	}
	client := cluster.Dynamic.Resource(resource).Namespace(o.Namespace)
	what := fmt.Sprintf("Gateway %s/%s", o.Namespace, o.Name)
	for i := range all {
		present := &all[i]
		if present.GetName() != o.Name {
			continue
		}
		if class, _, _ := unstructured.NestedString(present.Object, "spec", "gatewayClassName"); class != binding.Class {
			return fmt.Errorf("%s is there already, of class %s: give the waypoint another --name", what, class)
		}
		changed, err := change(present, o)
		if err != nil {
			return fmt.Errorf("%s: %w", what, err)
		}
		if len(changed) == 0 {
			t.Line(term.OK, "%s is as it shall be", what)
			return nil
		}
		if _, err := client.Update(ctx, present, metav1.UpdateOptions{FieldManager: fieldManager}); err != nil {
			return fmt.Errorf("update %s: %w", what, err)
		}
		t.Line(term.OK, "%s updated: %s", what, strings.Join(changed, ", "))
		return nil
	}
	if _, err := client.Create(ctx, fresh(o), metav1.CreateOptions{FieldManager: fieldManager}); err != nil {
		return fmt.Errorf("create %s: %w", what, err)
	}
	t.Line(term.OK, "%s created, of class %s: for %s, of namespaces: %s", what, binding.Class,
		cmp.Or(o.For, string(binding.ForService)), cmp.Or(o.AllowNamespaces, "same"))
	return nil
}

// fresh is the Gateway of a new waypoint.
func fresh(o Options) *unstructured.Unstructured {
	return &unstructured.Unstructured{Object: map[string]any{
		"apiVersion": gateway.SchemeGroupVersion.String(), "kind": "Gateway",
		"metadata": map[string]any{
			"namespace": o.Namespace, "name": o.Name,
			"labels": map[string]any{binding.ForLabel: cmp.Or(o.For, string(binding.ForService))},
		},
		"spec": map[string]any{
			"gatewayClassName": binding.Class,
			"listeners":        []any{listener(o)},
		},
	}}
}

func listener(o Options) map[string]any {
	return map[string]any{
		"name": binding.Listener, "port": int64(binding.Port), "protocol": binding.Protocol,
		"allowedRoutes": map[string]any{"namespaces": map[string]any{"from": string(froms[o.AllowNamespaces])}},
	}
}

// change makes a Gateway that is there be as the options say, and says what that was.
// What they leave open, and what others have set, stays.
func change(g *unstructured.Unstructured, o Options) (changed []string, err error) {
	labels := g.GetLabels()
	if o.For != "" && labels[binding.ForLabel] != o.For {
		if labels == nil {
			labels = map[string]string{}
		}
		labels[binding.ForLabel] = o.For
		g.SetLabels(labels)
		changed = append(changed, "for "+o.For)
	}
	decoded, err := decode(g)
	if err != nil {
		return nil, err
	}
	if l := decoded.Spec.Listeners; len(l) != 1 || l[0].Port != binding.Port || l[0].Protocol != binding.Protocol {
		changed = append(changed, "the listener of a waypoint")
		return changed, unstructured.SetNestedSlice(g.Object, []any{listener(o)}, "spec", "listeners")
	}
	if o.AllowNamespaces == "" || o.AllowNamespaces == allowed(decoded) {
		return changed, nil
	}
	listeners, _, err := unstructured.NestedSlice(g.Object, "spec", "listeners")
	if err != nil {
		return nil, err
	}
	first := listeners[0].(map[string]any)
	if err := unstructured.SetNestedMap(first, map[string]any{"from": string(froms[o.AllowNamespaces])}, "allowedRoutes", "namespaces"); err != nil {
		return nil, err
	}
	changed = append(changed, "of namespaces: "+o.AllowNamespaces)
	return changed, unstructured.SetNestedSlice(g.Object, listeners, "spec", "listeners")
}

// bindNamespace labels a namespace.
func bindNamespace(ctx context.Context, cluster *kube.Cluster, namespace *corev1.Namespace, name string, t *term.Terminal) error {
	if namespace.Labels[binding.Label] == name {
		t.Line(term.OK, "Namespace %s uses it already", namespace.Name)
		return nil
	}
	patch, err := json.Marshal(map[string]any{"metadata": map[string]any{"labels": map[string]any{binding.Label: name, binding.NamespaceLabel: nil}}})
	if err != nil {
		return err
	}
	if _, err := cluster.Typed.CoreV1().Namespaces().Patch(ctx, namespace.Name, types.MergePatchType, patch, metav1.PatchOptions{FieldManager: fieldManager}); err != nil {
		return fmt.Errorf("label namespace %s: %w", namespace.Name, err)
	}
	t.Line(term.OK, "Namespace %s labelled %s=%s", namespace.Name, binding.Label, name)
	return nil
}

// wait until a waypoint is programmed, and what is bound to it is in force.
func wait(ctx context.Context, cluster *kube.Cluster, o Options, t *term.Terminal) error {
	ctx, cancel := context.WithTimeout(ctx, o.Wait)
	defer cancel()
	return t.Step(fmt.Sprintf("waypoint %s/%s is programmed", o.Namespace, o.Name), func(tell func(string)) error {
		return kube.Poll(ctx, func(ctx context.Context) (kube.Progress, error) {
			v, err := find(ctx, cluster, o.Namespace, o.Name)
			if err != nil {
				return kube.Progress{}, err
			}
			return progress(v)
		}, tell)
	})
}

// progress of a waypoint; an error says that it will not get any further by itself.
func progress(v *View) (kube.Progress, error) {
	accepted := meta.FindStatusCondition(v.Conditions, string(gateway.GatewayConditionAccepted))
	programmed := meta.FindStatusCondition(v.Conditions, string(gateway.GatewayConditionProgrammed))
	switch {
	case accepted == nil, programmed == nil, accepted.ObservedGeneration < v.generation:
		return kube.Progress{Text: "no controller has said anything of it yet"}, nil
	case accepted.Reason == string(gateway.GatewayReasonPending):
		return kube.Progress{Text: "no controller has taken it yet"}, nil
	case accepted.Status != metav1.ConditionTrue:
		return kube.Progress{}, fmt.Errorf("it is not accepted: %s", accepted.Message)
	case programmed.Status != metav1.ConditionTrue:
		return kube.Progress{Text: programmed.Message}, nil
	}
	for _, b := range v.Bound {
		if b.State == Unknown && b.Kind == "Service" || b.State == binding.Pending {
			return kube.Progress{Text: fmt.Sprintf("%s %s/%s: %s", b.Kind, b.Namespace, b.Name, cmp.Or(b.Message, b.State))}, nil
		}
	}
	return kube.Progress{Done: true, Text: fmt.Sprintf("%s; in force for %d of %d that are bound", programmed.Message, v.InForce(), len(v.Bound))}, nil
}

// next says what comes next.
func next(ctx context.Context, cluster *kube.Cluster, namespace *corev1.Namespace, o Options, t *term.Terminal) error {
	v, err := find(ctx, cluster, o.Namespace, o.Name)
	if err != nil {
		return err
	}
	uses := slices.Contains(v.labelled, labelled{kind: "namespace", name: o.Namespace})
	if uses && namespace.Labels[modeLabel] != "ambient" {
		t.Line(term.Warning, "namespace %s is not in the mesh: whoever addresses its pods gets past the waypoint", o.Namespace)
		t.Note("kubectl label namespace %s %s=ambient", o.Namespace, modeLabel)
	}
	for _, b := range v.Bound {
		if o.Wait > 0 && !b.InForce {
			t.Line(term.Warning, "%s %s/%s is not in force: %s", b.Kind, b.Namespace, b.Name, cmp.Or(b.Message, b.State))
		}
	}
	if len(v.labelled) == 0 {
		t.Text("next: %s", v.bindCommand())
		return nil
	}
	if v.Namespaces == "all" {
		t.Text("another namespace uses it by: kubectl label namespace NAMESPACE %s=%s %s=%s", binding.Label, v.Name, binding.NamespaceLabel, v.Namespace)
	}
	t.Text("next: ambit waypoint status -n %s %s", v.Namespace, v.Name)
	return nil
}

// bindCommand binds something to a waypoint.
func (v *View) bindCommand() string {
	return fmt.Sprintf("kubectl label namespace %s %s=%s", v.Namespace, binding.Label, v.Name)
}
