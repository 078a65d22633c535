package uninstall

import (
	"context"
	"encoding/json"
	"fmt"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	gateway "sigs.k8s.io/gateway-api/apis/v1"

	"github.com/ambit-mesh/ambit/internal/binding"
)

// What runs for waypoints, or is there because of them, and bears partOf.
var (
	partOf  = "app.kubernetes.io/part-of=ambit"
	runs    = partOf + "," + binding.GatewayLabel
	running = []struct {
		resource schema.GroupVersionResource
		selector string
	}{
		{schema.GroupVersionResource{Group: "policy", Version: "v1", Resource: "poddisruptionbudgets"}, runs},
		{schema.GroupVersionResource{Group: "apps", Version: "v1", Resource: "deployments"}, runs},
		{schema.GroupVersionResource{Version: "v1", Resource: "services"}, runs},
		{schema.GroupVersionResource{Version: "v1", Resource: "serviceaccounts"}, runs},
		{schema.GroupVersionResource{Version: "v1", Resource: "configmaps"}, partOf},
		{gateway.SchemeGroupVersion.WithResource("gatewayclasses"), partOf},
	}
)

// removeWaypoints removes what runs for Gateways, which nobody looks after any more,
// and what the controller said on Services. The Gateways are the user's, as labels are.
func (r removal) removeWaypoints(ctx context.Context, tell func(string)) error {
	for _, kind := range running {
		list, err := r.cluster.Dynamic.Resource(kind.resource).List(ctx, metav1.ListOptions{LabelSelector: kind.selector})
		if apierrors.IsNotFound(err) {
			continue // the cluster does not know the kind
		}
		if err != nil {
			return fmt.Errorf("list %s: %w", kind.resource.Resource, err)
		}
		for _, item := range list.Items {
			if item.GetNamespace() == namespace {
				continue // goes with it
			}
			background := metav1.DeletePropagationBackground
			err := r.cluster.Dynamic.Resource(kind.resource).Namespace(item.GetNamespace()).Delete(ctx, item.GetName(), metav1.DeleteOptions{PropagationPolicy: &background})
			if err != nil && !apierrors.IsNotFound(err) {
				return fmt.Errorf("delete %s %s/%s: %w", kind.resource.Resource, item.GetNamespace(), item.GetName(), err)
			}
			if kind.resource.Resource == "deployments" {
				tell("waypoint " + item.GetNamespace() + "/" + item.GetName())
			}
		}
	}
	return r.forgetBindings(ctx)
}

// forgetBindings takes back what the controller said on Services.
func (r removal) forgetBindings(ctx context.Context) error {
	services, err := r.cluster.Typed.CoreV1().Services("").List(ctx, metav1.ListOptions{})
	if err != nil {
		return fmt.Errorf("list services: %w", err)
	}
	for _, s := range services.Items {
		if meta.FindStatusCondition(s.Status.Conditions, binding.Condition) == nil && meta.FindStatusCondition(s.Status.Conditions, binding.ReadyCondition) == nil {
			continue
		}
		nothing, err := json.Marshal(map[string]any{
			"apiVersion": "v1", "kind": "Service", "metadata": map[string]any{"namespace": s.Namespace, "name": s.Name, "uid": s.UID}, "status": map[string]any{},
		})
		if err != nil {
			return err
		}
		force := true
		_, err = r.cluster.Typed.CoreV1().Services(s.Namespace).Patch(ctx, s.Name, types.ApplyYAMLPatchType, nothing,
			metav1.PatchOptions{FieldManager: binding.ConditionManager, Force: &force}, "status")
		if err != nil && !apierrors.IsNotFound(err) {
			return fmt.Errorf("apply status of service %s/%s: %w", s.Namespace, s.Name, err)
		}
	}
	return nil
}
