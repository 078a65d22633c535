package waypoint

import (
	"context"
	"errors"
	"fmt"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	gateway "sigs.k8s.io/gateway-api/apis/v1"

	"github.com/ambit-mesh/ambit/cli/kube"
	"github.com/ambit-mesh/ambit/internal/binding"
)

// Use is a label that names a waypoint.
type Use struct {
	// Kind is Namespace, Service or Pod.
	Kind            string
	Namespace, Name string
	Waypoint        types.NamespacedName
	// Problem is binding.NotFound or binding.NotAllowed; empty if there is none.
	Problem string
}

// Object is what bears the label, as messages name it.
func (u Use) Object() string {
	if u.Namespace == "" {
		return u.Kind + " " + u.Name
	}
	return u.Kind + " " + u.Namespace + "/" + u.Name
}

// Uses returns all labels that name waypoints; with ErrNoGatewayAPI as well, where the
// cluster can have none.
func Uses(ctx context.Context, cluster *kube.Cluster) ([]Use, error) {
	uses, namespaces, err := labels(ctx, cluster)
	if err != nil {
		return nil, err
	}
	objects, missing := gateways(ctx, cluster, "")
	if missing != nil && !errors.Is(missing, ErrNoGatewayAPI) {
		return nil, missing
	}
	var all []*gateway.Gateway
	for i := range objects {
		g, err := decode(&objects[i])
		if err != nil {
			return nil, err
		}
		all = append(all, g)
	}
	waypoints := binding.Index(all, namespaces)
	for i := range uses {
		u := &uses[i]
		namespace := u.Namespace
		if u.Kind == "Namespace" {
			namespace = u.Name
		}
		switch {
		case waypoints.Gateway(u.Waypoint) == nil:
			u.Problem = binding.NotFound
		case !waypoints.Consents(u.Waypoint, namespace):
			u.Problem = binding.NotAllowed
		}
	}
	return uses, missing
}

func labels(ctx context.Context, cluster *kube.Cluster) (uses []Use, namespaces []*corev1.Namespace, err error) {
	core := cluster.Typed.CoreV1()
	add := func(kind string, o metav1.Object, namespace string) {
		if name, ok := binding.Named(o.GetLabels(), namespace); ok {
			uses = append(uses, Use{Kind: kind, Namespace: o.GetNamespace(), Name: o.GetName(), Waypoint: name})
		}
	}
	all, err := core.Namespaces().List(ctx, metav1.ListOptions{})
	if err != nil {
		return nil, nil, fmt.Errorf("list namespaces: %w", err)
	}
	for i := range all.Items {
		n := &all.Items[i]
		namespaces = append(namespaces, n)
		add("Namespace", n, n.Name)
	}
	labelled := metav1.ListOptions{LabelSelector: binding.Label}
	services, err := core.Services("").List(ctx, labelled)
	if err != nil {
		return nil, nil, fmt.Errorf("list services: %w", err)
	}
	for i := range services.Items {
		add("Service", &services.Items[i], services.Items[i].Namespace)
	}
	pods, err := core.Pods("").List(ctx, labelled)
	if err != nil {
		return nil, nil, fmt.Errorf("list pods: %w", err)
	}
	for i := range pods.Items {
		add("Pod", &pods.Items[i], pods.Items[i].Namespace)
	}
	return uses, namespaces, nil
}
